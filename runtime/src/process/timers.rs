//! The deadlines of waits, as the kernel's list of high-resolution timers shows them to root.
//!
//! /proc/timer_list names no task. But a thread that sleeps in a timed call has a timer, whose deadline is not behind what the
//! scheduler's clock leads to ([`super::waited`]), and which is gone when the thread was stopped. Of the timers that went meanwhile, the
//! latest that fits is taken: it is the thread's own or a later one, so no time-out ends early for it.

use super::waited::monotonic;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A list that took longer is not read again while the process stands still.
const SLOW: Duration = Duration::from_millis(5);
/// What reading may cost before a move. The kernel takes time by the square of how many timers it has.
const LONG: Duration = Duration::from_millis(200);
/// How often the list is read. The kernel goes through it by counting, and passes over some timers when earlier ones end meanwhile, as many
/// do when the reader is preempted: that one timer is missing each time is next to impossible.
const READINGS: u32 = 4;
/// A deadline that the scheduler's clock leads to may seem so much too early: reading it takes time.
const ROUNDING: i64 = 50_000;

/// The timers of sleeping tasks.
#[derive(Debug)]
pub struct Timers {
    /// Deadlines on the monotonic clock, in nanoseconds, by the timers' names.
    pending: HashMap<u64, i64>,
    took: Duration,
}

impl Timers {
    /// Reads the list, several times; `None` when the kernel does not show it, or counts by another clock than this process, or is slow.
    pub fn read() -> Option<Self> {
        let begun = Instant::now();
        let mut all = Self::once()?;
        for _ in 1..READINGS {
            if begun.elapsed() > LONG {
                return None;
            }
            let once = Self::once()?;
            all.pending.extend(once.pending);
            all.took = all.took.min(once.took);
        }
        Some(all)
    }

    fn once() -> Option<Self> {
        let (begun, before) = (Instant::now(), monotonic());
        let text = std::fs::read_to_string("/proc/timer_list").ok()?;
        let (now, pending) = parse(&text)?;
        (before..=monotonic()).contains(&now).then(|| Self {
            pending,
            took: begun.elapsed(),
        })
    }

    /// The list once more, if that is worth its time: when more than one timer of this one is due before the last of `ends`.
    pub fn again(&self, ends: &[i64]) -> Option<Self> {
        let ambiguous = |end: &i64| self.due(*end).nth(1).is_some();
        (self.took <= SLOW && ends.iter().any(ambiguous)).then(Self::once)?
    }

    /// The true deadline of a wait that was under way when this list was read, and was stopped before `after` was. It ends at `latest` by
    /// what the scheduler's clock leads to; and by `end`, when it would have begun only at its stop.
    pub fn deadline(&self, after: Option<&Self>, latest: i64, end: i64) -> Option<i64> {
        let gone = |name: &u64| after.is_none_or(|after| !after.pending.contains_key(name));
        let all: Vec<i64> = self
            .due(end)
            .filter(|(name, _)| gone(name))
            .map(|(_, deadline)| deadline)
            .collect();
        let most = latest.saturating_add(ROUNDING);
        match all.iter().copied().filter(|deadline| *deadline <= most).max() {
            Some(deadline) => Some(deadline),
            // Its own timer went: the scheduler's clock was wrong. Without the second list nobody knows which that is.
            None if after.is_some() || all.len() == 1 => all.into_iter().max(),
            None => None,
        }
    }

    fn due(&self, end: i64) -> impl Iterator<Item = (&u64, i64)> {
        let most = end.saturating_add(ROUNDING);
        let all = self.pending.iter().map(|(name, deadline)| (name, *deadline));
        all.filter(move |(_, deadline)| *deadline <= most)
    }
}

/// The moment of the list, and the timers of sleeping tasks on the monotonic clock.
fn parse(text: &str) -> Option<(i64, HashMap<u64, i64>)> {
    let mut now = None;
    let mut pending = HashMap::new();
    let (mut monotonic, mut sleeper) = (false, None);
    for line in text.lines() {
        if let Some(shown) = line.strip_prefix("now at ") {
            now = shown.split(' ').next()?.parse().ok();
        } else if let Some(clock) = line.trim_start().strip_prefix("clock ") {
            // Monotonic, realtime, boottime, TAI; then the same for timers that expire in a soft interrupt.
            let number: u32 = clock.trim_end_matches(':').parse().ok()?;
            monotonic = number.is_multiple_of(4);
        } else if let Some(shown) = line.strip_prefix(" # expires at ") {
            if let Some(name) = sleeper.take().filter(|_| monotonic) {
                // The first of two is the deadline; the second adds the slack.
                pending.insert(name, shown.split('-').next()?.parse().ok()?);
            }
        } else if line.starts_with(" #") {
            let name = line
                .split_once('<')
                .and_then(|(_, rest)| rest.split_once(">, hrtimer_wakeup,"));
            sleeper = name.and_then(|(name, _)| u64::from_str_radix(name, 16).ok());
        }
    }
    Some((now?, pending))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "Timer List Version: v0.10\nHRTIMER_MAX_CLOCK_BASES: 8\nnow at 500 nsecs\n\ncpu: 0\n clock 0:\n  .index:      0\n\
        active timers:\n #0: <00000000e925f3ee>, tick_nohz_handler, S:01\n # expires at 600-600 nsecs [in 100 to 100 nsecs]\n \
        #1: <0000000000000007>, hrtimer_wakeup, S:01\n # expires at 700-750 nsecs [in 200 to 250 nsecs]\n clock 1:\nactive timers:\n \
        #0: <0000000000000008>, hrtimer_wakeup, S:01\n # expires at 800-850 nsecs [in 200 to 250 nsecs]\n clock 4:\nactive timers:\n \
        #0: <0000000000000009>, hrtimer_wakeup, S:01\n # expires at 900-950 nsecs [in 200 to 250 nsecs]\n";

    #[test]
    fn sleepers_of_the_monotonic_clock_are_read() {
        let (now, pending) = parse(LIST).expect("a list");
        assert_eq!((now, pending), (500, HashMap::from([(7, 700), (9, 900)])));
        assert_eq!(parse("cpu: 0\n"), None);
    }

    #[test]
    fn the_latest_that_went_counts() {
        let list = |pending: &[(u64, i64)]| Timers {
            pending: pending.iter().copied().collect(),
            took: Duration::ZERO,
        };
        let second = 1_000_000_000;
        let before = list(&[(1, second), (2, 2 * second), (3, 3 * second), (4, 4 * second)]);
        let after = list(&[(2, 2 * second)]);
        let end = 3 * second;
        assert_eq!(
            before.deadline(Some(&after), 3 * second - ROUNDING, end),
            Some(3 * second)
        );
        assert_eq!(before.deadline(Some(&after), 2 * second, end), Some(second));
        assert_eq!(before.deadline(None, 2 * second, end), Some(2 * second));
        assert_eq!(before.deadline(None, second / 2, end), None);
        // The scheduler's clock was wrong.
        assert_eq!(before.deadline(Some(&after), second / 2, end), Some(3 * second));
        assert_eq!(before.deadline(None, second / 2, second), Some(second));
    }

    #[test]
    fn the_kernels_list_holds_a_sleeper() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        std::thread::sleep(Duration::from_millis(300));
        let (before, now) = (Timers::read(), monotonic());
        child.kill().and_then(|()| child.wait()).expect("ended");
        // Others may not read it.
        let Some(before) = before else { return };
        let latest = now + 1_000_000_000_000;
        let after = before.again(&[latest]);
        let deadline = before.deadline(after.as_ref(), latest, latest).expect("its timer");
        assert!(deadline > now + 900_000_000_000, "{deadline} at {now}");
    }
}
