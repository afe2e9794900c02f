//! The table is complete, consistent, and safe where it says native.

use super::*;
use std::collections::HashSet;

#[test]
fn every_number_has_one_row_with_the_kernels_name() {
    let known: Vec<syscalls::Sysno> = (0..1024).filter_map(syscalls::Sysno::new).collect();
    let missing: Vec<_> = known
        .iter()
        .filter(|sysno| row(sysno.id() as u32).nr != sysno.id() as u32)
        .collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
    for sysno in &known {
        assert_eq!(row(sysno.id() as u32).name, sysno.name());
    }
    let numbers: HashSet<u32> = rows().map(|row| row.nr).collect();
    let names: HashSet<&str> = rows().map(|row| row.name).collect();
    assert_eq!(
        (numbers.len(), names.len()),
        (known.len(), known.len()),
        "rows without a call"
    );
    assert_eq!(rows().count(), known.len(), "a number has two rows");
    assert!(numbers.contains(&469));
}

#[test]
fn unknown_numbers_come_home() {
    for nr in [337, 400, 423, 511, 512, 600, 0x4000_0000, u32::MAX] {
        assert_eq!(row(nr).away, Away::Return, "{nr}");
    }
}

#[test]
fn only_exec_is_trapped_at_home() {
    let trapped: Vec<_> = rows()
        .filter(|row| row.home == Home::Trap)
        .map(|row| row.name)
        .collect();
    assert_eq!(trapped, ["execve", "execveat"]);
}

#[test]
fn notes_explain_what_is_not_full() {
    for row in rows() {
        assert!(row.args.len() <= 6, "{}", row.name);
        if row.support != Support::Full || matches!(row.away, Away::Both | Away::Special | Away::Refuse(_)) {
            assert!(!row.note.is_empty(), "{}", row.name);
        }
        assert_eq!(
            row.support == Support::ComesHome,
            row.away == Away::Return,
            "{}",
            row.name
        );
    }
}

/// Nothing that raises signals, makes processes, or makes kernel objects on the host may be native.
#[test]
fn dangerous_calls_are_not_native() {
    for name in [
        "kill",
        "tkill",
        "tgkill",
        "rt_sigqueueinfo",
        "rt_tgsigqueueinfo",
        "alarm",
        "timer_create",
        "timer_settime",
        "clone",
        "clone3",
        "fork",
        "vfork",
        "execve",
        "execveat",
        "io_uring_setup",
        "bpf",
        "ptrace",
        "userfaultfd",
        "memfd_create",
        "memfd_secret",
        "open",
        "openat",
        "socket",
        "unshare",
        "setns",
        "mount",
        "process_vm_writev",
        "process_madvise",
        "perf_event_open",
        "seccomp",
        "prlimit64",
        "setpriority",
        "mlock",
        "sched_setscheduler",
        "shmat",
        "msync",
        "remap_file_pages",
        "kcmp",
        "pidfd_getfd",
        "exit_group",
    ] {
        let row = rows().find(|row| row.name == name).unwrap();
        assert!(!matches!(row.away, Away::Native | Away::NativeIf { .. }), "{name}");
    }
    // ITIMER_REAL is home's.
    let Away::NativeIf { rules, .. } = row(libc::SYS_setitimer as u32).away else {
        panic!("setitimer")
    };
    assert!([1, 2].iter().all(|which| matches(rules, &[*which, 0, 0, 0, 0, 0])));
    assert!(
        [0, 3, u64::MAX]
            .iter()
            .all(|which| !matches(rules, &[*which, 0, 0, 0, 0, 0]))
    );
}

#[test]
fn requests_are_listed_once_and_have_one_level() {
    for row in rows() {
        for arg in row.args {
            if let Arg::By { list, selector } = arg {
                assert!(usize::from(*selector) < 6);
                let values: HashSet<u32> = list.iter().map(|request| request.value).collect();
                assert_eq!(values.len(), list.len(), "{}", row.name);
                assert!(
                    list.iter().all(|request| !matches!(request.arg, Arg::By { .. })),
                    "{}",
                    row.name
                );
            }
        }
    }
}

#[test]
fn ioctl_numbers_are_the_kernels() {
    use libc::*;
    let known: &[(&str, u64)] = &[
        ("TCGETS", TCGETS),
        ("TCSETS", TCSETS),
        ("TCSETSW", TCSETSW),
        ("TCSETSF", TCSETSF),
        ("TCSBRK", TCSBRK),
        ("TIOCGPGRP", TIOCGPGRP),
        ("TIOCSPGRP", TIOCSPGRP),
        ("TIOCGWINSZ", TIOCGWINSZ),
        ("TIOCSWINSZ", TIOCSWINSZ),
        ("FIONREAD", FIONREAD),
        ("FIONBIO", FIONBIO),
        ("FIOCLEX", FIOCLEX),
        ("FIONCLEX", FIONCLEX),
        ("FIOASYNC", FIOASYNC),
        ("TIOCGSID", TIOCGSID),
        ("TIOCSCTTY", TIOCSCTTY),
        ("TIOCNOTTY", TIOCNOTTY),
        ("TCGETS2", TCGETS2),
        ("TCSETS2", TCSETS2),
        ("TIOCGPTN", TIOCGPTN),
        ("TIOCSPTLCK", TIOCSPTLCK),
        ("TIOCMGET", TIOCMGET),
        ("TIOCOUTQ", TIOCOUTQ),
        ("BLKSSZGET", BLKSSZGET),
        ("BLKPBSZGET", BLKPBSZGET),
        ("SIOCGIFFLAGS", SIOCGIFFLAGS),
        ("SIOCGIFADDR", SIOCGIFADDR),
        ("SIOCGIFMTU", SIOCGIFMTU),
        ("SIOCGIFINDEX", SIOCGIFINDEX),
        ("SIOCGIFHWADDR", SIOCGIFHWADDR),
        ("FS_IOC_GETFLAGS", FS_IOC_GETFLAGS),
        ("FS_IOC_SETFLAGS", FS_IOC_SETFLAGS),
        ("FICLONE", FICLONE),
        ("FICLONERANGE", FICLONERANGE),
        ("TIOCEXCL", TIOCEXCL),
        ("TIOCNXCL", TIOCNXCL),
        ("TIOCGEXCL", TIOCGEXCL),
        ("TIOCPKT", TIOCPKT),
    ];
    for (name, value) in known {
        let request = ioctl::REQUESTS.iter().find(|request| request.name == *name).unwrap();
        assert_eq!(u64::from(request.value), *value, "{name}");
    }
    for never in [TIOCSTI, TIOCLINUX, TIOCCONS] {
        assert!(ioctl::REQUESTS.iter().all(|request| u64::from(request.value) != never));
    }
}

/// Requests that carry their size in the number agree with it.
#[test]
fn encoded_ioctl_sizes_agree() {
    for request in ioctl::REQUESTS.iter().filter(|request| request.value >> 30 != 0) {
        let encoded = request.value >> 16 & 0x3fff;
        let size = match request.arg {
            Arg::In(Size::Fixed(n)) | Arg::Out(Size::Fixed(n)) | Arg::InOut(Size::Fixed(n)) => n,
            _ => continue,
        };
        // These say `long` or `size_t` in the number and mean `int`.
        let lies = ["FS_IOC_GETFLAGS", "FS_IOC_SETFLAGS", "BLKBSZGET"].contains(&request.name);
        assert!(size == encoded || lies && (size, encoded) == (4, 8), "{}", request.name);
    }
}

#[test]
fn structure_sizes_are_the_c_librarys() {
    fn size(name: &str, arg: usize) -> u32 {
        match rows().find(|row| row.name == name).unwrap().args[arg] {
            Arg::In(Size::Fixed(n)) | Arg::Out(Size::Fixed(n)) | Arg::InOut(Size::Fixed(n)) => n,
            Arg::InOutAlways(Size::Fixed(n)) => n,
            other => panic!("{name}: {other:?}"),
        }
    }
    let of = |n: usize| u32::try_from(n).unwrap();
    assert_eq!(size("fstat", 1), of(size_of::<libc::stat>()));
    assert_eq!(size("statx", 4), of(size_of::<libc::statx>()));
    assert_eq!(size("statfs", 1), of(size_of::<libc::statfs>()));
    assert_eq!(size("uname", 0), of(size_of::<libc::utsname>()));
    assert_eq!(size("sysinfo", 0), of(size_of::<libc::sysinfo>()));
    assert_eq!(size("getrusage", 1), of(size_of::<libc::rusage>()));
    assert_eq!(size("waitid", 2), of(size_of::<libc::siginfo_t>()));
    assert_eq!(size("rt_sigqueueinfo", 2), of(size_of::<libc::siginfo_t>()));
    assert_eq!(size("times", 0), of(size_of::<libc::tms>()));
    assert_eq!(size("nanosleep", 0), of(size_of::<libc::timespec>()));
    assert_eq!(size("timerfd_settime", 2), of(size_of::<libc::itimerspec>()));
    assert_eq!(size("timer_create", 1), of(size_of::<libc::sigevent>()));
    assert_eq!(size("epoll_ctl", 3), of(size_of::<libc::epoll_event>()));
    assert_eq!(size("mq_getsetattr", 1), of(size_of::<libc::mq_attr>()));
    assert_eq!(size("getrlimit", 1), of(size_of::<libc::rlimit>()));
    assert_eq!(size_of::<libc::pollfd>(), 8);
    assert_eq!(size_of::<libc::msghdr>(), 56);
    assert_eq!(size_of::<libc::mmsghdr>(), 64);
    assert_eq!(size_of::<libc::sembuf>(), 6);
    assert_eq!(size_of::<libc::flock>(), 32);
    assert_eq!(size_of::<libc::shmid_ds>(), 112);
    assert_eq!(size_of::<libc::msqid_ds>(), 120);
    assert_eq!(size_of::<libc::semid_ds>(), 104);
}

/// No range that a native memory call can name touches the window: tried at every bound.
#[test]
fn native_memory_calls_cannot_reach_the_window() {
    let mut values = vec![
        0,
        1,
        4096,
        u64::MAX,
        u64::MAX - 4095,
        1 << 46,
        1 << 47,
        (1 << 47) - 4096,
        1 << 63,
    ];
    for edge in [
        WINDOW_START,
        WINDOW_END,
        0x7e00_0000_0000,
        WINDOW_START - 0x7e00_0000_0000,
        WINDOW_END - WINDOW_START,
    ] {
        values.extend([edge - 4096, edge - 1, edge, edge + 1, edge + 4096]);
    }
    let touches = |addr: u64, len: u64| {
        let (start, end) = (u128::from(addr), u128::from(addr) + u128::from(len));
        // The kernel refuses ranges beyond user addresses before it changes anything.
        end <= 1 << 47 && start < u128::from(WINDOW_END) && end > u128::from(WINDOW_START)
    };
    let passes = |nr: u32, args: [u64; 6]| match row(nr).away {
        Away::NativeIf { rules, .. } => matches(rules, &args),
        other => panic!("{other:?}"),
    };
    let mut passed = 0;
    for &addr in &values {
        for &len in &values {
            let fixed = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64;
            for (nr, third, flags) in [(9, 3, fixed), (10, 3, 0), (11, 0, 0), (28, 4, 0), (25, 4096, 1)] {
                if passes(nr, [addr, len, third, flags, 0, 0]) {
                    passed += 1;
                    assert!(!touches(addr, len), "{nr} {addr:#x} {len:#x}");
                }
            }
            for &new in &values {
                for flags in [3, 7, 1, 0] {
                    if passes(25, [addr, 4096, len, flags, new, 0]) {
                        assert!(!touches(addr, 4096));
                        assert!(flags & 2 == 0 || !touches(new, len), "{new:#x} {len:#x}");
                    }
                }
            }
        }
    }
    assert!(passed > 100, "the conditions let nothing pass");
}

#[test]
fn window_is_the_stubs() {
    use mosix_loader::script::abi;
    assert_eq!((WINDOW_START, WINDOW_END), (abi::WINDOW, abi::WINDOW_END));
}

#[test]
fn everyday_memory_calls_are_native() {
    let native = |nr: u32, args: [u64; 6]| match row(nr).away {
        Away::NativeIf { rules, .. } => matches(rules, &args),
        _ => false,
    };
    // malloc's arena, a thread's stack, a large block freed, a heap trimmed.
    assert!(native(9, [0, 1 << 27, 0, 0x4022, u64::MAX, 0]));
    assert!(native(9, [0, 8 << 20, 3, 0x20022, u64::MAX, 0]));
    assert!(native(10, [0x7f12_3456_7000, 0x21000, 3, 0, 0, 0]));
    assert!(native(10, [0x5555_5555_0000, 0x1000, 1, 0, 0, 0]));
    assert!(native(11, [0x7f12_3456_7000, 1 << 30, 0, 0, 0, 0]));
    assert!(native(25, [0x7f12_3456_7000, 1 << 20, 1 << 21, 1, 0, 0]));
    assert!(native(28, [0x7f12_3456_7000, 1 << 20, 4, 0, 0, 0]));
    assert!(!native(9, [0, 4096, 1, 2, 3, 0]), "a file");
    assert!(!native(9, [0, 4096, 3, 0x21, u64::MAX, 0]), "shared");
    assert!(!native(28, [0x7f12_3456_7000, 1 << 20, 12, 0, 0, 0]), "MERGEABLE");
}
