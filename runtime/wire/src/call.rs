//! One forwarded system call, relocatable: the host side says where buffers go, home needs no knowledge of the call.
//!
//! The agent gathers a guest's arguments into one buffer. Every pointer, in the six arguments or inside the buffer, is
//! written as an *offset into that buffer* and named in `relocs`; home places the buffer in the deputy's memory, adds the
//! base to each named place, and lets the deputy execute the call. What the kernel wrote comes back as named by `outputs`.
//!
//! The frame's payload carries the first `payload.len()` bytes of the buffer; the rest up to `size` starts as zeros.

use crate::ids::{Epoch, Pid, Seq, Tid};
use crate::image::SigInfo;
use serde::{Deserialize, Serialize};

/// A system call on its way home. The frame's payload is the input part of the buffer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Call {
    /// The process whose body calls.
    pub pid: Pid,
    /// The thread whose deputy executes the call.
    pub tid: Tid,
    /// The body's epoch.
    pub epoch: Epoch,
    /// Number of the call in its thread.
    pub seq: Seq,
    /// x86-64 system call number.
    pub nr: u32,
    /// Arguments; those named in `relocs` are offsets into the buffer.
    pub args: [u64; 6],
    /// Places that hold offsets and become addresses.
    pub relocs: Vec<Place>,
    /// Size of the whole buffer in bytes, at most [`crate::limits::CALL_BUFFER`] plus its descriptors.
    pub size: u32,
    /// What comes back after the call, in this order.
    pub outputs: Vec<Output>,
    /// With execve and execveat, and only with these: what the new program gets from the body's kernel.
    pub exec: Option<Box<Exec>>,
}

/// What a program that is executed inherits from the body, whose own kernel holds it. It is no more than the program could set itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Exec {
    /// The calling thread's signal mask.
    pub mask: u64,
    /// Signals that the body ignores; all others have their default action in the new program.
    pub ignored: u64,
    /// Number of the last signal of home that is in the body, or was: what came later is still home's.
    pub signals: u64,
    /// Signals that wait for the process, at most [`crate::limits::EXEC_PENDING`].
    pub pending: Vec<SigInfo>,
    /// Signals that wait for the calling thread, as many.
    pub own: Vec<SigInfo>,
}

/// A place that holds an offset into the buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Place {
    /// Argument 0 to 5.
    Arg(u8),
    /// Eight bytes at this offset of the buffer.
    At(u32),
    /// So many times eight bytes in a row, from this offset on (argv, envp). Vectors come in ascending order and share no byte.
    Vector {
        /// Offset of the first.
        at: u32,
        /// How many.
        count: u32,
    },
}

/// A part of the buffer that comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Output {
    /// Where it starts in the buffer.
    pub offset: u32,
    /// Its room in bytes.
    pub room: u32,
    /// How many bytes of the room come back.
    pub extent: Extent,
}

/// How many bytes of an [`Output`] come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Extent {
    /// All of it when the call did not fail.
    Success,
    /// All of it, also when the call failed (time left of an interrupted sleep, `timeval` of select).
    Always,
    /// The call's result in bytes, spread over all `Result` outputs of the call in order (read, readv, recvmsg).
    Result,
    /// The call's result times this element size (getgroups: 4, epoll_wait: 12).
    Elements(u32),
    /// As many bytes as the `u32` at this offset of the buffer says after the call (socklen_t of accept), at most `room`.
    LengthAt(u32),
    /// As the `u64` at this offset says (msg_controllen of recvmsg), at most `room`.
    LongLengthAt(u32),
}

/// The result of a call that the away policy does not let a host make: nothing was executed. The host brings the process
/// home, where its thread makes the call again, natively. No kernel returns this value.
pub const NEEDS_HOME: i64 = i64::MIN;

/// The answer to a [`Call`]. The frame's payload is the concatenated bytes of its outputs; an output that brought fewer bytes
/// than its room is named in `lengths`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// The process.
    pub pid: Pid,
    /// The thread.
    pub tid: Tid,
    /// The number of the call that this answers.
    pub seq: Seq,
    /// The raw kernel result: a value, `-errno`, or, only after [`Cancel`](crate::link::ToHome::Cancel), an internal restart
    /// code (-512, -513, -514 or -516). What the agent answers the body is in the contract "signals"; -516 never reaches a kernel.
    /// Or [`NEEDS_HOME`].
    pub result: i64,
    /// Bytes that came back for each output, in order.
    pub lengths: Vec<u32>,
}
