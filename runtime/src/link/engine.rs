//! TLS without I/O: records in, plaintext out, and back. One value serves both directions of a connection.
//!
//! Built on rustls' unbuffered interface, so that the connection's lock is held only to encrypt or decrypt, never while a
//! socket blocks: the sending and the receiving thread do not wait for each other's peer.

use super::socket::Socket;
use super::stream::LinkError;
use super::tls::Security;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use std::time::{Duration, Instant};

/// Plaintext bytes of a full record.
pub(super) const RECORD: usize = 16 << 10;

/// What a record adds to its plaintext: header 5, content type 1, tag 16.
const RECORD_EXTRA: usize = 22;

/// Room beside the records of one call for a handshake message (key update) that goes first.
const SLACK: usize = 1024;

/// Which end of a connection this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Dial,
    Accept,
}

/// Received bytes that are not processed yet.
pub(super) struct Incoming {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Incoming {
    /// Large reads save system calls on page streams; the second level cache still holds it.
    const SIZE: usize = 256 << 10;

    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; Self::SIZE],
            start: 0,
            end: 0,
        }
    }

    pub(super) fn filled(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    pub(super) fn discard(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Refuses a handshake message in fragments after the handshake, when the library has processed what it could.
    ///
    /// It would keep a place in this buffer for the fragments, and the sending thread, which calls the library without the
    /// buffer, would run it into a panic. The only such message between us, a key update, fits one record.
    fn no_fragment(&mut self) -> Result<(), LinkError> {
        match self.filled() {
            [_, _, _, high, low, rest @ ..] if rest.len() >= usize::from(u16::from_be_bytes([*high, *low])) => {
                Err(LinkError::NotTls)
            }
            _ => Ok(()),
        }
    }

    /// Reads more from the socket; false at the end of the stream.
    pub(super) fn fill(&mut self, socket: &Socket) -> Result<bool, LinkError> {
        if self.start > 0 && self.bytes.len() - self.end < 2 * RECORD {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() {
            // A TLS record is far smaller than the buffer: whoever sends this is no TLS peer.
            return Err(LinkError::NotTls);
        }
        let got = socket.read(&mut self.bytes[self.end..])?;
        self.end += got;
        Ok(got > 0)
    }
}

/// One connection's keys and state.
pub(super) struct Engine {
    side: Side,
    /// Encoded records (answers to a key update) that the next write sends first.
    pending: Outgoing,
    /// The connection has failed; the library is not called any more.
    failed: bool,
}

enum Side {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// What decrypting came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Decrypted {
    /// One or more records were handed out.
    Some,
    /// More bytes are needed.
    Starved,
    /// The peer has closed its direction properly.
    Closed,
}

/// The two kinds of connection differ by a type parameter only.
trait Process {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Process for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Process for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Engine {
    /// Performs the handshake on the socket within `timeout`. Data that came with its last message goes to `early`.
    pub(super) fn handshake(
        security: &Security,
        end: End,
        socket: &Socket,
        incoming: &mut Incoming,
        early: &mut Vec<u8>,
        timeout: Duration,
    ) -> Result<Option<Self>, LinkError> {
        let Security::Tls { client, server } = security else {
            return Ok(None);
        };
        let side = match end {
            End::Dial => {
                let name = ServerName::try_from("job.mosix").map_err(|_| LinkError::NotTls)?;
                Side::Client(Box::new(UnbufferedClientConnection::new(client.clone(), name)?))
            }
            End::Accept => Side::Server(Box::new(UnbufferedServerConnection::new(server.clone())?)),
        };
        let mut engine = Self {
            side,
            pending: Outgoing::default(),
            failed: false,
        };
        let deadline = Instant::now() + timeout;
        match &mut engine.side {
            Side::Client(connection) => shake(&mut **connection, socket, incoming, early, deadline)?,
            Side::Server(connection) => shake(&mut **connection, socket, incoming, early, deadline)?,
        }
        Ok(Some(engine))
    }

    fn flush_pending(&mut self, out: &mut Outgoing) {
        out.extend(self.pending.filled());
        self.pending.clear();
    }

    /// Appends the records of `plain` to `out`.
    pub(super) fn encrypt(&mut self, plain: &[u8], out: &mut Outgoing) -> Result<(), LinkError> {
        if self.failed {
            return Err(LinkError::Cut);
        }
        self.flush_pending(out);
        let done = match &mut self.side {
            Side::Client(connection) => encrypt(&mut **connection, plain, out),
            Side::Server(connection) => encrypt(&mut **connection, plain, out),
        };
        self.failed = done.is_err();
        done
    }

    /// Decrypts the next record with data and hands it to `sink`.
    pub(super) fn decrypt(
        &mut self,
        incoming: &mut Incoming,
        sink: &mut impl FnMut(&[u8]),
    ) -> Result<Decrypted, LinkError> {
        if self.failed {
            return Err(LinkError::Cut);
        }
        let done = match &mut self.side {
            Side::Client(connection) => decrypt(&mut **connection, incoming, &mut self.pending, sink),
            Side::Server(connection) => decrypt(&mut **connection, incoming, &mut self.pending, sink),
        };
        self.failed = done.is_err();
        done
    }

    /// Appends a close_notify alert to `out`, so that the peer can tell an end from a cut.
    pub(super) fn close(&mut self, out: &mut Outgoing) {
        if self.failed {
            return;
        }
        self.flush_pending(out);
        match &mut self.side {
            Side::Client(connection) => close(&mut **connection, out),
            Side::Server(connection) => close(&mut **connection, out),
        }
    }
}

/// Records on their way to the socket. The room behind them stays initialised: clearing it for every call would cost as much
/// as a copy.
#[derive(Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    used: usize,
}

impl Outgoing {
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    fn extend(&mut self, bytes: &[u8]) {
        let used = self.used + bytes.len();
        if self.bytes.len() < used {
            self.bytes.resize(used, 0);
        }
        self.bytes[self.used..used].copy_from_slice(bytes);
        self.used = used;
    }

    /// Appends at most `room` bytes through `fill`, which says how many it used.
    fn append<E>(&mut self, room: usize, fill: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        let end = self.used + room;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.used += fill(&mut self.bytes[self.used..end])?.min(room);
        Ok(())
    }
}

fn encode<P: Process>(
    state: &mut rustls::unbuffered::EncodeTlsData<'_, P::Data>,
    out: &mut Outgoing,
) -> Result<(), LinkError> {
    let mut room = 4 * SLACK;
    loop {
        match out.append(room, |bytes| state.encode(bytes)) {
            Ok(()) => return Ok(()),
            Err(EncodeError::InsufficientSize(need)) if need.required_size > room => room = need.required_size,
            Err(_) => return Err(LinkError::NotTls),
        }
    }
}

fn shake<P: Process>(
    connection: &mut P,
    socket: &Socket,
    incoming: &mut Incoming,
    early: &mut Vec<u8>,
    deadline: Instant,
) -> Result<(), LinkError> {
    let mut out = Outgoing::default();
    loop {
        let UnbufferedStatus { mut discard, state } = connection.process(incoming.filled());
        let mut starved = false;
        let mut done = false;
        match state {
            Ok(ConnectionState::EncodeTlsData(mut state)) => encode::<P>(&mut state, &mut out)?,
            Ok(ConnectionState::TransmitTlsData(state)) => {
                socket.write_all(out.filled())?;
                out.clear();
                state.done();
            }
            Ok(ConnectionState::BlockedHandshake) => starved = true,
            Ok(ConnectionState::WriteTraffic(_)) => done = true,
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => return Err(LinkError::Closed),
            // The peer had the last word of the handshake, and more to say with it. Early data, which is something else,
            // is not offered.
            Ok(ConnectionState::ReadTraffic(mut state)) => {
                while let Some(record) = state.next_record() {
                    let record = record?;
                    discard += record.discard;
                    early.extend_from_slice(record.payload);
                }
            }
            Ok(_) => return Err(LinkError::NotTls),
            Err(error) => {
                // The alert tells the other side why.
                incoming.discard(discard);
                drain_alert(connection, incoming, &error, &mut out);
                let _ = socket.write_all(out.filled());
                socket.shutdown_write();
                return Err(error.into());
            }
        }
        incoming.discard(discard);
        if done {
            return incoming.no_fragment();
        }
        if starved {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LinkError::HandshakeTimeout);
            }
            socket.set_timeout(Some(left), Some(left))?;
            match incoming.fill(socket) {
                Ok(true) => {}
                Ok(false) => return Err(LinkError::CutInHandshake),
                Err(LinkError::Io(error)) if error.kind() == std::io::ErrorKind::TimedOut => {
                    return Err(LinkError::HandshakeTimeout);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn drain_alert<P: Process>(connection: &mut P, incoming: &mut Incoming, error: &rustls::Error, out: &mut Outgoing) {
    // The library gives out what it has queued before it looks at the bytes. Bytes that are no record stay in the buffer and
    // would fail again, so then the one message must do; else a few can be waiting, and the bound keeps a surprise of the
    // library from looping here.
    use rustls::Error::{DecryptError, InvalidMessage, PeerSentOversizedRecord};
    let turns = if matches!(error, InvalidMessage(_) | DecryptError | PeerSentOversizedRecord) {
        1
    } else {
        8
    };
    for _ in 0..turns {
        let UnbufferedStatus { discard, state } = connection.process(incoming.filled());
        match state {
            Ok(ConnectionState::EncodeTlsData(mut state)) => {
                let _ = encode::<P>(&mut state, out);
            }
            Ok(ConnectionState::TransmitTlsData(state)) => state.done(),
            _ => return,
        }
        incoming.discard(discard);
    }
}

fn encrypt<P: Process>(connection: &mut P, plain: &[u8], out: &mut Outgoing) -> Result<(), LinkError> {
    loop {
        match connection.process(&mut []).state? {
            ConnectionState::WriteTraffic(mut state) => {
                let mut room = plain.len() + (plain.len() / RECORD + 1) * RECORD_EXTRA + SLACK;
                loop {
                    match out.append(room, |bytes| state.encrypt(plain, bytes)) {
                        Ok(()) => return Ok(()),
                        Err(EncryptError::InsufficientSize(need)) if need.required_size > room => {
                            room = need.required_size;
                        }
                        Err(_) => return Err(LinkError::Exhausted),
                    }
                }
            }
            ConnectionState::EncodeTlsData(mut state) => encode::<P>(&mut state, out)?,
            ConnectionState::TransmitTlsData(state) => state.done(),
            // Edge triggered; the peer may close its direction and still read ours.
            ConnectionState::PeerClosed => {}
            _ => return Err(LinkError::Closed),
        }
    }
}

fn decrypt<P: Process>(
    connection: &mut P,
    incoming: &mut Incoming,
    pending: &mut Outgoing,
    sink: &mut impl FnMut(&[u8]),
) -> Result<Decrypted, LinkError> {
    loop {
        let mut outcome = None;
        let UnbufferedStatus { mut discard, state } = connection.process(incoming.filled());
        match state? {
            ConnectionState::ReadTraffic(mut state) => {
                while let Some(record) = state.next_record() {
                    let record = record?;
                    discard += record.discard;
                    sink(record.payload);
                }
                outcome = Some(Decrypted::Some);
            }
            ConnectionState::EncodeTlsData(mut state) => encode::<P>(&mut state, pending)?,
            ConnectionState::TransmitTlsData(state) => state.done(),
            ConnectionState::WriteTraffic(_) => outcome = Some(Decrypted::Starved),
            ConnectionState::PeerClosed | ConnectionState::Closed => outcome = Some(Decrypted::Closed),
            _ => return Err(LinkError::NotTls),
        }
        incoming.discard(discard);
        if let Some(outcome) = outcome {
            if outcome == Decrypted::Starved {
                incoming.no_fragment()?;
            }
            return Ok(outcome);
        }
    }
}

fn close<P: Process>(connection: &mut P, out: &mut Outgoing) {
    if let Ok(ConnectionState::WriteTraffic(mut state)) = connection.process(&mut []).state {
        // Best effort: a peer without the alert sees a cut, which it must survive anyway.
        let _ = out.append(SLACK, |bytes| state.queue_close_notify(bytes));
    }
}
