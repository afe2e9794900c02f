//! Messages of a job's socket over a stream: `u32` length, postcard.

use mosix_wire::limits::JOB_MESSAGE;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};

/// Writes one message.
///
/// # Errors
/// When it is too large, or the other end is gone.
pub fn write(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = postcard::to_allocvec(message).map_err(io::Error::other)?;
    if body.len() > JOB_MESSAGE {
        let text = format!("a message of {} bytes is over the limit of {JOB_MESSAGE}", body.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_le_bytes()[..], &body].concat())
}

/// Reads one message of at most `longest` bytes; `None` at an end between messages.
///
/// # Errors
/// `InvalidData` for what is no message; `UnexpectedEof` for a truncated one; those of reading.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read, longest: usize) -> io::Result<Option<T>> {
    let mut head = [0; 4];
    let mut got = 0;
    while got < head.len() {
        match stream.read(&mut head[got..]) {
            Ok(0) if got == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let length = u32::from_le_bytes(head) as usize;
    let bad = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    if length > longest.min(JOB_MESSAGE) {
        return Err(bad(format!(
            "a message announces {length} bytes, over the limit of {}",
            longest.min(JOB_MESSAGE)
        )));
    }
    // Grows with what really arrives, not with what was announced.
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body)?;
    if body.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match postcard::take_from_bytes(&body) {
        Ok((message, [])) => Ok(Some(message)),
        Ok(_) => Err(bad("a message has bytes after its end".into())),
        Err(e) => Err(bad(format!("a message cannot be decoded: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mosix_wire::job::{Answer, Request};

    #[test]
    fn messages_survive_the_way() {
        let mut wire = Vec::new();
        write(&mut wire, &Request::Ps).unwrap();
        write(
            &mut wire,
            &Request::Kill {
                target: mosix_wire::job::Target::Job,
                signal: 15,
            },
        )
        .unwrap();
        let mut from = &wire[..];
        assert_eq!(read::<Request>(&mut from, 1000).unwrap(), Some(Request::Ps));
        assert!(matches!(
            read::<Request>(&mut from, 1000).unwrap(),
            Some(Request::Kill { signal: 15, .. })
        ));
        assert_eq!(read::<Request>(&mut from, 1000).unwrap(), None);
    }

    #[test]
    fn too_long_truncated_and_trailing_messages_are_refused() {
        let huge = [0xff, 0xff, 0xff, 0x7f, 1];
        assert_eq!(
            read::<Request>(&mut &huge[..], 100).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        assert_eq!(
            read::<Request>(&mut &[9, 0, 0, 0, 0][..], 100).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(
            read::<Request>(&mut &[9, 0][..], 100).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(
            read::<Request>(&mut &[2, 0, 0, 0, 0, 0][..], 100).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    proptest::proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = read::<Request>(&mut &bytes[..], 1 << 16);
            let _ = read::<Answer>(&mut &bytes[..], 1 << 16);
        }
    }
}
