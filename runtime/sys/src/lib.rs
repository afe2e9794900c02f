//! Safe wrappers of the kernel interfaces that mosix needs: the only unsafe code outside the stub.
//!
//! Each module mirrors one interface and names its man page or kernel source.

pub mod cpuid;
pub mod fdpass;
pub mod inherited;
pub mod kcmp;
pub mod kernel;
pub mod namespaces;
pub mod notif;
pub mod pagemap;
pub mod probe;
pub mod process;
pub mod procmem;
pub mod ptrace;
pub mod reach;
pub mod sched;
pub mod seccomp;
pub mod session;
pub mod shared;
pub mod signalfd;
pub mod spawn;
