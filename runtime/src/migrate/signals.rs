//! What the tracer does with stops of a deputy's threads. See the contract "signals".
//!
//! While the body is away its own kernel holds pending signals and decides; the deputy never runs a handler. So every signal that arrives at
//! the deputy is taken at its delivery stop and forwarded with its siginfo, and a call that the stop interrupted goes on as if nothing had
//! been, unless the host asked to cancel it. Stop signals with the default action really stop the deputy, so that its parent sees it.

use super::process::Process;
use crate::deputy::Deputy;
use crate::process::restart::{EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS};
use mosix_sys::ptrace::{self, Event, RawSigInfo};
use std::io;
use std::time::Instant;

/// What follows from a stop.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more.
    Done,
    /// Forward this signal to the body.
    Forward(Option<i32>, Box<RawSigInfo>),
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
    let (nr, result) = (regs.orig_rax() as i64, regs.rax() as i64);
    if nr >= 0 && !restarts(result) {
        let again = |regs: &mut ptrace::Regs| {
            regs.set_rax(nr as u64);
            regs.set_rip(regs.rip() - 2);
            regs.set_orig_rax(u64::MAX);
        };
        let open = deputy.and_then(|deputy| deputy.open(tid));
        if result == EINTR && nr != libc::SYS_futex {
            if let Some(open) = open {
                shorten(&mut regs, nr, open.since);
            }
            again(&mut regs);
            ptrace::set_regs(tid, &regs)?;
        } else if let (libc::SYS_write | libc::SYS_sendto, Some(deputy), Some(_)) = (nr, deputy, open)
            && result > 0
            && (result as u64) < regs.rdx()
        {
            deputy.wrote(tid, result as u64);
            regs.set_rsi(regs.rsi() + result as u64);
            regs.set_rdx(regs.rdx() - result as u64);
            again(&mut regs);
            ptrace::set_regs(tid, &regs)?;
        }
    }
    ptrace::cont(tid, 0)
}

/// Takes the time already waited off a relative timeout that lies in a register.
fn shorten(regs: &mut ptrace::Regs, nr: i64, since: Instant) {
    if matches!(nr, libc::SYS_epoll_wait | libc::SYS_epoll_pwait) && (regs.r10() as i32) > 0 {
        let waited = since.elapsed().as_millis() as u64;
        regs.set_r10(regs.r10().saturating_sub(waited));
    }
}

/// Ends the call of a stopped deputy thread with a restart code that the stub reports home.
pub fn cancel(tid: i32) -> io::Result<()> {
    let mut regs = ptrace::regs(tid)?;
    let result = regs.rax() as i64;
    if (regs.orig_rax() as i64) >= 0 && (restarts(result) || result == EINTR) {
        // Without a call number the kernel does not restart it: the stub sees the code as the result.
        regs.set_orig_rax(u64::MAX);
        ptrace::set_regs(tid, &regs)?;
    }
    ptrace::cont(tid, 0)
}

const STOPS: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// What a process does with a signal by the deputy's own record, which follows the body's: (ignored, caught).
fn disposition(pid: i32, signal: i32) -> (bool, bool) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let bit = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
        u64::from_str_radix(mask.trim(), 16).unwrap_or(0) >> (signal - 1) & 1 == 1
    };
    (bit("SigIgn:"), bit("SigCgt:"))
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
            if process.dying.is_some() {
                ptrace::cont(tid, signal)?;
                return Ok(Outcome::Done);
            }
            let (ignored, caught) = disposition(process.pid, signal);
            if signal == libc::SIGSTOP || (STOPS.contains(&signal) && !ignored && !caught) {
                ptrace::cont(tid, signal)?;
                return Ok(Outcome::Done);
            }
            let info = ptrace::siginfo(tid)?;
            go_on(tid, deputy.as_deref())?;
            if ignored {
                return Ok(Outcome::Done);
            }
            Ok(Outcome::Forward(
                directed(&info, signal, tid, deputy.as_deref()),
                Box::new(info),
            ))
        }
        Event::Stop(libc::SIGTRAP) => {
            let cancelled = process.cancels.remove(&tid);
            match (cancelled, deputy.as_deref().and_then(|deputy| deputy.open(tid))) {
                (Some(seq), Some(open)) if open.seq == seq => cancel(tid)?,
                _ => go_on(tid, deputy.as_deref())?,
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
        Event::Ptrace(_) => {
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
