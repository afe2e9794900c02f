//! One body as the tracer has it, and how its threads are stopped and let go.

use super::build::Built;
use super::depart::Departure;
use super::serve;
use super::shared::{BodyCalls, Shared};
use super::signals::{self, Delivery, Signals, settle_body};
use crate::contract::commit::Host;
use crate::process::freeze::{Frozen, FrozenThread, put_back, wait_for};
use crate::process::restart::{ERESTARTNOINTR, Standing, take_back};
use mosix_sys::notif::Answer;
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace::{self, Event};
use mosix_wire::ids::{NodeName, Pid};
use mosix_wire::image::{FileRef, ProcessImage};
use mosix_wire::link::{Destination, Exit};
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
    /// Home has said that its source is gone: no new stream brings its image.
    pub last_stream: bool,
    /// The stream on which home wants it.
    pub way: Option<Box<crate::link::Sender>>,
}

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
            signals: Signals::default(),
            bytes: 0,
            how: Exit::Signal {
                signal: libc::SIGKILL as u8,
                core: false,
            },
            fatal: None,
            why: String::new(),
            last_stream: false,
            way: None,
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
        let (Some(calls), Some(built)) = (self.calls.clone(), &self.built) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let host = built.body.pid;
        calls.calls.close();
        for tid in &self.tids {
            let _ = ptrace::interrupt(*tid);
        }
        for id in calls.calls.stop() {
            serve::send(&calls, host, id, Answer::Result(ERESTARTNOINTR));
        }
        let deadline = Instant::now() + STOP_LIMIT;
        let mut frozen = Frozen {
            pid: host,
            threads: Vec::with_capacity(self.tids.len()),
        };
        for tid in self.tids.clone() {
            match self.settle_thread(shared, tid, deadline) {
                Ok(Some(thread)) => frozen.threads.push(thread),
                Ok(None) if tid != host => {}
                Ok(None) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
                Err(error) => {
                    self.let_go(&frozen);
                    return Err(error);
                }
            }
        }
        self.frozen = Some(frozen);
        Ok(())
    }

    /// Waits for one interrupted thread; `None` when it ended.
    fn settle_thread(&mut self, shared: &Shared, tid: i32, deadline: Instant) -> io::Result<Option<FrozenThread>> {
        loop {
            let Some(event) = wait_for(tid, deadline)? else {
                return Err(io::ErrorKind::TimedOut.into());
            };
            match self.standing(shared, tid, event) {
                Ok(true) => {
                    let mut regs = ptrace::regs(tid)?;
                    take_back(tid, &mut regs);
                    let raw = regs.rax();
                    let standing = settle_body(self, tid, &mut regs);
                    return Ok(Some(FrozenThread {
                        tid,
                        regs,
                        raw,
                        standing,
                    }));
                }
                Ok(false) => {}
                Err(_) if !self.tids.contains(&tid) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// A built body that was never released, as a frozen one.
    pub fn standing_still(&self) -> Option<Frozen> {
        let built = self.built.as_ref()?;
        let threads = built.body.tids.iter().map(|tid| {
            let regs = ptrace::regs(*tid).ok()?;
            Some(FrozenThread {
                tid: *tid,
                regs,
                raw: regs.rax(),
                standing: Standing::User,
            })
        });
        Some(Frozen {
            pid: built.body.pid,
            threads: threads.collect::<Option<_>>()?,
        })
    }

    fn let_go(&self, frozen: &Frozen) {
        if let Some(calls) = &self.calls {
            calls.calls.open();
        }
        for thread in &frozen.threads {
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

    /// Kills the body and takes it apart; nothing of it is left.
    pub fn end(&mut self) {
        if let Some(built) = self.built.take() {
            built.end();
        }
        self.calls = None;
        self.tids.clear();
        self.frozen = None;
        self.departure = None;
        self.incoming = None;
        self.signals = Signals::default();
        self.fatal = None;
        self.released = false;
        self.stopped = false;
        self.held = false;
        self.way = None;
    }
}
