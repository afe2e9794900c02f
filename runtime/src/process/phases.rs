//! Where the time of a move goes: each part logs how long its phases took, as one line at level "debug".

use std::fmt;
use std::time::{Duration, Instant};

/// A clock that is read at the end of every phase.
#[derive(Debug)]
pub struct Phases {
    begun: Instant,
    last: Instant,
    done: Vec<(&'static str, Duration)>,
}

impl Default for Phases {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            last: now,
            done: Vec::with_capacity(12),
        }
    }
}

impl Phases {
    /// A phase is over.
    pub fn mark(&mut self, phase: &'static str) {
        let now = Instant::now();
        self.done.push((phase, now - self.last));
        self.last = now;
    }

    /// Logs them all.
    pub fn log(&self, pid: i32, part: &'static str) {
        tracing::debug!(pid, part, phases = %self, "a part of a move");
    }
}

impl fmt::Display for Phases {
    /// Milliseconds: "freeze 0.4, capture 1.2; 1.6".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        for (index, (phase, time)) in self.done.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{phase} {:.2}", ms(*time))?;
        }
        write!(f, "; {:.2}", ms(self.last - self.begun))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up() {
        let mut phases = Phases::default();
        phases.mark("one");
        phases.mark("two");
        let sum: Duration = phases.done.iter().map(|(_, time)| *time).sum();
        assert_eq!(sum, phases.last - phases.begun);
        assert!(phases.to_string().starts_with("one "), "{phases}");
    }
}
