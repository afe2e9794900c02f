//! A cgroup per agent, where the machine lets us have one: what ends everything of a job at once (`cgroup.kill`).
//!
//! Under systemd the daemon's unit is delegated (`Delegate=yes`, `KillMode=process`), so the groups lie below the unit's own
//! and a stop of the unit does not end them. Without permission, or with cgroup v1, there is none, and the agents' own
//! arrangements (pid namespace, lease) must do.

use mosix_wire::ids::JobId;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The groups of a daemon's agents.
#[derive(Clone, Debug)]
pub struct Groups {
    /// The folder of the daemon's own group.
    folder: PathBuf,
    /// Tells the groups of this daemon from those of another one on the machine.
    prefix: String,
}

impl Groups {
    /// Finds the daemon's own group; `None` where there is nothing to be had, with a line in the log.
    pub fn find(state_dir: &Path) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let folder = match (own_group(&own), mount_point(&mounts)) {
            (Some(own), Some(root)) => root.join(own.trim_start_matches('/')),
            _ => PathBuf::new(),
        };
        if !folder.join("cgroup.procs").exists() {
            tracing::debug!("no cgroup v2: agents get no groups");
            return None;
        }
        // FNV-1a: stable over versions, and nobody attacks it here.
        let hash = state_dir
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
        Some(Self {
            folder,
            prefix: format!("mosix-{hash:016x}-"),
        })
    }

    fn path(&self, job: JobId) -> PathBuf {
        self.folder.join(format!("{}{job}", self.prefix))
    }

    /// Moves a process, and with it all that it will start, into the job's group.
    pub fn enter(&self, job: JobId, pid: u32) -> io::Result<()> {
        let path = self.path(job);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        fs::write(path.join("cgroup.procs"), pid.to_string()).inspect_err(|_| {
            let _ = fs::remove_dir(&path);
        })
    }

    /// Bounds the memory of the job's group, where this group hands the controller on. Without it the agent's own limits must do.
    pub fn limit(&self, job: JobId, bytes: u64) {
        let _ = fs::write(self.folder.join("cgroup.subtree_control"), "+memory");
        let path = self.path(job);
        match fs::write(path.join("memory.max"), bytes.to_string()) {
            // Else the guest would go on in the owner's swap.
            Ok(()) => drop(fs::write(path.join("memory.swap.max"), "0")),
            Err(error) => tracing::debug!(%job, %error, "no memory limit by cgroup"),
        }
    }

    /// Kills whatever is in the job's group and removes it. Blocks for as long as the kernel needs, at most a second.
    pub fn end(&self, job: JobId) {
        remove(&self.path(job));
    }

    /// Removes groups of jobs that have no agent any more.
    pub fn sweep(&self, living: &[JobId]) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let job = name
                .to_str()
                .and_then(|name| name.strip_prefix(&self.prefix))
                .and_then(|job| job.parse().ok());
            if let Some(job) = job
                && !living.contains(&job)
            {
                tracing::info!(%job, "removing the group of an agent that is gone");
                remove(&entry.path());
            }
        }
    }
}

fn own_group(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Where cgroup v2 is mounted: `36 25 0:30 / /sys/fs/cgroup rw … - cgroup2 cgroup2 rw`.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        match (source.starts_with("cgroup2 "), fields.next()?, fields.next()?) {
            (true, "/", path) => Some(PathBuf::from(path)),
            _ => None,
        }
    })
}

fn remove(path: &Path) {
    if !path.exists() {
        return;
    }
    // Since Linux 5.14; an empty group can be removed without.
    let _ = fs::write(path.join("cgroup.kill"), "1");
    for _ in 0..50 {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(Duration::from_millis(20)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot remove the group of an agent");
                return;
            }
            _ => return,
        }
    }
    tracing::warn!(path = %path.display(), "processes of an ended agent do not end");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_among_v1_lines() {
        assert_eq!(
            own_group("5:cpu:/x\n0::/system.slice/mosixd.service\n"),
            Some("/system.slice/mosixd.service")
        );
        assert_eq!(own_group("5:cpu:/x\n"), None);
        let mounts = "25 1 0:22 / /sys rw - sysfs sysfs rw\n36 25 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/cgroup".into()));
        assert_eq!(mount_point("25 1 0:22 / /sys rw - sysfs sysfs rw\n"), None);
    }
}
