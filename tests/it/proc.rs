//! What others see of a moved process in /proc at home.

use mosix_tests::{Guest, How, Lab, require};
use std::time::Duration;

/// `ps`, `top` and `kill` find it under its pid, with its name and its words, though its memory is elsewhere.
#[test]
fn a_moved_process_has_its_name_and_words_at_home() {
    require!(require::program("cc"));
    let lab = Lab::shared();
    let how = How::Moving {
        lab,
        period: Duration::ZERO,
    };
    let mut guest = Guest::start("proc_self", &["--some", "words of it"], how);
    let pid = guest.pid();
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
    let before = (read("cmdline"), read("environ"), read("comm"));
    assert!(before.0.ends_with(b"--some\0words of it\0"), "{before:?}");
    for node in ["n2", "n3", "home", "n2"] {
        guest.migrate(node);
        assert_eq!((read("cmdline"), read("environ"), read("comm")), before, "on {node}");
        let ps = std::process::Command::new("ps")
            .args(["-o", "args=", "-p", &pid.to_string()])
            .output();
        if let Ok(ps) = ps {
            let shown = String::from_utf8_lossy(&ps.stdout).into_owned();
            assert!(
                shown.trim_end().ends_with("--some words of it"),
                "on {node}: ps shows {shown:?}"
            );
        }
    }
    guest.pass();
}

/// What a moved process wrote to a file that it maps shared is there when the process has ended.
#[test]
fn a_shared_mapping_reaches_its_file_at_the_end() {
    require!(require::program("cc"));
    for moves in [0, 1, 2, 3] {
        let period = Duration::from_millis(50);
        let how = How::Moving {
            lab: Lab::shared(),
            period,
        };
        let mut guest = Guest::start("mmap_shared_rw", &["exit"], how);
        guest.go_round(moves);
        guest.pass();
    }
}
