//! What one end of a session knows, without any I/O: which frames were sent, acknowledged and received.

use super::Closed;
use crate::link::socket::Socket;
use crate::link::stream::Receiver;
use mosix_wire::frame::{Header, Kind, Resume};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// After this many received bytes an acknowledgement is sent even when nothing else is.
const ACK_BYTES: usize = 1 << 20;

/// After this many received frames, likewise.
const ACK_FRAMES: u64 = 256;

/// What a kept frame costs beside its bytes.
const KEPT_EXTRA: usize = 128;

/// A frame that the peer has not acknowledged yet.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) header: Header,
    /// Body and payload.
    pub(super) bytes: Arc<Vec<u8>>,
}

impl Kept {
    fn cost(&self) -> usize {
        self.bytes.len() + KEPT_EXTRA
    }
}

/// The connection under the session.
pub(super) enum Link {
    Up,
    Down { since: Instant, why: String },
}

/// What to do with a received frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// Hand it to the user.
    Deliver,
    /// Nothing to hand over: an acknowledgement or a repeated frame.
    Nothing,
    /// The peer has closed the session.
    Close,
}

pub(super) struct Book {
    /// The session's number; 0 before an accepting end knows it.
    pub(super) session: u64,
    /// This end's life.
    pub(super) life: u64,
    /// The other end's life; 0 before the first connection.
    pub(super) peer_life: u64,
    /// Counts connections; a frame or an error of an older one means nothing any more.
    pub(super) generation: u64,
    pub(super) link: Link,
    pub(super) socket: Option<Socket>,
    /// A new connection's receiving half, until the receiving thread takes it.
    pub(super) fresh: Option<(u64, Receiver)>,
    pub(super) closed: Option<Closed>,
    /// `close` was called: nothing new is sent.
    pub(super) closing: bool,
    /// Senders that wait for room.
    pub(super) waiting: usize,
    pub(super) last_sent: Instant,
    pub(super) ack_due: bool,
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    next: u64,
    received: u64,
    /// `received` as the peer was last told.
    told: u64,
    untold_bytes: usize,
}

impl Book {
    pub(super) fn new(session: u64, life: u64) -> Self {
        let now = Instant::now();
        Self {
            session,
            life,
            peer_life: 0,
            generation: 0,
            link: Link::Down {
                since: now,
                why: "not connected yet".to_owned(),
            },
            socket: None,
            fresh: None,
            closed: None,
            closing: false,
            waiting: 0,
            last_sent: now,
            ack_due: false,
            kept: VecDeque::new(),
            kept_bytes: 0,
            next: 1,
            received: 0,
            told: 0,
            untold_bytes: 0,
        }
    }

    /// Whether a frame of this size may be sent now. The first always may, however large it is.
    pub(super) fn has_room(&self, bytes: usize, window: usize) -> bool {
        self.kept.is_empty() || self.kept_bytes + bytes + KEPT_EXTRA <= window
    }

    pub(super) fn all_acknowledged(&self) -> bool {
        self.kept.is_empty()
    }

    /// Numbers a frame, keeps it, and gives the header to send.
    pub(super) fn keep(&mut self, mut header: Header, bytes: Arc<Vec<u8>>) -> Header {
        header.seq = self.next;
        self.next += 1;
        let kept = Kept { header, bytes };
        self.kept_bytes += kept.cost();
        self.kept.push_back(kept);
        self.stamp(header)
    }

    /// Puts the newest acknowledgement into a header that is about to be sent.
    pub(super) fn stamp(&mut self, mut header: Header) -> Header {
        header.ack = self.received;
        self.told = self.received;
        self.untold_bytes = 0;
        self.ack_due = false;
        self.last_sent = Instant::now();
        header
    }

    /// Frames that must be sent again on a new connection, oldest first.
    pub(super) fn again(&self) -> Vec<Kept> {
        self.kept.iter().cloned().collect()
    }

    /// Drops what the peer has. False when it claims what was never sent.
    pub(super) fn acknowledged(&mut self, ack: u64) -> bool {
        if ack >= self.next {
            return false;
        }
        while let Some(first) = self.kept.front() {
            if first.header.seq > ack {
                break;
            }
            self.kept_bytes -= first.cost();
            self.kept.pop_front();
        }
        true
    }

    /// Accounts for a received frame.
    pub(super) fn take(&mut self, header: &Header) -> Result<Taken, String> {
        if !self.acknowledged(header.ack) {
            return Err(format!(
                "the peer acknowledges frame {}, of {} sent",
                header.ack,
                self.next - 1
            ));
        }
        match header.kind {
            Kind::Ack => return Ok(Taken::Nothing),
            Kind::Resume | Kind::Refuse => return Err("a handshake frame within a session".to_owned()),
            Kind::Data | Kind::Close => {}
        }
        if header.seq <= self.received {
            return Ok(Taken::Nothing);
        }
        if header.seq != self.received + 1 {
            return Err(format!("frame {} follows frame {}", header.seq, self.received));
        }
        self.received = header.seq;
        self.untold_bytes += header.frame_len();
        if self.untold_bytes >= ACK_BYTES || self.received - self.told >= ACK_FRAMES || header.kind == Kind::Close {
            self.ack_due = true;
        }
        Ok(if header.kind == Kind::Close {
            Taken::Close
        } else {
            Taken::Deliver
        })
    }

    /// What this end says at the start of a connection.
    pub(super) fn resume(&self) -> Resume {
        Resume {
            session: self.session,
            life: self.life,
            peer_life: self.peer_life,
            received: self.received,
        }
    }

    /// Checks what the other end says at the start of a connection; an error ends the session for good.
    pub(super) fn meet(&mut self, peer: &Resume, accepting: bool) -> Result<(), String> {
        if peer.session == 0 || peer.life == 0 {
            return Err("the peer names no session".to_owned());
        }
        // A first connection may break before the dialling end heard of it; it then starts over with a new number.
        let untouched = self.received == 0 && self.kept.front().is_none_or(|kept| kept.header.seq == 1);
        if accepting && self.session != peer.session && peer.peer_life == 0 && untouched {
            self.session = peer.session;
            self.peer_life = 0;
        }
        if self.session != peer.session {
            return Err("the peer continues a session that this end does not have: it was started again".to_owned());
        }
        if peer.peer_life != 0 && peer.peer_life != self.life {
            return Err(
                "the peer continues a session with an earlier life of this end: it was started again".to_owned(),
            );
        }
        if self.peer_life != 0 && self.peer_life != peer.life {
            return Err("the peer was started again and does not know the session any more".to_owned());
        }
        let oldest = self.kept.front().map_or(self.next, |kept| kept.header.seq);
        if !self.acknowledged(peer.received) || peer.received + 1 < oldest {
            return Err(format!(
                "the peer has received {} frames, between {} and {} are possible",
                peer.received,
                oldest - 1,
                self.next - 1
            ));
        }
        self.peer_life = peer.life;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(seq: u64, ack: u64) -> Header {
        Header {
            seq,
            ack,
            ..Header::new(Kind::Data, 0, 0).unwrap()
        }
    }

    fn keep(book: &mut Book) -> u64 {
        book.keep(data(0, 0), Arc::new(vec![0; 10])).seq
    }

    #[test]
    fn frames_are_delivered_once_and_in_order() {
        let mut book = Book::new(1, 2);
        assert_eq!(book.take(&data(1, 0)), Ok(Taken::Deliver));
        assert_eq!(book.take(&data(1, 0)), Ok(Taken::Nothing));
        assert_eq!(book.take(&data(2, 0)), Ok(Taken::Deliver));
        assert!(book.take(&data(4, 0)).is_err());
        assert_eq!(book.resume().received, 2);
    }

    #[test]
    fn acknowledged_frames_are_dropped_and_lies_are_refused() {
        let mut book = Book::new(1, 2);
        assert_eq!((keep(&mut book), keep(&mut book), keep(&mut book)), (1, 2, 3));
        assert!(book.acknowledged(2));
        assert_eq!(book.again().iter().map(|kept| kept.header.seq).collect::<Vec<_>>(), [3]);
        assert!(!book.acknowledged(4));
        assert!(book.take(&data(1, 9)).is_err());
        // Going back is no news.
        assert!(book.acknowledged(1));
        assert!(!book.has_room(100, 150) && book.has_room(100, 1000));
        assert!(book.acknowledged(3));
        assert!(book.has_room(100, 1) && book.all_acknowledged());
    }

    #[test]
    fn a_new_life_is_told_from_a_broken_link() {
        let mut home = Book::new(7, 10);
        let mut host = Book::new(0, 20);
        host.meet(&home.resume(), true).unwrap();
        home.meet(&host.resume(), false).unwrap();
        keep(&mut home);
        // The link broke: both continue.
        host.meet(&home.resume(), true).unwrap();
        // The host was started again: it knows nothing of session 7's first connection.
        let mut reborn = Book::new(0, 21);
        assert!(reborn.meet(&home.resume(), true).is_err());
        // The home was started again.
        host.take(&data(1, 0)).unwrap();
        assert!(host.meet(&Book::new(8, 11).resume(), true).is_err());
        assert!(
            host.meet(
                &Resume {
                    received: 5,
                    ..home.resume()
                },
                true
            )
            .is_err()
        );
    }

    #[test]
    fn a_first_connection_that_nobody_heard_of_can_be_repeated() {
        let mut host = Book::new(0, 20);
        keep(&mut host);
        host.meet(&Book::new(7, 10).resume(), true).unwrap();
        host.meet(&Book::new(8, 10).resume(), true).unwrap();
        assert_eq!((host.session, host.again().len()), (8, 1));
    }
}
