//! Small behaviours, several in one program: each plainly, at home, and on hosts, with the moves between its set-up and its check.

use mosix_tests::coverage::{self, Behaviour};
use mosix_tests::{Guest, How, Lab, binary, require};
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

/// The moves before the check: it happens on a host after one move and after two, and at home again.
const ROUNDS: [&[&str]; 3] = [&["n2"], &["n2", "n3"], &["n2", "home"]];

/// Behaviours that fail, for a reason that is known.
const GAPS: &[(&str, &str)] = &[];

/// Calls that no behaviour shows yet: the number only falls.
const LEFT: usize = 300;

/// Runs a behaviour in every way. The runs do not meet, and none of them computes: they go side by side.
fn show(program: &str, name: &str) {
    require!(require::program("cc"));
    let whole = format!("{program}:{name}");
    let test = || {
        std::thread::scope(|scope| {
            let near = scope.spawn(|| {
                Guest::start(program, &[name], How::Plain).pass();
                Guest::start(program, &[name], How::Home(Lab::home())).pass();
            });
            let mut served = BTreeSet::new();
            for moves in ROUNDS {
                served.extend(go(program, name, moves));
            }
            if let Err(panic) = near.join() {
                std::panic::resume_unwind(panic);
            }
            let wanted = coverage::behaviours()
                .into_iter()
                .find(|one| one.program == program && one.name == name);
            hold_to(&wanted.expect("it is declared"), &served);
        });
    };
    match GAPS.iter().find(|(gap, _)| *gap == whole) {
        Some((_, why)) => require::known_gap(why, test),
        None => test(),
    }
}

/// Runs it with these moves; the calls that agents have served, and how.
fn go(program: &str, name: &str, moves: &[&str]) -> BTreeSet<(String, String)> {
    let lab = Lab::shared();
    let how = How::Moving {
        lab,
        period: Duration::ZERO,
    };
    let mut guest = Guest::start(program, &[name], how);
    let pid = guest.pid();
    for target in moves {
        guest.migrate(target);
    }
    guest.pass();
    lab.served(pid)
}

/// Fails when a call that the behaviour says to show was not served as the table has it.
fn hold_to(one: &Behaviour, served: &BTreeSet<(String, String)>) {
    let table = coverage::table();
    for call in &one.calls {
        let row = table.iter().find(|row| row.name == *call);
        let row = row.unwrap_or_else(|| panic!("{}:{}: there is no call {call}", one.program, one.name));
        // What a host's kernel executes alone is seen by nobody.
        if let Some(way) = row.way() {
            let found = served
                .iter()
                .filter(|(name, _)| name == call)
                .map(|(_, how)| how.as_str());
            let found: Vec<&str> = found.collect();
            assert!(
                found.contains(&way),
                "{}:{} does not show {call} ({way}): {found:?} of {served:?}",
                one.program,
                one.name
            );
        }
    }
}

macro_rules! behaviours {
    ($($program:ident: $($name:ident)*;)*) => {
        $(mod $program { $(#[test] fn $name() { super::show(stringify!($program), stringify!($name)) })* })*
        const ALL: &[(&str, &str)] = &[$($((stringify!($program), stringify!($name)),)*)*];
    };
}

behaviours! {
    signal_queue: ignoring_drops_what_is_pending ordinary_signals_merge pending_before_the_move realtime_order
        sigwaitinfo_takes_one;
    signal_send: kill_child kill_group kill_nothing kill_self pidfd_send_signal_self pthread_kill_is_for_one_thread
        raise_is_for_the_caller sigqueue_forged sigqueue_self sigqueue_thread tgkill_thread tkill_thread;
}

#[test]
fn every_declared_behaviour_is_run() {
    let declared = coverage::behaviours();
    let declared: BTreeSet<(&str, &str)> = declared
        .iter()
        .map(|one| (one.program.as_str(), one.name.as_str()))
        .collect();
    let run: BTreeSet<(&str, &str)> = ALL.iter().copied().collect();
    assert_eq!(declared, run);
}

/// `cargo xtask gen-docs` writes it.
#[test]
fn page_of_calls_is_current() {
    let output = Command::new(binary::mosix())
        .args(["ctl", "syscalls", "--markdown"])
        .output();
    let wanted = coverage::page(&String::from_utf8(output.unwrap().stdout).unwrap());
    let found = std::fs::read_to_string(binary::workspace().join("docs/syscalls.md")).unwrap();
    assert!(
        found == wanted,
        "docs/syscalls.md is not what table and tests say: cargo xtask gen-docs"
    );
}

/// Every call that mosix serves on a host itself is made there by a guest.
#[test]
fn every_served_call_has_a_behaviour() {
    let shown: BTreeSet<String> = coverage::behaviours().into_iter().flat_map(|one| one.calls).collect();
    let missing: Vec<&str> = coverage::table()
        .iter()
        .filter(|row| matches!(row.way(), Some("home" | "here")) && !shown.contains(&row.name))
        .map(|row| row.name.as_str())
        .collect();
    assert!(missing.len() <= LEFT, "no behaviour in tests/guests shows {missing:?}");
}
