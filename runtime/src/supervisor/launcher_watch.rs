//! Keeps the launcher from staying stopped while its program runs.
//!
//! The launcher stops itself after it heard that the program was stopped. If somebody continues the program in between, the
//! launcher's stop comes last, and the SIGCONT that should wake it was lost (generating a stop signal discards it). So after each
//! continuation the supervisor sends SIGCONT and looks twice more whether the launcher is stopped.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// When to look again after a continuation.
const AGAIN: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(200)];

/// The launcher as its supervisor sees it.
#[derive(Debug)]
pub struct LauncherWatch {
    pid: i32,
    pidfd: Option<OwnedFd>,
    next: Option<(Instant, usize)>,
}

impl LauncherWatch {
    /// Watches process `pid`, the parent of the caller.
    pub fn new(pid: i32) -> Self {
        let pidfd = Pid::from_raw(pid).and_then(|p| pidfd_open(p, PidfdFlags::empty()).ok());
        Self { pid, pidfd, next: None }
    }

    /// The program was stopped: the launcher may stop.
    pub fn guest_stopped(&mut self) {
        self.next = None;
    }

    /// The program goes on: so must the launcher.
    pub fn guest_continued(&mut self) {
        self.cont();
        self.next = Some((Instant::now() + AGAIN[0], 0));
    }

    /// When [`Self::recheck`] is wanted.
    pub fn deadline(&self) -> Option<Instant> {
        self.next.map(|(at, _)| at)
    }

    /// Continues the launcher if its time has come and it is stopped.
    pub fn recheck(&mut self) {
        let Some((at, round)) = self.next else { return };
        let now = Instant::now();
        if now < at {
            return;
        }
        if crate::process::stat::Stat::read(self.pid).is_ok_and(|s| s.state == 'T') {
            self.cont();
        }
        self.next = AGAIN.get(round + 1).map(|d| (now + *d, round + 1));
    }

    fn cont(&self) {
        if let Some(fd) = &self.pidfd {
            // Fails when the launcher is gone, which needs no SIGCONT.
            let _ = pidfd_send_signal(fd, Signal::CONT);
        }
    }
}
