//! The nodes of a lab: their files, and the life of their mosixd.

use super::folder::{LabFolder, NodeFiles, private_dir};
use super::record::{ProcessRecord, wait_end};
use super::{LabError, LabSpec, enter, keys};
use crate::node::Control;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a mosixd has to answer on its socket.
const START: Duration = Duration::from_secs(20);

/// How long `up` waits for the links between them.
const LINKS: Duration = Duration::from_secs(5);

/// The program that runs now, by its real path.
pub(super) fn own_program() -> Result<PathBuf, LabError> {
    std::env::current_exe().map_err(LabError::io("cannot find the path of this program"))
}

/// Writes folders, keys and configuration of every node.
pub fn prepare(folder: &LabFolder, spec: &LabSpec) -> Result<(), LabError> {
    let link = folder.bin().join("mosix");
    let _ = fs::remove_file(&link);
    let what = format!("cannot create {}", link.display());
    std::os::unix::fs::symlink(own_program()?, link).map_err(LabError::io(what))?;
    for node in spec.nodes.iter().chain(&spec.extra) {
        let files = folder.node(&node.name);
        for path in [&files.root, &files.state, &files.run] {
            private_dir(path)?;
        }
    }
    keys::write(folder, spec)
}

/// Starts the mosixd of a node and waits until it answers.
pub fn start(folder: &LabFolder, node: &str) -> Result<(), LabError> {
    let files = folder.node(node);
    let log = File::options().create(true).append(true).open(&files.log);
    let log = log.map_err(LabError::io(format!("cannot write {}", files.log.display())))?;
    let from = log.metadata().map(|meta| meta.len()).unwrap_or(0);
    let again = log.try_clone().map_err(LabError::io("cannot share the log"))?;
    let mut child = Command::new(own_program()?)
        .args(["lab", "daemon", "--name", folder.name(), node])
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(again)
        .spawn()
        .map_err(LabError::io("cannot start `mosix lab daemon`"))?;
    let deadline = Instant::now() + START;
    let fail = |reason: String| LabError::Daemon {
        node: node.to_owned(),
        reason,
        log: tail(&files, from),
    };
    loop {
        if answers(&files) {
            return Ok(());
        }
        if let Some(status) = child.try_wait().map_err(LabError::io("cannot watch mosixd"))? {
            return Err(fail(format!("it ended with {status}")));
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(fail(format!(
                "no answer on {} after {} s",
                files.state.join("control.sock").display(),
                START.as_secs()
            )));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the nodes' daemons are linked with each other, so that a move works at once. Not a failure when they are not:
/// the lab is there, and `mosix node status` on a node says what is wrong.
pub fn wait_for_links(folder: &LabFolder, spec: &LabSpec) {
    let deadline = Instant::now() + LINKS;
    for node in &spec.nodes {
        let control = Control::at(folder.node(&node.name).state);
        let linked = || {
            let peers = control.nodes().unwrap_or_default();
            spec.nodes
                .iter()
                .filter(|other| *other != node)
                .all(|other| peers.iter().any(|peer| peer.name.0 == other.name && peer.up))
        };
        while !linked() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Becomes the mosixd of a node; the body of `mosix lab daemon`. Returns only on failure.
pub fn become_daemon(folder: &LabFolder, node: &str) -> Result<std::io::Error, LabError> {
    let _ = nix::unistd::setsid();
    // pid and start time stay the same through exec, so this record is already that of mosixd.
    let pid_file = folder.pid_file(node);
    let record = ProcessRecord::own().and_then(|own| own.write(&pid_file));
    record.map_err(LabError::io(format!("cannot write {}", pid_file.display())))?;
    let spec = enter::enter(folder, node)?;
    let config = folder.node(node).config;
    let mut command = Command::new(own_program()?);
    command
        .args(["node", "run", "--config"])
        .arg(config)
        .envs(enter::environment(folder, &spec, node));
    Ok(command.exec())
}

/// The running mosixd of a node.
pub fn daemon(folder: &LabFolder, node: &str) -> Option<ProcessRecord> {
    ProcessRecord::read(&folder.pid_file(node)).filter(ProcessRecord::is_alive)
}

/// Stops the mosixd of a node as a service manager would, and waits for its end. Returns whether it ran.
pub fn stop(folder: &LabFolder, node: &str) -> Result<bool, LabError> {
    let Some(fd) = daemon(folder, node).as_ref().and_then(ProcessRecord::open) else {
        return Ok(false);
    };
    super::record::signal(&fd, rustix::process::Signal::TERM);
    match wait_end(&fd, Instant::now() + START).map_err(LabError::io("cannot wait for mosixd"))? {
        true => Ok(true),
        false => Err(LabError::Unkillable(format!("mosixd of {node}"))),
    }
}

/// Whether a mosixd accepts connections on its control socket.
pub fn answers(files: &NodeFiles) -> bool {
    UnixStream::connect(files.state.join("control.sock")).is_ok()
}

/// The last lines of the log after `from`.
fn tail(files: &NodeFiles, from: u64) -> String {
    let bytes = fs::read(&files.log).unwrap_or_default();
    let text = bytes
        .get(usize::try_from(from).unwrap_or(0)..)
        .map(String::from_utf8_lossy)
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
