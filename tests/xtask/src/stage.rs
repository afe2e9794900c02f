//! What a verb that shows or measures mosix needs around it: packages, a built `mosix`, a lab of its own, and an end
//! without leftovers: after success, after an error, on ^C, and of a run that was killed before.

use crate::workspace::{cargo, target};
use anyhow::{Context, Result, bail, ensure};
use mosix_tests::require::find;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Installs the Debian packages of these programs that are missing: (program, package).
pub fn install(wanted: &[(&str, &'static str)]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|w| w.1)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    ensure!(
        find("apt-get").is_some() && nix::unistd::geteuid().is_root(),
        "please install: {list} (as root on Debian this is done for you)"
    );
    println!("  installing {list}");
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(["-q", "-o", "DPkg::Lock::Timeout=600"])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    let mut words = vec!["install", "-y", "--no-install-recommends", "--no-remove"];
    words.extend(&missing);
    if apt(&words).stderr(Stdio::null()).status().context("apt-get")?.success() {
        return Ok(());
    }
    // A machine that was never asked has no lists.
    crate::workspace::run(&mut apt(&["update"]))?;
    crate::workspace::run(&mut apt(&words))
}

/// Builds `mosix` and says where it is: $MOSIX_BIN when that is set. Cargo shows its progress.
///
/// `release` is for numbers; the other build is there sooner, and quick enough to be looked at.
pub fn build(release: bool) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MOSIX_BIN") {
        return Ok(path.into());
    }
    let mut command = cargo()?;
    command.args(["build", "--package", "mosix", "--bin", "mosix"]);
    if release {
        command.arg("--release");
    }
    crate::workspace::run(&mut command)?;
    Ok(target()?.join(if release { "release/mosix" } else { "debug/mosix" }))
}

/// A lab and a work folder, gone when dropped. At most one of a name per target folder at a time.
#[derive(Debug)]
pub struct Stage {
    ground: Ground,
    /// Held for our lifetime; the kernel drops it with us, however we end.
    _lock: Flock<File>,
}

/// What has to go at the end.
#[derive(Clone, Debug)]
struct Ground {
    mosix: PathBuf,
    /// MOSIX_RUNTIME_DIR of the lab: short, because unix sockets in it have at most 107 bytes of name.
    runtime: PathBuf,
    /// Inputs and outputs of what runs.
    work: PathBuf,
    /// Says where `runtime` is, for a later run that has to clean up.
    note: PathBuf,
}

impl Stage {
    /// Clears what an earlier, killed run of the same `name` left behind, and makes an empty work folder.
    ///
    /// From here on, ^C and a request to terminate clean up, too. To be called before there are threads.
    pub fn new(name: &str, mosix: &Path) -> Result<Self> {
        let folder = target()?.join(name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let lock = File::create(folder.join("lock")).with_context(|| folder.display().to_string())?;
        let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
            bail!(
                "another {name} is running in this workspace (it holds {})",
                folder.join("lock").display()
            );
        };
        let (note, work) = (folder.join("runtime-dir"), folder.join("work"));
        if let Ok(left) = fs::read_to_string(&note) {
            println!("  clearing what an earlier run left behind");
            let left = Ground {
                mosix: mosix.into(),
                runtime: left.into(),
                work: work.clone(),
                note: note.clone(),
            };
            left.clear();
        }
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
        let runtime = tempfile::Builder::new()
            .prefix("mx")
            .tempdir_in("/tmp")
            .context("/tmp")?
            .keep();
        let ground = Ground {
            mosix: mosix.into(),
            runtime,
            work,
            note,
        };
        fs::write(&ground.note, ground.runtime.as_os_str().as_encoded_bytes()).context("note of the lab")?;
        ground.clear_on_signals()?;
        Ok(Self { ground, _lock: lock })
    }

    /// Brings the lab up. It also goes down when this program is killed.
    pub fn up(&self, nodes: u32, options: &[&str]) -> Result<()> {
        let (nodes, owner) = (nodes.to_string(), std::process::id().to_string());
        let mut command = self.ground.lab(&["up", "--nodes", &nodes, "--owner", &owner]);
        let output = command.args(options).output().context("mosix lab up")?;
        ensure!(
            output.status.success(),
            "mosix lab up: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// A command run as on a node.
    pub fn on<I: AsRef<OsStr>>(&self, node: &str, argv: impl IntoIterator<Item = I>) -> Command {
        let mut command = self.ground.lab(&["exec", node, "--"]);
        command.args(argv).current_dir(&self.ground.work);
        command
    }

    /// What a command on a node writes; an error with its words when it fails.
    pub fn output<I: AsRef<OsStr>>(&self, node: &str, argv: impl IntoIterator<Item = I>) -> Result<String> {
        let mut command = self.on(node, argv);
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("{command:?}"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!(
                "{}",
                [complaint.trim(), said.trim()]
                    .join(" ")
                    .trim()
                    .trim_start_matches("mosix: ")
            );
        }
        Ok(said)
    }

    /// Pid of the process that runs `program` in a job of node n1, while there is one.
    pub fn pid_of(&self, job: &str, program: &str) -> Result<Option<i64>> {
        let all: Value = serde_json::from_str(&self.output("n1", ["mosix", "ps", "--json"])?).context("mosix ps")?;
        let rows = all["processes"].as_array().context("mosix ps: no processes")?;
        let row = rows.iter().find(|row| row["job"] == job && row["program"] == program);
        Ok(row.and_then(|row| row["pid"].as_i64()))
    }

    /// The same, waiting for it to start.
    pub fn started(&self, job: &str, program: &str) -> Result<i64> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(pid) = self.pid_of(job, program)? {
                return Ok(pid);
            }
            ensure!(Instant::now() < deadline, "{program} did not start within 20 s");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Moves a process of node n1; the outcome is what mosix reports.
    pub fn migrate(&self, pid: i64, to: &str) -> Result<Move> {
        let pid = pid.to_string();
        let output = self
            .on("n1", ["mosix", "migrate", "--json", &pid, to])
            .output()
            .context("mosix migrate")?;
        let said: Value = serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "mosix migrate {pid} {to}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )
        })?;
        if let Some(text) = said["error"]["text"].as_str() {
            bail!("mosix migrate {pid} {to}: {text}");
        }
        serde_json::from_value(said["moved"][0].clone()).context("mosix migrate: unknown report")
    }

    /// Address of a node.
    pub fn address(&self, node: &str) -> Result<String> {
        let output = self
            .ground
            .lab(&["status", "--json"])
            .output()
            .context("mosix lab status")?;
        let all: Value = serde_json::from_slice(&output.stdout).context("mosix lab status")?;
        let row = all["nodes"]
            .as_array()
            .and_then(|rows| rows.iter().find(|row| row["name"] == node));
        let address = row.and_then(|row| row["address"].as_str());
        let address = address.with_context(|| format!("mosix lab status: no address of {node}"))?;
        Ok(address.to_owned())
    }

    /// Where inputs and outputs lie.
    pub fn work(&self) -> &Path {
        &self.ground.work
    }
}

/// A move as `mosix migrate --json` reports it.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Move {
    /// Where from.
    pub from: String,
    /// Where to.
    pub to: String,
    /// How long the program stood still, in microseconds.
    pub freeze_us: u64,
    /// From the request to the end, in microseconds.
    pub total_us: u64,
    /// What travelled.
    pub bytes: u64,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.ground.clear();
    }
}

impl Ground {
    fn lab(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.mosix);
        command.arg("lab").args(words).env("MOSIX_RUNTIME_DIR", &self.runtime);
        for name in ["MOSIX_LAB", "MOSIX_STATE_DIR", "MOSIX_CONFIG", "MOSIX_NODE"] {
            command.env_remove(name);
        }
        command
    }

    /// Takes all of it away; says so when it cannot. May be called again.
    fn clear(&self) {
        if self.runtime.join("lab").exists() {
            // In a process group of its own: another ^C does not reach it.
            let down = self.lab(&["down"]).process_group(0).stdout(Stdio::null()).status();
            if !matches!(down, Ok(status) if status.success()) {
                eprintln!("`MOSIX_RUNTIME_DIR={} mosix lab down` failed", self.runtime.display());
                return;
            }
        }
        for folder in [&self.runtime, &self.work] {
            if let Err(error) = fs::remove_dir_all(folder)
                && folder.exists()
            {
                eprintln!("cannot remove {}: {error}", folder.display());
            }
        }
        let _ = fs::remove_file(&self.note);
    }

    fn clear_on_signals(&self) -> Result<()> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        // Programs we start get an empty mask from std.
        set.thread_block().context("block signals")?;
        let ground = self.clone();
        let watch = move || {
            if let Ok(signal) = set.wait() {
                eprintln!("\n{signal}: cleaning up");
                ground.clear();
                // The main thread may be waiting for a program that is gone.
                std::process::exit(128 + signal as i32);
            }
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(watch)
            .context("a thread for signals")?;
        Ok(())
    }
}
