//! Guests: compiled once, started in any way, told to go on, and held to PASS. See tests/guests/README.md.

use crate::binary::{work_dir, workspace};
use crate::run::{How, Moves, command, describe, job_name, wait};
use crate::yardstick::Stolen;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a guest has for each step.
const STEP: Duration = Duration::from_secs(30);

/// How late a wait may end beside the longest standstill.
const LATE: Duration = Duration::from_millis(100);

/// How many threads wake one another before a moved process wakes up: in its deputy, the supervisor (two), the agent, and the body.
const HOPS: u32 = 5;

/// A running guest that has said READY.
#[derive(Debug)]
pub struct Guest<'a> {
    name: String,
    how: How<'a>,
    job: String,
    pid: i32,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Receiver<String>,
    moves: Moves,
    begun: Instant,
    stolen: Stolen,
    by_scheduler: bool,
    /// How long it ran before its first move was over: waits may begin again there when the scheduler does not know when they began.
    first: Option<Duration>,
}

/// How a guest ended.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Status as its parent saw it.
    pub status: ExitStatus,
    /// Its lines after READY.
    pub lines: Vec<String>,
    /// All of stderr.
    pub stderr: String,
    /// Moves it went through.
    pub moves: Moves,
}

/// Compiles a guest, once per change of its source, and gives its path.
pub fn compile(name: &str) -> PathBuf {
    static LOCKS: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut built = LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    let built = built.get_or_insert_default();
    if let Some(path) = built.get(name) {
        return path.clone();
    }
    let sources = workspace().join("tests/guests");
    // Readable for other users, as some tests run guests as one.
    let program = work_dir("guests").join(name);
    // Under another name first: a copy of it may be running in another test program.
    let temporary = program.with_extension(std::process::id().to_string());
    let output = Command::new("cc")
        .args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .arg(&temporary)
        .arg(sources.join(format!("{name}.c")))
        .args(["-lrt", "-lm"])
        .output()
        .expect("run cc");
    assert!(
        output.status.success(),
        "cc of {name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::rename(&temporary, &program).expect("put the guest in its place");
    built.insert(name.to_owned(), program.clone());
    program
}

impl<'a> Guest<'a> {
    /// Starts a guest and waits for its READY.
    pub fn start(name: &str, args: &[&str], how: How<'a>) -> Self {
        let mut argv = vec![compile(name).into_os_string()];
        argv.extend(args.iter().map(Into::into));
        let job = job_name();
        crate::yardstick::begin();
        let (begun, stolen) = (Instant::now(), Stolen::now());
        let mut command = command(how, &job, &argv);
        // Its own process group: a ^C in the tests' terminal ends the harness, which ends the guest.
        command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("start the guest");
        let stdin = child.stdin.take();
        let lines = lines(child.stdout.take().expect("stdout"));
        let mut pipe = child.stderr.take().expect("stderr");
        let (sender, stderr) = channel();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = pipe.read_to_end(&mut text);
            // Nobody listens any more when the test has failed otherwise.
            let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
        });
        let mut guest = Self {
            name: name.to_owned(),
            how,
            job,
            pid: 0,
            child,
            stdin,
            lines,
            stderr,
            moves: Moves::default(),
            begun,
            stolen,
            // To root the kernel shows the deadlines of all waits but those of sockets.
            first: None,
            by_scheduler: std::fs::File::open("/proc/timer_list").is_err(),
        };
        match guest.lines.recv_timeout(STEP) {
            Ok(line) if line.starts_with("READY pid=") => {
                guest.pid = line["READY pid=".len()..]
                    .split(' ')
                    .next()
                    .and_then(|n| n.parse().ok())
                    .expect("READY's pid");
            }
            other => {
                let verdict = guest.end();
                panic!("{name} said {other:?} instead of READY; {verdict:?}");
            }
        }
        guest
    }

    /// The moments at which its waits began are known by the scheduler's clock alone: they may end late by what was stolen from a CPU, see
    /// docs/adr/0012-timeouts-keep-their-rest.md.
    pub fn by_scheduler(mut self) -> Self {
        self.by_scheduler = true;
        self
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its job.
    pub fn job(&self) -> &str {
        &self.job
    }

    /// The launcher (or the guest itself when run plainly).
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Moves it; a failure is the test's.
    pub fn migrate(&mut self, target: &str) {
        let How::Moving { lab, .. } = self.how else {
            panic!("{} does not run in a lab", self.name)
        };
        let output = lab.node(1).mosix(&["migrate", "--json", &self.pid.to_string(), target]);
        if !output.status.success() {
            let text = crate::cluster::text(&output);
            let gone = self.child.try_wait().ok().flatten();
            let said: Vec<String> = self.lines.try_iter().collect();
            panic!(
                "mosix migrate of {} (pid {}) to {target}: {text}; ended: {gone:?}; said: {said:?}",
                self.name, self.pid
            );
        }
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("mosix migrate --json");
        let freeze = said["moved"][0]["freeze_us"].as_u64().expect("freeze_us");
        self.moves.longest = self.moves.longest.max(Duration::from_micros(freeze));
        self.moves.done += 1;
        self.first.get_or_insert(self.begun.elapsed());
    }

    /// Moves it this often round n2, n3, home, with the pauses of its way of running.
    pub fn go_round(&mut self, times: usize) {
        let How::Moving { period, .. } = self.how else { return };
        for target in ["n2", "n3", "home"].into_iter().cycle().take(times) {
            self.migrate(target);
            std::thread::sleep(period);
        }
    }

    /// Tells it to go on.
    pub fn tell(&mut self) {
        if let Some(mut stdin) = self.stdin.take() {
            // A guest that is gone already shows that by its verdict.
            let _ = stdin.write_all(b"go\n");
            // Kept open: an end of file would be a second thing to wake up for.
            self.stdin = Some(stdin);
        }
    }

    /// Waits for its end.
    pub fn end(mut self) -> Verdict {
        let deadline = Instant::now() + STEP;
        let status = wait(&mut self.child, deadline);
        drop(self.stdin.take());
        // What it left behind may keep the pipes open: that is then the test's failure, not its standstill.
        let patience = Duration::from_secs(3);
        let lines: Vec<String> = std::iter::from_fn(|| self.lines.recv_timeout(patience).ok()).collect();
        let stderr = self
            .stderr
            .recv_timeout(patience)
            .unwrap_or_else(|_| "(stderr is still open)".to_owned());
        let Some(status) = status else {
            panic!(
                "{} (pid {}) did not end; {} moves; said {lines:?}; stderr {stderr:?}",
                self.name, self.pid, self.moves.done
            );
        };
        Verdict {
            status,
            lines,
            stderr,
            moves: self.moves.clone(),
        }
    }

    /// Tells it, and holds it to PASS, code 0 and a silent stderr.
    pub fn pass(mut self) -> Verdict {
        let name = self.name.clone();
        let (begun, stolen) = (self.begun, self.by_scheduler.then(|| self.stolen.clone()));
        let at_home = self.first.filter(|_| self.by_scheduler).unwrap_or_default();
        self.tell();
        let verdict = self.end();
        // Waits may end late by what the process stood still for a move, and a little.
        let late = match verdict.lines.as_slice() {
            [line] => line.strip_prefix("PASS").map(|late| match late.strip_prefix(" late=") {
                Some(seconds) => seconds.parse().unwrap_or(f64::MAX),
                None => 0.0,
            }),
            _ => None,
        };
        let machine = crate::yardstick::longest(begun) * HOPS;
        let stolen = stolen.map_or(Duration::ZERO, |stolen| stolen.since());
        let allowed = (LATE + verdict.moves.longest + machine + stolen + at_home).as_secs_f64();
        let punctual = late.is_some_and(|late| late <= allowed);
        let fine = verdict.status.code() == Some(0) && punctual && verdict.stderr.is_empty();
        assert!(
            fine,
            "{name} after {} moves, {allowed:.3} s late at most (machine {machine:?}, stolen {stolen:?}): {}, {verdict:?}",
            verdict.moves.done,
            describe(verdict.status)
        );
        verdict
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        // After `end` this finds nothing; after a panic it leaves nothing.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { break };
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
