//! What the tracer does with stops of a deputy's threads. See the contract "signals".
//!
//! While the body is away its own kernel holds pending signals and decides; the deputy never runs a handler. So every signal that arrives at
//! the deputy is taken at its delivery stop and forwarded with its siginfo, and a call that the stop interrupted goes on as if nothing had
//! been, unless the host asked to cancel it. Stop signals with the default action really stop the deputy, so that its parent sees it.

use super::births;
use super::process::Process;
use crate::deputy::Deputy;
use crate::process::freeze::wait_for;
use crate::process::restart::{
    EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS, never_waits, take_back,
};
use crate::process::status::Status;
use mosix_sys::ptrace::{self, Event, RawSigInfo};
use mosix_wire::image::{SigInfo, ThreadImage};
use mosix_wire::link::Exit;
use std::io;
use std::time::{Duration, Instant};

/// What follows from a stop.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more.
    Done,
    /// Forward this signal to the body, then let the thread go on: whatever its call answers comes behind the signal.
    Forward(Option<i32>, Box<RawSigInfo>),
    /// The thread has made this child, and stands at the event that tells of it.
    Forked(i32),
    /// The deputy is stopped by job control.
    Stopped(i32),
    /// The deputy goes on after a stop.
    Continued,
    /// The thread is gone.
    Ended,
}

/// Whether a raw result of the deputy's own call is a restart code.
fn restarts(result: i64) -> bool {
    matches!(
        result,
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK
    )
}

/// Lets a stopped thread of a deputy go on as if the stop had not been: a call that answers EINTR to any stop, or was cut short, is
/// issued again for the rest.
pub fn go_on(tid: i32, deputy: Option<&Deputy>) -> io::Result<()> {
    let mut regs = ptrace::regs(tid)?;
    let before = regs;
    take_back(tid, &mut regs);
    if regs != before {
        ptrace::set_regs(tid, &regs)?;
    }
    let (nr, result) = (regs.orig_rax() as i64, regs.rax() as i64);
    if nr >= 0 && !restarts(result) {
        // Left to the kernel, which no handler disturbs here: so a cancel that comes before it runs again still sees a call.
        let again = |regs: &mut ptrace::Regs, code: i64| regs.set_rax(code as u64);
        let open = deputy.and_then(|deputy| deputy.open(tid));
        if result == EINTR && nr != libc::SYS_futex {
            let own = open.is_some_and(|open| i64::from(open.nr) == nr);
            if let Some(deputy) = deputy.filter(|_| own) {
                let timeout = deputy
                    .socket(tid)
                    .and_then(|(fd, sends)| socket_timeout(deputy.pid, fd, sends));
                if let Some(whole) = timeout {
                    // The stub reports EINTR, and the deputy goes on from there.
                    deputy.wait_again(tid, whole);
                    return ptrace::cont(tid, 0);
                }
                if let Some(args) = deputy.rest(tid) {
                    regs.set_call(nr as u64, args);
                }
            }
            again(&mut regs, ERESTARTNOHAND);
            ptrace::set_regs(tid, &regs)?;
        } else if let (libc::SYS_write | libc::SYS_sendto, Some(deputy), Some(_)) = (nr, deputy, open)
            && result > 0
            && (result as u64) < regs.rdx()
        {
            deputy.wrote(tid, result as u64);
            regs.set_rsi(regs.rsi() + result as u64);
            regs.set_rdx(regs.rdx() - result as u64);
            again(&mut regs, ERESTARTSYS);
            ptrace::set_regs(tid, &regs)?;
        }
    }
    ptrace::cont(tid, 0)
}

/// The time-out of a process's socket for receiving or sending, when it has one.
pub fn socket_timeout(pid: i32, fd: i32, sends: bool) -> Option<Duration> {
    use rustix::net::sockopt::{Timeout, socket_timeout};
    let socket = crate::process::descriptor::fetch(pid, fd).ok()?;
    let which = if sends { Timeout::Send } else { Timeout::Recv };
    socket_timeout(socket, which).ok()?
}

/// Ends the open call, number `open`, of a stopped deputy thread with a restart code that the stub reports home. False when the thread is
/// not in it: it has not begun or is over, and whoever wants its end is to look again.
pub fn cancel(tid: i32, open: u32) -> io::Result<bool> {
    let mut regs = ptrace::regs(tid)?;
    take_back(tid, &mut regs);
    let (nr, result) = (regs.orig_rax() as i64, regs.rax() as i64);
    let inside = nr >= 0 && (nr == i64::from(open) || nr == libc::SYS_restart_syscall);
    if inside && (restarts(result) || result == EINTR) && !never_waits(open.into(), &regs.args()) {
        // Without a call number the kernel does not restart it: the stub sees the code as the result.
        regs.set_orig_rax(u64::MAX);
    }
    ptrace::set_regs(tid, &regs)?;
    ptrace::cont(tid, 0)?;
    Ok(inside)
}

/// When to look again at a thread that is not in the call that is to end.
const AGAIN: Duration = Duration::from_millis(1);
/// How long a thread may take to stop.
const LIMIT: Duration = Duration::from_secs(2);

/// Looks again at threads whose calls are to end.
pub fn look_again(process: &mut Process) {
    process.again = None;
    let due = |(tid, thread): (&i32, &ThreadImage)| super::home::is_due(process.pid, thread).then_some(*tid);
    let lingering = process.lingering.iter().filter_map(due);
    for tid in process.cancels.keys().copied().chain(lingering).collect::<Vec<_>>() {
        // One that is gone waits for nothing.
        let _ = interrupt(process, tid);
    }
}

/// Asks a thread to stop; its stop comes as an event. Asked twice it would stop twice, the second time for whoever waits for something else.
///
/// # Errors
/// When the thread is gone.
pub fn interrupt(process: &mut Process, tid: i32) -> io::Result<()> {
    if process.interrupted.insert(tid) {
        ptrace::interrupt(tid)?;
    }
    Ok(())
}

/// A thread stands for a signal, which takes away that it was asked to stop: it is asked again, before it goes on.
pub fn renew(process: &Process, tid: i32) {
    if process.interrupted.contains(&tid) {
        let _ = ptrace::interrupt(tid);
    }
}

/// The same later, for this process.
pub fn later(process: &mut Process) {
    process.again = Some(Instant::now() + AGAIN);
}

/// Stops a thread of a deputy. Signals that it was about to get are taken off it, in order: no handler runs in a deputy, and no default
/// action. It stands where its call left it; [`go_on`] lets it go.
///
/// # Errors
/// `ESRCH` when it ended, `TimedOut` when it does not stop.
pub fn hold(process: &mut Process, tid: i32) -> io::Result<Vec<(Option<i32>, SigInfo)>> {
    let mut taken = Vec::new();
    if !process.interrupted.remove(&tid) {
        ptrace::interrupt(tid)?;
    } else if process.cancels.contains_key(&tid) || process.lingering.contains_key(&tid) {
        // This stop was somebody else's, who is to get another.
        later(process);
    }
    let deadline = Instant::now() + LIMIT;
    loop {
        let event = wait_for(tid, deadline)?.ok_or(io::ErrorKind::TimedOut)?;
        match event {
            Event::Stop(_) => return Ok(taken),
            Event::Exited(_) | Event::Killed(..) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            Event::Signal(signal) => {
                let mut deliver = 0;
                if let Some(how) = process.dying {
                    deliver = deadly(how, signal);
                } else if stops(process, signal) {
                    // The whole deputy stops, when what holds this thread is over.
                    process.stops.push(signal);
                } else {
                    let info = ptrace::siginfo(tid)?;
                    let to = directed(&info, signal, tid, process.deputy.as_deref());
                    if !process.never_was(&info) {
                        taken.push((to, SigInfo(info.to_vec())));
                    }
                }
                // Renewed while the thread still stands: any stop takes a pending interrupt away.
                ptrace::interrupt(tid)?;
                ptrace::cont(tid, deliver)?;
            }
            // It is another program's now, for whoever waits for everybody.
            Event::Ptrace(libc::PTRACE_EVENT_EXEC) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            other => {
                match other {
                    Event::Ptrace(event) if births::is_fork(process, tid, event) => {
                        process.newborn.push(ptrace::event_message(tid)? as i32);
                    }
                    Event::Ptrace(libc::PTRACE_EVENT_CLONE) => births::born(process, tid)?,
                    _ => {}
                }
                ptrace::interrupt(tid)?;
                ptrace::cont(tid, 0)?;
            }
        }
    }
}

/// Stops a thread of a deputy whose body is away; what it was about to get is the body's.
///
/// # Errors
/// As [`hold`].
pub fn hold_away(process: &mut Process, tid: i32) -> io::Result<()> {
    for signal in hold(process, tid)? {
        process.signals.take(signal);
    }
    Ok(())
}

/// What a deputy gets that ends as its body did: the signal of that end, and no other.
fn deadly(how: Exit, signal: i32) -> i32 {
    match how {
        Exit::Signal { signal: end, .. } if i32::from(end) == signal => signal,
        _ => 0,
    }
}

/// Sets the mask of a running thread of a deputy.
///
/// # Errors
/// As [`hold`].
pub fn set_mask(process: &mut Process, tid: i32, mask: u64) -> io::Result<()> {
    hold_away(process, tid)?;
    ptrace::set_sigmask(tid, mask)?;
    go_on(tid, process.deputy.as_deref())
}

const STOPS: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Whether a signal really stops the deputy, by the disposition that the body reported last.
fn stops(process: &Process, signal: i32) -> bool {
    let action = process
        .image
        .as_ref()
        .and_then(|image| image.actions.get((signal - 1) as usize));
    let default = action.is_none_or(|action| action.handler == libc::SIG_DFL as u64);
    signal == libc::SIGSTOP || (STOPS.contains(&signal) && default)
}

/// What a process at home does with a signal: (ignored, caught).
fn disposition(pid: i32, signal: i32) -> (bool, bool) {
    let status = Status::read(pid).ok();
    let bit = |field| {
        let mask = status.as_ref().and_then(|status| status.signals(field));
        mask.unwrap_or(0) >> (signal - 1) & 1 == 1
    };
    (bit("SigIgn"), bit("SigCgt"))
}

/// Whether the process ignores a signal, by explicit choice or by default.
pub fn ignored(pid: i32, signal: i32) -> bool {
    let (ignored, caught) = disposition(pid, signal);
    ignored || (!caught && matches!(signal, libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH | libc::SIGCONT))
}

/// Deals with one event of a thread of a deputy whose body is away.
pub fn event(process: &mut Process, tid: i32, event: Event) -> Outcome {
    match handle(process, tid, event) {
        Ok(outcome) => outcome,
        Err(error) => {
            tracing::debug!(tid, %error, "thread of a deputy is gone");
            Outcome::Done
        }
    }
}

fn handle(process: &mut Process, tid: i32, event: Event) -> io::Result<Outcome> {
    let deputy = process.deputy.clone();
    match event {
        Event::Exited(_) | Event::Killed(..) => Ok(Outcome::Ended),
        Event::Signal(signal) => {
            renew(process, tid);
            if let Some(how) = process.dying {
                ptrace::cont(tid, deadly(how, signal))?;
                return Ok(Outcome::Done);
            }
            if stops(process, signal) {
                ptrace::cont(tid, signal)?;
                return Ok(Outcome::Done);
            }
            // Also one that is ignored: only the body's kernel knows whether a thread blocks it.
            let info = ptrace::siginfo(tid)?;
            if process.never_was(&info) {
                go_on(tid, deputy.as_deref())?;
                return Ok(Outcome::Done);
            }
            Ok(Outcome::Forward(
                directed(&info, signal, tid, deputy.as_deref()),
                Box::new(info),
            ))
        }
        Event::Stop(libc::SIGTRAP) => {
            process.interrupted.remove(&tid);
            let cancelled = process.cancels.get(&tid).copied();
            match (cancelled, deputy.as_deref().and_then(|deputy| deputy.open(tid))) {
                (Some(seq), Some(open)) if open.seq == seq && !open.brief => {
                    if cancel(tid, open.nr)? {
                        process.cancels.remove(&tid);
                    } else {
                        process.again = Some(Instant::now() + AGAIN);
                    }
                }
                _ => {
                    process.cancels.remove(&tid);
                    go_on(tid, deputy.as_deref())?;
                }
            }
            if process.stopped.take().is_some() {
                return Ok(Outcome::Continued);
            }
            Ok(Outcome::Done)
        }
        Event::Stop(signal) => {
            ptrace::listen(tid)?;
            if process.stopped.replace(signal).is_some() {
                return Ok(Outcome::Done);
            }
            Ok(Outcome::Stopped(signal))
        }
        Event::Ptrace(event) => {
            if births::is_fork(process, tid, event) {
                return Ok(Outcome::Forked(ptrace::event_message(tid)? as i32));
            }
            if event == libc::PTRACE_EVENT_CLONE {
                births::born(process, tid)?;
            }
            ptrace::cont(tid, 0)?;
            Ok(Outcome::Done)
        }
        Event::Job(_) => Ok(Outcome::Done),
    }
}

/// The thread a signal is for, when it is not for the process: tgkill's, or one that the thread's own call raised.
fn directed(info: &RawSigInfo, signal: i32, tid: i32, deputy: Option<&Deputy>) -> Option<i32> {
    let code = i32::from_le_bytes([info[8], info[9], info[10], info[11]]);
    let own_call =
        matches!(signal, libc::SIGPIPE | libc::SIGXFSZ) && deputy.is_some_and(|deputy| deputy.open(tid).is_some());
    (code == libc::SI_TKILL || own_call).then_some(tid)
}
