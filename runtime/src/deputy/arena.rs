//! Room for call buffers larger than a slot's own, in the window's sparse arena.

use crate::process::window::BUFFERS;
use mosix_loader::script::abi::{ARENA, ARENA_SIZE};
use std::collections::BTreeMap;

/// Hands out page-aligned spans of the arena.
#[derive(Debug, Default)]
pub struct Arena {
    /// Start to end of spans in use, as offsets in the window.
    used: BTreeMap<u64, u64>,
}

impl Arena {
    /// Takes a span of at least `length` bytes; its offset in the window. None when the arena is full.
    pub fn take(&mut self, length: usize) -> Option<u64> {
        let length = (length as u64).next_multiple_of(4096);
        let mut at = BUFFERS;
        for (start, end) in &self.used {
            if at + length <= *start {
                break;
            }
            at = *end;
        }
        (at + length <= ARENA + ARENA_SIZE).then(|| {
            self.used.insert(at, at + length);
            at
        })
    }

    /// Gives a span back.
    pub fn give(&mut self, offset: u64) {
        self.used.remove(&offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_never_overlap_and_come_back() {
        let mut arena = Arena::default();
        let spans: Vec<u64> = (0..10).filter_map(|index| arena.take(5000 * (index + 1))).collect();
        assert_eq!(spans.len(), 10);
        for (index, start) in spans.iter().enumerate().skip(1) {
            assert!(*start >= spans[index - 1] + 5000 * index as u64);
        }
        arena.give(spans[3]);
        assert_eq!(arena.take(4096), Some(spans[3]));
        assert_eq!(arena.take(usize::MAX / 4), None);
    }
}
