//! `cargo xtask demo`: mosix for somebody who has never heard of it, on one machine, in a minute or two.
//!
//! Two real programs run twice: plainly, and while they are carried round three nodes. The verb succeeds only when every
//! move was made and both runs gave the same bytes.

use crate::stage::{Move, Stage, build, install};
use crate::table;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Size of the input, a tar archive of files of this machine.
    #[arg(long, value_name = "MIB", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1000))]
    mib: u64,
}

/// What computes in python: reads parts of a file at home, computes, and writes and reads a file at home.
const PYTHON: &str = include_str!("demo.py");

/// Where the programs go, one after the other, and when: as parts of the time that the plain run took.
const TOUR: [(&str, f64); 3] = [("n2", 0.15), ("n3", 0.4), ("home", 0.65)];

/// A program of the demo.
struct Act {
    name: &'static str,
    shown: String,
    argv: Vec<String>,
}

/// A finished run: what it wrote, as SHA-256 sums, and how long it took.
struct Ran {
    sums: Vec<(String, String)>,
    time: Duration,
}

fn say(text: &str) {
    println!("  {text}");
}

fn heading(text: &str) {
    if std::io::stdout().is_terminal() {
        println!("\n\x1b[1m{text}\x1b[0m");
    } else {
        println!("\n{text}");
    }
}

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    println!("mosix lets a running program move to another computer: it computes there, but keeps its files, its");
    println!("terminal and its pid here, on its home node. This shows it with three nodes on this one machine.");
    heading("1. Building");
    install(&[
        ("ip", "iproute2"),
        ("xz", "xz-utils"),
        ("python3", "python3"),
        ("tar", "tar"),
    ])?;
    let mosix = build(false)?;
    let stage = Stage::new("demo", &mosix)?;
    say(&format!("{} is built", mosix.display()));

    heading("2. Three nodes: n1, n2 and n3");
    say("Each is a network of its own with its own mosix daemon, joined by virtual cables (`mosix lab up`).");
    stage.up(3, &[])?;
    for line in stage
        .output("n1", ["mosix", "lab", "status"])
        .unwrap_or_default()
        .lines()
    {
        say(line);
    }

    let input = archive(stage.work(), args.mib << 20)?;
    fs::write(stage.work().join("compute.py"), PYTHON).context("compute.py")?;
    // A version manager's `python3` may be a shell script that starts the real one.
    let python = ["/usr/bin/python3"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or("python3");
    let acts = [
        Act {
            name: "xz",
            shown: format!(
                "xz, compressing {} of real files",
                table::size(fs::metadata(&input)?.len())
            ),
            argv: words(&["xz", "-6", "-T1", "--stdout", "input.tar"]),
        },
        Act {
            name: "python3",
            shown: "python3, reading and writing files and computing with big numbers".into(),
            argv: words(&[python, "compute.py", "input.tar", "notes.txt"]),
        },
    ];
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for (number, act) in acts.iter().enumerate() {
        heading(&format!("{}. {}", number + 3, act.shown));
        if let Err(error) = play(&stage, act, &mut rows) {
            say(&format!("FAILED: {error:#}"));
            failures.push(act.name);
        }
    }

    heading("What the moves cost");
    print!(
        "{}",
        table::layout(
            &["PROGRAM", "FROM", "TO", "TRAVELLED", "STOOD STILL", "WHOLE MOVE"],
            &rows,
            3
        )
    );
    drop(stage);
    if failures.is_empty() {
        println!("\nBoth programs gave, byte for byte, what they give without mosix. Everything is cleaned up.");
        Ok(())
    } else {
        bail!("the demo failed: {}", failures.join(", "))
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// Runs a program plainly and moved, and compares.
fn play(stage: &Stage, act: &Act, rows: &mut Vec<Vec<String>>) -> Result<()> {
    say(&format!(
        "$ {}        (without mosix, for comparison)",
        act.argv.join(" ")
    ));
    let plain = ran(stage, act, &act.argv, |_| Ok(()))?;
    say(&format!("took {:.1} s", plain.time.as_secs_f64()));
    println!();
    let mut argv = words(&["mosix", "run", "--job", act.name, "--"]);
    argv.extend(act.argv.iter().cloned());
    say(&format!("$ {}        (on n1)", argv.join(" ")));
    let moved = ran(stage, act, &argv, |started| tour(stage, act, plain.time, started, rows))?;
    println!();
    say(&format!(
        "took {:.1} s, of which {:.1} s without moves",
        moved.time.as_secs_f64(),
        plain.time.as_secs_f64()
    ));
    let mut same = true;
    for ((name, one), (_, other)) in plain.sums.iter().zip(&moved.sums) {
        let verdict = if one == other { "equal" } else { "DIFFERENT" };
        say(&format!(
            "{name:<10} plain {}…  moved {}…  {verdict}",
            &one[..16],
            &other[..16]
        ));
        same &= one == other;
    }
    ensure!(same, "{} wrote something else when it was moved", act.name);
    Ok(())
}

/// Carries the job of `act` round.
fn tour(stage: &Stage, act: &Act, plain: Duration, started: Instant, rows: &mut Vec<Vec<String>>) -> Result<()> {
    let pid = stage.started(act.name, act.name)?;
    say(&format!("It runs on n1 as process {pid}:"));
    show(stage)?;
    for (to, part) in TOUR {
        std::thread::sleep(plain.mul_f64(part).saturating_sub(started.elapsed()));
        ensure!(
            stage.pid_of(act.name, act.name)?.is_some(),
            "{} ended before its move to {to}; try a larger --mib",
            act.name
        );
        println!();
        say(&format!("$ mosix migrate {pid} {to}"));
        let done = stage.migrate(pid, to)?;
        say(&explain(pid, &done));
        rows.push(row(act, &done));
        show(stage)?;
    }
    Ok(())
}

fn explain(pid: i64, done: &Move) -> String {
    let still = Duration::from_micros(done.freeze_us).as_secs_f64() * 1e3;
    let what = match done.to.as_str() {
        "home" => "It is back home and computes on n1 again, at full speed.".to_owned(),
        to => format!("It now computes on {to}. Its pid is still {pid}, its files are still on n1."),
    };
    format!("{what} It stood still for {still:.1} ms.")
}

fn row(act: &Act, done: &Move) -> Vec<String> {
    let ms = |us: u64| format!("{:.1} ms", Duration::from_micros(us).as_secs_f64() * 1e3);
    let place = |name: &str| {
        if name == "home" {
            "n1 (home)".to_owned()
        } else {
            name.to_owned()
        }
    };
    vec![
        act.name.to_owned(),
        place(&done.from),
        place(&done.to),
        table::size(done.bytes),
        ms(done.freeze_us),
        ms(done.total_us),
    ]
}

/// Prints `mosix ps`.
fn show(stage: &Stage) -> Result<()> {
    for line in stage.output("n1", ["mosix", "ps"])?.lines() {
        say(&format!("    {}", line.trim()));
    }
    Ok(())
}

/// A child that does not outlive an error.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, unless something failed meanwhile.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `argv` on n1 and sums up what it writes; `meanwhile` gets the time of its start.
fn ran(stage: &Stage, act: &Act, argv: &[String], meanwhile: impl FnOnce(Instant) -> Result<()>) -> Result<Ran> {
    let written = ["stdout", "notes.txt"].map(|name| stage.work().join(name));
    for file in &written {
        let _ = fs::remove_file(file);
    }
    let stdout = File::create(&written[0]).context("stdout")?;
    let started = Instant::now();
    let child = stage.on("n1", argv).stdin(Stdio::null()).stdout(stdout).spawn();
    let mut child = Running(child.with_context(|| format!("cannot start {}", argv[0]))?);
    meanwhile(started)?;
    let status = child.0.wait().context("wait")?;
    let time = started.elapsed();
    ensure!(status.success(), "{} ended with {status}", act.name);
    let sums = written
        .iter()
        .filter(|file| file.exists())
        .map(|file| sum(file))
        .collect::<Result<_>>()?;
    Ok(Ran { sums, time })
}

/// Name and SHA-256 sum of a file.
fn sum(file: &Path) -> Result<(String, String)> {
    let output = Command::new("sha256sum").arg(file).output().context("sha256sum")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let sum = said.split_whitespace().next().filter(|sum| sum.len() == 64);
    let name = file
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    Ok((
        name,
        sum.with_context(|| format!("sha256sum {}", file.display()))?.to_owned(),
    ))
}

/// A tar archive of about this many bytes of this machine's data and libraries.
fn archive(work: &Path, bytes: u64) -> Result<PathBuf> {
    let mut files = Vec::new();
    let mut left = bytes;
    for root in ["/usr/share", "/usr/include", "/usr/lib"] {
        gather(Path::new(root), &mut left, &mut files);
    }
    ensure!(!files.is_empty(), "found no files for the input under /usr");
    let (list, archive) = (work.join("list"), work.join("input.tar"));
    fs::write(&list, files.join("\n")).context("list of files")?;
    let mut tar = Command::new("tar");
    tar.arg("-cPf").arg(&archive).arg("-T").arg(&list);
    crate::workspace::run(&mut tar)?;
    Ok(archive)
}

fn gather(folder: &Path, left: &mut u64, files: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if *left == 0 {
            return;
        }
        let Ok(about) = path.symlink_metadata() else { continue };
        if about.is_dir() {
            gather(&path, left, files);
        } else if about.is_file()
            && File::open(&path).is_ok()
            && let Some(name) = path.to_str().filter(|name| !name.contains(['\n', '\\']))
        {
            *left = left.saturating_sub(about.len() + 512);
            files.push(name.to_owned());
        }
    }
}
