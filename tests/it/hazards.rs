//! Notification hazards: what a trapped call does when a signal, a death or a fork comes in between. Many runs each.

use mosix_tests::{How, Lab, Program, guest, inputs, require};
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
