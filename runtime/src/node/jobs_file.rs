//! What a daemon remembers of jobs across its own restart: whose supervisor is where, and which nodes have agents of it.
//!
//! One file per job in `<state dir>/jobs`. It is a note to this daemon's next life, which watches the same supervisors again, or tells
//! the nodes that one has ended meanwhile; losing it costs only time, because agents have their lease.

use crate::process::stat::Stat;
use mosix_wire::ids::{JobId, NodeName, Nonce};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// Longest file in bytes: a job has at most one agent per node.
const LONGEST: u64 = 1 << 20;

/// A job's file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Saved {
    /// The job's user.
    pub uid: u32,
    /// The supervisor's life.
    pub home: Nonce,
    /// Its pid.
    pub supervisor: i32,
    /// When the process with this pid started, in clock ticks since boot: tells it from a later one.
    pub started: u64,
    /// Nodes with agents.
    pub hosts: BTreeSet<NodeName>,
}

/// When a process started, if there is one.
pub fn started(pid: i32) -> Option<u64> {
    Stat::read(pid)
        .ok()
        .filter(|stat| !stat.is_dead())
        .map(|stat| stat.start)
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("jobs")
}

fn path(state_dir: &Path, job: JobId) -> PathBuf {
    folder(state_dir).join(format!("{job}.json"))
}

/// Writes a job's file, whole or not at all.
///
/// # Errors
/// Those of the file system.
pub fn write(state_dir: &Path, job: JobId, saved: &Saved) -> io::Result<()> {
    super::paths::create_dir(&folder(state_dir), 0o700)?;
    let path = path(state_dir, job);
    let new = path.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(saved)?)?;
    std::fs::rename(new, path)
}

/// Removes a job's file.
pub fn remove(state_dir: &Path, job: JobId) {
    let _ = std::fs::remove_file(path(state_dir, job));
}

/// Reads all jobs' files; those that cannot be understood are removed.
pub fn read_all(state_dir: &Path) -> Vec<(JobId, Saved)> {
    let entries = std::fs::read_dir(folder(state_dir)).into_iter().flatten().flatten();
    let read = |path: &Path| -> Option<(JobId, Saved)> {
        let job = path.file_stem()?.to_str()?.parse().ok()?;
        if path.extension()? != "json" || std::fs::metadata(path).ok()?.len() > LONGEST {
            return None;
        }
        Some((job, serde_json::from_slice(&std::fs::read(path).ok()?).ok()?))
    };
    entries
        .filter_map(|entry| {
            let path = entry.path();
            let saved = read(&path);
            if saved.is_none() {
                tracing::warn!(path = %path.display(), "a file that does not belong here");
                let _ = std::fs::remove_file(&path);
            }
            saved
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nonsense_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_all(dir.path()).is_empty());
        let saved = Saved {
            uid: 7,
            home: Nonce(8),
            supervisor: std::process::id() as i32,
            started: started(std::process::id() as i32).unwrap(),
            hosts: [NodeName("n2".to_owned())].into(),
        };
        write(dir.path(), JobId(5), &saved).unwrap();
        std::fs::write(dir.path().join("jobs/0000000000000006.json"), "{").unwrap();
        assert_eq!(read_all(dir.path()), [(JobId(5), saved)]);
        assert_eq!(std::fs::read_dir(dir.path().join("jobs")).unwrap().count(), 1);
        remove(dir.path(), JobId(5));
        assert!(read_all(dir.path()).is_empty());
    }
}
