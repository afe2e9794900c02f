//! `vm test`: the tests of the crates that talk to the kernel, run on other kernels.
//!
//! The test programs are built statically on this machine, sent through the exec server and run there, each kernel's
//! one after the other and the kernels side by side. The manifest says which.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::manifest::{Manifest, Tests};
use super::state::Store;
use super::up::{self, Up};
use super::{exec, exec_checks, moves};
use crate::count::Count;
use crate::workspace;

/// MiB of a test guest: test programs are some MiB each and lie in its memory.
const MEMORY: u32 = 512;

/// Seconds for one test program: emulation is slow, other work may run beside.
const PATIENCE: u32 = 120;

/// Options of `cargo xtask vm test`.
#[derive(Debug, Default, clap::Args)]
pub struct Test {
    /// Kernels to test on [default: all of vm-images/manifest.toml].
    #[arg(long, value_name = "VERSION", value_delimiter = ',')]
    kernel: Vec<String>,
    /// Only this part: `units` runs tests inside guests, `moves` moves programs between them.
    #[arg(long, value_name = "PART")]
    only: Option<Part>,
    /// Leave the guests up.
    #[arg(long)]
    keep: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// A part of `vm test`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Tests inside guests.
    Units,
    /// Programs moved between kernels.
    Moves,
}

/// A built test program.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    name: String,
    path: PathBuf,
}

/// Ends the test guests whatever happens.
struct Guests<'a> {
    store: &'a Store,
    names: Vec<String>,
    keep: bool,
}

impl Drop for Guests<'_> {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = super::down(&self.names, self.store)
        {
            eprintln!("vm: {error:#}");
        }
    }
}

/// [`measure`], and the count as last line.
pub fn run(args: &Test, store: &Store, cache: &Path) -> Result<ExitCode> {
    let total = measure(args, store, cache)?;
    println!("{total}");
    Ok(total.into())
}

/// Builds, boots, runs, counts.
pub fn measure(args: &Test, store: &Store, cache: &Path) -> Result<Count> {
    let mut total = Count::default();
    if args.only != Some(Part::Moves) {
        total = inside(args, store, cache)?;
    }
    if args.only != Some(Part::Units) && args.filter.is_none() {
        match moves::run(store, cache) {
            Ok(()) => total.passed += 1,
            Err(error) => {
                println!("moves between kernels: FAILED: {error:#}");
                total.failed += 1;
            }
        }
    }
    Ok(total)
}

/// Runs the tests inside the guests.
fn inside(args: &Test, store: &Store, cache: &Path) -> Result<Count> {
    let manifest = Manifest::load()?;
    let kernels = if args.kernel.is_empty() {
        manifest.kernel_names()
    } else {
        args.kernel.clone()
    };
    let programs = build(&manifest.tests, cache)?;
    let names: Vec<String> = kernels
        .iter()
        .map(|kernel| format!("test-{}", kernel.replace('.', "-")))
        .collect();
    let _guests = Guests {
        store,
        names: names.clone(),
        keep: args.keep,
    };
    up::run(&Up::of(names.clone(), kernels, MEMORY), store, cache)?;
    let mut total = Count::default();
    if args.filter.is_none()
        && let Some(name) = names.first()
    {
        match exec_checks::run(name, &store.folder(name)) {
            Ok(passed) => total.passed += passed,
            Err(error) => {
                println!("{error:#}");
                total.failed += 1;
            }
        }
    }
    let results: Vec<Result<Count>> = thread::scope(|scope| {
        let threads: Vec<_> = names
            .iter()
            .map(|name| {
                let (programs, tests) = (&programs, &manifest.tests);
                scope.spawn(move || on_guest(name, programs, tests, args.filter.as_deref(), store))
            })
            .collect();
        let end = |thread: thread::ScopedJoinHandle<'_, Result<Count>>| {
            thread
                .join()
                .unwrap_or_else(|_| bail!("a thread of the test run ended early"))
        };
        threads.into_iter().map(end).collect()
    });
    for count in results {
        total += count?;
    }
    Ok(total)
}

/// Builds the packages' test programs statically.
fn build(tests: &Tests, cache: &Path) -> Result<Vec<Program>> {
    let mut cargo = workspace::cargo()?;
    cargo.args([
        "test",
        "--no-run",
        "--quiet",
        "--message-format",
        "json",
        "--profile",
        "guest",
    ]);
    cargo
        .args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"])
        .arg(cache.join("build"));
    for package in &tests.packages {
        cargo.args(["--package", package]);
    }
    cargo
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cannot start cargo")?;
    let mut programs = Vec::new();
    for line in BufReader::new(child.stdout.take().context("cargo's stdout")?).lines() {
        programs.extend(program(&line.context("cargo's output")?));
    }
    let status = child.wait().context("cargo")?;
    if !status.success() {
        bail!("building the tests for the guests failed: {status}");
    }
    if programs.is_empty() {
        bail!("{} have no test programs", tests.packages.join(", "));
    }
    Ok(programs)
}

/// The test program that a line of cargo's JSON speaks of.
fn program(line: &str) -> Option<Program> {
    #[derive(Deserialize)]
    struct Message {
        executable: PathBuf,
        target: Target,
        profile: Profile,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    // Other messages lack these fields.
    let message: Message = serde_json::from_str(line).ok()?;
    message.profile.test.then_some(Program {
        name: message.target.name,
        path: message.executable,
    })
}

/// Runs every program in guest `name`.
fn on_guest(name: &str, programs: &[Program], tests: &Tests, filter: Option<&str>, store: &Store) -> Result<Count> {
    let folder = store.folder(name);
    let mut total = Count::default();
    for program in programs {
        let Some(parts) = tests.run.get(&program.name) else {
            continue;
        };
        let file = File::open(&program.path).with_context(|| program.path.display().to_string())?;
        let (code, said) = exec::shell(&folder, "cat >/tmp/test && chmod 755 /tmp/test", Some(file))?;
        if code != 0 {
            bail!("{name}: cannot copy {}: {said}", program.name);
        }
        let mut script = format!("cd /tmp; exec timeout {PATIENCE} /tmp/test --test-threads=2 2>&1");
        for part in tests.skip.keys() {
            script.push_str(&format!(" --skip {part}"));
        }
        match filter {
            Some(filter) => script.push_str(&format!(" '{}'", filter.replace('\'', ""))),
            None => script.extend(
                parts
                    .iter()
                    .filter(|part| !part.is_empty())
                    .map(|part| format!(" '{part}'")),
            ),
        }
        let (code, said) = exec::shell(&folder, &script, None)?;
        let mut count = count(&said);
        // Programs with a harness of their own, and those that crashed, say no total.
        if code != 0 && count.failed == 0 {
            count.failed = 1;
        }
        println!(
            "{name}: {}: {} passed, {} failed, {} skipped",
            program.name, count.passed, count.failed, count.skipped
        );
        if count.failed > 0 {
            println!(
                "{name}: {} ended with {code} and said:\n{}",
                program.name,
                failures(&said)
            );
        }
        total += count;
    }
    for (part, reason) in &tests.skip {
        println!("{name}: skipped: {part}: {reason}");
        total.skipped += 1;
    }
    Ok(total)
}

/// Adds up the lines `test NAME ... ok`, which harnesses of our own say as well.
fn count(said: &str) -> Count {
    let mut count = Count::default();
    for line in said.lines().filter(|line| line.starts_with("test ")) {
        match line.rsplit_once(" ... ").map(|(_, outcome)| outcome) {
            Some("ok") => count.passed += 1,
            Some("FAILED") => count.failed += 1,
            Some(outcome) if outcome.starts_with("ignored") => count.skipped += 1,
            _ => {}
        }
    }
    count
}

/// What a reader needs of a failed program: no line of a test that passed.
fn failures(said: &str) -> String {
    let lines: Vec<&str> = said.lines().filter(|line| !line.ends_with("... ok")).collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_counted() {
        let said = "running 3 tests\ntest a::b ... ok\ntest c ... FAILED\ntest d ... ignored, why\n\
                    test e has been running for over 60 seconds\ntest result: FAILED. 1 passed; 1 failed;";
        assert_eq!(
            count(said),
            Count {
                passed: 1,
                failed: 1,
                skipped: 1
            }
        );
        assert!(!failures(said).contains("a::b"));
    }

    #[test]
    fn test_programs_are_told_from_other_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"x"},"profile":{"test":true},"executable":"/p"}"#;
        assert_eq!(
            program(line),
            Some(Program {
                name: "x".into(),
                path: "/p".into()
            })
        );
        assert_eq!(program(&line.replace("\"test\":true", "\"test\":false")), None);
        assert_eq!(program(&line.replace("\"/p\"", "null")), None);
        assert_eq!(program("{\"reason\":\"build-finished\"}"), None);
    }
}
