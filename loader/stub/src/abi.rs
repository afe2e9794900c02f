//! The window's layout: what the stub (inside a guest) and the runtime (outside) agree on.
//!
//! This file is compiled twice: into the freestanding stub and, by path, into `mosix_loader::script`.
//!
//! ```text
//! WINDOW           stub text, private, r-x
//! SHARED           one memfd, shared with the supervisor or agent:
//!   + CONTROL        doorbell and completion ring
//!   + SLOTS          one slot per thread: header, inline script, buffer, stack
//!   + ARENA          sparse room for large scripts and buffers
//! WINDOW_END
//! ```
//! Everything in the shared part is writable by the guest: whoever reads it outside treats it as hostile input.

/// First address of the window: above the shadow memory of sanitizers, below the lowest randomised mmap base.
pub const WINDOW: u64 = 0x7e80_0000_0000;
/// Address of `syscall; ret` in the stub's text, the same in every version.
pub const CALL: u64 = WINDOW;
/// Room for the stub's text in bytes.
pub const TEXT_ROOM: u64 = 0x1_0000;
/// Address of the shared memfd.
pub const SHARED: u64 = WINDOW + 0x10_0000;
/// Offset of the control page in the shared part.
pub const CONTROL: u64 = 0;
/// Offset of slot 0 in the shared part.
pub const SLOTS: u64 = 0x1_0000;
/// Bytes of one slot.
pub const SLOT_SIZE: u64 = 0x8000;
/// Most slots: threads of one process.
pub const SLOT_COUNT: u64 = 4096;
/// Offset of the arena in the shared part.
pub const ARENA: u64 = 0x1000_0000;
/// Bytes of the arena: address space only, pages cost when touched.
pub const ARENA_SIZE: u64 = 64 << 30;
/// Bytes of the whole shared part.
pub const SHARED_SIZE: u64 = ARENA + ARENA_SIZE;
/// One past the last address that guests may not use: below the lowest randomised mmap base (about 0x7efb00000000), or
/// every second process would have its libraries inside.
pub const WINDOW_END: u64 = WINDOW + (1 << 38);

/// Offset in a slot of the futex word, see the `STATE_*` values.
pub const SLOT_STATE: u64 = 0;
/// Offset in a slot of the number of operations (u32).
pub const SLOT_COUNT_OPS: u64 = 4;
/// Offset in a slot of how many operations were executed (u32).
pub const SLOT_DONE: u64 = 8;
/// Offset in a slot of the script's address (u64): the inline area or a place in the arena.
pub const SLOT_SCRIPT: u64 = 16;
/// Offset in a slot of the inline script.
pub const SLOT_INLINE: u64 = 0x100;
/// Operations that fit inline.
pub const SLOT_INLINE_OPS: usize = 80;
/// Offset in a slot of its buffer: a page boundary, for descriptors with O_DIRECT.
pub const SLOT_BUFFER: u64 = 0x2000;
/// Bytes of a slot's buffer.
pub const SLOT_BUFFER_SIZE: u64 = 0x4000;
/// The slot's end; its stack grows down from here to the buffer's end.
pub const SLOT_STACK_TOP: u64 = SLOT_SIZE;

/// Nothing posted; the stub waits.
pub const STATE_IDLE: u32 = 0;
/// A script is posted.
pub const STATE_POSTED: u32 = 1;
/// The stub executes it.
pub const STATE_RUNNING: u32 = 2;
/// The script ended; results are in its operations.
pub const STATE_DONE: u32 = 3;

/// Offset in the control page of the doorbell (u32 futex word, counts completions).
pub const CONTROL_DOORBELL: u64 = 0;
/// Offset in the control page of the number of threads that wait for the doorbell (u32): nobody is woken when there are none.
pub const CONTROL_WAITERS: u64 = 8;
/// Offset in the control page of the number of threads that look at the ring in a moment (u32): nobody else is woken meanwhile.
pub const CONTROL_LOOKING: u64 = 12;
/// Offset in the control page of the completion ring: `SLOT_COUNT` times u32, slot index plus one.
pub const CONTROL_RING: u64 = 0x1000;

/// Bytes of one operation.
pub const OP_SIZE: u64 = 72;
/// End the script when this operation fails.
pub const OP_STOP_ON_ERROR: u32 = 1;
/// `args[0]` is a clone_args, `args[1]` its size, `args[2]` the new thread's slot address; the thread waits on its slot.
pub const OP_SPAWN: u32 = 2;
/// After the script no completion is rung (the caller sees the effect otherwise).
pub const OP_QUIET: u32 = 4;

/// One raw system call of a script.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Op {
    /// System call number.
    pub nr: u32,
    /// `OP_*` bits.
    pub flags: u32,
    /// Arguments.
    pub args: [u64; 6],
    /// Raw kernel result, written by the stub.
    pub ret: i64,
    /// For whoever built the script; the stub ignores it.
    pub tag: u64,
}
