//! The home gate for hosts of the same cluster (policy `own`): what a host may make a deputy do.
//!
//! A host owns the bodies it runs, so every forwarded call may be a lie. The supervisor judges the call as it stands in
//! the frame, before the deputy sees it; the deputy executes exactly what was judged. A denied call is no error of the
//! program: a truthful body that needs it comes home and does it there (`Denied::reason` says why).
//!
//! Open: paths are judged by their letters. A symbolic link that the program made earlier, or a folder renamed between
//! judgement and execution, can still lead to a forbidden file; only resolving each path beneath allowed roots closes
//! that. Descriptors opened at home before the move keep their power.

use super::audit::{Target, View, audit};
use super::relocate;
use super::table::{self, Arg};
use mosix_wire::call::Call;
use mosix_wire::ids::Pid;

/// What the gate knows about the job.
pub trait JobView {
    /// Whether `pid` (a process or thread id) belongs to the job.
    fn contains(&self, pid: i32) -> bool;

    /// Whether every member of process group `pgid` belongs to the job; 0 is the group of `caller`.
    fn owns_group(&self, caller: Pid, pgid: i32) -> bool;

    /// Path prefixes and sockets that no deputy may reach: mosix's state and runtime folders, the user's agent sockets.
    /// Absolute, normalised, without a slash at the end.
    fn forbidden(&self) -> &[Vec<u8>];

    /// The folder that `dirfd` (or AT_FDCWD) of `caller` names, when known; relative paths are judged against it.
    fn folder(&self, _caller: Pid, _dirfd: i32) -> Option<Vec<u8>> {
        None
    }
}

/// A call that the gate refuses.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("forwarded {name} ({nr}) of process {pid} denied: {reason}")]
pub struct Denied {
    /// System call number.
    pub nr: u32,
    /// Its name.
    pub name: &'static str,
    /// The calling process.
    pub pid: i32,
    /// What the body gets when it is not brought home instead.
    pub errno: i32,
    /// Why.
    pub reason: &'static str,
}

/// Judges a forwarded call.
///
/// # Errors
/// [`Denied`]: the deputy must not execute it.
pub fn permit(call: &Call, payload: &[u8], job: &dyn JobView) -> Result<(), Denied> {
    let row = table::row(call.nr);
    let denied = |errno, reason| Denied {
        nr: call.nr,
        name: row.name,
        pid: call.pid.0,
        errno,
        reason,
    };
    if !row.forwards() {
        return Err(denied(libc::EPERM, "the table does not forward it"));
    }
    relocate::check(call, payload).map_err(|malformed| denied(libc::EINVAL, malformed.why))?;
    audit(row, call, payload).map_err(|why| denied(libc::EINVAL, why))?;
    let view = View::new(call, payload);
    targets(call, &view, job).map_err(|why| denied(libc::EPERM, why))?;
    for (index, arg) in row.args.iter().enumerate() {
        if matches!(arg, Arg::Path)
            && let Ok(Target::At(at)) = view.arg(index as u8)
            && let Some(path) = view.c_string(at)
        {
            let dirfd = match index.checked_sub(1).map(|before| row.args[before]) {
                Some(Arg::Fd) => call.args[index - 1] as i32,
                _ => libc::AT_FDCWD,
            };
            judge_path(path, dirfd, call.pid, job).map_err(|why| denied(libc::EACCES, why))?;
        }
    }
    for (at, len) in view.message_names(row) {
        let mut name = vec![0; len.min(128) as usize];
        view.bytes_at(at, &mut name);
        // bind(2) makes a socket; reaching an existing one is what matters.
        if i64::from(call.nr) != libc::SYS_bind {
            judge_socket(&name, call.pid, job).map_err(|why| denied(libc::EACCES, why))?;
        }
    }
    Ok(())
}

const OUTSIDE: &str = "its target is outside the job";

/// Calls that name another process.
fn targets(call: &Call, view: &View<'_>, job: &dyn JobView) -> Result<(), &'static str> {
    let int = |i: usize| call.args[i] as i32;
    let behind = |i: u8, skip: u64| match view.arg(i) {
        Ok(Target::At(at)) => view.u32_at(at + skip) as i32,
        _ => 0,
    };
    let within = |ok: bool| if ok { Ok(()) } else { Err(OUTSIDE) };
    // As kill(2) reads it: a process, a group, or everyone.
    let killable = |pid: i32| match pid {
        -1 | i32::MIN => false,
        0 => job.owns_group(call.pid, 0),
        ..=-2 => job.owns_group(call.pid, -pid),
        pid => job.contains(pid),
    };
    // As calls about scheduling read it: zero is the caller.
    let own = |pid: i32| pid == 0 || job.contains(pid);
    match i64::from(call.nr) {
        // Signal 0 only asks whether the target exists.
        libc::SYS_kill => within(int(1) == 0 || killable(int(0))),
        libc::SYS_tkill => within(int(1) == 0 || job.contains(int(0))),
        libc::SYS_tgkill => within(int(2) == 0 || job.contains(int(0)) && job.contains(int(1))),
        libc::SYS_rt_sigqueueinfo => within(job.contains(int(0))),
        libc::SYS_rt_tgsigqueueinfo => within(job.contains(int(0)) && job.contains(int(1))),
        libc::SYS_prlimit64 => within(own(int(0))),
        libc::SYS_setpriority | libc::SYS_ioprio_set => {
            // which: PRIO_PROCESS 0, IOPRIO_WHO_PROCESS 1; groups and users reach further.
            let process = if i64::from(call.nr) == libc::SYS_setpriority {
                0
            } else {
                1
            };
            within(int(0) == process && own(int(1)))
        }
        libc::SYS_sched_setparam | libc::SYS_sched_setscheduler | libc::SYS_sched_setaffinity => within(own(int(0))),
        libc::SYS_fcntl => match int(1) {
            libc::F_SETOWN => within(int(2) == 0 || killable(int(2))),
            // struct f_owner_ex: type (thread, process, group), id.
            15 => match (behind(2, 0), behind(2, 4)) {
                (_, 0) => Ok(()),
                (2, group) => within(job.owns_group(call.pid, group)),
                (_, pid) => within(job.contains(pid)),
            },
            _ => Ok(()),
        },
        // FIOSETOWN, SIOCSPGRP: as F_SETOWN.
        libc::SYS_ioctl if matches!(call.args[1] as u32, 0x8901 | 0x8902) => {
            let pid = behind(2, 0);
            within(pid == 0 || killable(pid))
        }
        _ => Ok(()),
    }
}

/// Removes empty parts, `.` and, by the letters, `..`.
fn normal(path: &[u8]) -> Vec<&[u8]> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts
}

fn judge_path(path: &[u8], dirfd: i32, caller: Pid, job: &dyn JobView) -> Result<(), &'static str> {
    let mut full;
    let path = if path.starts_with(b"/") {
        path
    } else {
        let Some(folder) = job.folder(caller, dirfd) else {
            // Nothing is known about where it starts: only a path that climbs can leave what the program opened itself.
            return Ok(());
        };
        full = folder;
        full.push(b'/');
        full.extend_from_slice(path);
        &full
    };
    let parts = normal(path);
    judge_proc(path, &parts)?;
    if forbidden(&parts, job) {
        return Err("mosix's own files or an agent's socket");
    }
    Ok(())
}

/// /proc has links that lead anywhere without looking like it; only their plain use is permitted.
fn judge_proc(path: &[u8], parts: &[&[u8]]) -> Result<(), &'static str> {
    let Some(first) = path.split(|&b| b == b'/').find(|part| !matches!(*part, b"" | b".")) else {
        return Ok(());
    };
    if first == b"proc" && path.split(|&b| b == b'/').any(|part| part == b"..") {
        // Behind one of the links `..` is not what its letters say.
        return Err("path through /proc that climbs");
    }
    let [b"proc", _, rest @ ..] = parts else { return Ok(()) };
    let rest = match rest {
        [b"task", _, rest @ ..] => rest,
        rest => rest,
    };
    match rest {
        [b"mem", ..] => Err("memory of a process through /proc"),
        // The links themselves may be read and opened; what lies behind them has a name of its own.
        [b"root" | b"cwd", _, ..] | [b"fd", _, _, ..] | [b"map_files", _, ..] => Err("path through a link of /proc"),
        _ => Ok(()),
    }
}

fn forbidden(parts: &[&[u8]], job: &dyn JobView) -> bool {
    job.forbidden().iter().any(|prefix| {
        let prefix = normal(prefix);
        !prefix.is_empty() && parts.starts_with(&prefix)
    })
}

/// Sockets of services that act for the user: key agents, session and system bus, container engines, service managers.
fn is_service_socket(parts: &[&[u8]]) -> bool {
    let parts = match parts {
        [b"var", b"run", rest @ ..] => rest,
        [b"run", rest @ ..] => rest,
        [b"tmp", folder, name, ..] => {
            return folder.starts_with(b"ssh-") && name.starts_with(b"agent.") || folder.starts_with(b"dbus-");
        }
        [b"tmp", name] => return name.starts_with(b"dbus-"),
        _ => return parts.contains(&b".gnupg".as_slice()) || parts.contains(&b".ssh".as_slice()),
    };
    match parts {
        [b"user", _uid, rest @ ..] => matches!(
            rest,
            [
                b"bus"
                    | b"docker.sock"
                    | b"docker"
                    | b"podman"
                    | b"keyring"
                    | b"gnupg"
                    | b"systemd"
                    | b"gcr"
                    | b"containerd"
                    | b"ssh-agent.socket"
                    | b"openssh_agent",
                ..
            ]
        ),
        // What the C library and loggers talk to; everything else of the manager's can start programs.
        [b"systemd", b"journal" | b"notify" | b"resolve" | b"userdb", ..] => false,
        [name, ..] => matches!(
            *name,
            b"docker.sock"
                | b"docker"
                | b"containerd"
                | b"podman"
                | b"crio"
                | b"dbus"
                | b"systemd"
                | b"snapd.socket"
                | b"libvirt"
        ),
        [] => false,
    }
}

fn judge_socket(name: &[u8], caller: Pid, job: &dyn JobView) -> Result<(), &'static str> {
    let [a, b, path @ ..] = name else { return Ok(()) };
    if i32::from(u16::from_le_bytes([*a, *b])) != libc::AF_UNIX {
        return Ok(());
    }
    if let [0, name @ ..] = path {
        // Abstract names have no permissions: session buses and container shims use them.
        let known = [
            b"dbus".as_slice(),
            b"docker",
            b"containerd",
            b"mosix",
            b"/run/",
            b"/tmp/ssh-",
        ];
        let hit = known
            .iter()
            .any(|word| name.windows(word.len()).any(|part| part == *word));
        return if hit {
            Err("socket of a service that acts for the user")
        } else {
            Ok(())
        };
    }
    let end = path.iter().position(|&b| b == 0).unwrap_or(path.len());
    let path = &path[..end];
    judge_path(path, libc::AT_FDCWD, caller, job)?;
    if is_service_socket(&normal(path)) {
        Err("socket of a service that acts for the user")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
