//! Away: a program that was moved from n1 to n2, against the same program at home, or against bare messages between the
//! nodes.

use super::Extent;
use super::programs::Programs;
use super::report::{Kind, Report, median_of, turns};
use crate::stage::{Move, Stage};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

const GROUP: &str = "Away, on n2";

/// A program on n1 that has said "ready" and waits for a line.
pub struct Guest<'a> {
    stage: &'a Stage,
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Its job and its program's name, to find its pid by; none when it runs without mosix.
    job: Option<(String, String)>,
}

impl<'a> Guest<'a> {
    /// Starts `argv` without or with mosix.
    pub fn start(stage: &'a Stage, mosix: bool, argv: &[&str]) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let job = format!("bench-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut words = vec!["timeout", "-k", "5", "600"];
        if mosix {
            words.extend(["mosix", "run", "--job", &job, "--"]);
        }
        words.extend(argv);
        let mut command = stage.on("n1", &words);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("cannot start {command:?}"))?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let name = argv
            .first()
            .and_then(|path| path.rsplit('/').next())
            .unwrap_or_default();
        let mut guest = Self {
            stage,
            child,
            stdout,
            job: mosix.then(|| (job.clone(), name.to_owned())),
        };
        let mut line = String::new();
        guest.stdout.read_line(&mut line).context("stdout")?;
        ensure!(
            line == "ready\n",
            "{} said {line:?} instead of \"ready\"",
            argv.join(" ")
        );
        Ok(guest)
    }

    /// Starts `calls` of a kind with its three numbers: batches, turns in a batch, threads.
    pub fn calls(stage: &'a Stage, programs: &Programs, mosix: bool, kind: &str, numbers: [u32; 3]) -> Result<Self> {
        let (calls, numbers) = (programs.c("calls"), numbers.map(|n| n.to_string()));
        Self::start(stage, mosix, &[&calls, kind, &numbers[0], &numbers[1], &numbers[2]])
    }

    /// Moves it.
    pub fn to(&self, node: &str) -> Result<Move> {
        let (job, program) = self.job.as_ref().context("it does not run under mosix")?;
        self.stage.migrate(self.stage.started(job, program)?, node)
    }

    /// Gives it its line, and returns what it says until its end, which must be a success.
    pub fn finish(mut self) -> Result<String> {
        let mut stdin = self.child.stdin.take().context("stdin")?;
        // A server may have ended already, with its last connection; how it ended is asked below.
        let _ = stdin.write_all(b"go\n");
        drop(stdin);
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).context("stdout")?;
        let status = self.child.wait().context("wait")?;
        ensure!(status.success(), "it ended with {status}, after {:?}", text.trim());
        Ok(text)
    }

    /// Finishes it; the median of the numbers that it said.
    pub fn measured(self) -> Result<f64> {
        median_of(&self.finish()?)
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        // `timeout` passes the signal on; a guest that has ended is not bothered.
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

/// Measures all of it.
pub fn measure(report: &mut Report, stage: &Stage, programs: &Programs, extent: Extent) {
    let batches = extent.of(51, 101);
    let away = |kind, batches, count, threads| {
        let guest = Guest::calls(stage, programs, true, kind, [batches, count, threads])?;
        guest.to("n2")?;
        guest.measured()
    };
    for (name, kind, count, goal) in [
        ("CPU loop, against home", "cpu", 200, 1.02),
        ("clock_gettime, against the vDSO at home", "clock", 5000, 1.5),
    ] {
        report.row(GROUP, name, Kind::Ratio, goal, || {
            let plain = || Guest::calls(stage, programs, false, kind, [batches * 10, count, 1])?.measured();
            turns(extent.rounds, plain, || away(kind, batches * 10, count, 1))
        });
    }
    for threads in [1, 8, 64] {
        let name = match threads {
            1 => "forwarded getppid, against a TCP ping-pong".to_owned(),
            n => format!("the same, {n} threads"),
        };
        let count = extent.of(400, 1000).div_ceil(threads).max(20);
        let numbers = [batches, count, threads];
        let plain = || pingpong(stage, programs, numbers);
        report.row(GROUP, name, Kind::Ratio, 1.4, || {
            turns(extent.rounds, plain, || away("getppid", batches, count, threads))
        });
        let name = format!("the kernel's part of {threads} forwarded alone");
        report.row(GROUP, name, Kind::Ratio, 1.4, || {
            turns(extent.rounds, plain, || path(stage, programs, numbers))
        });
    }
}

/// Messages of 56 and 8 bytes from n2 to n1, where the deputy would answer. Batches, turns in a batch, connections.
fn pingpong(stage: &Stage, programs: &Programs, numbers: [u32; 3]) -> Result<f64> {
    let connections = numbers[2].to_string();
    between(stage, &programs.c("pingpong"), "7900", &[&connections], numbers)
}

/// All that the kernel does for a forwarded call, and nothing else.
fn path(stage: &Stage, programs: &Programs, numbers: [u32; 3]) -> Result<f64> {
    between(stage, &programs.c("path"), "7902", &[], numbers)
}

/// A program that serves on n1 and calls from n2; the median of what the caller says.
fn between(stage: &Stage, program: &str, port: &str, more: &[&str], numbers: [u32; 3]) -> Result<f64> {
    let (address, numbers) = (stage.address("n1")?, numbers.map(|n| n.to_string()));
    let mut serve = vec![program, "serve", &address, port];
    serve.extend(more);
    let server = Guest::start(stage, false, &serve)?;
    let mut call = vec!["timeout", "600", program, "call", &address, port];
    call.extend(numbers.iter().map(String::as_str));
    let said = stage.output("n2", call)?;
    server.finish()?;
    median_of(&said)
}
