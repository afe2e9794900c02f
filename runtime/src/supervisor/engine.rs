//! What the migration engine is to the tracer loop.
//!
//! Everything that ptrace, fork and wait do for a job happens on one permanent thread, the *tracer thread*, because the kernel
//! ties tracees (and `PTRACE_O_EXITKILL`) to the thread that seized them. [`super::tracer`] runs the loop on it; the engine lives
//! in the loop and never on another thread. Its duties:
//!
//! 1. Return from every call soon: nothing else of the job is served meanwhile. Work that waits (links, agents, copying of
//!    memory) belongs on threads of the engine's own, which come back with [`Handle::message`].
//! 2. Never call wait(2) for "any" child: the loop takes every report and gives each to [`Engine::on_wait`] first. Waiting for
//!    one *given* tracee that is known to stop at once is allowed.
//! 3. Say [`Verdict::Mine`] for reports of tracees and helpers; the loop then forgets them. With [`Verdict::Pass`] the loop
//!    does what it does for an untraced child: an end is reaped and recorded, and stops, continuations and the end of
//!    the first process are mirrored to the launcher.
//! 4. A seized process has no job-control reports of its own: the engine tells its stops by [`Context::stopped`] and
//!    [`Context::continued`].
//! 5. Keep [`Shared`] true: where each process is, its moves, what it uses away, and why it cannot move.
//! 6. Answer every [`Command`] exactly once (its [`Reply`] ends when dropped; a dropped unanswered one tells the user so).

use super::shared::Shared;
use mosix_sys::process::Waited;
use mosix_wire::job::{Answer, Moved, Place, Refusal, RefusalKind, Target, Why};
use nix::sys::eventfd::EventFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

/// What the loop does with a report after the engine saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The engine has dealt with it.
    Mine,
    /// The loop deals with it.
    Pass,
}

/// Moves processes. See the module for its duties.
pub trait Engine {
    /// What the engine's own threads send to it.
    type Message: Send + 'static;

    /// A child, orphan or tracee reported something.
    fn on_wait(&mut self, cx: &mut Context<'_, Self::Message>, waited: Waited) -> Verdict;

    /// A thread of the engine sent something.
    fn on_message(&mut self, cx: &mut Context<'_, Self::Message>, message: Self::Message);

    /// A user, or the supervisor itself (`--on`), wants something.
    fn on_command(&mut self, cx: &mut Context<'_, Self::Message>, command: Command);

    /// When [`Engine::tick`] is wanted next.
    fn deadline(&self) -> Option<Instant>;

    /// [`Engine::deadline`] has passed.
    fn tick(&mut self, cx: &mut Context<'_, Self::Message>);

    /// Whether something is left to do although no process of the job is: the supervisor does not end before.
    fn is_busy(&self) -> bool;
}

/// What the engine may use of the loop while it is called.
#[derive(Debug)]
pub struct Context<'a, M> {
    /// The job as `mosix ps` shows it.
    pub shared: &'a Arc<Shared>,
    /// For giving to threads.
    pub handle: &'a Handle<M>,
    /// Reports about processes that the engine holds, to be mirrored; taken by the loop after the call.
    pub(super) reports: &'a mut Vec<(i32, JobControl)>,
}

/// A job-control event of a process that the engine holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobControl {
    /// Stopped by this signal.
    Stopped(i32),
    /// Went on.
    Continued,
}

impl<M> Context<'_, M> {
    /// Process `pid`, held by the engine, was stopped by `signal`.
    pub fn stopped(&mut self, pid: i32, signal: i32) {
        self.reports.push((pid, JobControl::Stopped(signal)));
    }

    /// Process `pid`, held by the engine, goes on after a stop.
    pub fn continued(&mut self, pid: i32) {
        self.reports.push((pid, JobControl::Continued));
    }
}

/// Something to do, with a place for its answers.
#[derive(Debug)]
pub enum Command {
    /// Move a process or the job.
    Migrate {
        /// What to move. A process has been checked to belong to the job.
        target: Target,
        /// Where to.
        to: Place,
        /// Takes progress and the outcome.
        reply: Reply,
    },
}

/// Where the answers to a [`Command`] go. Cheap to keep and to send to other threads; when the last clone is dropped without
/// [`Answer::Done`] or [`Answer::Refused`], the asker is told that nothing came of it.
#[derive(Clone, Debug)]
pub struct Reply {
    answers: Sender<Answer>,
    batch: Option<Arc<Batch>>,
}

/// Several processes that one command moves: what becomes of one ends nothing, the end of all does.
#[derive(Debug)]
struct Batch {
    answers: Sender<Answer>,
    /// Whether something was said of one.
    told: AtomicBool,
}

impl Drop for Batch {
    fn drop(&mut self) {
        let last = if self.told.load(Ordering::Acquire) {
            Answer::Done
        } else {
            Answer::Refused(Refusal {
                kind: RefusalKind::UnknownProcess,
                pid: None,
                text: "the job's processes have ended".to_owned(),
                why: None,
            })
        };
        let _ = self.answers.send(last);
    }
}

impl Reply {
    /// Makes a reply and the end that reads it.
    pub fn new() -> (Self, Receiver<Answer>) {
        let (answers, rx) = channel();
        (Self { answers, batch: None }, rx)
    }

    /// For several processes: of each its outcome is told, but for those that end meanwhile; when all clones are gone, that it is done.
    #[must_use]
    pub fn of_all(self) -> Self {
        let batch = Batch {
            answers: self.answers.clone(),
            told: AtomicBool::new(false),
        };
        Self {
            batch: Some(Arc::new(batch)),
            ..self
        }
    }

    /// Sends one answer. An asker that is gone is no error: the move goes on.
    pub fn send(&self, answer: Answer) {
        let _ = self.answers.send(answer);
    }

    /// A process has moved.
    pub fn moved(&self, moved: Moved) {
        self.send(Answer::Moved(moved));
        match &self.batch {
            Some(batch) => batch.told.store(true, Ordering::Release),
            None => self.send(Answer::Done),
        }
    }

    /// Refuses: the last answer about this process.
    pub fn refuse(&self, kind: RefusalKind, pid: Option<i32>, text: impl Into<String>) {
        self.refuse_with(Refusal {
            kind,
            pid: pid.map(mosix_wire::ids::Pid),
            text: text.into(),
            why: None,
        });
    }

    fn refuse_with(&self, refusal: Refusal) {
        let kind = refusal.kind;
        match &self.batch {
            None => self.send(Answer::Refused(refusal)),
            // A process of many that ends is what processes do.
            Some(_) if kind == RefusalKind::UnknownProcess => {}
            Some(batch) => {
                batch.told.store(true, Ordering::Release);
                self.send(Answer::Stays(refusal));
            }
        }
    }

    /// Refuses a process for `why` it cannot move: the last answer about it.
    pub fn refuse_for(&self, pid: i32, why: &Why) {
        self.refuse_with(Refusal {
            kind: RefusalKind::CannotMove,
            pid: Some(mosix_wire::ids::Pid(pid)),
            text: crate::reason::refusal(pid, why),
            why: Some(why.clone()),
        });
    }
}

/// What reaches the loop from other threads.
#[derive(Debug)]
pub(super) enum Input<M> {
    /// For [`Engine::on_message`].
    Message(M),
    /// For [`Engine::on_command`].
    Command(Command),
    /// A line for the user of the launcher's terminal.
    Notice(String),
}

/// Reaches the tracer thread from any other.
#[derive(Debug)]
pub struct Handle<M> {
    queue: Sender<Input<M>>,
    wake: Arc<EventFd>,
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            wake: Arc::clone(&self.wake),
        }
    }
}

impl<M: Send + 'static> Handle<M> {
    pub(super) fn new(wake: Arc<EventFd>) -> (Self, Receiver<Input<M>>) {
        let (queue, rx) = channel();
        (Self { queue, wake }, rx)
    }

    /// Gives a message to the engine.
    pub fn message(&self, message: M) {
        self.post(Input::Message(message));
    }

    /// Gives a command to the engine.
    pub fn command(&self, command: Command) {
        self.post(Input::Command(command));
    }

    /// Shows a line to the user on the launcher's standard error, prefixed with `mosix: `, while the launcher lives.
    pub fn notice(&self, line: impl Into<String>) {
        self.post(Input::Notice(line.into()));
    }

    fn post(&self, input: Input<M>) {
        // Both fail only when the loop has ended, and with it the process.
        let _ = self.queue.send(input);
        let _ = self.wake.write(1);
    }
}

/// The engine of a build that cannot move processes.
#[derive(Debug, Default)]
pub struct NoEngine;

impl Engine for NoEngine {
    type Message = std::convert::Infallible;

    fn on_wait(&mut self, _: &mut Context<'_, Self::Message>, _: Waited) -> Verdict {
        Verdict::Pass
    }

    fn on_message(&mut self, _: &mut Context<'_, Self::Message>, message: Self::Message) {
        match message {}
    }

    fn on_command(&mut self, _: &mut Context<'_, Self::Message>, command: Command) {
        match command {
            Command::Migrate { reply, .. } => {
                reply.refuse(
                    RefusalKind::Unsupported,
                    None,
                    "this build of mosix cannot move processes",
                );
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn tick(&mut self, _: &mut Context<'_, Self::Message>) {}

    fn is_busy(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: RefusalKind) -> (RefusalKind, &'static str) {
        (kind, "why")
    }

    /// What a job's move of three processes says, of which some do not move.
    fn told(outcomes: &[Option<(RefusalKind, &'static str)>]) -> Vec<Answer> {
        let (reply, answers) = Reply::new();
        let reply = reply.of_all();
        for outcome in outcomes {
            let one = reply.clone();
            match outcome {
                Some((kind, why)) => one.refuse(*kind, Some(7), *why),
                None => one.moved(Moved {
                    pid: mosix_wire::ids::Pid(7),
                    program: "p".to_owned(),
                    from: Place::Home,
                    to: Place::Home,
                    freeze_us: 0,
                    total_us: 0,
                    bytes: 0,
                }),
            }
        }
        drop(reply);
        answers.into_iter().collect()
    }

    #[test]
    fn of_a_job_every_process_has_its_answer_and_the_last_ends_it() {
        let all = told(&[
            Some(refused(RefusalKind::CannotMove)),
            None,
            Some(refused(RefusalKind::UnknownProcess)),
        ]);
        assert!(
            matches!(&all[..], [Answer::Stays(_), Answer::Moved(_), Answer::Done]),
            "{all:?}"
        );
    }

    #[test]
    fn a_job_whose_processes_end_is_refused_once() {
        let all = told(&[
            Some(refused(RefusalKind::UnknownProcess)),
            Some(refused(RefusalKind::UnknownProcess)),
        ]);
        assert!(
            matches!(&all[..], [Answer::Refused(r)] if r.kind == RefusalKind::UnknownProcess),
            "{all:?}"
        );
    }
}
