//! A lying host: arbitrary calls against a real deputy behind the real gate. What is denied must have had no effect, and the deputy
//! must serve on.

use mosix_loader::script::STUB_ELF;
use mosix_loader::script::abi::SHARED;
use mosix_runtime::deputy::Deputy;
use mosix_runtime::deputy::calls::{Ended, Job};
use mosix_runtime::migrate::view::View;
use mosix_runtime::process::window::Window;
use mosix_wire::call::{Call, Extent, NEEDS_HOME, Output, Place};
use mosix_wire::ids::{Epoch, Pid, Seq, Tid};
use std::cell::Cell;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// The place of a job: what is forbidden, and the deputy that the liar has.
struct Liar {
    pid: i32,
    deputy: Arc<Deputy>,
    job: Job,
    answers: Receiver<Ended>,
    seq: Cell<u64>,
    dir: tempfile::TempDir,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.deputy.end();
        let pid = nix::unistd::Pid::from_raw(self.pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
    }
}

/// Arguments of a call: numbers, or bytes of the buffer.
enum A<'a> {
    N(u64),
    B(&'a [u8]),
}
use A::{B, N};

fn me() -> i32 {
    std::process::id() as i32
}

fn path(path: &Path) -> Vec<u8> {
    [path.as_os_str().as_bytes(), b"\0"].concat()
}

impl Liar {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let state = dir.path().join("state/mosix");
        std::fs::create_dir_all(state.join("keys")).expect("folders");
        std::fs::write(state.join("keys/node.key"), "secret").expect("key");
        std::fs::create_dir_all(dir.path().join("desk/inner")).expect("folders");
        std::fs::write(dir.path().join("desk/notes"), "harmless").expect("file");
        let program = mosix_sys::shared::memfd("mosix-stub", 0).expect("memfd");
        std::fs::File::from(program.try_clone().expect("dup"))
            .write_all(STUB_ELF)
            .expect("stub");
        let (window, fd) = Window::create().expect("window");
        let pid = mosix_sys::spawn::blank(0, program.as_fd(), fd.as_fd()).expect("blank");
        let (tx, answers) = channel();
        let linger = Box::new(move |ended| {
            let _ = tx.send(ended);
        });
        let deputy = Deputy::new(pid, window, linger, Arc::default()).expect("deputy");
        deputy.seat(pid, 0, Seq(0), None);
        let job: Job = Arc::new(View::with(me(), vec![state.as_os_str().as_bytes().to_vec()]));
        Self {
            pid,
            deputy,
            job,
            answers,
            seq: Cell::new(0),
            dir,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().canonicalize().expect("folder").join(path)
    }

    /// Sends a call as it is; the answer, or `None` when it was refused.
    fn send(&self, mut call: Call, payload: &[u8]) -> Option<(i64, Vec<u8>)> {
        self.seq.set(self.seq.get() + 1);
        call.seq = Seq(self.seq.get());
        let seq = call.seq;
        self.deputy.call(call, payload, &self.job, None);
        let begin = Instant::now();
        loop {
            // A call that the gate refuses is answered at once, and by nobody else.
            let patience = Duration::from_millis(20);
            match self.answers.recv_timeout(patience) {
                Ok(ended) if ended.reply.seq == seq => {
                    return (ended.reply.result != NEEDS_HOME).then_some((ended.reply.result, ended.payload));
                }
                Ok(_) => continue,
                Err(_) => {}
            }
            let refused = self.deputy.answered(self.pid);
            if refused.is_some_and(|(reply, _)| reply.seq == seq && reply.result == NEEDS_HOME) {
                return None;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "no answer");
        }
    }

    fn shape(&self, nr: i64, given: &[A<'_>]) -> (Call, Vec<u8>) {
        let (mut args, mut relocs, mut payload) = ([0; 6], Vec::new(), Vec::new());
        for (index, arg) in given.iter().enumerate() {
            match arg {
                N(number) => args[index] = *number,
                B(bytes) => {
                    args[index] = payload.len() as u64;
                    relocs.push(Place::Arg(index as u8));
                    payload.extend_from_slice(bytes);
                    payload.resize(payload.len().next_multiple_of(8), 0);
                }
            }
        }
        let call = Call {
            pid: Pid(self.pid),
            tid: Tid(self.pid),
            epoch: Epoch(1),
            seq: Seq(0),
            nr: nr as u32,
            args,
            relocs,
            size: payload.len() as u32,
            outputs: Vec::new(),
            exec: None,
        };
        (call, payload)
    }

    fn call(&self, nr: i64, given: &[A<'_>]) -> Option<i64> {
        let (call, payload) = self.shape(nr, given);
        Some(self.send(call, &payload)?.0)
    }

    #[track_caller]
    fn denied(&self, what: &str, nr: i64, given: &[A<'_>]) {
        assert_eq!(self.call(nr, given), None, "{what} was executed");
    }

    #[track_caller]
    fn may(&self, what: &str, nr: i64, given: &[A<'_>]) -> i64 {
        let result = self.call(nr, given).unwrap_or_else(|| panic!("{what} was denied"));
        assert!(result >= 0, "{what}: {result}");
        result
    }

    /// What the deputy reads from a descriptor of its own.
    fn read(&self, fd: i64) -> Vec<u8> {
        let room = [0; 64];
        let (mut call, payload) = self.shape(libc::SYS_read, &[N(fd as u64), B(&room), N(64)]);
        call.outputs = vec![Output {
            offset: 0,
            room: 64,
            extent: Extent::Result,
        }];
        self.send(call, &payload).expect("read").1
    }

    fn open(&self, name: &[u8]) -> Option<i64> {
        self.call(libc::SYS_open, &[B(name), N(0), N(0)])
    }

    /// Descriptors that the deputy has.
    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("fd").count()
    }
}

#[test]
fn calls_that_own_forbids_have_no_effect() {
    let liar = Liar::new();
    let me = me() as u64;
    let zeros = [0u8; 256];
    for nr in [
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        libc::SYS_process_madvise,
        libc::SYS_bpf,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_move_mount,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_perf_event_open,
        libc::SYS_open_by_handle_at,
        libc::SYS_name_to_handle_at,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_munmap,
        libc::SYS_fork,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_rt_sigaction,
        libc::SYS_seccomp,
        libc::SYS_exit_group,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
    ] {
        liar.denied(&nr.to_string(), nr, &[N(me), N(me), N(0), N(0), N(0), N(0)]);
        liar.denied(
            &nr.to_string(),
            nr,
            &[B(&zeros), B(&zeros), N(1), B(&zeros), N(1), N(0)],
        );
    }
    for pid in [me, 1, u64::from(u32::MAX), (-1i64) as u64] {
        liar.denied("kill", libc::SYS_kill, &[N(pid), N(9)]);
        liar.denied("tkill", libc::SYS_tkill, &[N(pid), N(9)]);
        liar.denied("tgkill", libc::SYS_tgkill, &[N(pid), N(pid), N(9)]);
        liar.denied("sigqueue", libc::SYS_rt_sigqueueinfo, &[N(pid), N(9), B(&zeros[..128])]);
        liar.denied("prlimit", libc::SYS_prlimit64, &[N(pid), N(0), B(&zeros[..16]), N(0)]);
        liar.denied("owner", libc::SYS_fcntl, &[N(0), N(libc::F_SETOWN as u64), N(pid)]);
    }
    // The supervisor, which this test is, lives, and so does the deputy.
    assert_eq!(liar.may("getppid", libc::SYS_getppid, &[]), i64::from(self::me()));
}

#[test]
fn forbidden_files_are_reached_by_no_way() {
    let liar = Liar::new();
    let (state, key, work) = (liar.at("state"), liar.at("state/mosix/keys/node.key"), liar.at("desk"));
    // Links that the program, or its user, made at home.
    symlink(&key, work.join("to-key")).unwrap();
    symlink(&state, work.join("to-state")).unwrap();
    symlink(liar.at("state/mosix"), work.join("plain")).unwrap();
    symlink("/proc/self/mem", work.join("memory")).unwrap();
    symlink(format!("/proc/{}", me()), work.join("boss")).unwrap();
    symlink("/proc/self/cwd", work.join("here")).unwrap();
    let before = liar.descriptors();
    let ways = [
        key.clone(),
        work.join("../state/mosix/keys/node.key"),
        work.join("to-key"),
        work.join("to-state/mosix/keys/node.key"),
        work.join("plain/keys/node.key"),
        work.join("plain"),
        work.join("memory"),
        work.join("boss/environ"),
        work.join("boss/mem"),
        PathBuf::from("/proc/self/mem"),
        PathBuf::from(format!("/proc/{}/mem", me())),
        PathBuf::from(format!("/proc/{}/fd/0", me())),
        PathBuf::from(format!("/proc/{}/environ", me())),
        PathBuf::from(format!("/proc/self/root{}", key.display())),
    ];
    for way in &ways {
        assert_eq!(liar.open(&path(way)), None, "{}", way.display());
        let name = path(way);
        // A folder that cannot be written to is no reach.
        let written = liar.call(libc::SYS_openat, &[N(0), B(&name), N(libc::O_RDWR as u64), N(0)]);
        assert!(written.is_none_or(|result| result < 0), "{}", way.display());
        let how = [0u8; 24];
        liar.denied("openat2", libc::SYS_openat2, &[N(0), B(&name), B(&how), N(24)]);
    }
    // Relative to a working directory and to a descriptor.
    liar.may("chdir", libc::SYS_chdir, &[B(&path(&state))]);
    assert_eq!(liar.open(b"mosix/keys/node.key\0"), None);
    liar.denied("chdir", libc::SYS_chdir, &[B(b"mosix\0")]);
    let folder = liar.open(&path(&state)).expect("the folder above is not forbidden") as u64;
    let by = |name: &[u8]| liar.call(libc::SYS_openat, &[N(folder), B(name), N(0), N(0)]);
    assert_eq!(by(b"mosix/keys/node.key\0"), None);
    assert_eq!(by(b"../desk/to-state/mosix/x\0"), None);
    liar.may("close", libc::SYS_close, &[N(folder)]);
    liar.may("chdir", libc::SYS_chdir, &[B(b"/proc/self\0")]);
    assert_eq!(liar.open(b"mem\0"), None);
    assert_eq!(liar.open(b"task/../mem\0"), None);
    assert_eq!(liar.open(format!("../{}/fd/0\0", me()).as_bytes()), None);
    liar.may("chdir", libc::SYS_chdir, &[B(&path(&work))]);
    assert_eq!(liar.open(b"here/../state/mosix/keys/node.key\0"), None);
    // Making new ways.
    liar.denied("symlink", libc::SYS_symlink, &[B(&path(&key)), B(b"own\0")]);
    liar.denied("symlink", libc::SYS_symlink, &[B(b"../state/mosix\0"), B(b"own\0")]);
    liar.denied("link", libc::SYS_link, &[B(&path(&key)), B(b"own\0")]);
    liar.denied(
        "rename",
        libc::SYS_rename,
        &[B(&path(&liar.at("state/mosix"))), B(b"own\0")],
    );
    liar.denied("unlink", libc::SYS_unlink, &[B(&path(&key))]);
    liar.denied("truncate", libc::SYS_truncate, &[B(&path(&key)), N(0)]);
    // The folder above under another name.
    liar.may("rename", libc::SYS_rename, &[B(&path(&state)), B(b"moved\0")]);
    assert_eq!(liar.open(b"moved/mosix/keys/node.key\0"), None);
    let key = work.join("moved/mosix/keys/node.key");
    assert_eq!(std::fs::read(&key).unwrap(), b"secret");
    assert_eq!(liar.descriptors(), before, "nothing forbidden stays open");
    // Honest work goes on.
    let fd = liar.open(b"inner/../notes\0").expect("permitted");
    assert_eq!(liar.read(fd), b"harmless");
    let other = work.join("mosix");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("node.key"), "own").unwrap();
    let fd = liar.open(b"mosix/node.key\0").expect("another folder of that name");
    assert_eq!(liar.read(fd), b"own");
    liar.may("symlink", libc::SYS_symlink, &[B(b"../desk/notes\0"), B(b"own\0")]);
    assert!(liar.open(b"own\0").is_some_and(|fd| fd >= 0));
}

#[test]
fn a_link_that_changes_under_way_opens_nothing_forbidden() {
    let liar = Liar::new();
    let (work, state) = (liar.at("desk"), liar.at("state/mosix/keys"));
    std::fs::write(work.join("inner/node.key"), "own").unwrap();
    symlink("inner", work.join("a")).unwrap();
    symlink(&state, work.join("b")).unwrap();
    let end = Arc::new(AtomicBool::new(false));
    let flipping = {
        let (end, work) = (Arc::clone(&end), work.clone());
        std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let (a, b) = (work.join("a"), work.join("b"));
                let _ = rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &a,
                    rustix::fs::CWD,
                    &b,
                    rustix::fs::RenameFlags::EXCHANGE,
                );
            }
        })
    };
    let name = path(&work.join("a/node.key"));
    let (mut own, mut caught) = (0, 0);
    for _ in 0..2000 {
        match liar.open(&name) {
            Some(fd) if fd >= 0 => {
                assert_eq!(liar.read(fd), b"own");
                liar.may("close", libc::SYS_close, &[N(fd as u64)]);
                own += 1;
            }
            Some(_) => {}
            None => caught += 1,
        }
    }
    end.store(true, Ordering::Relaxed);
    flipping.join().unwrap();
    assert!(own > 0 && caught > 0, "{own} opened, {caught} caught");
}

#[test]
fn sockets_of_mosix_and_of_services_are_reached_by_no_way() {
    let liar = Liar::new();
    let (work, socket) = (liar.at("desk"), liar.at("state/mosix/control.sock"));
    let _control = UnixListener::bind(&socket).unwrap();
    let _own = UnixListener::bind(work.join("own.sock")).unwrap();
    symlink(&socket, work.join("to-socket")).unwrap();
    symlink("/run/docker.sock", work.join("docker")).unwrap();
    liar.may("chdir", libc::SYS_chdir, &[B(&path(&work))]);
    let fd = liar.may("socket", libc::SYS_socket, &[N(1), N(1), N(0)]) as u64;
    let name = |path: &[u8]| [&1u16.to_le_bytes(), path].concat();
    let connect = |path: &[u8]| {
        let name = name(path);
        liar.call(libc::SYS_connect, &[N(fd), B(&name), N(name.len() as u64)])
    };
    for way in [
        path(&socket),
        b"to-socket\0".to_vec(),
        b"./to-socket\0".to_vec(),
        b"../state/mosix/control.sock\0".to_vec(),
        b"docker\0".to_vec(),
        b"\0dbus-x".to_vec(),
    ] {
        assert_eq!(connect(&way), None, "{}", way.escape_ascii());
        let name = name(&way);
        let length = N(name.len() as u64);
        liar.denied(
            "sendto",
            libc::SYS_sendto,
            &[N(fd), B(b"x"), N(1), N(0), B(&name), length],
        );
    }
    let place = name(&path(&liar.at("state/mosix/jobs.sock")));
    liar.denied("bind", libc::SYS_bind, &[N(fd), B(&place), N(place.len() as u64)]);
    assert_eq!(connect(b"own.sock\0"), Some(0), "the program's own socket");
}

#[test]
fn shapes_of_calls_that_lie_are_refused() {
    let liar = Liar::new();
    let raw = |nr: i64, args: [u64; 6], relocs: Vec<Place>, size: u32, payload: &[u8]| {
        let (mut call, _) = liar.shape(nr, &[]);
        (call.args, call.relocs, call.size) = (args, relocs, size);
        liar.send(call, payload)
    };
    let [read, readv, sendmsg] = [libc::SYS_read, libc::SYS_readv, libc::SYS_sendmsg];
    // Addresses of the deputy, of its window, and behind the buffer.
    for address in [0x1000, SHARED, SHARED + (1 << 20), 0x7fff_0000_0000, u64::MAX] {
        assert!(raw(read, [0, address, 64, 0, 0, 0], vec![], 64, &[0; 64]).is_none());
        assert!(raw(read, [0, address, 64, 0, 0, 0], vec![Place::Arg(1)], 64, &[0; 64]).is_none());
        let iov = [address.to_le_bytes(), 64u64.to_le_bytes()].concat();
        assert!(raw(readv, [0, 0, 1, 0, 0, 0], vec![Place::Arg(1)], 16, &iov).is_none());
        let nested = vec![Place::Arg(1), Place::At(0)];
        assert!(raw(readv, [0, 0, 1, 0, 0, 0], nested, 16, &iov).is_none());
    }
    // Lengths.
    for length in [65, 1 << 20, u64::from(u32::MAX), 1 << 40, u64::MAX >> 1] {
        assert!(raw(read, [0, 0, length, 0, 0, 0], vec![Place::Arg(1)], 64, &[0; 64]).is_none());
    }
    assert!(raw(read, [0, 0, 8, 0, 0, 0], vec![Place::Arg(1)], u32::MAX, &[0; 8]).is_none());
    assert!(raw(read, [0, 0, 8, 0, 0, 0], vec![Place::Arg(1)], 4, &[0; 8]).is_none());
    assert!(raw(read, [0, 0, 8, 0, 0, 0], vec![Place::Arg(200)], 8, &[0; 8]).is_none());
    assert!(raw(read, [0; 6], vec![Place::At(u32::MAX)], 8, &[0; 8]).is_none());
    // A thousand vectors that overlap, each of the whole buffer: no more than the buffer in all.
    let mut bomb = Vec::new();
    let mut relocs = vec![Place::Arg(1)];
    for index in 0..1024u32 {
        bomb.extend_from_slice(&0u64.to_le_bytes());
        bomb.extend_from_slice(&(1u64 << 40).to_le_bytes());
        relocs.push(Place::At(index * 16));
    }
    assert!(raw(readv, [0, 0, 1024, 0, 0, 0], relocs, bomb.len() as u32, &bomb).is_none());
    // Lengths and names that become addresses when the call is placed: alone, and as another vector's pointer.
    let mut vector = [
        0u64.to_le_bytes(),
        16u64.to_le_bytes(),
        0u64.to_le_bytes(),
        8u64.to_le_bytes(),
    ]
    .concat();
    let place = |at: &[u32]| {
        let nested = at.iter().map(|at| Place::At(*at));
        std::iter::once(Place::Arg(1)).chain(nested).collect::<Vec<_>>()
    };
    for places in [&[0, 8][..], &[8], &[0, 4], &[4], &[0, 0], &[16, 24]] {
        let args = [0, 0, 2, 0, 0, 0];
        assert!(raw(readv, args, place(places), 32, &vector).is_none(), "{places:?}");
    }
    vector.extend_from_slice(&[0; 128]);
    let mmsg = [128u64, 0, 0, 1].map(u64::to_le_bytes).concat();
    // struct mmsghdr twice: vectors at 128 and at 136.
    let mut messages = vec![0u8; 128];
    for (at, iov) in [(0, 128u64), (64, 136)] {
        messages[at + 16..at + 24].copy_from_slice(&iov.to_le_bytes());
        messages[at + 24..at + 32].copy_from_slice(&1u64.to_le_bytes());
    }
    messages.extend_from_slice(&mmsg);
    let relocs = place(&[16, 80, 128, 136]);
    let args = [0, 0, 2, 0, 0, 0];
    assert!(raw(libc::SYS_sendmmsg, args, relocs, messages.len() as u32, &messages).is_none());
    let file = path(&liar.at("desk/notes"));
    let (mut call, payload) = liar.shape(libc::SYS_open, &[B(&file)]);
    call.relocs.push(Place::At(0));
    assert!(liar.send(call, &payload).is_none(), "a path whose letters change");
    // A message whose vector is the message itself, with a count that does not end.
    let mut header = vec![0; 56];
    header[24..32].copy_from_slice(&1000u64.to_le_bytes());
    let relocs = vec![Place::Arg(1), Place::At(16)];
    assert!(raw(sendmsg, [0, 0, 0, 0, 0, 0], relocs, 56, &header).is_none());
    // Outputs beyond the buffer.
    let (mut call, payload) = liar.shape(libc::SYS_uname, &[B(&[0; 390])]);
    call.outputs = vec![Output {
        offset: 380,
        room: 4096,
        extent: Extent::Success,
    }];
    assert!(liar.send(call, &payload).is_none());
    assert!(liar.call(libc::SYS_getppid, &[]).is_some(), "the deputy serves on");
}
