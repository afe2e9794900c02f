//! How the daemon starts an agent: `mosix agent --job ID`, told the rest on its standard input, one line of JSON, and
//! answering on its standard output with one line of JSON. Keys are made by the agent and never leave it.
//!
//! The agent is started in a session of its own, in `/`, with its standard error in a log file. It binds its socket
//! ([`super::AgentSocket`]) *before* it answers, and goes on when the daemon ends.

use super::config::Transport;
use mosix_wire::control::{AgentIdentity, Fingerprint};
use mosix_wire::ids::{JobId, NodeName, Nonce};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;

/// Longest line in bytes, either way.
pub const LINE: u64 = 16 << 10;

/// What an agent is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentStart {
    /// The job.
    pub job: JobId,
    /// This node.
    pub node: NodeName,
    /// The job's home node.
    pub home_node: NodeName,
    /// The supervisor's life.
    pub home: Nonce,
    /// The certificate that the supervisor will show, in hexadecimal.
    pub supervisor: String,
    /// The job's user at home: a number for messages, it means nothing on this node.
    pub uid: u32,
    /// The user that the job's bodies have on this node, when it is one of their own.
    #[serde(default)]
    pub outside: Option<u32>,
    /// Bytes of memory that the bodies of the job may have.
    #[serde(default)]
    pub memory: Option<u64>,
    /// The state folder of the node: the agent's socket goes below it.
    pub state_dir: PathBuf,
    /// The runtime folder of the node, when its configuration names one.
    pub runtime_dir: Option<PathBuf>,
    /// How the job's links are protected.
    pub transport: Transport,
}

/// What an agent answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentReady {
    /// It listens; the certificate that it will show, in hexadecimal.
    Fingerprint(String),
    /// It cannot work here, and ends; the reason for the user.
    Error(String),
}

impl AgentStart {
    /// Reads what the daemon tells, in the agent.
    pub fn read(from: impl Read) -> io::Result<Self> {
        let mut line = String::new();
        io::BufReader::new(from.take(LINE)).read_line(&mut line)?;
        serde_json::from_str(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The supervisor's certificate.
    pub fn supervisor(&self) -> io::Result<Fingerprint> {
        self.supervisor
            .parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// What the agent's socket tells of it.
    pub fn identity(&self, fingerprint: Fingerprint) -> io::Result<AgentIdentity> {
        Ok(AgentIdentity {
            job: self.job,
            home_node: self.home_node.clone(),
            home: self.home,
            fingerprint,
            supervisor: self.supervisor()?,
            uid: self.uid,
        })
    }
}

impl AgentReady {
    /// Answers the daemon, in the agent. The standard output is of no more use afterwards.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        let mut line = serde_json::to_string(self).map_err(io::Error::other)?;
        line.push('\n');
        to.write_all(line.as_bytes())?;
        to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back() {
        let start = AgentStart {
            job: JobId(5),
            node: NodeName("n2".into()),
            home_node: NodeName("n1".into()),
            home: Nonce(u64::MAX),
            supervisor: Fingerprint([3; 32]).to_string(),
            uid: 1000,
            outside: Some(1_900_000_001),
            memory: Some(1 << 30),
            state_dir: "/s".into(),
            runtime_dir: None,
            transport: Transport::Plain,
        };
        let line = serde_json::to_string(&start).unwrap() + "\nmore";
        assert_eq!(AgentStart::read(line.as_bytes()).unwrap(), start);
        assert_eq!(
            start.identity(Fingerprint([1; 32])).unwrap().supervisor,
            Fingerprint([3; 32])
        );
        assert!(AgentStart::read(&b"{}"[..]).is_err());
        let mut out = Vec::new();
        AgentReady::Error("no".into()).write(&mut out).unwrap();
        assert_eq!(out, b"{\"error\":\"no\"}\n");
    }
}
