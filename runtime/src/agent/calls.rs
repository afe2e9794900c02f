//! The system calls of one body that wait for an answer, and the numbering that makes each execute at most once.
//!
//! ```text
//!            trapped              answer sent
//!   (none) ──────────▶ Open ─────────────────▶ (none)
//!                       │ ▲
//!              freeze   │ │ the thread issues it again
//!                       ▼ │
//!                      Parked ── departs: the image says `in_flight`, the next agent binds the call to the same number
//! ```
//! A parked call stays open at home: its thread was stopped at the instruction that makes the call and will make it again. Its
//! reply may come meanwhile and is kept. A call is the same when the same thread makes it with the same number and arguments
//! from the same instruction; anything else is a new call.
//!
//! Locks: this one is taken alone, never while memory is read or a message is sent.

use crate::deputy::creation::{creates, flags};
use crate::process::restart::never_waits;
use crate::syscall::marshal::Scatter;
use crate::syscall::policy::is_exec;
use mosix_sys::notif::Notification;
use mosix_wire::call::{NEEDS_HOME, Reply};
use mosix_wire::ids::{Seq, Tid};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// What the agent does with new calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// They are served.
    Running,
    /// They wait: every thread is about to be interrupted.
    Closing,
    /// Every thread was interrupted: their calls are answered so that they stop at the call's instruction.
    Stopping,
}

/// A call, by what makes it that call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Made {
    /// System call number.
    pub nr: i32,
    /// Address behind its instruction.
    pub ip: u64,
    /// Its arguments.
    pub args: [u64; 6],
}

impl From<&Notification> for Made {
    fn from(n: &Notification) -> Self {
        Self {
            nr: n.nr,
            ip: n.instruction_pointer,
            args: n.args,
        }
    }
}

/// A received notification.
#[derive(Debug)]
struct Waiting {
    id: u64,
    made: Made,
    sent: Option<Sent>,
    /// Home was asked to end it.
    cancelled: bool,
    /// The signal mask that holds while it lasts.
    mask: Option<u64>,
}

/// A call that home has.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Its number.
    pub seq: u64,
    /// What becomes of its outputs.
    pub scatter: Scatter,
}

#[derive(Debug)]
struct Parked {
    made: Made,
    sent: Sent,
    /// The signal mask that holds while it lasts.
    mask: Option<u64>,
    over: Option<Over>,
}

/// How a parked call ended at home.
#[derive(Debug)]
pub enum Over {
    /// Its reply, to be applied.
    Reply(Sent, Reply, Vec<u8>),
    /// Its result; its outputs are in place.
    Result(i64),
}

#[derive(Debug)]
struct Thread {
    tid: Tid,
    /// The last number used.
    seq: u64,
    /// The thread arrived with a call open at home under `seq`: where it makes it.
    arrived: Option<(i32, u64)>,
    waiting: Option<Waiting>,
    parked: Option<Parked>,
    /// Signals wait for the end of its call.
    due: bool,
    /// The agent makes the thread execute a call of its own: it runs natively.
    injecting: bool,
}

impl Thread {
    fn new(new: &NewThread) -> Self {
        Self {
            tid: new.tid,
            seq: new.seq,
            arrived: new.open,
            waiting: None,
            parked: None,
            due: false,
            injecting: false,
        }
    }
}

#[derive(Debug)]
struct State {
    phase: Phase,
    threads: BTreeMap<i32, Thread>,
    /// Every call made from the stub runs natively: all threads sit in it on the agent's behalf.
    capturing: bool,
    /// Calls and replies so far.
    traffic: u64,
    /// A thread may have an execve open at home.
    executes: bool,
}

/// The calls of one body; threads are named by this node's numbers unless said otherwise.
#[derive(Debug)]
pub struct Calls(Mutex<State>);

/// A thread as an arrival brings it.
#[derive(Clone, Copy, Debug)]
pub struct NewThread {
    /// Its number on this node.
    pub host: i32,
    /// Its number at home.
    pub tid: Tid,
    /// The last call number it used.
    pub seq: u64,
    /// The call that is open at home under `seq`: system call number and the address behind its instruction.
    pub open: Option<(i32, u64)>,
}

/// What to do with a notification.
#[derive(Debug)]
pub enum Step {
    /// Gather it and call [`Calls::sent`].
    Gather(Tid, Seq),
    /// It is the parked call again; home has it, and is to be asked to end it when this names it.
    Again(Option<(Tid, Seq)>),
    /// It is the parked call again, and it is over: answer it.
    Answered(Box<Over>),
    /// The same, but only under the tracer's eyes.
    Due(Box<Over>),
    /// It waits for the freeze.
    Held,
    /// The thread is being stopped: answer with the restart code.
    Rewind,
    /// The agent's own call.
    Own,
    /// The thread is not one of the body's.
    Unknown,
}

/// What a reply from home means.
#[derive(Debug)]
pub enum Replied {
    /// Answer this notification of this thread.
    Answer {
        /// The thread.
        host: i32,
        /// The notification.
        id: u64,
        /// What becomes of the outputs.
        scatter: Scatter,
    },
    /// Home has made a thread: the tracer makes its body before the call is answered.
    Made {
        /// The creator.
        host: i32,
        /// The notification.
        id: u64,
        /// The number.
        number: Tid,
    },
    /// Signals wait for the end of the call: the tracer answers it with the reply's result, and then lets them in.
    Due {
        /// The thread.
        host: i32,
        /// What becomes of the outputs.
        scatter: Scatter,
    },
    /// Home does not execute it for a host: the process comes home, its thread waits.
    NeedsHome {
        /// The system call.
        nr: i32,
    },
    /// Kept for when the thread makes the call again.
    Kept,
    /// Nothing waits for it.
    Stale,
}

/// How a thread is being stopped stands with a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It has no received call: it stops by itself.
    Free,
    /// Answer this notification with the restart code.
    Answer(u64),
}

/// What a departing thread takes along.
#[derive(Debug)]
pub struct Leaving {
    /// The last number used.
    pub seq: u64,
    /// The call under that number is open at home.
    pub in_flight: bool,
    /// The call is over: its result must be given before the thread is captured.
    pub over: Option<Over>,
}

/// Whether a call may go home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Going {
    /// The thread is being stopped: the call waits.
    No,
    /// Send it.
    Yes,
    /// Send it, and ask home to end it: a signal is due.
    Cancel,
}

fn is_restart(result: i64) -> bool {
    matches!(result, -516..=-512)
}

impl Calls {
    /// Makes the book of an arrived body.
    pub fn new(threads: &[NewThread]) -> Self {
        let threads = threads.iter().map(|new| (new.host, Thread::new(new))).collect();
        Self(Mutex::new(State {
            phase: Phase::Running,
            threads,
            capturing: false,
            traffic: 0,
            executes: true,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// A notification was received; `stub` tells whether the call was made from the stub.
    pub fn received(&self, n: &Notification, stub: bool) -> Step {
        let mut state = self.lock();
        let (phase, capturing) = (state.phase, state.capturing);
        let Some(thread) = state.threads.get_mut(&n.tid) else {
            return Step::Unknown;
        };
        if stub && (capturing || thread.injecting) {
            return Step::Own;
        }
        if phase == Phase::Stopping {
            return Step::Rewind;
        }
        let made = Made::from(n);
        let mut waiting = Waiting {
            id: n.id,
            made,
            sent: None,
            cancelled: false,
            mask: None,
        };
        match thread.parked.take_if(|parked| parked.made == made) {
            Some(Parked {
                over: Some(over), mask, ..
            }) => {
                waiting.mask = mask;
                let code = match &over {
                    Over::Reply(_, reply, _) => reply.result,
                    Over::Result(result) => *result,
                };
                if thread.due || is_restart(code) {
                    thread.waiting = Some(waiting);
                    return Step::Due(Box::new(over));
                }
                return Step::Answered(Box::new(over));
            }
            Some(Parked {
                sent, over: None, mask, ..
            }) => {
                waiting.mask = mask;
                waiting.cancelled = thread.due;
                let end = thread.due && !never_waits(made.nr as u64, &made.args);
                let cancel = end.then_some((thread.tid, Seq(sent.seq)));
                waiting.sent = Some(sent);
                thread.waiting = Some(waiting);
                return Step::Again(cancel);
            }
            None => {}
        }
        thread.waiting = Some(waiting);
        if phase == Phase::Closing {
            return Step::Held;
        }
        let seq = match thread.arrived {
            Some((nr, ip)) if nr == n.nr && ip == n.instruction_pointer => thread.seq,
            _ => thread.seq + 1,
        };
        Step::Gather(thread.tid, Seq(seq))
    }

    /// The call of the notification is to go home under `seq`; `mask` holds while it lasts.
    pub fn sent(&self, host: i32, id: u64, seq: Seq, scatter: Scatter, mask: Option<u64>) -> Going {
        let state = &mut *self.lock();
        let running = state.phase == Phase::Running;
        state.traffic += 1;
        let Some(thread) = state.threads.get_mut(&host) else {
            return Going::No;
        };
        match &mut thread.waiting {
            Some(waiting) if waiting.id == id && running => {
                waiting.sent = Some(Sent { seq: seq.0, scatter });
                waiting.mask = mask;
                waiting.cancelled = thread.due;
                thread.seq = seq.0;
                thread.arrived = None;
                state.executes |= is_exec(waiting.made.nr as u32);
                let end = thread.due && !never_waits(waiting.made.nr as u64, &waiting.made.args);
                if end { Going::Cancel } else { Going::Yes }
            }
            _ => Going::No,
        }
    }

    /// The notification was answered here, without home. None when it was not waiting any more: then the answer must not be given. True
    /// when signals waited for its end, which nobody else will tell of.
    pub fn settled(&self, host: i32, id: u64) -> Option<bool> {
        let mut state = self.lock();
        let thread = state.threads.get_mut(&host)?;
        thread.waiting.take_if(|waiting| waiting.id == id)?;
        Some(std::mem::take(&mut thread.due))
    }

    /// The thread, by its number at home, that waits in mmap for home's word about a file: its number here, the notification, the
    /// descriptor.
    pub fn mapping(&self, tid: Tid) -> Option<(i32, u64, i32)> {
        let state = self.lock();
        let (&host, thread) = state.threads.iter().find(|(_, thread)| thread.tid == tid)?;
        let waiting = thread.waiting.as_ref()?;
        let waits = waiting.sent.is_none() && i64::from(waiting.made.nr) == libc::SYS_mmap;
        waits.then_some((host, waiting.id, waiting.made.args[4] as i32))
    }

    /// A reply came from home.
    pub fn replied(&self, reply: &Reply, payload: &[u8]) -> Replied {
        let mut state = self.lock();
        state.traffic += 1;
        let found = state.threads.iter_mut().find(|(_, thread)| thread.tid == reply.tid);
        let Some((&host, thread)) = found else {
            return Replied::Stale;
        };
        let open = |sent: &Option<Sent>| sent.as_ref().is_some_and(|sent| sent.seq == reply.seq.0);
        if reply.result == NEEDS_HOME {
            // Nothing was executed: the thread makes the call again, at home.
            thread.parked.take_if(|parked| parked.sent.seq == reply.seq.0);
            return match &mut thread.waiting {
                Some(waiting) if open(&waiting.sent) => {
                    waiting.sent = None;
                    Replied::NeedsHome { nr: waiting.made.nr }
                }
                _ => Replied::Kept,
            };
        }
        if let Some(waiting) = &thread.waiting
            && open(&waiting.sent)
        {
            if creates(waiting.made.nr.into())
                && let Ok(number @ 1..) = i32::try_from(reply.result)
            {
                let (id, number) = (waiting.id, Tid(number));
                return Replied::Made { host, id, number };
            }
            // Only under the tracer's eyes a restart code may reach the body, and handlers run before the call returns.
            if is_restart(reply.result) || thread.due {
                return match &waiting.sent {
                    Some(sent) => Replied::Due {
                        host,
                        scatter: sent.scatter.clone(),
                    },
                    None => Replied::Stale,
                };
            }
            return match thread.waiting.take() {
                Some(Waiting {
                    id, sent: Some(sent), ..
                }) => Replied::Answer {
                    host,
                    id,
                    scatter: sent.scatter,
                },
                _ => Replied::Stale,
            };
        }
        match &mut thread.parked {
            Some(parked) if parked.sent.seq == reply.seq.0 => {
                parked.over = Some(Over::Reply(parked.sent.clone(), reply.clone(), payload.to_vec()));
                Replied::Kept
            }
            _ => Replied::Stale,
        }
    }

    /// Changes with each call that goes home and each reply: while it stands, the deputy has done nothing.
    pub fn traffic(&self) -> u64 {
        self.lock().traffic
    }

    /// The body of a new thread or child is to be made: the flags of clone(2) that its creator asks for, if it still waits for that. From here
    /// on the call counts as open at home, to be made again.
    pub fn begin_creation(&self, host: i32, id: u64) -> Option<u64> {
        let mut state = self.lock();
        let running = state.phase == Phase::Running;
        let thread = state.threads.get_mut(&host)?;
        let waiting = thread.waiting.as_ref().filter(|waiting| running && waiting.id == id)?;
        let flags = flags(waiting.made.nr.into(), &waiting.made.args);
        park(thread);
        flags
    }

    /// The body of the new thread is there, or will never be.
    pub fn end_creation(&self, host: i32) {
        if let Some(thread) = self.lock().threads.get_mut(&host) {
            thread.arrived = None;
            thread.due = false;
        }
    }

    /// A thread was made here.
    pub fn add(&self, new: NewThread) {
        self.lock().threads.insert(new.host, Thread::new(&new));
    }

    /// The call of a thread is over, and its outputs are in place, but it was parked meanwhile: it gets the result when made again.
    pub fn over(&self, host: i32, result: i64) {
        let mut state = self.lock();
        let Some(thread) = state.threads.get_mut(&host) else {
            return;
        };
        if let Some(parked) = &mut thread.parked {
            parked.over = Some(Over::Result(result));
        }
    }

    /// From here on new calls wait; every thread is about to be interrupted.
    pub fn close(&self) {
        self.lock().phase = Phase::Closing;
    }

    /// Every thread was interrupted: gives the notifications to be answered with the restart code. Their calls are parked.
    pub fn stop(&self) -> Vec<u64> {
        let mut state = self.lock();
        state.phase = Phase::Stopping;
        state.threads.values_mut().filter_map(park).collect()
    }

    /// Parks the call of one interrupted thread.
    pub fn stop_one(&self, host: i32) -> Stop {
        let mut state = self.lock();
        match state.threads.get_mut(&host).and_then(park) {
            Some(id) => Stop::Answer(id),
            None => Stop::Free,
        }
    }

    /// Calls are served again.
    pub fn open(&self) {
        let mut state = self.lock();
        state.phase = Phase::Running;
        state.capturing = false;
    }

    /// Whether calls from the stub run natively.
    pub fn set_capturing(&self, capturing: bool) {
        self.lock().capturing = capturing;
    }

    /// Whether this thread's calls from the stub run natively.
    pub fn set_injecting(&self, host: i32, injecting: bool) {
        if let Some(thread) = self.lock().threads.get_mut(&host) {
            thread.injecting = injecting;
        }
    }

    /// Marks that signals wait for the end of the thread's call; gives the number of the call to be cancelled, the first time. `None`
    /// when the thread has no call at home.
    pub fn wait_for_call(&self, host: i32) -> Option<Option<Seq>> {
        let mut state = self.lock();
        let thread = state.threads.get_mut(&host)?;
        let Some(waiting) = thread.waiting.as_mut() else {
            // It is about to make a call that is open at home; the wish to end it follows then.
            let open = thread.arrived.is_some() || thread.parked.is_some();
            thread.due |= open;
            return open.then_some(None);
        };
        thread.due = true;
        let Some(Sent { seq, .. }) = waiting.sent else {
            // It is on its way, or one that the process comes home for: then they go with it.
            return Some(None);
        };
        if never_waits(waiting.made.nr as u64, &waiting.made.args) {
            return Some(None);
        }
        let first = !waiting.cancelled;
        waiting.cancelled = true;
        Some(first.then_some(Seq(seq)))
    }

    /// Takes the notification of a call that is over at home, to be answered by the tracer, with the call's number and the mask that held
    /// during it.
    pub fn take_due(&self, host: i32) -> Option<(u64, i32, Option<u64>)> {
        let mut state = self.lock();
        let thread = state.threads.get_mut(&host)?;
        let waiting = thread.waiting.take()?;
        thread.due = false;
        Some((waiting.id, waiting.made.nr, waiting.mask))
    }

    /// The mask that the thread's call brought with it.
    pub fn mask(&self, host: i32) -> Option<u64> {
        self.lock().threads.get(&host)?.waiting.as_ref()?.mask
    }

    /// Whether the thread waits for an answer.
    pub fn is_waiting(&self, host: i32) -> bool {
        self.lock()
            .threads
            .get(&host)
            .is_some_and(|thread| thread.waiting.is_some())
    }

    /// Whether the thread waits for an answer to this notification.
    pub fn waits(&self, host: i32, id: u64) -> bool {
        let state = self.lock();
        let waiting = state.threads.get(&host).and_then(|thread| thread.waiting.as_ref());
        waiting.is_some_and(|waiting| waiting.id == id)
    }

    /// Whether a thread has an execve open at home.
    pub fn executes(&self) -> bool {
        let mut state = self.lock();
        if state.executes {
            let open = |thread: &Thread| {
                let waiting = thread.waiting.as_ref().filter(|waiting| waiting.sent.is_some());
                let parked = thread.parked.as_ref().filter(|parked| parked.over.is_none());
                waiting.is_some_and(|waiting| is_exec(waiting.made.nr as u32))
                    || parked.is_some_and(|parked| is_exec(parked.made.nr as u32))
                    || thread.arrived.is_some_and(|(nr, _)| is_exec(nr as u32))
            };
            state.executes = state.threads.values().any(open);
        }
        state.executes
    }

    /// The thread's number at home.
    pub fn home_tid(&self, host: i32) -> Option<Tid> {
        self.lock().threads.get(&host).map(|thread| thread.tid)
    }

    /// The thread's number here.
    pub fn host_tid(&self, tid: Tid) -> Option<i32> {
        self.lock()
            .threads
            .iter()
            .find(|(_, thread)| thread.tid == tid)
            .map(|(host, _)| *host)
    }

    /// Forgets a thread that ended; how many are left.
    pub fn ended(&self, host: i32) -> usize {
        let mut state = self.lock();
        state.threads.remove(&host);
        state.threads.len()
    }

    /// Whether this is one of the threads, by its number here.
    pub fn knows(&self, host: i32) -> bool {
        self.lock().threads.contains_key(&host)
    }

    /// Threads that live.
    pub fn count(&self) -> usize {
        self.lock().threads.len()
    }

    /// What a thread takes along. With `apply`, a reply that is here is taken out, to be applied; the call is then over.
    pub fn leaving(&self, host: i32) -> Leaving {
        let mut state = self.lock();
        let Some(thread) = state.threads.get_mut(&host) else {
            return Leaving {
                seq: 0,
                in_flight: false,
                over: None,
            };
        };
        let over = thread
            .parked
            .take_if(|parked| parked.over.is_some())
            .and_then(|parked| parked.over);
        let in_flight = thread.parked.is_some() || thread.arrived.is_some();
        Leaving {
            seq: thread.seq,
            in_flight,
            over,
        }
    }
}

/// Turns a received call into a parked one, or into nothing when home does not have it: the thread makes it again either way.
fn park(thread: &mut Thread) -> Option<u64> {
    let waiting = thread.waiting.take()?;
    if waiting.sent.is_some() && creates(waiting.made.nr.into()) {
        // Home's half is not all of it: the thread asks home again, under the same number.
        thread.arrived = Some((waiting.made.nr, waiting.made.ip));
    } else if let Some(sent) = waiting.sent {
        thread.parked = Some(Parked {
            made: waiting.made,
            sent,
            mask: waiting.mask,
            over: None,
        });
    }
    Some(waiting.id)
}
