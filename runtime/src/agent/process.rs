//! One body as the tracer has it, and how its threads are stopped and let go.

use super::build::{Built, Prepared};
use super::depart::{Departure, Streams};
use super::serve;
use super::shared::{BodyCalls, Command, Shared};
use super::signals::{self, Delivery, Signals, settle_body};
use crate::contract::commit::Host;
use crate::process::enter::{Wait, enter};
use crate::process::freeze::{Frozen, FrozenThread, put_back, wait_for};
use crate::process::restart::{ERESTARTNOINTR, Standing};
use crate::process::waited::{Sleeper, monotonic};
use crate::syscall::decide::{Decision, decide};
use crate::syscall::table;
use mosix_sys::notif::Answer;
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace::{self, Event, Regs};
use mosix_wire::ids::{Epoch, NodeName, Pid};
use mosix_wire::image::{FileRef, ProcessImage};
use mosix_wire::link::{Destination, Exit};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

/// How long all threads of a body may take to stop.
pub const STOP_LIMIT: Duration = Duration::from_secs(5);

/// A process that this agent has, had, or expects.
pub struct Process {
    /// Its pid at home.
    pub pid: Pid,
    /// What the commit rules know.
    pub state: Host<NodeName>,
    /// The image that is to be built next, and who waits for the place of its pages.
    pub incoming: Option<(Box<ProcessImage>, SyncSender<Result<ProcMem, String>>)>,
    /// The process, under construction or built.
    pub built: Option<Built>,
    /// Its calls, once its filter holds.
    pub calls: Option<Arc<BodyCalls>>,
    /// Threads that live, by this node's numbers.
    pub tids: Vec<i32>,
    /// Home let it run.
    pub released: bool,
    /// Its threads stand still, for a departure, for a lease, or because the deputy is stopped.
    pub frozen: Option<Frozen>,
    /// The deputy is stopped: so is the body.
    pub stopped: bool,
    /// The lease is over.
    pub held: bool,
    /// Its image, when it is on its way elsewhere.
    pub departure: Option<Departure>,
    /// Where home wants it.
    pub destination: Option<Destination>,
    /// Files that the destination was offered before the freeze.
    pub offered: Vec<FileRef>,
    /// Threads that went on in a native call with the rest of its time-out: how often each had left a CPU when it slept there, and when
    /// the time-out began, on the body's clock.
    waits: HashMap<i32, (u64, i64)>,
    /// Signals on their way to it.
    pub signals: Signals,
    /// Bytes of memory that its image brought.
    pub bytes: u64,
    /// How it ended.
    pub how: Exit,
    /// A signal was about to end it while it was being stopped: it ends so now.
    pub fatal: Option<Exit>,
    /// Why something went wrong, for home.
    pub why: String,
    /// An image of another agent that came before home's word about it, and since when.
    pub early: Option<(Command, Epoch, Instant)>,
    /// Home has said that its source is gone: no new stream brings its image.
    pub last_stream: bool,
    /// The streams on which home wants it.
    pub way: Option<Box<Streams>>,
    /// A process for an image that is still to come.
    pub prepared: Option<Prepared>,
    /// Since when it stands still for a departure.
    pub still: Option<Instant>,
    /// The child of vfork(2) that has its memory, and the thread that stands until it gives it back.
    pub lent: Option<(Pid, i32)>,
    /// The parent whose memory it has.
    pub borrows: Option<Pid>,
    /// A call that comes home was made while its memory was lent: its number.
    pub wanted_home: Option<u32>,
    /// It is to leave when it has its memory back.
    pub leaves: Option<Leaves>,
}

/// A departure that waits for the end of a vfork: its attempt, its way, whether that leads home, and since when.
pub type Leaves = (Epoch, Box<Streams>, bool, Instant);

impl Process {
    /// Nothing is here yet.
    pub fn new(pid: Pid) -> Self {
        Self {
            pid,
            state: Host::Absent,
            incoming: None,
            built: None,
            calls: None,
            tids: Vec::new(),
            released: false,
            frozen: None,
            stopped: false,
            held: false,
            departure: None,
            destination: None,
            offered: Vec::new(),
            waits: HashMap::new(),
            signals: Signals::default(),
            bytes: 0,
            how: Exit::Signal {
                signal: libc::SIGKILL as u8,
                core: false,
            },
            fatal: None,
            why: String::new(),
            early: None,
            last_stream: false,
            way: None,
            prepared: None,
            still: None,
            lent: None,
            borrows: None,
            wanted_home: None,
            leaves: None,
        }
    }

    /// Interrupts one thread and waits until it stands still. A received call of it is parked.
    ///
    /// # Errors
    /// `ESRCH` when it ended, a time-out when it does not stop.
    pub fn stop_thread(&mut self, shared: &Shared, tid: i32, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        ptrace::interrupt(tid)?;
        loop {
            self.rewind_call(tid);
            // Its call may be received only after the look at it: look again soon.
            let soon = (Instant::now() + Duration::from_millis(2)).min(deadline);
            match wait_for(tid, soon)? {
                Some(event) if self.standing(shared, tid, event)? => return Ok(()),
                Some(_) => {}
                None if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
                None => {}
            }
        }
    }

    /// Answers a received call of an interrupted thread so that it stops at the call's instruction.
    fn rewind_call(&self, tid: i32) {
        if let Some(calls) = &self.calls
            && let super::calls::Stop::Answer(id) = calls.calls.stop_one(tid)
        {
            serve::send(calls, tid, id, Answer::Result(ERESTARTNOINTR));
        }
    }

    /// Takes an event of a thread that is to stop: whether it stands still now.
    fn standing(&mut self, shared: &Shared, tid: i32, event: Event) -> io::Result<bool> {
        match event {
            Event::Stop(_) => Ok(true),
            Event::Signal(signal) => {
                let deliver = match signals::at_stop(shared, self, tid, signal) {
                    Delivery::Deliver(signal) => signal,
                    Delivery::Nothing => 0,
                    Delivery::Fatal(how) => {
                        self.fatal = Some(how);
                        return Err(io::Error::from_raw_os_error(libc::ESRCH));
                    }
                };
                // Any stop takes a pending interrupt away: it is renewed while the thread still stands, so that it cannot make a
                // call in between.
                ptrace::interrupt(tid)?;
                ptrace::cont(tid, deliver)?;
                Ok(false)
            }
            Event::Exited(_) | Event::Killed(..) => {
                self.thread_gone(tid);
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
            Event::Ptrace(_) | Event::Job(_) => {
                ptrace::interrupt(tid)?;
                ptrace::cont(tid, 0)?;
                Ok(false)
            }
        }
    }

    /// Whether it stands still to leave.
    pub fn is_frozen(&self) -> bool {
        matches!(self.state, Host::Frozen { .. })
    }

    /// Nothing of it is here or on its way here.
    pub fn is_idle(&self) -> bool {
        self.state == Host::Absent
            && self.built.is_none()
            && self.incoming.is_none()
            && self.early.is_none()
            && self.prepared.is_none()
    }

    /// Forgets a thread.
    pub fn thread_gone(&mut self, tid: i32) {
        self.tids.retain(|other| *other != tid);
        if let Some(calls) = &self.calls {
            calls.calls.ended(tid);
        }
    }

    /// Stops all threads; their received calls are parked. Nothing happens when they stand still already.
    ///
    /// # Errors
    /// The body runs on as before, or ended (`ESRCH`).
    pub fn freeze(&mut self, shared: &Shared) -> io::Result<()> {
        if self.frozen.is_some() {
            return Ok(());
        }
        if self.lent.is_some() {
            return Err(io::Error::other(
                "a vfork is in progress: try again when its child has executed its program",
            ));
        }
        let (Some(calls), Some(built)) = (self.calls.clone(), &self.built) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let host = built.body.pid;
        // Slow, so while they run.
        let look = |tid: &i32| Some((*tid, self.sleeper(*tid)?));
        let mut sleepers: HashMap<i32, Sleeper> = self.tids.iter().filter_map(look).collect();
        let since = Instant::now();
        calls.calls.close();
        for tid in &self.tids {
            if sleepers.get(tid).is_some_and(|sleeper| !sleeper.still_sleeps()) {
                sleepers.remove(tid);
            }
            let _ = ptrace::interrupt(*tid);
        }
        for id in calls.calls.stop() {
            serve::send(&calls, host, id, Answer::Result(ERESTARTNOINTR));
        }
        let deadline = Instant::now() + STOP_LIMIT;
        let mut frozen = Frozen {
            pid: host,
            since,
            threads: Vec::with_capacity(self.tids.len()),
        };
        for tid in self.tids.clone() {
            match self.settle_thread(shared, tid, deadline, sleepers.remove(&tid)) {
                Ok(Some(thread)) => frozen.threads.push(thread),
                Ok(None) if tid != host => {}
                Ok(None) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
                Err(error) => {
                    self.let_go(&frozen);
                    return Err(error);
                }
            }
        }
        self.waits.clear();
        self.frozen = Some(frozen);
        Ok(())
    }

    /// What is to be seen of a thread before it is interrupted, when it sleeps in a native call.
    pub fn sleeper(&self, tid: i32) -> Option<Sleeper> {
        let (built, calls) = (self.built.as_ref()?, self.calls.as_ref()?);
        let native = !calls.calls.is_waiting(tid);
        native.then(|| Sleeper::look(built.body.pid, tid, false)).flatten()
    }

    /// Lets one stopped thread go on, in a native call with the rest of its time-out.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn go_on_alone(&mut self, mut thread: FrozenThread) -> io::Result<()> {
        thread.since = self.since(&thread);
        self.waits.remove(&thread.tid);
        put_back(&thread)?;
        match thread.since.filter(|_| thread.standing != Standing::Block) {
            Some(since) => {
                let (tid, regs) = (thread.tid, thread.regs);
                self.go_on(&[Wait { tid, regs, since }]);
                Ok(())
            }
            None => ptrace::cont(thread.tid, 0),
        }
    }

    /// Waits for one interrupted thread; `None` when it ended.
    fn settle_thread(
        &mut self,
        shared: &Shared,
        tid: i32,
        deadline: Instant,
        mut sleeper: Option<Sleeper>,
    ) -> io::Result<Option<FrozenThread>> {
        loop {
            let Some(event) = wait_for(tid, deadline)? else {
                return Err(io::ErrorKind::TimedOut.into());
            };
            match self.standing(shared, tid, event) {
                Ok(true) => {
                    let body = FrozenThread::take(tid, sleeper.take(), |regs| settle_body(self, tid, regs))?;
                    if body.is_unknown() {
                        put_back(&body).and_then(|()| ptrace::cont(tid, 0))?;
                        return Err(io::Error::other(
                            "a thread has just been continued in a wait: try again",
                        ));
                    }
                    let since = self.since(&body);
                    return Ok(Some(FrozenThread { since, ..body }));
                }
                Ok(false) => {}
                Err(_) if !self.tids.contains(&tid) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// When the time-out of a stopped thread's native call began, on the body's clock. Of other calls home knows it.
    fn since(&self, thread: &FrozenThread) -> Option<i64> {
        let since = thread.since.filter(|_| is_native(&thread.regs))?;
        match self.waits.get(&thread.tid) {
            // It has not run since it went on in that call.
            Some((switches, begun)) if thread.switches == Some(*switches) => Some(*begun),
            _ => Some(since.saturating_add(self.built.as_ref()?.ahead.0)),
        }
    }

    /// Lets threads go on in their native calls; gives those that did, which are not to be resumed again.
    fn go_on(&mut self, waits: &[Wait]) -> Vec<i32> {
        let Some(built) = &self.built else {
            return Vec::new();
        };
        let now = monotonic().saturating_add(built.ahead.0);
        let entered = enter(built.body.pid, waits, now, |tid| ptrace::cont(tid, 0));
        for (wait, (tid, switches)) in waits.iter().zip(&entered) {
            if let Some(switches) = switches {
                self.waits.insert(*tid, (*switches, wait.since));
            }
        }
        entered.into_iter().map(|(tid, _)| tid).collect()
    }

    /// Lets a built body run.
    ///
    /// # Errors
    /// A thread is gone.
    pub fn release(&mut self) -> io::Result<()> {
        let Some(built) = &self.built else { return Ok(()) };
        let threads = built.body.tids.iter().zip(&built.image.threads);
        let waits: Vec<Wait> = threads
            .filter_map(|(tid, thread)| {
                let regs = Regs(thread.regs);
                let since = thread.since.filter(|_| is_native(&regs))?;
                Some(Wait { tid: *tid, regs, since })
            })
            .collect();
        let entered = self.go_on(&waits);
        let Some(built) = &self.built else { return Ok(()) };
        built.body.release(&entered)
    }

    /// A built body that was never released, as a frozen one.
    pub fn standing_still(&self) -> Option<Frozen> {
        let built = self.built.as_ref()?;
        let threads = built.body.tids.iter().zip(&built.image.threads).map(|(tid, image)| {
            let regs = ptrace::regs(*tid).ok()?;
            Some(FrozenThread {
                tid: *tid,
                regs,
                raw: regs.rax(),
                standing: Standing::User,
                since: image.since.filter(|_| is_native(&regs)),
                switches: None,
                whole: None,
            })
        });
        Some(Frozen {
            pid: built.body.pid,
            since: Instant::now(),
            threads: threads.collect::<Option<_>>()?,
        })
    }

    fn let_go(&mut self, frozen: &Frozen) {
        if let Some(calls) = &self.calls {
            calls.calls.open();
        }
        let waits: Vec<Wait> = frozen
            .threads
            .iter()
            // A restart block knows the rest itself.
            .filter(|thread| thread.standing != Standing::Block)
            .filter_map(|thread| {
                let (tid, regs) = (thread.tid, thread.regs);
                ptrace::set_regs(tid, &regs).ok()?;
                thread.since.map(|since| Wait { tid, regs, since })
            })
            .collect();
        let entered = self.go_on(&waits);
        for thread in frozen.threads.iter().filter(|thread| !entered.contains(&thread.tid)) {
            if let Err(error) = put_back(thread).and_then(|()| ptrace::cont(thread.tid, 0)) {
                tracing::debug!(tid = thread.tid, %error, "a thread is gone");
            }
        }
    }

    /// Lets a frozen body run on, unless something else still holds it. Threads that were captured are put back first.
    ///
    /// # Errors
    /// The captured threads could not be put back: the body is lost.
    pub fn thaw(&mut self) -> io::Result<()> {
        if self.stopped || self.held {
            if let (Some(departure), Some(built), Some(frozen)) = (self.departure.take(), &self.built, &mut self.frozen)
            {
                departure.undo(built, frozen)?;
            }
            return Ok(());
        }
        let Some(mut frozen) = self.frozen.take() else {
            return Ok(());
        };
        if let (Some(departure), Some(built)) = (self.departure.take(), &self.built) {
            departure.undo(built, &mut frozen)?;
        }
        self.let_go(&frozen);
        Ok(())
    }

    /// Ends what was prepared for an image.
    pub fn unprepare(&mut self) {
        if let Some(prepared) = self.prepared.take() {
            prepared.end();
        }
    }

    /// Kills the body and takes it apart; nothing of it is left. An image that has just come, and is why an older copy ends, stays.
    pub fn end(&mut self) {
        if let Some(built) = self.built.take() {
            built.end();
        }
        self.unprepare();
        self.lent = None;
        self.borrows = None;
        self.wanted_home = None;
        self.leaves = None;
        self.calls = None;
        self.tids.clear();
        self.frozen = None;
        self.departure = None;
        self.signals = Signals::default();
        self.fatal = None;
        self.released = false;
        self.stopped = false;
        self.held = false;
        self.way = None;
    }
}

/// Whether this host's kernel executes the call.
fn is_native(regs: &Regs) -> bool {
    decide(table::row(regs.orig_rax() as u32), &regs.args()) == Decision::Native
}
