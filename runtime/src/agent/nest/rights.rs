//! What the agent may still do once its place is made.
//!
//! A fresh user namespace gives full capabilities over it, which is most of the kernel's attack surface. The agent keeps four: to
//! trace and read its bodies, to give them their pids, to enter the empty mount namespace with a new body, and to make time namespaces.
//! Bodies get one of them through execve, as an ambient capability, and drop it by the script that builds them.

use super::NestError;
use caps::{CapSet, Capability, CapsHashSet};

/// Capabilities of the agent, over its own user namespace.
const KEPT: [Capability; 4] = [
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_CHECKPOINT_RESTORE,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_CHROOT,
];

/// What the stub in a blank process has until its script drops it: threads under their home's numbers.
const HANDED_ON: Capability = Capability::CAP_CHECKPOINT_RESTORE;

/// Reduces the calling thread, and every thread and process it will start. Irreversible.
pub(super) fn reduce() -> Result<(), NestError> {
    let failed =
        |what: &'static str| move |error: caps::errors::CapsError| NestError::Rights(format!("{what}: {error}"));
    let kept: CapsHashSet = KEPT.into_iter().collect();
    let handed: CapsHashSet = [HANDED_ON].into_iter().collect();
    caps::set(None, CapSet::Inheritable, &handed).map_err(failed("inheritable set"))?;
    caps::raise(None, CapSet::Ambient, HANDED_ON).map_err(failed("ambient set"))?;
    // The bounding set binds files with capabilities alone: nothing that runs from here on gains by any of them.
    caps::clear(None, CapSet::Bounding).map_err(failed("bounding set"))?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed("effective set"))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed("permitted set"))?;
    nix::sys::prctl::set_no_new_privs().map_err(|e| NestError::Rights(format!("no_new_privs: {e}")))?;
    nix::sys::prctl::set_dumpable(false).map_err(|e| NestError::Rights(format!("dumpable: {e}")))
}
