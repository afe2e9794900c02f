//! Node daemons as processes on loopback, with agents as processes, driven as a supervisor would.
//!
//! This program is all three: without a verb it runs the tests, with `daemon CONFIG` it is mosixd, with `agent` an agent that
//! echoes. Run one test with `cargo test -p mosix-runtime --test node -- NAME`.

mod agent;
mod bad_input;
mod cluster;
mod streams;

use std::process::ExitCode;

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("streams::two_nodes", streams::two_nodes),
    ("streams::host_is_restarted", streams::host_is_restarted),
    ("streams::home_is_restarted", streams::home_is_restarted),
    ("streams::three_nodes", streams::three_nodes),
    ("streams::agents_come_and_go", streams::agents_come_and_go),
    ("bad_input::wrong_cluster", bad_input::wrong_cluster),
    ("bad_input::wrong_name", bad_input::wrong_name),
    ("bad_input::unknown_peer", bad_input::unknown_peer),
    ("bad_input::plain_against_tls", bad_input::plain_against_tls),
    ("bad_input::garbage_on_the_port", bad_input::garbage_on_the_port),
    ("bad_input::garbage_on_the_socket", bad_input::garbage_on_the_socket),
    (
        "bad_input::two_daemons_on_one_folder",
        bad_input::two_daemons_on_one_folder,
    ),
    ("bad_input::failing_agents", bad_input::failing_agents),
    ("bad_input::other_users", bad_input::other_users),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["agent", ..] => return agent::main(),
        ["supervisor", state] => cluster::supervisor(state.as_ref()),
        ["stranger", state] => {
            bad_input::stranger(state.as_ref());
            return ExitCode::SUCCESS;
        }
        ["daemon", config] => return cluster::daemon(config.as_ref()),
        _ => {}
    }
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    // The few options of libtest that runners use.
    if has("--ignored") {
        return ExitCode::SUCCESS;
    }
    if has("--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|part| {
                if has("--exact") {
                    name == *part
                } else {
                    name.contains(part)
                }
            })
    };
    let chosen: Vec<_> = TESTS.iter().filter(|(name, _)| wanted(name)).collect();
    let begun = std::time::Instant::now();
    let mut failed = Vec::new();
    for (name, test) in &chosen {
        let begun = std::time::Instant::now();
        let outcome = std::panic::catch_unwind(test);
        println!(
            "test {name} ... {} ({:.2?})",
            if outcome.is_ok() { "ok" } else { "FAILED" },
            begun.elapsed()
        );
        if outcome.is_err() {
            failed.push(*name);
        }
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s",
        if failed.is_empty() { "ok" } else { "FAILED" },
        chosen.len() - failed.len(),
        failed.len(),
        TESTS.len() - chosen.len(),
        begun.elapsed().as_secs_f64()
    );
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

/// Says that a test did not run here, where the test runner looks for it too (as `mosix_tests::require` does).
fn skipped(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("MOSIX_TEST_SKIPS") {
        let file = std::fs::File::options().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| std::io::Write::write_all(&mut file, line.as_bytes()));
    }
}
