//! What the home gate and the layout ask about the job's other processes.

use super::hosts::Hosts;
use super::walk::Walker;
use crate::process::stat::Stat;
use crate::supervisor::processes;
use crate::syscall::policy::JobView;
use mosix_wire::ids::Pid;
use mosix_wire::link::ProcFile;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{OnceLock, Weak};

/// The job as the gate sees it.
#[derive(Debug)]
pub struct View {
    supervisor: i32,
    guarded: Vec<i32>,
    forbidden: Vec<Vec<u8>>,
    walker: Walker,
    hosts: OnceLock<Weak<Hosts>>,
}

impl View {
    /// The job of this supervisor.
    pub fn new(supervisor: i32) -> Self {
        let folders = [
            crate::node::paths::state_dir().ok(),
            crate::supervisor::rundir::runtime_dir().ok(),
            std::env::var_os("SSH_AUTH_SOCK").map(Into::into),
        ];
        let mut forbidden: Vec<Vec<u8>> = folders
            .into_iter()
            .flatten()
            .map(|path| path.into_os_string().into_encoded_bytes())
            .collect();
        forbidden.extend([b"/run/docker.sock".to_vec(), b"/var/run/docker.sock".to_vec()]);
        let uid = nix::unistd::getuid();
        forbidden.push(format!("/run/user/{uid}/bus").into_bytes());
        Self::with(supervisor, forbidden)
    }

    /// The job of this supervisor, with these forbidden paths.
    pub fn with(supervisor: i32, mut forbidden: Vec<Vec<u8>>) -> Self {
        // Also by their names without links: what a walk ends at has no other.
        for path in forbidden.clone() {
            if let Ok(true_name) = std::fs::canonicalize(OsStr::from_bytes(&path)) {
                forbidden.push(true_name.into_os_string().into_encoded_bytes());
            }
        }
        forbidden.sort_unstable();
        forbidden.dedup();
        let launcher = Stat::read(supervisor)
            .map(|stat| stat.parent)
            .ok()
            .filter(|pid| *pid > 1);
        Self {
            supervisor,
            guarded: std::iter::once(supervisor).chain(launcher).collect(),
            walker: Walker::new(&forbidden),
            hosts: OnceLock::new(),
            forbidden,
        }
    }
}

impl View {
    /// Says where bodies are to be asked for.
    pub fn ask(&self, hosts: Weak<Hosts>) {
        // Once for each job.
        let _ = self.hosts.set(hosts);
    }
}

impl JobView for View {
    fn body_text(&self, pid: i32, thread: Option<i32>, file: ProcFile) -> Option<Option<Vec<u8>>> {
        self.hosts.get()?.upgrade()?.body_text(pid, thread, file)
    }

    fn contains(&self, pid: i32) -> bool {
        processes::is_descendant(pid, self.supervisor)
    }

    fn owns_group(&self, caller: Pid, pgid: i32) -> bool {
        let group = if pgid == 0 {
            Stat::read(caller.0).map_or(-1, |stat| stat.group)
        } else {
            pgid
        };
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return false;
        };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let launcher = Stat::read(self.supervisor).map_or(-1, |stat| stat.parent);
        // The launcher stands for the program: a signal to the group reaches it natively too.
        pids.filter_map(|pid| Stat::read(pid).ok())
            .filter(|stat| stat.group == group)
            .all(|stat| stat.pid == launcher || processes::is_descendant(stat.pid, self.supervisor))
    }

    fn forbidden(&self) -> &[Vec<u8>] {
        &self.forbidden
    }

    fn guarded(&self) -> &[i32] {
        &self.guarded
    }

    fn leads(&self, thread: i32, dirfd: i32, path: &[u8]) -> Option<Vec<u8>> {
        self.walker.walk(thread, dirfd, path)
    }

    fn open_name(&self, pid: i32, fd: i32) -> Option<Vec<u8>> {
        let name = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
        Some(name.into_os_string().into_encoded_bytes())
    }
}
