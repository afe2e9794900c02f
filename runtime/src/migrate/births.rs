//! New threads and children of a deputy whose body is away, as the tracer sees them: seated before they run, and taken away again when the
//! body never followed. See the contract "creation".

use super::process::{DepartError, Process, leave_by};
use super::signals;
use crate::contract::commit::Home;
use crate::deputy::{Deputy, creation};
use crate::process::capture::enter_stub;
use crate::process::freeze::{self, FreezeError};
use crate::process::inject::inject;
use crate::process::maps;
use crate::process::status::Status;
use crate::process::window::Window;
use mosix_loader::script::{Op, stub};
use mosix_sys::ptrace::{self, Event, RawSigInfo};
use mosix_wire::ids::{Epoch, Seq};
use mosix_wire::image::ProcessImage;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a creation that has begun may take to end.
const LIMIT: Duration = Duration::from_secs(20);

/// The process that a thread belongs to.
pub fn group(tid: i32) -> Option<i32> {
    Status::read(tid).ok()?.number("Tgid")
}

/// The parent of the process that a thread belongs to.
pub fn parent(tid: i32) -> Option<i32> {
    Status::read(tid).ok()?.number("PPid")
}

/// Whether the event at which `creator` stands tells of a child.
pub fn is_fork(process: &Process, creator: i32, event: i32) -> bool {
    match event {
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => true,
        // One with another signal at its end than SIGCHLD.
        libc::PTRACE_EVENT_CLONE => process.deputy.as_ref().is_some_and(|deputy| deputy.forks(creator)),
        _ => false,
    }
}

/// Makes `child`, which stands before its first instruction, the deputy of a process without a body; `early` when its stop was seen already.
/// It inherits what left home with its parent, and what that has mapped since; its memory is as empty.
///
/// # Errors
/// The child could not be given a window. It stands still, or is gone.
pub fn seat(
    parent: &Process,
    (child, early): (i32, bool),
    deputy: impl FnOnce(Window) -> io::Result<Arc<Deputy>>,
) -> Result<Process, DepartError> {
    let os = |what| {
        move |error| DepartError::Os {
            pid: child,
            what,
            error,
        }
    };
    if !early {
        match freeze::wait_for(child, Instant::now() + LIMIT).map_err(os("waiting for a child"))? {
            Some(Event::Stop(_)) => {}
            _ => return Err(FreezeError::Ended(child).into()),
        }
    }
    let regs = ptrace::regs(child).map_err(os("registers"))?;
    let mappings = maps::read(child).map_err(os("maps"))?;
    let deputy = deputy(inject((child, child), &mappings)?).map_err(os("starting the deputy"))?;
    let seated = deputy.window().reset(0).map_err(io::Error::other);
    deputy.seat(child, 0, Seq(0), None);
    let entry = stub().map_err(io::Error::other).map(|stub| stub.deputy_entry);
    let entered = seated
        .and(entry)
        .and_then(|entry| enter_stub((child, regs), 0, entry, 0));
    if let Err(error) = entered {
        deputy.end();
        return Err(os("entering the stub")(error));
    }
    let mut process = Process::new(child, Epoch::default(), &parent.birth);
    process.state = Home::Unborn;
    process.deputy = Some(deputy);
    process.held.insert(child);
    process.layout = parent.layout.clone();
    process.mapped = parent.mapped.clone();
    process.dropped = parent.dropped;
    process.open = true;
    Ok(process)
}

/// Ends the children that have no body when all is heard that the host has said of its: their creators make the call again.
///
/// # Errors
/// As [`unmake`].
pub fn unmake_all(process: &mut Process) -> io::Result<()> {
    let mut children = std::mem::take(&mut process.newborn);
    children.extend(process.unborn.iter());
    unmake(process, &children)
}

/// Ends children that have no body, as if they had never been: their parent's kernel half takes their ends, and its body hears nothing.
///
/// # Errors
/// A child does not end, or the parent is gone.
pub fn unmake(process: &mut Process, children: &[i32]) -> io::Result<()> {
    let deadline = Instant::now() + LIMIT;
    for child in children.iter().copied() {
        tracing::debug!(pid = process.pid, child, "a child without a body ends");
        process.unborn.remove(&child);
        process.unmade.insert(child);
        let _ = mosix_sys::process::kill(child, libc::SIGKILL);
        // Until its tracer has taken its end, its parent cannot.
        loop {
            match ptrace::wait(Some(child), false) {
                Ok(Some((_, Event::Exited(_) | Event::Killed(..)))) => break,
                Ok(Some(_)) => {}
                Ok(None) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
                Ok(None) => std::thread::sleep(Duration::from_micros(50)),
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => break,
                Err(error) => return Err(error),
            }
        }
        let wait = [child as u64, 0, libc::__WALL as u64, 0, 0, 0];
        process
            .run(&[Op::may(libc::SYS_wait4, wait)])
            .map_err(io::Error::other)?;
    }
    Ok(())
}

impl Process {
    /// Whether a signal tells of the end of a child that never was.
    pub fn never_was(&mut self, info: &RawSigInfo) -> bool {
        let word = |at: usize| i32::from_le_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
        word(0) == libc::SIGCHLD && word(8) > 0 && self.unmade.remove(&word(16))
    }
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
        let creates = creation::creates(ptrace::Regs(thread.regs).orig_rax() as i64);
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
