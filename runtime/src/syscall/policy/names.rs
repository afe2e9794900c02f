//! What the paths and socket names of a forwarded call may reach.
//!
//! A path is walked by the deputy's kernel, later than it is judged, and a host that runs several threads of the job can change links
//! and working directories in between. So the first judgement needs no walk: to enter a folder, something must look its own name up.
//!
//! 1. **By letters, free of races.** A path without any telling name (the last part of a forbidden path, `mem`, `map_files`, the
//!    number of one of mosix's own processes) cannot lead to a forbidden thing, whatever cwd, `..` or descriptor it starts from, unless
//!    a symbolic link has the name; links with one in their text are not made for hosts.
//! 2. **By walking**, only for paths with a telling name: the supervisor lets the kernel walk the path from the deputy's own root,
//!    cwd or descriptor and compares what is found by identity ([`JobView::leads`]).
//! 3. **Afterwards**, for each file that was opened: its true name ([`opened`]). That also finds links that the user made himself.
//!
//! The price for a path without a telling name is a few comparisons, and one readlink(2) per opened file.

use super::JobView;
use mosix_wire::call::Call;

type Verdict = Result<(), &'static str>;

const OURS: &str = "mosix's own files or an agent's socket";
const MEMORY: &str = "memory of a process through /proc";
const SERVICE: &str = "socket of a service that acts for the user";

/// Leaves of /proc/PID that only tell about a process.
const HARMLESS: &[&[u8]] = &[
    b"stat",
    b"statm",
    b"status",
    b"cmdline",
    b"comm",
    b"cgroup",
    b"limits",
    b"loginuid",
    b"oom_score",
    b"oom_score_adj",
    b"schedstat",
    b"sessionid",
    b"uid_map",
    b"wchan",
];

/// Parts of a path that are looked up: neither empty nor `.`.
fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    path.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."))
}

/// Removes empty parts, `.` and, by the letters, `..`.
fn normal(path: &[u8]) -> Vec<&[u8]> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for part in parts(path) {
        match part {
            b".." => {
                kept.pop();
            }
            part => kept.push(part),
        }
    }
    kept
}

fn last(path: &[u8]) -> &[u8] {
    parts(path).last().unwrap_or_default()
}

/// Whether a path through this part could enter a forbidden folder.
fn tells(part: &[u8], job: &dyn JobView) -> bool {
    job.forbidden().iter().any(|prefix| last(prefix) == part)
}

fn is_guarded(part: &[u8], job: &dyn JobView) -> bool {
    part.first().is_some_and(u8::is_ascii_digit)
        && std::str::from_utf8(part).is_ok_and(|pid| pid.parse().is_ok_and(|pid| job.guarded().contains(&pid)))
}

/// Judges the text of a symbolic link that is to be made: whoever follows it later must not need a judgement of the text.
pub(super) fn link_text(text: &[u8], job: &dyn JobView) -> Verdict {
    let telling = |part| tells(part, job) || is_guarded(part, job) || matches!(part, b"mem" | b"map_files");
    if parts(text).any(telling) || is_service_socket(&normal(text)) {
        return Err("symbolic link to a name that no host may follow");
    }
    Ok(())
}

/// Judges a path.
pub(super) fn path(path: &[u8], dirfd: i32, call: &Call, job: &dyn JobView) -> Verdict {
    if last(path) == b"mem" {
        return Err(MEMORY);
    }
    let mut walk = false;
    let mut rest = parts(path);
    while let Some(part) = rest.next() {
        if part == b"map_files" {
            return Err(MEMORY);
        }
        if is_guarded(part, job) {
            guarded(rest.clone(), call)?;
        }
        walk |= tells(part, job);
    }
    if path.starts_with(b"/") {
        proc(path)?;
        if is_forbidden(&normal(path), job) {
            return Err(OURS);
        }
    }
    if walk {
        let end = job
            .leads(call.tid.0, dirfd, path)
            .ok_or("a path that cannot be walked")?;
        if is_forbidden(&normal(&end), job) {
            return Err(OURS);
        }
    }
    Ok(())
}

/// Judges what follows the number of one of mosix's own processes.
fn guarded<'a>(mut rest: impl Iterator<Item = &'a [u8]>, call: &Call) -> Verdict {
    let asks = matches!(
        i64::from(call.nr),
        libc::SYS_stat
            | libc::SYS_lstat
            | libc::SYS_newfstatat
            | libc::SYS_statx
            | libc::SYS_access
            | libc::SYS_faccessat
            | libc::SYS_faccessat2
    );
    match (rest.next(), rest.next()) {
        (Some(leaf), None) if HARMLESS.contains(&leaf) => Ok(()),
        (None, None) if asks => Ok(()),
        _ => Err("folder of one of mosix's own processes in /proc"),
    }
}

/// /proc has links that lead anywhere without looking like it; only their plain use is permitted.
fn proc(path: &[u8]) -> Verdict {
    if parts(path).next() != Some(b"proc".as_slice()) {
        return Ok(());
    }
    if parts(path).any(|part| part == b"..") {
        // Behind one of the links `..` is not what its letters say.
        return Err("path through /proc that climbs");
    }
    let parts = normal(path);
    let [b"proc", _, rest @ ..] = parts.as_slice() else {
        return Ok(());
    };
    let rest = match rest {
        [b"task", _, rest @ ..] => rest,
        rest => rest,
    };
    match rest {
        // The links themselves may be read and opened; what lies behind them has a name of its own.
        [b"root" | b"cwd", _, ..] | [b"fd", _, _, ..] => Err("path through a link of /proc"),
        _ => Ok(()),
    }
}

fn is_forbidden(parts: &[&[u8]], job: &dyn JobView) -> bool {
    job.forbidden().iter().any(|prefix| {
        let prefix = normal(prefix);
        !prefix.is_empty() && parts.starts_with(&prefix)
    })
}

/// Judges a file that a call has just opened as descriptor `fd` of process `pid`; without success the descriptor must be closed before
/// anybody hears of it.
///
/// # Errors
/// What it is.
pub fn opened(pid: i32, fd: i32, job: &dyn JobView) -> Verdict {
    // A descriptor that another thread has closed meanwhile is no file.
    let Some(name) = job.open_name(pid, fd) else {
        return Ok(());
    };
    // A window or a stub, by a way through somebody's descriptors.
    if name.starts_with(b"/memfd:mosix-") {
        return Err("mosix's own memory");
    }
    let name = normal(&name);
    match name.as_slice() {
        [b"proc", .., b"mem" | b"pagemap" | b"clear_refs"] => return Err(MEMORY),
        [b"proc", pid, rest @ ..] if is_guarded(pid, job) && !matches!(rest, [leaf] if HARMLESS.contains(leaf)) => {
            return Err("folder of one of mosix's own processes in /proc");
        }
        _ => {}
    }
    if is_forbidden(&name, job) { Err(OURS) } else { Ok(()) }
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

/// Judges the socket name of a call; `reach` tells that it is to be connected or sent to, not made.
pub(super) fn socket(name: &[u8], reach: bool, call: &Call, job: &dyn JobView) -> Verdict {
    let [a, b, path @ ..] = name else { return Ok(()) };
    if i32::from(u16::from_le_bytes([*a, *b])) != libc::AF_UNIX || path.is_empty() {
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
        return if reach && hit { Err(SERVICE) } else { Ok(()) };
    }
    let end = path.iter().position(|&b| b == 0).unwrap_or(path.len());
    let path = &path[..end];
    self::path(path, libc::AT_FDCWD, call, job)?;
    if !reach {
        return Ok(());
    }
    if is_service_socket(&normal(path)) {
        return Err(SERVICE);
    }
    // Sockets are reached seldom, and often by links of the user's: each name is walked.
    match job.leads(call.tid.0, libc::AT_FDCWD, path) {
        Some(end) if is_forbidden(&normal(&end), job) => Err(OURS),
        Some(end) if is_service_socket(&normal(&end)) => Err(SERVICE),
        Some(_) => Ok(()),
        None => Err("a socket's path that cannot be walked"),
    }
}
