//! A first process for a new pid namespace.
//!
//! unshare(2) would bind all later children of the caller to the namespace, and a thread so bound can start no thread: clone(2)
//! gives the child alone a namespace. Whoever wants children there enters it with setns(2), on one thread.

use crate::process::Fork;
use nix::errno::Errno;

/// Creates a child with a copy of this process, as process 1 of a pid namespace of its own.
///
/// # Errors
/// `EDEADLK` when this process has more than one thread (see [`crate::process::fork`]), `EPERM` without CAP_SYS_ADMIN over the
/// caller's user namespace, `ENOSPC` when namespaces are nested too deeply or too many.
pub fn fork_first() -> Result<Fork, Errno> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(|_| Errno::ENOSYS)?.count();
    if threads != 1 {
        return Err(Errno::EDEADLK);
    }
    let flags = libc::CLONE_NEWPID | libc::SIGCHLD;
    // SAFETY: without CLONE_VM the child runs on a copy of this memory, stack included (a null stack means that); with one thread in
    // this process (checked above) no lock is held by anybody else.
    match unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0, 0, 0, 0) } {
        0 => Ok(Fork::Child),
        pid => Errno::result(pid).map(|pid| Fork::Parent(pid as i32)),
    }
}
