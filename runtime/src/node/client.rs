//! The blocking client of a node's daemon, for the command line, supervisors and agents.
//!
//! Each request is a connection of its own: a daemon that was restarted in between is not noticed.

use super::{message, paths};
use mosix_wire::control::{Fingerprint, OpenAgent, Peer, Purpose, Request, Response, Status};
use mosix_wire::ids::{JobId, NodeName};
use mosix_wire::limits;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait for an answer: the daemon itself gives up earlier, with a reason.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens.
    #[error("no mosixd answers on {path} ({error}): start it with `mosix node run`")]
    NoDaemon {
        /// Its socket.
        path: PathBuf,
        /// What connect(2) said.
        error: io::Error,
    },
    /// The daemon could not do it; its reason.
    #[error("{0}")]
    Refused(String),
    /// The node was reached, and has no agent of the job (any more).
    #[error("{0}")]
    NoAgent(String),
    /// The connection to the daemon broke, or its answer is malformed.
    #[error("talking to mosixd")]
    Io(#[from] io::Error),
    /// The daemon answers something else: versions differ.
    #[error("mosixd gave an unexpected answer: is it of another version?")]
    Unexpected,
}

impl From<ClientError> for io::Error {
    fn from(error: ClientError) -> Self {
        let kind = match &error {
            // Never `NotFound`: a daemon that is away comes back.
            ClientError::NoDaemon { .. } => io::ErrorKind::NotConnected,
            ClientError::Io(error) => error.kind(),
            // What tells a session that trying again is no use.
            ClientError::NoAgent(_) => io::ErrorKind::NotFound,
            ClientError::Refused(_) | ClientError::Unexpected => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// The way to a node's daemon.
#[derive(Debug)]
pub struct Control {
    at: At,
}

#[derive(Debug)]
enum At {
    Path(PathBuf),
    Folder(OwnedFd),
}

impl Control {
    /// The daemon with this state folder.
    pub fn at(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            at: At::Path(state_dir.into()),
        }
    }

    /// The daemon of this user or machine; see [`paths::state_dir`].
    pub fn local() -> io::Result<Self> {
        Ok(Self::at(paths::state_dir()?))
    }

    /// The daemon whose state folder is open (`O_PATH` will do): for a process in a mount namespace that does not show it.
    /// Needs /proc.
    pub fn in_folder(state_dir: OwnedFd) -> Self {
        Self {
            at: At::Folder(state_dir),
        }
    }

    fn path(&self) -> PathBuf {
        match &self.at {
            At::Path(path) => paths::control_socket(path),
            At::Folder(fd) => format!("/proc/self/fd/{}/control.sock", fd.as_raw_fd()).into(),
        }
    }

    /// Makes a request and waits for its answer.
    pub fn request(&self, request: &Request) -> Result<(Response, Vec<OwnedFd>), ClientError> {
        let path = self.path();
        let socket = UnixStream::connect(&path).map_err(|error| ClientError::NoDaemon { path, error })?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        message::send(&socket, request, limits::CONTROL_MESSAGE, &[])?;
        match message::recv(&socket, limits::CONTROL_MESSAGE)? {
            (Response::Error(reason), _) => Err(ClientError::Refused(mosix_wire::control::reason(reason))),
            (Response::NoAgent(reason), _) => Err(ClientError::NoAgent(mosix_wire::control::reason(reason))),
            answer => Ok(answer),
        }
    }

    /// Asks the daemon about itself.
    pub fn status(&self) -> Result<Status, ClientError> {
        match self.request(&Request::Status)?.0 {
            Response::Status(status) => Ok(status),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Asks for this node and its peers.
    pub fn nodes(&self) -> Result<Vec<Peer>, ClientError> {
        match self.request(&Request::Nodes)?.0 {
            Response::Nodes(nodes) => Ok(nodes),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Ends the daemon; agents go on.
    pub fn stop(&self) -> Result<(), ClientError> {
        match self.request(&Request::Stop)?.0 {
            Response::Stopping => Ok(()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Has an agent of a job on a node, started if there is none; gives the fingerprint of its certificate. Repeating it is
    /// harmless.
    pub fn open_agent(&self, agent: &OpenAgent) -> Result<Fingerprint, ClientError> {
        match self.request(&Request::OpenAgent(agent.clone()))?.0 {
            Response::Agent { fingerprint } => Ok(fingerprint),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Opens a connection to a job's agent on a node: a blocking TCP socket on which the handshake of
    /// [`crate::link::Stream::dial`] comes next.
    pub fn open_stream(&self, node: &NodeName, job: JobId, purpose: Purpose) -> Result<OwnedFd, ClientError> {
        let request = Request::OpenStream {
            node: node.clone(),
            job,
            purpose,
        };
        match self.request(&request)? {
            (Response::Stream, mut fds) if fds.len() == 1 => fds.pop().ok_or(ClientError::Unexpected),
            _ => Err(ClientError::Unexpected),
        }
    }
}
