//! The frame: a fixed header, a serde body, and a raw payload.
//!
//! ```text
//!  0      4   5    6      8         12           16        24       32
//!  ┌──────┬───┬────┬──────┬─────────┬────────────┬─────────┬────────┬──────┬─────────┐
//!  │ magic│ver│kind│ zero │ body len│ payload len│   seq   │  ack   │ body │ payload │
//!  └──────┴───┴────┴──────┴─────────┴────────────┴─────────┴────────┴──────┴─────────┘
//! ```
//!
//! Numbers are little endian. The header is outside of the encoded body, so that sizes are checked before a byte of the body
//! is read or room for it is allocated.

use crate::limits;
use serde::{Serialize, de::DeserializeOwned};

/// The first four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"mosx";

/// The version of the header and of the messages in frames.
pub const VERSION: u8 = 1;

/// Bytes of an encoded [`Header`].
pub const HEADER: usize = 32;

/// What a frame is for; zero is no kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A message of the user of a session or stream.
    Data = 1,
    /// Nothing but an acknowledgement; also the sign of life of an idle link.
    Ack = 2,
    /// First frame each way on a new connection of a session: [`Resume`].
    Resume = 3,
    /// The session cannot be continued; the body is the reason, a string.
    Refuse = 4,
    /// The sender has closed the session: numbered like data, the last of its direction.
    Close = 5,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Data,
            2 => Self::Ack,
            3 => Self::Resume,
            4 => Self::Refuse,
            5 => Self::Close,
            _ => return None,
        })
    }
}

/// The fixed part of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the frame is for.
    pub kind: Kind,
    /// Bytes of the body.
    pub body: u32,
    /// Bytes of the payload.
    pub payload: u32,
    /// Number of the frame in its direction, from 1; 0 when the frame has none.
    pub seq: u64,
    /// The highest number received from the other side without a gap.
    pub ack: u64,
}

/// Why bytes are not a frame of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The first bytes are something else.
    #[error("not a mosix frame (starts with {:02x} {:02x} {:02x} {:02x})", .0[0], .0[1], .0[2], .0[3])]
    Magic([u8; 4]),
    /// The peer speaks another version.
    #[error("frame version {0}, this mosix speaks {VERSION}")]
    Version(u8),
    /// A kind that this version does not have.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// Bytes that must be zero are not.
    #[error("reserved bytes of the frame header are not zero")]
    Reserved,
    /// The body is longer than allowed.
    #[error("frame body of {0} bytes, at most {1} are allowed")]
    Body(u64, u64),
    /// The payload is longer than allowed.
    #[error("frame payload of {0} bytes, at most {1} are allowed")]
    Payload(u64, u64),
    /// The body is not the message that was expected.
    #[error("frame body is not a valid message")]
    Message,
    /// Fewer bytes than the header says.
    #[error("frame is truncated")]
    Truncated,
}

impl Header {
    /// Makes a header for a body and payload of these lengths, or says which one is too long.
    pub fn new(kind: Kind, body: usize, payload: usize) -> Result<Self, FrameError> {
        if body > limits::FRAME_BODY {
            return Err(FrameError::Body(body as u64, limits::FRAME_BODY as u64));
        }
        if payload > limits::FRAME_PAYLOAD {
            return Err(FrameError::Payload(payload as u64, limits::FRAME_PAYLOAD as u64));
        }
        // Both limits are below 4 GiB (asserted in `limits`), so nothing is cut off here.
        Ok(Self {
            kind,
            body: body as u32,
            payload: payload as u32,
            seq: 0,
            ack: 0,
        })
    }

    /// Encodes the header.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = self.kind as u8;
        out[8..12].copy_from_slice(&self.body.to_le_bytes());
        out[12..16].copy_from_slice(&self.payload.to_le_bytes());
        out[16..24].copy_from_slice(&self.seq.to_le_bytes());
        out[24..32].copy_from_slice(&self.ack.to_le_bytes());
        out
    }

    /// Decodes and checks a header against the limits of [`crate::limits`].
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, FrameError> {
        Self::decode_within(bytes, limits::FRAME_BODY, limits::FRAME_PAYLOAD)
    }

    /// Decodes and checks a header against tighter limits, for peers and connections that need less.
    pub fn decode_within(bytes: &[u8; HEADER], max_body: usize, max_payload: usize) -> Result<Self, FrameError> {
        let [m0, m1, m2, m3, version, kind, z0, z1, rest @ ..] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(FrameError::Magic([m0, m1, m2, m3]));
        }
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let kind = Kind::from_byte(kind).ok_or(FrameError::Kind(kind))?;
        if [z0, z1] != [0, 0] {
            return Err(FrameError::Reserved);
        }
        let word = |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let header = Self {
            kind,
            body: word(0),
            payload: word(4),
            seq: long(8),
            ack: long(16),
        };
        if header.body as usize > max_body {
            return Err(FrameError::Body(u64::from(header.body), max_body as u64));
        }
        if header.payload as usize > max_payload {
            return Err(FrameError::Payload(u64::from(header.payload), max_payload as u64));
        }
        Ok(header)
    }

    /// Bytes of the whole frame.
    pub fn frame_len(&self) -> usize {
        HEADER + self.body as usize + self.payload as usize
    }
}

/// Encodes a message as a frame body.
pub fn encode_body<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    // Room for most messages: growing byte by byte would allocate several times for each call.
    let body = postcard::to_extend(message, Vec::with_capacity(128)).map_err(|_| FrameError::Message)?;
    if body.len() > limits::FRAME_BODY {
        return Err(FrameError::Body(body.len() as u64, limits::FRAME_BODY as u64));
    }
    Ok(body)
}

/// Decodes a frame body; left-over bytes are an error.
pub fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Message),
    }
}

/// Body of a [`Kind::Resume`] frame: what one side knows of a session, told at the start of each of its connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, serde::Deserialize)]
pub struct Resume {
    /// The session, a random number drawn by the dialling side.
    pub session: u64,
    /// The life of the sender's end: random when the end was made, so that a restarted program is told from a broken link.
    pub life: u64,
    /// The life of the receiver's end as the sender knows it; 0 before the first connection.
    pub peer_life: u64,
    /// The highest number received from the other side without a gap.
    pub received: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        (1u8..=5).prop_map(|byte| Kind::from_byte(byte).unwrap())
    }

    proptest! {
        #[test]
        fn every_header_comes_back(kind in kinds(), body in 0..=limits::FRAME_BODY, payload in 0..=limits::FRAME_PAYLOAD, seq: u64, ack: u64) {
            let header = Header { seq, ack, ..Header::new(kind, body, payload).unwrap() };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn garbage_never_passes_a_limit(mut bytes: [u8; HEADER], fix in 0..4u8) {
            // Half-valid garbage reaches the later checks.
            if fix > 0 { bytes[0..4].copy_from_slice(&MAGIC); }
            if fix > 1 { bytes[4] = VERSION; bytes[5] %= 7; }
            if fix > 2 { bytes[6] = 0; bytes[7] = 0; }
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert!(header.body as usize <= limits::FRAME_BODY);
                prop_assert!(header.payload as usize <= limits::FRAME_PAYLOAD);
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn garbage_bodies_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode_body::<Resume>(&bytes);
            let _ = decode_body::<crate::link::ToHome>(&bytes);
            let _ = decode_body::<crate::link::ToHost>(&bytes);
        }
    }

    #[test]
    fn oversized_and_foreign_headers_are_named() {
        let good = Header::new(Kind::Data, 3, 4).unwrap().encode();
        assert_eq!(Header::decode_within(&good, 2, 4), Err(FrameError::Body(3, 2)));
        assert_eq!(Header::decode_within(&good, 3, 3), Err(FrameError::Payload(4, 3)));
        assert!(Header::new(Kind::Data, limits::FRAME_BODY + 1, 0).is_err());
        assert!(Header::new(Kind::Data, 0, limits::FRAME_PAYLOAD + 1).is_err());
        let mut huge = good;
        huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            Header::decode(&huge),
            Err(FrameError::Body(u64::from(u32::MAX), limits::FRAME_BODY as u64))
        );
        let mut old = good;
        old[4] = 9;
        assert_eq!(Header::decode(&old), Err(FrameError::Version(9)));
        let http: [u8; HEADER] = *b"GET / HTTP/1.1\r\nHost: example.co";
        assert!(matches!(Header::decode(&http), Err(FrameError::Magic(_))));
    }

    #[test]
    fn left_over_bytes_are_no_message() {
        let resume = Resume {
            session: 1,
            life: 2,
            peer_life: 3,
            received: 4,
        };
        let mut body = encode_body(&resume).unwrap();
        assert_eq!(decode_body::<Resume>(&body), Ok(resume));
        body.push(0);
        assert_eq!(decode_body::<Resume>(&body), Err(FrameError::Message));
        assert_eq!(decode_body::<Resume>(&body[..2]), Err(FrameError::Message));
    }
}
