//! Messages with descriptors on blocking unix sockets; see [`mosix_wire::control`] for their form.

use mosix_sys::fdpass;
use mosix_wire::control::{decode, decode_len, encode};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Sends a message, with descriptors.
pub fn send<T: Serialize>(socket: &UnixStream, message: &T, limit: usize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = encode(message, limit).map_err(invalid)?;
    fdpass::send_all(socket, &bytes, fds).map_err(timed)
}

/// Receives a message, with the descriptors that came with it. The end before its first byte is `UnexpectedEof`.
pub fn recv<T: DeserializeOwned>(socket: &UnixStream, limit: usize) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut len = [0; 4];
    let mut fds = fdpass::recv_exact(socket, &mut len).map_err(timed)?;
    let mut bytes = vec![0; decode_len(len, limit).map_err(invalid)?];
    fds.extend(fdpass::recv_exact(socket, &mut bytes).map_err(timed)?);
    Ok((decode(&bytes).map_err(invalid)?, fds))
}

fn invalid(error: mosix_wire::control::MessageError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A time-out of a blocking socket is reported by the kernel as "would block".
fn timed(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock {
        io::ErrorKind::TimedOut.into()
    } else {
        error
    }
}
