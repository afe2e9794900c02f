//! What a supervisor says when it cannot go on, and that it then ends.
//!
//! A thread that panics would leave the others alive and the job half served: nobody would wait for its processes, or answer their calls.
//! So any panic ends the whole process, after a line in the log and one to the user. The launcher and the guardian do the rest.

use super::mirror::ToLauncher;
use mosix_sys::process::exit_now;
use nix::sys::socket::{MsgFlags, send};
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;

/// The exit code of a process that panicked, as Rust's own.
const PANICKED: i32 = 101;
/// Longest line to the user in bytes.
const LONGEST: usize = 1000;

static LAUNCHER: OnceLock<OwnedFd> = OnceLock::new();

/// Makes every panic of this process its end. `launcher` is a copy of the socket to the launcher.
pub fn install(launcher: Option<OwnedFd>) {
    if let Some(socket) = launcher {
        let _ = LAUNCHER.set(socket);
    }
    std::panic::set_hook(Box::new(|info| end(&panic_line(info))));
}

/// One line about a panic: which thread, where, what.
pub fn panic_line(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let text = info.payload();
    let text = text
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| text.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = info
        .location()
        .map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
    format!(
        "internal error in thread '{}'{place}: {text}",
        thread.name().unwrap_or("main")
    )
}

/// Says why to the user and the log, and ends this process without running anything else of it.
pub fn end(why: &str) -> ! {
    say(why);
    exit_now(PANICKED)
}

/// Says something to the user and the log that must not wait for the tracer thread.
pub fn say(why: &str) {
    if let Some(socket) = LAUNCHER.get() {
        let line = why.chars().take(LONGEST).collect();
        if let Ok(bytes) = postcard::to_allocvec(&ToLauncher::Notice(line)) {
            // A launcher that has no room, or is gone, hears nothing: waiting for it would be the half-life that this is against.
            let _ = send(
                socket.as_raw_fd(),
                &bytes,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            );
        }
    }
    tracing::error!("{why}");
}
