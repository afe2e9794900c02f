//! Labs for tests: up in a folder of their own, down when dropped, also by a panic or when the test program is killed.

use crate::binary::mosix;
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A cluster on this machine.
#[derive(Debug)]
pub struct Lab {
    name: String,
    /// MOSIX_RUNTIME_DIR of the lab's own verbs; not that of its nodes.
    runtime: PathBuf,
    nodes: u32,
    /// MOSIX_FAULT of everything in the lab.
    points: Option<tempfile::TempDir>,
    /// MOSIX_TALLY of everything in the lab.
    tally: tempfile::NamedTempFile,
}

/// A node of a lab.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    lab: &'a Lab,
    number: u32,
}

impl Lab {
    /// Brings up a lab of this many nodes, each with its mosixd.
    pub fn new(nodes: u32) -> Self {
        Self::with(nodes, &[])
    }

    /// Brings up a lab with more options of `mosix lab up`.
    pub fn with(nodes: u32, options: &[&str]) -> Self {
        Self::raise(nodes, options, None)
    }

    /// Brings up a lab whose moves can be held at named points ([`Lab::hold`]).
    pub fn with_points(nodes: u32) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("mxp")
            .tempdir_in("/tmp")
            .expect("temporary folder");
        // Agents come to it as whoever their bodies are.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
        Self::raise(nodes, &[], Some(folder))
    }

    fn raise(nodes: u32, options: &[&str], points: Option<tempfile::TempDir>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        // Short, because unix sockets in it have at most 107 bytes of name.
        // `mosix lab down` removes it with the lab, also when nobody is left to drop this.
        let runtime = tempfile::Builder::new()
            .prefix("mxl")
            .tempdir_in("/tmp")
            .expect("temporary folder")
            .keep();
        let lab = Self {
            name,
            runtime,
            nodes,
            points,
            tally: tempfile::NamedTempFile::new().expect("temporary file"),
        };
        let count = nodes.to_string();
        let owner = std::process::id().to_string();
        let mut args = vec!["up", "--nodes", &count, "--owner", &owner];
        args.extend(options);
        let output = lab.verb(&args).output().expect("run mosix lab up");
        assert!(
            output.status.success(),
            "mosix lab up: {}\n{}",
            output.status,
            text(&output)
        );
        lab
    }

    /// The lab of three nodes that tests share which do no harm to daemons; it goes down with the test program.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Lab> = OnceLock::new();
        static FAILED: Mutex<bool> = Mutex::new(false);
        // A second try would fail as slowly as the first.
        let mut failed = FAILED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        assert!(
            !*failed || SHARED.get().is_some(),
            "the shared lab did not come up, see the first test that failed"
        );
        *failed = true;
        SHARED.get_or_init(|| Self::new(3))
    }

    /// A node without any mosixd, shared by tests of what works at home alone.
    pub fn home() -> Node<'static> {
        static SHARED: OnceLock<Lab> = OnceLock::new();
        SHARED.get_or_init(|| Self::with(1, &["--no-daemons"])).node(1)
    }

    /// `mosix lab VERB --name THIS …`, ready to run.
    pub fn verb(&self, args: &[&str]) -> Command {
        let mut command = Command::new(mosix());
        let (verb, rest) = args.split_first().expect("a verb");
        command.args(["lab", verb, "--name", &self.name]).args(rest);
        command.env("MOSIX_RUNTIME_DIR", &self.runtime).env_remove("MOSIX_LAB");
        command.env("MOSIX_TALLY", self.tally.path());
        if let Some(points) = &self.points {
            command.env("MOSIX_FAULT", points.path());
        }
        command
    }

    /// Holds whoever comes to this point of a move, until the guard is dropped.
    pub fn hold(&self, point: &str) -> Held {
        let folder = self.points.as_ref().expect("a lab with points").path();
        let held = Held(folder.join(point));
        std::fs::write(held.mark(), "").expect("a file for the marks");
        std::fs::write(&held.0, "").expect("a file for the point");
        held
    }

    /// The calls that agents have served for a process, each with how: `home`, `here`, `return`.
    pub fn served(&self, pid: i32) -> BTreeSet<(String, String)> {
        let text = std::fs::read_to_string(self.tally.path()).expect("the tally");
        text.lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                (words.next()?.parse() == Ok(pid)).then_some((words.next()?.to_owned(), words.next()?.to_owned()))
            })
            .collect()
    }

    /// What jobs have in the file system: sockets, logs, cgroups of agents, mounts.
    pub fn traces(&self) -> Vec<String> {
        let mut found = Vec::new();
        for node in 1..=self.nodes {
            let node = self.folder().join(format!("n{node}"));
            for folder in ["state/agents", "state/jobs", "run/jobs"] {
                let entries = std::fs::read_dir(node.join(folder)).into_iter().flatten().flatten();
                found.extend(entries.map(|entry| entry.path().display().to_string()));
            }
            let state = node.join("state");
            // The name that a daemon gives to the groups of its agents begins with a hash of its state folder.
            let hash = state
                .as_os_str()
                .as_encoded_bytes()
                .iter()
                .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                    (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
                });
            groups(Path::new("/sys/fs/cgroup"), &format!("mosix-{hash:016x}-"), &mut found);
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let own = self.runtime.display().to_string();
        found.extend(mounts.lines().filter(|line| line.contains(&own)).map(str::to_owned));
        found.sort();
        found
    }

    /// Node 1, 2, …
    pub fn node(&self, number: u32) -> Node<'_> {
        assert!((1..=self.nodes).contains(&number), "the lab has no node {number}");
        Node { lab: self, number }
    }

    /// `mosix lab status --json`.
    pub fn status(&self) -> Value {
        let output = self.verb(&["status", "--json"]).output().expect("run mosix lab status");
        assert!(output.status.success(), "mosix lab status: {}", text(&output));
        serde_json::from_slice(&output.stdout).expect("status is JSON")
    }

    /// The lab's folder.
    pub fn folder(&self) -> PathBuf {
        self.runtime.join("lab").join(&self.name)
    }

    /// Who runs in the lab: pid and name of each process that was started in it, keeper and mosixds left out.
    pub fn programs(&self) -> Vec<(i32, String)> {
        let spec = std::fs::read(self.folder().join("lab.json")).expect("lab.json");
        let spec: Value = serde_json::from_slice(&spec).expect("lab.json is JSON");
        let marker = format!("MOSIX_LAB_ID={}", spec["id"].as_str().expect("the lab's id"));
        let status = self.status();
        let daemons: Vec<i64> = status["nodes"]
            .as_array()
            .expect("nodes")
            .iter()
            .filter_map(|node| node["pid"].as_i64())
            .collect();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let inside = environ.split(|&b| b == 0).any(|variable| variable == marker.as_bytes());
            if inside && !daemons.contains(&pid.into()) {
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                found.push((pid, name.trim().to_owned()));
            }
        }
        found
    }

    /// Waits until nothing but the daemons is left in the lab: no supervisor, deputy, agent or body.
    pub fn assert_quiet(&self) {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let left = self.programs();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "still in the lab: {left:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Takes the lab down and looks whether anything of it is left. For tests whose point that is; others just drop it.
    pub fn down(self) {
        let before = self.status();
        let output = self.verb(&["down"]).output().expect("run mosix lab down");
        assert!(output.status.success(), "mosix lab down: {}", text(&output));
        assert!(!self.runtime.exists(), "{} is left", self.runtime.display());
        for pid in [&before["switch"]["pid"]]
            .into_iter()
            .chain(before["nodes"].as_array().unwrap().iter().map(|n| &n["pid"]))
        {
            if let Some(pid) = pid.as_i64() {
                assert!(ended(pid), "process {pid} of the lab still runs");
            }
        }
    }
}

/// A point at which processes are held.
#[derive(Debug)]
pub struct Held(PathBuf);

impl Held {
    /// Waits until somebody is held; false when nobody came.
    pub fn reached(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while std::fs::metadata(self.mark()).is_ok_and(|mark| mark.len() == 0) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    fn mark(&self) -> PathBuf {
        self.0.with_file_name("reached")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Folders below a cgroup whose names begin like this.
fn groups(folder: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push(entry.path().display().to_string());
            }
            groups(&entry.path(), prefix, found);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.folder().exists() {
            // Down already, or never up.
            let _ = std::fs::remove_dir(&self.runtime);
            return;
        }
        let output = self.verb(&["down"]).output();
        let fine = matches!(&output, Ok(output) if output.status.success());
        if !fine && !std::thread::panicking() {
            panic!("mosix lab down: {output:?}");
        }
    }
}

impl<'a> Node<'a> {
    /// Its name.
    pub fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// Its lab.
    pub fn lab(&self) -> &'a Lab {
        self.lab
    }

    /// A command run as on this node.
    pub fn command<I: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = I>) -> Command {
        let mut command = self.lab.verb(&["exec", &self.name(), "--"]);
        command.args(argv);
        command
    }

    /// Runs `mosix ARGS` on this node.
    pub fn mosix(&self, args: &[&str]) -> Output {
        // A verb that hangs must be seen as such; timeout(1) ends it with 124.
        self.command(["timeout", "90", "mosix"].into_iter().chain(args.iter().copied()))
            .output()
            .expect("run mosix")
    }

    /// Runs `mosix ARGS` on this node, which must succeed, and gives its output.
    pub fn mosix_ok(&self, args: &[&str]) -> String {
        let output = self.mosix(args);
        assert!(
            output.status.success(),
            "mosix {args:?} on {}: {}\n{}",
            self.name(),
            output.status,
            text(&output)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Pid of its mosixd while it runs.
    pub fn daemon(&self) -> Option<i64> {
        let status = self.lab.status();
        status["nodes"]
            .as_array()?
            .iter()
            .find(|node| node["name"] == self.name())?["pid"]
            .as_i64()
    }

    /// Pid of this node's agent of a job, by who listens on its socket.
    pub fn agent(&self, job: &str) -> Option<i32> {
        let socket = self
            .lab
            .folder()
            .join(self.name())
            .join("state/agents")
            .join(format!("{job}.sock"));
        let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
        Some(
            nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)
                .ok()?
                .pid(),
        )
    }

    /// `mosix ps --json` of this node.
    pub fn ps(&self) -> Value {
        serde_json::from_str(&self.mosix_ok(&["ps", "--json"])).expect("ps --json is JSON")
    }

    /// The row of a process in `mosix ps --json`.
    pub fn process(&self, pid: i32) -> Option<Value> {
        self.ps()["processes"]
            .as_array()?
            .iter()
            .find(|row| row["pid"] == pid)
            .cloned()
    }

    /// The job of a process in `mosix ps --json`.
    pub fn job_of(&self, pid: i32) -> Option<Value> {
        let all = self.ps();
        let id = all["processes"].as_array()?.iter().find(|row| row["pid"] == pid)?["job_id"].clone();
        all["jobs"].as_array()?.iter().find(|job| job["id"] == id).cloned()
    }

    /// Kills its mosixd with SIGKILL and waits for its end.
    pub fn kill_daemon(&self) {
        let pid = self.daemon().expect("its mosixd runs");
        kill(pid.try_into().expect("a pid"));
        assert!(ended(pid), "mosixd of {} does not end", self.name());
    }

    /// Pulls its cable out, or plugs it in again.
    pub fn cable(&self, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        let port = format!("p{}", self.number);
        let output = self
            .lab
            .verb(&["exec", "switch", "--", "ip", "link", "set", &port, state])
            .output();
        let output = output.expect("run ip");
        assert!(output.status.success(), "ip link set {port} {state}: {}", text(&output));
    }
}

/// Sends SIGKILL.
pub fn kill(pid: i32) {
    let result = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    assert!(
        matches!(result, Ok(()) | Err(nix::errno::Errno::ESRCH)),
        "kill {pid}: {result:?}"
    );
}

/// Whether the process has ended (a zombie has); waits a little for it.
pub fn ended(pid: i64) -> bool {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        let state = state
            .as_deref()
            .and_then(|text| text.rsplit(')').next()?.trim_start().chars().next());
        if matches!(state, None | Some('Z' | 'X')) {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// stdout and stderr of a finished command, for messages.
pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
