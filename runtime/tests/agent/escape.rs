//! A guest that tries to leave its host: under the real filter, in the real namespaces, every attempt ends at home or nowhere.

use super::*;
use std::path::Path;

/// The parent that tells the guest that it is away; no native pid is so large. Until it sees it, it tries nothing.
const AWAY: i64 = 0x7fff_0001;
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/agent/escape.c");

/// Attempts with their raw results: answered by home, refused by the filter, or refused by the agent.
const RESULTS: &[(&str, i64)] = &[
    ("open", ANSWER),
    ("openat", ANSWER),
    ("socket", ANSWER),
    ("kill", ANSWER),
    ("tgkill", ANSWER),
    ("memfd", ANSWER),
    ("x32-getpid", -38),
    ("x32-open", -38),
    ("int80-getpid", -38),
    ("int80-exit-free-number", -38),
    ("munmap-window", -1),
    ("munmap-across", -1),
    ("mprotect-window", -1),
    ("mprotect-shared", -1),
    ("mremap-window", -1),
    ("mremap-onto", -1),
    ("mmap-onto", -1),
    ("madvise-window", -1),
    ("huge-munmap", -1),
    ("still-there", 1),
];

pub fn run(socket: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("escape");
    let built = Command::new("cc")
        .args(["-O1", "-w", "-o"])
        .arg(&program)
        .arg(SOURCE)
        .status()
        .expect("cc");
    assert!(built.success(), "the guest does not compile");
    let (home, from) = Home::new(socket);
    *home.parent.lock().unwrap() = AWAY;
    let ways = ["none", "stub", "unshare", "clone3", "ptrace", "grow", "crash"];
    for (index, way) in ways.into_iter().enumerate() {
        home.written.lock().unwrap().clear();
        home.others.lock().unwrap().clear();
        let mut command = Command::new(&program);
        command.arg(way);
        let taken = take(command, Epoch(1 + index as u64));
        let (pid, epoch) = (taken.image.pid, taken.image.epoch);
        taken.arrive(socket, &home, &from);
        let last = expect(&from, |m| matches!(m, ToHome::Exited { .. } | ToHome::WantHome { .. }));
        let text = String::from_utf8_lossy(&home.written.lock().unwrap()).into_owned();
        for (what, result) in RESULTS {
            assert!(
                text.contains(&format!("{what} {result}\n")),
                "{way}: {what} is not {result} in {text}"
            );
        }
        match (way, &last) {
            ("none", ToHome::Exited { how: Exit::Code(0), .. }) => assert!(text.ends_with("end 0\n")),
            // Whatever follows the stub's instruction, the call itself went home like any other.
            ("stub", _) => {
                let opens = home
                    .others
                    .lock()
                    .unwrap()
                    .iter()
                    .filter(|nr| **nr == libc::SYS_open as u32)
                    .count();
                assert_eq!(opens, 2, "{last:?}");
            }
            ("unshare", ToHome::WantHome { nr: 272, .. })
            | ("clone3", ToHome::WantHome { nr: 435, .. })
            | ("ptrace", ToHome::WantHome { nr: 101, .. }) => {}
            // Memory that grows needs home; what was native ended at the limit that the test's agent has.
            ("grow", ToHome::WantHome { nr: 9, .. }) => {
                assert!(text.contains("grown-below-limit 1\ngrown-at-all 1\n"), "{text}");
            }
            (
                "crash",
                ToHome::Exited {
                    how: Exit::Signal { signal: 11, core: true },
                    ..
                },
            ) => {}
            _ => panic!("{way} ended with {last:?} and {text}"),
        }
        home.tell(&ToHost::Drop { pid, epoch });
        println!("{way}: {last:?}");
        taken.end();
    }
    home.tell(&ToHost::Bye);
}
