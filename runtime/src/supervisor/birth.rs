//! The first process of a job, from fork to its program.
//!
//! ```text
//!  supervisor                                 guest (child, in the launcher's process group)
//!      │ ── fork ───────────────────────────────▶ │
//!      │                                          │ installs the filter
//!      │ ◀──────────────── Ready + listener ───── │ closes its copy
//!  serves the listener, opens the job's socket    │
//!      │ ── go ─────────────────────────────────▶ │ restores signals, execve
//!      │ ◀───────────────────────── Failed ────── │   or
//!      │ ◀─────────── end of file (close-on-exec) │ the program runs
//! ```
//!
//! Nothing of mosix is left in the guest: every descriptor of ours is close-on-exec, and the listener is closed before "go".

use super::exec::{ExecFailure, exec};
use super::fdpass;
use crate::syscall::filter;
use mosix_sys::inherited::inherited;
use mosix_sys::process::{Fork, exit_now, fork};
use mosix_sys::seccomp::{Privs, install_with_listener};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Longest message of a guest in bytes.
const LONGEST: usize = 16 << 10;

/// What the guest executes, ready for execve(2).
#[derive(Clone, Debug)]
pub struct Program {
    /// Its words; the first is also what is searched.
    pub arguments: Vec<CString>,
    /// Its environment.
    pub environment: Vec<CString>,
    /// PATH to search.
    pub path: Option<Vec<u8>>,
    /// Install the home filter.
    pub filter: bool,
}

/// What became of the filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Filtering {
    /// Installed.
    On {
        /// The kernel knows WAIT_KILLABLE_RECV.
        wait_killable: bool,
        /// Set-uid programs of the job run without their privilege.
        no_new_privs: bool,
    },
    /// Not wanted.
    Off,
    /// Not possible: this errno.
    Refused(i32),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum FromGuest {
    Ready(Filtering),
    Failed(ExecFailure),
}

/// The supervisor's end.
#[derive(Debug)]
pub struct Birth {
    socket: OwnedFd,
}

/// What [`Birth::next`] saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BirthEvent {
    /// Not yet decided.
    Nothing,
    /// The program runs (or was killed before it could).
    Executed,
    /// The program could not be executed.
    Failed(ExecFailure),
}

/// A guest that waits for [`Birth::go`].
#[derive(Debug)]
pub struct Born {
    /// Its pid.
    pub pid: i32,
    /// For going on.
    pub birth: Birth,
}

/// Forks the guest. It stays in the caller's process group.
///
/// # Errors
/// Those of fork(2) and socketpair(2).
pub fn fork_guest(program: &Program) -> io::Result<Born> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    match fork()? {
        Fork::Parent(pid) => Ok(Born {
            pid,
            birth: Birth { socket: ours },
        }),
        Fork::Child => {
            drop(ours);
            guest(program, &theirs);
        }
    }
}

/// The guest's part. All signals are blocked until the very end.
fn guest(program: &Program, socket: &OwnedFd) -> ! {
    let filtering = if program.filter {
        install(socket)
    } else {
        tell_ready(socket, Filtering::Off, None)
    };
    if filtering.is_err() || !matches!(recv(socket.as_raw_fd(), &mut [0], MsgFlags::empty()), Ok(1)) {
        // The supervisor is gone: nobody to tell.
        exit_now(125);
    }
    if let Err(e) = inherited().restore() {
        let line = format!("cannot restore the inherited signal handling: {}", e.desc());
        fail(socket, ExecFailure { code: 125, line });
    }
    fail(
        socket,
        exec(&program.arguments, &program.environment, program.path.as_deref()),
    )
}

fn install(socket: &OwnedFd) -> io::Result<()> {
    let Ok(program) = filter::home() else {
        return tell_ready(socket, Filtering::Refused(libc::EINVAL), None);
    };
    match install_with_listener(&program, Privs::WhenNeeded) {
        Ok(installed) => {
            let on = Filtering::On {
                wait_killable: installed.wait_killable,
                no_new_privs: installed.no_new_privs,
            };
            tell_ready(socket, on, Some(installed.listener.as_fd()))
        }
        Err(e) => tell_ready(socket, Filtering::Refused(e as i32), None),
    }
}

fn tell_ready(socket: &OwnedFd, filtering: Filtering, listener: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = postcard::to_allocvec(&FromGuest::Ready(filtering)).map_err(io::Error::other)?;
    fdpass::send(socket.as_fd(), &bytes, listener)
}

fn fail(socket: &OwnedFd, mut failure: ExecFailure) -> ! {
    failure.line.truncate(failure.line.floor_char_boundary(LONGEST / 4));
    let code = i32::from(failure.code);
    if let Ok(bytes) = postcard::to_allocvec(&FromGuest::Failed(failure)) {
        let _ = send(socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL);
    }
    exit_now(code)
}

impl Birth {
    /// Waits for the guest's filter. The descriptor is its listener.
    ///
    /// # Errors
    /// When the guest died first.
    pub fn ready(&self) -> io::Result<(Filtering, Option<OwnedFd>)> {
        let (bytes, fd) = fdpass::recv(self.socket.as_fd(), LONGEST)?;
        match postcard::from_bytes(&bytes) {
            Ok(FromGuest::Ready(filtering)) => Ok((filtering, fd)),
            _ => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the new process was killed before it ran its program",
            )),
        }
    }

    /// Lets the guest execute its program.
    ///
    /// # Errors
    /// When it died.
    pub fn go(&self) -> io::Result<()> {
        send(self.socket.as_raw_fd(), &[1], MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// Looks what became of the execve, without waiting.
    pub fn next(&self) -> BirthEvent {
        let mut buffer = vec![0; LONGEST];
        match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EINTR) => BirthEvent::Nothing,
            Ok(n) if n > 0 => match postcard::from_bytes(&buffer[..n]) {
                Ok(FromGuest::Failed(failure)) => BirthEvent::Failed(failure),
                _ => BirthEvent::Nothing,
            },
            _ => BirthEvent::Executed,
        }
    }
}

impl AsFd for Birth {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
