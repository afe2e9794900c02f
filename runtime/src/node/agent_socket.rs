//! The agent's own socket, `<state dir>/agents/<job>.sock`: where its node's daemon hands it connections, and finds it again
//! after a restart.
//!
//! The folder belongs to the daemon's user alone (0700), so nobody else can connect. What comes in is a connection that a
//! stranger may have opened: it is worth nothing before its handshake ([`crate::link::Stream::accept`]).

use super::{message, paths};
use mosix_wire::control::{AgentAnswer, AgentIdentity, AgentMessage, StreamHello};
use mosix_wire::ids::JobId;
use mosix_wire::limits;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The daemon is local and quick; whoever is not shall not hold the agent up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Connections that only wait for the agent's end; the daemon has one.
const WATCHERS: usize = 8;

/// A connection for the agent.
#[derive(Debug)]
pub struct Incoming {
    /// The accepted TCP socket, blocking; the handshake comes next.
    pub fd: OwnedFd,
    /// What its dialling end said.
    pub hello: StreamHello,
}

/// The listening socket; removed when dropped.
#[derive(Debug)]
pub struct AgentSocket {
    listener: UnixListener,
    path: PathBuf,
    identity: AgentIdentity,
    /// The daemon keeps a connection open to notice the agent's end.
    watchers: Vec<UnixStream>,
}

impl AgentSocket {
    /// Listens for the job's connections. To be called before the agent changes its user and its mount namespace. Whoever connects
    /// waits until the agent is ready, or dead.
    pub fn listen(state_dir: &Path, job: JobId) -> io::Result<UnixListener> {
        paths::create_dir(&paths::agents_dir(state_dir), 0o700)?;
        let path = paths::agent_socket(state_dir, job);
        // Bound under another name and moved: a socket with the right name always has a listener, or its agent is dead.
        let new = path.with_extension("new");
        paths::check_socket_path(&new)?;
        let _ = std::fs::remove_file(&new);
        let listener = UnixListener::bind(&new)?;
        std::fs::rename(&new, &path)?;
        Ok(listener)
    }

    /// Serves a listening socket.
    pub fn new(listener: UnixListener, state_dir: &Path, identity: AgentIdentity) -> Self {
        Self {
            listener,
            path: paths::agent_socket(state_dir, identity.job),
            identity,
            watchers: Vec::new(),
        }
    }

    /// Listens and serves at once.
    pub fn bind(state_dir: &Path, identity: AgentIdentity) -> io::Result<Self> {
        let listener = Self::listen(state_dir, identity.job)?;
        Ok(Self::new(listener, state_dir, identity))
    }

    /// Waits for the next connection. Errors of single connections are logged and passed over.
    pub fn accept(&mut self) -> io::Result<Incoming> {
        loop {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            match self.answer(socket) {
                Ok(Some(incoming)) => return Ok(incoming),
                Ok(None) => {}
                Err(error) => tracing::warn!(job = %self.identity.job, %error, "a message on the agent's socket"),
            }
        }
    }

    fn answer(&mut self, socket: UnixStream) -> io::Result<Option<Incoming>> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let (request, mut fds) = message::recv(&socket, limits::STREAM_HELLO)?;
        match request {
            AgentMessage::Identify => {
                message::send(
                    &socket,
                    &AgentAnswer::Identity(self.identity.clone()),
                    limits::STREAM_HELLO,
                    &[],
                )?;
                self.watchers.retain(|watcher| !ended(watcher));
                if self.watchers.len() < WATCHERS {
                    self.watchers.push(socket);
                }
                Ok(None)
            }
            AgentMessage::Stream(hello) => {
                let (Some(fd), true) = (fds.pop(), fds.is_empty()) else {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a stream comes with one descriptor",
                    ));
                };
                if hello.job != self.identity.job {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a stream of another job"));
                }
                message::send(&socket, &AgentAnswer::Taken, limits::STREAM_HELLO, &[])?;
                Ok(Some(Incoming { fd, hello }))
            }
        }
    }

    /// What the agent says of itself.
    pub fn identity(&self) -> &AgentIdentity {
        &self.identity
    }
}

impl AsFd for AgentSocket {
    /// The listening socket, to be polled beside others.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        // In another mount namespace the name is not there; the daemon removes it then.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether the other end of a watcher has closed.
fn ended(mut watcher: &UnixStream) -> bool {
    if watcher.set_nonblocking(true).is_err() {
        return true;
    }
    !matches!(watcher.read(&mut [0; 16]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mosix_wire::control::{Fingerprint, Purpose};
    use mosix_wire::ids::{JobId, NodeName, Nonce};
    use std::io::Write;

    fn identity(job: u64) -> AgentIdentity {
        AgentIdentity {
            job: JobId(job),
            home_node: NodeName("n1".into()),
            home: Nonce(1),
            fingerprint: Fingerprint([1; 32]),
            supervisor: Fingerprint([2; 32]),
            uid: 1000,
        }
    }

    #[test]
    fn streams_arrive_past_garbage_and_strangers() {
        let dir = tempfile::tempdir().unwrap();
        let mut socket = AgentSocket::bind(dir.path(), identity(7)).unwrap();
        let path = paths::agent_socket(dir.path(), JobId(7));
        let dial = || UnixStream::connect(&path).unwrap();
        std::thread::scope(|scope| {
            let agent = scope.spawn(|| (socket.accept().unwrap(), socket));
            dial().write_all(b"garbage that claims to be long").unwrap();
            drop(dial());
            let watcher = dial();
            message::send(&watcher, &AgentMessage::Identify, limits::STREAM_HELLO, &[]).unwrap();
            let (answer, _) = message::recv::<AgentAnswer>(&watcher, limits::STREAM_HELLO).unwrap();
            assert_eq!(answer, AgentAnswer::Identity(identity(7)));
            let (ours, theirs) = UnixStream::pair().unwrap();
            for job in [8, 7] {
                let hello = StreamHello {
                    job: JobId(job),
                    purpose: Purpose::Pages,
                    from: NodeName("n1".into()),
                };
                let to = dial();
                message::send(
                    &to,
                    &AgentMessage::Stream(hello),
                    limits::STREAM_HELLO,
                    &[theirs.as_fd()],
                )
                .unwrap();
                let answer = message::recv::<AgentAnswer>(&to, limits::STREAM_HELLO);
                assert_eq!(answer.is_ok(), job == 7);
            }
            let (incoming, agent) = agent.join().unwrap();
            assert_eq!(incoming.hello.purpose, Purpose::Pages);
            (&ours).write_all(b"x").unwrap();
            UnixStream::from(incoming.fd).read_exact(&mut [0; 1]).unwrap();
            // The daemon notices the agent's end, and nothing is left.
            drop(agent);
            assert_eq!((&watcher).read(&mut [0; 1]).unwrap(), 0);
            assert!(!path.exists());
        });
    }
}
