//! Every call that the table forwards, made by a guest whose memory is elsewhere and executed by a real process.
//!
//! The guest's memory is a buffer of this test; the deputy is a blank process that executes scripts. Arguments and results
//! make the whole way: gathered, judged by the gate, placed, executed by the kernel, collected, scattered.

mod deputy;
mod differential;
mod files;
mod liar;
mod process;
mod sockets;

use deputy::Guest;
use mosix_runtime::syscall::table;
use std::collections::BTreeSet;

#[test]
fn every_forwarded_call_is_executed_by_the_kernel() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut executed = BTreeSet::new();
    let mut family = |run: &dyn Fn(&Guest, &str)| {
        let guest = Guest::start();
        let sub = dir.path().join(guest.pid.to_string());
        std::fs::create_dir(&sub).expect("folder");
        run(&guest, sub.to_str().expect("utf-8"));
        executed.extend(guest.executed());
    };
    family(&files::by_path);
    family(&files::by_descriptor);
    family(&sockets::sockets);
    family(&sockets::waiting);
    family(&|g, _| process::process(g));
    family(&|g, _| process::time(g));
    family(&|g, _| process::ipc(g));
    family(&|g, _| process::sandbox(g));
    let missing: Vec<_> = table::rows()
        .filter(|row| row.forwards() && !executed.contains(row.name))
        .map(|row| row.name)
        .collect();
    assert!(missing.is_empty(), "forwarded but never executed: {missing:?}");
    assert!(executed.len() > 200, "{}", executed.len());
}

#[test]
fn forwarded_calls_do_what_native_calls_do() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().to_str().expect("utf-8");
    std::os::unix::fs::symlink("target", dir.path().join("link")).expect("link");
    let mut failures = std::collections::BTreeMap::new();
    let mut compared = 0;
    // More sequences when looking for trouble: `MOSIX_SEEDS=1000`.
    let seeds = std::env::var("MOSIX_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(120);
    for seed in 1..=seeds {
        // Both sides write to the same file, the same bytes.
        std::fs::write(dir.path().join("file"), [7; 3000]).expect("file");
        let mut pair = differential::Pair::new(path, seed);
        for _ in 0..60 {
            match pair.step() {
                Ok(made) => compared += u32::from(made),
                Err(difference) => {
                    let name = difference.split(' ').next().unwrap_or_default().to_owned();
                    failures.entry(name).or_insert_with(Vec::new).push(difference);
                    break;
                }
            }
            if pair.diverged {
                break;
            }
        }
    }
    for (name, list) in &failures {
        eprintln!("{name}: {} times, first: {}", list.len(), list[0]);
    }
    assert!(failures.is_empty(), "{compared} calls agreed");
    assert!(compared > 40 * seeds as u32, "{compared} of {seeds} sequences");
}
