//! Calls of a body, executed by its deputy's threads at most once each.
//!
//! A thread has one record. `seq` only grows: a call with the record's own number is the same call again (the link broke, or the body
//! moved while it was open) and gets the same answer; an older one is stale.
//!
//! ```text
//! Idle ── call ──▶ Open ── stub done ──▶ Answered(seq) ── next call ──▶ Open …
//! ```

use super::accounts::Accounts;
use super::arena::Arena;
use super::rest::{RESUMED, Resume};
use super::snapshot::Shown;
use super::{creation, exec, rest};
use crate::link::Session;
use crate::link::session::SendError;
use crate::process::restart::EINTR;
use crate::process::window::{ScriptError, Window, slot_offset};
use crate::syscall::rusage::{self, Elsewhere};
use crate::syscall::{policy, relocate};
use mosix_loader::script::Op;
use mosix_loader::script::abi::{SHARED, SLOT_BUFFER, SLOT_BUFFER_SIZE, STATE_DONE};
use mosix_wire::call::{Call, Exec, NEEDS_HOME, Reply};
use mosix_wire::frame::encode_body;
use mosix_wire::ids::{Epoch, NodeName, Pid, Seq, Tid};
use mosix_wire::link::ToHost;
use mosix_wire::spent::Spent;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Who may call, decided by the commit rules alone.
#[derive(Debug, Default)]
pub struct Gate {
    /// The host and epoch whose calls are accepted.
    pub open: Option<(NodeName, Epoch)>,
    /// A frame of that epoch was accepted: the point of no return has passed.
    pub seen: bool,
}

#[derive(Default)]
struct Record {
    seq: Seq,
    state: State,
    resume: Option<Resume>,
    /// Bytes that earlier parts of an interrupted write have written.
    written: u64,
    /// A stop ended the wait of a socket call, whose time-out is this: the call goes on by waiting for the rest.
    again: Option<Duration>,
    /// The answer is still to be sent, by the completion thread.
    unsent: bool,
}

#[derive(Default)]
#[expect(
    clippy::large_enum_variant,
    reason = "one for each thread; a box would cost each call an allocation"
)]
enum State {
    #[default]
    Idle,
    Open(Open),
    Answered(Reply, Vec<u8>),
}

struct Open {
    call: Call,
    begun: Begun,
    /// Judges the descriptor that the call opens.
    job: Option<Job>,
}

/// How a call is executed.
struct Begun {
    nr: u32,
    /// Offset of the buffer in the window.
    buffer: u64,
    /// Size of the buffer.
    size: usize,
    /// Whether the buffer is a span of the arena.
    span: bool,
    /// Its arguments in the deputy.
    args: [u64; 6],
    /// Operations that go before it in its script.
    before: usize,
    /// When its time-out began.
    since: Instant,
    /// The relative time-out that it began with.
    whole: Option<Duration>,
    /// A sleep is continued that was interrupted then.
    block: Option<Instant>,
    /// The script waits for the socket; this is executed when it is ready.
    next: Option<Op>,
}

/// What the away policy asks about the job.
pub type Job = Arc<dyn policy::JobView + Send + Sync>;

/// What an open call is, for whoever interrupts or resumes its thread.
#[derive(Debug, Clone, Copy)]
pub struct OpenCall {
    /// Number of the system call that the deputy executes for it.
    pub nr: u32,
    /// Its number in the thread.
    pub seq: Seq,
    /// Its time-out is zero: it ends by itself, and no signal may end it.
    pub brief: bool,
}

/// The answer of a call that ended while its body was at home.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The thread.
    pub tid: i32,
    /// The answer.
    pub reply: Reply,
    /// The bytes of its outputs.
    pub payload: Vec<u8>,
}

/// Takes answers of calls whose threads linger in the stub although their body is home.
pub type Linger = Box<dyn Fn(Ended) + Send + Sync>;

/// Calls with larger buffers are left to the completion thread.
const SMALL: u32 = 4096;

/// The window's completions.
#[derive(Default)]
struct Ring {
    /// The next entry.
    position: u32,
    /// Slots that were taken off by a thread that may not wait: the completion thread goes on with them.
    left: Vec<u32>,
}

/// Who takes a completion.
#[derive(Clone, Copy)]
enum Taker<'a> {
    /// The completion thread.
    Own,
    /// The receiving thread of this session, which must not wait.
    Link(&'a Arc<Session>),
}

/// What became of a completion.
enum Taken {
    /// It was a call, and is answered; the answer is to be flushed.
    Sent(Arc<Session>),
    /// It was a call, which goes on, or whose body is nowhere away.
    Call,
    /// It was no call.
    Script,
    /// This thread must not take it.
    Left,
}

/// The kernel half of one process.
pub struct Deputy {
    /// The process.
    pub pid: i32,
    window: Window,
    /// Slot of each thread.
    slots: RwLock<BTreeMap<i32, u32>>,
    records: Vec<Mutex<Record>>,
    arena: Mutex<Arena>,
    ring: Mutex<Ring>,
    births: Mutex<creation::Births>,
    gate: Mutex<Gate>,
    /// Where replies go; None while the body is home.
    session: RwLock<Option<Arc<Session>>>,
    linger: Linger,
    accounts: Arc<Accounts>,
    /// Calls that came before the deputy was ready for them; None when it is.
    deferred: Mutex<Option<Vec<(Call, Vec<u8>)>>>,
    /// The kernel may have written the rest of a sleep to the program's own address.
    soiled: AtomicBool,
    ended: AtomicBool,
}

impl Begun {
    /// The arguments to issue the call with again, and what is to be written where.
    fn rest(&self) -> Option<([u64; 6], Option<(u64, [u8; 16])>)> {
        rest::rest(self.nr, self.args, self.whole?, self.since.elapsed())
    }
}

impl std::fmt::Debug for Deputy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deputy").field("pid", &self.pid).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves a record in one of its states, never between two.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deputy {
    /// Makes the deputy of a process that has a window, and starts its completion thread.
    ///
    /// # Errors
    /// When no thread can be created.
    pub fn new(pid: i32, window: Window, linger: Linger, accounts: Arc<Accounts>) -> std::io::Result<Arc<Self>> {
        let deputy = Arc::new(Self {
            pid,
            window,
            slots: RwLock::default(),
            records: (0..mosix_wire::limits::THREADS).map(|_| Mutex::default()).collect(),
            arena: Mutex::default(),
            ring: Mutex::default(),
            births: Mutex::default(),
            gate: Mutex::default(),
            session: RwLock::default(),
            linger,
            accounts,
            deferred: Mutex::default(),
            soiled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&deputy);
        std::thread::Builder::new()
            .name(format!("calls-{pid}"))
            .spawn(move || {
                let mut bell = 0;
                while let Some(deputy) = weak.upgrade() {
                    if deputy.ended.load(Ordering::Acquire) {
                        break;
                    }
                    bell = deputy.complete(bell);
                }
            })?;
        Ok(deputy)
    }

    /// Takes room in the window's arena, by its offset there; none when that is full.
    pub(super) fn take_room(&self, size: usize) -> Option<u64> {
        lock(&self.arena).take(size)
    }

    /// Gives room back.
    pub(super) fn give_room(&self, room: u64, size: usize) {
        let _ = self.window.shared().discard(room, size);
        lock(&self.arena).give(room);
    }

    /// The session with the host of the body, while it is away.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.session.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The window.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Free slots for so many new threads, the lowest first.
    pub fn free_slots(&self, count: usize) -> Vec<u32> {
        let mut used: std::collections::HashSet<u32> = self.seats().into_iter().map(|(_, slot)| slot).collect();
        used.extend(lock(&self.births).slots());
        (0..mosix_wire::limits::THREADS as u32)
            .filter(|slot| !used.contains(slot))
            .take(count)
            .collect()
    }

    /// Gives a thread its slot, and says how its interrupted call goes on.
    pub fn seat(&self, tid: i32, slot: u32, seq: Seq, resume: Option<Resume>) {
        self.slots
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(tid, slot);
        if let Some(record) = self.records.get(slot as usize) {
            *lock(record) = Record {
                seq,
                resume,
                ..Record::default()
            };
        }
    }

    /// The slot of a thread.
    pub fn slot(&self, tid: i32) -> Option<u32> {
        self.slots
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&tid)
            .copied()
    }

    /// Threads and their slots.
    pub fn seats(&self) -> Vec<(i32, u32)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.iter().map(|(tid, slot)| (*tid, *slot)).collect()
    }

    /// The thread `creator` has made thread `tid`, which gets the seat that was reserved for it. False when it was to make none.
    pub fn born(&self, creator: i32, tid: i32) -> bool {
        let slot = lock(&self.births).of(creator);
        if let Some(slot) = slot {
            self.seat(tid, slot, Seq(0), None);
        }
        slot.is_some()
    }

    /// Whether `creator` was told to make a child.
    pub fn forks(&self, creator: i32) -> bool {
        lock(&self.births).is_child(creator)
    }

    /// A thread that is making something.
    pub fn creating(&self) -> Option<i32> {
        lock(&self.births).any()
    }

    /// The kept answer of a thread's last call holds no longer: made again, the call is executed again.
    pub fn forget(&self, tid: i32) {
        if let Some(record) = self.record(tid) {
            let mut record = lock(record);
            if matches!(record.state, State::Answered(..)) {
                record.state = State::Idle;
            }
        }
    }

    /// A thread is gone.
    pub fn leave(&self, tid: i32) {
        lock(&self.births).over(tid);
        let slot = self.slots.write().unwrap_or_else(PoisonError::into_inner).remove(&tid);
        if let Some(record) = slot.and_then(|slot| self.records.get(slot as usize)) {
            *lock(record) = Record::default();
        }
    }

    /// Runs system calls in any thread that has no open call; calls for that thread wait meanwhile.
    ///
    /// # Errors
    /// [`ScriptError::Busy`] when every thread has an open call; else as [`Window::run`].
    pub fn run(&self, ops: &[Op], limit: Duration) -> Result<Vec<i64>, ScriptError> {
        let mut seats = self.seats();
        seats.sort_unstable_by_key(|(_, slot)| *slot);
        for (tid, slot) in seats {
            let Some(record) = self.records.get(slot as usize) else {
                continue;
            };
            let record = lock(record);
            if !matches!(record.state, State::Open(_)) {
                // The lock is held for the whole script: the link reader posts to this slot only under it.
                return self.window.run_by(slot, tid, ops, limit);
            }
        }
        Err(ScriptError::Busy(0))
    }

    /// The process is gone: the completion thread ends.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        let _ = self.window.nudge();
    }

    /// The gate, to be changed by the commit rules.
    pub fn gate(&self) -> MutexGuard<'_, Gate> {
        lock(&self.gate)
    }

    /// Opens the gate to a host's epoch and sends replies there.
    pub fn open_to(&self, node: NodeName, epoch: Epoch, session: Arc<Session>) {
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = Some(session);
        *self.gate() = Gate {
            open: Some((node, epoch)),
            seen: false,
        };
    }

    /// Closes the gate: nothing is executed for any host; answers are kept.
    pub fn close(&self) {
        *self.gate() = Gate::default();
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a frame of this host and epoch may have effects; the first such frame is the point of no return.
    /// The second value tells that this was the first.
    pub fn admit(&self, node: &NodeName, epoch: Epoch) -> (bool, bool) {
        let mut gate = self.gate();
        match &gate.open {
            Some((open, at)) if open == node && *at == epoch => {
                let first = !gate.seen;
                gate.seen = true;
                (true, first)
            }
            _ => (false, false),
        }
    }

    /// Whether the thread's interrupted call has not been made again yet.
    pub fn is_cut(&self, tid: i32) -> bool {
        self.record(tid).is_some_and(|record| lock(record).resume.is_some())
    }

    /// What its bodies have used on hosts.
    pub fn spent(&self) -> Spent {
        self.accounts.own(self.pid)
    }

    /// A thread that has no open call, the lowest first.
    pub fn idle(&self) -> Option<i32> {
        let mut seats = self.seats();
        seats.sort_unstable();
        seats
            .into_iter()
            .map(|(tid, _)| tid)
            .find(|tid| self.open(*tid).is_none())
    }

    /// Runs system calls in this thread.
    ///
    /// # Errors
    /// [`ScriptError::Busy`] when it has an open call; else as [`Window::run`].
    pub fn run_in(&self, tid: i32, ops: &[Op], limit: Duration) -> Result<Vec<i64>, ScriptError> {
        let busy = || ScriptError::Busy(0);
        let slot = self.slot(tid).ok_or_else(busy)?;
        let record = lock(self.records.get(slot as usize).ok_or_else(busy)?);
        if matches!(record.state, State::Open(_)) {
            return Err(busy());
        }
        // The lock is held for the whole script, as in `run`.
        self.window.run_by(slot, tid, ops, limit)
    }

    /// The last number used by a thread.
    pub fn seq(&self, tid: i32) -> Seq {
        self.record(tid).map_or(Seq(0), |record| lock(record).seq)
    }

    fn record(&self, tid: i32) -> Option<&Mutex<Record>> {
        self.records.get(self.slot(tid)? as usize)
    }

    /// The open call of a thread.
    pub fn open(&self, tid: i32) -> Option<OpenCall> {
        let record = lock(self.record(tid)?);
        match &record.state {
            State::Open(open) => Some(OpenCall {
                nr: match open.begun.next {
                    Some(_) => libc::SYS_ppoll as u32,
                    None => open.begun.nr,
                },
                seq: record.seq,
                brief: open.begun.whole.is_some_and(|time| time.is_zero()),
            }),
            _ => None,
        }
    }

    /// What a program gets that a thread is executing.
    pub fn executing(&self, tid: i32) -> Option<Box<Exec>> {
        match &lock(self.record(tid)?).state {
            State::Open(open) => open.call.exec.clone(),
            _ => None,
        }
    }

    /// The kept answer of a thread's last call.
    pub fn answered(&self, tid: i32) -> Option<(Reply, Vec<u8>)> {
        match &lock(self.record(tid)?).state {
            State::Answered(reply, payload) => Some((reply.clone(), payload.clone())),
            _ => None,
        }
    }

    /// A stop cut a blocking write of this thread short: so many bytes count towards its result.
    pub fn wrote(&self, tid: i32, bytes: u64) {
        if let Some(record) = self.record(tid) {
            lock(record).written += bytes;
        }
    }

    /// From here on calls wait.
    pub fn defer(&self) {
        lock(&self.deferred).get_or_insert_default();
    }

    /// The calls that waited will not be made after all.
    pub fn forget_deferred(&self) {
        *lock(&self.deferred) = None;
    }

    /// Makes the calls that waited, and lets those that come through.
    pub fn undefer(&self, job: &Job) {
        let calls = lock(&self.deferred).take();
        for (call, payload) in calls.into_iter().flatten() {
            self.call(call, &payload, job, None);
        }
    }

    /// Makes a call at home that the thread was in when it left, and that no host has made again.
    pub fn take_up(&self, call: Call, payload: &[u8]) {
        self.execute(call, payload, None, None);
    }

    /// Executes a call that the gate admitted, or answers it again. `on` is given by the receiving thread of that session: it then answers
    /// a call that is over at once.
    pub fn call(&self, call: Call, payload: &[u8], job: &Job, on: Option<&Arc<Session>>) {
        if let Some(deferred) = &mut *lock(&self.deferred) {
            deferred.push((call, payload.to_vec()));
            return;
        }
        self.execute(call, payload, Some(job), on);
    }

    fn execute(&self, call: Call, payload: &[u8], job: Option<&Job>, on: Option<&Arc<Session>>) {
        let Some(slot) = self.slot(call.tid.0) else {
            tracing::warn!(
                pid = self.pid,
                tid = call.tid.0,
                "a host called for a thread that does not exist"
            );
            return;
        };
        let Some(record) = self.records.get(slot as usize) else {
            return;
        };
        let mut record = lock(record);
        tracing::trace!(tid = call.tid.0, seq = call.seq.0, nr = call.nr, args = ?call.args, last = record.seq.0, epoch = call.epoch.0, "call");
        if call.seq < record.seq {
            return;
        }
        if call.seq == record.seq && !matches!(record.state, State::Idle) {
            match &mut record.state {
                State::Answered(reply, bytes) => self.send(reply, bytes),
                // Of the body that makes it now.
                State::Open(open) if open.call.exec.is_some() => open.call.exec = call.exec,
                _ => {}
            }
            return;
        }
        record.seq = call.seq;
        record.written = 0;
        record.again = None;
        record.unsent = false;
        record.state = State::Idle;
        let resume = record.resume.take().filter(|resume| {
            let (Resume::Block { nr, .. } | Resume::Rest { nr, .. } | Resume::Short { nr, .. }) = resume;
            // Another call that happens to be of the same kind, such as a handler's own write, is no continuation.
            *nr == call.nr && call.seq == RESUMED
        });
        let made = creation::asks(&call).filter(|_| job.is_some());
        let plain = call.exec.is_none() || exec::is_native(self.pid);
        if made.is_none() && job.is_some_and(|job| !plain || !policy::permitted(&call, payload, job.as_ref())) {
            let reply = reply(&call, NEEDS_HOME, vec![0; call.outputs.len()]);
            self.send(&reply, &[]);
            record.state = State::Answered(reply, Vec::new());
            return;
        }
        let started = match made {
            Some(made) => self.start_creation(slot, &call, made),
            None => self.start(slot, &call, payload, resume, &mut record.written),
        };
        match started {
            Ok(begun) => {
                let job = job.filter(|_| policy::opens(call.nr)).map(Arc::clone);
                record.state = State::Open(Open { call, begun, job });
                // Without the lock: the completion thread may want it before this one runs again.
                drop(record);
                if let Some(session) = on {
                    // Where all of this shares a CPU, the deputy runs before this thread does again.
                    let _ = self.window.wake_and_look(slot);
                    self.look(session);
                } else {
                    let _ = self.window.wake(slot);
                }
            }
            Err(error) => {
                tracing::warn!(pid = self.pid, tid = call.tid.0, nr = call.nr, %error, "call could not be executed");
                let errno = if made.is_some() { libc::EAGAIN } else { libc::ENOMEM };
                let reply = reply(&call, -i64::from(errno), vec![0; call.outputs.len()]);
                self.send(&reply, &[]);
                record.state = State::Answered(reply, Vec::new());
            }
        }
    }

    /// Gives a slot the call.
    fn start(
        &self,
        slot: u32,
        call: &Call,
        payload: &[u8],
        resume: Option<Resume>,
        written: &mut u64,
    ) -> Result<Begun, StartError> {
        let size = call.size as usize + exec::room(call);
        let span = size > SLOT_BUFFER_SIZE as usize;
        let buffer = if span {
            lock(&self.arena).take(size).ok_or(StartError::Full)?
        } else {
            slot_offset(slot) + SLOT_BUFFER
        };
        let mut bytes = vec![0; size];
        let base = SHARED + buffer;
        let placed = relocate::place(call, payload, &mut bytes, base).map_err(StartError::from);
        let posted = placed.and_then(|args| {
            let mut ops = Vec::new();
            if let Some(exec) = &call.exec {
                let (before, data) = exec::before(self.pid, exec, base + u64::from(call.size));
                bytes[call.size as usize..].copy_from_slice(&data);
                ops = before;
            }
            let mut begun = Begun {
                nr: call.nr,
                buffer,
                size,
                span,
                args,
                before: ops.len(),
                since: Instant::now(),
                whole: rest::whole(call.nr, &args, |at| rest::at(&bytes, at.checked_sub(base)?)),
                block: None,
                next: None,
            };
            let mut op = Op::may(i64::from(call.nr), args);
            match resume {
                Some(Resume::Block { at, .. }) => {
                    begun.block = Some(at);
                    self.soiled.store(true, Ordering::Release);
                    op = Op::may(libc::SYS_restart_syscall, [0; 6]);
                }
                Some(Resume::Short { written: before, .. }) if before <= args[2] => {
                    op.args[1] += before;
                    op.args[2] -= before;
                    *written = before;
                }
                Some(Resume::Rest { since, socket, .. }) => {
                    begun.since = since;
                    if let Some(whole) = socket {
                        begun.next = Some(op);
                        op = self.wait_for_socket(slot, &begun, whole)?;
                    } else if let Some((args, time)) = begun.rest() {
                        op.args = args;
                        rest::put(&mut bytes, time, base);
                    }
                }
                _ => {}
            }
            self.window.shared().write(buffer, &bytes).map_err(ScriptError::from)?;
            ops.push(op);
            self.window.place(slot, &ops)?;
            Ok(begun)
        });
        if posted.is_err() && span {
            lock(&self.arena).give(buffer);
        }
        posted
    }

    /// Lets the thread of a slot make another one, or a child.
    fn start_creation(&self, slot: u32, call: &Call, made: creation::Kind) -> Result<Begun, StartError> {
        let creator = call.tid.0;
        // Once the gate is shut, whoever takes the body back finds all that has begun.
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner);
        if session.is_none() {
            return Err(StartError::Nowhere);
        }
        let buffer = slot_offset(slot) + SLOT_BUFFER;
        let (op, prepared) = match made {
            // The memory of a deputy is nobody's: there the two are alike.
            creation::Kind::Child | creation::Kind::Borrower => {
                lock(&self.births).child(creator);
                (creation::fork(call.args[0]), Ok(()))
            }
            creation::Kind::Thread => {
                let seats = self.seats();
                let new = lock(&self.births).reserve(creator, &seats).ok_or(StartError::Full)?;
                let (op, bytes) = creation::spawn(call.args[0], new, SHARED + buffer);
                let prepared = self.window.reset(new);
                (op, prepared.and_then(|()| self.window.shared().write(buffer, &bytes)))
            }
        };
        let placed = prepared.map_err(ScriptError::from);
        if let Err(error) = placed.and_then(|()| self.window.place(slot, &[op])) {
            lock(&self.births).over(creator);
            return Err(error.into());
        }
        Ok(Begun {
            nr: op.nr,
            buffer,
            size: 0,
            span: false,
            args: op.args,
            before: 0,
            since: Instant::now(),
            whole: None,
            block: None,
            next: None,
        })
    }

    /// Writes what a wait for a call's socket needs behind the slot's buffer of calls, and gives the call that waits.
    fn wait_for_socket(&self, slot: u32, begun: &Begun, whole: Duration) -> Result<Op, ScriptError> {
        let at = SLOT_BUFFER_SIZE - rest::SOCKET_WAIT as u64;
        let room = if begun.span { at } else { begun.size as u64 };
        if room > at {
            return Err(ScriptError::Busy(slot));
        }
        let (bytes, op) = rest::socket_wait(
            begun.nr,
            begun.args[0],
            whole.saturating_sub(begun.since.elapsed()),
            SHARED + slot_offset(slot) + SLOT_BUFFER + at,
        );
        self.window.write_buffer(slot, at as usize, &bytes)?;
        Ok(op)
    }

    /// The arguments with which a thread's open call is issued again after a stop ended it: its time-out is what is left.
    pub fn rest(&self, tid: i32) -> Option<[u64; 6]> {
        let record = lock(self.record(tid)?);
        let State::Open(open) = &record.state else { return None };
        let (args, time) = open.begun.rest()?;
        if let Some((address, bytes)) = time
            && let Some(at) = address.checked_sub(SHARED)
        {
            self.window.shared().write(at, &bytes).ok()?;
        }
        Some(args)
    }

    /// The descriptor whose socket's time-out a thread's open call keeps, and whether the call sends.
    pub fn socket(&self, tid: i32) -> Option<(i32, bool)> {
        let record = lock(self.record(tid)?);
        let State::Open(open) = &record.state else { return None };
        rest::socket(open.begun.nr, &open.begun.args)
    }

    /// A stop ended a thread's open socket call, whose time-out is this: it goes on with the rest.
    pub fn wait_again(&self, tid: i32, whole: Duration) {
        if let Some(record) = self.record(tid) {
            lock(record).again = Some(whole);
        }
    }

    /// Whether something was written to the memory of a deputy that is not its body's, since this was last asked.
    pub fn soiled(&self) -> bool {
        self.soiled.swap(false, Ordering::AcqRel)
    }

    /// Takes ended calls off the ring and answers them.
    fn complete(&self, bell: u32) -> u32 {
        let mut sent = None;
        let mut ring = lock(&self.ring);
        let left = std::mem::take(&mut ring.left);
        let mut left = left.into_iter();
        while let Some(slot) = left.next().or_else(|| self.next_completion(&mut ring)) {
            if let Taken::Sent(session) = self.completed(slot, Taker::Own) {
                sent = Some(session);
            }
        }
        drop(ring);
        // All that ended meanwhile is one write, also with what the link's thread is about to begin.
        if let Some(session) = sent {
            session.flush_soon();
        }
        self.window.wait_bell(bell, Duration::from_secs(1)).unwrap_or(bell)
    }

    fn next_completion(&self, ring: &mut Ring) -> Option<u32> {
        let slot = self.window.take_completion(ring.position).ok()??;
        ring.position = ring.position.wrapping_add(1);
        Some(slot)
    }

    /// Takes ended calls off the ring on the receiving thread of a session, without waiting. The stub has woken nobody for them.
    fn look(&self, session: &Arc<Session>) {
        // Who has the ring looks at it again after a completion that it has not seen.
        let mut others = true;
        if let Ok(mut ring) = self.ring.try_lock() {
            others = false;
            while let Some(slot) = self.next_completion(&mut ring) {
                match self.completed(slot, Taker::Link(session)) {
                    Taken::Sent(_) | Taken::Call => {}
                    Taken::Script => others = true,
                    Taken::Left => {
                        ring.left.push(slot);
                        others = true;
                    }
                }
            }
        }
        if others {
            let _ = self.window.nudge();
        }
    }

    /// Answers an ended call, or sends an answer again that was left.
    fn completed(&self, slot: u32, taker: Taker<'_>) -> Taken {
        let Some(record) = self.records.get(slot as usize) else {
            return Taken::Script;
        };
        let mut record = match (taker, record.try_lock()) {
            (_, Ok(record)) => record,
            (Taker::Own, Err(_)) => lock(record),
            // The tracer thread runs a script there, and waits for its end with the lock.
            (Taker::Link(_), Err(_)) => return Taken::Left,
        };
        if std::mem::take(&mut record.unsent)
            && let State::Answered(reply, payload) = &record.state
        {
            let (reply, payload) = (reply.clone(), payload.clone());
            drop(record);
            return self.answer(slot, reply, payload, taker);
        }
        if self.window.state(slot) != Ok(STATE_DONE) {
            return Taken::Script;
        }
        let mut open = match std::mem::take(&mut record.state) {
            // What may wait: a script that closes a descriptor, and much to send.
            State::Open(open) if matches!(taker, Taker::Link(_)) && (open.job.is_some() || open.call.size > SMALL) => {
                record.state = State::Open(open);
                return Taken::Left;
            }
            State::Open(open) => open,
            // A script of the tracer thread, which takes its results itself. A kept answer stays: it is the only one.
            state => {
                record.state = state;
                return Taken::Script;
            }
        };
        let before = open.begun.before;
        let result = self.window.result(slot, before + 1, before);
        let mut result = result.unwrap_or(-i64::from(libc::EIO));
        let _ = self.window.release(slot);
        if let Some(op) = self.goes_on(slot, &mut open.begun, &mut result, record.again.take())
            && self.window.post(slot, &[op]).is_ok()
        {
            record.state = State::Open(open);
            return Taken::Call;
        }
        let begun = open.begun;
        if matches!(i64::from(begun.nr), libc::SYS_clone3 | libc::SYS_clone) {
            lock(&self.births).over(open.call.tid.0);
        }
        let written = std::mem::take(&mut record.written);
        if written > 0 {
            result = if result >= 0 {
                result + written as i64
            } else {
                written as i64
            };
        }
        if let (Some(job), Ok(fd @ 0..)) = (&open.job, i32::try_from(result)) {
            result = self.judge_opened(slot, open.call.tid.0, fd, job);
        }
        let mut bytes = vec![0; open.call.size as usize];
        let _ = self.window.shared().read(begun.buffer, &mut bytes);
        if let Some(at) = begun.block.filter(|_| result < 0) {
            rest::show_rest(&mut bytes, begun.nr, &begun.args, SHARED + begun.buffer, at.elapsed());
        }
        rusage::at_home(&open.call, result, &mut bytes, self.accounts.as_ref());
        let (lengths, parts) = relocate::collect(&open.call, result, &bytes);
        let mut payload = Vec::with_capacity(parts.iter().map(|(_, length)| *length as usize).sum());
        for (offset, length) in parts {
            payload.extend_from_slice(&bytes[offset as usize..(offset + length) as usize]);
        }
        if begun.span {
            let _ = self.window.shared().discard(begun.buffer, begun.size);
            lock(&self.arena).give(begun.buffer);
        }
        let reply = reply(&open.call, result, lengths);
        record.state = State::Answered(reply.clone(), payload.clone());
        drop(record);
        self.answer(slot, reply, payload, taker)
    }

    /// Sends the kept answer of a slot, without its record's lock: the session may have no room, and gets some only from its receiving
    /// thread, which may want the record.
    fn answer(&self, slot: u32, reply: Reply, payload: Vec<u8>, taker: Taker<'_>) -> Taken {
        match self.send_later(&reply, &payload, taker) {
            Ok(Some(session)) => Taken::Sent(session),
            Ok(None) => {
                (self.linger)(Ended {
                    tid: reply.tid.0,
                    reply,
                    payload,
                });
                Taken::Call
            }
            Err(NotHere) => {
                if let Some(record) = self.records.get(slot as usize) {
                    lock(record).unsent = true;
                }
                Taken::Left
            }
        }
    }

    /// Closes a descriptor that no host may have, or makes a file of /proc describe the whole process; gives the call's result.
    fn judge_opened(&self, slot: u32, tid: i32, fd: i32, job: &Job) -> i64 {
        let what = match policy::opened(self.pid, fd, job.as_ref()) {
            Err(what) => what,
            Ok(()) if self.show_whole(slot, tid, fd, job.as_ref()) == Shown::Half => "a half of a process in /proc",
            Ok(()) => return fd.into(),
        };
        let close = Op::may(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]);
        let closed = self.window.run(slot, &[close], CLOSE);
        tracing::warn!(pid = self.pid, fd, what, ?closed, "a host opened what it cannot have");
        // A truthful body opens it at home.
        NEEDS_HOME
    }

    /// What an ended script of an open call is followed by, if the call is not over: the wait for its socket, or itself after that wait.
    fn goes_on(&self, slot: u32, begun: &mut Begun, result: &mut i64, again: Option<Duration>) -> Option<Op> {
        if let Some(op) = begun.next.take() {
            if *result > 0 {
                return Some(op);
            }
            if *result == 0 {
                *result = rest::socket_timed_out(begun.nr);
            }
            return None;
        }
        let whole = again.filter(|_| *result == EINTR)?;
        begun.next = Some(Op::may(i64::from(begun.nr), begun.args));
        self.wait_for_socket(slot, begun, whole).ok()
    }

    /// Sends a reply to where the body is, if it is away.
    fn send(&self, reply: &Reply, payload: &[u8]) {
        if let Ok(Some(session)) = self.send_later(reply, payload, Taker::Own) {
            session.flush();
        }
    }

    /// Leaves a reply to the next flush of the session that it gives; none when the body is nowhere away.
    fn send_later(&self, reply: &Reply, payload: &[u8], taker: Taker<'_>) -> Result<Option<Arc<Session>>, NotHere> {
        let Some(session) = self.session.read().unwrap_or_else(PoisonError::into_inner).clone() else {
            return Ok(None);
        };
        let body = match encode_body(&ToHost::Reply(reply.clone())) {
            Ok(body) => body,
            Err(error) => {
                tracing::error!(%error, "a reply cannot be encoded");
                return Ok(Some(session));
            }
        };
        let sent = match taker {
            Taker::Own => session.send_later(&body, &[payload]),
            Taker::Link(own) if Arc::ptr_eq(own, &session) => session.try_send_amid(&body, &[payload]),
            Taker::Link(_) => return Err(NotHere),
        };
        match sent {
            Ok(()) => {}
            Err(SendError::Full) => return Err(NotHere),
            Err(error) => tracing::debug!(pid = self.pid, %error, "reply not sent; it is kept"),
        }
        Ok(Some(session))
    }
}

/// A receiving thread may not send this answer: it would wait for room, or the session is another one.
#[derive(Debug)]
struct NotHere;

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("the window is full")]
    Full,
    #[error("its body is away no more")]
    Nowhere,
    #[error(transparent)]
    Malformed(#[from] relocate::Malformed),
    #[error(transparent)]
    Script(#[from] ScriptError),
}

/// How long closing a descriptor may take before the answer is given all the same.
const CLOSE: Duration = Duration::from_secs(1);

fn reply(call: &Call, result: i64, lengths: Vec<u32>) -> Reply {
    Reply {
        pid: Pid(call.pid.0),
        tid: Tid(call.tid.0),
        seq: call.seq,
        result,
        lengths,
    }
}
