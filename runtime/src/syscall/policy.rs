//! The home gate for hosts of the same cluster (policy `own`): what a host may make a deputy do.
//!
//! A host owns the bodies it runs, so every forwarded call may be a lie. The supervisor judges the call as it stands in
//! the frame, before the deputy sees it; the deputy executes exactly what was judged. A denied call is no error of the
//! program: a truthful body that needs it comes home and does it there (`Denied::reason` says why).
//!
//! What paths may reach is judged in [`names`]. Descriptors opened at home before the move keep their power.

mod names;

use super::audit::{Target, View, audit};
use super::emulate::{CpuClock, cpu_clock};
use super::relocate;
use super::table::{self, Arg};
use mosix_wire::call::Call;
use mosix_wire::ids::Pid;
use mosix_wire::limits;
use mosix_wire::link::ProcFile;
pub use names::opened;

/// What the gate knows about the job.
pub trait JobView {
    /// Whether `pid` (a process or thread id) belongs to the job.
    fn contains(&self, pid: i32) -> bool;

    /// Whether every member of process group `pgid` belongs to the job; 0 is the group of `caller`.
    fn owns_group(&self, caller: Pid, pgid: i32) -> bool;

    /// Path prefixes and sockets that no deputy may reach: mosix's state and runtime folders, the user's agent sockets.
    /// Absolute, normalised, without a slash at the end.
    fn forbidden(&self) -> &[Vec<u8>];

    /// Processes of mosix itself: their folders in /proc lead to what no deputy may have.
    fn guarded(&self) -> &[i32] {
        &[]
    }

    /// Where `path` leads when the kernel walks it as thread `thread` of the job would, from `dirfd` or AT_FDCWD when it is relative:
    /// absolute, without links. What does not exist yet counts as lying where it would be made. `None` when nobody can tell.
    fn leads(&self, _thread: i32, _dirfd: i32, _path: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// What the kernel of the host of `pid`'s body says in a file of /proc; outside `None` when its body is not away, inside when its host does
    /// not answer.
    fn body_text(&self, _pid: i32, _thread: Option<i32>, _file: ProcFile) -> Option<Option<Vec<u8>>> {
        None
    }

    /// What descriptor `fd` of process `pid` is open on, as /proc shows it.
    fn open_name(&self, _pid: i32, _fd: i32) -> Option<Vec<u8>> {
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
    let known = match &call.exec {
        None => row.forwards(),
        Some(exec) => is_exec(call.nr) && exec.pending.len().max(exec.own.len()) <= limits::EXEC_PENDING,
    };
    if !known {
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
            let text = index == 0 && matches!(i64::from(call.nr), libc::SYS_symlink | libc::SYS_symlinkat);
            let judged = if text {
                names::link_text(path, job)
            } else {
                names::path(path, dirfd, call, job)
            };
            judged.map_err(|why| denied(libc::EACCES, why))?;
        }
    }
    for (at, len) in view.message_names(row) {
        let mut name = vec![0; len.min(128) as usize];
        view.bytes_at(at, &mut name);
        // bind(2) makes a socket; reaching an existing one is what matters.
        let reach = i64::from(call.nr) != libc::SYS_bind;
        names::socket(&name, reach, call, job).map_err(|why| denied(libc::EACCES, why))?;
    }
    Ok(())
}

/// Whether a host may make the call; that it may not is logged. A truthful body makes it at home, where the policy has no say.
pub fn permitted(call: &Call, payload: &[u8], job: &dyn JobView) -> bool {
    permit(call, payload, job)
        .inspect_err(|denied| tracing::warn!(%denied, "refused by the away policy"))
        .is_ok()
}

/// Whether a call gives a descriptor for a path, which [`opened`] is to judge.
pub fn opens(nr: u32) -> bool {
    matches!(
        i64::from(nr),
        libc::SYS_open | libc::SYS_openat | libc::SYS_creat | libc::SYS_openat2
    )
}

/// Whether a call executes a program.
pub fn is_exec(nr: u32) -> bool {
    matches!(i64::from(nr), libc::SYS_execve | libc::SYS_execveat)
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
        libc::SYS_clock_gettime => match cpu_clock(call.args[0], call.pid.0, call.tid.0) {
            Some(CpuClock::Other(pid, _)) => within(job.contains(pid)),
            _ => Ok(()),
        },
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

#[cfg(test)]
mod tests;
