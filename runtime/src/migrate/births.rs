//! New threads of a deputy whose body is away, as the tracer sees them: seated before they run, and taken away again when the body never
//! followed. See the contract "creation".

use super::process::{Process, leave_by};
use super::signals;
use mosix_sys::ptrace;
use mosix_wire::ids::Seq;
use mosix_wire::image::ProcessImage;
use mosix_wire::image::ThreadImage;
use std::io;
use std::time::{Duration, Instant};

/// How long a creation that has begun may take to end.
const LIMIT: Duration = Duration::from_secs(5);

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

/// Ends what is half-made, before a body is taken back: creations that have begun are seen to their end, and a new thread that has no body
/// goes. Its creator has not seen its number, and makes the call again.
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
    let open = |thread: &&ThreadImage| {
        let call = ptrace::Regs(thread.regs).orig_rax();
        thread.in_flight && call == libc::SYS_clone as u64 && deputy.seq(thread.tid.0) == Seq(thread.seq)
    };
    for thread in image.threads.iter().filter(open) {
        let Some((reply, _)) = deputy.answered(thread.tid.0) else {
            continue;
        };
        deputy.forget(thread.tid.0);
        if let Ok(made @ 1..) = i32::try_from(reply.result)
            && deputy.slot(made).is_some()
            && image.threads.iter().all(|thread| thread.tid.0 != made)
        {
            tracing::debug!(pid = process.pid, tid = made, "a new thread is undone");
            leave_by(process, made, libc::SYS_exit, [0; 6])?;
            crate::process::freeze::wait_for(made, deadline)?;
            process.held.remove(&made);
            process.interrupted.remove(&made);
            deputy.leave(made);
        }
    }
    Ok(())
}
