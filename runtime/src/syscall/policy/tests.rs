//! A lying host against the gate: each test is a call that a hostile agent would like to make.

use super::*;
use crate::syscall::BAD_POINTER;
use mosix_wire::call::{Exec, Place};
use mosix_wire::ids::{Epoch, Seq, Tid};

struct Job {
    forbidden: Vec<Vec<u8>>,
}

impl JobView for Job {
    fn contains(&self, pid: i32) -> bool {
        (100..110).contains(&pid)
    }

    fn owns_group(&self, _caller: Pid, pgid: i32) -> bool {
        pgid == 0 || pgid == 100
    }

    fn forbidden(&self) -> &[Vec<u8>] {
        &self.forbidden
    }

    fn guarded(&self) -> &[i32] {
        &[4711]
    }

    // No links here: the letters decide.
    fn leads(&self, _thread: i32, dirfd: i32, path: &[u8]) -> Option<Vec<u8>> {
        let folder = match (path.starts_with(b"/"), dirfd) {
            (true, _) => b"/".to_vec(),
            (_, libc::AT_FDCWD) => b"/home/u/".to_vec(),
            (_, 7) => b"/home/u/.local/state/mosix/keys/".to_vec(),
            _ => return None,
        };
        Some([folder.as_slice(), path].concat())
    }

    fn open_name(&self, _pid: i32, fd: i32) -> Option<Vec<u8>> {
        let name = match fd {
            3 => "/etc/passwd",
            4 => "/proc/100/mem",
            5 => "/memfd:mosix-window (deleted)",
            6 => "/run/mosix/jobs/1.sock",
            7 => "/proc/4711/environ",
            8 => "/proc/4711/stat",
            9 => "socket:[12]",
            _ => return None,
        };
        Some(name.into())
    }
}

fn job() -> Job {
    Job {
        forbidden: vec![b"/home/u/.local/state/mosix".to_vec(), b"/run/mosix".to_vec()],
    }
}

/// A call whose argument `pointer` is a buffer with these bytes.
fn with_bytes(nr: i64, args: [u64; 6], pointer: Option<u8>, bytes: &[u8]) -> (Call, Vec<u8>) {
    let call = Call {
        pid: Pid(100),
        tid: Tid(101),
        epoch: Epoch(1),
        seq: Seq(1),
        nr: nr as u32,
        args,
        relocs: pointer.into_iter().map(Place::Arg).collect(),
        size: bytes.len() as u32,
        outputs: Vec::new(),
        exec: None,
    };
    (call, bytes.to_vec())
}

fn judge(nr: i64, args: [u64; 6], pointer: Option<u8>, bytes: &[u8]) -> Result<(), Denied> {
    let (call, payload) = with_bytes(nr, args, pointer, bytes);
    permit(&call, &payload, &job())
}

fn open(path: &str) -> Result<(), Denied> {
    judge(libc::SYS_open, [0; 6], Some(0), format!("{path}\0").as_bytes())
}

#[test]
fn only_forwarded_calls_pass() {
    for nr in [
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_seccomp,
        libc::SYS_clone,
        libc::SYS_fork,
        libc::SYS_exit_group,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_munmap,
        libc::SYS_brk,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigreturn,
        libc::SYS_arch_prctl,
        libc::SYS_pidfd_send_signal,
        libc::SYS_pidfd_getfd,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_shmat,
        470,
        511,
        0x4000_0000,
        i64::from(u32::MAX),
    ] {
        assert!(judge(nr, [0; 6], None, b"").is_err(), "{nr}");
    }
    assert_eq!(judge(libc::SYS_getppid, [0; 6], None, b""), Ok(()));
    assert_eq!(judge(libc::SYS_close, [3, 0, 0, 0, 0, 0], None, b""), Ok(()));
}

#[test]
fn prctl_is_held_to_harmless_options() {
    for option in [4, 22, 35, 0x5961_6d61, 59] {
        assert!(
            judge(libc::SYS_prctl, [option, 1, 0, 0, 0, 0], None, b"").is_err(),
            "{option}"
        );
    }
    assert_eq!(judge(libc::SYS_prctl, [15, 0, 0, 0, 0, 0], Some(1), b"name\0"), Ok(()));
}

#[test]
fn signals_stay_within_the_job() {
    let kill = |pid: i32, signal: i32| judge(libc::SYS_kill, [pid as u64, signal as u64, 0, 0, 0, 0], None, b"");
    for pid in [105, 0, -100] {
        assert_eq!(kill(pid, 9), Ok(()), "{pid}");
    }
    for pid in [1, 99, -1, -99, i32::MIN, i32::MAX] {
        assert_eq!(kill(pid, 9).unwrap_err().errno, libc::EPERM, "{pid}");
        assert_eq!(kill(pid, 0), Ok(()), "asking is free");
    }
    assert!(judge(libc::SYS_tkill, [99, 9, 0, 0, 0, 0], None, b"").is_err());
    assert!(judge(libc::SYS_tgkill, [100, 99, 9, 0, 0, 0], None, b"").is_err());
    assert!(judge(libc::SYS_rt_sigqueueinfo, [99, 9, 0, 0, 0, 0], Some(2), &[0; 128]).is_err());
    // High halves of registers are not looked at by the kernel, nor here.
    assert!(judge(libc::SYS_kill, [105 | 1 << 40, 9, 0, 0, 0, 0], None, b"").is_ok());
    assert!(judge(libc::SYS_kill, [99 | 1 << 40, 9 | 1 << 40, 0, 0, 0, 0], None, b"").is_err());
}

#[test]
fn descriptors_cannot_be_made_to_signal_others() {
    assert!(judge(libc::SYS_fcntl, [3, 8, 99, 0, 0, 0], None, b"").is_err());
    assert!(judge(libc::SYS_fcntl, [3, 8, 105, 0, 0, 0], None, b"").is_ok());
    let owner = |kind: i32, id: i32| [kind.to_le_bytes(), id.to_le_bytes()].concat();
    assert!(judge(libc::SYS_fcntl, [3, 15, 0, 0, 0, 0], Some(2), &owner(1, 99)).is_err());
    assert!(judge(libc::SYS_fcntl, [3, 15, 0, 0, 0, 0], Some(2), &owner(2, 99)).is_err());
    assert!(judge(libc::SYS_fcntl, [3, 15, 0, 0, 0, 0], Some(2), &owner(1, 105)).is_ok());
    for request in [0x8901, 0x8902] {
        assert!(judge(libc::SYS_ioctl, [3, request, 0, 0, 0, 0], Some(2), &99i32.to_le_bytes()).is_err());
    }
}

#[test]
fn typing_into_the_terminal_is_refused() {
    for request in [
        libc::TIOCSTI,
        libc::TIOCLINUX,
        libc::TIOCCONS,
        0x1_0000_0000 | libc::TIOCSTI,
    ] {
        assert!(
            judge(libc::SYS_ioctl, [0, request, 0, 0, 0, 0], Some(2), &[0; 8]).is_err(),
            "{request:#x}"
        );
    }
}

#[test]
fn other_peoples_limits_and_priorities_are_refused() {
    assert!(judge(libc::SYS_prlimit64, [99, 7, 0, 0, 0, 0], None, b"").is_err());
    assert!(judge(libc::SYS_prlimit64, [0, 7, 0, 0, 0, 0], None, b"").is_ok());
    assert!(judge(libc::SYS_setpriority, [0, 99, 19, 0, 0, 0], None, b"").is_err());
    assert!(judge(libc::SYS_setpriority, [2, 1000, 19, 0, 0, 0], None, b"").is_err());
    assert!(judge(libc::SYS_setpriority, [0, 0, 19, 0, 0, 0], None, b"").is_ok());
}

#[test]
fn forbidden_files_are_refused_in_every_spelling() {
    for path in [
        "/proc/1/mem",
        "/proc/self/mem",
        "//proc/./100/task/101/mem",
        "/proc/self/root/etc/passwd",
        "/proc/1/cwd/x",
        "/proc/self/cwd/../.local/state/mosix/x",
        "/proc/self/fd/7/mem",
        "/proc/100/map_files/1000-2000",
        "/proc/4711/fd/3",
        "/proc/4711",
        "4711/fd/3",
        "x/4711/task/4711/fd/3",
        "/tmp/mem",
        "/run/mosix/jobs/1.sock",
        "/run/mosix",
        "/run/../run/mosix/x",
        "/home/u/.local/state/mosix/node.key",
        ".local/state/mosix/node.key",
        "./.local//state/mosix/",
        "x/../../u/.local/state/mosix/ca",
    ] {
        assert_eq!(open(path).unwrap_err().errno, libc::EACCES, "{path}");
    }
    for path in [
        "/etc/passwd",
        "/proc/self/cwd",
        "/proc/self/root",
        "/proc/self/exe",
        "/proc/self/fd/3",
        "/proc/meminfo",
        "/run/mosixd-other",
        "notes.txt",
        "",
        "/srv/mosix/x",
        "/proc/4711/stat",
        "/proc/100/fd/3",
    ] {
        assert_eq!(open(path), Ok(()), "{path}");
    }
    // Relative to a descriptor that is open on the keys; `mem` wherever it is, since a descriptor's folder can change.
    let at = |fd: u64, path: &[u8]| judge(libc::SYS_openat, [fd, 0, 0, 0, 0, 0], Some(1), path);
    assert!(at(7, b"../../mosix/keys/node.key\0").is_err());
    assert!(at(8, b"mosix/x\0").is_err(), "nobody knows where that is");
    assert!(at(8, b"notes/x\0").is_ok(), "no forbidden name in it");
    assert!(at(8, b"mem\0").is_err());
    // Links are judged by their text, since whoever follows them is not.
    for text in [
        "../state/mosix",
        "/proc/self/mem",
        "mosix",
        "/run/user/1000/bus",
        "/proc/4711",
    ] {
        let made = judge(
            libc::SYS_symlink,
            [0, 0, 0, 0, 0, 0],
            Some(0),
            format!("{text}\0").as_bytes(),
        );
        assert!(made.is_err(), "{text}");
    }
    assert_eq!(judge(libc::SYS_symlink, [0; 6], Some(0), b"../lib/x.so\0"), Ok(()));
    // Not only open: every call with a path.
    assert!(judge(libc::SYS_unlink, [0; 6], Some(0), b"/run/mosix/x\0").is_err());
    assert!(judge(libc::SYS_truncate, [0; 6], Some(0), b"/proc/1/mem\0").is_err());
    assert!(judge(libc::SYS_symlink, [0; 6], Some(0), b"/proc/self/mem\0").is_err());
}

#[test]
fn what_was_opened_is_judged_by_its_true_name() {
    for fd in [3, 8, 9, 10] {
        assert_eq!(opened(100, fd, &job()), Ok(()), "{fd}");
    }
    for fd in 4..=7 {
        assert!(opened(100, fd, &job()).is_err(), "{fd}");
    }
}

#[test]
fn service_sockets_are_refused() {
    let connect = |path: &[u8]| {
        let mut name = (libc::AF_UNIX as u16).to_le_bytes().to_vec();
        name.extend_from_slice(path);
        let len = name.len() as u64;
        judge(libc::SYS_connect, [3, 0, len, 0, 0, 0], Some(1), &name)
    };
    for path in [
        "/run/user/1000/bus",
        "/run/user/1000/keyring/ssh",
        "/tmp/ssh-XXXX/agent.123",
        "/run/dbus/system_bus_socket",
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/podman/podman.sock",
        "/run/user/1000/podman/podman.sock",
        "/run/systemd/private",
        "/run/mosix/control.sock",
        "/home/u/.gnupg/S.gpg-agent",
        "../../run/mosix/x",
        "/run/../run//docker.sock",
    ] {
        assert!(connect(path.as_bytes()).is_err(), "{path}");
    }
    assert!(connect(b"\0/tmp/dbus-abc").is_err());
    for path in [
        "/run/systemd/journal/dev-log",
        "/run/systemd/userdb/io.systemd.DynamicUser",
        "/tmp/my.sock",
        "/run/postgresql/.s.PGSQL.5432",
        "/dev/log",
        "/run/nscd/socket",
    ] {
        assert_eq!(connect(path.as_bytes()), Ok(()), "{path}");
    }
    assert_eq!(connect(b"\0myname"), Ok(()));
    // The same by sendto and by sendmsg.
    let mut name = (libc::AF_UNIX as u16).to_le_bytes().to_vec();
    name.extend_from_slice(b"/run/docker.sock\0");
    let len = name.len() as u64;
    assert!(judge(libc::SYS_sendto, [3, 0, 0, 0, 0, len], Some(4), &name).is_err());
    let mut message = vec![0; 56];
    message[0..8].copy_from_slice(&56u64.to_le_bytes());
    message[8..12].copy_from_slice(&(len as u32).to_le_bytes());
    message.extend_from_slice(&name);
    let (mut call, payload) = with_bytes(libc::SYS_sendmsg, [3, 0, 0, 0, 0, 0], Some(1), &message);
    call.relocs.push(Place::At(0));
    assert!(
        permit(&call, &payload, &job())
            .unwrap_err()
            .reason
            .contains("acts for the user")
    );
}

#[test]
fn addresses_of_the_deputy_are_refused() {
    let window = 0x7e80_0010_0000u64;
    // A raw address, a number made an address, a structure beyond the end, a nested raw address, an endless string.
    assert!(judge(libc::SYS_read, [0, window, 8, 0, 0, 0], None, &[0; 8]).is_err());
    assert!(judge(libc::SYS_read, [0, 0, 8, 0, 0, 0], Some(0), &[0; 8]).is_err());
    assert!(judge(libc::SYS_read, [0, 0, 9, 0, 0, 0], Some(1), &[0; 8]).is_err());
    assert!(judge(libc::SYS_read, [0, 0, 8, 0, 0, 0], Some(1), &[0; 8]).is_ok());
    assert!(judge(libc::SYS_fstat, [0, 8, 0, 0, 0, 0], Some(1), &[0; 144]).is_err());
    assert!(judge(libc::SYS_fstat, [0, 0, 0, 0, 0, 0], Some(1), &[0; 144]).is_ok());
    assert!(judge(libc::SYS_fstat, [0, BAD_POINTER, 0, 0, 0, 0], None, b"").is_ok());
    assert!(judge(libc::SYS_open, [0; 6], Some(0), b"no end").is_err());
    assert!(judge(libc::SYS_getppid, [0; 6], Some(5), &[0; 8]).is_err());
    let mut iov = vec![0; 24];
    iov[0..8].copy_from_slice(&window.to_le_bytes());
    iov[8..16].copy_from_slice(&8u64.to_le_bytes());
    let (call, payload) = with_bytes(libc::SYS_readv, [0, 0, 1, 0, 0, 0], Some(1), &iov);
    assert!(permit(&call, &payload, &job()).is_err());
    iov[0..8].copy_from_slice(&16u64.to_le_bytes());
    let (mut call, payload) = with_bytes(libc::SYS_readv, [0, 0, 1, 0, 0, 0], Some(1), &iov);
    call.relocs.push(Place::At(0));
    assert_eq!(permit(&call, &payload, &job()), Ok(()));
    let mut long = payload.clone();
    long[8] = 9;
    assert!(permit(&call, &long, &job()).is_err(), "one byte beyond the buffer");
    // A mask would reach the deputy's signals.
    assert!(judge(libc::SYS_ppoll, [0, 0, 0, 0, 8, 0], Some(3), &[0; 8]).is_err());
}

/// Programs are executed with what the body's kernel has for them, and nothing else comes with that.
#[test]
fn programs_bring_what_they_inherit_and_other_calls_do_not() {
    let execve = |path: &str, exec: Option<Exec>| {
        let (mut call, payload) = with_bytes(libc::SYS_execve, [0; 6], Some(0), format!("{path}\0").as_bytes());
        call.exec = exec.map(Box::new);
        permit(&call, &payload, &job())
    };
    execve("/bin/true", Some(Exec::default())).unwrap();
    execve("/bin/true", None).unwrap_err();
    execve("/run/mosix/program", Some(Exec::default())).unwrap_err();
    execve("/proc/self/fd/3", Some(Exec::default())).unwrap();
    let many = vec![mosix_wire::image::SigInfo(vec![0; 128]); limits::EXEC_PENDING + 1];
    let exec = Exec {
        own: many,
        ..Exec::default()
    };
    execve("/bin/true", Some(exec)).unwrap_err();
    let (mut call, payload) = with_bytes(libc::SYS_getpid, [0; 6], None, b"");
    call.nr = libc::SYS_getuid as u32;
    permit(&call, &payload, &job()).unwrap();
    call.exec = Some(Box::default());
    permit(&call, &payload, &job()).unwrap_err();
}
