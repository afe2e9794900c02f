//! The node's one TCP port: control links of peers and streams of jobs, told apart by their first bytes.
//!
//! Whoever connects is a stranger until a handshake or a hello is done; strangers are bounded in number, bytes and time, and
//! what they send is never more than one line in the log, and not many lines.

use super::agents::Agents;
use super::config::{Config, Transport};
use super::io::{Connection, recv, send, within};
use super::peers::{GREETING, Peers};
use super::secure::{Secure, describe};
use mosix_wire::control::StreamHello;
use mosix_wire::ids::NodeName;
use mosix_wire::limits;
use mosix_wire::node::{PLAIN_MAGIC, STREAM_MAGIC, TLS_FIRST};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

/// Lines about strangers in a period; the rest is counted.
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

/// What answers on the port.
pub struct Listener {
    config: Config,
    secure: Option<Arc<Secure>>,
    peers: Arc<Peers>,
    agents: Arc<Agents>,
    strangers: Mutex<Strangers>,
    complaints: Mutex<Complaints>,
}

#[derive(Default)]
struct Strangers {
    all: usize,
    per_source: HashMap<IpAddr, usize>,
}

struct Complaints {
    since: Instant,
    written: u32,
    suppressed: u32,
}

/// A stranger's place in the count.
struct Place {
    listener: Arc<Listener>,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut strangers = self
            .listener
            .strangers
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        strangers.all = strangers.all.saturating_sub(1);
        if let Some(count) = strangers.per_source.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                strangers.per_source.remove(&self.source);
            }
        }
    }
}

impl Listener {
    /// Puts the parts together.
    pub fn new(config: &Config, secure: Option<Arc<Secure>>, peers: Arc<Peers>, agents: Arc<Agents>) -> Arc<Self> {
        Arc::new(Self {
            config: config.clone(),
            secure,
            peers,
            agents,
            strangers: Mutex::default(),
            complaints: Mutex::new(Complaints {
                since: Instant::now(),
                written: 0,
                suppressed: 0,
            }),
        })
    }

    /// Accepts for ever.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((socket, from)) => {
                    let Some(place) = self.admit(from.ip()) else {
                        self.complain(from, "too many connections that have not said who they are");
                        continue;
                    };
                    let this = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = this.serve(socket, from, place).await {
                            this.complain(from, &describe(&error));
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors or memory: it passes, but not at once.
                    self.complain(
                        SocketAddr::from(([0, 0, 0, 0], 0)),
                        &format!("accepting connections: {error}"),
                    );
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, source: IpAddr) -> Option<Place> {
        let mut strangers = self.strangers.lock().unwrap_or_else(|poison| poison.into_inner());
        let count = strangers.per_source.get(&source).copied().unwrap_or(0);
        if strangers.all >= self.config.limits.unknown || count >= self.config.limits.unknown_per_source {
            return None;
        }
        strangers.all += 1;
        strangers.per_source.insert(source, count + 1);
        Some(Place {
            listener: self.clone(),
            source,
        })
    }

    fn complain(&self, from: SocketAddr, what: &str) {
        let mut complaints = self.complaints.lock().unwrap_or_else(|poison| poison.into_inner());
        if complaints.since.elapsed() >= PERIOD {
            if complaints.suppressed > 0 {
                tracing::warn!("{} more refused connections", complaints.suppressed);
            }
            *complaints = Complaints {
                since: Instant::now(),
                written: 0,
                suppressed: 0,
            };
        }
        if complaints.written < LINES {
            complaints.written += 1;
            tracing::warn!(%from, "{what}");
        } else {
            complaints.suppressed += 1;
        }
    }

    async fn serve(self: &Arc<Self>, mut socket: TcpStream, from: SocketAddr, place: Place) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let deadline = tokio::time::Instant::now() + GREETING;
        let silent = || {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("nothing within {} s", GREETING.as_secs()),
            )
        };
        let mut first = [0; 1];
        let got = tokio::time::timeout_at(deadline, socket.peek(&mut first))
            .await
            .map_err(|_| silent())??;
        if got == 0 {
            // A port scan, or a health check; not worth a line.
            return Ok(());
        }
        if first[0] == TLS_FIRST {
            let Some(secure) = &self.secure else {
                return Err(refused("it speaks TLS, but the transport here is \"plain\""));
            };
            let accepted = tokio::time::timeout_at(deadline, secure.accept(socket)).await;
            let (name, stream) = accepted.map_err(|_| silent())??;
            drop(place);
            return self.link(Some(name), Box::new(stream), from).await;
        }
        let mut magic = [0; 4];
        tokio::time::timeout_at(deadline, socket.read_exact(&mut magic))
            .await
            .map_err(|_| silent())??;
        match magic {
            STREAM_MAGIC => {
                let hello = tokio::time::timeout_at(deadline, recv(&mut socket, limits::STREAM_HELLO)).await;
                let hello: StreamHello = hello.map_err(|_| silent())??;
                let outcome = self.stream(&hello, socket).await;
                drop(place);
                outcome
            }
            PLAIN_MAGIC if self.config.transport == Transport::Plain => {
                drop(place);
                self.link(None, Box::new(socket), from).await
            }
            PLAIN_MAGIC => Err(refused("it speaks plain, but the transport here is \"tls\"")),
            _ => Err(refused("not a node of mosix: its first bytes mean nothing")),
        }
    }

    async fn link(&self, name: Option<NodeName>, stream: Box<dyn Connection>, from: SocketAddr) -> io::Result<()> {
        tracing::debug!(%from, ?name, "a peer dials");
        self.peers.accept(name, stream).await
    }

    /// Hands a job's stream to its agent, then answers its dialling end.
    ///
    /// The agent has the socket already when the answer is written: they do not mix, because the dialling end speaks first,
    /// and only after the answer. Dropping our descriptor leaves the agent's connection as it is.
    async fn stream(&self, hello: &StreamHello, mut socket: TcpStream) -> io::Result<()> {
        let answer = self.agents.hand_over(hello, socket.as_fd()).await;
        within(GREETING, "answering", send(&mut socket, &answer, limits::STREAM_HELLO)).await
    }
}

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
