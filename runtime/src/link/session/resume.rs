//! Putting a new connection under a session.

use super::book::Link;
use super::{Closed, Inner, lock};
use crate::link::stream::{HANDSHAKE, LinkError, Stream};
use mosix_wire::frame::{Header, Kind, Resume, encode_body};
use std::io;
use std::time::Duration;

impl Inner {
    /// Takes the dialling end's turn on a new connection.
    pub(super) fn dial_on(&self, mut stream: Stream) -> Result<(), LinkError> {
        let _one = lock(&self.attach);
        let (generation, ours) = self.begin();
        stream.socket().set_timeout(Some(HANDSHAKE), Some(HANDSHAKE))?;
        say(&mut stream, Kind::Resume, &encode_body(&ours)?)?;
        let frame = stream.recv()?;
        match frame.header.kind {
            Kind::Resume => self.install(stream, generation, &frame.message()?, false),
            Kind::Refuse => {
                let why = frame.message().unwrap_or_else(|_| "the peer gave no reason".to_owned());
                let why = mosix_wire::control::reason(why);
                self.end(Closed::Lost(why.clone()));
                Err(lost(&why))
            }
            _ => Err(lost("the peer did not answer the session's handshake")),
        }
    }

    /// Takes the accepting end's turn on a new connection.
    pub(super) fn accept_on(&self, mut stream: Stream) -> Result<(), LinkError> {
        stream.socket().set_timeout(Some(HANDSHAKE), Some(HANDSHAKE))?;
        let frame = stream.recv()?;
        if frame.header.kind != Kind::Resume {
            return Err(lost("the peer did not begin with the session's handshake"));
        }
        let peer: Resume = frame.message()?;
        // Only now: a connection that hangs in its handshake must not keep the next one out.
        let _one = lock(&self.attach);
        let checked = {
            let mut book = lock(&self.book);
            match &book.closed {
                Some(closed) => Err(closed.to_string()),
                None => book.meet(&peer, true),
            }
        };
        if let Err(why) = checked {
            say(&mut stream, Kind::Refuse, &encode_body(&why)?)?;
            let (mut tx, _) = stream.split();
            tx.finish()?;
            return Err(lost(&why));
        }
        // From here on the old connection's frames are void; only then is it known what to ask for.
        let (generation, ours) = self.begin();
        say(&mut stream, Kind::Resume, &encode_body(&ours)?)?;
        self.install(stream, generation, &peer, true)
    }

    /// Invalidates the connection so far and says what this end has.
    fn begin(&self) -> (u64, Resume) {
        let mut book = lock(&self.book);
        self.take_down(&mut book, "a new connection takes over".to_owned());
        book.generation += 1;
        (book.generation, book.resume())
    }

    /// Starts to use the connection: the reader first, so that both ends can send again at the same time.
    fn install(&self, stream: Stream, generation: u64, peer: &Resume, met: bool) -> Result<(), LinkError> {
        stream.socket().set_timeout(Some(self.options.silence), None)?;
        let socket = stream.socket().clone();
        let (mut sender, receiver) = stream.split();
        // A sender on the old connection gives this lock up soon: its socket was shut down.
        let mut order = lock(&self.order);
        let again = {
            let mut book = lock(&self.book);
            if let Some(closed) = &book.closed {
                return Err(lost(&closed.to_string()));
            }
            if book.generation != generation {
                return Err(lost("a newer connection took over"));
            }
            if !met && let Err(why) = book.meet(peer, false) {
                drop(book);
                self.end(Closed::Lost(why.clone()));
                return Err(lost(&why));
            }
            book.link = Link::Up;
            book.socket = Some(socket);
            book.fresh = Some((generation, receiver));
            self.link.notify_all();
            book.again()
        };
        for kept in again {
            let header = lock(&self.book).stamp(kept.header);
            if let Err(error) = sender.write_parts(&[&header.encode(), &kept.bytes]) {
                *order = None;
                self.broke(generation, &error);
                return Err(error);
            }
        }
        *order = Some((generation, sender));
        self.work.notify_all();
        Ok(())
    }
}

fn say(stream: &mut Stream, kind: Kind, body: &[u8]) -> Result<(), LinkError> {
    let header = Header::new(kind, body.len(), 0)?;
    stream.send_frame(&header, body, &[])
}

fn lost(why: &str) -> LinkError {
    LinkError::Io(io::Error::new(io::ErrorKind::ConnectionRefused, why.to_owned()))
}

/// The pause before the next attempt, twice the last one.
pub(super) fn longer(pause: Duration, limits: (Duration, Duration)) -> Duration {
    (pause * 2).clamp(limits.0, limits.1)
}
