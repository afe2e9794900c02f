//! Terminals: `mosix lab exec` and `mosix run` in a shell with job control, at home and moved.

use mosix_tests::{Lab, Node, require};
use rexpect::session::{PtySession, spawn_command};
use std::process::Command;

/// An interactive bash on this node, with a prompt of ours.
fn shell(node: Node<'_>) -> PtySession {
    let mut command: Command = node.command(["bash", "--norc", "--noprofile", "-i"]);
    command.env("PS1", "").env("HISTFILE", "").env("TERM", "dumb");
    let mut session = spawn_command(command, Some(20_000)).unwrap();
    // The echo of a command must not look like its answer.
    session.send_line("stty -echo; PS1='READY''> '").unwrap();
    session.exp_string("READY> ").unwrap();
    session
}

/// Ends it as people do; being killed takes it as long as the time-out.
fn leave(mut session: PtySession) {
    session.send_line("exit").unwrap();
    session.exp_eof().unwrap();
}

/// Sends a line and gives what comes before the next prompt.
fn ask(session: &mut PtySession, line: &str) -> String {
    session.send_line(line).unwrap();
    session
        .exp_string("READY> ")
        .unwrap()
        .replace('\r', "")
        .trim()
        .to_owned()
}

#[test]
fn exec_has_the_terminal() {
    require!(require::program("bash"));
    let mut session = shell(Lab::home());
    assert!(ask(&mut session, "tty").starts_with("/dev/pts/"));
    assert_eq!(
        ask(&mut session, "ps -o tpgid= -p $$ | tr -d ' '; echo $$")
            .lines()
            .count(),
        2
    );
    session.send_line("sleep 60").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    session.send_control('c').unwrap();
    session.exp_string("READY> ").unwrap();
    assert_eq!(ask(&mut session, "echo $?"), "130");
    leave(session);
}

/// ^C, ^Z, fg, bg, jobs and reading from the terminal; `command` runs `cat` as a job.
fn job_control(mut session: PtySession, command: &str, after_start: impl Fn()) {
    session.send_line(command).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    after_start();
    session.send_line("a line").unwrap();
    session.exp_string("a line").unwrap();
    session.send_control('z').unwrap();
    session.exp_string("Stopped").unwrap();
    session.exp_string("READY> ").unwrap();
    assert!(ask(&mut session, "jobs").contains("Stopped"));
    session.send_line("fg").unwrap();
    session.exp_string("cat").unwrap();
    session.send_line("another").unwrap();
    session.exp_string("another").unwrap();
    session.send_control('c').unwrap();
    session.exp_string("READY> ").unwrap();
    assert_eq!(ask(&mut session, "echo $?"), "130");
    // In the background it is stopped when it reads from the terminal; end of file ends it.
    session.send_line(&format!("{command} &")).unwrap();
    session.exp_string("READY> ").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    assert!(ask(&mut session, "jobs").contains("Stopped"));
    session.send_line("fg").unwrap();
    session.exp_string("cat").unwrap();
    session.send_line("third").unwrap();
    session.exp_string("third").unwrap();
    session.send_control('d').unwrap();
    session.exp_string("READY> ").unwrap();
    assert_eq!(ask(&mut session, "echo $?"), "0");
    leave(session);
}

#[test]
fn job_control_plainly() {
    require!(require::program("bash"));
    job_control(shell(Lab::home()), "cat", || {});
}

#[test]
fn job_control_at_home() {
    require!(require::program("bash"));
    job_control(shell(Lab::home()), "mosix run cat", || {});
}

#[test]
fn job_control_of_a_moved_process() {
    require!(require::program("bash"));
    let node = Lab::shared().node(1);
    let job = mosix_tests::run::job_name();
    job_control(shell(node), &format!("mosix run --job {job} cat"), || {
        node.mosix_ok(&["migrate", "--job", &job, "n2"]);
    });
}
