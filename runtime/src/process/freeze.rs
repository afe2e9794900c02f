//! Stopping all threads of a process so that nothing in it changes, and letting them go again as if nothing had been.
//!
//! ```text
//! seize every tid ─▶ interrupt ─▶ wait for each stop ─▶ list again ─▶ stable: frozen
//!                                        └─ deadline, death ─▶ undo: detach all, calls rewound
//! ```
//! Runs on the tracer thread: ptrace rights belong to a thread.

use super::rest;
use super::restart::{self, Standing, settle, take_back};
use super::stat::{is_dead, state};
use super::timers::Timers;
use super::waited::{Sleeper, monotonic};
use mosix_sys::ptrace::{self, Event, Regs};
use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

/// A stopped thread.
#[derive(Debug, Clone)]
pub struct FrozenThread {
    /// Thread id as this node numbers it.
    pub tid: i32,
    /// Registers as they travel, see [`settle`].
    pub regs: Regs,
    /// The result register as the kernel left it, for a release on the spot.
    pub raw: u64,
    /// How the thread stood.
    pub standing: Standing,
    /// When the time-out that its call's arguments show began to count, on this node's monotonic clock.
    pub since: Option<i64>,
    /// How often it had left a CPU, when it slept in a call with a relative time-out.
    pub switches: Option<u64>,
    /// The time-out that began at `since`, when a high-resolution timer kept it.
    pub whole: Option<Duration>,
}

impl FrozenThread {
    /// Takes down how a thread stands that has just stopped. `sleeper` is what was seen of it before.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn take(tid: i32, sleeper: Option<Sleeper>, settle: impl FnOnce(&mut Regs) -> Standing) -> io::Result<Self> {
        let mut regs = ptrace::regs(tid)?;
        take_back(tid, &mut regs);
        let raw = regs.rax();
        let slept = sleeper.and_then(Sleeper::slept);
        if regs.orig_rax() == libc::SYS_restart_syscall as u64 && raw as i64 == restart::ERESTART_RESTARTBLOCK {
            let call = slept.map_or(regs.orig_rax(), |slept| slept.nr);
            regs.set_orig_rax(call);
        }
        let mut standing = settle(&mut regs);
        let since = match standing {
            Standing::User | Standing::Short(_) => None,
            Standing::Again | Standing::Block if restart::brief(tid, &regs) => {
                regs.set_rax(restart::ERESTARTNOINTR as u64);
                standing = Standing::Again;
                None
            }
            Standing::Again | Standing::Block => restart::since(&regs, raw, slept.and_then(|slept| slept.time)),
        };
        // Of the others the arguments show the rest.
        let counts = since.is_some() && (!rest::writes_rest(regs.orig_rax()) || raw as i64 == restart::EINTR);
        Ok(Self {
            tid,
            regs,
            raw,
            standing,
            since,
            switches: slept.map(|slept| slept.switches),
            whole: slept.and_then(|slept| slept.whole).filter(|_| counts),
        })
    }

    /// Whether it goes on with a call that a stop had interrupted before, and was not seen to sleep in it: only then the call is known.
    /// Such a thread can go on here and nowhere else.
    pub fn is_unknown(&self) -> bool {
        self.standing == Standing::Block && self.regs.orig_rax() == libc::SYS_restart_syscall as u64
    }

    /// When its wait ends, by what is known.
    fn latest(&self) -> Option<i64> {
        self.since?.checked_add(i64::try_from(self.whole?.as_nanos()).ok()?)
    }
}

/// A process of which every thread is stopped under ptrace.
#[derive(Debug)]
pub struct Frozen {
    /// Thread-group id as this node numbers it.
    pub pid: i32,
    /// When the first thread was asked to stop: until then all of them ran.
    pub since: Instant,
    /// The threads, leader first.
    pub threads: Vec<FrozenThread>,
}

/// Why a process could not be frozen. It runs on.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// A thread did not stop in time.
    #[error("thread {tid} of process {pid} did not stop within {waited:?}: {what}")]
    Stuck {
        /// The process.
        pid: i32,
        /// The thread.
        tid: i32,
        /// How long it had.
        waited: Duration,
        /// What it seems to do.
        what: String,
        /// It waits for its vfork child.
        vfork: bool,
    },
    /// The process ended meanwhile.
    #[error("process {0} ended")]
    Ended(i32),
    /// The process is stopped by a signal.
    #[error("process {0} is stopped (^Z or SIGSTOP): continue it first")]
    Stopped(i32),
    /// A thread is about to sleep again in a wait that a signal had stopped.
    #[error("thread {tid} of process {pid} has just been continued: try again")]
    JustContinued {
        /// The process.
        pid: i32,
        /// The thread.
        tid: i32,
    },
    /// The leader thread has exited while others run.
    #[error("the leader thread of process {0} has exited")]
    ZombieLeader(i32),
    /// ptrace refused.
    #[error("thread {tid} cannot be traced: {error}")]
    Trace {
        /// The thread.
        tid: i32,
        /// The kernel's answer.
        error: io::Error,
    },
    /// /proc did not answer.
    #[error("process {pid}: {error}")]
    Proc {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// Thread ids of a process, the leader first.
pub fn threads(pid: i32) -> io::Result<Vec<i32>> {
    let mut tids = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(tid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            tids.push(tid);
        }
    }
    tids.sort_by_key(|tid| (*tid != pid, *tid));
    Ok(tids)
}

/// Waits for the next event of one tracee without ever blocking longer than the deadline. An end is seen and not taken: it belongs to
/// the loop that waits for everybody, which tells whoever has to know of it.
pub fn wait_for(tid: i32, deadline: Instant) -> io::Result<Option<Event>> {
    let begun = Instant::now();
    let mut look = begun + LOOK;
    let mut pause = Duration::from_micros(10);
    loop {
        if let Some(event) = ptrace::stop_or_end(tid)? {
            return Ok(Some(event));
        }
        let now = Instant::now();
        if now >= deadline {
            return Ok(None);
        }
        // Most stops are a matter of microseconds. Who yields on a busy machine comes back after everybody else: it sleeps instead.
        if now.duration_since(begun) < Duration::from_micros(30) {
            std::hint::spin_loop();
        } else {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_micros(200));
            if now >= look {
                look = now + LOOK;
                if ended(tid) {
                    return Ok(Some(Event::Killed(libc::SIGKILL, false)));
                }
            }
        }
    }
}

/// How often a wait for one thread looks whether that is dead without a word.
const LOOK: Duration = Duration::from_millis(5);

/// Whether a thread is dead. The kernel reports the end of a leader only after those of all other threads were taken, which whoever
/// waits for the leader does not do.
fn ended(tid: i32) -> bool {
    state(tid, tid).is_none_or(is_dead)
}

/// Whether no thread of a process lives. Of one whose leader has ended, others may.
pub fn gone(pid: i32) -> bool {
    threads(pid).map_or(true, |tids| tids.into_iter().all(ended))
}

/// Freezes a process that nobody traces.
///
/// # Errors
/// Every error leaves the process running as before, with no trace of the attempt.
///
/// Threads in `held` are this tracer's already and do not run (they linger in the stub): they are left alone.
pub fn freeze(pid: i32, held: &[i32], limit: Duration) -> Result<Frozen, FreezeError> {
    let deadline = Instant::now() + limit;
    let mut frozen = Frozen {
        pid,
        since: Instant::now(),
        threads: Vec::new(),
    };
    let mut seized = Vec::new();
    match collect(pid, held, deadline, limit, &mut frozen, &mut seized) {
        Ok(()) => {
            frozen.threads.sort_by_key(|thread| (thread.tid != pid, thread.tid));
            Ok(frozen)
        }
        Err(error) => {
            release(&frozen);
            for tid in seized {
                if !frozen.threads.iter().any(|thread| thread.tid == tid) {
                    let_go(tid);
                }
            }
            Err(error)
        }
    }
}

fn collect(
    pid: i32,
    held: &[i32],
    deadline: Instant,
    limit: Duration,
    frozen: &mut Frozen,
    seized: &mut Vec<i32>,
) -> Result<(), FreezeError> {
    let mut sleepers = HashMap::new();
    let mut timers = None;
    match state(pid, pid) {
        None => return Err(FreezeError::Ended(pid)),
        Some(state) if is_dead(state) && gone(pid) => return Err(FreezeError::Ended(pid)),
        Some(state) if is_dead(state) => return Err(FreezeError::ZombieLeader(pid)),
        // All threads stop together.
        Some('T') => return Err(FreezeError::Stopped(pid)),
        _ => {}
    }
    loop {
        let tids = threads(pid).map_err(|_| FreezeError::Ended(pid))?;
        let fresh: Vec<i32> = tids
            .into_iter()
            .filter(|tid| !seized.contains(tid) && !held.contains(tid))
            .collect();
        if fresh.is_empty() {
            if let Some(timers) = &timers {
                by_timers(frozen, timers);
            }
            return Ok(());
        }
        let mut running = Vec::with_capacity(fresh.len());
        for tid in fresh {
            // Until it is let go it may stand in code that only this tracer leads it out of: without the tracer it ends.
            match ptrace::seize(tid, ptrace::OPTIONS | libc::PTRACE_O_EXITKILL) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                Err(error) if tid != pid && state(pid, tid).is_none_or(is_dead) => {
                    tracing::debug!(tid, %error, "thread ended while being seized");
                    continue;
                }
                Err(error) => return Err(FreezeError::Trace { tid, error }),
            }
            seized.push(tid);
            running.push(tid);
            if let Some(sleeper) = Sleeper::look(pid, tid, timers.is_none()) {
                sleepers.insert(tid, sleeper);
            }
        }
        // Once: a thread that comes later has slept for no time.
        if timers.is_none() && sleepers.values().any(Sleeper::has_timer) {
            timers = Timers::read();
        }
        if frozen.threads.is_empty() {
            frozen.since = Instant::now();
        }
        for tid in running {
            if sleepers.get(&tid).is_some_and(|sleeper| !sleeper.still_sleeps()) {
                sleepers.remove(&tid);
            }
            let _ = ptrace::interrupt(tid);
        }
        let mut index = 0;
        while index < seized.len() {
            let tid = seized[index];
            index += 1;
            if frozen.threads.iter().any(|thread| thread.tid == tid) {
                continue;
            }
            match stop(pid, tid, deadline, limit, (seized, &mut sleepers))? {
                Some(thread) => frozen.threads.push(thread),
                None if tid == pid => return Err(FreezeError::Ended(pid)),
                None => {}
            }
        }
    }
}

/// Puts the beginnings of waits right by the deadlines of their timers.
fn by_timers(frozen: &mut Frozen, timers: &Timers) {
    let now = monotonic();
    let end = |thread: &FrozenThread| now.checked_add(i64::try_from(thread.whole?.as_nanos()).ok()?);
    let ends: Vec<i64> = frozen.threads.iter().filter_map(end).collect();
    let after = timers.again(&ends);
    for thread in &mut frozen.threads {
        if let (Some(latest), Some(end)) = (thread.latest(), end(thread))
            && let Some(deadline) = timers.deadline(after.as_ref(), latest, end)
            && let Some(since) = &mut thread.since
        {
            tracing::trace!(tid = thread.tid, earlier = latest - deadline, "the timer of a wait");
            *since = since.saturating_sub(latest.saturating_sub(deadline)).min(now);
        }
    }
}

/// Waits until one seized thread stands still; None when it ended. New threads are added to `seized`.
fn stop(
    pid: i32,
    tid: i32,
    deadline: Instant,
    limit: Duration,
    (seized, sleepers): (&mut Vec<i32>, &mut HashMap<i32, Sleeper>),
) -> Result<Option<FrozenThread>, FreezeError> {
    loop {
        let event = match wait_for(tid, deadline) {
            Ok(Some(event)) => event,
            Ok(None) => {
                let what = stuck(pid, tid);
                return Err(FreezeError::Stuck {
                    pid,
                    tid,
                    waited: limit,
                    what,
                    vfork: crate::reason::probe::in_vfork(pid),
                });
            }
            Err(_) => return Ok(None),
        };
        match event {
            Event::Stop(libc::SIGTRAP) => {
                let settle = |regs: &mut Regs| settle(regs, |fd| blocking(pid, fd));
                let thread = FrozenThread::take(tid, sleepers.remove(&tid), settle)
                    .map_err(|error| FreezeError::Trace { tid, error })?;
                if thread.is_unknown() {
                    let _ = put_back(&thread).and_then(|()| ptrace::cont(tid, 0));
                    return Err(FreezeError::JustContinued { pid, tid });
                }
                return Ok(Some(thread));
            }
            Event::Stop(_) => return Err(FreezeError::Stopped(pid)),
            Event::Signal(signal) => {
                // Any stop takes the pending interrupt away: ask again, while it stands. Asked in a later stop it would stop once more than
                // anybody waits for.
                let _ = ptrace::interrupt(tid);
                let _ = ptrace::cont(tid, signal);
            }
            Event::Ptrace(kind) => {
                if matches!(kind, libc::PTRACE_EVENT_CLONE) {
                    // It begins with a stop of its own.
                    if let Ok(new) = ptrace::event_message(tid) {
                        // It begins with a stop of its own; one more, asked for, would hold it again when it is to run.
                        seized.push(new as i32);
                    }
                } else if matches!(kind, libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK)
                    && let Ok(child) = ptrace::event_message(tid)
                {
                    let_go(child as i32);
                }
                let _ = ptrace::interrupt(tid);
                let _ = ptrace::cont(tid, 0);
            }
            Event::Exited(_) | Event::Killed(..) => return Ok(None),
            Event::Job(_) => {}
        }
    }
}

/// Detaches a tracee that may not have stopped yet, such as a child that inherited the tracer.
fn let_go(tid: i32) {
    let deadline = Instant::now() + Duration::from_secs(1);
    let _ = ptrace::interrupt(tid);
    while let Ok(Some(event)) = wait_for(tid, deadline) {
        let signal = if let Event::Signal(signal) = event { signal } else { 0 };
        if matches!(event, Event::Exited(_) | Event::Killed(..)) || ptrace::detach(tid, signal).is_ok() {
            return;
        }
    }
    tracing::warn!(tid, "could not be detached in time; it ends with this supervisor");
}

/// Says what a thread that does not stop seems to do.
fn stuck(pid: i32, tid: i32) -> String {
    match state(pid, tid) {
        Some('D') => {
            let call = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
            match call.split_whitespace().next() {
                Some("58") => "it waits in vfork for its child to execute a program".to_owned(),
                Some(nr) => format!("uninterruptible in system call {nr}"),
                None => "uninterruptible".to_owned(),
            }
        }
        Some(other) => format!("in state {other}"),
        None => "it is gone".to_owned(),
    }
}

/// Whether a descriptor is in blocking mode and of a kind whose writes can be cut short by a stop.
fn blocking(pid: i32, fd: i32) -> bool {
    let Ok(info) = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")) else {
        return false;
    };
    let flags = info
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    let Some(flags) = flags else { return false };
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
    let link = link.to_string_lossy();
    let stream = link.starts_with("pipe:") || link.starts_with("socket:") || link.starts_with("/dev/");
    flags & libc::O_NONBLOCK == 0 && (stream || fifo(pid, fd))
}

fn fifo(pid: i32, fd: i32) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|meta| meta.file_type().is_fifo())
}

/// Lets a frozen process run on as if it had never been stopped.
pub fn release(frozen: &Frozen) {
    for thread in &frozen.threads {
        if let Err(error) = put_back(thread).and_then(|()| ptrace::detach(thread.tid, 0)) {
            tracing::debug!(tid = thread.tid, %error, "thread is gone");
        }
    }
}

/// Restores the registers of a thread that has not run since the freeze, so that its call continues.
pub fn put_back(thread: &FrozenThread) -> io::Result<()> {
    let mut regs = thread.regs;
    // The same task still holds a restart block, and a short write keeps its count: both go on from the kernel's own result.
    if matches!(thread.standing, Standing::Block | Standing::Short(_)) {
        regs.set_rax(thread.raw);
    }
    ptrace::set_regs(thread.tid, &regs)
}
