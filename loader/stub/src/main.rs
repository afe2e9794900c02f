//! What runs inside the window of a guest: it executes scripts of raw system calls, and nothing else.
//!
//! Every thread of a deputy, and of a body under construction, sits in [`slot_loop`]: wait on the slot's futex, execute the
//! posted script, ring the doorbell. Capture, forwarded calls, materialisation and return are all scripts made outside, so this
//! code has no policy, no allocation, no state of its own, and is the same on every kernel.
#![no_std]
#![no_main]

#[allow(dead_code)]
mod abi;

use abi::*;
use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU32, Ordering, fence};

const FUTEX_WAIT: u64 = 0;
const FUTEX_WAKE: u64 = 1;
const SYS_MMAP: u64 = 9;
const SYS_CLOSE: u64 = 3;
const SYS_EXIT_GROUP: u64 = 231;
const SYS_FUTEX: u64 = 202;
/// The descriptor under which an agent hands the shared memfd to a fresh body.
const SHARED_FD: u64 = 3;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {
        // SAFETY: exit_group touches no memory.
        unsafe { syscall(SYS_EXIT_GROUP, [127, 0, 0, 0, 0, 0]) };
    }
}

/// Executes one raw system call.
///
/// # Safety
/// The caller vouches for every pointer among `args`.
#[inline(always)]
unsafe fn syscall(nr: u64, args: [u64; 6]) -> i64 {
    let ret;
    // SAFETY: the kernel preserves all registers but rax, rcx and r11; memory effects are the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") nr as i64 => ret, in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
             in("r10") args[3], in("r8") args[4], in("r9") args[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}

/// Creates a thread that starts in [`slot_loop`] with `slot`; its stack is named in the clone_args.
///
/// # Safety
/// `clone_args` names a valid clone_args of `size` bytes whose stack is the slot's.
#[inline(always)]
unsafe fn spawn(clone_args: u64, size: u64, slot: u64) -> i64 {
    let ret;
    // SAFETY: the child leaves by the jump and never returns here; registers survive clone3 in both.
    unsafe {
        asm!("syscall", "test rax, rax", "jnz 2f", "mov rdi, r12", "xor ebp, ebp", "call {entry}", "ud2", "2:",
             entry = sym slot_loop, in("r12") slot,
             inlateout("rax") 435i64 => ret, in("rdi") clone_args, in("rsi") size, lateout("rcx") _, lateout("r11") _);
    }
    ret
}

/// Serves the slot at address `slot` for ever.
///
/// # Safety
/// `slot` is the address of a slot in the mapped shared part.
unsafe extern "C" fn slot_loop(slot: u64) -> ! {
    // SAFETY: the slot is mapped and aligned; the other side uses atomics too.
    let state = unsafe { &*((slot + SLOT_STATE) as *const AtomicU32) };
    loop {
        let seen = state.load(Ordering::Acquire);
        if seen != STATE_POSTED {
            // SAFETY: the futex word is mapped.
            unsafe { syscall(SYS_FUTEX, [slot + SLOT_STATE, FUTEX_WAIT, seen as u64, 0, 0, 0]) };
            continue;
        }
        state.store(STATE_RUNNING, Ordering::Release);
        // SAFETY: a posted slot names a script that its poster wrote completely before the state.
        let quiet = unsafe { run(slot) };
        state.store(STATE_DONE, Ordering::Release);
        if !quiet {
            // SAFETY: as above.
            unsafe { ring(slot) };
        }
    }
}

/// Executes the posted script; returns whether the completion stays quiet.
///
/// # Safety
/// As for [`slot_loop`], with a posted script.
unsafe fn run(slot: u64) -> bool {
    let mut quiet = false;
    // SAFETY: all fields lie in the slot; the script's address was set by the poster.
    unsafe {
        let count = ((slot + SLOT_COUNT_OPS) as *const u32).read_volatile();
        let script = ((slot + SLOT_SCRIPT) as *const u64).read_volatile() as *mut Op;
        let mut index = 0;
        while index < count {
            let op = script.add(index as usize);
            let flags = (&raw const (*op).flags).read_volatile();
            let args = (&raw const (*op).args).read_volatile();
            let nr = (&raw const (*op).nr).read_volatile();
            quiet = flags & OP_QUIET != 0;
            let ret =
                if flags & OP_SPAWN != 0 { spawn(args[0], args[1], args[2]) } else { syscall(nr as u64, args) };
            (&raw mut (*op).ret).write_volatile(ret);
            index += 1;
            ((slot + SLOT_DONE) as *mut u32).write_volatile(index);
            if ret < 0 && ret > -4096 && flags & OP_STOP_ON_ERROR != 0 {
                break;
            }
        }
    }
    fence(Ordering::Release);
    quiet
}

/// Tells the other side that the script of `slot` ended.
///
/// # Safety
/// As for [`slot_loop`].
unsafe fn ring(slot: u64) {
    let index = (slot - SHARED - SLOTS) / SLOT_SIZE;
    let bell = SHARED + CONTROL + CONTROL_DOORBELL;
    let ring = SHARED + CONTROL + CONTROL_RING;
    // SAFETY: the control page is mapped; a ring entry belongs to one completion, since a slot has one script at a time.
    unsafe {
        let tail = (*(bell as *const AtomicU32).add(1)).fetch_add(1, Ordering::AcqRel);
        let entry = ring + 4 * (tail as u64 % SLOT_COUNT);
        (*(entry as *const AtomicU32)).store(index as u32 + 1, Ordering::Release);
        // Who waits has said so before it looked at the bell, who is about to look takes its word back before it does, and this asks after
        // it has rung: one of the two sees the other.
        (*(bell as *const AtomicU32)).fetch_add(1, Ordering::SeqCst);
        let word = |offset| (*((SHARED + CONTROL + offset) as *const AtomicU32)).load(Ordering::SeqCst);
        if word(CONTROL_LOOKING) == 0 && word(CONTROL_WAITERS) != 0 {
            syscall(SYS_FUTEX, [bell, FUTEX_WAKE, 64, 0, 0, 0]);
        }
    }
}

/// A system call for code that lies elsewhere on another node: a thread that waits here finds the same instructions wherever it goes. At
/// [`CALL`], by the linker's script.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.call")]
unsafe extern "C" fn stub_call() -> ! {
    naked_asm!("syscall", "ret")
}

/// Entry of a thread whose registers were set from outside: rdi holds the slot address, rsp the slot's stack.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.entry")]
unsafe extern "C" fn stub_deputy() -> ! {
    naked_asm!("xor ebp, ebp", "and rsp, -16", "call {entry}", "ud2", entry = sym slot_loop)
}

/// Entry of the stub as a program of its own: the blank process of a host that becomes a body.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.start")]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "and rsp, -16", "call {entry}", "ud2", entry = sym blank)
}

/// Maps the shared part handed over as descriptor 3 and serves slot 0 on the slot's own stack.
///
/// # Safety
/// Called once, as the program's start.
unsafe extern "C" fn blank() -> ! {
    // SAFETY: a fixed mapping inside the window, where nothing else is; PROT_READ|WRITE, MAP_SHARED|FIXED_NOREPLACE|NORESERVE.
    let mapped = unsafe { syscall(SYS_MMAP, [SHARED, SHARED_SIZE, 3, 0x1 | 0x10_0000 | 0x4000, SHARED_FD, 0]) };
    if mapped != SHARED as i64 {
        // SAFETY: exit_group touches no memory.
        unsafe { syscall(SYS_EXIT_GROUP, [126, 0, 0, 0, 0, 0]) };
    }
    // SAFETY: close touches no memory.
    unsafe { syscall(SYS_CLOSE, [SHARED_FD, 0, 0, 0, 0, 0]) };
    let slot = SHARED + SLOTS;
    // SAFETY: slot 0 is mapped now; its stack replaces the kernel's, which the body's plan unmaps.
    unsafe {
        asm!("mov rsp, {stack}", "jmp {entry}", stack = in(reg) slot + SLOT_STACK_TOP, entry = sym stub_deputy,
             in("rdi") slot, options(noreturn))
    }
}

/// # Safety
/// As memcpy(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(dest: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller's promise; `rep movsb` copies exactly n bytes.
    unsafe { asm!("rep movsb", inout("rcx") n => _, inout("rdi") dest => _, inout("rsi") src => _, options(nostack)) };
    dest
}

/// # Safety
/// As memset(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(dest: *mut u8, byte: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller's promise; `rep stosb` writes exactly n bytes.
    unsafe { asm!("rep stosb", inout("rcx") n => _, inout("rdi") dest => _, in("al") byte as u8, options(nostack)) };
    dest
}
