//! Processes as a supervisor needs them: fork, wait for anybody, end or stop as another process did.
//!
//! nix decodes wait statuses into an enum without real-time signals; ours keeps the raw number, so nothing is lost. See
//! [wait(2)](https://man7.org/linux/man-pages/man2/wait.2.html).

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

/// Which side of a [`fork`] the caller is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old process, with the child's pid.
    Parent(i32),
}

/// Creates a child with a copy of this process.
///
/// # Errors
/// `EDEADLK` when this process has more than one thread: the child's copy of a lock held by another thread would never be
/// released. `EAGAIN` and `ENOMEM` as fork(2).
pub fn fork() -> Result<Fork, Errno> {
    if threads()? != 1 {
        return Err(Errno::EDEADLK);
    }
    // SAFETY: this process has one thread, the caller (checked above; nobody else could start one), so the child's copy of
    // memory is consistent and it may run any code.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid => Errno::result(pid).map(Fork::Parent),
    }
}

/// Number of threads of this process.
fn threads() -> Result<u64, Errno> {
    use std::os::unix::fs::MetadataExt;
    // A directory has two links plus one for each of its folders: one folder for each thread.
    let links = std::fs::metadata("/proc/self/task").map_err(|_| Errno::ENOSYS)?.nlink();
    Ok(links.saturating_sub(2))
}

/// A raw wait status.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WaitStatus(i32);

impl WaitStatus {
    /// Takes the number that wait(2) wrote.
    pub fn from_raw(raw: i32) -> Self {
        Self(raw)
    }

    /// The number that wait(2) wrote.
    pub fn raw(self) -> i32 {
        self.0
    }

    /// The exit code, when the process exited.
    pub fn code(self) -> Option<i32> {
        libc::WIFEXITED(self.0).then(|| libc::WEXITSTATUS(self.0))
    }

    /// The signal that killed the process and whether it dumped core.
    pub fn killed(self) -> Option<(i32, bool)> {
        libc::WIFSIGNALED(self.0).then(|| (libc::WTERMSIG(self.0), libc::WCOREDUMP(self.0)))
    }

    /// The process has ended, either way.
    pub fn is_end(self) -> bool {
        libc::WIFEXITED(self.0) || libc::WIFSIGNALED(self.0)
    }

    /// The signal shown by a stop: of a child that job control stopped, or of a tracee in any ptrace stop.
    pub fn stopped(self) -> Option<i32> {
        libc::WIFSTOPPED(self.0).then(|| libc::WSTOPSIG(self.0))
    }

    /// The `PTRACE_EVENT_*` of a tracee's stop (128 is `PTRACE_EVENT_STOP`); `None` for a signal-delivery stop, a job-control
    /// stop, and everything that is not a stop.
    pub fn event(self) -> Option<i32> {
        (libc::WIFSTOPPED(self.0) && self.0 >> 16 != 0).then_some(self.0 >> 16)
    }

    /// A child went on after a job-control stop.
    pub fn continued(self) -> bool {
        libc::WIFCONTINUED(self.0)
    }
}

impl std::fmt::Debug for WaitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(code) = self.code() {
            write!(f, "exited {code}")
        } else if let Some((signal, core)) = self.killed() {
            write!(f, "killed by {signal}{}", if core { ", core dumped" } else { "" })
        } else if let Some(event) = self.event() {
            write!(f, "ptrace event {event} (signal {})", self.0 >> 8 & 0xff)
        } else if let Some(signal) = self.stopped() {
            write!(f, "stopped by {signal}")
        } else {
            write!(f, "continued")
        }
    }
}

/// One report of the kernel about a child or tracee.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waited {
    /// The process, or the thread of a tracee.
    pub pid: i32,
    /// What happened.
    pub status: WaitStatus,
    /// User and system time used up to now by the process and the children that it waited for.
    pub cpu: Duration,
}

/// What there is to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// This happened.
    Some(Waited),
    /// Children exist, but none has anything to report.
    Nothing,
    /// There is no child and no tracee.
    NoChild,
}

/// Takes the next report about any child or tracee (`__WALL`): ends, stops, continuations. Never blocks.
pub fn wait_any() -> Wait {
    wait4(-1, libc::WNOHANG | libc::__WALL | libc::WUNTRACED | libc::WCONTINUED)
}

/// Takes the next report about child `pid`; waits for it when `block`.
pub fn wait_for(pid: i32, block: bool) -> Wait {
    wait4(
        pid,
        if block { 0 } else { libc::WNOHANG } | libc::__WALL | libc::WUNTRACED | libc::WCONTINUED,
    )
}

fn wait4(pid: i32, flags: i32) -> Wait {
    let mut status = 0;
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: wait4 writes one int and one rusage, which is what it is given.
        let pid = unsafe { libc::wait4(pid, &raw mut status, flags, &raw mut usage) };
        return match Errno::result(pid) {
            Ok(0) => Wait::Nothing,
            Ok(pid) => {
                let cpu = duration(usage.ru_utime) + duration(usage.ru_stime);
                Wait::Some(Waited {
                    pid,
                    status: WaitStatus(status),
                    cpu,
                })
            }
            Err(Errno::EINTR) => continue,
            Err(_) => Wait::NoChild,
        };
    }
}

fn duration(t: libc::timeval) -> Duration {
    Duration::from_secs(t.tv_sec.max(0).cast_unsigned()) + Duration::from_micros(t.tv_usec.max(0).cast_unsigned())
}

/// Ends this process by `signal`, as another process was: no core dump of its own, no handler in between.
pub fn die_by(signal: i32) -> ! {
    // A pipe in core_pattern ignores RLIMIT_CORE 0; a process that may not be dumped leaves nothing either way.
    let _ = nix::sys::prctl::set_dumpable(false);
    default_and_unblock(signal);
    // SAFETY: kill and _exit have no memory arguments.
    unsafe {
        libc::kill(libc::getpid(), signal);
        // Only reached for a signal whose default action is not to end (a stop signal, SIGCHLD): say it by number, as shells do.
        libc::_exit(128 + signal)
    }
}

/// Stops this process by `signal` (SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU, blocked except for SIGSTOP) until somebody continues it, then
/// blocks the signal again.
pub fn stop_by(signal: i32) {
    // Sent while it is blocked, so that it merges with one from the terminal that is pending already: unblocking first would stop
    // once for that one, and once more for ours after somebody continued the process.
    // SAFETY: kill has no memory arguments.
    unsafe { libc::kill(libc::getpid(), signal) };
    default_and_unblock(signal);
    if let Ok(signal) = Signal::try_from(signal) {
        let mut set = SigSet::empty();
        set.add(signal);
        let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None);
    }
}

fn default_and_unblock(signal: i32) {
    // SAFETY: the default disposition runs no code; an all-zero sigset and action with SIG_DFL are valid.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Blocks every signal that can be blocked, in the calling thread.
pub fn block_all_signals() -> Result<(), Errno> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
}

/// Gives `signal` its default action in this process.
pub fn default_action(signal: Signal) -> Result<(), Errno> {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of this process.
    unsafe { nix::sys::signal::sigaction(signal, &action) }.map(drop)
}

/// Queues `signal` with a value to a process, as sigqueue(3) does, for real-time signals too.
pub fn queue(pid: i32, signal: i32, value: u64) -> Result<(), Errno> {
    let value = libc::sigval {
        sival_ptr: value as *mut libc::c_void,
    };
    // SAFETY: sigqueue copies the value; it is never followed as a pointer.
    Errno::result(unsafe { libc::sigqueue(pid, signal, value) }).map(drop)
}

/// Sends `signal` to a process (or, negative, a process group), for real-time signals too. Signal 0 only asks whether it exists.
pub fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill has no memory arguments.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Sends `signal` to one thread of a process, for real-time signals too.
///
/// # Errors
/// `ESRCH` when the thread is gone, `EAGAIN` when too many real-time signals are queued.
pub fn tgkill(pid: i32, tid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: tgkill has no memory arguments.
    Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }).map(drop)
}

/// Closes every descriptor but `keep`.
///
/// Only for a process directly after [`fork`] that goes on with nothing but `keep`: any other descriptor object that it still
/// holds must be forgotten, not dropped, since its number may soon name something else.
///
/// # Errors
/// Those of close_range(2) (Linux 5.9).
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    let mut first = 0u32;
    for fd in keep.into_iter().map(RawFd::cast_unsigned).chain([u32::MAX]) {
        if fd > first {
            let last = if fd == u32::MAX { fd } else { fd - 1 };
            // SAFETY: closing descriptors touches no memory; that no live owner uses them is the caller's duty, named above.
            let r = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            Errno::result(r)?;
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// Ends the process at once: no destructors, no exit handlers. For children of [`fork`], whose parent owns those.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit ends the process.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_decode() {
        assert_eq!(WaitStatus(7 << 8).code(), Some(7));
        assert_eq!(WaitStatus(34).killed(), Some((34, false)));
        assert_eq!(WaitStatus(11 | 0x80).killed(), Some((11, true)));
        assert_eq!(WaitStatus(20 << 8 | 0x7f).stopped(), Some(20));
        assert_eq!(WaitStatus(20 << 8 | 0x7f).event(), None);
        assert_eq!(WaitStatus(128 << 16 | 5 << 8 | 0x7f).event(), Some(128));
        assert!(WaitStatus(0xffff).continued());
        assert!(!WaitStatus(0xffff).is_end());
    }

    #[test]
    fn fork_is_refused_in_a_threaded_process() {
        // The test harness itself has at least two threads: main and this test's.
        assert_eq!(fork(), Err(Errno::EDEADLK));
    }
}
