//! The user namespace of an agent: exactly one user and one group exist in it.
//!
//! Inside, the user has the number that it has at home. Outside, the bodies have either the daemon's own user (all there is without
//! root) or one that belongs to this job alone: then a guest that got out of everything else could still touch nothing of another
//! job, nor of anybody on the node.

use super::NestError;
use mosix_sys::process::{Fork, exit_now, fork, wait_for};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long writing the mapping may take.
const MAPPED: Duration = Duration::from_secs(10);

/// Enters it as the user that this process has.
pub(super) fn enter(inside: u32) -> Result<(), NestError> {
    let (outside, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(NestError::User)?;
    let map = |error| NestError::Map { inside, outside, error };
    std::fs::write("/proc/self/setgroups", "deny").map_err(map)?;
    std::fs::write("/proc/self/gid_map", format!("{inside} {group} 1")).map_err(map)?;
    std::fs::write("/proc/self/uid_map", format!("{inside} {outside} 1")).map_err(map)
}

/// Enters it as user and group `outside`, which root alone can. A child that stays outside writes the mapping, since who is inside may map
/// only himself.
pub(super) fn enter_as(inside: u32, outside: u32) -> Result<(), NestError> {
    let map = |error: io::Error| NestError::Map { inside, outside, error };
    // Root's groups would stay with the agent as numbers without names.
    setgroups(&[]).map_err(|error| map(error.into()))?;
    let (mut ours, theirs) = UnixStream::pair().map_err(map)?;
    let agent = std::process::id();
    let writer = match fork().map_err(|error| map(error.into()))? {
        Fork::Child => {
            drop(ours);
            exit_now(write_maps(theirs, agent, inside, outside))
        }
        Fork::Parent(pid) => pid,
    };
    drop(theirs);
    let entered = unshare(CloneFlags::CLONE_NEWUSER).map_err(NestError::User);
    let mut answer = [0; 4];
    let told = entered.and_then(|()| {
        ours.set_read_timeout(Some(MAPPED)).map_err(map)?;
        ours.write_all(&[1]).map_err(map)?;
        ours.read_exact(&mut answer).map_err(map)
    });
    drop(ours);
    let _ = wait_for(writer, true);
    told?;
    match i32::from_le_bytes(answer) {
        0 => {}
        errno => return Err(map(io::Error::from_raw_os_error(errno))),
    }
    let (user, group) = (Uid::from_raw(inside), Gid::from_raw(inside));
    setresgid(group, group, group).map_err(|error| map(error.into()))?;
    setresuid(user, user, user).map_err(|error| map(error.into()))?;
    // The change of user closed this process's folder in /proc to itself. It holds nothing yet, and is closed for good at the end.
    nix::sys::prctl::set_dumpable(true).map_err(|error| map(error.into()))
}

/// The child's part: waits for the namespace, maps, tells the errno.
fn write_maps(mut socket: UnixStream, agent: u32, inside: u32, outside: u32) -> i32 {
    if socket.read_exact(&mut [0]).is_err() {
        return 1;
    }
    let write = |name: &str, text: String| std::fs::write(format!("/proc/{agent}/{name}"), text);
    let line = || format!("{inside} {outside} 1");
    let written = write("setgroups", "deny".to_owned())
        .and_then(|()| write("gid_map", line()))
        .and_then(|()| write("uid_map", line()));
    let errno = written
        .err()
        .map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
    i32::from(socket.write_all(&errno.to_le_bytes()).is_err())
}
