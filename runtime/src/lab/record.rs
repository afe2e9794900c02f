//! Names a process for good: pid, start time and boot.
//!
//! A pid alone may be another process's by the time somebody looks again. A record is checked whenever it is used, and
//! signals go through a pidfd that was opened first and checked after.

use crate::process::stat::Stat;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io};

/// A process that cannot be mistaken for another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Its pid.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks after boot.
    pub start: u64,
    /// /proc/sys/kernel/random/boot_id.
    pub boot: String,
}

impl ProcessRecord {
    /// Describes the process that has this pid now; `None` when there is none, or only a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = Stat::read(pid).ok()?;
        (!stat.is_dead()).then(|| Self {
            pid,
            start: stat.start,
            boot: boot_id(),
        })
    }

    /// Describes the calling process.
    pub fn own() -> io::Result<Self> {
        Self::of(nix::unistd::getpid().as_raw())
            .ok_or_else(|| io::Error::other("no /proc, or not of this pid namespace"))
    }

    /// Whether that very process still runs (a zombie does not).
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Reads a record; `None` when there is none or a half-written one.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Writes the record so that readers see all of it or nothing.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("new");
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        fs::rename(temporary, path)
    }

    /// Opens the process; `None` when it is gone.
    pub fn open(&self) -> Option<OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The pidfd names whoever had the pid when it was opened; only the check afterwards says it was this one.
        self.is_alive().then_some(fd)
    }
}

/// The machine's boot, or an empty string without /proc.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Sends a signal to an opened process; gone is fine.
pub(super) fn signal(pidfd: impl AsFd, signal: Signal) {
    // The only other answer is EPERM for a process that became another user's; waiting for it reports that.
    let _ = pidfd_send_signal(pidfd, signal);
}

/// Waits until an opened process has ended, at most until `deadline`. Returns whether it has.
pub fn wait_end(pidfd: impl AsFd, deadline: Instant) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    loop {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .min(Duration::from_secs(3600));
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(3600),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_one_life() {
        let own = ProcessRecord::own().unwrap();
        assert!(own.is_alive() && own.open().is_some());
        let other = ProcessRecord {
            start: own.start + 1,
            ..own.clone()
        };
        assert!(!other.is_alive() && other.open().is_none());
        let child = std::process::Command::new("true").spawn();
        let mut child = child.unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let record = ProcessRecord { pid, ..own };
        child.wait().unwrap();
        assert!(!record.is_alive() && ProcessRecord::of(pid).is_none());
    }
}
