//! Where a lab keeps what it knows: `<runtime dir>/lab/<name>`.
//!
//! ```text
//! lab.json            what was asked for (LabSpec)
//! pids/keeper pids/n1 who runs (ProcessRecord), written by each process itself before it becomes what it is
//! keeper.json         which descriptors of the keeper are which namespace
//! keeper.log
//! bin/mosix           link to the mosix that made the lab; first in PATH of everything run in it
//! ca/                 the lab's certificate authority
//! n1/config.toml n1/state/ n1/run/ n1/mosixd.log
//! v1/                 the same for an extra node: its key bundle, to be copied there
//! ```

use super::{LabError, spec};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The folder of one lab.
#[derive(Clone, Debug)]
pub struct LabFolder {
    root: PathBuf,
    runtime: PathBuf,
    name: String,
}

/// The files of one node.
#[derive(Clone, Debug)]
pub struct NodeFiles {
    /// Everything of the node.
    pub root: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
    /// MOSIX_STATE_DIR.
    pub state: PathBuf,
    /// MOSIX_RUNTIME_DIR.
    pub run: PathBuf,
    /// What its mosixd writes to stdout and stderr.
    pub log: PathBuf,
}

impl LabFolder {
    /// Names the folder of a lab; nothing is created.
    pub fn of(name: &str) -> Result<Self, LabError> {
        spec::check_name(name)?;
        let runtime = runtime_dir()?;
        Ok(Self {
            root: runtime.join("lab").join(name),
            runtime,
            name: name.to_owned(),
        })
    }

    /// Creates the folder and those above it, for the user alone.
    pub fn create(&self) -> Result<(), LabError> {
        // The longest socket of a node: n99/state/agents/<16 digits>.sock; sun_path has 108 bytes with its final NUL.
        if self.root.as_os_str().len() + "/n99/state/agents/0123456789abcdef.sock".len() > 107 {
            return Err(LabError::LongPath {
                path: self.root.clone(),
            });
        }
        for path in [self.root.clone(), self.pids(), self.bin(), self.ca()] {
            private_dir(&path)?;
        }
        own_dir(&self.root)
    }

    /// Takes the lock that keeps `up` and `down` apart; waits for it. It is on the folder of all labs, so that nothing of a
    /// lab that is gone remains.
    pub fn lock(&self) -> Result<File, LabError> {
        let all = self.root.parent().unwrap_or(&self.root);
        let what = || format!("cannot lock {}", all.display());
        loop {
            private_dir(all)?;
            own_dir(all)?;
            let file = File::open(all).map_err(LabError::io(what()))?;
            file.lock().map_err(LabError::io(what()))?;
            // The last lab's `down` removes the folder: a lock on the removed one keeps nobody out.
            let locked = file.metadata().map_err(LabError::io(what()))?;
            if fs::metadata(all).is_ok_and(|now| (now.dev(), now.ino()) == (locked.dev(), locked.ino())) {
                return Ok(file);
            }
        }
    }

    /// Removes the folder of all labs, and the runtime dir above it, when nothing else is in them. The caller holds the lock.
    pub fn remove_empty_parents(&self) {
        // Fails when another lab or a job is there, which is as it should be.
        let _ = self.root.ancestors().skip(1).take(2).try_for_each(fs::remove_dir);
    }

    /// Removes the folder with all in it; gone is fine.
    pub fn remove(&self) -> Result<(), LabError> {
        // A process that was just ended may have had a file half created; a second look is enough.
        for _ in 0..3 {
            match fs::remove_dir_all(&self.root) {
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                result => return result.map_err(LabError::io(format!("cannot remove {}", self.root.display()))),
            }
        }
        fs::remove_dir_all(&self.root).map_err(LabError::io(format!("cannot remove {}", self.root.display())))
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The runtime dir that the folder lies in, absolute: for processes of the lab, whose own one may be a node's.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// Whether anything is there.
    pub fn exists(&self) -> bool {
        self.root.exists()
    }

    /// Writes what the lab consists of.
    pub fn write_spec(&self, spec: &spec::LabSpec) -> Result<(), LabError> {
        write_json(&self.root.join("lab.json"), spec)
    }

    /// Reads what the lab consists of.
    pub fn read_spec(&self) -> Result<spec::LabSpec, LabError> {
        let path = self.root.join("lab.json");
        let bytes = fs::read(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => LabError::NoLab {
                name: self.name.clone(),
                folder: self.root.parent().unwrap_or(&self.root).to_owned(),
            },
            _ => LabError::io(format!("cannot read {}", path.display()))(e),
        })?;
        serde_json::from_slice(&bytes).map_err(|e| LabError::io(format!("cannot read {}", path.display()))(e.into()))
    }

    /// Where processes record themselves.
    pub fn pids(&self) -> PathBuf {
        self.root.join("pids")
    }

    /// The record of `keeper` or of a node's mosixd.
    pub fn pid_file(&self, who: &str) -> PathBuf {
        self.pids().join(who)
    }

    /// First folder in PATH.
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// The certificate authority.
    pub fn ca(&self) -> PathBuf {
        self.root.join("ca")
    }

    /// Which descriptor of the keeper is which namespace.
    pub fn namespaces(&self) -> PathBuf {
        self.root.join("keeper.json")
    }

    /// What the keeper had to say.
    pub fn keeper_log(&self) -> PathBuf {
        self.root.join("keeper.log")
    }

    /// The files of a node.
    pub fn node(&self, name: &str) -> NodeFiles {
        let root = self.root.join(name);
        NodeFiles {
            config: root.join("config.toml"),
            state: root.join("state"),
            run: root.join("run"),
            log: root.join("mosixd.log"),
            root,
        }
    }
}

/// The names of all labs that have a folder here.
pub fn labs() -> Result<Vec<String>, LabError> {
    let folder = runtime_dir()?.join("lab");
    let mut names: Vec<String> = match fs::read_dir(&folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(LabError::io(format!("cannot read {}", folder.display()))(e)),
        Ok(entries) => entries
            .filter_map(Result::ok)
            .filter(|entry| entry.path().join("lab.json").exists())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect(),
    };
    names.sort();
    Ok(names)
}

/// Writes a value so that readers see all of it or nothing.
pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), LabError> {
    let what = format!("cannot write {}", path.display());
    let text = serde_json::to_vec_pretty(value).map_err(|e| LabError::io(what.clone())(e.into()))?;
    let temporary = path.with_extension("new");
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(LabError::io(what))
}

/// Creates a folder and those above it with mode 0700.
pub(super) fn private_dir(path: &Path) -> Result<(), LabError> {
    let what = format!("cannot create {}", path.display());
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(LabError::io(what))
}

/// Refuses a folder that another user could change under us.
fn own_dir(path: &Path) -> Result<(), LabError> {
    let meta = fs::symlink_metadata(path).map_err(LabError::io(format!("cannot look at {}", path.display())))?;
    let bad = |what| {
        Err(LabError::BadFolder {
            path: path.to_owned(),
            what,
        })
    };
    if !meta.is_dir() {
        return bad("is not a folder");
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return bad("belongs to another user");
    }
    if meta.mode() & 0o022 != 0 {
        return bad("can be written by others");
    }
    Ok(())
}

/// $MOSIX_RUNTIME_DIR, else $XDG_RUNTIME_DIR/mosix, else /run/mosix (root), else ~/.local/state/mosix/run.
fn runtime_dir() -> Result<PathBuf, LabError> {
    let var = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let dir = if let Some(dir) = var("MOSIX_RUNTIME_DIR") {
        dir
    } else if let Some(dir) = var("XDG_RUNTIME_DIR") {
        dir.join("mosix")
    } else if nix::unistd::geteuid().is_root() {
        PathBuf::from("/run/mosix")
    } else {
        let home =
            var("HOME").ok_or_else(|| LabError::io("no place for the lab")(io::Error::other("HOME is not set")))?;
        home.join(".local/state/mosix/run")
    };
    std::path::absolute(&dir).map_err(LabError::io(format!("cannot use {}", dir.display())))
}
