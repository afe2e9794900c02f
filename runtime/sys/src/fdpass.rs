//! Bytes with descriptors over unix stream sockets: [unix(7)](https://man7.org/linux/man-pages/man7/unix.7.html), SCM_RIGHTS.
//!
//! Descriptors travel with the first byte of what is sent and are received close-on-exec. [`send`] and [`recv`] make one
//! system call each and report `WouldBlock` on a non-blocking socket, so an event loop can drive them; [`send_all`] and
//! [`recv_exact`] loop and are for blocking sockets.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most descriptors in one message; the kernel's own limit (SCM_MAX_FD) is 253.
pub const MAX_FDS: usize = 8;

const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

/// Sends some of `bytes`, at least one, and all of `fds` with the first; returns how many bytes were taken.
///
/// A peer that is gone is `BrokenPipe`, never SIGPIPE.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if bytes.is_empty() || fds.len() > MAX_FDS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "descriptors travel with at least one byte, at most 8 at once",
        ));
    }
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors in one message",
        ));
    }
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket.as_fd(),
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(sent)
}

/// Receives up to `buffer.len()` bytes and the descriptors that came with them; 0 bytes is the end of the stream.
///
/// More than [`MAX_FDS`] descriptors in one message are an error; those received are closed.
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket.as_fd(),
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "descriptors of a message were lost: too many of them, or no room in the table",
        ));
    }
    Ok((message.bytes, fds))
}

/// Sends all of `bytes`, and `fds` with the first, on a blocking socket.
pub fn send_all(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut sent = send(&socket, bytes, fds)?;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        sent += send(&socket, rest, &[])?;
    }
    Ok(())
}

/// Receives exactly `buffer.len()` bytes from a blocking socket and every descriptor that came on the way.
///
/// The end of the stream before the first byte, or within, is `UnexpectedEof`.
pub fn recv_exact(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Vec<OwnedFd>> {
    let mut fds = Vec::new();
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
        let (bytes, more) = recv(&socket, rest)?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        got += bytes;
        fds.extend(more);
        if fds.len() > MAX_FDS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "more descriptors than a message may carry",
            ));
        }
    }
    Ok(fds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pipe_travels_and_works_close_on_exec() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send_all(&a, b"hello", &[writer.as_fd()]).unwrap();
        drop(writer);
        let mut text = [0; 5];
        let mut fds = recv_exact(&b, &mut text).unwrap();
        assert_eq!((&text, fds.len()), (b"hello", 1));
        let fd = fds.remove(0);
        assert!(
            rustix::io::fcntl_getfd(&fd)
                .unwrap()
                .contains(rustix::io::FdFlags::CLOEXEC)
        );
        let mut file = std::fs::File::from(fd);
        file.write_all(b"x").unwrap();
        drop(file);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"x");
    }

    #[test]
    fn too_many_descriptors_are_refused_on_both_sides() {
        let (a, b) = UnixStream::pair().unwrap();
        let many = vec![a.as_fd(); MAX_FDS + 1];
        assert_eq!(send(&a, b"x", &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        // A foreign sender with more than we accept: none of them stays open here.
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let twenty = vec![writer.as_fd(); 20];
        assert!(control.push(SendAncillaryMessage::ScmRights(&twenty)));
        rustix::net::sendmsg(&a, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        assert_eq!(recv(&b, &mut [0; 4]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(writer);
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn the_end_and_would_block_are_told() {
        let (a, b) = UnixStream::pair().unwrap();
        b.set_nonblocking(true).unwrap();
        assert_eq!(recv(&b, &mut [0; 4]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(recv(&b, &mut [0; 4]).unwrap().0, 0);
        assert_eq!(
            recv_exact(&b, &mut [0; 4]).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(send(&b, b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
