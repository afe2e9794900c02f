//! Tells a signal that was meant for the launcher alone from one that was sent to everybody.
//!
//! The shell's `kill %1`, `timeout` and systemd signal the launcher's whole process group or control group: the program gets such a
//! signal by itself, and relaying it would run its handler twice. siginfo does not say which it was. So a tiny process lives in the same
//! groups with all signals blocked: if it was sent the signal too, everybody was.

use mosix_sys::process::{Fork, close_all_but, exit_now, fork};
use mosix_sys::signalfd::Signals;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// How long the others of a control group may take to be signalled one after the other.
const GRACE: Duration = Duration::from_millis(3);
/// How long to wait for an answer: a canary that does not sing is as good as none.
const PATIENCE_MS: u8 = 100;

/// The launcher's end.
#[derive(Debug)]
pub struct Canary(OwnedFd);

impl Canary {
    /// Starts it. All signals are blocked already.
    ///
    /// # Errors
    /// Those of fork(2) and socketpair(2): without a canary, signals are relayed once too often.
    pub fn start() -> Result<Self, Errno> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        match fork()? {
            Fork::Parent(_) => Ok(Self(ours)),
            Fork::Child => {
                // With the launcher's end the socket closes too; this only covers a launcher that is killed while we look.
                let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
                let _ = nix::sys::prctl::set_name(c"mosix-canary");
                exit_now(i32::from(sing(&theirs).is_err()))
            }
        }
    }

    /// Whether `signal`, which has just arrived, was sent to the canary too. Forgets it.
    pub fn heard(&self, signal: i32) -> bool {
        self.ask(signal) || {
            std::thread::sleep(GRACE);
            self.ask(signal)
        }
    }

    /// Forgets `signal`: what became of it is known.
    pub fn forget(&self, signal: i32) {
        self.ask(signal);
    }

    fn ask(&self, signal: i32) -> bool {
        let Ok(number) = u8::try_from(signal) else { return false };
        if send(
            self.0.as_raw_fd(),
            &[number],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
        )
        .is_err()
        {
            return false;
        }
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let mut answer = [0];
        while let Ok(1) = poll(&mut fds, PollTimeout::from(PATIENCE_MS)) {
            match recv(self.0.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT) {
                // Answers name the signal, in case an earlier one came too late.
                Ok(1) if answer[0] & 0x7f == number => return answer[0] & 0x80 != 0,
                Ok(1) => {}
                _ => return false,
            }
        }
        false
    }
}

/// The canary's life.
fn sing(launcher: &OwnedFd) -> Result<(), Errno> {
    close_all_but(&[launcher.as_fd()]).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    let signals = Signals::open()?;
    let mut heard = 0u64;
    let mut asked = [0];
    loop {
        match recv(launcher.as_raw_fd(), &mut asked, MsgFlags::empty()) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e),
        }
        while let Some(received) = signals.next()? {
            heard |= 1 << (received.signal - 1);
        }
        let bit = 1 << (asked[0].clamp(1, 64) - 1);
        let yes = if heard & bit != 0 { 0x80 } else { 0 };
        heard &= !bit;
        send(launcher.as_raw_fd(), &[asked[0] | yes], MsgFlags::MSG_NOSIGNAL)?;
    }
}
