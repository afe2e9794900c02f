//! Blank processes under a wanted pid: clone3 with set_tid, then the stub as a program of its own.
//!
//! See [clone(2)](https://man7.org/linux/man-pages/man2/clone.2.html). Must be called from the tracer thread: the new process is its child.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Creates a child with pid `pid` in the caller's pid namespace for children (0: any) and executes `program` there with `shared`
/// as its descriptor 3 and no other descriptor, all signals blocked, no arguments and no environment. Returns the child's pid as the
/// caller sees it. A failed execve shows as exit status 125 of the child.
///
/// # Errors
/// EEXIST when the pid is taken, EINVAL when it exceeds pid_max, EPERM without CAP_CHECKPOINT_RESTORE over the namespace.
pub fn blank(pid: i32, program: BorrowedFd<'_>, shared: BorrowedFd<'_>) -> io::Result<i32> {
    blank_in(pid, program, shared, &[], None)
}

/// As [`blank`], in a session of its own, with `files` as descriptors 4 and up and, with `mounts`, in that mount namespace (needs
/// CAP_SYS_ADMIN and CAP_SYS_CHROOT over it). A mount namespace that cannot be entered shows as exit status 124 of the child.
///
/// # Errors
/// As [`blank`].
pub fn blank_in(
    pid: i32,
    program: BorrowedFd<'_>,
    shared: BorrowedFd<'_>,
    files: &[BorrowedFd<'_>],
    mounts: Option<BorrowedFd<'_>>,
) -> io::Result<i32> {
    // All sources lie above all places that the child fills.
    let above = i32::try_from(files.len())
        .map_err(|_| io::Error::from_raw_os_error(libc::EMFILE))?
        .saturating_add(16);
    let program = Lifted::new(program, above)?;
    let shared = Lifted::new(shared, above)?;
    let mounts = mounts.map(|fd| Lifted::new(fd, above)).transpose()?;
    let files = files
        .iter()
        .map(|fd| Lifted::new(*fd, above))
        .collect::<io::Result<Vec<_>>>()?;
    let set_tid = [pid];
    // SAFETY: all-zero clone_args is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    if pid != 0 {
        args.set_tid = set_tid.as_ptr() as u64;
        args.set_tid_size = 1;
    }
    let empty: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: no CLONE_VM: the child has a copy of this memory and makes only raw system calls (async-signal-safe) until exec or exit.
    unsafe {
        let child = libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>());
        if child != 0 {
            return if child < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(child as i32)
            };
        }
        let all = u64::MAX;
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, 0, 8);
        if let Some(mounts) = &mounts {
            libc::syscall(libc::SYS_setsid);
            if libc::syscall(libc::SYS_setns, mounts.0, libc::CLONE_NEWNS) != 0 {
                libc::syscall(libc::SYS_exit_group, 124);
            }
        }
        libc::syscall(libc::SYS_dup3, shared.0, 3, 0);
        libc::syscall(libc::SYS_close_range, 0, 2, 0);
        libc::syscall(libc::SYS_close_range, 4, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        for (index, file) in files.iter().enumerate() {
            libc::syscall(libc::SYS_dup3, file.0, 4 + index as i32, 0);
        }
        libc::syscall(
            libc::SYS_execveat,
            program.0,
            c"".as_ptr(),
            empty.as_ptr(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        libc::syscall(libc::SYS_exit_group, 125);
        unreachable!("exit_group does not return")
    }
}

/// A duplicate above the numbers that the child rearranges.
struct Lifted(i32);

impl Lifted {
    fn new(fd: BorrowedFd<'_>, above: i32) -> io::Result<Self> {
        // SAFETY: fcntl on a borrowed, open descriptor.
        match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) } {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(Self(fd)),
        }
    }
}

impl Drop for Lifted {
    fn drop(&mut self) {
        // SAFETY: our own duplicate.
        unsafe { libc::close(self.0) };
    }
}
