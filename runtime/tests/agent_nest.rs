//! The place of bodies on a host, made for real: as the user that runs the tests and, when that is root, as an ordinary user too.
//!
//! A blank process sits there under the pid it was asked for, with home's clocks, and reaches nothing; it dies with the agent.

use mosix_loader::script::Op;
use mosix_runtime::agent::birth::{BirthError, Blank, blank, end, stub_program};
use mosix_runtime::agent::nest::{Nest, confine, now};
use mosix_sys::process::{Fork, Wait, exit_now, fork, wait_for};
use mosix_sys::ptrace::{self, Event};
use mosix_wire::ids::Pid;
use mosix_wire::image::Clocks;
use std::path::Path;
use std::time::{Duration, Instant};

const HOME_UID: u32 = 4242;
const HOME_PID: Pid = Pid(31_000);
const LIMIT: Duration = Duration::from_secs(5);
const SECOND: i64 = 1_000_000_000;

fn main() {
    let cases: [(&str, fn()); 6] = [
        ("a_blank_process_has_pid_clocks_and_nothing_else", pid_clocks_nothing),
        ("a_taken_pid_is_refused_and_free_again_after_the_end", taken),
        ("each_arrival_has_clocks_of_its_own", clocks_of_arrivals),
        ("nothing_outlives_the_agent", nothing_outlives),
        ("the_agents_own_code_is_confined", confined),
        ("an_agent_that_an_intruder_runs_is_killed", intruded),
    ];
    let mut failed = 0;
    for (name, case) in cases {
        for user in users() {
            let status = in_process(user, case);
            println!(
                "test {name} (uid {user}) ... {}",
                if status == 0 { "ok" } else { "FAILED" }
            );
            failed += i32::from(status != 0);
        }
    }
    assert_eq!(failed, 0, "{failed} cases failed");
}

fn users() -> Vec<u32> {
    match rustix::process::geteuid().as_raw() {
        0 => vec![0, 65_534],
        own => vec![own],
    }
}

/// Runs a case in a process of its own, as `user`.
fn in_process(user: u32, case: fn()) -> i32 {
    match fork().expect("one thread") {
        Fork::Child => {
            if user != rustix::process::geteuid().as_raw() {
                let id = nix::unistd::Gid::from_raw(user);
                nix::unistd::setgroups(&[]).expect("setgroups");
                nix::unistd::setresgid(id, id, id).expect("setresgid");
                let id = nix::unistd::Uid::from_raw(user);
                nix::unistd::setresuid(id, id, id).expect("setresuid");
                // The change of user made this process non-dumpable, and its /proc folder root's, as no real agent starts.
                nix::sys::prctl::set_dumpable(true).expect("dumpable");
            }
            let outcome = std::panic::catch_unwind(case);
            exit_now(i32::from(outcome.is_err()))
        }
        Fork::Parent(pid) => loop {
            if let Wait::Some(waited) = wait_for(pid, true)
                && waited.status.is_end()
            {
                return waited.status.code().unwrap_or(255);
            }
        },
    }
}

fn run(body: &Blank, ops: &[Op]) -> Vec<i64> {
    body.window.run(0, ops, LIMIT).expect("script")
}

fn call(body: &Blank, nr: i64, args: [u64; 6]) -> i64 {
    run(body, &[Op::may(nr, args)])[0]
}

fn status(host: i32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{host}/status")).expect("status");
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("field");
    line.trim_start_matches(':').trim().to_owned()
}

fn pid_clocks_nothing() {
    // Root gives the job a user of its own.
    let own = rustix::process::geteuid().is_root().then_some(1_900_000_123);
    let outside = own.unwrap_or(rustix::process::geteuid().as_raw());
    let nest = Nest::make(HOME_UID, own).expect("nest");
    nest.enter().expect("enters");
    let program = stub_program().expect("stub");
    let wanted = Clocks {
        monotonic: 5_000_000 * SECOND,
        boottime: 7_000_000 * SECOND,
        realtime: 0,
    };
    let here = now().expect("clocks");
    let ahead = (wanted.monotonic - here.monotonic, wanted.boottime - here.boottime);
    let body = blank(&nest, &program, HOME_PID, ahead, &[]).expect("blank");

    assert!(status(body.host, "NSpid").ends_with(&format!("\t{}", HOME_PID.0)));
    assert_eq!(call(&body, libc::SYS_getuid, [0; 6]), i64::from(HOME_UID));
    let map = std::fs::read_to_string(format!("/proc/{}/uid_map", body.host)).expect("uid_map");
    let numbers: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(numbers, [&HOME_UID.to_string(), &outside.to_string(), "1"]);
    assert_eq!(status(body.host, "Groups"), "", "no group of root's");
    assert_eq!(status(body.host, "NoNewPrivs"), "1");
    assert_eq!(
        status(body.host, "CapPrm"),
        "0000010000000000",
        "CAP_CHECKPOINT_RESTORE alone"
    );
    assert_eq!(status(body.host, "CapBnd"), "0000000000000000");
    assert_eq!(
        std::fs::read_to_string(format!("/proc/{}/oom_score_adj", body.host))
            .expect("oom")
            .trim(),
        "1000"
    );
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", body.host)).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core")).expect("core");
    assert!(core.split_whitespace().nth(4) <= Some("1"), "{core}");

    // Clocks go on from home's.
    let (buffer, _) = mosix_runtime::process::window::Window::buffer(0);
    for (clock, wanted) in [
        (libc::CLOCK_MONOTONIC, wanted.monotonic),
        (libc::CLOCK_BOOTTIME, wanted.boottime),
    ] {
        assert_eq!(
            call(&body, libc::SYS_clock_gettime, [clock as u64, buffer, 0, 0, 0, 0]),
            0
        );
        let bytes = body.window.read_buffer(0, 0, 16).expect("timespec");
        let word = |at: usize| i64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let seen = word(0) * SECOND + word(8);
        assert!(
            (wanted..wanted + SECOND).contains(&seen),
            "clock {clock}: {seen} for {wanted}"
        );
    }

    // No file, no network, no namespace, nobody to signal, no descriptor.
    for path in ["/etc/passwd\0", "/proc/self/status\0", "/new\0", "/../etc\0"] {
        body.window.write_buffer(0, 0, path.as_bytes()).expect("path");
        let at = libc::AT_FDCWD as u64;
        for flags in [libc::O_RDONLY, libc::O_WRONLY | libc::O_CREAT] {
            let result = call(&body, libc::SYS_openat, [at, buffer, flags as u64, 0o600, 0, 0]);
            assert!([-2, -13, -30, -28].contains(&result), "open {path:?} gave {result}");
        }
    }
    body.window.write_buffer(0, 0, b"/\0").expect("path");
    let root = call(
        &body,
        libc::SYS_open,
        [buffer, (libc::O_RDONLY | libc::O_DIRECTORY) as u64, 0, 0, 0, 0],
    );
    assert!(root >= 0, "root: {root}");
    let entries = call(&body, libc::SYS_getdents64, [root as u64, buffer + 64, 4096, 0, 0, 0]);
    assert_eq!(entries, 48, "the root holds . and .. alone");
    assert_eq!(call(&body, libc::SYS_close, [root as u64, 0, 0, 0, 0, 0]), 0);
    assert_eq!(
        std::fs::read_dir(format!("/proc/{}/fd", body.host))
            .map(|fds| fds.count())
            .unwrap_or(0),
        0
    );
    assert_eq!(
        call(&body, libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]),
        -28,
        "no user namespaces"
    );
    assert_eq!(
        call(&body, libc::SYS_unshare, [libc::CLONE_NEWNET as u64, 0, 0, 0, 0, 0]),
        -1
    );
    assert_eq!(
        call(&body, libc::SYS_kill, [-1i64 as u64, libc::SIGKILL as u64, 0, 0, 0, 0]),
        -3,
        "nobody to kill"
    );
    assert_eq!(
        call(&body, libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), 1, 0, 0, 0, 0]),
        -1
    );
    let own = std::fs::read_link("/proc/self/ns/mnt").expect("ns");
    assert_ne!(
        std::fs::read_link(format!("/proc/{}/ns/mnt", body.host)).expect("ns"),
        own
    );

    // The tracer has it.
    ptrace::interrupt(body.host).expect("seized");
    assert!(matches!(
        ptrace::wait(Some(body.host), true),
        Ok(Some((_, Event::Stop(_))))
    ));
    ptrace::cont(body.host, 0).expect("cont");
    end(body.host);
    assert!(!Path::new(&format!("/proc/{}", body.host)).exists());
}

fn taken() {
    let nest = Nest::make(HOME_UID, None).expect("nest");
    nest.enter().expect("enters");
    let program = stub_program().expect("stub");
    let first = blank(&nest, &program, HOME_PID, (0, 0), &[]).expect("blank");
    assert!(matches!(
        blank(&nest, &program, HOME_PID, (0, 0), &[]),
        Err(BirthError::Taken(HOME_PID))
    ));
    assert!(matches!(
        blank(&nest, &program, Pid(1), (0, 0), &[]),
        Err(BirthError::Taken(Pid(1)))
    ));
    assert!(matches!(
        blank(&nest, &program, Pid(1 << 29), (0, 0), &[]),
        Err(BirthError::TooLarge(_))
    ));
    end(first.host);
    let again = blank(&nest, &program, HOME_PID, (0, 0), &[]).expect("free again");
    end(again.host);
}

fn clocks_of_arrivals() {
    let nest = Nest::make(HOME_UID, None).expect("nest");
    nest.enter().expect("enters");
    let program = stub_program().expect("stub");
    let mut bodies = Vec::new();
    for (index, hours) in [400_000, 1, 30_000].into_iter().enumerate() {
        let time = hours * 3600 * SECOND;
        let here = now().expect("clocks");
        let ahead = (time - here.monotonic, time - here.boottime);
        bodies.push((
            blank(&nest, &program, Pid(500 + index as i32), ahead, &[]).expect("blank"),
            time,
        ));
    }
    let (buffer, _) = mosix_runtime::process::window::Window::buffer(0);
    for (body, time) in &bodies {
        assert_eq!(
            call(
                body,
                libc::SYS_clock_gettime,
                [libc::CLOCK_MONOTONIC as u64, buffer, 0, 0, 0, 0]
            ),
            0
        );
        let bytes = body.window.read_buffer(0, 0, 8).expect("timespec");
        let seconds = i64::from_le_bytes(bytes.try_into().expect("eight"));
        assert!((0..5).contains(&(seconds - time / SECOND)), "{seconds} for {time}");
    }
    assert!(matches!(
        blank(&nest, &program, Pid(600), (i64::MAX, -1), &[]),
        Err(BirthError::Clocks { .. })
    ));
    for (body, _) in bodies {
        end(body.host);
    }
}

/// An agent killed with -9 leaves neither process 1 nor a body.
fn nothing_outlives() {
    let (read, write) = std::io::pipe().expect("pipe");
    let agent = match fork().expect("one thread") {
        Fork::Child => {
            use std::io::Write;
            let nest = Nest::make(HOME_UID, None).expect("nest");
            nest.enter().expect("enters");
            nest.enter().expect("enters");
            let program = stub_program().expect("stub");
            let body = blank(&nest, &program, HOME_PID, (0, 0), &[]).expect("blank");
            (&write)
                .write_all(format!("{} {}\n", nest.init.pid, body.host).as_bytes())
                .expect("tell");
            loop {
                std::thread::park();
            }
        }
        Fork::Parent(pid) => pid,
    };
    drop(write);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(read), &mut line).expect("told");
    let pids: Vec<i32> = line.split_whitespace().map(|pid| pid.parse().expect("pid")).collect();
    assert_eq!(pids.len(), 2);
    mosix_sys::process::kill(agent, libc::SIGKILL).expect("kill");
    wait_for(agent, true);
    let deadline = Instant::now() + LIMIT;
    let left = || pids.iter().filter(|pid| !gone(**pid)).count();
    while left() > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(left(), 0, "left behind: {pids:?}");
}

/// Gone, or a zombie that only its adoptive parent still has to take.
/// Runs a piece of code as the agent's threads run; false when it panicked.
fn in_thread(work: fn()) -> bool {
    std::thread::spawn(move || {
        confine::threads().expect("the filter");
        work();
    })
    .join()
    .is_ok()
}

fn confined() {
    let dir = tempfile::tempdir().expect("folder");
    let own = dir.path().join("own.sock");
    std::fs::write(&own, "").expect("file");
    let outside = tempfile::NamedTempFile::new().expect("file");
    nix::sys::prctl::set_no_new_privs().expect("no_new_privs");
    let landlock = confine::files(dir.path()).expect("Landlock");
    if landlock {
        let denied = |result: std::io::Result<()>| {
            assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        };
        denied(std::fs::read("/etc/passwd").map(drop));
        denied(std::fs::read(outside.path()).map(drop));
        denied(std::fs::write(dir.path().join("new"), ""));
        denied(std::fs::remove_file(outside.path()));
        // A process outside: its memory, though the user is the same. Root may look by a capability that an agent has not.
        if !rustix::process::geteuid().is_root() {
            let parent = std::os::unix::process::parent_id();
            denied(std::fs::read(format!("/proc/{parent}/environ")).map(drop));
        }
    } else {
        println!("no Landlock in this kernel");
    }
    std::fs::read("/proc/self/status").expect("what the agent reads");
    std::fs::remove_file(&own).expect("the agent's own socket");
    let fine = in_thread(|| {
        let refused = std::fs::create_dir("/tmp/mosix-never").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        let refused = rustix::fs::symlink("/", "/tmp/mosix-never").unwrap_err();
        assert_eq!(refused.raw_os_error(), libc::EPERM);
        let refused = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &nix::sched::CpuSet::new());
        assert_eq!(refused.unwrap_err(), nix::errno::Errno::EPERM);
        let refused = std::net::TcpStream::connect("127.0.0.1:9").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        // Memory, threads and their ends.
        let vector = std::thread::spawn(|| vec![7u8; 32 << 20]).join().expect("a thread");
        assert_eq!(vector[1 << 20], 7);
    });
    assert!(fine);
}

fn intruded() {
    let attempts: [(&str, fn()); 4] = [
        ("bind", || {
            drop(std::os::unix::net::UnixListener::bind("/tmp/mosix-never"))
        }),
        ("kill", || assert!(mosix_sys::process::kill(1, 0).is_err())),
        ("unshare", || {
            assert!(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).is_err())
        }),
        ("fork", || {
            // Whatever the library uses for it, no program runs.
            let ran = std::process::Command::new("/bin/true").status();
            assert!(ran.is_err());
            drop(std::os::unix::net::UnixListener::bind("/tmp/mosix-never"));
        }),
    ];
    for (what, attempt) in attempts {
        match fork().expect("one thread") {
            Fork::Child => {
                let _ = in_thread(attempt);
                exit_now(0)
            }
            Fork::Parent(pid) => loop {
                if let Wait::Some(waited) = wait_for(pid, true)
                    && waited.status.is_end()
                {
                    let killed = waited.status.killed().map(|(signal, _)| signal);
                    assert_eq!(killed, Some(libc::SIGSYS), "{what}");
                    break;
                }
            },
        }
    }
}

fn gone(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
}
