//! Notification hazards: what a trapped call does when a signal, a death or a fork comes in between. Many runs each.

use crate::guests::DEATHS;
use mosix_tests::{Guest, How, Lab, Program, guest, inputs, require};
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

fn runs() -> usize {
    if inputs::full() { 100 } else { 10 }
}

/// Runs the program often, plainly once, at home and with quick moves, and compares.
fn hazard(program: &Program) {
    let lab = Lab::shared();
    let plain = program.run(How::Plain);
    assert!(plain.status.success(), "{plain}");
    for i in 0..runs() {
        program.run(How::Home(Lab::home())).assert_same(&plain);
        // Another moment of the program at each run.
        let period = Duration::from_millis(10 + 13 * (i as u64 % 10));
        let moved = program.run(How::Moving { lab, period });
        moved.assert_same(&plain);
        moved.assert_moved(0);
    }
}

#[test]
fn a_pipeline_of_dash() {
    require!(require::program("dash"));
    let script = "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done | while read x; do echo $((x*x)); done | \
                  { s=0; while read x; do s=$((s+x)); done; echo $s; }";
    hazard(&Program::new(["dash", "-c", script]));
}

#[test]
fn close_fork_exec_under_a_timer() {
    require!(require::program("cc"));
    let program = guest::compile("hazard_loop");
    let input = inputs::script("go", "go\n");
    // READY names the pid: keep only the verdict.
    let script = format!("{} 30 | tail -n 1", program.display());
    hazard(&Program::new(["sh", "-c", &script]).stdin(input));
}

#[test]
fn a_go_program_with_its_own_signals() {
    require!(require::program("go"));
    let program = super::programs::go_program();
    hazard(&Program::new([program.into_os_string(), "20".into()]));
}

/// Starts a guest, moves it `before` times, and lets `act` happen while it moves once more, at another moment in each run.
fn in_a_move(run: usize, args: &[&str], act: impl FnOnce(&mut Guest<'_>)) -> std::process::ExitStatus {
    let lab = Lab::shared();
    let period = Duration::from_millis(20);
    let mut guest = Guest::start("death_signal", args, How::Moving { lab, period });
    let before = run % 4;
    guest.go_round(before);
    let (pid, target) = (guest.pid().to_string(), ["n2", "n3", "home", "n2"][before]);
    std::thread::scope(|scope| {
        // It may end under the move's hands: what the move says then does not matter here.
        scope.spawn(|| lab.node(1).mosix(&["migrate", &pid, target]));
        std::thread::sleep(Duration::from_millis(run as u64 * 7 % 100));
        act(&mut guest);
        guest.end().status
    })
}

/// A signal from home that comes in a move, or right after it, ends the program as it would natively.
#[test]
fn killed_in_a_move() {
    require!(require::program("cc"));
    for run in 0..runs() / 2 {
        for number in [2, 9, 15, 6, 11] {
            let status = in_a_move(run, &["wait"], |guest| {
                guest.tell();
                let signal = nix::sys::signal::Signal::try_from(number).unwrap();
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(guest.pid()), signal).unwrap();
            });
            assert_eq!(status.signal(), Some(number), "run {run}");
        }
    }
}

/// The same for signals that it brings upon itself.
#[test]
fn a_fatal_signal_in_a_move() {
    require!(require::program("cc"));
    for run in 0..runs() / 2 {
        for (args, number) in DEATHS {
            let status = in_a_move(run, args, |guest| guest.tell());
            assert_eq!(status.signal(), Some(number), "run {run}, {args:?}");
        }
    }
}

/// A program that exits while it moves from host to host leaves with its own code: the call is a part of the image.
#[test]
fn an_exit_in_a_move() {
    require!(require::program("cc"));
    let lab = Lab::shared();
    let period = Duration::from_millis(20);
    for run in 0..runs() * 4 {
        let mut guest = Guest::start("exit_code", &["77"], How::Moving { lab, period });
        guest.go_round(1);
        let pid = guest.pid().to_string();
        let status = std::thread::scope(|scope| {
            // It may end under the move's hands: what the move says then does not matter here.
            scope.spawn(|| lab.node(1).mosix(&["migrate", &pid, "n3"]));
            std::thread::sleep(Duration::from_micros(run as u64 * 700 % 28_000));
            guest.tell();
            guest.end().status
        });
        assert_eq!(status.code(), Some(77), "run {run}: {status}");
    }
}
