//! The listening end of a seccomp filter: receive a trapped call, answer it.
//!
//! Two traps of the interface that callers must know:
//! * `SECCOMP_IOCTL_NOTIF_RECV` ignores `O_NONBLOCK`: [`Listener::recv`] waits in poll(2) first, and takes a hang-up (no task
//!   under the filter is left) as the end.
//! * A notification dies with its task, and its id is then invalid. Every read of the task's memory must be followed by
//!   [`Listener::is_valid`] before it is believed: the pid may belong to somebody else by now. Answering a dead one gives
//!   `ENOENT`, which is never an error of ours.

use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Bytes set aside for one notification: the kernel's structure (80 today) may grow.
const ROOM: usize = 256;

/// A notification listener and the sizes that its kernel uses.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    /// A receiver that waits in the kernel is told when no task under the filter is left (6.11).
    ends_by_itself: bool,
}

/// A trapped system call that waits for its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notification {
    /// Names the notification to the listener; never reused.
    pub id: u64,
    /// Thread id of the caller in the pid namespace of whoever reads the listener; 0 when it has none there.
    pub tid: i32,
    /// System call number.
    pub nr: i32,
    /// `AUDIT_ARCH_*` of the call.
    pub arch: u32,
    /// Address after the `syscall` instruction.
    pub instruction_pointer: u64,
    /// The six argument registers.
    pub args: [u64; 6],
}

/// What the caller of a trapped call gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The kernel executes the call as if nothing had trapped it. Never for a call whose pointer arguments were judged.
    Continue,
    /// The raw result that the task sees in rax: a value, `-errno`, or an internal restart code (-512 to -514).
    Result(i64),
}

impl Listener {
    /// Takes a descriptor that seccomp(2) returned for NEW_LISTENER.
    ///
    /// # Errors
    /// `EOVERFLOW` when this kernel's notification is larger than the room set aside for one; errors of seccomp(2).
    pub fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let (notif, resp, _) = crate::seccomp::notif_sizes()?;
        if usize::from(notif) > ROOM || usize::from(resp) > ROOM {
            return Err(Errno::EOVERFLOW);
        }
        Ok(Self {
            fd,
            ends_by_itself: crate::kernel::is_at_least(6, 11),
        })
    }

    /// Asks the kernel to wake the listener on the caller's CPU (`SYNC_WAKE_UP`, 6.6): a round trip then takes 4.5 us, not
    /// 10 to 60. Returns whether the kernel knows the flag.
    pub fn set_sync_wake_up(&self) -> bool {
        let flag = u64::from(linux_raw_sys::ptrace::SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
        // SAFETY: `self.fd` is an open descriptor (owned); SET_FLAGS takes its flags by value in the third argument.
        let r = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, flag) };
        r == 0
    }

    /// Waits for the next trapped call. `None` when no task under the filter is left, or when `stop` became readable.
    ///
    /// # Errors
    /// Errors of poll(2) and of the ioctl other than those of a notification that died meanwhile.
    pub fn recv(&self, stop: Option<BorrowedFd<'_>>) -> io::Result<Option<Notification>> {
        if stop.is_none() && self.ends_by_itself {
            // One system call less. An error is looked into below, where it means the same.
            match self.recv_now() {
                Ok(n) => return Ok(Some(n)),
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        loop {
            let mut fds = [
                libc::pollfd {
                    fd: self.fd.as_raw_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                },
                libc::pollfd {
                    fd: stop.map_or(-1, |f| f.as_raw_fd()),
                    events: libc::POLLIN,
                    revents: 0,
                },
            ];
            // SAFETY: `fds` is an array of two initialised pollfd; a negative descriptor is skipped by the kernel.
            let r = unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
            if let Err(e) = Errno::result(r) {
                if e == Errno::EINTR {
                    continue;
                }
                return Err(e.into());
            }
            if fds[0].revents & libc::POLLIN != 0 {
                match self.recv_now() {
                    Ok(n) => return Ok(Some(n)),
                    // The caller died, or a signal reached it, between poll and here.
                    Err(Errno::ENOENT | Errno::EINTR) => continue,
                    Err(e) => return Err(e.into()),
                }
            }
            if fds[0].revents != 0 || fds[1].revents != 0 {
                return Ok(None);
            }
        }
    }

    /// Whether [`Self::recv_now`] would find a call now.
    pub fn is_pending(&self) -> bool {
        let mut fd = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `fd` is one initialised pollfd.
        let r = unsafe { libc::poll(&raw mut fd, 1, 0) };
        r == 1 && fd.revents & libc::POLLIN != 0
    }

    /// Receives without waiting in poll first; blocks when nothing is pending.
    ///
    /// # Errors
    /// `ENOENT` when the caller died meanwhile, `EINTR` when the reader was interrupted.
    pub fn recv_now(&self) -> Result<Notification, Errno> {
        #[repr(C, align(8))]
        struct Room([u8; ROOM]);
        let mut room = Room([0; ROOM]);
        // SAFETY: the kernel writes at most the size that `new` checked against ROOM into `room`, which is zeroed as the
        // interface demands and aligned for its u64 fields.
        let r = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, room.0.as_mut_ptr()) };
        Errno::result(r)?;
        // SAFETY: `seccomp_notif` is plain data for which every bit pattern is valid; `room` is larger and aligned for it.
        let raw = unsafe { room.0.as_ptr().cast::<libc::seccomp_notif>().read() };
        Ok(Notification {
            id: raw.id,
            tid: raw.pid.cast_signed(),
            nr: raw.data.nr,
            arch: raw.data.arch,
            instruction_pointer: raw.data.instruction_pointer,
            args: raw.data.args,
        })
    }

    /// Answers notification `id`.
    ///
    /// # Errors
    /// `ENOENT` when its caller is gone (died, or its call was interrupted): nothing was answered and nothing waits.
    /// `EINPROGRESS` when it was answered before and the caller has not woken yet.
    pub fn send(&self, id: u64, answer: Answer) -> Result<(), Errno> {
        #[repr(C, align(8))]
        struct Room([u8; ROOM]);
        let (val, error, flags) = match answer {
            Answer::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            // The kernel hands `error` to the task as it is, when it is not zero, and `val` otherwise.
            Answer::Result(r @ -4095..=-1) => (0, i32::try_from(r).unwrap_or(-libc::EIO), 0),
            Answer::Result(v) => (v, 0, 0),
        };
        let mut room = Room([0; ROOM]);
        let resp = libc::seccomp_notif_resp { id, val, error, flags };
        // SAFETY: `room` is larger than and aligned for the structure.
        unsafe { room.0.as_mut_ptr().cast::<libc::seccomp_notif_resp>().write(resp) };
        // SAFETY: the kernel reads at most the size that `new` checked against ROOM; what lies behind the response is zero.
        let r = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, room.0.as_mut_ptr()) };
        Errno::result(r).map(drop)
    }

    /// Says whether notification `id` still waits, that is, whether its thread is still the one that called.
    pub fn is_valid(&self, id: u64) -> bool {
        // SAFETY: ID_VALID reads one u64 behind the pointer, which is one.
        let r = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) };
        r == 0
    }

    /// Puts a copy of `fd` into the caller of `id` and returns its number there. With `at` it takes that number, replacing what
    /// was there. The notification still waits for its answer.
    ///
    /// # Errors
    /// `ENOENT` when the caller is gone, `EMFILE` when it has no number free, `EBADF` when `at` is beyond its limit.
    pub fn add_fd(&self, id: u64, fd: BorrowedFd<'_>, at: Option<RawFd>, close_on_exec: bool) -> Result<RawFd, Errno> {
        self.add(id, fd, at, close_on_exec, 0)
    }

    /// Puts a copy of `fd` into the caller of `id` and answers with its number, in one step: the caller cannot be interrupted
    /// between the two.
    ///
    /// # Errors
    /// As [`Self::add_fd`]; the notification then still waits.
    pub fn add_fd_and_answer(&self, id: u64, fd: BorrowedFd<'_>, close_on_exec: bool) -> Result<RawFd, Errno> {
        self.add(id, fd, None, close_on_exec, libc::SECCOMP_ADDFD_FLAG_SEND as u32)
    }

    fn add(&self, id: u64, fd: BorrowedFd<'_>, at: Option<RawFd>, cloexec: bool, extra: u32) -> Result<RawFd, Errno> {
        let set = if at.is_some() {
            libc::SECCOMP_ADDFD_FLAG_SETFD as u32
        } else {
            0
        };
        let add = libc::seccomp_notif_addfd {
            id,
            flags: set | extra,
            srcfd: fd.as_raw_fd().cast_unsigned(),
            newfd: at.unwrap_or(0).cast_unsigned(),
            newfd_flags: if cloexec { libc::O_CLOEXEC.cast_unsigned() } else { 0 },
        };
        // SAFETY: the ioctl's number carries the size of the structure it reads; `add` is one, initialised.
        let r = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const add) };
        Errno::result(r)
    }

    /// Gives the descriptor back, for passing it on.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::{Instruction, Privs, install_with_listener};
    use std::sync::mpsc;

    /// Traps getppid alone.
    fn trap_getppid() -> Vec<Instruction> {
        vec![
            Instruction {
                code: 0x20,
                jt: 0,
                jf: 0,
                k: 0,
            },
            Instruction {
                code: 0x15,
                jt: 0,
                jf: 1,
                k: libc::SYS_getppid as u32,
            },
            Instruction {
                code: 0x06,
                jt: 0,
                jf: 0,
                k: libc::SECCOMP_RET_USER_NOTIF,
            },
            Instruction {
                code: 0x06,
                jt: 0,
                jf: 0,
                k: libc::SECCOMP_RET_ALLOW,
            },
        ]
    }

    #[test]
    fn a_value_an_error_and_continue_reach_the_caller_and_its_end_hangs_up() {
        let (tx, rx) = mpsc::channel();
        let guest = std::thread::spawn(move || {
            let installed = install_with_listener(&trap_getppid(), Privs::WhenNeeded).unwrap();
            tx.send(installed.listener).unwrap();
            // SAFETY: getppid has no arguments and no effect.
            let raw = || unsafe { libc::syscall(libc::SYS_getppid) };
            (raw(), Errno::result(raw()), raw())
        });
        let listener = Listener::new(rx.recv().unwrap()).unwrap();
        listener.set_sync_wake_up();
        for answer in [
            Answer::Result(4242),
            Answer::Result(-i64::from(libc::EPIPE)),
            Answer::Continue,
        ] {
            let n = listener.recv(None).unwrap().expect("a trapped call");
            assert_eq!(i64::from(n.nr), libc::SYS_getppid);
            assert!(listener.is_valid(n.id));
            listener.send(n.id, answer).unwrap();
            assert!(!listener.is_valid(n.id));
            let again = listener.send(n.id, Answer::Continue);
            assert!(matches!(again, Err(Errno::ENOENT | Errno::EINPROGRESS)), "{again:?}");
        }
        let (value, error, native) = guest.join().unwrap();
        assert_eq!(value, 4242);
        assert_eq!(error, Err(Errno::EPIPE));
        assert_eq!(native, i64::from(std::os::unix::process::parent_id()));
        assert_eq!(listener.recv(None).unwrap(), None);
    }
}
