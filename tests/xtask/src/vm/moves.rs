//! `vm test moves`: a program that computes is moved between this kernel, 6.12 and 6.1, in every direction.
//!
//! One lab with a namespace node `n1` and guests as nodes. A Python program is started on each of them in turn, and is
//! moved while it computes, home → A → B → home → B → A → home, which takes each of the six ways once. Its output must be
//! that of a plain run, with the wall clock of its home although one guest's runs ahead. Then admission: a guest whose clock
//! is wild refuses, and a program born with all of this CPU's features is refused by a `qemu64` guest, which names one; it runs on.
//!
//! Integers only, and no time is asserted but the whole: see `vm-images/qemu/README.md`.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::initramfs;
use super::net::Place;
use super::state::Store;
use super::up::{self, Up};

/// The computation: for each number on stdin one line, after some tenths of a second of integer work.
const PROGRAM: &str = "
import os, sys, time
wall = lambda: time.time() - time.monotonic()
first = wall()
print('READY', os.getpid(), flush=True)
kept = []
for line in sys.stdin:
    x = int(line)
    for i in range(60000):
        x = (x * 6364136223846793005 + 1442695040888963407) % (1 << 521) ^ (x >> 97)
    kept.append(x)
    print(len(kept), '%x' % (sum(kept) % (1 << 521)), abs(wall() - first) < 0.5 or wall() - first, flush=True)
print('END', os.getppid() != 1, flush=True)
";

/// Longest wait for any one line or move.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node: its name, and the words that run a command on it.
struct Node {
    name: String,
    place: Place,
}

/// Lab and guests; both end with the value.
struct Cluster<'a> {
    store: &'a Store,
    mosix: PathBuf,
    /// MOSIX_RUNTIME_DIR of the lab.
    runtime: tempfile::TempDir,
    guests: Vec<String>,
}

/// Name of the lab.
const LAB: &str = "vmtest";

impl<'a> Cluster<'a> {
    fn new(guests: &[(&str, &str, &str)], store: &'a Store, cache: &Path) -> Result<Self> {
        let mosix = initramfs::build(cache)?.mosix;
        // Short: there are sockets below, whose names hold 107 bytes.
        let runtime = tempfile::Builder::new()
            .prefix("mxv")
            .tempdir_in("/tmp")
            .context("temporary folder")?;
        let names = guests.iter().map(|(name, ..)| (*name).to_owned()).collect();
        let cluster = Self {
            store,
            mosix,
            runtime,
            guests: names,
        };
        let mut up = vec![
            "up".to_owned(),
            "--nodes".into(),
            "1".into(),
            "--owner".into(),
            std::process::id().to_string(),
        ];
        for (number, name) in cluster.guests.iter().enumerate() {
            up.extend(["--extra-node".into(), format!("{name}=10.77.0.{}", 201 + number)]);
        }
        said(
            cluster.lab(&up.iter().map(String::as_str).collect::<Vec<_>>()),
            "mosix lab up",
        )?;
        let list = |pick: fn(&(&str, &str, &str)) -> String| guests.iter().map(pick).collect::<Vec<_>>();
        let options = Up::in_lab(
            list(|(name, ..)| (*name).to_owned()),
            list(|(_, kernel, _)| (*kernel).to_owned()),
            list(|(.., cpu)| (*cpu).to_owned()),
            LAB,
            cluster.runtime.path(),
        );
        up::run(&options, store, cache)?;
        cluster.linked()?;
        Ok(cluster)
    }

    /// `mosix lab VERB --name vmtest …`.
    fn lab(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.mosix);
        let (verb, rest) = words.split_first().unwrap_or((&"status", &[]));
        command.args(["lab", verb, "--name", LAB]).args(rest);
        command
            .env("MOSIX_RUNTIME_DIR", self.runtime.path())
            .env_remove("MOSIX_LAB")
            .stdin(Stdio::null());
        command
    }

    /// The node `name`.
    fn node(&self, name: &str) -> Result<Node> {
        let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is not UTF-8");
        let words = if self.guests.iter().any(|guest| guest == name) {
            vec![
                text(&std::env::current_exe()?)?,
                "vm".into(),
                "exec".into(),
                name.into(),
                "--".into(),
            ]
        } else {
            let runtime = format!("MOSIX_RUNTIME_DIR={}", text(self.runtime.path())?);
            let mosix = text(&self.mosix)?;
            let words = ["env", &runtime, &mosix, "lab", "exec", "--name", LAB, name, "--"];
            words.map(str::to_owned).to_vec()
        };
        Ok(Node {
            name: name.to_owned(),
            place: Place(words),
        })
    }

    /// Sets a guest's wall clock ahead of this machine's by so many seconds, less the moment that the command takes. date(1) there knows only
    /// whole seconds, so it is given one as that begins.
    fn set_clock(&self, guest: &str, seconds: u64) -> Result<()> {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH);
        let next = now()?.as_secs() + 1;
        std::thread::sleep(Duration::from_secs(next).saturating_sub(now()?));
        let script = format!("date -s @{}", next + seconds);
        said(self.node(guest)?.command(&["sh", "-c", &script]), "date").map(drop)
    }

    /// Waits until every node has a link to every other one.
    fn linked(&self) -> Result<()> {
        let nodes = self.guests.len() + 1;
        let deadline = Instant::now() + PATIENCE;
        for name in self.guests.iter().map(String::as_str).chain(["n1"]) {
            loop {
                let text = said(
                    self.node(name)?.command(&["mosix", "node", "status"]),
                    "mosix node status",
                )?;
                let links = text
                    .lines()
                    .filter(|line| line.contains(" up ") || line.contains(" here "))
                    .count();
                if links >= nodes {
                    break;
                }
                ensure!(Instant::now() < deadline, "{name} has not all links:\n{text}");
                thread::sleep(Duration::from_millis(300));
            }
        }
        Ok(())
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if let Err(error) = super::down(&self.guests, self.store) {
            eprintln!("vm: {error:#}");
        }
        if let Err(error) = said(self.lab(&["down"]), "mosix lab down") {
            eprintln!("vm: {error:#}");
        }
    }
}

impl Node {
    fn command(&self, words: &[&str]) -> Command {
        let (program, rest) = words.split_first().unwrap_or((&"true", &[]));
        let mut command = self.place.command(program);
        command.args(rest).stdin(Stdio::null());
        command
    }

    /// `mosix migrate --json PID TO` on this node, which is the program's home. The answer, refused or not.
    fn migrate(&self, pid: &str, to: &str) -> Result<Value> {
        let output = self
            .command(&["mosix", "migrate", "--json", pid, to])
            .output()
            .context("mosix migrate")?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("mosix migrate said {:?}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// Runs a command to its end. Returns its stdout; a failure is an error with what it said.
fn said(mut command: Command, what: &str) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {what}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{what} failed: {}\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(text)
}

/// The running program.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    pid: String,
}

impl Running {
    /// Starts `command` and waits for READY.
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the program")?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().context("no pipe")?);
        let (sender, lines) = channel();
        thread::spawn(move || {
            stdout
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let mut running = Self {
            child,
            stdin,
            lines,
            pid: String::new(),
        };
        let ready = running.line()?;
        running.pid = ready
            .strip_prefix("READY ")
            .with_context(|| format!("{ready:?} instead of READY"))?
            .to_owned();
        Ok(running)
    }

    /// Tells it to work on `number`.
    fn tell(&mut self, number: usize) -> Result<()> {
        let stdin = self.stdin.as_mut().context("stdin is closed")?;
        writeln!(stdin, "{number}")
            .and_then(|()| stdin.flush())
            .context("writing to the program")
    }

    fn line(&mut self) -> Result<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(_) => bail!(
                "the program says nothing for {} s; it has ended: {:?}",
                PATIENCE.as_secs(),
                self.child.try_wait()
            ),
        }
    }

    /// Closes its stdin. Returns the rest of its output.
    fn end(mut self) -> Result<Vec<String>> {
        self.stdin = None;
        let rest = vec![self.line()?];
        let status = self.child.wait().context("waiting for the program")?;
        ensure!(status.success(), "the program ended with {status}");
        Ok(rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only after a failure does it still run; its end ends the job.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ended_meanwhile = self.child.kill();
            let _status = self.child.wait();
        }
    }
}

/// What a run without mosix prints.
fn plain(count: usize) -> Result<Vec<String>> {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", PROGRAM]);
    let mut program = Running::start(command)?;
    let mut lines = Vec::new();
    for number in 0..count {
        program.tell(number)?;
        lines.push(program.line()?);
    }
    lines.extend(program.end()?);
    Ok(lines)
}

/// `mosix run` of the program on `home`.
fn start(home: &Node, options: &[&str]) -> Command {
    let program = ["/usr/bin/python3", "-c", PROGRAM];
    let words: Vec<&str> = ["mosix", "run"]
        .iter()
        .chain(options)
        .chain(&program)
        .copied()
        .collect();
    home.command(&words)
}

/// Starts the program on `home` and moves it along `way`, each time while it computes.
fn travel(home: &Node, options: &[&str], way: &[&str], expected: &[String]) -> Result<()> {
    let mut program = Running::start(start(home, options))?;
    let mut lines = Vec::new();
    for (number, to) in way.iter().enumerate() {
        program.tell(number)?;
        let answer = home.migrate(&program.pid, to)?;
        ensure!(
            answer["error"].is_null(),
            "from {} to {to}: {}",
            home.name,
            answer["error"]["text"]
        );
        let moved = &answer["moved"][0];
        println!(
            "  {:>4} → {:<5} froze {:>6.1} ms, {} KiB",
            moved["from"].as_str().unwrap_or("?"),
            moved["to"].as_str().unwrap_or("?"),
            moved["freeze_us"].as_f64().unwrap_or(0.0) / 1000.0,
            moved["bytes"].as_u64().unwrap_or(0) / 1024
        );
        lines.push(program.line().with_context(|| format!("after the move to {to}"))?);
    }
    lines.extend(program.end()?);
    ensure!(
        lines == expected,
        "the output differs from a plain run's:\n{}\nplain:\n{}",
        lines.join("\n"),
        expected.join("\n")
    );
    Ok(())
}

/// CPU features, one of which a refusal for the lack of one names.
const FLAGS: [&str; 9] = ["sse", "ssse", "avx", "popcnt", "bmi", "xsave", "movbe", "f16c", "fma"];

/// A guest refuses a program, with one of these words, and the program runs on.
fn refused(home: &Node, options: &[&str], to: &str, expected: &[String], words: &[&str]) -> Result<()> {
    let mut program = Running::start(start(home, options))?;
    let answer = home.migrate(&program.pid, to)?;
    let text = answer["error"]["text"].as_str().unwrap_or_default().to_owned();
    println!("  {} → {to}: {text}", home.name);
    ensure!(!text.is_empty(), "the guest took the program: {answer}");
    let lower = text.to_lowercase();
    let named = words.iter().any(|word| lower.contains(word));
    ensure!(named, "the refusal names none of {words:?}: {text}");
    let mut lines = Vec::new();
    for number in 0..expected.len() - 1 {
        program.tell(number)?;
        lines.push(program.line()?);
    }
    lines.extend(program.end()?);
    ensure!(
        lines == expected,
        "after a refused move the output differs from a plain run's"
    );
    Ok(())
}

/// Runs the scenario.
pub fn run(store: &Store, cache: &Path) -> Result<()> {
    let begun = Instant::now();
    let expected = plain(6)?;
    let cluster = Cluster::new(
        &[
            ("k612", "6.12", "max"),
            ("k61", "6.1", "max"),
            ("poor", "6.12", "qemu64"),
        ],
        store,
        cache,
    )?;
    println!(
        "this kernel, 6.12 and 6.1 are one cluster after {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    // Programs go on seeing the wall clock of their home. Guests boot with clocks that differ by themselves.
    cluster.set_clock("k612", 0)?;
    cluster.set_clock("k61", 1)?;
    let names = ["n1", "k612", "k61"];
    for home in names {
        let [a, b] = match home {
            "n1" => ["k612", "k61"],
            "k612" => ["k61", "n1"],
            _ => ["n1", "k612"],
        };
        println!("born on {home}:");
        travel(
            &cluster.node(home)?,
            &["--cpu", "v3"],
            &[a, b, "home", b, a, "home"],
            &expected,
        )
        .with_context(|| format!("a program born on {home}"))?;
    }
    println!("clocks:");
    cluster.set_clock("k612", 3600)?;
    refused(&cluster.node("n1")?, &["--cpu", "v3"], "k612", &expected, &["clock"])?;
    println!("admission:");
    refused(&cluster.node("n1")?, &[], "poor", &expected, &FLAGS)?;
    refused(&cluster.node("k61")?, &[], "poor", &expected, &FLAGS)?;
    println!(
        "moves between kernels: passed in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}
