//! CPU time of processes that move: what they, their parents and the shell are told of it.
//!
//! Home's kernel does not know what a process used elsewhere, and nothing is trapped at home: so all of this is asked away from home, after moves
//! that lead through it or not.

use mosix_tests::{Guest, How, Lab, require};
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

const PERIOD: Duration = Duration::from_millis(200);

fn moving() -> How<'static> {
    let (lab, period) = (Lab::shared(), PERIOD);
    How::Moving { lab, period }
}

/// Plainly, at home, and after these many moves round n2, n3, home.
fn everywhere(name: &str, rounds: &[usize]) {
    require!(require::program("cc"));
    for how in [How::Plain, How::Home(Lab::home())] {
        let guest = Guest::start(name, &[], how);
        std::thread::sleep(PERIOD);
        guest.pass();
    }
    for times in rounds {
        let mut guest = Guest::start(name, &[], moving());
        std::thread::sleep(PERIOD);
        guest.go_round(*times);
        guest.pass();
    }
}

#[test]
fn cpu_clocks_have_the_time_of_every_node() {
    everywhere("cpu_clocks", &[1, 2, 7]);
}

#[test]
fn getrusage_has_the_resources_of_every_node() {
    everywhere("rusage_self", &[1, 2, 7]);
}

#[test]
fn times_has_the_time_of_every_node() {
    everywhere("times", &[1, 2, 4]);
}

/// While it is read by four threads, a process goes from host to host.
#[test]
fn clocks_never_go_back() {
    require!(require::program("cc"));
    for how in [How::Plain, moving()] {
        let mut guest = Guest::start("clock_steady", &[], how);
        guest.go_round(1);
        guest.tell();
        std::thread::sleep(PERIOD);
        if matches!(how, How::Moving { .. }) {
            for target in ["n3", "n2"].into_iter().cycle().take(8) {
                guest.migrate(target);
            }
        }
        guest.pass();
    }
}

/// Moves all processes of a guest's job.
fn migrate_all(guest: &Guest<'_>, target: &str) {
    let output = Lab::shared().node(1).mosix(&["migrate", "--job", guest.job(), target]);
    assert!(output.status.success(), "{output:?}");
    std::thread::sleep(PERIOD);
}

#[test]
fn parents_have_the_time_of_their_children() {
    require!(require::program("cc"));
    for targets in [&[][..], &["n2"], &["n2", "n3"], &["n2", "home", "n3"]] {
        let guest = Guest::start("rusage_children", &[], moving());
        for target in targets {
            migrate_all(&guest, target);
        }
        guest.pass();
    }
}

/// `time` of a shell that was moved together with its program.
#[test]
fn the_shell_is_told_the_time_of_a_program() {
    require!(require::program("cc"));
    require!(require::program("bash"));
    let mut guest = Guest::start("timed", &[], moving());
    for target in ["n2", "n3"] {
        migrate_all(&guest, target);
    }
    guest.tell();
    let verdict = guest.end();
    let numbers: Vec<f64> = verdict
        .stderr
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [expected, user, system] = numbers[..] else {
        panic!("{verdict:?}");
    };
    assert_eq!(verdict.lines, ["PASS"], "{verdict:?}");
    assert!(
        user + system > expected * 0.5 && user + system < expected * 2.0 + 0.5,
        "{verdict:?}"
    );
}

#[test]
fn timers_of_cpu_time_tick_wherever_the_process_is() {
    everywhere("itimer_cpu", &[1, 2, 3, 7]);
}

/// The limit of CPU time, set before the moves or after them, told or deadly.
#[test]
fn the_limit_of_cpu_time_counts_every_node() {
    require!(require::program("cc"));
    for args in [&["soft"][..], &["soft", "late"]] {
        for times in [1, 2, 3] {
            let mut guest = Guest::start("rlimit_cpu", args, moving());
            guest.go_round(times);
            guest.pass();
        }
    }
    for (args, signal) in [
        (&["soft-default"][..], nix::libc::SIGXCPU),
        (&["hard"], nix::libc::SIGKILL),
        (&["hard", "late"], nix::libc::SIGKILL),
    ] {
        for times in [0, 2, 3] {
            let mut guest = Guest::start("rlimit_cpu", args, moving());
            guest.go_round(times);
            guest.tell();
            let verdict = guest.end();
            assert_eq!(
                verdict.status.signal(),
                Some(signal),
                "{args:?} after {times} moves: {verdict:?}"
            );
        }
    }
}
