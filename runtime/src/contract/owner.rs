//! Who owns a signal of a body away: one side at each moment, whatever moves and whatever overtakes what.
//!
//! ```text
//!  home's kernel ─▶ Outbox: numbered, kept ── Signal(number) ─▶ Inbox: admitted once ─▶ body's kernel, or kept for its call
//!                     ▲    │                                          │                        │
//!                     │    └── sent again whenever a body settles     └── the number travels ──┘ with the image
//!                     └── given up when the host has admitted it, or an image says so
//! ```
//! An order to depart may overtake signals on the session, and a body that stands captured takes none; so home keeps what it has
//! sent. A body that settles anywhere gets again all that home still keeps; its inbox, which is part of the image, knows what it had.

use std::collections::VecDeque;

/// Home's side: signals that left home's kernel and are not known to be the body's.
#[derive(Clone, Debug)]
pub struct Outbox<S> {
    last: u64,
    kept: VecDeque<(u64, S)>,
}

impl<S> Default for Outbox<S> {
    fn default() -> Self {
        Self {
            last: 0,
            kept: VecDeque::new(),
        }
    }
}

impl<S> Outbox<S> {
    /// Takes a signal over from home's kernel; gives its number.
    pub fn take(&mut self, signal: S) -> u64 {
        self.last += 1;
        self.kept.push_back((self.last, signal));
        self.last
    }

    /// What is to be sent, again or for the first time, to a body that has settled; in order.
    pub fn kept(&self) -> impl Iterator<Item = (u64, &S)> {
        self.kept.iter().map(|(number, signal)| (*number, signal))
    }

    /// The body has every signal up to this number: its host, or its image, says so.
    pub fn taken(&mut self, up_to: u64) {
        while self.kept.front().is_some_and(|(number, _)| *number <= up_to) {
            self.kept.pop_front();
        }
    }

    /// Gives up everything, in order: the body is home, and its kernel is home's again.
    pub fn hand_over(&mut self) -> Vec<S> {
        self.kept.drain(..).map(|(_, signal)| signal).collect()
    }

    /// The number that an image must carry which leaves home now: of the last signal that is not kept.
    #[must_use]
    pub fn given(&self) -> u64 {
        self.last - self.kept.len() as u64
    }
}

/// The host's side: the last number that the body has, as its image brought it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inbox(pub u64);

impl Inbox {
    /// Whether a signal with this number is the next one: then the body must get it. Not one that it has, and not one after a gap: what is
    /// missing was sent when nobody could take it, and comes again before this one does.
    pub fn admit(&mut self, number: u64) -> bool {
        let next = number == self.0 + 1;
        self.0 += u64::from(next);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_again_is_taken_once() {
        let mut outbox = Outbox::default();
        let mut inbox = Inbox(outbox.given());
        assert_eq!((outbox.take('a'), outbox.take('b'), outbox.take('c')), (1, 2, 3));
        assert!(inbox.admit(1));
        let image = inbox;
        assert!(inbox.admit(2), "after the capture: lost with the old body");
        let mut inbox = image;
        assert!(!inbox.admit(3), "sent to the new body before what the old one has lost");
        let again: Vec<_> = outbox
            .kept()
            .map(|(number, signal)| (inbox.admit(number), *signal))
            .collect();
        assert_eq!(again, [(false, 'a'), (true, 'b'), (true, 'c')]);
        outbox.taken(2);
        assert_eq!(outbox.hand_over(), ['c']);
        assert_eq!(outbox.take('d'), 4);
    }
}
