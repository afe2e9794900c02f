//! `control.sock`: the requests of this machine's command line, supervisors and agents.
//!
//! Who asks is taken from the kernel (SO_PEERCRED). Everybody may ask for status and for agents of jobs of their own; only
//! root and the daemon's own user may stop it or speak for others.

use super::agents::{Wanted, send_with_fd};
use super::daemon::Node;
use super::io::{recv, send, within};
use super::jobs;
use mosix_wire::control::{Fingerprint, OpenAgent, Peer, Request, Response, Status, reason};
use mosix_wire::limits;
use mosix_wire::node::{NodeAnswer, NodeRequest};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Requests under way at once.
const REQUESTS: usize = 128;

/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(30);

/// Listens on the socket, in place of one that a dead daemon left (the lock on the state folder is held).
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    super::paths::check_socket_path(path)?;
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    // Under root other users' supervisors must reach it; below a user's own folder the folder's mode decides.
    let mode = if rustix::process::geteuid().is_root() {
        0o666
    } else {
        0o600
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Answers for ever.
pub async fn run(node: Arc<Node>, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(REQUESTS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((socket, _)) => {
                let node = node.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(&node, socket).await {
                        tracing::debug!(%error, "a connection to the control socket");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting on the control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(node: &Arc<Node>, mut socket: UnixStream) -> io::Result<()> {
    let asker = socket.peer_cred()?;
    let (user, pid) = (asker.uid(), asker.pid());
    loop {
        let request = match within(IDLE, "idle", recv(&mut socket, limits::CONTROL_MESSAGE)).await {
            Ok(request) => request,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let answer =
                    Response::Error("not a request that this mosixd understands: is it of another version?".to_owned());
                send(&mut socket, &answer, limits::CONTROL_MESSAGE).await?;
                // Unread bytes at the close would take the answer away from the asker.
                socket.shutdown().await?;
                let mut rest = (&mut socket).take(limits::CONTROL_MESSAGE as u64);
                let _ = tokio::time::timeout(
                    Duration::from_secs(1),
                    tokio::io::copy(&mut rest, &mut tokio::io::sink()),
                )
                .await;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        let may_all = user == 0 || user == rustix::process::geteuid().as_raw();
        let answer = match request {
            Request::Status => Response::Status(status(node)),
            Request::Nodes => Response::Nodes(nodes(node)),
            Request::Stop if may_all => {
                send(&mut socket, &Response::Stopping, limits::CONTROL_MESSAGE).await?;
                tracing::info!(user, "asked to stop");
                node.stop();
                return Ok(());
            }
            Request::Stop => Response::Error(format!("user {user} may not stop this node: ask its owner or root")),
            Request::OpenAgent(wanted) if wanted.uid == user || may_all => match open_agent(node, wanted, pid).await {
                Ok(fingerprint) => Response::Agent { fingerprint },
                Err(why) => Response::Error(why),
            },
            Request::OpenAgent(wanted) => Response::Error(format!("user {user} may not speak for user {}", wanted.uid)),
            Request::OpenStream { node: to, job, purpose } => {
                let opened = match node.jobs.owner(job) {
                    Some(owner) if owner != user && !may_all => {
                        Err(Box::new(Response::Error(format!("job {job} is not of user {user}"))))
                    }
                    _ => node.open_stream(&to, job, purpose).await,
                };
                match opened {
                    Ok(fd) => {
                        within(IDLE, "answering", send_with_fd(&socket, &Response::Stream, fd.as_fd())).await?;
                        continue;
                    }
                    Err(answer) => *answer,
                }
            }
        };
        let answer = match answer {
            Response::Error(why) => Response::Error(reason(why)),
            other => other,
        };
        within(IDLE, "answering", send(&mut socket, &answer, limits::CONTROL_MESSAGE)).await?;
    }
}

/// Has an agent for the supervisor with this process id.
async fn open_agent(node: &Arc<Node>, wanted: OpenAgent, pid: Option<i32>) -> Result<Fingerprint, String> {
    let (to, job, home) = (wanted.node.clone(), wanted.job, wanted.home);
    jobs::watch(node, job, wanted.uid, home, pid)?;
    // Before: whoever ends the job must know where it may have an agent.
    let fresh = node.jobs.add_host(&node.config.state_dir, job, home, to.clone());
    let opened = ask_for_agent(node, wanted).await;
    if opened.is_ok() {
        jobs::opened(node, job, home, to);
    } else if fresh {
        node.jobs.remove_host(job, home, &to);
    }
    opened
}

/// Asks the node, or this one.
async fn ask_for_agent(node: &Arc<Node>, wanted: OpenAgent) -> Result<Fingerprint, String> {
    let OpenAgent {
        node: to,
        job,
        home,
        supervisor,
        uid,
    } = wanted;
    if to == node.config.name {
        let home_node = node.config.name.clone();
        let wanted = Wanted {
            job,
            home_node,
            home,
            supervisor,
            uid,
        };
        return node.agents.open(&wanted).await;
    }
    let request = NodeRequest::OpenAgent {
        job,
        home,
        supervisor,
        uid,
    };
    match node.peers.request(&to, request).await? {
        NodeAnswer::Agent { fingerprint } => Ok(fingerprint),
        NodeAnswer::Done => Err(format!("{to} gave an unexpected answer: is it of another version?")),
    }
}

fn status(node: &Node) -> Status {
    Status {
        node: node.config.name.clone(),
        version: node.own.version.clone(),
        kernel: node.own.kernel.clone(),
        pid: std::process::id(),
        listen: node.listen.to_string(),
        transport: node.config.transport.to_string(),
        cluster: node.secure.as_ref().map(|secure| secure.cluster()),
        uptime_s: node.started.elapsed().as_secs(),
        agents: node.agents.status(),
    }
}

fn nodes(node: &Node) -> Vec<Peer> {
    let own = Peer {
        name: node.config.name.clone(),
        address: node
            .config
            .advertise
            .as_ref()
            .map_or_else(|| node.listen.to_string(), ToString::to_string),
        local: true,
        up: true,
        since_s: node.started.elapsed().as_secs(),
        kernel: Some(node.own.kernel.clone()),
        version: Some(node.own.version.clone()),
        rtt_us: None,
        last_error: None,
    };
    let mut all = node.peers.status();
    all.push(own);
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}
