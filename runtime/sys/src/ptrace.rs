//! Tracing of seized threads.
//!
//! All calls for one tracee must come from the thread that seized it: the tracer thread of a supervisor or agent.
//! See [ptrace(2)](https://man7.org/linux/man-pages/man2/ptrace.2.html). A tracee may die at any moment (SIGKILL): then every call fails
//! with ESRCH and [`wait`] reports the end.

use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `struct user_regs_struct` in its own order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Regs(pub [u64; 27]);

macro_rules! registers {
    ($($index:literal $get:ident $set:ident $doc:literal;)*) => {
        impl Regs {
            $(
                #[doc = concat!("Reads ", $doc, ".")]
                pub fn $get(&self) -> u64 { self.0[$index] }
                #[doc = concat!("Sets ", $doc, ".")]
                pub fn $set(&mut self, value: u64) { self.0[$index] = value; }
            )*
        }
    };
}

registers! {
    6 r11 set_r11 "r11"; 7 r10 set_r10 "r10, system call argument 3"; 8 r9 set_r9 "r9, argument 5"; 9 r8 set_r8 "r8, argument 4";
    10 rax set_rax "rax, the result"; 11 rcx set_rcx "rcx"; 12 rdx set_rdx "rdx, argument 2"; 13 rsi set_rsi "rsi, argument 1";
    14 rdi set_rdi "rdi, argument 0"; 15 orig_rax set_orig_rax "the number of the interrupted system call, or -1";
    16 rip set_rip "the instruction pointer"; 18 eflags set_eflags "the flags"; 19 rsp set_rsp "the stack pointer";
    21 fs_base set_fs_base "the thread pointer"; 22 gs_base set_gs_base "the gs base";
}

impl Regs {
    /// Reads the six arguments of a system call.
    pub fn args(&self) -> [u64; 6] {
        [self.rdi(), self.rsi(), self.rdx(), self.r10(), self.r8(), self.r9()]
    }

    /// Sets number and arguments of a system call about to be made.
    pub fn set_call(&mut self, nr: u64, args: [u64; 6]) {
        self.set_rax(nr);
        self.set_rdi(args[0]);
        self.set_rsi(args[1]);
        self.set_rdx(args[2]);
        self.set_r10(args[3]);
        self.set_r8(args[4]);
        self.set_r9(args[5]);
    }
}

/// What [`wait`] saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Ended by exit with this status.
    Exited(i32),
    /// Killed by a signal; whether a core was dumped.
    Killed(i32, bool),
    /// A signal is about to be delivered.
    Signal(i32),
    /// PTRACE_INTERRUPT took effect, or a new tracee starts; or a group-stop by this stop signal.
    Stop(i32),
    /// PTRACE_EVENT_* other than STOP.
    Ptrace(i32),
    /// An untraced child was stopped or continued (only with the matching wait options).
    Job(i32),
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn request(what: libc::c_uint, tid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: only used for requests whose address and data are plain numbers.
    check(unsafe { libc::ptrace(what, tid, address, data) }).map(drop)
}

/// Options for a thread of a process that is being moved: new threads, children and programs report themselves.
pub const OPTIONS: i32 =
    libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACEEXEC;

/// Seizes a thread without stopping it.
pub fn seize(tid: i32, options: i32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, options as usize)
}

/// Changes the options of a stopped tracee.
pub fn set_options(tid: i32, options: i32) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, options as usize)
}

/// Asks a seized thread to stop; [`Event::Stop`] follows.
pub fn interrupt(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Lets a stopped tracee run, delivering `signal` unless 0.
pub fn cont(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize)
}

/// Lets a group-stopped tracee stay stopped but notice SIGCONT.
pub fn listen(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_LISTEN, tid, 0, 0)
}

/// Executes one instruction.
pub fn step(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_SINGLESTEP, tid, 0, 0)
}

/// Lets a stopped tracee go for good.
pub fn detach(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, signal as usize)
}

/// Reads the message of a PTRACE_EVENT stop: a new tid, or the former tid at exec.
pub fn event_message(tid: i32) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: GETEVENTMSG writes one unsigned long.
    check(unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message) })?;
    Ok(message)
}

fn regset(what: libc::c_uint, tid: i32, kind: usize, buffer: &mut [u8]) -> io::Result<usize> {
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: the iovec names a live buffer of that length; the kernel reads or writes at most so much.
    check(unsafe { libc::ptrace(what, tid, kind, &raw mut iov) })?;
    Ok(iov.iov_len)
}

const NT_PRSTATUS: usize = 1;
const NT_PRFPREG: usize = 2;
const NT_X86_XSTATE: usize = 0x202;
/// Room for the largest XSAVE area of today (AMX: 11 KiB), with space to grow.
const XSTATE_ROOM: usize = 64 << 10;

/// Reads the general registers of a stopped tracee.
pub fn regs(tid: i32) -> io::Result<Regs> {
    let mut bytes = [0u8; 27 * 8];
    if regset(libc::PTRACE_GETREGSET, tid, NT_PRSTATUS, &mut bytes)? != bytes.len() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "a 32-bit process"));
    }
    let mut regs = [0u64; 27];
    for (reg, chunk) in regs.iter_mut().zip(bytes.chunks_exact(8)) {
        *reg = u64::from_le_bytes([
            chunk[0], chunk[1], chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7],
        ]);
    }
    Ok(Regs(regs))
}

/// Sets the general registers of a stopped tracee.
pub fn set_regs(tid: i32, regs: &Regs) -> io::Result<()> {
    let mut bytes = [0u8; 27 * 8];
    for (chunk, reg) in bytes.chunks_exact_mut(8).zip(regs.0) {
        chunk.copy_from_slice(&reg.to_le_bytes());
    }
    regset(libc::PTRACE_SETREGSET, tid, NT_PRSTATUS, &mut bytes).map(drop)
}

/// Bytes of an FXSAVE area: all there is on a CPU without XSAVE.
const FXSAVE: usize = 512;

/// What the kernel last said an XSAVE area has in bytes here; 0 before it was asked.
static AREA: AtomicUsize = AtomicUsize::new(0);

/// Where the part of an XSAVE area ends that holds anything: components behind it are in their initial state.
fn in_use(area: &[u8]) -> usize {
    const HEADER: usize = FXSAVE + 64;
    static ENDS: LazyLock<Vec<(u32, usize)>> = LazyLock::new(|| {
        let end = |number| {
            let [size, offset, ..] = crate::cpuid::cpuid(0xd, number);
            (number, (offset as usize).saturating_add(size as usize))
        };
        let enabled = crate::cpuid::xcr0().unwrap_or(0);
        (2..63).filter(|number| enabled >> number & 1 == 1).map(end).collect()
    });
    let Some(bits) = area.get(FXSAVE..FXSAVE + 8).and_then(|bits| bits.try_into().ok()) else {
        return area.len();
    };
    let bits = u64::from_le_bytes(bits);
    let ends = ENDS.iter().filter(|(number, _)| bits >> number & 1 == 1);
    ends.map(|(_, end)| *end).fold(HEADER, usize::max).min(area.len())
}

/// Reads the XSAVE area (standard format) of a stopped tracee, up to the last component that holds anything; on a CPU without XSAVE its 512
/// bytes of FXSAVE.
pub fn xstate(tid: i32) -> io::Result<Vec<u8>> {
    let room = match AREA.load(Ordering::Relaxed) {
        0 => XSTATE_ROOM,
        known => known,
    };
    let mut bytes = vec![0u8; room];
    let length = match regset(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, &mut bytes) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
            let length = regset(libc::PTRACE_GETREGSET, tid, NT_PRFPREG, &mut bytes[..FXSAVE])?;
            bytes.truncate(length);
            return Ok(bytes);
        }
        other => other?,
    };
    AREA.store(length, Ordering::Relaxed);
    bytes.truncate(length);
    bytes.truncate(in_use(&bytes));
    bytes.shrink_to_fit();
    Ok(bytes)
}

/// Sets the XSAVE area of a stopped tracee, as [`xstate`] gives it on this CPU.
pub fn set_xstate(tid: i32, xstate: &[u8]) -> io::Result<()> {
    let mut bytes = xstate.to_vec();
    let kind = if bytes.len() == FXSAVE {
        NT_PRFPREG
    } else {
        // The kernel takes whole areas alone.
        bytes.resize(bytes.len().max(AREA.load(Ordering::Relaxed)), 0);
        NT_X86_XSTATE
    };
    regset(libc::PTRACE_SETREGSET, tid, kind, &mut bytes).map(drop)
}

/// Reads the blocked signals of a stopped tracee; inside sigsuspend and the like, the mask to be restored afterwards.
pub fn sigmask(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    // SAFETY: GETSIGMASK writes `address` = 8 bytes.
    check(unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, tid, 8usize, &raw mut mask) })?;
    Ok(mask)
}

/// Sets the blocked signals of a stopped tracee.
pub fn set_sigmask(tid: i32, mask: u64) -> io::Result<()> {
    // SAFETY: SETSIGMASK reads 8 bytes.
    check(unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, tid, 8usize, &raw const mask) }).map(drop)
}

/// A raw kernel siginfo.
pub type RawSigInfo = [u8; 128];

/// Reads the siginfo of a delivery stop.
pub fn siginfo(tid: i32) -> io::Result<RawSigInfo> {
    let mut info = [0u8; 128];
    // SAFETY: GETSIGINFO writes 128 bytes.
    check(unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr()) })?;
    Ok(info)
}

/// Replaces the siginfo of a delivery stop.
pub fn set_siginfo(tid: i32, info: &RawSigInfo) -> io::Result<()> {
    // SAFETY: SETSIGINFO reads 128 bytes.
    check(unsafe { libc::ptrace(libc::PTRACE_SETSIGINFO, tid, 0, info.as_ptr()) }).map(drop)
}

/// Reads the queue of pending signals, of the thread or (`shared`) of its process, without taking them.
pub fn pending(tid: i32, shared: bool) -> io::Result<Vec<RawSigInfo>> {
    let mut all = Vec::new();
    loop {
        let mut batch = [[0u8; 128]; 32];
        let args = libc::ptrace_peeksiginfo_args {
            off: all.len() as u64,
            flags: u32::from(shared),
            nr: 32,
        };
        // SAFETY: PEEKSIGINFO reads the argument struct and writes at most `nr` siginfos.
        let count = check(unsafe { libc::ptrace(libc::PTRACE_PEEKSIGINFO, tid, &raw const args, batch.as_mut_ptr()) })?;
        all.extend_from_slice(&batch[..count.clamp(0, 32) as usize]);
        if count < 32 {
            return Ok(all);
        }
    }
}

/// rseq registration of a stopped tracee: address, size, signature.
pub fn rseq(tid: i32) -> io::Result<Option<(u64, u32, u32)>> {
    let mut config = libc::ptrace_rseq_configuration {
        rseq_abi_pointer: 0,
        rseq_abi_size: 0,
        signature: 0,
        flags: 0,
        pad: 0,
    };
    let size = size_of_val(&config);
    // SAFETY: the request writes at most `size` bytes.
    check(unsafe { libc::ptrace(libc::PTRACE_GET_RSEQ_CONFIGURATION, tid, size, &raw mut config) })?;
    let registered = config.rseq_abi_pointer != 0;
    Ok(registered.then_some((config.rseq_abi_pointer, config.rseq_abi_size, config.signature)))
}

/// PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, Linux 6.4.
const GET_DISPATCH: libc::c_uint = 0x4211;

/// Whether a stopped tracee handles its own system calls (syscall user dispatch). Kernels that do not tell say no.
pub fn dispatches(tid: i32) -> bool {
    // ptrace_sud_config: mode, selector, offset, length.
    let mut config = [0u64; 4];
    let size = size_of_val(&config);
    // SAFETY: the request writes at most `size` bytes.
    let told = check(unsafe { libc::ptrace(GET_DISPATCH, tid, size, config.as_mut_ptr()) });
    told.is_ok() && config[0] != 0
}

/// Reads a thread's robust futex list: head and length. Needs ptrace rights, not a stop.
pub fn robust_list(tid: i32) -> io::Result<(u64, u64)> {
    let (mut head, mut length) = (0u64, 0u64);
    // SAFETY: get_robust_list writes two words.
    check(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut length) })?;
    Ok((head, length))
}

/// Waits for `tid` (or, None, for any child or tracee of this thread); without `block`, None means nothing happened.
pub fn wait(tid: Option<i32>, block: bool) -> io::Result<Option<(i32, Event)>> {
    let mut status = 0;
    let flags = libc::__WALL | libc::__WNOTHREAD | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: waitpid writes one int.
        match unsafe { libc::waitpid(tid.unwrap_or(-1), &raw mut status, flags) } {
            0 => return Ok(None),
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
            tid => return Ok(Some((tid, decode(status)))),
        }
    }
}

/// Takes the next stop of tracee `tid`, or sees its end, which is left for [`wait`] to take; None when nothing happened. Never blocks. A
/// program that was executed in its place is an end too: [`Event::Ptrace`] of PTRACE_EVENT_EXEC, and still there.
///
/// # Errors
/// `ECHILD` when it is no child or tracee of this thread (any more).
pub fn stop_or_end(tid: i32) -> io::Result<Option<Event>> {
    // Stops of tracees are reported whatever is asked for, so what is seen without being taken may be one: it is taken then.
    match look(tid, libc::WEXITED | libc::WNOWAIT)? {
        end @ (Some(Event::Exited(_) | Event::Killed(..) | Event::Ptrace(libc::PTRACE_EVENT_EXEC)) | None) => Ok(end),
        Some(_) => look(tid, libc::WSTOPPED),
    }
}

fn look(tid: i32, what: i32) -> io::Result<Option<Event>> {
    // SAFETY: all-zero is a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = what | libc::WNOHANG | libc::__WALL | libc::__WNOTHREAD;
    loop {
        // SAFETY: waitid writes one siginfo.
        match check(unsafe { libc::waitid(libc::P_PID, tid.cast_unsigned(), &raw mut info, flags) }.into()) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // SAFETY: waitid has filled in the fields of a child's change, or zeros when there was none.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((pid != 0).then(|| match info.si_code {
        libc::CLD_EXITED => Event::Exited(status),
        libc::CLD_KILLED => Event::Killed(status, false),
        libc::CLD_DUMPED => Event::Killed(status, true),
        // A stop: the upper bits name a ptrace event, as in a wait status.
        _ => decode(status << 8 | 0x7f),
    }))
}

/// Decodes a raw wait status of a tracee.
pub fn decode(status: i32) -> Event {
    if libc::WIFEXITED(status) {
        return Event::Exited(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Event::Killed(libc::WTERMSIG(status), libc::WCOREDUMP(status));
    }
    if libc::WIFCONTINUED(status) {
        return Event::Job(libc::SIGCONT);
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 => Event::Signal(signal),
        libc::PTRACE_EVENT_STOP => Event::Stop(signal),
        event => Event::Ptrace(event),
    }
}
