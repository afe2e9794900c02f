//! Descriptors of processes that this one may trace.

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::io;
use std::os::fd::OwnedFd;

/// Duplicates descriptor `fd` of process `pid`.
///
/// # Errors
/// `EBADF` when the process has no such descriptor, `ESRCH` when it is gone, `EPERM` when it may not be traced.
pub fn fetch(pid: i32, fd: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(pidfd_getfd(process, fd, PidfdGetfdFlags::empty())?)
}
