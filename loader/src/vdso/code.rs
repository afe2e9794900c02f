//! The few instructions that replace a vDSO function: position-independent x86-64, assembled here, run by the guest.
//!
//! Two kinds per function. A *fallback* needs nothing of the node: a system call of the same meaning, or ENOSYS. Its bytes are the
//! same on every node, so a thread may be frozen in it. An *adapter* calls the node's function and corrects its answer; its bytes hold
//! the node's address, but its length never changes, so that the layout stays the same everywhere.

use crate::script::abi::CALL;

/// `movabs rax, target; jmp rax`: what an entry becomes.
pub const JUMP: usize = 12;
/// `jmp rel32`: the shortest entry.
pub const SHORT_JUMP: usize = 5;

/// System call of the same meaning and arguments as a vDSO function, by its name without `__vdso_`.
#[must_use]
pub fn syscall_of(name: &str) -> Option<u32> {
    Some(match name {
        "gettimeofday" => 96,
        "time" => 201,
        "clock_gettime" => 228,
        "clock_getres" => 229,
        "getcpu" => 309,
        "getrandom" => 318,
        _ => return None,
    })
}

/// Bytes under construction. Forward jumps are short: every piece here is below 128 bytes.
#[derive(Default)]
struct Asm(Vec<u8>);

/// A forward jump whose target is not known yet: the place of its displacement byte.
struct Forward(usize);

/// Condition codes as in the low nibble of `jcc`.
const BELOW: u8 = 0x2;
const ABOVE: u8 = 0x7;
const EQUAL: u8 = 0x4;
const NOT_EQUAL: u8 = 0x5;
const LESS: u8 = 0xc;

impl Asm {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn imm32(&mut self, opcode: &[u8], value: u32) -> &mut Self {
        self.put(opcode).put(&value.to_le_bytes())
    }

    fn imm64(&mut self, opcode: &[u8], value: u64) -> &mut Self {
        self.put(opcode).put(&value.to_le_bytes())
    }

    fn jump_if(&mut self, condition: u8) -> Forward {
        self.put(&[0x70 | condition, 0]);
        Forward(self.0.len() - 1)
    }

    fn land(&mut self, jumps: &[Forward]) -> &mut Self {
        for Forward(at) in jumps {
            let distance = self.0.len() - at - 1;
            debug_assert!(distance < 128);
            if let (Some(byte), Ok(distance)) = (self.0.get_mut(*at), u8::try_from(distance)) {
                *byte = distance;
            }
        }
        self
    }

    /// Calls the node's function with the arguments in place; keeps rdi and rsi, and the stack aligned as the ABI wants it.
    fn call_node(&mut self, target: u64) -> &mut Self {
        self.put(&[0x57, 0x56, 0x48, 0x83, 0xec, 0x08]); // push rdi; push rsi; sub rsp, 8
        self.imm64(&[0x48, 0xb8], target); // movabs rax, target
        self.put(&[0xff, 0xd0, 0x48, 0x83, 0xc4, 0x08, 0x5e, 0x5f]) // call rax; add rsp, 8; pop rsi; pop rdi
    }

    fn syscall(&mut self, number: u32) -> &mut Self {
        self.imm32(&[0xb8], number).put(&[0x0f, 0x05]) // mov eax, number; syscall
    }
}

/// A jump to an absolute address.
#[must_use]
pub fn jump(target: u64) -> Vec<u8> {
    let mut asm = Asm::default();
    asm.imm64(&[0x48, 0xb8], target).put(&[0xff, 0xe0]); // movabs rax, target; jmp rax
    asm.0
}

/// A jump from image offset `from` to image offset `to`. `None` when they are 2 GiB apart.
#[must_use]
pub fn jump_within(from: usize, to: usize) -> Option<Vec<u8>> {
    relative(0xe9, from, to)
}

/// `jmp rel32` or `call rel32` between two offsets of the image.
fn relative(opcode: u8, from: usize, to: usize) -> Option<Vec<u8>> {
    let after = i64::try_from(from.checked_add(SHORT_JUMP)?).ok()?;
    let distance = i32::try_from(i64::try_from(to).ok()?.checked_sub(after)?).ok()?;
    let mut asm = Asm::default();
    asm.put(&[opcode]).put(&distance.to_le_bytes());
    Some(asm.0)
}

/// `mov rax, -ENOSYS; ret`: what a vDSO function says that cannot serve; libc then makes the system call itself.
#[must_use]
pub fn enosys() -> Vec<u8> {
    vec![0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff, 0xff, 0xc3] // mov rax, -38; ret
}

/// The function done by its system call. `name` without `__vdso_`; `cpus` bounds what getcpu answers.
#[must_use]
pub fn fallback(name: &str, cpus: u32) -> Vec<u8> {
    let Some(number) = syscall_of(name) else {
        return enosys();
    };
    let mut asm = Asm::default();
    match name {
        "getrandom" => {
            // getrandom(buffer, length, flags, state, state_length): state_length of ~0 asks for the parameters of a state. "Not
            // here" keeps libc from making one. A call with a state, made by a libc that got one at home, is the plain system call:
            // the state may be a copy, and its pages may be gone.
            asm.put(&[0x49, 0x83, 0xf8, 0xff]); // cmp r8, -1
            let ask = asm.jump_if(EQUAL);
            asm.syscall(number).put(&[0xc3]);
            asm.land(&[ask]).put(&enosys());
        }
        "getcpu" => {
            asm.syscall(number);
            clamp_cpu(&mut asm, cpus);
        }
        _ => {
            asm.syscall(number).put(&[0xc3]);
        }
    }
    asm.0
}

/// The node's function with its answer corrected. `None` where a plain jump does. `node` is the address of the node's function.
/// `offset_ns` is added to what the node's realtime clock says.
#[must_use]
pub fn adapter(name: &str, node: u64, cpus: u32, offset_ns: i64) -> Option<Vec<u8>> {
    let mut asm = Asm::default();
    let seconds = offset_ns.div_euclid(1_000_000_000).cast_unsigned();
    let nanoseconds = u32::try_from(offset_ns.rem_euclid(1_000_000_000)).unwrap_or(0);
    match name {
        "getcpu" => {
            asm.call_node(node);
            clamp_cpu(&mut asm, cpus);
        }
        "clock_gettime" => {
            wait_in_window(&mut asm);
            asm.call_node(node);
            asm.put(&[0x85, 0xc0]); // test eax, eax
            let failed = asm.jump_if(NOT_EQUAL);
            asm.put(&[0x85, 0xff]); // test edi, edi: CLOCK_REALTIME
            let realtime = asm.jump_if(EQUAL);
            asm.put(&[0x83, 0xff, 0x05]); // cmp edi, CLOCK_REALTIME_COARSE
            let coarse = asm.jump_if(EQUAL);
            asm.put(&[0x83, 0xff, 0x0b]); // cmp edi, CLOCK_TAI
            let other = asm.jump_if(NOT_EQUAL);
            asm.land(&[realtime, coarse]);
            asm.imm64(&[0x48, 0xb9], seconds).put(&[0x48, 0x01, 0x0e]); // movabs rcx, s; add [rsi], rcx
            asm.put(&[0x48, 0x8b, 0x4e, 0x08]); // mov rcx, [rsi+8]
            asm.imm32(&[0x48, 0x81, 0xc1], nanoseconds); // add rcx, ns
            asm.imm32(&[0x48, 0x81, 0xf9], 1_000_000_000); // cmp rcx, 1e9
            let small = asm.jump_if(LESS);
            asm.imm32(&[0x48, 0x81, 0xe9], 1_000_000_000).put(&[0x48, 0xff, 0x06]); // sub rcx, 1e9; inc qword [rsi]
            asm.land(&[small]).put(&[0x48, 0x89, 0x4e, 0x08]); // mov [rsi+8], rcx
            asm.land(&[failed, other]).put(&[0xc3]);
        }
        "gettimeofday" => {
            asm.call_node(node);
            asm.put(&[0x85, 0xc0]); // test eax, eax
            let failed = asm.jump_if(NOT_EQUAL);
            asm.put(&[0x48, 0x85, 0xff]); // test rdi, rdi: only the time zone was asked for
            let zone = asm.jump_if(EQUAL);
            asm.imm64(&[0x48, 0xb9], seconds).put(&[0x48, 0x01, 0x0f]); // movabs rcx, s; add [rdi], rcx
            asm.put(&[0x48, 0x8b, 0x4f, 0x08]); // mov rcx, [rdi+8]
            asm.imm32(&[0x48, 0x81, 0xc1], nanoseconds / 1000); // add rcx, us
            asm.imm32(&[0x48, 0x81, 0xf9], 1_000_000); // cmp rcx, 1e6
            let small = asm.jump_if(LESS);
            asm.imm32(&[0x48, 0x81, 0xe9], 1_000_000).put(&[0x48, 0xff, 0x07]); // sub rcx, 1e6; inc qword [rdi]
            asm.land(&[small]).put(&[0x48, 0x89, 0x4f, 0x08]); // mov [rdi+8], rcx
            asm.land(&[failed, zone]).put(&[0xc3]);
        }
        _ => return None,
    }
    Some(asm.0)
}

/// `time` by way of the image's own adapter of clock_gettime, so that both always agree on the second. `at` is the place of this
/// code, `clock_gettime` that of the adapter, both as offsets of the image.
#[must_use]
pub fn time_adapter(at: usize, clock_gettime: usize) -> Option<Vec<u8>> {
    let mut asm = Asm::default();
    asm.put(&[0x57, 0x48, 0x83, 0xec, 0x10]); // push rdi; sub rsp, 16
    asm.imm32(&[0xbf], 5).put(&[0x48, 0x89, 0xe6]); // mov edi, CLOCK_REALTIME_COARSE; mov rsi, rsp
    let call = relative(0xe8, at.checked_add(asm.0.len())?, clock_gettime)?;
    asm.put(&call).put(&[0x48, 0x8b, 0x04, 0x24]); // mov rax, [rsp]
    asm.put(&[0x48, 0x83, 0xc4, 0x10, 0x5f, 0x48, 0x85, 0xff]); // add rsp, 16; pop rdi; test rdi, rdi
    let none = asm.jump_if(EQUAL);
    asm.put(&[0x48, 0x89, 0x07]); // mov [rdi], rax
    asm.land(&[none]).put(&[0xc3]);
    Some(asm.0)
}

/// Clocks that a vDSO reads, or asks its kernel for: the bits of their numbers. Others, CPU clocks above all, are home's, which answers later.
const HERE: u32 = 0b1011_1111_0011;

/// With edi = a clock: calls the kernel from the window when the call may have to wait. A thread that waits in a vDSO could not move.
fn wait_in_window(asm: &mut Asm) {
    asm.put(&[0x83, 0xff, 0x0b]); // cmp edi, 11
    let unknown = asm.jump_if(ABOVE);
    asm.imm32(&[0xb8], HERE).put(&[0x0f, 0xa3, 0xf8]); // mov eax, HERE; bt eax, edi
    let here = asm.jump_if(BELOW);
    asm.land(&[unknown]);
    asm.imm32(&[0xb8], 228); // mov eax, clock_gettime
    asm.imm64(&[0x49, 0xbb], CALL).put(&[0x41, 0xff, 0xe3]); // movabs r11, CALL; jmp r11
    asm.land(&[here]);
}

/// With rdi = `unsigned *cpu` and rsi = `unsigned *node`, either of them null: CPU number modulo `cpus`, NUMA node 0. Programs size
/// arrays by what home shows; a number beyond it writes past their end.
fn clamp_cpu(asm: &mut Asm, cpus: u32) {
    let cpus = cpus.max(1);
    asm.put(&[0x48, 0x85, 0xff]); // test rdi, rdi
    let no_cpu = asm.jump_if(EQUAL);
    asm.put(&[0x8b, 0x07]).imm32(&[0x3d], cpus); // mov eax, [rdi]; cmp eax, cpus
    let fits = asm.jump_if(BELOW);
    asm.put(&[0x31, 0xd2]).imm32(&[0xb9], cpus); // xor edx, edx; mov ecx, cpus
    asm.put(&[0xf7, 0xf1, 0x89, 0x17]); // div ecx; mov [rdi], edx
    asm.land(&[no_cpu, fits]);
    asm.put(&[0x48, 0x85, 0xf6]); // test rsi, rsi
    let no_node = asm.jump_if(EQUAL);
    asm.imm32(&[0xc7, 0x06], 0); // mov dword [rsi], 0
    asm.land(&[no_node]).put(&[0x31, 0xc0, 0xc3]); // xor eax, eax; ret
}
