//! Safe wrappers of the kernel interfaces that mosix needs: the only unsafe code outside the stub.
//!
//! Each module mirrors one interface and names its man page or kernel source.

pub mod procmem;
pub mod ptrace;
pub mod shared;
pub mod spawn;
