//! Every size limit in one place, each with its reason.

/// Longest node name in bytes: fits a DNS label and a column of `mosix ps`.
pub const NODE_NAME: usize = 63;

/// Largest body of a frame (the serde part) in bytes: a process image with 4,000 threads stays below.
pub const FRAME_BODY: usize = 32 << 20;

/// Largest payload of a frame (raw bytes) in bytes: the largest buffer of one forwarded call plus its descriptors.
pub const FRAME_PAYLOAD: usize = (64 << 20) + (1 << 20);

/// Largest buffer one forwarded call may carry, in or out, in bytes. A call with more comes home and runs there.
pub const CALL_BUFFER: usize = 64 << 20;

/// Most buffers (iovecs, nested structures) one forwarded call may carry: IOV_MAX plus room for a msghdr's own parts.
pub const CALL_PARTS: usize = 1024 + 16;

/// Most signals that wait for a process, or for a thread of it, when that executes a program while it is away. With more it comes home first.
pub const EXEC_PENDING: usize = 4096;

/// Most threads of a process that can move: the slots of its window.
pub const THREADS: usize = 4096;

/// Most mappings of a process that can move: the kernel's default `vm.max_map_count`, doubled.
pub const VMAS: usize = 131_072;

/// Largest payload of a page frame in bytes: large enough for full copy speed, small enough to pipeline.
pub const PAGE_RUN: usize = 1 << 20;

/// Most runs of pages in one frame: as many places as one system call of the kernel reads or writes (IOV_MAX is 1024).
pub const PAGE_RUNS: usize = 512;

/// Most further page streams of one move: more do not make it faster.
pub const LANES: usize = 7;

// The header of a frame has 32 bits for either length.
const _: () = assert!(FRAME_BODY < u32::MAX as usize);
const _: () = assert!(FRAME_PAYLOAD < u32::MAX as usize);

/// Largest message on a control socket in bytes: a list of 1,000 peers with their last errors stays below.
pub const CONTROL_MESSAGE: usize = 1 << 20;

/// Largest message of one node's daemon to another's in bytes.
pub const NODE_MESSAGE: usize = 256 << 10;

/// Largest hello or answer of a job stream in bytes, read before the sender is known.
pub const STREAM_HELLO: usize = 1024;

/// Longest reason in a message in bytes; longer ones are cut.
pub const REASON: usize = 512;

/// Unacknowledged bytes that a session keeps before `send` waits: two of the largest frames fit.
pub const SESSION_WINDOW: usize = 256 << 20;

/// Largest message on a job's socket in bytes: the rows of 20,000 processes.
pub const JOB_MESSAGE: usize = 16 << 20;

/// Longest name of a job in bytes: a column of `mosix ps`.
pub const JOB_NAME: usize = 63;
