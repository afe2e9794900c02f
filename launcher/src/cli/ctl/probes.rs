//! The trials of `mosix ctl check`. What changes the process is tried in a child.

use super::check::{For, Item};
use mosix_runtime::supervisor::rundir::make_jobs_dir;
use mosix_runtime::syscall::filter;
use mosix_sys::notif::{Answer, Listener};
use mosix_sys::process::{Fork, Wait, exit_now, fork, wait_for};
use mosix_sys::seccomp::{Privs, install_with_listener};
use mosix_sys::{probe, ptrace};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::Path;

/// Tries everything. The process must have one thread.
pub(super) fn all() -> Vec<Item> {
    let mut items = vec![kernel(), runtime_folder()];
    items.extend(seccomp());
    items.extend([tracing(), yama()]);
    items.extend(namespaces());
    items.extend([pids(), mm_map(), pagemap(), vdso(), cgroup(), keys()]);
    items
}

/// Runs `f` in a child and gives its errno.
fn in_child(f: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    match fork()? {
        Fork::Child => exit_now(f().map_or_else(|e| e as i32, |()| 0)),
        Fork::Parent(pid) => match wait_for(pid, true) {
            Wait::Some(w) => match w.status.code() {
                Some(0) => Ok(()),
                Some(errno) => Err(Errno::from_raw(errno)),
                None => Err(Errno::EFAULT),
            },
            _ => Err(Errno::ECHILD),
        },
    }
}

fn item(name: &'static str, needed: For, outcome: Result<(), Errno>, found: &str, remedy: &'static str) -> Item {
    let outcome = match outcome {
        Ok(()) => Ok(found.to_owned()),
        Err(e) => Err(e.desc().to_owned()),
    };
    Item {
        name,
        needed,
        outcome,
        remedy,
    }
}

fn kernel() -> Item {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim().to_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let outcome = if version >= (5, 19) {
        Ok(release)
    } else {
        Err(format!("{release} is older than 5.19"))
    };
    Item {
        name: "kernel",
        needed: For::Home,
        outcome,
        remedy: "Linux 6.1 or newer",
    }
}

fn runtime_folder() -> Item {
    let outcome = make_jobs_dir()
        .map(|p| p.display().to_string())
        .map_err(|e| e.to_string());
    Item {
        name: "runtime folder",
        needed: For::Move,
        outcome,
        remedy: "set MOSIX_RUNTIME_DIR to a folder of your own",
    }
}

/// Installs the home filter in a child, traps a call of it, answers it.
fn seccomp() -> Vec<Item> {
    const NO_KILLABLE: i32 = 200;
    const NO_SYNC: i32 = 201;
    let outcome = match fork() {
        Err(e) => Err(e),
        Ok(Fork::Child) => exit_now(match trap_once() {
            Ok((true, true)) => 0,
            Ok((false, _)) => NO_KILLABLE,
            Ok((true, false)) => NO_SYNC,
            Err(e) => e as i32,
        }),
        Ok(Fork::Parent(pid)) => match wait_for(pid, true) {
            Wait::Some(w) => w.status.code().ok_or(Errno::EFAULT),
            _ => Err(Errno::ECHILD),
        },
    };
    let code = outcome.unwrap_or_else(|e| e as i32);
    let works = matches!(code, 0 | NO_KILLABLE | NO_SYNC);
    let answer = |ok: bool, text: &str| {
        if ok {
            Ok(text.to_owned())
        } else {
            Err("the kernel does not know it".to_owned())
        }
    };
    let unusable = |text: &str| Err(format!("not tried: {text}"));
    let notify = if works {
        Ok("a trapped call was received and answered".to_owned())
    } else if code == libc::EBUSY {
        Err("another filter listener is there already".to_owned())
    } else {
        Err(Errno::from_raw(code).desc().to_owned())
    };
    vec![
        Item {
            name: "seccomp user notification",
            needed: For::Host,
            outcome: notify,
            remedy: "run outside the other job or container, or allow seccomp(2) in its profile",
        },
        Item {
            name: "seccomp WAIT_KILLABLE_RECV",
            needed: For::Host,
            outcome: if works {
                answer(code != NO_KILLABLE, "5.19 or newer")
            } else {
                unusable("no notification")
            },
            remedy: "Linux 5.19 or newer",
        },
        Item {
            name: "seccomp synchronous wake-up",
            needed: For::Better,
            outcome: if works {
                answer(code == 0, "6.6 or newer")
            } else {
                unusable("no notification")
            },
            remedy: "Linux 6.6 or newer: a forwarded call costs 5 us less",
        },
    ]
}

/// In a child: returns whether WAIT_KILLABLE_RECV and the synchronous wake-up are there, after one call was trapped and continued.
fn trap_once() -> Result<(bool, bool), Errno> {
    let program = filter::home().map_err(|_| Errno::EINVAL)?;
    // The filter covers the thread that installs it; this one listens.
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let installed = install_with_listener(&program, Privs::WhenNeeded);
        let failed = installed.is_err();
        let _ = tx.send(installed);
        if !failed {
            // Trapped, continued, and refused by the kernel for its path.
            let _ = nix::unistd::execve(c"", &[c""], &[c""]);
        }
    });
    let installed = rx.recv().map_err(|_| Errno::EPIPE)??;
    let listener = Listener::new(installed.listener)?;
    let sync = listener.set_sync_wake_up();
    let trapped = listener.recv(None).map_err(|_| Errno::EIO)?.ok_or(Errno::EPIPE)?;
    listener.send(trapped.id, Answer::Continue)?;
    Ok((installed.wait_killable, sync))
}

/// Seizes, stops and lets go a child.
fn tracing() -> Item {
    let outcome = match fork() {
        Err(e) => Err(e),
        Ok(Fork::Child) => {
            std::thread::sleep(std::time::Duration::from_secs(10));
            exit_now(0)
        }
        Ok(Fork::Parent(pid)) => {
            let tried = ptrace::seize(pid, 0).and_then(|()| ptrace::interrupt(pid));
            if tried.is_ok() {
                wait_for(pid, true);
            }
            let _ = mosix_sys::process::kill(pid, libc::SIGKILL);
            wait_for(pid, true);
            tried.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
        }
    };
    let remedy = "allow ptrace of own children: kernel.yama.ptrace_scope=1, or the container's profile";
    item(
        "ptrace seize and interrupt",
        For::Move,
        outcome,
        "a child was stopped and let go",
        remedy,
    )
}

fn yama() -> Item {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
        .ok()
        .and_then(|s| s.trim().parse::<u8>().ok());
    let root = nix::unistd::geteuid().is_root();
    let outcome = match scope {
        None => Ok("not active".to_owned()),
        Some(scope @ (0 | 1)) => Ok(format!("ptrace_scope {scope}")),
        Some(2) if root => Ok("ptrace_scope 2, as root".to_owned()),
        Some(scope) => Err(format!("ptrace_scope {scope} forbids tracing")),
    };
    Item {
        name: "Yama",
        needed: For::Move,
        outcome,
        remedy: "sysctl kernel.yama.ptrace_scope=1",
    }
}

/// Makes each namespace that an agent needs, below a user namespace, as the daemon's user would.
fn namespaces() -> Vec<Item> {
    let user = || unshare(CloneFlags::CLONE_NEWUSER);
    let below = |flag: CloneFlags| in_child(|| user().and_then(|()| unshare(flag)));
    let userns = "sysctl user.max_user_namespaces=15000, kernel.unprivileged_userns_clone=1, and on Ubuntu an AppArmor profile \
                  with `userns,` for mosix (or kernel.apparmor_restrict_unprivileged_userns=0)";
    let mut items = vec![item(
        "user namespace",
        For::Host,
        in_child(map_user),
        "made and mapped",
        userns,
    )];
    let others = [
        ("pid namespace", CloneFlags::CLONE_NEWPID),
        ("network namespace", CloneFlags::CLONE_NEWNET),
        ("mount namespace", CloneFlags::CLONE_NEWNS),
        (
            "ipc and uts namespaces",
            CloneFlags::CLONE_NEWIPC.union(CloneFlags::CLONE_NEWUTS),
        ),
        ("cgroup namespace", CloneFlags::CLONE_NEWCGROUP),
    ];
    for (name, flag) in others {
        items.push(item(
            name,
            For::Host,
            below(flag),
            "made below a user namespace",
            "see the user namespace; CONFIG_*_NS",
        ));
    }
    // nix has no name for it.
    let time = CloneFlags::from_bits_retain(0x80);
    items.push(item(
        "time namespace",
        For::Host,
        below(time),
        "made below a user namespace",
        "Linux 5.6 with CONFIG_TIME_NS",
    ));
    items
}

/// Makes a user namespace and maps the caller's own user into it: some systems allow the first and forbid the second.
fn map_user() -> Result<(), Errno> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    let write = |name: &str, text: String| {
        fs::write(format!("/proc/self/{name}"), text)
            .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
    };
    // An unprivileged process must give up setgroups first; a privileged one may not have to, and both may.
    let _ = write("setgroups", "deny".to_owned());
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("gid_map", format!("{gid} {gid} 1"))
}

/// Creates a process under a chosen pid in a namespace of its own.
fn pids() -> Item {
    let outcome = in_child(|| {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID)?;
        // The first child is the namespace's init; its children have numbers to choose.
        in_child(|| probe::clone_with_pid(4242))
    });
    let limit = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let found = format!("process 4242 was made; pid_max is {}", limit.trim());
    item(
        "clone3 with set_tid",
        For::Host,
        outcome,
        &found,
        "Linux 5.5 or newer and a user namespace",
    )
}

fn mm_map() -> Item {
    let remedy = "a kernel with CONFIG_CHECKPOINT_RESTORE";
    item("prctl PR_SET_MM_MAP", For::Host, probe::set_mm_map(), "known", remedy)
}

fn pagemap() -> Item {
    let outcome = probe::pagemap_scan();
    item(
        "PAGEMAP_SCAN",
        For::Better,
        outcome,
        "6.7 or newer",
        "Linux 6.7 or newer; /proc/PID/pagemap is read instead",
    )
}

/// A sealed vDSO cannot be replaced on a host.
fn vdso() -> Item {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let flags = smaps
        .split_once("[vdso]")
        .and_then(|(_, rest)| rest.lines().find(|l| l.starts_with("VmFlags:")));
    let outcome = match flags {
        None => Err("there is none".to_owned()),
        Some(flags) if flags.split_ascii_whitespace().any(|f| f == "sl") => Ok("sealed: stays where it is".to_owned()),
        Some(_) => Ok("not sealed".to_owned()),
    };
    Item {
        name: "vDSO",
        needed: For::Better,
        outcome,
        remedy: "boot without vdso=0",
    }
}

fn cgroup() -> Item {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own.lines().find_map(|l| l.strip_prefix("0::"));
    let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .find(|r| Path::new(r).join("cgroup.procs").exists());
    let outcome = match (root, path) {
        (Some(root), Some(path)) => {
            let folder = Path::new(root).join(path.trim_start_matches('/'));
            let kill = folder.join("cgroup.kill").exists() || Path::new(root).join("cgroup.subtree_control").exists();
            let writable = nix::unistd::access(&folder, nix::unistd::AccessFlags::W_OK).is_ok();
            match (kill, writable) {
                (true, true) => Ok(format!("version 2 at {}", folder.display())),
                (true, false) => Err(format!("{} is not delegated to this user", folder.display())),
                (false, _) => Err("version 2 has no cgroup.kill (before 5.14)".to_owned()),
            }
        }
        _ => Err("no version 2 hierarchy is mounted".to_owned()),
    };
    Item {
        name: "cgroup",
        needed: For::Better,
        outcome,
        remedy: "systemd with Delegate=yes; without it memory of guests is bounded by resource limits only",
    }
}

/// The node's keys, by looking for them where `mosix node init` puts them.
fn keys() -> Item {
    use mosix_runtime::node::paths::{keys_dir, state_dir};
    let outcome = match state_dir().map(|d| keys_dir(&d)) {
        Err(e) => Err(e.to_string()),
        Ok(folder) => match fs::read_dir(&folder).map(Iterator::count) {
            Ok(0) => Err(format!("{} is empty", folder.display())),
            Ok(_) => Ok(folder.display().to_string()),
            Err(e) => Err(format!("{}: {e}", folder.display())),
        },
    };
    Item {
        name: "keys of this node",
        needed: For::Better,
        outcome,
        remedy: "mosix node init, to move between machines",
    }
}
