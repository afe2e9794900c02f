//! New threads of a deputy whose body is away, as the tracer sees them: seated before they run, and taken away again when the body never
//! followed. See the contract "creation".

use super::process::{Process, leave_by};
use super::signals;
use crate::process::freeze;
use mosix_sys::ptrace;
use mosix_wire::ids::Seq;
use mosix_wire::image::ProcessImage;
use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

/// How long a creation that has begun may take to end.
const LIMIT: Duration = Duration::from_secs(20);

/// The process that a thread belongs to.
pub fn group(tid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:"))?
        .trim()
        .parse()
        .ok()
}

/// `creator` stands at the event that tells of a new thread: that gets its seat, before its number is known to anybody else.
///
/// # Errors
/// When the creator is gone.
pub fn born(process: &mut Process, creator: i32) -> io::Result<()> {
    let tid = ptrace::event_message(creator)? as i32;
    let Some(deputy) = process.deputy.clone() else {
        return Ok(());
    };
    if !deputy.born(creator, tid) {
        tracing::warn!(
            pid = process.pid,
            creator,
            tid,
            "a deputy made a thread that nobody asked for"
        );
    }
    process.held.insert(tid);
    if process.early.remove(&tid) {
        return signals::go_on(tid, Some(&deputy));
    }
    // It stops once, as one does that was asked to.
    process.interrupted.insert(tid);
    Ok(())
}

/// Makes the deputy's threads the body's, before that is taken back: creations that have begun are seen to their end, and threads that have no
/// body go. Their bodies have ended, and the word of it is slower than the image; or they were never made: then their creators have not
/// seen their numbers, and make the call again.
///
/// # Errors
/// A thread does not stop, or is gone.
pub fn settle(process: &mut Process, image: &ProcessImage) -> io::Result<()> {
    let Some(deputy) = process.deputy.clone() else {
        return Ok(());
    };
    let deadline = Instant::now() + LIMIT;
    while let Some(creator) = deputy.creating() {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        signals::hold_away(process, creator)?;
        signals::go_on(creator, Some(&deputy))?;
        // The answer is another thread's to take.
        std::thread::sleep(Duration::from_micros(100));
    }
    for thread in &image.threads {
        let tid = thread.tid.0;
        let creates = ptrace::Regs(thread.regs).orig_rax() == libc::SYS_clone as u64;
        if creates && thread.in_flight && deputy.seq(tid) == Seq(thread.seq) {
            deputy.forget(tid);
        }
    }
    let bodies: HashSet<i32> = image.threads.iter().map(|thread| thread.tid.0).collect();
    for (tid, _) in deputy.seats() {
        if bodies.contains(&tid) {
            continue;
        }
        tracing::debug!(pid = process.pid, tid, "a thread without a body ends");
        match leave_by(process, tid, libc::SYS_exit, [0; 6]).and_then(|()| freeze::wait_for(tid, deadline)) {
            Ok(_) => {}
            // It was just ending.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ECHILD)) => {}
            Err(error) => return Err(error),
        }
        process.held.remove(&tid);
        process.interrupted.remove(&tid);
        deputy.leave(tid);
    }
    Ok(())
}
