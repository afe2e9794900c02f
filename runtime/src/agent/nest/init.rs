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
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The order to set the number that comes next; others are 1, to hold a listener, and 0, to let go of them.
const NUMBER: u8 = 2;
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

    /// Makes the next process or thread of the namespace that asks for no number get this one, if it is free.
    ///
    /// # Errors
    /// As [`Self::hold`]; what the kernel said of the number.
    pub fn number_next(&self, number: i32) -> io::Result<()> {
        let mut order = [0; 5];
        order[0] = NUMBER;
        order[1..].copy_from_slice(&(number - 1).to_le_bytes());
        (&self.socket).write_all(&order)?;
        let mut answer = [0; 4];
        (&self.socket).read_exact(&mut answer)?;
        match i32::from_le_bytes(answer) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Whether it can do so: not where /proc is read-only, nor on kernels without checkpoint and restore.
    pub fn can_number(&self) -> bool {
        self.number_next(2)
            .inspect_err(|error| tracing::info!(%error, "new threads of bodies are made at home"))
            .is_ok()
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
    let numbers = File::options().write(true).open("/proc/sys/kernel/ns_last_pid");
    let ready = match empty_root() {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    let told = socket.write_all(&ready.to_le_bytes());
    let mut keep = vec![socket.as_fd()];
    keep.extend(numbers.as_ref().ok().map(AsFd::as_fd));
    if ready != 0 || told.is_err() || close_all_but(&keep).is_err() {
        exit_now(1);
    }
    let mut held = Vec::new();
    loop {
        let mut order = [0];
        match fdpass::recv(&socket, &mut order) {
            Ok((1.., listeners)) if order[0] == 1 => held.extend(listeners),
            Ok((1.., _)) if order[0] == NUMBER => {
                let mut number = [0; 4];
                let errno = match socket.read_exact(&mut number) {
                    Ok(()) => last_number(&numbers, i32::from_le_bytes(number)),
                    Err(_) => libc::EIO,
                };
                // An agent that is gone shows at the next order.
                let _ = socket.write_all(&errno.to_le_bytes());
            }
            Ok((1.., _)) => held.clear(),
            // The agent is gone. From process 1, -1 means everybody else in the namespace.
            Ok((0, _)) | Err(_) => {
                let _ = kill(-1, libc::SIGKILL);
                exit_now(0);
            }
        }
    }
}

/// Writes the number after which the kernel looks for the next one; the errno. Only a process of the namespace can.
fn last_number(file: &io::Result<File>, number: i32) -> i32 {
    let written = match file {
        Ok(file) => file.write_all_at(number.to_string().as_bytes(), 0),
        Err(error) => return error.raw_os_error().unwrap_or(libc::EIO),
    };
    match written {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
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
