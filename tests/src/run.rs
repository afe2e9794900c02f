//! Running a program in three ways and comparing what it did.

use crate::cluster::{Lab, Node};
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::hash::Hasher;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a program is run.
#[derive(Clone, Copy, Debug)]
pub enum How<'a> {
    /// Without mosix.
    Plain,
    /// Under `mosix run` on this node, staying there.
    Home(Node<'a>),
    /// Under `mosix run` on n1, with a move every `period` round n2, n3, home.
    Moving {
        /// The lab; it has three nodes.
        lab: &'a Lab,
        /// From the end of a move to the begin of the next.
        period: Duration,
    },
}

/// A program to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// A file as its stdin; else /dev/null.
    pub stdin: Option<PathBuf>,
    /// Its folder.
    pub folder: PathBuf,
    /// More environment.
    pub environment: Vec<(OsString, OsString)>,
    /// It must end by then.
    pub time: Duration,
}

/// What a program did. Equal when nobody could tell the runs apart.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended, as its parent saw it.
    pub status: ExitStatus,
    /// Bytes on stdout.
    pub length: u64,
    /// Hash of stdout.
    pub hash: u64,
    /// Begin of stdout, for messages.
    pub begin: String,
    /// All of stderr.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
    /// The moves it went through.
    pub moves: Moves,
}

/// Moves of one run.
#[derive(Clone, Debug, Default)]
pub struct Moves {
    /// That succeeded.
    pub done: u32,
    /// The longest standstill of one, where it was asked for.
    pub longest: Duration,
    /// Messages of those that failed while the program ran on.
    pub failed: Vec<String>,
}

impl Program {
    /// A program with arguments, in the temporary folder, with five minutes.
    pub fn new<I: Into<OsString>>(argv: impl IntoIterator<Item = I>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            stdin: None,
            folder: std::env::temp_dir(),
            environment: Vec::new(),
            time: Duration::from_secs(300),
        }
    }

    /// Gives it a file as stdin.
    pub fn stdin(mut self, file: impl Into<PathBuf>) -> Self {
        self.stdin = Some(file.into());
        self
    }

    /// Runs it in this folder.
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs it to its end.
    pub fn run(&self, how: How<'_>) -> Outcome {
        let job = job_name();
        let mut command = command(how, &job, &self.argv);
        command.current_dir(&self.folder).envs(self.environment.iter().cloned());
        command.stdin(match &self.stdin {
            Some(path) => File::open(path).expect("open the input").into(),
            None => Stdio::null(),
        });
        let begin = Instant::now();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the program");
        let stdout = collect(child.stdout.take().expect("stdout"), 4096);
        let stderr = collect(child.stderr.take().expect("stderr"), usize::MAX);
        let (status, moves) = match how {
            How::Moving { lab, period } => moving(&mut child, lab, &job, period, begin + self.time),
            _ => (wait(&mut child, begin + self.time), Moves::default()),
        };
        let took = begin.elapsed();
        let (out, err) = (stdout.join().expect("reader"), stderr.join().expect("reader"));
        let Some(status) = status else {
            panic!(
                "{:?} did not end within {:?} ({how:?}); stderr: {}",
                self.argv,
                self.time,
                err.kept()
            );
        };
        Outcome {
            status,
            length: out.length,
            hash: out.hash,
            begin: out.kept(),
            stderr: err.kept(),
            took,
            moves,
        }
    }
}

impl Outcome {
    /// Fails unless both runs look alike from outside.
    pub fn assert_same(&self, plain: &Self) {
        let same = self.status == plain.status
            && (self.length, self.hash) == (plain.length, plain.hash)
            && self.stderr == plain.stderr;
        assert!(same, "not the same.\nplain: {plain}\nhere:  {self}");
    }

    /// Fails unless at least this many moves succeeded and none failed.
    pub fn assert_moved(&self, least: u32) {
        assert!(
            self.moves.failed.is_empty(),
            "moves failed: {:#?}\n{self}",
            self.moves.failed
        );
        assert!(
            self.moves.done >= least,
            "{} moves instead of {least} or more\n{self}",
            self.moves.done
        );
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} bytes of stdout with hash {:016x} in {:.1} s, {} moves; stdout begins {:?}; stderr {:?}",
            self.status,
            self.length,
            self.hash,
            self.took.as_secs_f64(),
            self.moves.done,
            self.begin,
            self.stderr
        )
    }
}

/// A name for a job that no other job has.
pub fn job_name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// The command that runs `argv` in this way.
pub fn command(how: How<'_>, job: &str, argv: &[OsString]) -> Command {
    let node = match how {
        How::Plain => {
            let (program, args) = argv.split_first().expect("a program");
            let mut command = Command::new(program);
            command.args(args);
            return command;
        }
        How::Home(node) => node,
        How::Moving { lab, .. } => lab.node(1),
    };
    let run: [OsString; 5] = ["mosix", "run", "--job", job, "--"].map(Into::into);
    node.command(run.iter().chain(argv))
}

/// Moves the job round until its program ends.
fn moving(child: &mut Child, lab: &Lab, job: &str, period: Duration, deadline: Instant) -> (Option<ExitStatus>, Moves) {
    let mut moves = Moves::default();
    let mut targets = ["n2", "n3", "home"].into_iter().cycle();
    let mut target = targets.next().expect("a round");
    let mut begun = false;
    loop {
        let pause = (Instant::now() + period).min(deadline);
        if let Some(status) = wait_until(child, pause) {
            return (Some(status), moves);
        }
        if Instant::now() >= deadline {
            kill(child);
            return (None, moves);
        }
        let output = lab.node(1).mosix(&["migrate", "--job", job, target]);
        let said = crate::cluster::text(&output);
        if output.status.success() {
            moves.done += 1;
        } else if !begun && said.contains("there is no job") {
            // Not yet.
            continue;
        } else if let Some(status) = wait_until(child, Instant::now() + Duration::from_millis(500)) {
            // It ended under the move's hands: no failure of the move.
            return (Some(status), moves);
        } else {
            moves.failed.push(format!("to {target}: {}", said.trim()));
        }
        begun = true;
        target = targets.next().expect("a round");
    }
}

/// Waits for the end of the program; after the deadline kills it and gives `None`.
pub fn wait(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    let status = wait_until(child, deadline);
    if status.is_none() {
        kill(child);
    }
    status
}

fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn wait_until(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().expect("wait for the program") {
            return Some(status);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::sleep(left.min(Duration::from_millis(5)));
    }
}

/// What came out of a pipe.
#[derive(Debug)]
struct Collected {
    length: u64,
    hash: u64,
    begin: Vec<u8>,
}

impl Collected {
    fn kept(&self) -> String {
        String::from_utf8_lossy(&self.begin).into_owned()
    }
}

/// Reads a pipe to its end, keeping at most `keep` bytes.
fn collect(mut pipe: impl Read + Send + 'static, keep: usize) -> JoinHandle<Collected> {
    std::thread::spawn(move || {
        let mut hasher = DefaultHasher::new();
        let mut all = Collected {
            length: 0,
            hash: 0,
            begin: Vec::new(),
        };
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => panic!("read of a program's output: {e}"),
            };
            hasher.write(&buffer[..n]);
            all.length += n as u64;
            let room = keep.saturating_sub(all.begin.len()).min(n);
            all.begin.extend_from_slice(&buffer[..room]);
        }
        // `Hasher::write` of pieces is not that of the whole for every hasher; SipHash takes a stream of bytes.
        all.hash = hasher.finish();
        all
    })
}

/// Exit code or signal in words, for messages and tables.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
