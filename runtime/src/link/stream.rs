//! Frames over one connection. No numbering, no memory: a break is an error and the end.

use super::engine::{End, Incoming, handshake};
use super::records::{Opened, OpenerKey, Output, Sealer};
use super::socket::Socket;
use super::tls::Security;
use mosix_wire::frame::{FrameError, HEADER, Header, Kind};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// How long a handshake may take: generous for a slow machine far away, short for who holds a connection hostage.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// Plain bytes that are worth a vectored write instead of a copy.
const DIRECT: usize = 16 << 10;

/// Bytes handed to the socket at once: many records per system call, and still within the second level cache.
const BATCH: usize = 256 << 10;

/// Why a stream ended or could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer has closed the connection at the end of a frame.
    #[error("the peer closed the connection")]
    Closed,
    /// The connection ended within a frame or a record.
    #[error("the connection ended within a message")]
    Cut,
    /// The connection ended during the handshake: the peer's daemon has no agent for the job, or refused us.
    #[error("the connection ended during the handshake")]
    CutInHandshake,
    /// The handshake took too long.
    #[error("no handshake within {} s", HANDSHAKE.as_secs())]
    HandshakeTimeout,
    /// The bytes are not what TLS sends, or the TLS library is in a state it must not be in.
    #[error("the peer does not speak TLS as expected")]
    NotTls,
    /// The keys were used up and could not be renewed.
    #[error("the connection's keys are used up")]
    Exhausted,
    /// The handshake, a certificate or a record is wrong.
    #[error("{}", describe(.0))]
    Tls(#[from] rustls::Error),
    /// A frame is wrong.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The socket.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Words for the TLS errors that users meet.
fn describe(error: &rustls::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError, Error};
    match error {
        Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
            "the peer's certificate is not the one that was agreed on for this job".to_owned()
        }
        Error::AlertReceived(Alert::AccessDenied) => {
            "the peer refused our certificate: it is not the one that was agreed on for this job".to_owned()
        }
        Error::InvalidMessage(_) => "the peer does not speak TLS (is its transport \"plain\"?)".to_owned(),
        other => format!("TLS: {other}"),
    }
}

/// A received frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Its fixed part.
    pub header: Header,
    /// Its serde part.
    pub body: Vec<u8>,
    /// Its raw part.
    pub payload: Vec<u8>,
}

impl Default for Frame {
    fn default() -> Self {
        let header = Header {
            kind: Kind::Ack,
            body: 0,
            payload: 0,
            seq: 0,
            ack: 0,
        };
        Self {
            header,
            body: Vec::new(),
            payload: Vec::new(),
        }
    }
}

impl Frame {
    /// Decodes the body as a message.
    pub fn message<T: serde::de::DeserializeOwned>(&self) -> Result<T, FrameError> {
        mosix_wire::frame::decode_body(&self.body)
    }
}

/// A connection whose handshake is done.
pub struct Stream {
    tx: Sender,
    rx: Receiver,
}

/// The sending half of a [`Stream`].
pub struct Sender {
    socket: Socket,
    sealer: Option<Sealer>,
    /// Bytes on their way to the socket.
    out: Output,
}

/// The receiving half of a [`Stream`].
pub struct Receiver {
    socket: Socket,
    opener: Option<OpenerKey>,
    incoming: Incoming,
    /// Bytes of the opened record at the start of `incoming`, and the part of them that is data nobody has taken yet.
    record: usize,
    data: Range<usize>,
    /// Plaintext that came with the handshake.
    early: Vec<u8>,
    early_at: usize,
    assembly: Assembly,
}

impl Stream {
    /// Takes the dialling end of a connected socket through the handshake.
    pub fn dial(fd: OwnedFd, security: &Security) -> Result<Self, LinkError> {
        Self::new(fd, security, End::Dial, HANDSHAKE)
    }

    /// Takes the accepting end of a connected socket through the handshake.
    pub fn accept(fd: OwnedFd, security: &Security) -> Result<Self, LinkError> {
        Self::new(fd, security, End::Accept, HANDSHAKE)
    }

    fn new(fd: OwnedFd, security: &Security, end: End, timeout: Duration) -> Result<Self, LinkError> {
        let socket = Socket::new(fd)?;
        let mut incoming = Incoming::new();
        socket.set_timeout(Some(timeout), Some(timeout))?;
        let mut left = Vec::new();
        let keys = handshake(security, end, &socket, &mut incoming, &mut left, timeout)?;
        let (sealer, opener) = keys.unzip();
        socket.set_timeout(None, None)?;
        Ok(Self {
            tx: Sender {
                socket: socket.clone(),
                sealer,
                out: Output::default(),
            },
            rx: Receiver {
                socket,
                opener,
                incoming,
                record: 0,
                data: 0..0,
                early: left,
                early_at: 0,
                assembly: Assembly::default(),
            },
        })
    }

    /// Sends a data frame; see [`Sender::send`].
    pub fn send(&mut self, body: &[u8], payload: &[&[u8]]) -> Result<(), LinkError> {
        self.tx.send(body, payload)
    }

    /// Sends a frame of any kind; see [`Sender::send_frame`].
    pub fn send_frame(&mut self, header: &Header, body: &[u8], payload: &[&[u8]]) -> Result<(), LinkError> {
        self.tx.send_frame(header, body, payload)
    }

    /// Receives a frame; see [`Receiver::recv`].
    pub fn recv(&mut self) -> Result<Frame, LinkError> {
        self.rx.recv()
    }

    /// Receives a frame into a used one; see [`Receiver::recv_into`].
    pub fn recv_into(&mut self, frame: &mut Frame) -> Result<(), LinkError> {
        self.rx.recv_into(frame)
    }

    /// Takes a new key with the next record.
    #[cfg(test)]
    pub(super) fn wear_out(&mut self) {
        self.tx.wear_out();
    }

    /// The sending half, where it is.
    pub fn sender(&mut self) -> &mut Sender {
        &mut self.tx
    }

    /// Gives the two halves, for two threads.
    pub fn split(self) -> (Sender, Receiver) {
        (self.tx, self.rx)
    }

    /// Gives the socket, to end the connection from elsewhere or to bound reads in time.
    pub fn socket(&self) -> &Socket {
        &self.tx.socket
    }
}

impl Sender {
    /// Sends a data frame with an unnumbered header; one system call when it is small.
    ///
    /// `payload` is gathered from its parts without being copied together.
    pub fn send(&mut self, body: &[u8], payload: &[&[u8]]) -> Result<(), LinkError> {
        let header = Header::new(Kind::Data, body.len(), payload.iter().map(|part| part.len()).sum())?;
        self.send_frame(&header, body, payload)
    }

    /// Sends a frame whose header was made by the caller for exactly these lengths.
    pub fn send_frame(&mut self, header: &Header, body: &[u8], payload: &[&[u8]]) -> Result<(), LinkError> {
        let header = header.encode();
        let mut parts = Vec::with_capacity(2 + payload.len());
        parts.push(&header[..]);
        parts.push(body);
        parts.extend_from_slice(payload);
        self.write_parts(&parts)
    }

    /// Writes encoded bytes as they are.
    pub(super) fn write_parts(&mut self, parts: &[&[u8]]) -> Result<(), LinkError> {
        if self.sealer.is_none() && parts.iter().map(|part| part.len()).sum::<usize>() > DIRECT {
            self.flush()?;
            let mut slices: Vec<_> = parts
                .iter()
                .filter(|part| !part.is_empty())
                .map(|part| IoSlice::new(part))
                .collect();
            return Ok(self.socket.write_vectored_all(&mut slices)?);
        }
        self.push_parts(parts)?;
        self.flush()
    }

    /// Puts encoded bytes behind what waits to be written; [`Self::flush`] or the next write sends them. Writes by itself when much
    /// waits.
    pub(super) fn push_parts(&mut self, parts: &[&[u8]]) -> Result<(), LinkError> {
        for part in parts {
            // In pieces, so that a large part is never here as a whole a second time.
            for piece in part.chunks(BATCH) {
                match &mut self.sealer {
                    Some(sealer) => sealer.push(piece, &mut self.out)?,
                    None => self.out.extend(piece),
                }
                if self.out.len() >= BATCH {
                    self.flush()?;
                }
            }
        }
        Ok(())
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self) -> Result<(), LinkError> {
        if let Some(sealer) = &mut self.sealer {
            sealer.seal(&mut self.out)?;
        }
        if self.out.len() > 0 {
            let written = self.socket.write_all(self.out.filled());
            self.out.clear();
            written?;
        }
        Ok(())
    }

    /// Writes of what waits as much as goes at once; whether that was all.
    pub(super) fn flush_now(&mut self) -> Result<bool, LinkError> {
        if let Some(sealer) = &mut self.sealer {
            sealer.seal(&mut self.out)?;
        }
        let sent = self.socket.write_now(self.out.filled())?;
        self.out.drop_first(sent);
        Ok(self.out.len() == 0)
    }

    /// Tells the peer that nothing more follows, so that it can tell this end from a cut.
    pub fn finish(&mut self) -> Result<(), LinkError> {
        if let Some(sealer) = &mut self.sealer {
            sealer.close(&mut self.out)?;
        }
        self.flush()?;
        self.socket.shutdown_write();
        Ok(())
    }

    /// Takes a new key with the next record.
    #[cfg(test)]
    pub(super) fn wear_out(&mut self) {
        if let Some(sealer) = &mut self.sealer {
            sealer.wear_out();
        }
    }

    /// Gives the socket.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }
}

impl Receiver {
    /// Waits for the next frame.
    pub fn recv(&mut self) -> Result<Frame, LinkError> {
        let mut frame = Frame::default();
        self.recv_into(&mut frame)?;
        Ok(frame)
    }

    /// Waits for the next frame and puts it into `frame`, whose buffers are used again.
    ///
    /// After a time-out (set on the socket) the call can be repeated, with the same `frame`, and goes on where it was.
    pub fn recv_into(&mut self, frame: &mut Frame) -> Result<(), LinkError> {
        loop {
            if self.early_at < self.early.len() {
                let (used, complete) = self.assembly.feed(&self.early[self.early_at..], frame)?;
                self.early_at += used;
                if complete {
                    return Ok(());
                }
                self.early = Vec::new();
                self.early_at = 0;
            }
            let complete = match &mut self.opener {
                Some(opener) => {
                    if self.data.is_empty() {
                        self.incoming.discard(std::mem::take(&mut self.record));
                        match opener.open(self.incoming.filled())? {
                            Opened::Record(record, data) => (self.record, self.data) = (record, data),
                            Opened::Closed => return Err(self.ended()),
                            // Without the peer's closing record a cut by anybody on the path looks the same as an end.
                            Opened::Starved if !self.incoming.fill(&self.socket)? => return Err(LinkError::Cut),
                            Opened::Starved => {}
                        }
                        continue;
                    }
                    let bytes = self.incoming.filled().get(self.data.clone()).unwrap_or_default();
                    let (used, complete) = self.assembly.feed(bytes, frame)?;
                    self.data.start += used;
                    complete
                }
                None => self.next_bytes(frame)?,
            };
            if complete {
                return Ok(());
            }
        }
    }

    /// Whether a whole frame is here already: the next [`Self::recv_into`] will not wait. A frame whose record is not opened yet does not
    /// count.
    pub(super) fn is_at_hand(&mut self) -> bool {
        let bytes = match &self.opener {
            Some(_) => self.incoming.filled().get(self.data.clone()).unwrap_or_default(),
            None => self.incoming.filled(),
        };
        let header = bytes.first_chunk::<HEADER>().map(Header::decode);
        self.assembly.between() && matches!(header, Some(Ok(header)) if header.frame_len() <= bytes.len())
    }

    /// Takes plain bytes into the frame; true when the frame is complete.
    fn next_bytes(&mut self, frame: &mut Frame) -> Result<bool, LinkError> {
        if self.incoming.filled().is_empty() {
            // The rest of a large payload goes straight to its place.
            if let Some(rest) = self.assembly.large_rest(frame) {
                let got = self.socket.read(rest)?;
                if got == 0 {
                    return Err(LinkError::Cut);
                }
                return Ok(self.assembly.took(got, frame));
            }
            if !self.incoming.fill(&self.socket)? {
                return Err(self.ended());
            }
        }
        let (used, complete) = self.assembly.feed(self.incoming.filled(), frame)?;
        self.incoming.discard(used);
        Ok(complete)
    }

    fn ended(&self) -> LinkError {
        if self.assembly.between() {
            LinkError::Closed
        } else {
            LinkError::Cut
        }
    }

    /// Gives the socket.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }
}

/// Puts a frame together from pieces of any size.
#[derive(Default)]
struct Assembly {
    header: [u8; HEADER],
    /// Bytes of the header that are there; the frame's own fields count the rest.
    got: usize,
    /// Bytes of the payload that are there, when it was sized in advance.
    payload: usize,
}

impl Assembly {
    /// Below this size a payload is gathered; above, plain bytes are read to their place.
    const LARGE: usize = 128 << 10;

    fn between(&self) -> bool {
        self.got == 0
    }

    /// Takes from `bytes` what belongs to the frame: how many bytes, and whether the frame is complete.
    fn feed(&mut self, bytes: &[u8], frame: &mut Frame) -> Result<(usize, bool), FrameError> {
        let mut used = 0;
        if self.got < HEADER {
            let take = bytes.len().min(HEADER - self.got);
            self.header[self.got..self.got + take].copy_from_slice(&bytes[..take]);
            self.got += take;
            used = take;
            if self.got < HEADER {
                return Ok((used, false));
            }
            let header = Header::decode(&self.header)?;
            frame.header = header;
            frame.body.clear();
            frame.payload.clear();
            self.payload = 0;
            // The limits were checked; memory that no byte arrives for is never touched.
            frame.body.reserve_exact(header.body as usize);
            frame.payload.reserve_exact(header.payload as usize);
        }
        let body = (frame.header.body as usize - frame.body.len()).min(bytes.len() - used);
        frame.body.extend_from_slice(&bytes[used..used + body]);
        used += body;
        let payload = (frame.header.payload as usize - self.payload).min(bytes.len() - used);
        if payload > 0 {
            let piece = &bytes[used..used + payload];
            if frame.payload.len() == self.payload {
                frame.payload.extend_from_slice(piece);
            } else {
                frame.payload[self.payload..self.payload + payload].copy_from_slice(piece);
            }
            self.payload += payload;
            used += payload;
        }
        Ok((used, self.finish(frame)))
    }

    fn finish(&mut self, frame: &Frame) -> bool {
        let complete = frame.body.len() == frame.header.body as usize && self.payload == frame.header.payload as usize;
        if complete {
            self.got = 0;
        }
        complete
    }

    /// The place of the rest of a large payload, when nothing else is due.
    fn large_rest<'f>(&self, frame: &'f mut Frame) -> Option<&'f mut [u8]> {
        let due = self.got == HEADER && frame.body.len() == frame.header.body as usize;
        let size = frame.header.payload as usize;
        if !due || size - self.payload < Self::LARGE {
            return None;
        }
        frame.payload.resize(size, 0);
        frame.payload.get_mut(self.payload..)
    }

    fn took(&mut self, bytes: usize, frame: &Frame) -> bool {
        self.payload += bytes;
        self.finish(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
        let bytes = |most| proptest::collection::vec(any::<u8>(), 0..most);
        proptest::collection::vec((bytes(50), bytes(300)), 1..8)
    }

    proptest! {
        #[test]
        fn frames_are_put_together_from_pieces_of_any_size(frames in frames(), sizes in proptest::collection::vec(1..80usize, 1..50)) {
            let mut bytes = Vec::new();
            for (body, payload) in &frames {
                bytes.extend_from_slice(&Header::new(Kind::Data, body.len(), payload.len()).unwrap().encode());
                bytes.extend_from_slice(body);
                bytes.extend_from_slice(payload);
            }
            let (mut assembly, mut frame, mut got, mut at) = (Assembly::default(), Frame::default(), Vec::new(), 0);
            for size in sizes.into_iter().cycle() {
                if at == bytes.len() {
                    break;
                }
                let mut piece = &bytes[at..bytes.len().min(at + size)];
                at += piece.len();
                while !piece.is_empty() {
                    let (used, complete) = assembly.feed(piece, &mut frame).unwrap();
                    prop_assert!(used > 0);
                    piece = &piece[used..];
                    if complete {
                        got.push((frame.body.clone(), frame.payload.clone()));
                    }
                }
            }
            prop_assert!(assembly.between());
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn garbage_is_an_error_or_waits_for_more(bytes in proptest::collection::vec(any::<u8>(), 0..200), valid in any::<bool>()) {
            let mut input = bytes.clone();
            if valid {
                input = [&Header::new(Kind::Data, 1 << 20, 1 << 20).unwrap().encode()[..], &bytes].concat();
            }
            let (mut assembly, mut frame) = (Assembly::default(), Frame::default());
            if let Ok((used, complete)) = assembly.feed(&input, &mut frame) {
                prop_assert!(used <= input.len() && !complete);
            }
        }
    }
}
