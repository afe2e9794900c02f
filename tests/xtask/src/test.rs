//! `cargo xtask test`: everything, from a fresh clone, with what it needs installed first.
//!
//! The last line is `N passed, N failed, N skipped`. libtest knows no outcome "skipped": such tests write a line to the file
//! named by MOSIX_TEST_SKIPS (see `mosix_tests::require`), and are taken off those that it counts as passed.

use crate::count::Count;
use crate::workspace::{cargo, target};
use anyhow::{Context, Result, bail, ensure};
use mosix_tests::packages;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The promised sizes instead of small ones.
    #[arg(long)]
    full: bool,
    /// Install nothing; what is missing is skipped.
    #[arg(long)]
    no_install: bool,
    /// No guests with other kernels.
    #[arg(long)]
    no_vm: bool,
    /// End-to-end tests at a time; they measure time and move memory [default: half the cores].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Installs, builds, runs, counts. Fails when a test failed or could not be built.
pub fn run(args: Args) -> Result<ExitCode> {
    if !args.no_install {
        install()?;
    }
    let skips = target()?.join("mosix-tests-skipped");
    let _ = fs::remove_file(&skips);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args.threads.unwrap_or(cores / 2).max(1).to_string();

    let mut total = Count::default();
    let filter: Vec<&str> = args.filter.as_deref().into_iter().collect();
    // Their own program is built by the harness; built here, its errors are seen once and first.
    crate::workspace::run(cargo()?.args(["build", "--quiet", "--package", "mosix", "--bin", "mosix"]))?;
    let units = [
        "test",
        "--workspace",
        "--exclude",
        "mosix-tests",
        "--no-fail-fast",
        "--quiet",
        "--",
    ];
    let whole = [
        "test",
        "--package",
        "mosix-tests",
        "--no-fail-fast",
        "--",
        "--test-threads",
        &threads,
    ];
    for words in [&units[..], &whole[..]] {
        let mut command = undisturbed(&cargo()?);
        command.args(words).args(&filter).env("MOSIX_TEST_SKIPS", &skips);
        if args.full {
            command.env("MOSIX_TEST_FULL", "1");
        }
        total += counted(&mut command)?;
    }
    // Such a test has said why and passed.
    let skipped = read_skips(&skips)?;
    total.skipped += skipped.len() as u64;
    total.passed = total.passed.saturating_sub(skipped.len() as u64);
    if filter.is_empty() && !args.no_vm {
        match crate::vm::test()? {
            Ok(count) => total += count,
            Err(why) => {
                total.skipped += 1;
                println!("SKIPPED moves between kernels: {why}");
            }
        }
    }
    for line in &skipped {
        println!("{line}");
    }
    // The last line: an error would print another.
    println!("{total}");
    Ok(total.into())
}

/// The command with the signals of a terminal as they are in one: nohup(1), and a shell that puts a command into the background, let it
/// ignore them, and programs under test would inherit that.
fn undisturbed(command: &Command) -> Command {
    let mut env = Command::new("env");
    env.arg("--default-signal=HUP,INT,QUIT");
    env.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        env.current_dir(folder);
    }
    env
}

/// Installs the Debian packages that are missing, when this is a Debian and we may.
fn install() -> Result<()> {
    let missing: BTreeSet<&str> = packages::ALL
        .iter()
        .filter(|package| mosix_tests::require::find(package.program).is_none())
        .map(|package| package.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.iter().copied().collect::<Vec<_>>().join(" ");
    if mosix_tests::require::find("apt-get").is_none() || !nix::unistd::geteuid().is_root() {
        println!("missing: {list}; as root on Debian this would install them, now their tests are skipped");
        return Ok(());
    }
    println!("installing {list}");
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-o", "DPkg::Lock::Timeout=600"]).args(words);
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    };
    let names: Vec<&str> = missing.into_iter().collect();
    let mut words = vec!["install", "-y", "--no-install-recommends", "--no-remove"];
    words.extend(&names);
    if apt(&words).status().context("apt-get")?.success() {
        return Ok(());
    }
    // A machine that was never asked has no lists.
    crate::workspace::run(&mut apt(&["update"]))?;
    crate::workspace::run(&mut apt(&words))
}

/// Runs `cargo test`, passes its output on and adds up its results.
fn counted(command: &mut Command) -> Result<Count> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut count = Count::default();
    let mut programs = 0;
    let stdout = child.stdout.take().context("cargo's stdout")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cargo's output")?;
        println!("{line}");
        if let Some(result) = parse(&line) {
            count += result;
            programs += 1;
        }
    }
    let status = child.wait().context("cargo")?;
    ensure!(
        status.success() || count.failed > 0,
        "cargo test failed before or beside its tests: {status}"
    );
    if programs == 0 {
        bail!("cargo test ran no test program");
    }
    Ok(count)
}

/// Reads `test result: ok. 5 passed; 0 failed; 1 ignored; …`.
fn parse(line: &str) -> Option<Count> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |name: &str| -> Option<u64> {
        let before = rest.split(name).next()?;
        before.trim_end().rsplit(' ').next()?.parse().ok()
    };
    Some(Count {
        passed: number("passed;")?,
        failed: number("failed;")?,
        skipped: number("ignored;")?,
    })
}

fn read_skips(path: &Path) -> Result<Vec<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.10s";
        assert_eq!(
            parse(line),
            Some(Count {
                passed: 12,
                failed: 3,
                skipped: 1
            })
        );
        assert_eq!(parse("test lab::up ... ok"), None);
        assert_eq!(parse("test result: odd"), None);
    }
}
