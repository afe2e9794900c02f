//! The process that makes a lab's namespaces and holds them.
//!
//! `mosix lab up` starts `mosix lab keep`, which becomes [`run`]. It records itself first, makes the namespaces, tells the
//! starter by one line on stdout, gives up every privilege, and waits. It stands in the switch's namespace and has one
//! descriptor open for each: when it ends, whatever ended it, the namespaces go with their last process.

use super::folder::{LabFolder, write_json};
use super::record::ProcessRecord;
use super::{LabError, net};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::process::Command;

/// First word of the line that says that all is set up.
pub(super) const READY: &str = "READY";

/// First word of the line that says what failed.
pub(super) const FAILED: &str = "FAILED";

/// `keeper.json`: which descriptor of the keeper is which namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Namespaces {
    /// The keeper.
    pub keeper: ProcessRecord,
    /// Whether they belong to a user namespace of the keeper.
    pub user: bool,
    /// The switch's.
    pub switch: i32,
    /// Each node's.
    pub nodes: BTreeMap<String, i32>,
}

impl Namespaces {
    /// Reads it; `None` when the keeper never got so far or has ended.
    pub fn read(folder: &LabFolder) -> Option<Self> {
        let all: Self = serde_json::from_slice(&fs::read(folder.namespaces()).ok()?).ok()?;
        all.keeper.is_alive().then_some(all)
    }

    /// Path of the user namespace.
    pub fn user_path(&self) -> String {
        format!("/proc/{}/ns/user", self.keeper.pid)
    }

    /// Path of the switch's namespace.
    pub fn switch_path(&self) -> String {
        self.path(self.switch)
    }

    /// Path of a node's namespace.
    pub fn node_path(&self, node: &str) -> Option<String> {
        self.nodes.get(node).map(|fd| self.path(*fd))
    }

    /// Paths of all network namespaces.
    pub fn paths(&self) -> impl Iterator<Item = String> {
        std::iter::once(&self.switch)
            .chain(self.nodes.values())
            .map(|fd| self.path(*fd))
    }

    fn path(&self, fd: i32) -> String {
        format!("/proc/{}/fd/{fd}", self.keeper.pid)
    }
}

/// Makes the namespaces of the lab and holds them; the body of `mosix lab keep`. With `owner`, the lab goes down when that
/// process ends. Must be called in a process with one thread. Reports to stdout, returns only on failure.
pub fn run(folder: &LabFolder, owner: Option<i32>) -> Result<(), LabError> {
    // A ^C for the starter's terminal is none for the lab.
    let _ = nix::unistd::setsid();
    let own = ProcessRecord::own().map_err(LabError::io("cannot look at the keeper itself"))?;
    let pid_file = folder.pid_file("keeper");
    own.write(&pid_file)
        .map_err(LabError::io(format!("cannot write {}", pid_file.display())))?;
    let owner = owner.map(open_owner).transpose()?;
    let kept = match set_up(folder, own) {
        Ok(kept) => kept,
        Err(error) => {
            println!("{FAILED} {error}");
            return Err(error);
        }
    };
    println!("{READY}");
    close_stdout();
    // From here on it only keeps; whoever talks it into anything shall gain nothing.
    drop_capabilities();
    match owner {
        Some(owner) => {
            wait_for(&owner)?;
            down(folder)
        }
        None => loop {
            std::thread::park();
            // Spurious wake-ups are allowed; the namespaces stay referenced until the process ends.
            std::hint::black_box(&kept);
        },
    }
}

fn open_owner(pid: i32) -> Result<std::os::fd::OwnedFd, LabError> {
    let what = format!("cannot watch process {pid}");
    let raw = Pid::from_raw(pid).ok_or_else(|| LabError::io(what.clone())(std::io::ErrorKind::InvalidInput.into()))?;
    pidfd_open(raw, PidfdFlags::empty()).map_err(|e| LabError::io(what)(e.into()))
}

fn set_up(folder: &LabFolder, own: ProcessRecord) -> Result<Vec<File>, LabError> {
    let spec = folder.read_spec()?;
    let user = enter_switch()?;
    net::switch()?;
    let switch = this_namespace()?;
    // `ip` gets the switch by inheritance: with fewer rights than the keeper it may not look into the keeper's /proc folder.
    inherit(&switch, true)?;
    let switch_path = format!("/proc/self/fd/{}", switch.as_raw_fd());
    let mut kept = Vec::new();
    let mut nodes = BTreeMap::new();
    for (i, node) in spec.nodes.iter().enumerate() {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| LabError::Namespace {
            kind: "network",
            source: e.into(),
        })?;
        net::node(node, i + 1, &switch_path, spec.rate)?;
        let namespace = this_namespace()?;
        nodes.insert(node.name.clone(), namespace.as_raw_fd());
        kept.push(namespace);
    }
    setns(&switch, CloneFlags::CLONE_NEWNET).map_err(|e| LabError::io("cannot go back to the switch")(e.into()))?;
    inherit(&switch, false)?;
    net::plug(spec.nodes.len(), spec.rate)?;
    let namespaces = Namespaces {
        keeper: own,
        user,
        switch: switch.as_raw_fd(),
        nodes,
    };
    kept.push(switch);
    write_json(&folder.namespaces(), &namespaces)?;
    Ok(kept)
}

/// Moves this process into a new network namespace, and before that into a new user namespace where it must. Returns
/// whether it had to.
fn enter_switch() -> Result<bool, LabError> {
    if unshare(CloneFlags::CLONE_NEWNET).is_ok() {
        return Ok(false);
    }
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| LabError::Namespace {
        kind: "user",
        source: e.into(),
    })?;
    // The user keeps the own number inside: programs run there are as unprivileged as outside.
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("gid_map", format!("{gid} {gid} 1")),
        ("uid_map", format!("{uid} {uid} 1")),
    ] {
        let file = format!("/proc/self/{file}");
        fs::write(&file, text).map_err(LabError::io(format!("cannot write {file}")))?;
    }
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| LabError::Namespace {
        kind: "network",
        source: e.into(),
    })?;
    // `ip` and `tc` are programs of an ordinary user and get their right by the ambient set.
    super::enter::pass_on_net_admin()?;
    Ok(true)
}

fn this_namespace() -> Result<File, LabError> {
    let path = "/proc/thread-self/ns/net";
    File::open(path).map_err(LabError::io(format!("cannot open {path}")))
}

/// Says whether programs that this process starts inherit the descriptor.
fn inherit(file: &File, whether: bool) -> Result<(), LabError> {
    let flags = if whether { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(file, FcntlArg::F_SETFD(flags)).map_err(|e| LabError::io("cannot share the switch")(e.into()))?;
    Ok(())
}

/// The starter waits for the end of the pipe; nothing may keep it open.
fn close_stdout() {
    let _ = std::io::stdout().flush();
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null);
    }
}

fn drop_capabilities() {
    use caps::{CapSet, clear};
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        // A kept capability is a missed precaution, no fault.
        let _ = clear(None, set);
    }
}

fn wait_for(owner: &std::os::fd::OwnedFd) -> Result<(), LabError> {
    let far = std::time::Duration::from_secs(3600);
    loop {
        let deadline = std::time::Instant::now() + far;
        if super::record::wait_end(owner, deadline).map_err(LabError::io("cannot watch the lab's owner"))? {
            return Ok(());
        }
    }
}

/// Ends the lab by a process of its own, which ends this one as its last step.
fn down(folder: &LabFolder) -> Result<(), LabError> {
    // Not by its name: the file may have been replaced since (a rebuild, an upgrade).
    let status = Command::new("/proc/self/exe")
        .args(["lab", "down", "--name", folder.name()])
        .status();
    let status = status.map_err(LabError::io("cannot run `mosix lab down`"))?;
    Err(LabError::Keeper(format!("`mosix lab down` ended with {status}")))
}
