//! What a supervisor tells its launcher, so that the launcher can stand for the program in the terminal.
//!
//! ```text
//!  supervisor                                    launcher
//!      │ ── Started | Failed ────────────────────▶ │
//!      │ ── Stopped, Continued, Notice … ────────▶ │  stops itself, goes on, prints
//!      │ ── Ended ───────────────────────────────▶ │  ends itself in the same way
//! ```
//!
//! The launcher says nothing: its end closes the socket, and that is all a supervisor wants to know.

use mosix_sys::process::WaitStatus;
use mosix_wire::job::Place;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Longest message in bytes; a notice is cut to fit.
const LONGEST: usize = 4096;
/// Most messages kept while the launcher cannot read (it may be stopped for days). Stops and continuations replace each other.
const KEPT: usize = 64;

/// A message to the launcher.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToLauncher {
    /// The program was started under this pid; a [`ToLauncher::Failed`] may still follow.
    Started {
        /// Its pid.
        pid: i32,
    },
    /// The program could not be executed.
    Failed {
        /// Exit code: 125, 126 or 127.
        code: u8,
        /// One line for the user.
        line: String,
    },
    /// A line for the user.
    Notice(String),
    /// The program's body is there now.
    At(Place),
    /// Job control stopped the program with this signal.
    Stopped(i32),
    /// The program goes on.
    Continued,
    /// The program ended.
    Ended {
        /// Wait status.
        status: i32,
        /// The supervisor ends too: no process of the job is left.
        last: bool,
    },
}

/// Makes the two ends: launcher's, supervisor's.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> Result<(Receiver, Mirror), Errno> {
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    Ok((
        Receiver(a),
        Mirror {
            socket: Some(b),
            waiting: VecDeque::new(),
        },
    ))
}

/// The launcher's end.
#[derive(Debug)]
pub struct Receiver(OwnedFd);

impl Receiver {
    /// Takes the next message without waiting. `Ok(None)`: none is there.
    ///
    /// # Errors
    /// [`Gone`] when the supervisor is gone, or talks nonsense.
    pub fn next(&self) -> Result<Option<ToLauncher>, Gone> {
        let mut buffer = [0; LONGEST];
        loop {
            return match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => Err(Gone),
                Ok(n) => postcard::from_bytes(&buffer[..n]).map(Some).map_err(|_| Gone),
                Err(Errno::EAGAIN) => Ok(None),
                Err(Errno::EINTR) => continue,
                Err(_) => Err(Gone),
            };
        }
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The supervisor is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the supervisor is gone")]
pub struct Gone;

/// The supervisor's end. Sending never blocks and never fails: a launcher that is gone needs nothing.
#[derive(Debug)]
pub struct Mirror {
    socket: Option<OwnedFd>,
    waiting: VecDeque<ToLauncher>,
}

impl Mirror {
    /// Sends `message`, now or as soon as the launcher has room.
    pub fn send(&mut self, message: ToLauncher) {
        if self.socket.is_none() {
            return;
        }
        if matches!(message, ToLauncher::Stopped(_) | ToLauncher::Continued) {
            self.waiting
                .retain(|m| !matches!(m, ToLauncher::Stopped(_) | ToLauncher::Continued));
        }
        if matches!(message, ToLauncher::At(_)) {
            self.waiting.retain(|m| !matches!(m, ToLauncher::At(_)));
        }
        if self.waiting.len() >= KEPT {
            let notice = self.waiting.iter().position(|m| matches!(m, ToLauncher::Notice(_)));
            match notice {
                Some(at) => drop(self.waiting.remove(at)),
                None => return,
            }
        }
        self.waiting.push_back(message);
        self.flush();
    }

    /// Sends what waits, as far as there is room.
    pub fn flush(&mut self) {
        while let (Some(socket), Some(message)) = (&self.socket, self.waiting.front()) {
            let Ok(bytes) = encode(message) else {
                self.waiting.pop_front();
                continue;
            };
            match send(
                socket.as_raw_fd(),
                &bytes,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            ) {
                Ok(_) => drop(self.waiting.pop_front()),
                Err(Errno::EAGAIN | Errno::ENOBUFS) => return,
                Err(Errno::EINTR) => {}
                Err(_) => self.close(),
            }
        }
    }

    /// Whether messages wait for room.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The socket, while the launcher is there.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Looks whether the launcher is gone, after the socket became readable.
    pub fn is_gone(&mut self) -> io::Result<bool> {
        let Some(socket) = &self.socket else { return Ok(true) };
        let mut byte = [0];
        match recv(socket.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
            Ok(n) if n > 0 => Ok(false),
            _ => {
                self.close();
                Ok(true)
            }
        }
    }

    /// Forgets the launcher.
    pub fn close(&mut self) {
        self.socket = None;
        self.waiting.clear();
    }
}

fn encode(message: &ToLauncher) -> Result<Vec<u8>, postcard::Error> {
    let bytes = postcard::to_allocvec(message)?;
    if bytes.len() <= LONGEST {
        return Ok(bytes);
    }
    let cut = |line: &str| line.chars().take(LONGEST / 8).collect::<String>();
    postcard::to_allocvec(&match message {
        ToLauncher::Notice(line) => ToLauncher::Notice(cut(line)),
        ToLauncher::Failed { code, line } => ToLauncher::Failed {
            code: *code,
            line: cut(line),
        },
        other => other.clone(),
    })
}

/// The status of [`ToLauncher::Ended`] as a type.
pub fn ended(status: WaitStatus, last: bool) -> ToLauncher {
    ToLauncher::Ended {
        status: status.raw(),
        last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_that_does_not_read_gets_the_last_state_and_the_end() {
        let (receiver, mut mirror) = pair().unwrap();
        for i in 0..5000 {
            mirror.send(if i % 2 == 0 {
                ToLauncher::Stopped(20)
            } else {
                ToLauncher::Continued
            });
        }
        mirror.send(ToLauncher::Ended {
            status: 256,
            last: true,
        });
        let mut seen = Vec::new();
        while seen.last()
            != Some(&ToLauncher::Ended {
                status: 256,
                last: true,
            })
        {
            while let Some(message) = receiver.next().unwrap() {
                seen.push(message);
            }
            mirror.flush();
        }
        assert_eq!(seen[seen.len() - 2], ToLauncher::Continued);
        drop(mirror);
        // A child that another test of this process is just starting has a copy of the other end until its exec.
        while receiver.next() == Ok(None) {
            std::thread::yield_now();
        }
        assert_eq!(receiver.next(), Err(Gone));
    }

    #[test]
    fn a_long_notice_is_cut() {
        let (receiver, mut mirror) = pair().unwrap();
        mirror.send(ToLauncher::Notice("ü".repeat(10_000)));
        let Ok(Some(ToLauncher::Notice(line))) = receiver.next() else {
            panic!()
        };
        assert_eq!(line.chars().count(), LONGEST / 8);
    }
}
