//! How late this machine wakes anybody: what a test that looks at a clock allows for beside what it tests.
//!
//! A thread on each CPU sleeps over and over, and keeps by how much it overslept. What the other work of a machine, or of the machine that
//! it is virtual on, costs a sleeper, it so costs these.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// How long the threads sleep.
const SLEEP: Duration = Duration::from_millis(10);
/// Less is not kept.
const LEAST: Duration = Duration::from_millis(1);
/// Entries that are kept at most, in tests that have run for long.
const MOST: usize = 1 << 16;

/// When somebody overslept, and by how much.
static OVERSLEPT: Mutex<VecDeque<(Instant, Duration)>> = Mutex::new(VecDeque::new());

/// Begins to measure, once in a process.
pub fn begin() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        let Ok(allowed) = sched_getaffinity(Pid::from_raw(0)) else {
            return;
        };
        for cpu in (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)) {
            std::thread::spawn(move || measure(cpu));
        }
    });
}

fn measure(cpu: usize) {
    let mut here = CpuSet::new();
    // Wherever else it runs it measures something, too.
    let _ = here.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &here));
    loop {
        let due = Instant::now() + SLEEP;
        std::thread::sleep(SLEEP);
        let now = Instant::now();
        let late = now.duration_since(due);
        if late > LEAST {
            let mut overslept = OVERSLEPT.lock().unwrap_or_else(PoisonError::into_inner);
            overslept.push_back((now, late));
            if overslept.len() > MOST {
                overslept.pop_front();
            }
        }
    }
}

/// The most that anybody overslept since then.
pub fn longest(since: Instant) -> Duration {
    let overslept = OVERSLEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let later = overslept.iter().rev().take_while(|(at, _)| *at >= since);
    later.map(|(_, late)| *late).max().unwrap_or_default()
}

/// What a hypervisor has taken from each CPU since boot, in hundredths of a second.
#[derive(Clone, Debug, Default)]
pub struct Stolen(Vec<u64>);

impl Stolen {
    /// Reads it.
    pub fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let cpus = stat
            .lines()
            .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
        let of = |line: &str| line.split_whitespace().nth(8).and_then(|ticks| ticks.parse().ok());
        Self(cpus.map(|line| of(line).unwrap_or(0)).collect())
    }

    /// What it has taken since then from the CPU that it took most from.
    pub fn since(&self) -> Duration {
        let now = Self::now();
        let taken = now.0.iter().zip(&self.0).map(|(now, then)| now.saturating_sub(*then));
        // One more, for what is rounded away.
        Duration::from_millis(10 * taken.max().map_or(0, |ticks| ticks + u64::from(ticks > 0)))
    }
}
