//! Why a lab operation failed.

use std::io;
use std::path::PathBuf;

/// Why a lab operation failed; each says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The name does not fit a folder and a column.
    #[error("lab name {0:?} is not usable: 1 to 32 of a-z, 0-9, '-' and '_'")]
    BadName(String),
    /// A bad `--nodes`.
    #[error("{0} nodes: a lab has 1 to {max} nodes", max = super::spec::MAX_NODES)]
    BadCount(u32),
    /// A bad `--rate`.
    #[error("rate {0:?} is not understood: a number and kbit, mbit or gbit, for example 1gbit")]
    BadRate(String),
    /// A bad `--extra-node`.
    #[error("extra node {text:?} is not usable: {reason}")]
    BadExtra {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No such lab.
    #[error("there is no lab {name:?} in {folder}: `mosix lab up --name {name}` makes one")]
    NoLab {
        /// Its name.
        name: String,
        /// Where labs are looked for.
        folder: PathBuf,
    },
    /// The lab's keeper is gone, and its namespaces with it.
    #[error(
        "lab {0:?} has crashed (its keeper is gone): `mosix lab up` starts it anew, `mosix lab down` removes what is left"
    )]
    Crashed(String),
    /// No such node.
    #[error("lab {lab:?} has no node {node:?}: it has {known}")]
    NoNode {
        /// The lab.
        lab: String,
        /// What was asked for.
        node: String,
        /// What there is.
        known: String,
    },
    /// A lab of this name is up with other parameters.
    #[error(
        "lab {name:?} is up with {there}, not {asked}: `mosix lab down --name {name}` first, or give another --name"
    )]
    Differs {
        /// Its name.
        name: String,
        /// What runs.
        there: String,
        /// What was asked for.
        asked: String,
    },
    /// A folder belongs to another user, or is not a folder.
    #[error("{path} {what}: give another place with MOSIX_RUNTIME_DIR")]
    BadFolder {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// A unix socket of a node would have a name longer than the kernel takes.
    #[error("the folder {path} is too long a name for unix sockets in it: give a shorter place with MOSIX_RUNTIME_DIR")]
    LongPath {
        /// The lab's folder.
        path: PathBuf,
    },
    /// A program that the lab needs is missing.
    #[error("the program `{program}` was not found: install the package {package}")]
    Missing {
        /// Its name.
        program: &'static str,
        /// Debian's package.
        package: &'static str,
    },
    /// `ip` or `tc` refused.
    #[error("`{program}` failed while setting up {object}: {message}")]
    Tool {
        /// Program.
        program: &'static str,
        /// Which namespace.
        object: String,
        /// What it wrote to stderr.
        message: String,
    },
    /// Namespaces are not to be had.
    #[error(
        "cannot make a {kind} namespace: {source}. As an ordinary user this needs user namespaces: see \
         /proc/sys/user/max_user_namespaces, /proc/sys/kernel/unprivileged_userns_clone and \
         /proc/sys/kernel/apparmor_restrict_unprivileged_userns, or run as root"
    )]
    Namespace {
        /// user or network.
        kind: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The keeper reported a failure.
    #[error("the lab's keeper failed: {0}")]
    Keeper(String),
    /// A mosixd did not come up.
    #[error("mosixd of node {node} did not start: {reason}\n{log}")]
    Daemon {
        /// The node.
        node: String,
        /// What was seen.
        reason: String,
        /// The end of its log.
        log: String,
    },
    /// Keys or configuration could not be written.
    #[error("cannot prepare node {node}: {reason}")]
    Prepare {
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// Processes of the lab could not be ended.
    #[error("these processes of the lab do not end: {0}")]
    Unkillable(String),
    /// A file or process operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with its object.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl LabError {
    /// Returns a closure that wraps an I/O error with what was tried.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
