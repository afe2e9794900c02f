//! Named points of a move, at which a test can hold a process in order to break something in just that moment.
//!
//! With `MOSIX_FAULT=<folder>` a process that comes to the point `P` and finds a file `P` in that folder makes `P.reached` and waits until
//! the file `P` is gone. Without the variable a point costs one comparison. The points lie on the path of moves only, never on that of calls.

use rustix::fs::{AtFlags, Mode, OFlags, open, openat, statat};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A test that forgets a process at a point loses it no longer than this.
const LONGEST: Duration = Duration::from_secs(30);

static FOLDER: OnceLock<Option<OwnedFd>> = OnceLock::new();

/// Reads the variable; once, before this process leaves the file system it was started in.
pub fn prepare() {
    FOLDER.get_or_init(|| {
        let folder = std::env::var_os("MOSIX_FAULT")?;
        open(
            folder,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .ok()
    });
}

/// This process is at `point` now.
pub fn at(point: &str) {
    if let Some(Some(folder)) = FOLDER.get() {
        hold(folder, point);
    }
}

#[cold]
fn hold(folder: &OwnedFd, point: &str) {
    let held = || statat(folder, point, AtFlags::empty()).is_ok();
    if !held() {
        return;
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    if let Err(error) = openat(folder, format!("{point}.reached"), flags, Mode::from_raw_mode(0o666)) {
        tracing::warn!(point, %error, "a point of MOSIX_FAULT cannot be told");
        return;
    }
    let deadline = Instant::now() + LONGEST;
    while held() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}
