//! Ends a lab: exactly its processes, then its namespaces, then its folder.

use super::folder::LabFolder;
use super::record::{ProcessRecord, signal, wait_end};
use super::{LabError, sweep};
use rustix::process::Signal;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long processes have to end by SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// How long the kernel has to end them by SIGKILL.
const KILL: Duration = Duration::from_secs(10);

/// What was there.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// Whether there was anything of a lab.
    pub existed: bool,
    /// Processes ended: daemons, agents, supervisors and programs.
    pub processes: usize,
    /// How many of them had to be killed.
    pub killed: usize,
}

/// Ends the lab of this folder, whatever state it is in, under its lock.
pub fn down(folder: &LabFolder) -> Result<Ended, LabError> {
    let _lock = folder.lock()?;
    let ended = clean(folder)?;
    folder.remove_empty_parents();
    Ok(ended)
}

/// Ends the lab; the caller holds the lock.
pub(super) fn clean(folder: &LabFolder) -> Result<Ended, LabError> {
    if !folder.exists() {
        return Ok(Ended::default());
    }
    // Without a readable description there is still what recorded itself.
    let spec = folder.read_spec().ok();
    let mut ended = Ended {
        existed: true,
        ..Ended::default()
    };
    let first = sweep::processes(folder, spec.as_ref())?;
    ended.processes = first.len();
    end(&first, Signal::TERM, Instant::now() + GRACE)?;
    // Ending one may have brought forth another (a supervisor restarts nothing, a shell script may): look until none is left.
    let deadline = Instant::now() + KILL;
    loop {
        let left = sweep::processes(folder, spec.as_ref())?;
        if left.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            let pids: Vec<String> = left.iter().map(|record| record.pid.to_string()).collect();
            return Err(LabError::Unkillable(pids.join(", ")));
        }
        ended.killed += end(&left, Signal::KILL, deadline)?;
    }
    // Last, because it holds the namespaces that say who belongs to the lab.
    if let Some(keeper) = ProcessRecord::read(&folder.pid_file("keeper")) {
        end(&[keeper], Signal::KILL, deadline)?;
    }
    folder.remove()?;
    Ok(ended)
}

/// Signals these processes and waits for their end. Returns how many have ended.
fn end(records: &[ProcessRecord], how: Signal, deadline: Instant) -> Result<usize, LabError> {
    let open: Vec<OwnedFd> = records.iter().filter_map(ProcessRecord::open).collect();
    for fd in &open {
        signal(fd, how);
        // A stopped process would only end when somebody continues it.
        signal(fd, Signal::CONT);
    }
    let mut gone = 0;
    for fd in &open {
        gone += usize::from(wait_end(fd, deadline).map_err(LabError::io("cannot wait for a process of the lab"))?);
    }
    Ok(gone)
}
