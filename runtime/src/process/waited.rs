//! How long a thread has been asleep in the call that a freeze interrupts: read from the scheduler, with no cost before the freeze.
//!
//! `se.exec_start` of /proc/PID/task/TID/sched is the last moment the thread was on a CPU, in that CPU's own clock. Read once while it
//! sleeps and once when it was woken for its stop *on the same CPU*, the difference is the time asleep; so it is kept on that CPU in
//! between. That clock leaves out what a hypervisor steals and what interrupts take: the difference is never too large, so no time-out ends
//! early. Without the file (no CONFIG_SCHED_DEBUG) nothing is known, and a time-out begins again.

use super::rest;
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
    cpu: usize,
}

/// A thread that sleeps in a call with a relative time-out, kept on its CPU.
#[derive(Debug)]
pub struct Sleeper {
    pid: i32,
    tid: i32,
    before: Sched,
    affinity: Option<CpuSet>,
}

impl Sleeper {
    /// Looks at a thread before it is interrupted; `None` when it does not sleep in such a call, or the kernel does not tell.
    pub fn look(pid: i32, tid: i32) -> Option<Self> {
        let (nr, args) = asleep_in(pid, tid)?;
        rest::timeout(nr, &args)?;
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
        })
    }

    /// How often the thread had left a CPU when it was looked at: while this stays the same, it has not run.
    pub fn switches(&self) -> u64 {
        self.before.switches
    }

    /// How long it had been asleep when it was woken for the stop in which it stands now.
    pub fn waited(self) -> Option<Duration> {
        let now = sched(self.pid, self.tid)?;
        let same = now.cpu == self.before.cpu;
        same.then(|| Duration::from_nanos(now.last_ran.saturating_sub(self.before.last_ran)))
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

/// The call in which a thread sleeps, and its arguments.
fn asleep_in(pid: i32, tid: i32) -> Option<(u64, [u64; 6])> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    // "running" for a thread on a CPU, "-1 …" outside of a call.
    let mut fields = line.split_whitespace();
    let nr = fields.next()?.parse().ok()?;
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = u64::from_str_radix(fields.next()?.trim_start_matches("0x"), 16).ok()?;
    }
    Some((nr, args))
}

fn sched(pid: i32, tid: i32) -> Option<Sched> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/sched")).ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    // Field 39 of the line, of which two lie before the name's bracket.
    let cpu = stat[stat.rfind(')')? + 1..].split_whitespace().nth(36)?.parse().ok()?;
    let (last_ran, switches) = parse(&text)?;
    Some(Sched {
        last_ran,
        switches,
        cpu,
    })
}

/// `se.exec_start` (milliseconds with six decimals) in nanoseconds, and `nr_switches`.
fn parse(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_start().strip_prefix(':')?.trim())
    };
    let (millis, nanos) = field("se.exec_start")?.split_once('.')?;
    let (millis, nanos) = (millis.parse::<u64>().ok()?, nanos.parse::<u64>().ok()?);
    let last_ran = millis.checked_mul(1_000_000)?.checked_add(nanos)?;
    Some((last_ran, field("nr_switches")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedulers_file_is_read() {
        let text = "cat (5, #threads: 1)\n---\nse.exec_start      :      12133554.000787\nnr_switches   :    7\n";
        assert_eq!(parse(text), Some((12_133_554_000_787, 7)));
        assert_eq!(parse("se.exec_start : x\n"), None);
    }

    #[test]
    fn a_sleeper_is_seen_and_has_not_run() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().expect("sleep");
        let pid = child.id() as i32;
        std::thread::sleep(Duration::from_millis(300));
        let seen = Sleeper::look(pid, pid).map(|sleeper| (sleeper.switches(), switches(pid, pid), sleeper.waited()));
        let told = sched(pid, pid).is_some();
        child.kill().and_then(|()| child.wait()).expect("ended");
        match seen {
            Some((before, now, waited)) => assert_eq!((now, waited), (Some(before), Some(Duration::ZERO))),
            // This kernel does not tell.
            None => assert!(!told),
        }
    }
}
