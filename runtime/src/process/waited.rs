//! How long a thread has been asleep in the call that a freeze interrupts: read from the scheduler, with no cost before the freeze.
//!
//! `se.exec_start` of /proc/PID/task/TID/sched is the last moment the thread was on a CPU, in that CPU's own clock. Read once while it
//! sleeps and once when it was woken for its stop *on the same CPU*, the difference is the time asleep; so it is kept on that CPU in
//! between. That clock leaves out what a hypervisor steals and what interrupts take: the difference is never too large, so no time-out ends
//! early. Without the file (no CONFIG_SCHED_DEBUG) nothing is known, and a time-out begins again.

use super::{asleep, rest};
use mosix_sys::procmem::ProcMem;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use std::time::Duration;

/// CLOCK_MONOTONIC of the calling thread, in nanoseconds.
pub fn monotonic() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// What the scheduler says about a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sched {
    /// Last moment on a CPU, nanoseconds of that CPU's clock.
    last_ran: u64,
    /// How often it left a CPU.
    switches: u64,
    /// How often it did so to sleep.
    sleeps: u64,
    cpu: usize,
}

/// A thread that sleeps in a call with a relative time-out, kept on its CPU.
#[derive(Debug)]
pub struct Sleeper {
    pid: i32,
    tid: i32,
    before: Sched,
    affinity: Option<CpuSet>,
    nr: u64,
    whole: Option<Duration>,
}

/// A sleep that a stop interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slept {
    /// The call.
    pub nr: u64,
    /// How often the thread had left a CPU when it slept: while this stays the same, it has not run.
    pub switches: u64,
    /// How long it had been asleep, when that is known.
    pub time: Option<Duration>,
    /// The time-out of its call, when a high-resolution timer keeps it.
    pub whole: Option<Duration>,
}

impl Sleeper {
    /// Looks at a thread before it is interrupted; `None` when it does not sleep in such a call, or the kernel does not tell. `timer` tells
    /// whether the kernel's list of timers is going to be read, see [`super::timers`].
    pub fn look(pid: i32, tid: i32, timer: bool) -> Option<Self> {
        let (nr, args) = asleep::call(pid, tid)?;
        let timeout = rest::timeout(nr, &args)?;
        let read = |at| {
            let mut bytes = [0; 16];
            ProcMem::guest(tid).read(at, &mut bytes).ok().map(|()| bytes)
        };
        let whole = if timer { rest::shown(timeout, &args, read) } else { None };
        let before = sched(pid, tid)?;
        let thread = Pid::from_raw(tid)?;
        let affinity = sched_getaffinity(Some(thread)).ok();
        let mut here = CpuSet::new();
        if before.cpu < CpuSet::MAX_CPU {
            here.set(before.cpu);
        }
        let kept = sched_setaffinity(Some(thread), &here).is_ok();
        Some(Self {
            pid,
            tid,
            before,
            affinity: affinity.filter(|_| kept),
            nr,
            whole,
        })
    }

    /// Whether a timer of the kernel's list is its own.
    pub fn has_timer(&self) -> bool {
        self.whole.is_some()
    }

    /// Whether it has not run since it was looked at.
    pub fn still_sleeps(&self) -> bool {
        switches(self.pid, self.tid) == Some(self.before.switches)
    }

    /// The sleep out of which the thread was woken for the stop in which it stands now. `None` when it has slept once more in between: it
    /// may be in another call, which has only just begun.
    pub fn slept(self) -> Option<Slept> {
        let now = sched(self.pid, self.tid)?;
        // Its stop is one more.
        if now.sleeps.saturating_sub(self.before.sleeps) > 1 {
            return None;
        }
        // Zero is no moment. And who has slept as long as it would at most is awake: then the clocks are of two CPUs.
        let time = Duration::from_nanos(now.last_ran.saturating_sub(self.before.last_ran));
        let same =
            now.cpu == self.before.cpu && self.before.last_ran > 0 && self.whole.is_none_or(|whole| time < whole);
        Some(Slept {
            nr: self.nr,
            switches: self.before.switches,
            time: same.then_some(time),
            whole: self.whole,
        })
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        if let (Some(affinity), Some(thread)) = (&self.affinity, Pid::from_raw(self.tid))
            && let Err(error) = sched_setaffinity(Some(thread), affinity)
        {
            tracing::debug!(tid = self.tid, %error, "CPUs of a thread not set back");
        }
    }
}

/// How often a thread has left a CPU.
pub fn switches(pid: i32, tid: i32) -> Option<u64> {
    sched(pid, tid).map(|sched| sched.switches)
}

fn sched(pid: i32, tid: i32) -> Option<Sched> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/sched")).ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    // Field 39 of the line, of which two lie before the name's bracket.
    let cpu = stat[stat.rfind(')')? + 1..].split_whitespace().nth(36)?.parse().ok()?;
    let (last_ran, switches, sleeps) = parse(&text)?;
    Some(Sched {
        last_ran,
        switches,
        sleeps,
        cpu,
    })
}

/// `se.exec_start` (milliseconds with six decimals) in nanoseconds, `nr_switches` and `nr_voluntary_switches`.
fn parse(text: &str) -> Option<(u64, u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_start().strip_prefix(':')?.trim())
    };
    let (millis, nanos) = field("se.exec_start")?.split_once('.')?;
    let (millis, nanos) = (millis.parse::<u64>().ok()?, nanos.parse::<u64>().ok()?);
    let last_ran = millis.checked_mul(1_000_000)?.checked_add(nanos)?;
    let count = |name| field(name)?.parse().ok();
    Some((last_ran, count("nr_switches")?, count("nr_voluntary_switches")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedulers_file_is_read() {
        let text = "cat (5, #threads: 1)\n---\nse.exec_start      :      12133554.000787\nnr_switches   :    7\n\
            nr_voluntary_switches : 5\n";
        assert_eq!(parse(text), Some((12_133_554_000_787, 7, 5)));
        assert_eq!(parse("se.exec_start : x\n"), None);
    }

    #[test]
    fn a_sleeper_is_seen_and_has_not_run() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().expect("sleep");
        let pid = child.id() as i32;
        std::thread::sleep(Duration::from_millis(300));
        let seen =
            Sleeper::look(pid, pid, true).map(|sleeper| (sleeper.still_sleeps(), switches(pid, pid), sleeper.slept()));
        let told = sched(pid, pid).is_some();
        child.kill().and_then(|()| child.wait()).expect("ended");
        match seen {
            Some((still, now, slept)) => {
                let slept = slept.expect("asleep");
                assert_eq!((still, now), (true, Some(slept.switches)));
                assert_eq!(
                    (slept.time, slept.whole),
                    (Some(Duration::ZERO), Some(Duration::from_secs(30)))
                );
            }
            // This kernel does not tell.
            None => assert!(!told),
        }
    }
}
