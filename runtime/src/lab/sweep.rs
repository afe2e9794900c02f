//! Finds every process that belongs to a lab.
//!
//! By five ways, because each alone misses some: the records; the network namespaces that the keeper still holds; the
//! lab's id in the environment (survives the keeper); the listeners of the nodes' sockets (supervisors and agents, which
//! are non-dumpable and may have namespaces of their own); and the descendants of all those.

use super::folder::LabFolder;
use super::keeper::Namespaces;
use super::record::ProcessRecord;
use super::{LabError, LabSpec};
use crate::process::stat::Stat;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// All processes of the lab but the keeper, the calling process and its ancestors.
pub fn processes(folder: &LabFolder, spec: Option<&LabSpec>) -> Result<Vec<ProcessRecord>, LabError> {
    let stats = all_stats()?;
    let mut found: BTreeSet<i32> = BTreeSet::new();
    found.extend(
        recorded(folder)
            .into_iter()
            .filter(ProcessRecord::is_alive)
            .map(|record| record.pid),
    );
    let namespaces = Namespaces::read(folder);
    // Only while the keeper pins them: numbers of namespaces that are gone are given out anew.
    let networks: HashSet<(u64, u64)> = namespaces
        .iter()
        .flat_map(Namespaces::paths)
        .filter_map(|p| identity(&p))
        .collect();
    let marker = spec.map(|spec| format!("MOSIX_LAB_ID={}", spec.id).into_bytes());
    for &pid in stats.keys() {
        let network = identity(&format!("/proc/{pid}/ns/net")).is_some_and(|id| networks.contains(&id));
        if network || marker.as_deref().is_some_and(|marker| has_variable(pid, marker)) {
            found.insert(pid);
        }
    }
    if let Some(spec) = spec {
        for node in &spec.nodes {
            let files = folder.node(&node.name);
            for sockets in [files.run.join("jobs"), files.state.join("agents")] {
                found.extend(listeners(&sockets));
            }
        }
    }
    add_descendants(&stats, &mut found);
    for pid in spared(&stats, namespaces.as_ref()) {
        found.remove(&pid);
    }
    // The start time of the snapshot, not of now: a pid that was given out anew in between does not match it.
    let boot = super::record::boot_id();
    let record = |pid: i32| {
        Some(ProcessRecord {
            pid,
            start: stats.get(&pid)?.start,
            boot: boot.clone(),
        })
    };
    Ok(found
        .into_iter()
        .filter_map(record)
        .filter(ProcessRecord::is_alive)
        .collect())
}

/// What the processes of the lab wrote about themselves, the keeper's left out.
fn recorded(folder: &LabFolder) -> Vec<ProcessRecord> {
    let Ok(entries) = fs::read_dir(folder.pids()) else {
        return Vec::new();
    };
    let names = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name() != "keeper");
    names.filter_map(|entry| ProcessRecord::read(&entry.path())).collect()
}

fn all_stats() -> Result<BTreeMap<i32, Stat>, LabError> {
    let entries = fs::read_dir("/proc").map_err(LabError::io("cannot read /proc"))?;
    let pids = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    Ok(pids
        .filter_map(|pid| Some((pid, Stat::read(pid).ok()?)))
        .filter(|(_, stat)| !stat.is_dead())
        .collect())
}

fn identity(path: &str) -> Option<(u64, u64)> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

fn has_variable(pid: i32, wanted: &[u8]) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|text| text.split(|&b| b == 0).any(|variable| variable == wanted))
}

/// Who listens on the sockets of this folder: the kernel remembers the process that called listen(2).
fn listeners(folder: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let sockets = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|p| p.extension().is_some_and(|e| e == "sock"));
    // A refused connection is the socket file of a process that is gone.
    let streams = sockets.filter_map(|path| UnixStream::connect(path).ok());
    streams
        .filter_map(|stream| {
            Some(
                nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)
                    .ok()?
                    .pid(),
            )
        })
        .collect()
}

fn add_descendants(stats: &BTreeMap<i32, Stat>, found: &mut BTreeSet<i32>) {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (&pid, stat) in stats {
        children.entry(stat.parent).or_default().push(pid);
    }
    let mut open: Vec<i32> = found.iter().copied().collect();
    while let Some(pid) = open.pop() {
        for &child in children.get(&pid).into_iter().flatten() {
            if found.insert(child) {
                open.push(child);
            }
        }
    }
}

/// The caller with its ancestors, who may well stand in the lab, and the keeper, who goes last.
fn spared(stats: &BTreeMap<i32, Stat>, namespaces: Option<&Namespaces>) -> Vec<i32> {
    let mut all: Vec<i32> = namespaces.iter().map(|namespaces| namespaces.keeper.pid).collect();
    let mut pid = nix::unistd::getpid().as_raw();
    while pid > 0 && !all[namespaces.iter().len()..].contains(&pid) {
        all.push(pid);
        pid = stats.get(&pid).map_or(0, |stat| stat.parent);
    }
    all
}
