//! What breaks, and what must not: daemons, agents, supervisors, deputies killed, cables pulled.

use mosix_tests::cluster::{kill, text};
use mosix_tests::{Guest, How, Lab, inputs, require};
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

fn start<'a>(lab: &'a Lab, name: &str) -> Guest<'a> {
    Guest::start(
        name,
        &[],
        How::Moving {
            lab,
            period: Duration::from_millis(100),
        },
    )
}

fn job_id(lab: &Lab, guest: &Guest<'_>) -> String {
    let job = lab.node(1).job_of(guest.pid()).expect("the guest's job in ps");
    job["id"].as_str().unwrap().to_owned()
}

fn restart_daemons(lab: &Lab, nodes: u32) {
    let output = lab.verb(&["up", "--nodes", &nodes.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// A mosixd that dies and comes back loses nothing, whichever it is, while bodies are away.
#[test]
fn daemons_killed_and_restarted() {
    require!(require::program("cc"));
    let lab = Lab::new(3);
    let mut guests = [start(&lab, "threads_futex"), start(&lab, "identity")];
    for guest in &mut guests {
        guest.migrate("n2");
    }
    for number in [2, 1, 3] {
        lab.node(number).kill_daemon();
        std::thread::sleep(Duration::from_millis(300));
        restart_daemons(&lab, 3);
        for target in ["n3", "n2"] {
            guests.iter_mut().for_each(|guest| guest.migrate(target));
        }
    }
    for mut guest in guests {
        guest.migrate("home");
        guest.pass();
    }
    lab.assert_quiet();
    lab.down();
}

/// A host that is lost takes the bodies it had, and says so; everything else goes on.
#[test]
fn an_agent_killed() {
    require!(require::program("cc"));
    let lab = Lab::new(3);
    let (mut lost, mut other, at_home) = (
        start(&lab, "counter"),
        start(&lab, "identity"),
        start(&lab, "threads_futex"),
    );
    lost.migrate("n2");
    other.migrate("n2");
    let job = job_id(&lab, &lost);
    kill(lab.node(2).agent(&job).expect("the agent's pid"));
    let verdict = lost.end();
    assert!(!verdict.status.success() && verdict.lines.is_empty(), "{verdict:?}");
    assert!(verdict.stderr.contains("n2"), "the loss of n2 is not said: {verdict:?}");
    other.migrate("home");
    other.pass();
    at_home.pass();
    lab.assert_quiet();
    lab.down();
}

/// kill -9 of the deputy ends the program at once; of the supervisor, too, and nothing of the job is left anywhere.
#[test]
fn a_deputy_and_a_supervisor_killed() {
    require!(require::program("cc"));
    let lab = Lab::new(2);
    let mut guest = start(&lab, "identity");
    guest.migrate("n2");
    kill(guest.pid());
    let begin = Instant::now();
    let verdict = guest.end();
    assert_eq!(verdict.status.signal(), Some(9), "{verdict:?}");
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "it took {:?}",
        begin.elapsed()
    );

    let mut guest = start(&lab, "identity");
    guest.migrate("n2");
    let job = lab.node(1).job_of(guest.pid()).unwrap();
    kill(job["supervisor"].as_i64().unwrap().try_into().unwrap());
    let verdict = guest.end();
    assert!(!verdict.status.success(), "{verdict:?}");
    lab.assert_quiet();
    lab.down();
}

/// Without its launcher a job goes on or ends; it does not hang, and nothing is left of it.
#[test]
fn a_launcher_killed() {
    require!(require::program("cc"));
    let lab = Lab::new(2);
    for away in [false, true] {
        let mut guest = start(&lab, "counter");
        if away {
            guest.migrate("n2");
        }
        let launcher = guest.child().id();
        kill(launcher.try_into().unwrap());
        guest.tell();
        let verdict = guest.end();
        assert_eq!(verdict.status.signal(), Some(9));
        lab.assert_quiet();
    }
    lab.down();
}

/// A destination that cannot be reached: the move fails by name, the program runs on at home.
#[test]
fn an_unreachable_destination() {
    require!(require::program("cc"));
    let lab = Lab::new(3);
    let mut guest = start(&lab, "threads_futex");
    for fault in ["cable", "daemon"] {
        match fault {
            "cable" => lab.node(2).cable(false),
            _ => lab.node(2).kill_daemon(),
        }
        let output = lab.node(1).mosix(&["migrate", &guest.pid().to_string(), "n2"]);
        assert!(
            !output.status.success() && text(&output).contains("n2"),
            "{fault}: {}",
            text(&output)
        );
        guest.migrate("n3");
        guest.migrate("home");
        lab.node(2).cable(true);
    }
    guest.pass();
    lab.assert_quiet();
}

/// A cable out for a while and in again: nothing but the delay is noticed.
#[test]
fn a_link_cut_and_back() {
    require!(require::program("cc"));
    let lab = Lab::new(2);
    let seconds = inputs::size(4, 20);
    for name in ["identity", "threads_futex", "blocked_pipe_read", "big_io"] {
        let mut guest = start(&lab, name);
        guest.migrate("n2");
        for cut in [1, 2] {
            lab.node(cut).cable(false);
            std::thread::sleep(Duration::from_secs(seconds));
            lab.node(cut).cable(true);
            std::thread::sleep(Duration::from_secs(1));
        }
        guest.migrate("home");
        guest.pass();
    }
    lab.assert_quiet();
    lab.down();
}

/// The cable is pulled at some moment of a move: it succeeds or fails, and the program lives.
#[test]
fn a_link_cut_during_a_move() {
    require!(require::program("cc"));
    let lab = Lab::new(3);
    let mut guest = start(&lab, "dirty_pages");
    for i in 0..inputs::size(6, 40) {
        let cut = lab.node(if i % 2 == 0 { 2 } else { 3 });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(3 + 11 * i));
                cut.cable(false);
                std::thread::sleep(Duration::from_secs(2));
                cut.cable(true);
            });
            let target = if i % 3 == 2 {
                "home"
            } else {
                ["n2", "n3"][(i % 2) as usize]
            };
            let _ = lab.node(1).mosix(&["migrate", &guest.pid().to_string(), target]);
        });
        let row = lab.node(1).process(guest.pid());
        assert!(row.is_some(), "the program is gone after cut {i}");
    }
    // Whatever came of those, it can still go home.
    let deadline = Instant::now() + Duration::from_secs(30);
    while lab.node(1).process(guest.pid()).expect("the program in ps")["where"] != "home" {
        assert!(Instant::now() < deadline, "it cannot go home");
        let _ = lab.node(1).mosix(&["migrate", &guest.pid().to_string(), "home"]);
        std::thread::sleep(Duration::from_millis(200));
    }
    guest.tell();
    guest.pass();
    lab.assert_quiet();
    lab.down();
}

/// A program that ends while its agent is being opened leaves no agent behind.
#[test]
fn no_agent_outlives_a_job_that_ends_at_once() {
    let lab = Lab::with(2, &[]);
    for i in 0..30u64 {
        let pause = format!("0.0{:02}", i * 3 % 100);
        let argv = ["mosix", "run", "--on", "n2", "--", "sleep", &pause];
        let output = lab.node(1).command(argv).output().unwrap();
        assert!(output.status.success(), "run {i}: {}", text(&output));
    }
    lab.assert_quiet();
    lab.down();
}
