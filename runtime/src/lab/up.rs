//! Brings a lab up, or says what is there.

use super::folder::LabFolder;
use super::keeper::{FAILED, Namespaces, READY};
use super::record::ProcessRecord;
use super::{LabError, LabSpec, down, nodes};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// What `up` found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Raised {
    /// A new lab.
    New {
        /// Whether leftovers of a crashed one of this name were removed first.
        cleaned: bool,
    },
    /// This lab was already up; these nodes' mosixd had ended and were started again.
    There {
        /// Their names.
        restarted: Vec<String>,
    },
}

/// Brings up the lab that `spec` describes. With `owner`, it goes down when that process ends. A failure leaves nothing.
pub fn up(folder: &LabFolder, spec: &LabSpec, owner: Option<i32>) -> Result<Raised, LabError> {
    let _lock = folder.lock()?;
    let mut cleaned = false;
    if folder.exists() {
        if Namespaces::read(folder).is_some() {
            return there(folder, spec);
        }
        down::clean(folder)?;
        cleaned = true;
    }
    match build(folder, spec, owner) {
        Ok(()) => Ok(Raised::New { cleaned }),
        Err(error) => {
            // The first failure is the one to report.
            let _ = down::clean(folder);
            folder.remove_empty_parents();
            Err(error)
        }
    }
}

fn there(folder: &LabFolder, spec: &LabSpec) -> Result<Raised, LabError> {
    let is = folder.read_spec()?;
    if !is.same_shape(spec) {
        return Err(LabError::Differs {
            name: is.name.clone(),
            there: is.shape(),
            asked: spec.shape(),
        });
    }
    let mut restarted = Vec::new();
    for node in is.nodes.iter().filter(|_| is.daemons) {
        if nodes::daemon(folder, &node.name).is_none() {
            nodes::start(folder, &node.name)?;
            restarted.push(node.name.clone());
        }
    }
    if !restarted.is_empty() {
        nodes::wait_for_links(folder, &is);
    }
    Ok(Raised::There { restarted })
}

fn build(folder: &LabFolder, spec: &LabSpec, owner: Option<i32>) -> Result<(), LabError> {
    folder.create()?;
    folder.write_spec(spec)?;
    nodes::prepare(folder, spec)?;
    keep(folder, owner)?;
    if spec.daemons {
        // One after the other would take as long as all of them together.
        std::thread::scope(|scope| {
            let starts: Vec<_> = spec
                .nodes
                .iter()
                .map(|node| scope.spawn(move || nodes::start(folder, &node.name)))
                .collect();
            starts.into_iter().try_for_each(|start| {
                start
                    .join()
                    .unwrap_or_else(|_| Err(LabError::Keeper("a thread failed".into())))
            })
        })?;
        nodes::wait_for_links(folder, spec);
    }
    Ok(())
}

/// Starts the keeper and waits for its word.
fn keep(folder: &LabFolder, owner: Option<i32>) -> Result<(), LabError> {
    let log = folder.keeper_log();
    let stderr = File::create(&log).map_err(LabError::io(format!("cannot write {}", log.display())))?;
    let mut command = Command::new(nodes::own_program()?);
    command
        .args(["lab", "keep", "--name", folder.name()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr);
    if let Some(owner) = owner {
        command.args(["--owner", &owner.to_string()]);
    }
    // The lab outlives the folder that it was started in.
    command.current_dir("/").env("MOSIX_RUNTIME_DIR", folder.runtime());
    let mut child = command.spawn().map_err(LabError::io("cannot start `mosix lab keep`"))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        let _ = BufReader::new(stdout).read_line(&mut line);
    }
    let line = line.trim();
    if line == READY {
        return Ok(());
    }
    let status = child.wait().map_err(LabError::io("cannot wait for the lab's keeper"))?;
    let reason = match line.strip_prefix(FAILED) {
        Some(reason) => reason.trim().to_owned(),
        None => format!("{status} {}", fs::read_to_string(&log).unwrap_or_default().trim()),
    };
    Err(LabError::Keeper(reason))
}

/// The keeper's record while it runs.
pub fn keeper(folder: &LabFolder) -> Option<ProcessRecord> {
    ProcessRecord::read(&folder.pid_file("keeper")).filter(ProcessRecord::is_alive)
}
