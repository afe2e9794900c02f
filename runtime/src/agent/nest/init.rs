//! Process 1 of the job's pid namespace: one thread that waits for the agent's end.
//!
//! A pid namespace dies with its process 1, so the bodies cannot outlive it. It also holds a copy of every notification listener:
//! were the agent the only holder, its death would let each body run on for a moment with ENOSYS from every call. Process 1 sees
//! the end of its socket, kills everybody, and only then lets go of the listeners.

use mosix_sys::fdpass;
use mosix_sys::namespaces::fork_first;
use mosix_sys::process::{Fork, close_all_but, exit_now, kill};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long process 1 may take to get ready.
const READY: Duration = Duration::from_secs(10);

/// Process 1, from outside.
#[derive(Debug)]
pub struct Init {
    /// Its pid as the agent sees it.
    pub pid: i32,
    socket: UnixStream,
    mounts: OwnedFd,
    pids: OwnedFd,
}

impl Init {
    /// Starts process 1 of a new pid namespace, in a mount namespace with an empty root.
    ///
    /// # Errors
    /// What fork, the mounts, or the namespace file gave.
    pub(super) fn start() -> io::Result<Self> {
        let (mut socket, theirs) = UnixStream::pair()?;
        match fork_first()? {
            Fork::Child => serve(theirs),
            Fork::Parent(pid) => {
                drop(theirs);
                socket.set_read_timeout(Some(READY))?;
                let mut answer = [0; 4];
                socket.read_exact(&mut answer)?;
                match i32::from_le_bytes(answer) {
                    0 => {}
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                }
                let mounts = File::open(format!("/proc/{pid}/ns/mnt"))?.into();
                let pids = File::open(format!("/proc/{pid}/ns/pid"))?.into();
                Ok(Self {
                    pid,
                    socket,
                    mounts,
                    pids,
                })
            }
        }
    }

    /// The pid namespace.
    pub fn pids(&self) -> BorrowedFd<'_> {
        self.pids.as_fd()
    }

    /// The mount namespace with the empty root.
    pub fn mounts(&self) -> BorrowedFd<'_> {
        self.mounts.as_fd()
    }

    /// Gives process 1 a copy of a listener, to hold until the agent's end.
    ///
    /// # Errors
    /// `EPIPE` when process 1 is gone: then so are all bodies.
    pub fn hold(&self, listener: BorrowedFd<'_>) -> io::Result<()> {
        fdpass::send_all(&self.socket, &[1], &[listener])
    }

    /// Lets process 1 close the copies it holds, when no body is left.
    ///
    /// # Errors
    /// As [`Self::hold`].
    pub fn release(&self) -> io::Result<()> {
        (&self.socket).write_all(&[0])
    }
}

/// The life of process 1.
fn serve(mut socket: UnixStream) -> ! {
    let ready = match empty_root() {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    let told = socket.write_all(&ready.to_le_bytes());
    if ready != 0 || told.is_err() || close_all_but(&[socket.as_fd()]).is_err() {
        exit_now(1);
    }
    let mut held = Vec::new();
    loop {
        let mut order = [0];
        match fdpass::recv(&socket, &mut order) {
            Ok((1.., listeners)) if order[0] == 1 => held.extend(listeners),
            Ok((1.., _)) => held.clear(),
            // The agent is gone. From process 1, -1 means everybody else in the namespace.
            Ok((0, _)) | Err(_) => {
                let _ = kill(-1, libc::SIGKILL);
                exit_now(0);
            }
        }
    }
}

/// Puts an empty read-only file system in place of the root, in a mount namespace of its own.
fn empty_root() -> io::Result<()> {
    let _ = mosix_sys::process::block_all_signals();
    nix::unistd::setsid()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let sealed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Any folder serves as a place for the new root; /proc is there wherever mosix runs.
    mount(
        Some("mosix"),
        "/proc",
        Some("tmpfs"),
        sealed,
        Some("size=4k,nr_inodes=2,mode=0555"),
    )?;
    nix::unistd::chdir("/proc")?;
    match nix::unistd::pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
        // The initial ramfs of a machine that runs from it cannot be replaced, only covered.
        Err(nix::errno::Errno::EINVAL) => {
            mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
            nix::unistd::chroot(".")?;
        }
        Err(error) => return Err(error.into()),
    }
    nix::unistd::chdir("/")?;
    mount(
        none,
        "/",
        none,
        sealed | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
        none,
    )?;
    Ok(())
}
