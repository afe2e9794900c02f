//! Skips that are seen.
//!
//! libtest has no outcome "skipped": such a test would count as passed in silence. Here the reason goes past its capture
//! to the terminal, and to a file that `cargo xtask test` counts.

use std::io::Write as _;
use std::process::Command;

/// Leaves the test unless the `Result<(), String>` is `Ok`; says why.
#[macro_export]
macro_rules! require {
    ($condition:expr) => {
        if let Err(why) = $condition {
            $crate::require::skipped(&why);
            return;
        }
    };
}

/// Writes down that the current test is skipped.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {why}\n", thread.name().unwrap_or("a test"));
    // Not eprint!, which libtest captures and shows only for failures.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("MOSIX_TEST_SKIPS") {
        let file = std::fs::File::options().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Runs a test that shows a gap which is known and written down (docs/testing.md). When it passes it counts as passed; when it fails it is
/// reported as skipped, with `why`, instead of hiding it or stopping everything else. Take the mark away with the gap.
pub fn known_gap(why: &str, test: impl FnOnce() + std::panic::UnwindSafe) {
    if std::panic::catch_unwind(test).is_err() {
        skipped(&format!("known gap: {why}"));
    }
}

/// A program of a Debian package is there.
pub fn program(name: &str) -> Result<(), String> {
    if find(name).is_some() {
        return Ok(());
    }
    let package = crate::packages::ALL
        .iter()
        .find(|p| p.program == name)
        .map_or("?", |p| p.package);
    Err(format!(
        "the program {name} is missing: `apt-get install {package}`, or `cargo xtask test`, which does it"
    ))
}

/// A module of Debian's Python is there.
pub fn python_module(name: &str) -> Result<(), String> {
    let status = Command::new("/usr/bin/python3")
        .args(["-c", &format!("import {name}")])
        .output();
    if status.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    Err(format!("python3 lacks {name}: `apt-get install python3-{name}`"))
}

/// The tests run as root.
pub fn root() -> Result<(), String> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err("only for root".into())
    }
}

/// Where a program is, looked for as a shell does.
pub fn find(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}
