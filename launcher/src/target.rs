//! Which process or job a user means.

use crate::client::{Found, Search, jobs};
use crate::exit::Exit;
use mosix_wire::ids::Pid;
use mosix_wire::job::{Refusal, RefusalKind, Target, Why};
use std::os::unix::fs::MetadataExt;

/// A failure with its exit code.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// One line.
    pub text: String,
    /// The reason of the fixed list, where it is one.
    pub why: Option<Why>,
}

impl Failure {
    /// Makes one.
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self {
            exit,
            text: text.into(),
            why: None,
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, format!("{error:#}"))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let exit = match refusal.kind {
            RefusalKind::UnknownProcess => Exit::UnknownProcess,
            RefusalKind::UnknownNode => Exit::UnknownNode,
            RefusalKind::CannotMove => Exit::CannotMove,
            RefusalKind::NotAdmitted => Exit::NotAdmitted,
            RefusalKind::Forbidden => Exit::Forbidden,
            RefusalKind::Failed | RefusalKind::Unsupported => Exit::Failed,
        };
        Self {
            why: refusal.why,
            ..Self::new(exit, refusal.text)
        }
    }
}

/// Finds the job of process `pid`.
///
/// # Errors
/// When no job of the caller has it, saying whose it is.
pub fn by_pid(pid: i32) -> Result<(Found, Target), Failure> {
    let search = jobs(nix::unistd::geteuid().is_root())?;
    let wanted = |f: &Found| f.processes.iter().any(|p| p.pid == Pid(pid));
    // A job inside a job lists fewer processes: it is the one that can move them.
    let found = search
        .found
        .iter()
        .filter(|f| wanted(f))
        .min_by_key(|f| f.processes.len())
        .cloned();
    found
        .map(|f| (f, Target::Process(Pid(pid))))
        .ok_or_else(|| unknown_pid(pid, &search))
}

fn unknown_pid(pid: i32, search: &Search) -> Failure {
    if search.found.iter().any(|f| f.job.supervisor == Pid(pid)) {
        let text = format!("process {pid} is a supervisor of mosix; `mosix ps` shows the processes of its job");
        return Failure::new(Exit::UnknownProcess, text);
    }
    let text = match std::fs::metadata(format!("/proc/{pid}")) {
        Err(_) => format!("there is no process {pid}"),
        Ok(meta) => {
            let (me, owner) = (nix::unistd::geteuid().as_raw(), meta.uid());
            // A launcher is not dumpable, so its folder in /proc is root's: its program is what the user means.
            if let Some(f) = search.found.iter().find(|f| launcher_of(f) == Some(pid)) {
                format!(
                    "process {pid} is the launcher of job {}; its program is process {}",
                    f.label(),
                    f.job.first
                )
            } else if owner != me && me != 0 {
                return Failure::new(Exit::Forbidden, format!("process {pid} belongs to another user"));
            } else {
                format!("process {pid} was not started by `mosix run`, so it cannot move")
            }
        }
    };
    Failure::new(Exit::UnknownProcess, text)
}

/// The launcher is the supervisor's parent as long as it lives.
fn launcher_of(found: &Found) -> Option<i32> {
    mosix_runtime::process::stat::Stat::read(found.job.supervisor.0)
        .ok()
        .map(|s| s.parent)
        .filter(|p| *p > 1)
}

/// Finds a job by name or id.
///
/// # Errors
/// When there is none, or several have the name.
pub fn by_name(name: &str) -> Result<(Found, Target), Failure> {
    let search = jobs(nix::unistd::geteuid().is_root())?;
    let fits = |f: &&Found| f.job.name.as_deref() == Some(name) || f.job.id.to_string() == name;
    let mut found: Vec<Found> = search.found.iter().filter(fits).cloned().collect();
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok((only, Target::Job)),
        (Some(last), _) => {
            let ids = found
                .iter()
                .chain([&last])
                .map(|f| f.job.id.to_string())
                .collect::<Vec<_>>()
                .join(", ");
            Err(Failure::new(
                Exit::Usage,
                format!("several jobs are named '{name}': say which, by id: {ids}"),
            ))
        }
        (None, _) => {
            let mut text = format!("there is no job '{name}'");
            if let Some(first) = search.silent.first() {
                text = format!("{text} among those that answer ({first})");
            }
            Err(Failure::new(Exit::UnknownProcess, text))
        }
    }
}

/// Reads a pid.
///
/// # Errors
/// When it is no positive number.
pub fn pid(text: &str) -> Result<i32, String> {
    text.parse()
        .ok()
        .filter(|p| *p > 0)
        .ok_or_else(|| format!("'{text}' is no process id"))
}
