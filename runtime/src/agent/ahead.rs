//! How far home's clocks are ahead of this node's.
//!
//! Home tells its clocks in messages, read before they leave: what a message shows is never more than the truth, and of several
//! messages the quickest is the truest. Monotonic and boot time keep their distance for ever; the wall clock of either node may be set,
//! so its distance is that of the last message that was about as quick as the quickest.

use mosix_wire::image::Clocks;

/// A message that was slower than the quickest by less than this still tells the wall clock's distance, in nanoseconds.
const QUICK: i64 = 1_000_000;
/// Wall clocks that differ by less are taken as equal: messages do not tell it better, and the vDSO then reads the clock by a plain
/// jump. In nanoseconds.
const EQUAL: i64 = 2_000_000;
/// Wall clocks may differ by this; in nanoseconds. What the vDSO reads is corrected, but deadlines on the wall clock that a program
/// gives to the kernel are not.
pub const WILD: i64 = 2_000_000_000;

/// Home's clocks less this node's, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    known: Option<Clocks>,
}

impl Ahead {
    /// Home's clocks came in a message, when this node's showed `now`.
    pub fn observe(&mut self, home: &Clocks, now: &Clocks) {
        let seen = Clocks {
            monotonic: home.monotonic.saturating_sub(now.monotonic),
            boottime: home.boottime.saturating_sub(now.boottime),
            realtime: home.realtime.saturating_sub(now.realtime),
        };
        let known = self.known.get_or_insert(seen);
        if seen.monotonic.saturating_add(QUICK) >= known.monotonic {
            known.realtime = seen.realtime;
        }
        known.monotonic = known.monotonic.max(seen.monotonic);
        known.boottime = known.boottime.max(seen.boottime);
    }

    /// What the clocks of a body are ahead of this node's `now`: monotonic and boot time, never before those of its image.
    pub fn of_body(&self, image: &Clocks, now: &Clocks) -> (i64, i64) {
        let of = |image: i64, now: i64, known: Option<i64>| {
            let least = image.saturating_sub(now);
            known.map_or(least, |known| known.max(least))
        };
        (
            of(image.monotonic, now.monotonic, self.known.map(|known| known.monotonic)),
            of(image.boottime, now.boottime, self.known.map(|known| known.boottime)),
        )
    }

    /// What home's wall clock is ahead of this node's, in nanoseconds.
    pub fn realtime(&self) -> i64 {
        let ahead = self.known.map_or(0, |known| known.realtime);
        if ahead.abs() < EQUAL { 0 } else { ahead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn clocks(monotonic: i64, realtime: i64) -> Clocks {
        Clocks {
            monotonic,
            boottime: monotonic,
            realtime,
        }
    }

    #[test]
    fn the_quickest_message_counts() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.realtime(), 0);
        // Home's clocks are 50 ms and an hour ahead; the messages take 40, 3 and 20 ms.
        for delay in [40 * MS, 3 * MS, 20 * MS] {
            let home = clocks(1000 * MS, 3_600_000 * MS);
            ahead.observe(&home, &clocks(950 * MS + delay, delay));
        }
        assert_eq!(ahead.of_body(&clocks(0, 0), &clocks(0, 0)), (47 * MS, 47 * MS));
        assert_eq!(ahead.realtime(), 3_600_000 * MS - 3 * MS);
        // A body's clocks never go back.
        assert_eq!(ahead.of_body(&clocks(60 * MS, 0), &clocks(0, 0)).0, 60 * MS);
    }

    #[test]
    fn a_wall_clock_that_is_set_is_followed_and_small_differences_are_none() {
        let mut ahead = Ahead::default();
        ahead.observe(&clocks(0, 90 * MS), &clocks(0, 0));
        assert_eq!(ahead.realtime(), 90 * MS);
        ahead.observe(&clocks(10 * MS, 10 * MS), &clocks(10 * MS + 500_000, 11 * MS));
        assert_eq!(ahead.realtime(), 0, "one millisecond is the message's");
    }
}
