//! What travels between `cargo xtask vm exec` and the exec server in the guest, over one virtio-serial port.
//!
//! ```text
//! client                          server
//!   zeros, HELLO nonce  ────────▶   ends whatever the port still ran
//!                       ◀────────  HELLO nonce          everything before it belongs to somebody else
//!   EXEC request        ────────▶   starts the program
//!   STDIN …, STDIN_END  ────────▶
//!                       ◀────────  TAKEN n              so much of stdin was written: the client's window
//!                       ◀────────  OUT …, ERR …
//!                       ◀────────  EXIT code | FAILED errno text
//! ```
//!
//! A port is a byte stream that outlives its clients: a client that was killed leaves half a frame behind. Therefore a
//! single zero byte is a frame that means nothing, and a client starts with more zeros than the longest frame has
//! bytes: they complete the half frame, and the rest is skipped.
//!
//! Frame: kind (1 byte, never 0), length of the body (4 bytes, little endian), body.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Longest body of a frame, in bytes. Small, because every client sends that many zeros first.
pub const BODY_MAX: usize = 16 * 1024;

/// Bytes of stdin that a client may have sent beyond what the server reported as taken.
pub const STDIN_WINDOW: usize = 64 * 1024;

/// Ports per guest, that is, commands at one time.
pub const PORTS: usize = 8;

/// Name of port `index` under `/sys/class/virtio-ports/*/name`.
pub fn port_name(index: usize) -> String {
    format!("mosix.exec.{index}")
}

/// Bytes that a client sends before its first frame.
pub fn preamble() -> Vec<u8> {
    vec![0; BODY_MAX + 5]
}

/// What to run in the guest. Bytes, because arguments and names need not be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Program and arguments, at least one.
    pub argv: Vec<Vec<u8>>,
    /// Variables added to the server's environment.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working folder; the server's own if absent.
    pub cwd: Option<Vec<u8>>,
    /// Whether to wait for the end of stdout and stderr too, which a background program may hold open for ever.
    pub to_end: bool,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Start of a client's use of the port, and its answer.
    Hello(u64),
    /// Start a program.
    Exec(Request),
    /// Bytes for the program's stdin.
    Stdin(Vec<u8>),
    /// No more stdin.
    StdinEnd,
    /// So many bytes of stdin have reached the program.
    Taken(u32),
    /// Bytes of the program's stdout.
    Out(Vec<u8>),
    /// Bytes of the program's stderr.
    Err(Vec<u8>),
    /// The program ended with this code, or with 128 + the signal that killed it.
    Exit(u8),
    /// The program could not be started: errno and text.
    Failed(i32, String),
}

impl Frame {
    fn encode(&self) -> io::Result<(u8, Vec<u8>)> {
        Ok(match self {
            Self::Hello(nonce) => (1, nonce.to_le_bytes().to_vec()),
            Self::Exec(request) => (2, serde_json::to_vec(request)?),
            Self::Stdin(bytes) => (3, bytes.clone()),
            Self::StdinEnd => (4, Vec::new()),
            Self::Taken(count) => (5, count.to_le_bytes().to_vec()),
            Self::Out(bytes) => (6, bytes.clone()),
            Self::Err(bytes) => (7, bytes.clone()),
            Self::Exit(code) => (8, vec![*code]),
            Self::Failed(errno, text) => {
                let mut body = errno.to_le_bytes().to_vec();
                body.extend(text.bytes().take(1024));
                (9, body)
            }
        })
    }

    fn decode(kind: u8, body: Vec<u8>) -> io::Result<Self> {
        let short = || invalid(format!("frame of kind {kind} with {} bytes", body.len()));
        Ok(match kind {
            1 => Self::Hello(u64::from_le_bytes(body.as_slice().try_into().map_err(|_| short())?)),
            2 => Self::Exec(serde_json::from_slice(&body)?),
            3 => Self::Stdin(body),
            4 => Self::StdinEnd,
            5 => Self::Taken(u32::from_le_bytes(body.as_slice().try_into().map_err(|_| short())?)),
            6 => Self::Out(body),
            7 => Self::Err(body),
            8 => Self::Exit(*body.first().ok_or_else(short)?),
            9 => {
                let (errno, text) = body.split_first_chunk::<4>().ok_or_else(short)?;
                Self::Failed(i32::from_le_bytes(*errno), String::from_utf8_lossy(text).into_owned())
            }
            _ => return Err(invalid(format!("frame of unknown kind {kind}"))),
        })
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Writes one frame with a single `write_all`.
pub fn write_frame(to: &mut impl Write, frame: &Frame) -> io::Result<()> {
    let (kind, body) = frame.encode()?;
    if body.len() > BODY_MAX {
        return Err(invalid(format!(
            "frame body of {} bytes, at most {BODY_MAX} go",
            body.len()
        )));
    }
    let mut bytes = Vec::with_capacity(body.len() + 5);
    bytes.push(kind);
    bytes.extend(
        u32::try_from(body.len())
            .map_err(|_| invalid("frame body".into()))?
            .to_le_bytes(),
    );
    bytes.extend(body);
    to.write_all(&bytes)
}

/// Reads the next frame; zeros before it are skipped. The end of the stream is `UnexpectedEof`.
pub fn read_frame(from: &mut impl Read) -> io::Result<Frame> {
    let kind = loop {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        if byte[0] != 0 {
            break byte[0];
        }
    };
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > BODY_MAX {
        return Err(invalid(format!("frame body of {length} bytes, at most {BODY_MAX} go")));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Frame::decode(kind, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Frame> {
        vec![
            Frame::Hello(0x0102_0304_0506_0708),
            Frame::Exec(Request {
                argv: vec![b"a\xff".to_vec()],
                env: vec![(b"K".to_vec(), vec![])],
                cwd: None,
                to_end: true,
            }),
            Frame::Stdin(vec![0, 1, 2, 0]),
            Frame::StdinEnd,
            Frame::Taken(7),
            Frame::Out(vec![0; BODY_MAX]),
            Frame::Err(b"no".to_vec()),
            Frame::Exit(255),
            Frame::Failed(2, "no such file".into()),
        ]
    }

    #[test]
    fn every_frame_comes_back() {
        let mut bytes = Vec::new();
        for frame in all() {
            write_frame(&mut bytes, &frame).unwrap();
            bytes.push(0);
        }
        let mut from = bytes.as_slice();
        for frame in all() {
            assert_eq!(read_frame(&mut from).unwrap(), frame);
        }
        assert_eq!(read_frame(&mut from).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_new_client_is_heard_after_a_frame_cut_anywhere() {
        for frame in all() {
            let mut whole = Vec::new();
            write_frame(&mut whole, &frame).unwrap();
            for cut in (0..whole.len()).step_by(1 + whole.len() / 50) {
                let mut bytes = whole[..cut].to_vec();
                bytes.extend(preamble());
                write_frame(&mut bytes, &Frame::Hello(42)).unwrap();
                let mut from = bytes.as_slice();
                let heard = loop {
                    match read_frame(&mut from) {
                        Ok(Frame::Hello(42)) => break true,
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break false,
                        _ => {}
                    }
                };
                assert!(heard, "{frame:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_before_memory_is_taken() {
        let mut bytes = vec![6];
        bytes.extend(u32::MAX.to_le_bytes());
        assert_eq!(
            read_frame(&mut bytes.as_slice()).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        assert!(write_frame(&mut Vec::new(), &Frame::Out(vec![0; BODY_MAX + 1])).is_err());
    }
}
