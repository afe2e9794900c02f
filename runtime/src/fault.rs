//! Named points of a move, at which a test can hold a process in order to break something in just that moment.
//!
//! With `MOSIX_FAULT=<folder>` a process that comes to the point `P` and finds a file `P` in that folder writes a line `P` to the file `reached` there and waits until
//! the file `P` is gone. Without the variable a point costs one comparison. The points lie on the path of moves only, never on that of calls.

use rustix::fs::{AtFlags, Mode, OFlags, open, openat, statat};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A test that forgets a process at a point loses it no longer than this.
const LONGEST: Duration = Duration::from_secs(30);

/// The folder, and the file that tells who is held.
static FOLDER: OnceLock<Option<(OwnedFd, OwnedFd)>> = OnceLock::new();

/// Reads the variable; once, before this process leaves the file system it was started in.
pub fn prepare() {
    FOLDER.get_or_init(|| {
        let folder = std::env::var_os("MOSIX_FAULT")?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(folder, flags, Mode::empty()).ok()?;
        // Opened now: an agent may open nothing later.
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
        let reached = openat(&folder, "reached", flags, Mode::from_raw_mode(0o666)).ok()?;
        Some((folder, reached))
    });
}

/// This process is at `point` now.
pub fn at(point: &str) {
    if let Some(Some((folder, reached))) = FOLDER.get() {
        hold(folder, reached, point);
    }
}

#[cold]
fn hold(folder: &OwnedFd, reached: &OwnedFd, point: &str) {
    let held = || statat(folder, point, AtFlags::empty()).is_ok();
    if !held() {
        return;
    }
    if let Err(error) = rustix::io::write(reached, format!("{point}\n").as_bytes()) {
        tracing::warn!(point, %error, "a point of MOSIX_FAULT cannot be told");
        return;
    }
    let deadline = Instant::now() + LONGEST;
    while held() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}
