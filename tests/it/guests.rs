//! Every guest plainly, under `mosix run` at home, and with moves round n1, n2, n3 while it works or is blocked.

use mosix_tests::{Guest, How, Lab, require};
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

const PERIOD: Duration = Duration::from_millis(200);

/// Runs a guest to its PASS.
fn plain(name: &str) {
    require!(require::program("cc"));
    let guest = Guest::start(name, &[], How::Plain);
    std::thread::sleep(Duration::from_millis(300));
    guest.pass();
}

/// The same under mosix, without a move.
fn home(name: &str) {
    require!(require::program("cc"));
    let guest = Guest::start(name, &[], How::Home(Lab::home()));
    std::thread::sleep(Duration::from_millis(300));
    guest.pass();
}

/// Guests whose waits are in sockets, whose time-outs the kernel shows to nobody.
const BY_SCHEDULER: &[&str] = &["socket_timeout"];

const EARLY: &str =
    "on a machine with many times more work than CPUs a wait may end some milliseconds early by the body's clock";

/// Guests that fail now and then, for a reason that is known.
const GAPS: &[(&str, &str)] = &[
    ("epoll_wait", EARLY),
    ("futex_timeout", EARLY),
    ("poll_wait", EARLY),
    ("sleep_exact", EARLY),
];

/// The same with moves before it is told to go on: so that what follows happens on n2, on n3, at home again, and on n2 after
/// two rounds.
fn moving(name: &'static str) {
    require!(require::program("cc"));
    match GAPS.iter().find(|(gap, _)| *gap == name) {
        Some((_, why)) => require::known_gap(why, || move_round(name)),
        None => move_round(name),
    }
}

fn move_round(name: &str) {
    for times in [1, 2, 3, 7] {
        let mut guest = Guest::start(
            name,
            &[],
            How::Moving {
                lab: Lab::shared(),
                period: PERIOD,
            },
        );
        if BY_SCHEDULER.contains(&name) {
            guest = guest.by_scheduler();
        }
        std::thread::sleep(PERIOD);
        guest.go_round(times);
        let verdict = guest.pass();
        assert_eq!(verdict.moves.done as usize, times);
    }
}

macro_rules! guests {
    ($($name:ident)*) => {
        mod run_plain { $(#[test] fn $name() { super::plain(stringify!($name)) })* }
        mod run_at_home { $(#[test] fn $name() { super::home(stringify!($name)) })* }
        mod run_moving { $(#[test] fn $name() { super::moving(stringify!($name)) })* }
    };
}

guests! {
    accept_server big_io blocked_pipe_read blocked_pipe_write brk_growth counter dirty_pages eintr epoll_wait exec_args exec_away
    exec_errors exec_scripts exec_signals exec_threads fds_kept fork_away fork_tree fpu_registers futex_timeout hazard_loop identity interval_timer ipc_timeout lock_wait maps_change
    mmap_file mmap_large mmap_shared_ro mmap_shared_rw poll_wait proc_self select_wait semop sigaltstack signals_queued signals_stream sigtimedwait sleep_exact
    socket_timeout stack_growth thread_exit thread_create_away thread_create_signals threads_futex vdso_time vfork_away wait_child
}

/// Each way of running, away or not.
fn ways() -> [(How<'static>, usize); 4] {
    let lab = Lab::shared();
    let moving = How::Moving { lab, period: PERIOD };
    [(How::Plain, 0), (How::Home(Lab::home()), 0), (moving, 1), (moving, 3)]
}

#[test]
fn exit_codes_are_kept() {
    require!(require::program("cc"));
    for (how, moves) in ways() {
        for code in [0, 1, 77, 255] {
            let mut guest = Guest::start("exit_code", &[&code.to_string()], how);
            guest.go_round(moves);
            guest.tell();
            let verdict = guest.end();
            assert_eq!(
                (verdict.status.code(), verdict.lines),
                (Some(code), vec!["leaving".to_owned()]),
                "{how:?}"
            );
        }
    }
}

/// Ways to die by a signal of one's own, as words for `death_signal`, with the signal.
pub const DEATHS: [(&[&str], i32); 6] = [
    (&["segv"], 11),
    (&["fpe"], 8),
    (&["ill"], 4),
    (&["abort"], 6),
    (&["raise", "15"], 15),
    (&["raise", "9"], 9),
];

#[test]
fn deaths_are_kept() {
    require!(require::program("cc"));
    for (how, moves) in ways() {
        for (args, signal) in DEATHS {
            let mut guest = Guest::start("death_signal", args, how);
            guest.go_round(moves);
            guest.tell();
            let verdict = guest.end();
            assert_eq!(verdict.status.signal(), Some(signal), "{args:?} {how:?}: {verdict:?}");
        }
    }
}

/// `kill` from home reaches a moved process at once.
#[test]
fn signals_from_outside_end_it() {
    require!(require::program("cc"));
    for (how, moves) in ways() {
        for number in [2, 9, 15] {
            let mut guest = Guest::start("death_signal", &["wait"], how);
            guest.go_round(moves);
            guest.tell();
            let signal = nix::sys::signal::Signal::try_from(number).unwrap();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(guest.pid()), signal).unwrap();
            let verdict = guest.end();
            assert_eq!(verdict.status.signal(), Some(number), "{how:?}: {verdict:?}");
        }
    }
}

/// A process that ^Z stopped in a wait stands, continued, in restart_syscall(2), whatever its call was: it moves all the same.
#[test]
fn waits_that_were_stopped_move() {
    require!(require::program("cc"));
    let lab = Lab::shared();
    for call in ["nanosleep", "clock_nanosleep", "poll", "futex"] {
        for moves in [1, 3] {
            let mut guest = Guest::start("stopped_wait", &[call], How::Moving { lab, period: PERIOD });
            std::thread::sleep(PERIOD);
            let pid = nix::unistd::Pid::from_raw(guest.pid());
            for signal in [nix::sys::signal::Signal::SIGSTOP, nix::sys::signal::Signal::SIGCONT] {
                nix::sys::signal::kill(pid, signal).unwrap();
                std::thread::sleep(PERIOD);
            }
            guest.go_round(moves);
            guest.pass();
        }
    }
}

/// `sleep 30` with 50 moves on the way ends on time; smaller by default.
#[test]
fn a_sleep_with_many_moves_ends_on_time() {
    require!(require::program("cc"));
    let (seconds, moves) = if mosix_tests::inputs::full() {
        ("10", 50)
    } else {
        ("3", 12)
    };
    let mut guest = Guest::start(
        "sleep_exact",
        &[seconds],
        How::Moving {
            lab: Lab::shared(),
            period: PERIOD,
        },
    );
    guest.go_round(moves);
    guest.pass();
}

/// 100 consecutive moves of one multi-threaded process; with load on the machine when stress-ng is there.
#[test]
fn a_hundred_moves_under_load() {
    require!(require::program("cc"));
    require!(require::program("stress-ng"));
    let lab = Lab::shared();
    let mut load = lab
        .node(1)
        .command(["stress-ng", "--quiet", "--cpu", "4", "--timeout", "300"])
        .spawn()
        .unwrap();
    let how = How::Moving {
        lab,
        period: Duration::from_millis(20),
    };
    let result = std::panic::catch_unwind(|| {
        let mut guest = Guest::start("threads_futex", &[], how);
        guest.go_round(if mosix_tests::inputs::full() { 99 } else { 30 });
        guest.pass();
    });
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(load.id().try_into().unwrap()),
        nix::sys::signal::SIGINT,
    )
    .unwrap();
    load.wait().unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}
