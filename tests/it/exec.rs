//! Programs that are executed away: the process stays where it is, or runs on at home when it cannot.

use mosix_tests::cluster::kill;
use mosix_tests::{Guest, How, Lab, require};
use serde_json::Value;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

const PERIOD: Duration = Duration::from_millis(50);

/// A guest that executes itself all the time: on whatever node it is, it is seen there and nowhere else, and has moved only when told to.
#[test]
fn stays_where_it_is() {
    require!(require::program("cc"));
    let lab = Lab::shared();
    let mut guest = Guest::start("exec_away", &[], How::Moving { lab, period: PERIOD });
    let pid = guest.pid();
    for (moves, target) in (1..).zip(["n2", "n3", "n2"]) {
        guest.migrate(target);
        for _ in 0..10 {
            std::thread::sleep(PERIOD);
            let row = lab.node(1).process(pid).expect("the guest in `ps`");
            assert_eq!(
                (&row["where"], &row["moves"]),
                (&Value::from(target), &Value::from(moves)),
                "{row}"
            );
        }
    }
    guest.pass();
}

/// Moves that come as fast as they can, at every step of an execve.
#[test]
fn in_the_middle_of_moves() {
    require!(require::program("cc"));
    let (lab, period) = (Lab::shared(), Duration::from_millis(1));
    for _ in 0..3 {
        let mut guest = Guest::start("exec_away", &[], How::Moving { lab, period });
        guest.go_round(15);
        guest.pass();
    }
}

/// Each program of the chain executes the next one, in the same process.
const CHAIN: &str =
    r#"n=$1; test "$PID" = $$ && echo step $n; test $n -ge 30 && exit 7; exec sh -c "$CHAIN" chain $((n + 1))"#;
const BEGIN: &str = r#"echo $$; read line; PID=$$; export PID; exec sh -c "$CHAIN" chain 1"#;

fn chain(mut command: Command, ready: impl FnOnce(&str)) -> (ExitStatus, Vec<String>) {
    let child = command.env("CHAIN", CHAIN).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = child.spawn().expect("start a shell");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout"))
        .lines()
        .map_while(Result::ok);
    ready(&lines.next().expect("its pid"));
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(b"go\n").expect("tell it");
    let said = lines.collect();
    (child.wait().expect("wait for the shell"), said)
}

#[test]
fn of_a_shell_that_executes_shells() {
    let argv = ["/bin/sh", "-c", BEGIN].map(OsString::from);
    let mut plain = Command::new(&argv[0]);
    plain.args(&argv[1..]);
    let (status, said) = chain(plain, |_| {});
    assert_eq!((status.code(), said.len()), (Some(7), 30), "{said:?}");
    let node = Lab::shared().node(1);
    let command = node.command(["mosix", "run"].map(OsString::from).into_iter().chain(argv));
    let away = chain(command, |pid| {
        node.mosix_ok(&["migrate", pid, "n2"]);
    });
    assert_eq!(away, (status, said));
}

/// The host's agent is killed while a new program is on its way back to it: as long as the body there has not spoken, it runs at home.
#[test]
fn goes_on_at_home_without_its_host() {
    require!(require::program("cc"));
    require::known_gap(
        "now and then the first move of a job to a node where another job's agent was just killed is not answered in time",
        without_its_host,
    );
}

fn without_its_host() {
    let lab = Lab::with_points(2);
    let points = [
        "home.connected",
        "home.frozen",
        "home.sending",
        "host.building",
        "home.sent",
        "host.built",
        "home.commit",
        "host.running",
    ];
    for point in points {
        let how = How::Moving {
            lab: &lab,
            period: PERIOD,
        };
        let mut guest = Guest::start("exec_args", &[], how);
        guest.migrate("n2");
        let job = lab.node(1).job_of(guest.pid()).expect("the guest's job");
        let id = job["id"].as_str().expect("its id").to_owned();
        let held = lab.hold(point);
        guest.tell();
        assert!(held.reached(Duration::from_secs(20)), "{point} was never reached");
        kill(lab.node(2).agent(&id).expect("the agent's pid"));
        drop(held);
        let verdict = guest.end();
        assert_eq!(
            (verdict.status.code(), verdict.lines.as_slice(), verdict.stderr.as_str()),
            (Some(0), &["PASS".to_owned()][..], ""),
            "{point}"
        );
    }
    lab.down();
}
