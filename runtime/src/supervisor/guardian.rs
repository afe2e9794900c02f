//! The guardian: keeps a job's processes able to run programs when their supervisor was killed.
//!
//! A filter outlives whoever serves its listener. Once the last copy of the listener is closed, execve fails with ENOSYS for ever in
//! every process of the job. So a tiny process holds a second copy. It does nothing while the supervisor lives; when the
//! socket to it closes, it answers each trapped call with CONTINUE until no task under the filter is left. The job goes on as
//! ordinary processes that mosix no longer knows. See docs/adr for the decision.

use super::fdpass;
use super::notify::answer_left_over;
use super::rundir::remove_socket;
use mosix_sys::notif::{Answer, Listener};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Longest path of a job's socket in bytes.
const LONGEST: usize = 4096;

/// The supervisor's end. While it is open, the guardian sleeps.
#[derive(Debug)]
pub struct Guardian(OwnedFd);

/// Makes the two ends: supervisor's, guardian's.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> Result<(Guardian, OwnedFd), Errno> {
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    Ok((Guardian(a), b))
}

impl Guardian {
    /// Gives the guardian its copy of the listener, and the job's socket to remove when the supervisor could not.
    ///
    /// # Errors
    /// When the guardian is gone.
    pub fn guard(&self, listener: BorrowedFd<'_>, socket: &Path) -> io::Result<()> {
        fdpass::send(self.0.as_fd(), socket.as_os_str().as_bytes(), Some(listener))
    }
}

impl AsFd for Guardian {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The guardian's life, in a process of its own that holds nothing but the two descriptors. `in_hand` is the notify thread's file.
///
/// # Errors
/// When it cannot receive or answer; the process ends then.
pub fn run(supervisor: &OwnedFd, in_hand: &File) -> io::Result<()> {
    let (path, listener) = fdpass::recv(supervisor.as_fd(), LONGEST)?;
    let Some(listener) = listener else { return Ok(()) };
    let listener = Listener::new(listener)?;
    // The supervisor sends nothing more: this returns when it is gone.
    fdpass::recv(supervisor.as_fd(), 1)?;
    if !path.is_empty() {
        remove_socket(&PathBuf::from(OsString::from_vec(path)));
    }
    answer_left_over(&listener, in_hand);
    while let Some(n) = listener.recv(None)? {
        // A caller that died meanwhile needs no answer.
        let _ = listener.send(n.id, Answer::Continue);
    }
    Ok(())
}
