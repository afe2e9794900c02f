//! What all threads of a supervisor know about its job.
//!
//! Written by the tracer thread (placements) and the notify thread (programs, notes); read by the job socket for `mosix ps`.
//! The lock is held for single reads and writes only, never across a system call that can block.

use mosix_wire::ids::JobId;
use mosix_wire::job::{Job, Place, Why};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most notes that a job keeps: a job that starts set-uid programs in a loop must not grow its supervisor.
const NOTES: usize = 32;

/// What the engine knows about one process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// Where the body is.
    pub place: Place,
    /// How often it has moved.
    pub moves: u32,
    /// It is on its way now.
    pub moving: bool,
    /// Frozen because of lost contact.
    pub waiting: bool,
    /// What the body uses on its host, when it is away, and CPU time left on former hosts.
    pub usage: Usage,
    /// Why it cannot move, where the engine found more than [`crate::reason::probe`] can see.
    pub stuck: Option<Why>,
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            place: Place::Home,
            moves: 0,
            moving: false,
            waiting: false,
            usage: Usage::default(),
            stuck: None,
        }
    }
}

/// What a body uses, or used, away from home.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// CPU time on hosts in nanoseconds.
    pub cpu_ns: u64,
    /// Resident bytes on the present host.
    pub resident: u64,
    /// Threads on the present host.
    pub threads: u32,
    /// A thread of the body was running there.
    pub running: bool,
}

/// The job, shared by the supervisor's threads.
#[derive(Debug)]
pub struct Shared {
    inner: Mutex<Inner>,
    id: JobId,
    supervisor: i32,
    own_filters: AtomicU32,
}

#[derive(Debug)]
struct Inner {
    job: Job,
    placements: BTreeMap<i32, Placement>,
    programs: BTreeMap<i32, String>,
}

/// Most names of programs kept; older ones are found in /proc.
const PROGRAMS: usize = 4096;

impl Shared {
    /// Starts with what is known before the first process runs.
    pub fn new(job: Job) -> Self {
        Self {
            id: job.id,
            supervisor: job.supervisor.0,
            own_filters: AtomicU32::new(0),
            inner: Mutex::new(Inner {
                job,
                placements: BTreeMap::new(),
                programs: BTreeMap::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every write below is a single assignment: a panic elsewhere leaves nothing half-written.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The job's id.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// The supervisor's pid.
    pub fn supervisor(&self) -> i32 {
        self.supervisor
    }

    /// How many seccomp filters the job's processes have by birth: more are a program's own.
    pub fn own_filters(&self) -> u32 {
        self.own_filters.load(Ordering::Relaxed)
    }

    /// Says so, before anybody asks.
    pub fn set_own_filters(&self, count: u32) {
        self.own_filters.store(count, Ordering::Relaxed);
    }

    /// The job as it is now.
    pub fn job(&self) -> Job {
        self.lock().job.clone()
    }

    /// The first process of the job.
    pub fn first(&self) -> i32 {
        self.lock().job.first.0
    }

    /// Adds a sentence to the job's notes, once; beyond a few dozen they are dropped.
    pub fn note(&self, note: String) -> bool {
        let notes = &mut self.lock().job.notes;
        if notes.len() >= NOTES || notes.contains(&note) {
            return false;
        }
        notes.push(note);
        true
    }

    /// What the engine knows about `pid`; the default for a process that never moved.
    pub fn placement(&self, pid: i32) -> Placement {
        self.lock().placements.get(&pid).cloned().unwrap_or_default()
    }

    /// Changes what is known about `pid`.
    pub fn place(&self, pid: i32, change: impl FnOnce(&mut Placement)) {
        change(self.lock().placements.entry(pid).or_default());
    }

    /// Thread `tid` is about to execute `path`.
    pub(super) fn executed(&self, tid: i32, path: &[u8]) {
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
        let name = String::from_utf8_lossy(name).into_owned();
        let programs = &mut self.lock().programs;
        if programs.len() >= PROGRAMS && !programs.contains_key(&tid) {
            programs.pop_first();
        }
        programs.insert(tid, name);
    }

    /// The last program that `pid` tried to execute, without its folder.
    pub(super) fn last_executed(&self, pid: i32) -> Option<String> {
        self.lock().programs.get(&pid).cloned()
    }

    /// Forgets a process that ended.
    pub fn forget(&self, pid: i32) {
        let mut inner = self.lock();
        inner.placements.remove(&pid);
        inner.programs.remove(&pid);
    }

    /// Whether any body of the job is away, or on its way.
    pub fn any_away(&self) -> bool {
        self.lock()
            .placements
            .values()
            .any(|p| p.place != Place::Home || p.moving)
    }
}
