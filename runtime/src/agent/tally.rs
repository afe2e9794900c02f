//! Which calls an agent has served, and how, told to tests: a test says what it shows, and this says whether it does.
//!
//! With `MOSIX_TALLY=<file>` in the environment of mosixd its agents append a line `PID NAME HOW` when they serve a call of that name in that way for
//! the first time. The line is there before the call can end. Without the variable a call costs one comparison.

use crate::syscall::table::Row;
use mosix_wire::ids::Pid;
use rustix::fs::{Mode, OFlags, open};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is done with a call.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// The deputy executes it.
    Home,
    /// The agent's own code serves it.
    Here,
    /// The process comes home for it.
    Return,
}

/// The file.
static FILE: OnceLock<Option<OwnedFd>> = OnceLock::new();

/// The numbers that were told, for each way.
static TOLD: [[AtomicU64; 8]; 3] = [const { [const { AtomicU64::new(0) }; 8] }; 3];

/// Reads the variable; once, before this process leaves the file system it was started in.
pub fn prepare() {
    FILE.get_or_init(|| {
        let file = std::env::var_os("MOSIX_TALLY")?;
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
        open(file, flags, Mode::from_raw_mode(0o600)).ok()
    });
}

/// This process makes this call, and it is served so.
pub fn served(pid: Pid, row: &Row, how: How) {
    if let Some(Some(file)) = FILE.get() {
        tell(file, pid, row, how);
    }
}

#[cold]
fn tell(file: &OwnedFd, pid: Pid, row: &Row, how: How) {
    let Some(word) = TOLD[how as usize].get(row.nr as usize / 64) else {
        return;
    };
    let bit = 1 << (row.nr % 64);
    if word.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return;
    }
    let how = match how {
        How::Home => "home",
        How::Here => "here",
        How::Return => "return",
    };
    if let Err(error) = rustix::io::write(file, format!("{pid} {} {how}\n", row.name).as_bytes()) {
        tracing::warn!(%pid, name = row.name, %error, "a call for MOSIX_TALLY cannot be told");
    }
}
