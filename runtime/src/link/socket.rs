//! A connected stream socket: blocking reads and writes that name time-outs, and the options every link wants.

use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// How long sent bytes may stay unacknowledged by the peer's kernel before the connection is given up.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// A shared connected socket; the descriptor closes with the last clone.
#[derive(Clone, Debug)]
pub struct Socket(Arc<OwnedFd>);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket {
    /// Takes a connected socket, makes it blocking, and sets what links want: no delay of small messages, and an end to
    /// connections whose peer is silent. Options that a unix socket (tests) lacks are skipped.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, false)?;
        let tcp = sockopt::set_tcp_nodelay(&fd, true);
        if tcp.is_ok() {
            sockopt::set_tcp_user_timeout(&fd, USER_TIMEOUT.as_millis() as u32)?;
            sockopt::set_socket_keepalive(&fd, true)?;
            sockopt::set_tcp_keepidle(&fd, Duration::from_secs(5))?;
            sockopt::set_tcp_keepintvl(&fd, Duration::from_secs(2))?;
            sockopt::set_tcp_keepcnt(&fd, 3)?;
        }
        Ok(Self(Arc::new(fd)))
    }

    /// Reads some bytes; 0 is the end. A time-out (see [`Socket::set_timeout`]) is `TimedOut`.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::net::recv(&*self.0, &mut *buffer, RecvFlags::empty()) {
                Ok((bytes, _)) => return Ok(bytes),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes all bytes.
    pub fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::net::send(&*self.0, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes what goes without waiting; how many bytes.
    pub fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest @ [_, ..]) = bytes.get(done..) {
            match rustix::net::send(&*self.0, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => done += sent,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    /// Writes all slices in order, many of them with one system call.
    pub fn write_vectored_all(&self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut rest = slices;
        while !rest.is_empty() {
            let some = rest.len().min(64);
            let sent = match rustix::net::sendmsg(&*self.0, &rest[..some], &mut Default::default(), SendFlags::NOSIGNAL)
            {
                Ok(sent) => sent,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            };
            IoSlice::advance_slices(&mut rest, sent);
        }
        Ok(())
    }

    /// Bounds each read and write in time; `None` waits for ever.
    pub fn set_timeout(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        sockopt::set_socket_timeout(&*self.0, sockopt::Timeout::Recv, read)?;
        sockopt::set_socket_timeout(&*self.0, sockopt::Timeout::Send, write)?;
        Ok(())
    }

    /// Ends the connection in both directions: whoever is blocked in a read or write of it returns.
    pub fn shutdown(&self) {
        // An error means that the connection has already ended.
        let _ = rustix::net::shutdown(&*self.0, Shutdown::Both);
    }

    /// Says that nothing more will be written.
    pub fn shutdown_write(&self) {
        let _ = rustix::net::shutdown(&*self.0, Shutdown::Write);
    }
}
