//! Signals as a queue to read, for processes that block them all.
//!
//! See [signalfd(2)](https://man7.org/linux/man-pages/man2/signalfd.2.html). A blocked signal is queued even when its disposition
//! is "ignore", so launcher and supervisor see every signal whatever they inherited.

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd, BorrowedFd};

/// Queue of all blocked signals of the process.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// A signal that arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Number.
    pub signal: i32,
    /// `si_code`: who made it.
    pub code: i32,
    /// Sender, where there is one.
    pub pid: i32,
    /// Sender's user.
    pub uid: u32,
    /// Value of sigqueue(3).
    pub value: u64,
}

impl Received {
    /// The kernel made it (terminal, hang-up, limits): not kill(2) or sigqueue(3) of a process.
    pub fn is_from_kernel(&self) -> bool {
        self.code > 0
    }

    /// It carries a value of sigqueue(3).
    pub fn is_queued(&self) -> bool {
        self.code == libc::SI_QUEUE
    }
}

impl Signals {
    /// Opens the queue. The caller blocks the signals (`process::block_all_signals`) before it starts any thread.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn open() -> Result<Self, Errno> {
        SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Self)
    }

    /// Takes the next signal, or `None` when none waits.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn next(&self) -> Result<Option<Received>, Errno> {
        let info = match self.0.read_signal() {
            Ok(Some(info)) => info,
            Ok(None) | Err(Errno::EAGAIN) => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok(Some(Received {
            signal: info.ssi_signo.cast_signed(),
            code: info.ssi_code,
            pid: info.ssi_pid.cast_signed(),
            uid: info.ssi_uid,
            value: info.ssi_ptr,
        }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
