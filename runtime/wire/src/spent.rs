//! What a process has used of CPUs and memory away from home, as getrusage(2) counts it.
//!
//! Home's kernel counts what the process used at home: before its departure, and through its deputy. What bodies used on hosts travels in
//! the image and grows at each move. Hosts report it, so every sum is saturating: a lie is wrong, but never more than a number.

use serde::{Deserialize, Serialize};

/// CPU time in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CpuTime {
    /// In the program.
    pub user_ns: u64,
    /// In the kernel on its behalf.
    pub system_ns: u64,
}

impl CpuTime {
    /// Both together.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.user_ns.saturating_add(self.system_ns)
    }

    /// The sum with another one.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            user_ns: self.user_ns.saturating_add(other.user_ns),
            system_ns: self.system_ns.saturating_add(other.system_ns),
        }
    }

    /// What was told before, brought to `total` nanoseconds, of which the kernel's ticks say how many were spent where. Neither part ever
    /// falls, and both together are `total`: as cputime_adjust() in the kernel does it.
    #[must_use]
    pub fn advance(self, total: u64, user_ticks: u64, system_ticks: u64) -> Self {
        if self.total() >= total {
            return self;
        }
        let ticks = u128::from(user_ticks) + u128::from(system_ticks);
        let system = (u128::from(total) * u128::from(system_ticks))
            .checked_div(ticks)
            .unwrap_or(0);
        let system_ns = u64::try_from(system).unwrap_or(total).max(self.system_ns);
        let user_ns = total.saturating_sub(system_ns).max(self.user_ns);
        Self {
            user_ns,
            system_ns: total.saturating_sub(user_ns),
        }
    }
}

/// Resources.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Spent {
    /// CPU time.
    pub cpu: CpuTime,
    /// Page faults without I/O.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
    /// Most resident memory at a time, in bytes.
    pub peak: u64,
}

impl Spent {
    /// The sum with another one.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.plus(other.cpu),
            minor_faults: self.minor_faults.saturating_add(other.minor_faults),
            major_faults: self.major_faults.saturating_add(other.major_faults),
            peak: self.peak.max(other.peak),
        }
    }

    /// The later of two reports about the same: nothing that was used is given back.
    #[must_use]
    pub fn latest(self, other: Self) -> Self {
        Self {
            cpu: CpuTime {
                user_ns: self.cpu.user_ns.max(other.cpu.user_ns),
                system_ns: self.cpu.system_ns.max(other.cpu.system_ns),
            },
            minor_faults: self.minor_faults.max(other.minor_faults),
            major_faults: self.major_faults.max(other.major_faults),
            peak: self.peak.max(other.peak),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn time_is_split_as_the_ticks_say() {
        let time = CpuTime::default().advance(1_000, 3, 1);
        assert_eq!((time.user_ns, time.system_ns), (750, 250));
        // Before the first tick all of it is the program's.
        assert_eq!(CpuTime::default().advance(1_000, 0, 0).user_ns, 1_000);
    }

    proptest! {
        #[test]
        fn no_part_of_it_ever_falls(steps in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 1..20)) {
            let mut time = CpuTime::default();
            for (total, user, system) in steps {
                let next = time.advance(total, user, system);
                prop_assert!(next.user_ns >= time.user_ns && next.system_ns >= time.system_ns);
                prop_assert_eq!(next.total(), total.max(time.total()));
                time = next;
            }
        }

        #[test]
        fn sums_of_anything_are_numbers(user in any::<u64>(), system in any::<u64>(), faults in any::<u64>()) {
            let spent = Spent {
                cpu: CpuTime { user_ns: user, system_ns: system },
                minor_faults: faults,
                ..Spent::default()
            };
            let sum = spent.plus(spent);
            prop_assert!(sum.cpu.total() >= spent.cpu.total() && sum.minor_faults >= faults);
            prop_assert_eq!(sum.latest(spent), sum);
        }
    }
}
