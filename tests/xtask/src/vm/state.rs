//! What is known about the guests: one folder per guest under `target/vm/run`, written before anything is started.
//!
//! A guest's process is known by pid *and* start time, so that `vm down` ends what `vm up` started and nothing else,
//! whatever crashed in between.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::net::{Joined, Place};

/// Record of one guest, `guest.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Guest {
    /// `v1`, …
    pub name: String,
    /// Kernel as the manifest calls it.
    pub kernel: String,
    /// `uname -r`.
    pub release: String,
    /// QEMU's CPU model.
    pub cpu: String,
    /// MiB.
    pub memory: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Address on the nodes' network.
    pub address: String,
    /// Where QEMU runs.
    pub place: Place,
    /// How its card is joined to the nodes' network.
    pub joined: Joined,
    /// Variables that programs in the guest find in their environment: where its mosixd has its files.
    pub env: Vec<(String, String)>,
    /// QEMU, once it runs.
    pub process: Option<Process>,
}

/// A process that cannot be mistaken for another that got its pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Pid in this pid namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub started: u64,
}

impl Process {
    /// The process that now has `pid`; none if nobody has, or only a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; the fields after the last ")" start with the state, field 3.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        if matches!(fields.next(), Some("Z" | "X")) {
            return None;
        }
        Some(Self {
            pid,
            started: fields.nth(18)?.parse().ok()?,
        })
    }

    /// Whether it still runs.
    pub fn runs(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Ends it: politely, and after five seconds for good.
    pub fn end(self) -> Result<()> {
        for (signal, patience) in [(Signal::SIGTERM, 5), (Signal::SIGKILL, 5)] {
            if !self.runs() {
                return Ok(());
            }
            match kill(Pid::from_raw(self.pid), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno).with_context(|| format!("cannot end QEMU, pid {}", self.pid)),
            }
            let deadline = Instant::now() + Duration::from_secs(patience);
            while self.runs() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(20));
            }
        }
        if self.runs() {
            bail!("QEMU, pid {}, does not end", self.pid);
        }
        Ok(())
    }
}

/// All guests of this workspace.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Opens the store under `cache`.
    pub fn open(cache: &Path) -> Result<Self> {
        let folder = cache.join("run");
        if !folder.is_dir() {
            // Private: whoever can connect to a guest's sockets is root in it.
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        Ok(Self { folder })
    }

    /// Keeps other `vm up` and `vm down` out until the value is dropped.
    pub fn lock(&self) -> Result<File> {
        let path = self.folder.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    /// Folder of guest `name`, which need not exist.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The guests on record, by name; running or not.
    pub fn guests(&self) -> Result<Vec<Guest>> {
        let mut guests = Vec::new();
        for entry in fs::read_dir(&self.folder).with_context(|| format!("cannot list {}", self.folder.display()))? {
            let record = entry?.path().join("guest.json");
            if record.is_file() {
                let text = fs::read_to_string(&record).with_context(|| format!("cannot read {}", record.display()))?;
                guests.push(serde_json::from_str::<Guest>(&text).with_context(|| record.display().to_string())?);
            }
        }
        guests.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(guests)
    }

    /// The running guest `name`.
    pub fn running(&self, name: &str) -> Result<Guest> {
        let guests = self.guests()?;
        match guests.iter().find(|guest| guest.name == name) {
            Some(guest) if guest.runs() => Ok(guest.clone()),
            Some(_) => bail!("guest {name} has ended; `cargo xtask vm up --name {name}` starts it again"),
            None if guests.is_empty() => bail!("no guest {name}: none is up; `cargo xtask vm up` starts one"),
            None => {
                let names: Vec<_> = guests.iter().map(|guest| guest.name.as_str()).collect();
                bail!("no guest {name}; there are {}", names.join(", "))
            }
        }
    }

    /// Writes the record of a guest.
    pub fn save(&self, guest: &Guest) -> Result<()> {
        let folder = self.folder(&guest.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let beside = folder.join("guest.json.new");
        fs::write(&beside, serde_json::to_vec_pretty(guest)?)
            .with_context(|| format!("cannot write {}", beside.display()))?;
        fs::rename(&beside, folder.join("guest.json")).with_context(|| format!("cannot write {}", folder.display()))
    }

    /// Ends a guest and removes what it had: process, tap, address, folder. Harmless if parts are gone already.
    pub fn remove(&self, guest: &Guest) -> Result<()> {
        if let Some(process) = guest.process.or_else(|| self.started_by(&guest.name)) {
            process.end()?;
        }
        guest.joined.leave(&guest.place);
        let folder = self.folder(&guest.name);
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
    }

    /// QEMU of a guest whose record was not finished: its pid file, if that process was started in the guest's folder.
    fn started_by(&self, name: &str) -> Option<Process> {
        let folder = self.folder(name);
        let pid = fs::read_to_string(folder.join("pid")).ok()?.trim().parse().ok()?;
        let process = Process::of(pid)?;
        let same = fs::read_link(format!("/proc/{pid}/cwd")).ok()? == fs::canonicalize(&folder).ok()?;
        same.then_some(process)
    }
}

impl Guest {
    /// Whether its QEMU runs.
    pub fn runs(&self) -> bool {
        self.process.is_some_and(Process::runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        assert!(process.runs());
        let other = Process {
            started: process.started + 1,
            ..process
        };
        other.end().unwrap();
        assert!(process.runs(), "another process of that pid was meant");
        process.end().unwrap();
        assert!(!process.runs());
        child.wait().unwrap();
    }
}
