//! Messages on a job's socket, between the command line (`ps`, `migrate`, `kill`) and the job's supervisor.
//!
//! ```text
//!  command line                      supervisor
//!      │ ── Request ────────────────────▶ │   one request per connection
//!      │ ◀──────────────── Answer::… ──── │   Rows; or any number of Progress, then one of Moved per process, then Done;
//!      │ ◀──────────────── close ──────── │   or Refused at any place as the last
//! ```
//!
//! A message is its length in bytes as a little-endian `u32`, at most [`crate::limits::JOB_MESSAGE`], and so many bytes of
//! postcard. Both ends are the same user on the same machine, and both still treat the other's bytes as foreign.

use crate::ids::{JobId, NodeName, Pid};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the command line asks of a supervisor.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// The job and its processes.
    Ps,
    /// Move a process, or every process of the job.
    Migrate {
        /// What to move.
        target: Target,
        /// Where to.
        to: Place,
    },
    /// Send a signal.
    Kill {
        /// To whom.
        target: Target,
        /// Signal number.
        signal: i32,
    },
}

/// What a request is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Target {
    /// All processes of the job.
    Job,
    /// One of them.
    Process(Pid),
}

/// Where a process is or shall be.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Place {
    /// Its home node.
    Home,
    /// Another node.
    Node(NodeName),
}

impl Place {
    /// Reads what a user wrote: `home`, or the name of a node.
    ///
    /// # Errors
    /// [`BadPlace`] when it is no possible name of a node.
    pub fn parse(text: &str) -> Result<Self, BadPlace> {
        let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        match text {
            "home" => Ok(Self::Home),
            _ if text.is_empty() || text.len() > crate::limits::NODE_NAME || !text.bytes().all(letter) => {
                Err(BadPlace(text.chars().take(80).collect()))
            }
            _ => Ok(Self::Node(NodeName(text.to_owned()))),
        }
    }
}

impl std::str::FromStr for Place {
    type Err = BadPlace;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Home => f.write_str("home"),
            Self::Node(name) => name.fmt(f),
        }
    }
}

/// A text that names no place.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is no name of a node: 1 to {max} letters, digits, '-', '_' or '.'", max = crate::limits::NODE_NAME)]
pub struct BadPlace(String);

/// What a supervisor says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The job and its processes, answer to [`Request::Ps`].
    Rows {
        /// The job.
        job: Job,
        /// Its processes in ascending order of their pids.
        processes: Vec<Process>,
    },
    /// A move goes on.
    Progress(Progress),
    /// A process has moved.
    Moved(Moved),
    /// Of several processes that were to move, this one stays where it was, and why. The others are still to come.
    Stays(Refusal),
    /// All that was asked is done, or said.
    Done,
    /// It is not done, and why; the process runs where it was.
    Refused(Refusal),
}

/// A job as its supervisor knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The name that the user gave it.
    pub name: Option<String>,
    /// Name of the home node.
    pub home: String,
    /// The user that started it.
    pub uid: u32,
    /// The supervisor's pid.
    pub supervisor: Pid,
    /// The first process, the one that the launcher stands for.
    pub first: Pid,
    /// Unix time of its start in seconds.
    pub started: u64,
    /// Why programs of this job cannot be placed when they start (`--no-filter`, a listener of somebody else); `None` when they can.
    pub unfiltered: Option<String>,
    /// What the user should know about the job as a whole, one sentence each.
    pub notes: Vec<String>,
}

/// One process of a job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Its pid at home.
    pub pid: Pid,
    /// Its parent's pid at home.
    pub parent: Pid,
    /// The program it runs.
    pub program: String,
    /// Threads.
    pub threads: u32,
    /// Resident memory in bytes, where it is.
    pub memory: u64,
    /// CPU time used everywhere, in nanoseconds.
    pub cpu_ns: u64,
    /// What it does.
    pub state: State,
    /// Where its body is.
    pub place: Place,
    /// How often it has moved.
    pub moves: u32,
    /// Why it cannot move now.
    pub stuck: Option<Why>,
    /// The processes with which it shares memory that can be written, named by the lowest pid among them.
    pub group: Option<Pid>,
}

/// What a process does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum State {
    /// Runs or is ready to run.
    Running,
    /// Waits for something.
    Sleeping,
    /// Waits in the kernel and cannot be interrupted.
    Blocked,
    /// Stopped by job control or a debugger.
    Stopped,
    /// On its way from one node to another.
    Moving,
    /// Frozen: its home, or its host, is out of contact.
    Waiting,
    /// Ended, not yet waited for.
    Zombie,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Sleeping => "sleeping",
            Self::Blocked => "blocked",
            Self::Stopped => "stopped",
            Self::Moving => "moving",
            Self::Waiting => "waiting",
            Self::Zombie => "zombie",
        })
    }
}

/// Why a process cannot move, and what would help.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Why {
    /// Stable name for scripts, such as `own-seccomp-filter`.
    pub code: String,
    /// For people.
    pub text: String,
    /// What would help; empty when nothing does.
    pub remedy: String,
}

/// How far a move is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// The process.
    pub pid: Pid,
    /// What is being done: one word, such as `freeze` or `transfer`.
    pub phase: String,
    /// Bytes sent.
    pub done: u64,
    /// Bytes to send; 0 while unknown.
    pub total: u64,
}

/// A finished move.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Moved {
    /// The process.
    pub pid: Pid,
    /// Its program.
    pub program: String,
    /// Where it was.
    pub from: Place,
    /// Where it is.
    pub to: Place,
    /// How long it stood still, in microseconds.
    pub freeze_us: u64,
    /// From the request to the end, in microseconds.
    pub total_us: u64,
    /// Bytes that travelled.
    pub bytes: u64,
}

/// Why a request was not done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind of reason, for the exit code.
    pub kind: RefusalKind,
    /// The process, where one is to blame.
    pub pid: Option<Pid>,
    /// For people: object, reason, what to do.
    pub text: String,
    /// The reason of the fixed list, where it is one.
    pub why: Option<Why>,
}

/// Kinds of [`Refusal`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RefusalKind {
    /// No such process in this job.
    UnknownProcess,
    /// No such node, or it does not answer.
    UnknownNode,
    /// The process cannot move: its [`Process::stuck`] says why.
    CannotMove,
    /// The destination refused it, or lacks something.
    NotAdmitted,
    /// The move was tried and failed; the process runs where it was.
    Failed,
    /// This build, node or user cannot do that at all.
    Unsupported,
    /// The caller may not ask for that.
    Forbidden,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_parse_and_print() {
        assert_eq!(Place::parse("home"), Ok(Place::Home));
        assert_eq!(Place::parse("n1").unwrap().to_string(), "n1");
        for bad in ["", "a b", "n1\n", "../x/", &"n".repeat(64)] {
            assert!(Place::parse(bad).is_err(), "{bad:?}");
        }
    }
}
