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

/// Most threads of a process that can move: the slots of its window.
pub const THREADS: usize = 4096;

/// Most mappings of a process that can move: the kernel's default `vm.max_map_count`, doubled.
pub const VMAS: usize = 131_072;

/// Largest page run in one frame in bytes: large enough for full copy speed, small enough to pipeline.
pub const PAGE_RUN: usize = 1 << 20;
