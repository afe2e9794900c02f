//! Running a program as on a node of the lab.
//!
//! The calling process moves itself into the node's namespaces and then *becomes* the program: the same pid, terminal,
//! stdin and process group, so that exit status, signals and job control need no relaying.

use super::folder::LabFolder;
use super::keeper::Namespaces;
use super::spec::SWITCH;
use super::{LabError, LabSpec};
use caps::{CapSet, Capability};
use nix::sched::{CloneFlags, setns};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Moves the calling process, which must have one thread, to a node (or to `switch`) of the lab.
pub fn enter(folder: &LabFolder, place: &str) -> Result<LabSpec, LabError> {
    let spec = folder.read_spec()?;
    if place != SWITCH {
        spec.node(place)?;
    }
    let all = Namespaces::read(folder).ok_or_else(|| LabError::Crashed(spec.name.clone()))?;
    let path = if place == SWITCH {
        Some(all.switch_path())
    } else {
        all.node_path(place)
    };
    let path = path.ok_or_else(|| LabError::Crashed(spec.name.clone()))?;
    let network = open(&path)?;
    if all.user && !same(&all.user_path(), "/proc/self/ns/user")? {
        join(&open(&all.user_path())?, CloneFlags::CLONE_NEWUSER, place)?;
    }
    join(&network, CloneFlags::CLONE_NEWNET, place)?;
    if place == SWITCH && all.user {
        // On the switch one plugs cables; on a node one is an ordinary user.
        pass_on_net_admin()?;
    }
    Ok(spec)
}

/// Becomes `program`, run as on `place`. Returns only when that failed: the caller says why and ends with 126 or 127.
pub fn become_program(
    folder: &LabFolder,
    place: &str,
    program: &OsStr,
    args: &[OsString],
) -> Result<std::io::Error, LabError> {
    let spec = enter(folder, place)?;
    Ok(Command::new(program)
        .args(args)
        .envs(environment(folder, &spec, place))
        .exec())
}

/// What programs on a node find in their environment.
pub fn environment(folder: &LabFolder, spec: &LabSpec, place: &str) -> Vec<(&'static str, OsString)> {
    let mut path = folder.bin().into_os_string();
    if let Some(old) = std::env::var_os("PATH") {
        path.push(":");
        path.push(old);
    }
    let mut all: Vec<(&str, OsString)> = vec![
        ("PATH", path),
        ("MOSIX_LAB", spec.name.clone().into()),
        ("MOSIX_LAB_ID", spec.id.clone().into()),
        ("MOSIX_LAB_NODE", place.into()),
    ];
    if place != SWITCH {
        let files = folder.node(place);
        all.push(("MOSIX_NODE", place.into()));
        all.push(("MOSIX_STATE_DIR", files.state.into()));
        all.push(("MOSIX_RUNTIME_DIR", files.run.into()));
        all.push(("MOSIX_CONFIG", files.config.into()));
    }
    all
}

/// Lets programs that this process starts change its network, also when it is not root.
pub(super) fn pass_on_net_admin() -> Result<(), LabError> {
    let fail =
        |e: caps::errors::CapsError| LabError::io("cannot pass on CAP_NET_ADMIN")(std::io::Error::other(e.to_string()));
    caps::raise(None, CapSet::Inheritable, Capability::CAP_NET_ADMIN).map_err(fail)?;
    caps::raise(None, CapSet::Ambient, Capability::CAP_NET_ADMIN).map_err(fail)
}

fn open(path: &str) -> Result<File, LabError> {
    File::open(path).map_err(LabError::io(format!("cannot open the namespace {path}")))
}

fn join(namespace: &File, kind: CloneFlags, place: &str) -> Result<(), LabError> {
    setns(namespace, kind).map_err(|e| LabError::io(format!("cannot enter {place}"))(e.into()))
}

fn same(a: &str, b: &str) -> Result<bool, LabError> {
    let id = |path: &str| -> Result<(u64, u64), LabError> {
        let meta = std::fs::metadata(path).map_err(LabError::io(format!("cannot look at {path}")))?;
        Ok((meta.dev(), meta.ino()))
    };
    Ok(id(a)? == id(b)?)
}
