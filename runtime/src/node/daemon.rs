//! The life of the daemon: start, signals, stop.

use super::agents::{Agents, Wanted};
use super::config::{Config, PeerConfig, Transport};
use super::control;
use super::io::{Connection, recv, send, within};
use super::jobs::Jobs;
use super::keys::{self, KeyError};
use super::listener::Listener;
use super::peers::{Dialler, GREETING, Handler, Peers};
use super::secure::{Secure, describe};
use super::{ConfigError, paths, tcp};
use mosix_wire::control::{Purpose, Response, StreamAnswer, StreamHello, reason};
use mosix_wire::ids::{JobId, NodeName};
use mosix_wire::limits;
use mosix_wire::node::{NodeAnswer, NodeHello, NodeRequest, PLAIN_MAGIC, STREAM_MAGIC};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// Time for a TCP connection to a peer.
const CONNECT: Duration = Duration::from_secs(3);

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The keys cannot be used.
    #[error("using the keys in {folder}")]
    Tls {
        /// Where they are.
        folder: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Another daemon has the state folder.
    #[error(
        "mosixd already runs on {folder} (pid {pid}): stop it with `mosix node stop`, or give this one another state_dir"
    )]
    Running {
        /// The folder.
        folder: PathBuf,
        /// The other one.
        pid: String,
    },
    /// The port.
    #[error("cannot listen on {address}: another program has the port, or the address is not of this machine")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Something else the daemon needs.
    #[error("{what}")]
    Io {
        /// What.
        what: String,
        /// Why.
        source: io::Error,
    },
}

/// What all parts of the daemon share.
pub struct Node {
    pub(super) config: Config,
    pub(super) own: NodeHello,
    pub(super) started: Instant,
    pub(super) listen: SocketAddr,
    pub(super) secure: Option<Arc<Secure>>,
    pub(super) peers: Arc<Peers>,
    pub(super) agents: Arc<Agents>,
    pub(super) jobs: Jobs,
    stopping: Arc<Notify>,
}

/// Runs the daemon until it is asked to stop. Logs by `tracing`; the caller subscribes.
pub fn run(config: Config) -> Result<(), NodeError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| NodeError::Io { what, source }
    };
    // The node's key is in this process: no program of the same user shall read it from here.
    let private = rustix::process::DumpableBehavior::NotDumpable;
    rustix::process::set_dumpable_behavior(private)
        .map_err(|error| io("protecting the keys in memory")(error.into()))?;
    // Every stream on its way takes a descriptor or two; the usual soft limit of 1,024 is for programs with select(2).
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, files);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("mosixd")
        .enable_all()
        .build()
        .map_err(io("starting the event loop"))?;
    let done = runtime.block_on(serve(config));
    // What still runs are answers that nobody waits for.
    runtime.shutdown_timeout(Duration::from_millis(500));
    done
}

async fn serve(config: Config) -> Result<(), NodeError> {
    let state = config.state_dir.clone();
    let io = |what: String| move |source| NodeError::Io { what, source };
    let mode = if rustix::process::geteuid().is_root() {
        0o711
    } else {
        0o700
    };
    paths::create_dir(&state, mode).map_err(io(format!("the state folder {}", state.display())))?;
    // Also an existing folder that is closed: agents with users of their own must reach the control socket in it.
    std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(mode))
        .map_err(io(format!("the state folder {}", state.display())))?;
    let lock = take_lock(&state)?;
    let secure = match config.transport {
        Transport::Tls => {
            let keys = keys::load(&state, &config.name)?;
            let secure = Secure::new(keys);
            Some(Arc::new(secure.map_err(|source| NodeError::Tls {
                folder: paths::keys_dir(&state),
                source,
            })?))
        }
        Transport::Plain => {
            tracing::warn!("transport = \"plain\": links have no secrecy and peers no identity");
            None
        }
    };
    let listener = tcp::listen(config.listen, &config.congestion_control).await;
    let listener = listener.map_err(|source| NodeError::Listen {
        address: config.listen,
        source,
    })?;
    let congestion = config.congestion_control.clone();
    let listen = listener.local_addr().map_err(io("the listening socket".to_owned()))?;

    let own = NodeHello {
        name: config.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    };
    let agents = Agents::new(&config).map_err(io("the folder of the agents".to_owned()))?;
    agents
        .adopt()
        .await
        .map_err(io("looking for agents that run".to_owned()))?;
    let peers = Peers::new(&config, own.clone(), handler(&agents));
    let stopping = Arc::new(Notify::new());
    let node = Arc::new(Node {
        own,
        started: Instant::now(),
        listen,
        secure: secure.clone(),
        peers: peers.clone(),
        agents: agents.clone(),
        jobs: Jobs::default(),
        stopping: stopping.clone(),
        config,
    });
    // Signals count from before the socket tells others that we are here.
    let mut term = signal(SignalKind::terminate()).map_err(io("handling SIGTERM".to_owned()))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io("handling SIGINT".to_owned()))?;
    let socket = paths::control_socket(&state);
    let control = control::bind(&socket).map_err(io(format!("the socket {}", socket.display())))?;
    peers.start(&dialler(secure.clone(), congestion));
    super::jobs::take_up(&node);
    tokio::spawn(agents.clone().watch_logs());
    let port = tokio::spawn(Listener::new(&node.config, secure, peers.clone(), agents).run(listener));
    let control = tokio::spawn(control::run(node.clone(), control));
    tracing::info!(node = %node.config.name, %listen, transport = %node.config.transport, pid = std::process::id(), "mosixd is ready");
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    tokio::select! {
        _ = term.recv() => tracing::info!("SIGTERM: stopping; agents go on"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping; agents go on"),
        () = stopping.notified() => {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let _ = std::fs::remove_file(&socket);
    port.abort();
    peers.bye().await;
    control.abort();
    drop(lock);
    Ok(())
}

/// Holds the state folder for this daemon alone; the kernel lets go of it however the daemon ends.
fn take_lock(state: &Path) -> Result<File, NodeError> {
    let path = state.join("mosixd.lock");
    let io = |source| NodeError::Io {
        what: path.display().to_string(),
        source,
    };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::AGAIN) => {
            let mut pid = String::new();
            let _ = (&file).take(20).read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() {
                "unknown".to_owned()
            } else {
                reason(pid.trim())
            };
            return Err(NodeError::Running {
                folder: state.to_owned(),
                pid,
            });
        }
        Err(error) => return Err(io(error.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io)?;
    Ok(file)
}

/// What peers may ask for.
fn handler(agents: &Arc<Agents>) -> Handler {
    let agents = agents.clone();
    Arc::new(move |peer, request| {
        let agents = agents.clone();
        Box::pin(async move {
            match request {
                NodeRequest::OpenAgent {
                    job,
                    home,
                    supervisor,
                    uid,
                } => {
                    let wanted = Wanted {
                        job,
                        home_node: peer,
                        home,
                        supervisor,
                        uid,
                    };
                    agents
                        .open(&wanted)
                        .await
                        .map(|fingerprint| NodeAnswer::Agent { fingerprint })
                }
                NodeRequest::JobEnded { job, home } => {
                    agents.job_ended(job, &peer, home).await;
                    Ok(NodeAnswer::Done)
                }
            }
        })
    })
}

/// How peers are dialled.
fn dialler(secure: Option<Arc<Secure>>, congestion: String) -> Dialler {
    Arc::new(move |peer: PeerConfig| {
        let (secure, congestion) = (secure.clone(), congestion.clone());
        Box::pin(async move {
            let mut socket = connect(&peer, &congestion).await?;
            let connection: Box<dyn Connection> = match secure {
                Some(secure) => Box::new(within(GREETING, "TLS handshake", secure.dial(&peer.name, socket)).await?),
                None => {
                    socket.write_all(&PLAIN_MAGIC).await?;
                    Box::new(socket)
                }
            };
            Ok(connection)
        })
    })
}

async fn connect(peer: &PeerConfig, congestion: &str) -> io::Result<TcpStream> {
    within(CONNECT, "connecting", tcp::connect(&peer.address, congestion)).await
}

impl Node {
    /// Begins the stop.
    pub(super) fn stop(&self) {
        self.stopping.notify_one();
    }

    /// Opens a connection to a job's agent, or gives the answer that says why not.
    pub(super) async fn open_stream(
        &self,
        to: &NodeName,
        job: JobId,
        purpose: Purpose,
    ) -> Result<OwnedFd, Box<Response>> {
        let refused = |why: String| Box::new(Response::Error(why));
        let answered = |answer: StreamAnswer| match answer {
            StreamAnswer::Ok => Ok(()),
            StreamAnswer::No(why) => Err(Box::new(Response::Error(reason(why)))),
            StreamAnswer::NoAgent(why) => Err(Box::new(Response::NoAgent(reason(why)))),
        };
        let hello = StreamHello {
            job,
            purpose,
            from: self.config.name.clone(),
        };
        if *to == self.config.name {
            let pair = std::os::unix::net::UnixStream::pair();
            let (ours, theirs) = pair.map_err(|error| refused(format!("a pair of sockets: {error}")))?;
            answered(self.agents.hand_over(&hello, theirs.as_fd()).await)?;
            return Ok(ours.into());
        }
        let Some(peer) = self.peers.config(to) else {
            let why = format!("unknown node {to}: it is not among the peers of {}", self.config.name);
            return Err(refused(why));
        };
        let work = async {
            let mut socket = connect(peer, &self.config.congestion_control).await?;
            socket.write_all(&STREAM_MAGIC).await?;
            send(&mut socket, &hello, limits::STREAM_HELLO).await?;
            let answer = recv::<StreamAnswer>(&mut socket, limits::STREAM_HELLO);
            let answer = within(GREETING, "no answer", answer).await?;
            let socket = socket.into_std()?;
            socket.set_nonblocking(false)?;
            Ok::<_, io::Error>((socket, answer))
        };
        let failed = |error| {
            refused(format!(
                "no stream to {} at {}: {}",
                peer.name,
                peer.address,
                describe(&error)
            ))
        };
        let (socket, answer) = work.await.map_err(failed)?;
        answered(answer)?;
        Ok(socket.into())
    }
}
