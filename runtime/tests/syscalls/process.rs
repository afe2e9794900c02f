//! Processes, credentials, limits, signals, time, IPC.

use crate::deputy::Guest;
use libc::*;

pub fn process(g: &Guest) {
    let me = g.pid as u64;
    let own = identity();
    assert_eq!(g.ok("getuid", []), own.0);
    assert_eq!(g.ok("geteuid", []), own.0);
    assert_eq!(g.ok("getgid", []), own.1);
    assert_eq!(g.ok("getegid", []), own.1);
    assert_eq!(g.ok("getppid", []), u64::from(std::process::id()));
    for call in ["getpgid", "getsid", "sched_getscheduler"] {
        g.ok(call, [0]);
    }
    g.ok("getpgrp", []);
    let (a, b, c) = (g.room(4), g.room(4), g.room(4));
    g.ok("getresuid", [a, b, c]);
    assert_eq!((g.int(a) as u64, g.int(c) as u64), (own.0, own.0));
    g.ok("getresgid", [a, b, c]);
    for (call, id) in [
        ("setuid", own.0),
        ("setgid", own.1),
        ("setfsuid", own.0),
        ("setfsgid", own.1),
    ] {
        g.ok(call, [id]);
    }
    for (call, id) in [("setreuid", own.0), ("setregid", own.1)] {
        g.ok(call, [id, id]);
    }
    for (call, id) in [("setresuid", own.0), ("setresgid", own.1)] {
        g.ok(call, [id, id, id]);
    }
    let groups = g.put(&[0xff; 4096]);
    let n = g.ok("getgroups", [0, 0]);
    assert_eq!(g.ok("getgroups", [1024, groups]), n);
    assert_eq!(g.get(groups + 4 * n, 1), [0xff]);
    g.may("setgroups", [n, groups], &[EPERM]);
    g.fails("setgroups", [1 << 20, groups], if own.0 == 0 { EINVAL } else { EPERM });

    let names = g.room(390);
    g.ok("uname", [names]);
    assert_eq!(g.get(names, 6), b"Linux\0");
    g.ok("sysinfo", [g.room(112)]);
    let limit = g.room(16);
    g.ok("getrlimit", [u64::from(RLIMIT_NOFILE), limit]);
    g.ok("setrlimit", [u64::from(RLIMIT_NOFILE), limit]);
    let old = g.room(16);
    g.ok("prlimit64", [0, u64::from(RLIMIT_NOFILE), limit, old]);
    assert_eq!(g.get(limit, 16), g.get(old, 16));
    let usage = g.room(144);
    g.ok("getrusage", [0, usage]);
    g.ok("times", [g.room(32)]);
    g.fails("wait4", [u64::MAX, g.room(4), 0, usage], ECHILD);
    g.fails("waitid", [0, 0, g.room(128), WEXITED as u64, usage], ECHILD);

    // Capabilities: the header tells the version also when it is wrong.
    let header = g.put(&[&0u32.to_le_bytes()[..], &0u32.to_le_bytes()].concat());
    g.call("capget", [header, 0]);
    assert_eq!(g.int(header), 0x2008_0522);
    let data = g.room(24);
    g.ok("capget", [header, data]);
    g.ok("capset", [header, data]);

    g.ok("getpriority", [0, 0]);
    g.ok("setpriority", [0, 0, 5]);
    assert_eq!(g.ok("getpriority", [0, 0]), 15);
    let param = g.put(&0i32.to_le_bytes());
    g.ok("sched_getparam", [0, param]);
    g.ok("sched_setparam", [0, param]);
    g.ok("sched_setscheduler", [0, 0, param]);
    g.ok("sched_rr_get_interval", [0, g.room(16)]);
    g.ok("sched_getattr", [0, g.room(64), 64, 0]);
    let cpus = g.put(&[0; 1024]);
    let bytes = g.ok("sched_getaffinity", [0, 1024, cpus]);
    assert!(bytes.is_multiple_of(8) && g.get(cpus, bytes as usize).iter().any(|&b| b != 0));
    g.ok("sched_setaffinity", [0, bytes, cpus]);
    let io = g.ok("ioprio_get", [1, 0]);
    g.may("ioprio_set", [1, 0, io], &[EINVAL, EPERM]);
    g.ok("personality", [0xffff_ffff]);
    g.ok("prctl", [15, g.text("guest-name-is-long")]);
    let name = g.room(16);
    g.ok("prctl", [16, name]);
    assert_eq!(g.get(name, 16), b"guest-name-is-l\0");
    g.ok("prctl", [36, 1]);
    g.ok("prctl", [37, a]);
    assert_eq!(g.int(a), 1);
    let pidfd = g.ok("pidfd_open", [me, 0]);
    g.ok("close", [pidfd]);
    g.may("syslog", [10, 0, 0], &[EPERM]);

    // Signals: all are blocked in a blank process, so they stay pending.
    g.ok("kill", [me, 0]);
    g.ok("tkill", [me, 0]);
    g.ok("tgkill", [me, me, 0]);
    let mut info = [0u8; 128];
    info[..4].copy_from_slice(&(SIGRTMIN()).to_le_bytes());
    info[8..12].copy_from_slice(&(-1i32).to_le_bytes());
    let info = g.put(&info);
    g.ok("rt_sigqueueinfo", [me, SIGRTMIN() as u64, info]);
    g.ok("rt_tgsigqueueinfo", [me, me, SIGRTMIN() as u64, info]);

    g.ok("setpgid", [0, 0]);
    g.fails("setsid", [], EPERM);
    g.may("chroot", [g.text("/")], &[EPERM]);
}

/// The identity this test runs under, which the deputy shares.
fn identity() -> (u64, u64) {
    (
        u64::from(nix::unistd::getuid().as_raw()),
        u64::from(nix::unistd::getgid().as_raw()),
    )
}

pub fn time(g: &Guest) {
    let cpu = g.words(&[99, 99]);
    assert_eq!(g.ok("clock_gettime", [2, cpu]), 0);
    assert!(g.word(cpu) < 99, "seconds of CPU time");
    let short = g.words(&[0, 1_000_000]);
    let rest = g.words(&[77, 88]);
    assert_eq!(g.ok("nanosleep", [short, rest]), 0);
    assert_eq!(g.ok("clock_nanosleep", [1, 0, short, rest]), 0);
    assert_eq!(g.word(rest), 77, "no rest after a whole sleep");
    g.fails("nanosleep", [g.words(&[0, 1_000_000_000]), 0], EINVAL);
    assert_eq!(g.ok("alarm", [1000]), 0);
    let timer = g.words(&[0, 0, 500, 0]);
    let old = g.room(32);
    g.ok("setitimer", [0, timer, old]);
    assert!(g.word(old + 16) >= 999, "the alarm's rest");
    g.ok("getitimer", [0, old]);
    assert!(g.word(old + 16) >= 498);
    g.ok("alarm", [0]);

    let id = g.room(4);
    let event = g.put(&[&[0u8; 12][..], &1i32.to_le_bytes(), &[0; 48]].concat());
    g.ok("timer_create", [1, event, id]);
    let timer_id = g.int(id) as u64;
    let spec = g.words(&[0, 0, 100, 0]);
    g.ok("timer_settime", [timer_id, 0, spec, old]);
    g.ok("timer_gettime", [timer_id, old]);
    assert!(g.word(old + 16) >= 98);
    g.ok("timer_getoverrun", [timer_id]);
    g.ok("timer_delete", [timer_id]);
    let fd = g.ok("timerfd_create", [1, 0]);
    g.ok("timerfd_settime", [fd, 0, spec, 0]);
    g.ok("timerfd_gettime", [fd, old]);
    assert!(g.word(old + 16) >= 98);
}

pub fn ipc(g: &Guest) {
    // Nothing lies there.
    g.fails("msync", [0x10000, 4096, 4], ENOMEM);
    let shm = g.ok("shmget", [0, 4096, 0o600]);
    let info = g.room(128);
    g.ok("shmctl", [shm, 2, info]);
    assert_eq!(g.word(info + 48), 4096, "shm_segsz");
    g.ok("shmctl", [shm, 0, 0]);

    let sem = g.ok("semget", [0, 2, 0o600]);
    g.ok("semctl", [sem, 0, 16, 5]);
    assert_eq!(g.ok("semctl", [sem, 0, 12, 0]), 5);
    // Semaphore 0 down by 2, semaphore 1 up by 1.
    let ops = g.put(
        &[0i16, -2, 0, 1, 1, 0]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect::<Vec<_>>(),
    );
    g.ok("semop", [sem, ops, 2]);
    assert_eq!(
        (g.ok("semctl", [sem, 0, 12, 0]), g.ok("semctl", [sem, 1, 12, 0])),
        (3, 1)
    );
    let wait = g.put(&[0i16, -9, 0].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>());
    g.fails("semtimedop", [sem, wait, 1, g.words(&[0, 1_000_000])], EAGAIN);
    g.fails("semop", [sem, ops, 1 << 20], E2BIG);
    g.ok("semctl", [sem, 0, 2, info]);
    g.ok("semctl", [sem, 0, 0, 0]);

    let queue = g.ok("msgget", [0, 0o600]);
    let message = g.put(&[&7u64.to_le_bytes()[..], b"hello"].concat());
    g.ok("msgsnd", [queue, message, 5, 0]);
    g.fails("msgsnd", [queue, g.words(&[0, 0]), 5, 0], EINVAL);
    let back = g.put(&[0xee; 64]);
    assert_eq!(g.ok("msgrcv", [queue, back, 50, 0, 0]), 5);
    assert_eq!((g.word(back), g.get(back + 8, 6)), (7, b"hello\xee".to_vec()));
    g.fails("msgrcv", [queue, back, 50, 0, IPC_NOWAIT as u64], ENOMSG);
    g.ok("msgctl", [queue, 2, info]);
    g.ok("msgctl", [queue, 0, 0]);

    let name = g.text(&format!("mosix-test-{}", g.pid));
    let attr = g.words(&[0, 4, 64, 0, 0, 0, 0, 0]);
    let flags = (O_CREAT | O_RDWR | O_NONBLOCK) as u64;
    if g.may("mq_open", [name, flags, 0o600, attr], &[ENOSYS, EACCES]) {
        g.ok("mq_unlink", [name]);
        let queue = g.ok("mq_open", [name, flags, 0o600, attr]);
        g.ok("mq_unlink", [name]);
        g.ok("mq_timedsend", [queue, g.put(b"post"), 4, 3, 0]);
        let (text, priority) = (g.room(64), g.room(4));
        assert_eq!(g.ok("mq_timedreceive", [queue, text, 64, priority, 0]), 4);
        assert_eq!((g.get(text, 5), g.int(priority)), (b"post\0".to_vec(), 3));
        let old = g.room(64);
        g.ok("mq_getsetattr", [queue, 0, old]);
        assert_eq!((g.word(old + 8), g.word(old + 16)), (4, 64));
    } else {
        for call in ["mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_getsetattr"] {
            g.call(call, [name, 0, 0, 0, 0]);
        }
    }
}

pub fn sandbox(g: &Guest) {
    let fs = g.words(&[1 << 0]);
    let none = [ENOSYS, EOPNOTSUPP];
    if g.may("landlock_create_ruleset", [0, 0, 1], &none) {
        let rules = g.ok("landlock_create_ruleset", [fs, 8, 0]);
        let root = g.ok("open", [g.text("/"), (O_PATH | O_DIRECTORY) as u64]);
        let mut rule = 1u64.to_le_bytes().to_vec();
        rule.extend_from_slice(&(root as i32).to_le_bytes());
        g.ok("landlock_add_rule", [rules, 1, g.put(&rule), 0]);
        g.ok("prctl", [38, 1, 0, 0, 0]);
        g.ok("landlock_restrict_self", [rules, 0]);
    } else {
        g.call("landlock_add_rule", [99, 1, 0, 0]);
        g.call("landlock_restrict_self", [99, 0]);
    }
}
