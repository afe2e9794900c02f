//! The handshake of a connection, without and with keys: rustls' unbuffered interface up to the traffic secrets.
//!
//! What comes after it is in [`super::records`].

use super::records::{Key, OpenerKey, RECORD, Schedule, Sealer, Side};
use super::socket::Socket;
use super::stream::LinkError;
use super::tls::Security;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use std::time::{Duration, Instant};

/// Room for a handshake message, at first.
const ROOM: usize = 4096;

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

/// Performs the handshake on the socket within `timeout`, and gives the keys of both directions; none when the link is plain.
/// Data that came with its last message goes to `early`.
pub(super) fn handshake(
    security: &Security,
    end: End,
    socket: &Socket,
    incoming: &mut Incoming,
    early: &mut Vec<u8>,
    timeout: Duration,
) -> Result<Option<(Sealer, OpenerKey)>, LinkError> {
    let Security::Tls { client, server } = security else {
        return Ok(None);
    };
    let deadline = Instant::now() + timeout;
    let (secrets, side) = match end {
        End::Dial => {
            let name = ServerName::try_from("job.mosix").map_err(|_| LinkError::NotTls)?;
            let mut connection = UnbufferedClientConnection::new(client.clone(), name)?;
            shake(&mut connection, socket, incoming, early, deadline)?;
            let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
            (secrets, Side::Client(kernel))
        }
        End::Accept => {
            let mut connection = UnbufferedServerConnection::new(server.clone())?;
            shake(&mut connection, socket, incoming, early, deadline)?;
            let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
            (secrets, Side::Server(kernel))
        }
    };
    let schedule = Schedule::new(side);
    let sealer = Sealer::new(Key::new(secrets.tx.0, &secrets.tx.1)?, schedule.clone());
    let opener = OpenerKey::new(Key::new(secrets.rx.0, &secrets.rx.1)?, schedule);
    Ok(Some((sealer, opener)))
}

/// Handshake messages on their way to the socket.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    used: usize,
}

impl Outgoing {
    fn filled(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    fn clear(&mut self) {
        self.used = 0;
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
    let mut room = ROOM;
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
            return Ok(());
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
