//! Every call that the table forwards, made by a guest whose memory is elsewhere and executed by a real process.
//!
//! The guest's memory is a buffer of this test; the deputy is a blank process that executes scripts. Arguments and results
//! make the whole way: gathered, judged by the gate, placed, executed by the kernel, collected, scattered.

mod deputy;
mod files;
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
    let missing: Vec<_> =
        table::rows().filter(|row| row.forwards() && !executed.contains(row.name)).map(|row| row.name).collect();
    assert!(missing.is_empty(), "forwarded but never executed: {missing:?}");
    assert!(executed.len() > 200, "{}", executed.len());
}
