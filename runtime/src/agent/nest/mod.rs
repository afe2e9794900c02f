//! The place on a host in which the bodies of one job live: namespaces that hold nothing.
//!
//! ```text
//!  agent ── outside the pid namespace, inside the user, mount, net, ipc, uts and cgroup namespaces it made
//!    ├─ init          pid 1, one thread; ends with the agent and takes every body with it
//!    └─ body, body …  children of the agent's tracer thread, under their home's pids, in init's mount namespace: an empty,
//!                     read-only root
//! ```
//! All of it works for root and for an ordinary user alike. What remains of the agent's own rights afterwards is in [`rights`]; time
//! namespaces come and go with arrivals, see [`clocks`].
//!
//! See [namespaces(7)](https://man7.org/linux/man-pages/man7/namespaces.7.html).

mod clocks;
pub mod confine;
mod init;
mod rights;
mod user;

pub use clocks::{TimeGate, now};
pub use init::Init;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use std::io;

/// Why the namespaces could not be made; the reason names the remedy where there is one.
#[derive(Debug, thiserror::Error)]
pub enum NestError {
    /// The kernel refuses a user namespace.
    #[error(
        "cannot make a user namespace: {0}; see user.max_user_namespaces, kernel.unprivileged_userns_clone and \
         kernel.apparmor_restrict_unprivileged_userns of this node; none can be made inside a chroot"
    )]
    User(Errno),
    /// The mapping of the job's user was refused.
    #[error("cannot map uid {inside} to {outside} in the job's user namespace: {error}")]
    Map {
        /// The job's user at home.
        inside: u32,
        /// The agent's user here.
        outside: u32,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The kernel refuses one of the other namespaces.
    #[error("cannot make pid, mount, net, ipc, uts and cgroup namespaces: {0}")]
    Others(Errno),
    /// Process 1 of the namespace could not be made ready.
    #[error("cannot start process 1 of the job's pid namespace: {0}")]
    Init(io::Error),
    /// The time namespace's offsets cannot be reached.
    #[error("cannot open /proc/self/timens_offsets: {0}; is the kernel built with CONFIG_TIME_NS?")]
    Clocks(io::Error),
    /// Rights could not be reduced.
    #[error("cannot reduce the agent's own rights: {0}")]
    Rights(String),
}

/// The job's place on this host.
#[derive(Debug)]
pub struct Nest {
    /// Process 1 of the pid namespace.
    pub init: Init,
    /// Makes time namespaces.
    pub clocks: TimeGate,
}

impl Nest {
    /// Makes the place, for a job whose user has number `uid` at home and `outside` on this node; `None` is this process's own user.
    /// Must be called by the process's only thread, before it holds any key; that thread becomes the tracer, by [`Nest::enter`].
    ///
    /// # Errors
    /// The first step that the kernel refused. Nothing needs undoing but the end of this process.
    pub fn make(uid: u32, outside: Option<u32>) -> Result<Self, NestError> {
        match outside {
            Some(outside) => user::enter_as(uid, outside)?,
            None => user::enter(uid)?,
        }
        let others = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP;
        unshare(others).map_err(NestError::Others)?;
        // No further user namespace below this one, whatever slips through a filter. Where the file is missing, filters alone hold.
        let _ = std::fs::write("/proc/sys/user/max_user_namespaces", "0");
        let init = Init::start().map_err(NestError::Init)?;
        let clocks = TimeGate::open().map_err(NestError::Clocks)?;
        rights::reduce()?;
        Ok(Self { init, clocks })
    }

    /// Makes the children of this thread, the one that made the place, live in it. The thread can start no other threads from here on:
    /// the kernel does not spread a process over pid or time namespaces.
    ///
    /// # Errors
    /// Those of setns(2).
    pub fn enter(&self) -> Result<(), NestError> {
        setns(self.init.pids(), CloneFlags::CLONE_NEWPID).map_err(NestError::Others)
    }
}
