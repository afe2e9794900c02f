//! The signal and restart contract, as pure decisions. The text with the reasons is `docs/contracts/signals.md`.
//!
//! ```text
//!   home kernel ──▶ deputy's delivery stop ──▶ supervisor ── Signal ──▶ agent ──▶ body's kernel ──▶ handler
//!                        │                         ▲                     │
//!                        └─ call goes on           └────── Cancel ───────┘  only the host knows masks and handlers
//! ```
//!
//! While a body is away its own kernel holds its pending signals and the deputy's mask is empty. Home therefore never decides
//! that a call is interrupted: it forwards the signal and lets the call go on ([`deputy_stopped`]). The host decides
//! ([`place`]), and where a signal is due for a thread whose call is open at home it asks home to end that call first
//! ([`cancelled`]); what home then answers, the host turns into what a native kernel would do ([`answer`]).

use crate::syscall::table::Restart;

/// Restart codes of `include/linux/errno.h`, as raw results.
pub const RESTART_SYS: i64 = -512;
/// Restarts always.
pub const RESTART_NOINTR: i64 = -513;
/// Restarts unless a handler runs.
pub const RESTART_NOHAND: i64 = -514;
/// Restarts through restart_syscall(2), in the task that was interrupted and nowhere else.
pub const RESTART_BLOCK: i64 = -516;
/// EINTR.
pub const INTERRUPTED: i64 = -4;

/// True for results that no program may ever see.
#[must_use]
pub fn is_internal(raw: i64) -> bool {
    (-516..=-512).contains(&raw)
}

/// What a process does with a signal, as far as anybody outside needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Disposition {
    /// SIG_DFL.
    Default,
    /// SIG_IGN.
    Ignore,
    /// A handler; `restart` is SA_RESTART.
    Handler {
        /// SA_RESTART.
        restart: bool,
    },
}

/// What SIG_DFL means for a signal, signal(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefaultAction {
    /// Nothing happens.
    Ignore,
    /// The process stops.
    Stop,
    /// The process goes on; else nothing happens.
    Continue,
    /// The process dies.
    Fatal,
}

/// Returns what SIG_DFL means for a signal number.
#[must_use]
pub fn default_action(signal: i32) -> DefaultAction {
    match signal {
        libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH => DefaultAction::Ignore,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => DefaultAction::Stop,
        libc::SIGCONT => DefaultAction::Continue,
        _ => DefaultAction::Fatal,
    }
}

/// The call that a deputy thread was executing, as its stop shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// rax at the stop.
    pub raw: i64,
    /// The syscall table's word on interruption.
    pub class: Restart,
    /// Bytes done by earlier runs of this call.
    pub done: u64,
    /// For a call that blocks until all bytes are done (write, send on a blocking stream, recv with MSG_WAITALL): how many that
    /// is. None where a short count is natural.
    pub wanted: Option<u64>,
}

/// How a deputy's call goes on after a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is over: post this result. Internal codes are posted only after a `Cancel`.
    Post(i64),
    /// Issue it again, unchanged.
    Again,
    /// Issue it again with what is left of its relative time-out.
    AgainWithTimeLeft,
    /// Issue restart_syscall(2) in the same thread: the kernel there knows the deadline. No other timed call and no
    /// rt_sigreturn may run in that thread first.
    RestartBlock,
    /// Issue it again for the rest, after so many bytes in all.
    Rest(u64),
    /// Leave it to the kernel, which really stops the thread: its own restart rules are the native ones.
    Kernel,
}

/// Who takes a signal that stopped a deputy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taker {
    /// The deputy: continue it *with* the signal.
    Deputy,
    /// The body: continue the deputy without it, send `ToHost::Signal`.
    Body,
}

/// What the supervisor does at a signal-delivery stop of a deputy thread (at home): who takes the signal, and how the thread's call
/// goes on. The `Signal` message leaves before any reply that this stop produces.
///
/// `disposition` is the last one that the body reported. A stop signal with the default action really stops the deputy, so that
/// its parent and the terminal see it; the body follows by `ToHost::Stop`. The same for one that the host sent back
/// (`ToHome::StopSignal`): home raises it in the deputy and gives it here with the default disposition. Every other signal is the body's, also an ignored or
/// a fatal one: only the body's kernel knows whether a thread blocks it.
#[must_use]
pub fn deputy_stopped(signal: i32, disposition: Disposition, call: Option<Open>) -> (Taker, Option<Next>) {
    if signal == libc::SIGSTOP || stops(signal, disposition) {
        let next = call.map(|open| match open.raw {
            // A real stop ends these calls natively too (signal(7), "Interruption of system calls by stop signals").
            INTERRUPTED if open.class == Restart::Eintr && open.done == 0 => Next::Post(INTERRUPTED),
            raw if is_internal(raw) && open.done == 0 => Next::Kernel,
            _ => resumed(open),
        });
        return (Taker::Deputy, next);
    }
    (Taker::Body, call.map(resumed))
}

/// How a call goes on after a stop that the body must not notice: a suppressed signal, an undone freeze.
#[must_use]
pub fn resumed(open: Open) -> Next {
    match open.raw {
        RESTART_SYS | RESTART_NOINTR | RESTART_NOHAND if open.done > 0 => Next::Rest(open.done),
        RESTART_SYS | RESTART_NOINTR | RESTART_NOHAND => Next::Again,
        RESTART_BLOCK => Next::RestartBlock,
        INTERRUPTED if open.class == Restart::Eintr && open.done > 0 => Next::Rest(open.done),
        INTERRUPTED if open.class == Restart::Eintr => Next::AgainWithTimeLeft,
        raw => match (total(open), open.wanted) {
            // Cut short by the stop. Where the count was short by nature (end of file, full device) the next run says so, and
            // the sum is posted.
            (Some(sum), Some(wanted)) if raw > 0 && sum < wanted => Next::Rest(sum),
            _ => Next::Post(finished(open)),
        },
    }
}

/// How a call ends that the host asked to cancel, at the stop that followed. The result is posted as it is.
#[must_use]
pub fn cancelled(open: Open) -> Next {
    match open.raw {
        raw if is_internal(raw) && open.done == 0 => Next::Post(raw),
        _ => Next::Post(finished(open)),
    }
}

/// The result of a call over all its runs: bytes done count, an error of a later run does not (the next call meets it).
fn finished(open: Open) -> i64 {
    match total(open) {
        Some(sum) => i64::try_from(sum).unwrap_or(i64::MAX),
        None => open.raw,
    }
}

/// Bytes over all runs, when there is a count.
fn total(open: Open) -> Option<u64> {
    match u64::try_from(open.raw) {
        Ok(count) => Some(open.done.saturating_add(count)),
        Err(_) => (open.done > 0).then_some(open.done),
    }
}

/// Where a body's thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// In user code or in a native call: its kernel can deliver at once.
    Reachable {
        /// It blocks the signal.
        blocks: bool,
    },
    /// In a call that was received and not answered: nothing reaches it. A thread that arrived with an open call counts as this
    /// from its first moment.
    InCall {
        /// It blocks the signal, under the mask that holds *during* the call (ppoll, pselect6, epoll_pwait bring one).
        blocks: bool,
    },
}

/// What the agent does with a signal from home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Nothing: natively it would have been discarded at once.
    Discard,
    /// A stop signal with its default action: the stop is made at home (`ToHome::StopSignal`), whose parent and terminal must
    /// see it. In the body's pid namespace, an orphaned process group, the kernel would discard it.
    Home,
    /// Queue it in the body, with its true siginfo: to this thread, or to the process. The body's kernel does the rest.
    Queue(Option<usize>),
    /// Keep it; end the call of this thread first (`ToHome::Cancel`, once per call), and queue it to this thread at the stop that
    /// follows the answer ([`answer`]).
    AfterCancel(usize),
}

/// Where a signal goes in the body. `to` is the thread for a thread-directed signal, an index into `threads`.
#[must_use]
pub fn place(signal: i32, to: Option<usize>, disposition: Disposition, threads: &[Thread]) -> Placement {
    let default = default_action(signal);
    let blocks = |thread: &Thread| match thread {
        Thread::Reachable { blocks } | Thread::InCall { blocks } => *blocks,
    };
    // The kernel's order (complete_signal): the addressee, or the leader, or any other thread that does not block it.
    let chosen = match to {
        Some(index) => threads
            .get(index)
            .filter(|thread| !blocks(thread))
            .map(|thread| (index, thread)),
        None => threads.iter().enumerate().find(|(_, thread)| !blocks(thread)),
    };
    let harmless = match disposition {
        Disposition::Ignore => true,
        Disposition::Default => matches!(default, DefaultAction::Ignore | DefaultAction::Continue),
        Disposition::Handler { .. } => false,
    };
    match chosen {
        _ if signal == libc::SIGSTOP => Placement::Home,
        // Blocked everywhere: pending, also when it is ignored (sigwait may want it, a handler may come).
        None => Placement::Queue(to),
        Some(_) if stops(signal, disposition) => Placement::Home,
        // Ignored: discarded at generation, and no call ends.
        Some(_) if harmless => Placement::Discard,
        Some((index, Thread::InCall { .. })) => Placement::AfterCancel(index),
        Some((_, Thread::Reachable { .. })) => Placement::Queue(to),
    }
}

/// Where a signal goes that the body's kernel is about to deliver, at its delivery stop: true when the agent suppresses it and
/// has the stop made at home, since its disposition has become the default after it was queued.
#[must_use]
pub fn due_at_home(signal: i32, disposition: Disposition) -> bool {
    signal == libc::SIGSTOP || stops(signal, disposition)
}

/// True for a stop signal with its default action.
fn stops(signal: i32, disposition: Disposition) -> bool {
    disposition == Disposition::Default && default_action(signal) == DefaultAction::Stop
}

/// What the agent does with home's answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Give it to the body as the call's result.
    Result(i64),
    /// Give this internal code, with a PTRACE_INTERRUPT pending on that very thread, never without: at the stop queue what was
    /// kept for the thread, then let it go. Its kernel restarts the call or makes it EINTR.
    Code(i64),
    /// The call goes on: forward it again, with what is left of its time. No signal came of it after all.
    Continue,
}

/// What home's answer means for the body. `due` is the disposition of what was kept for this thread, looked up again now (another
/// thread may have changed it): that of the first signal with a handler if there is one.
#[must_use]
pub fn answer(raw: i64, due: Option<Disposition>) -> Answer {
    match raw {
        // A restart block exists only in the deputy's task. Natively: EINTR for a handler, and restart without.
        RESTART_BLOCK => match due {
            Some(Disposition::Handler { .. }) => Answer::Result(INTERRUPTED),
            _ => Answer::Continue,
        },
        RESTART_SYS | RESTART_NOINTR | RESTART_NOHAND => Answer::Code(raw),
        // Home may send nothing else of this range; a program must never see it.
        raw if is_internal(raw) => Answer::Code(RESTART_NOINTR),
        raw => Answer::Result(raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(raw: i64, class: Restart, done: u64, wanted: Option<u64>) -> Open {
        Open {
            raw,
            class,
            done,
            wanted,
        }
    }

    #[test]
    fn a_suppressed_signal_is_not_noticed() {
        for (raw, class, done, wanted, next) in [
            (RESTART_SYS, Restart::Sys, 0, None, Next::Again),
            (RESTART_NOINTR, Restart::NoInt, 0, None, Next::Again),
            (RESTART_NOHAND, Restart::NoHand, 0, None, Next::Again),
            (RESTART_BLOCK, Restart::Timed, 0, None, Next::RestartBlock),
            (INTERRUPTED, Restart::Eintr, 0, None, Next::AgainWithTimeLeft),
            // A call that answers EINTR without being of that class must not be made twice: close(2) on some file systems.
            (INTERRUPTED, Restart::None, 0, None, Next::Post(INTERRUPTED)),
            // A pipe write cut short, then blocked again, then the reader went away.
            (65_536, Restart::Sys, 0, Some(300_000), Next::Rest(65_536)),
            (RESTART_SYS, Restart::Sys, 65_536, Some(300_000), Next::Rest(65_536)),
            (-32, Restart::Sys, 65_536, Some(300_000), Next::Post(65_536)),
            (234_464, Restart::Sys, 65_536, Some(300_000), Next::Post(300_000)),
            // Short by nature: a terminal line, the end of a stream.
            (7, Restart::Sys, 0, None, Next::Post(7)),
            (0, Restart::Sys, 10, Some(20), Next::Post(10)),
            (-11, Restart::Sys, 0, Some(20), Next::Post(-11)),
        ] {
            assert_eq!(
                resumed(open(raw, class, done, wanted)),
                next,
                "{raw} {class:?} {done} {wanted:?}"
            );
        }
    }

    #[test]
    fn a_cancelled_call_shows_what_it_did() {
        assert_eq!(
            cancelled(open(RESTART_SYS, Restart::Sys, 0, None)),
            Next::Post(RESTART_SYS)
        );
        assert_eq!(cancelled(open(RESTART_SYS, Restart::Sys, 5, Some(9))), Next::Post(5));
        assert_eq!(cancelled(open(3, Restart::Sys, 5, Some(9))), Next::Post(8));
        assert_eq!(
            cancelled(open(RESTART_BLOCK, Restart::Timed, 0, None)),
            Next::Post(RESTART_BLOCK)
        );
        assert_eq!(
            cancelled(open(9, Restart::Sys, 0, Some(9))),
            Next::Post(9),
            "it was over already"
        );
    }

    #[test]
    fn stops_are_made_at_home() {
        let default = Disposition::Default;
        let call = Some(open(RESTART_SYS, Restart::Sys, 0, None));
        assert_eq!(
            deputy_stopped(libc::SIGTSTP, default, call),
            (Taker::Deputy, Some(Next::Kernel))
        );
        assert_eq!(
            deputy_stopped(libc::SIGSTOP, Disposition::Ignore, None),
            (Taker::Deputy, None)
        );
        let handler = Disposition::Handler { restart: true };
        assert_eq!(
            deputy_stopped(libc::SIGTSTP, handler, call),
            (Taker::Body, Some(Next::Again))
        );
        assert_eq!(
            place(libc::SIGTSTP, None, default, &[Thread::Reachable { blocks: false }]),
            Placement::Home
        );
        assert_eq!(
            place(libc::SIGTSTP, None, default, &[Thread::Reachable { blocks: true }]),
            Placement::Queue(None)
        );
        assert!(due_at_home(libc::SIGTTOU, default) && !due_at_home(libc::SIGTTOU, handler));
    }

    #[test]
    fn a_signal_finds_the_thread_that_the_kernel_would_pick() {
        let handler = Disposition::Handler { restart: false };
        let (free, busy) = (Thread::Reachable { blocks: false }, Thread::InCall { blocks: false });
        let deaf = Thread::InCall { blocks: true };
        assert_eq!(
            place(libc::SIGUSR1, None, handler, &[busy, free]),
            Placement::AfterCancel(0),
            "the leader"
        );
        assert_eq!(
            place(libc::SIGUSR1, None, handler, &[deaf, free]),
            Placement::Queue(None)
        );
        assert_eq!(
            place(libc::SIGUSR1, None, handler, &[deaf, busy]),
            Placement::AfterCancel(1)
        );
        assert_eq!(
            place(libc::SIGUSR1, Some(0), handler, &[deaf, free]),
            Placement::Queue(Some(0))
        );
        assert_eq!(
            place(libc::SIGCHLD, None, Disposition::Default, &[busy]),
            Placement::Discard
        );
        assert_eq!(
            place(libc::SIGCHLD, None, Disposition::Ignore, &[deaf]),
            Placement::Queue(None),
            "sigwait may want it"
        );
        assert_eq!(
            place(libc::SIGTERM, None, Disposition::Default, &[busy]),
            Placement::AfterCancel(0),
            "deadly"
        );
        assert_eq!(
            place(libc::SIGUSR1, Some(7), handler, &[busy]),
            Placement::Queue(Some(7)),
            "no such thread"
        );
    }

    #[test]
    fn internal_codes_never_become_results() {
        for raw in -600..=0 {
            for due in [
                None,
                Some(Disposition::Ignore),
                Some(Disposition::Handler { restart: true }),
            ] {
                match answer(raw, due) {
                    Answer::Result(result) => assert!(!is_internal(result), "{raw} {due:?}"),
                    Answer::Code(code) => assert!(code != RESTART_BLOCK, "{raw} {due:?}"),
                    Answer::Continue => assert_eq!(raw, RESTART_BLOCK),
                }
            }
        }
    }
}
