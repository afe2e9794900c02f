//! Sessions with the agents of this job, one per host, made at the first use.

use super::Message;
use super::ask::Questions;
use crate::deputy::Deputy;
use crate::deputy::calls::Job;
use crate::link::session::State;
use crate::link::{Identity, LinkError, Pins, Security, Session, SessionOptions, Stream};
use crate::node::client::{ClientError, Control};
use crate::supervisor::engine::Handle;
use mosix_wire::control::{Fingerprint, OpenAgent, Purpose};
use mosix_wire::ids::{JobId, NodeName, Nonce, Pid};
use mosix_wire::link::{ProcFile, ToHome, ToHost};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How long a host waits for a silent home before it freezes the bodies, in seconds.
const LEASE_S: u32 = 300;
/// How long a move waits for a link that is down.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a link may be cut before its session knows.
const UNNOTICED: Duration = Duration::from_secs(10);
/// Pause between two attempts.
const AGAIN: Duration = Duration::from_millis(200);
/// How often home's clocks are told at the beginning: the quickest of these messages decides how exact the clocks of bodies are.
const CLOCK_SAMPLES: usize = 20;

/// Why a host cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The node's daemon cannot or does not want to.
    #[error(transparent)]
    Daemon(#[from] ClientError),
    /// The link could not be secured.
    #[error("link to {node}: {error}")]
    Link {
        /// The host.
        node: NodeName,
        /// Why.
        error: LinkError,
    },
    /// Keys could not be made.
    #[error(transparent)]
    Keys(#[from] crate::link::tls::TlsError),
    /// A local failure.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A host with an agent of this job.
pub struct Host {
    /// Its name.
    pub node: NodeName,
    /// The agent's certificate.
    pub fingerprint: Fingerprint,
    /// Control, calls and replies.
    pub session: Arc<Session>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Host {
    /// Sends an order; one that cannot be sent is lost with its session, which the engine learns otherwise.
    pub fn order(&self, message: &ToHost) {
        match postcard::to_stdvec(message) {
            Ok(body) => {
                if let Err(error) = self.session.send(&body, &[]) {
                    tracing::debug!(node = %self.node, %error, "order not sent");
                }
            }
            Err(error) => tracing::error!(%error, "an order cannot be encoded"),
        }
    }
}

/// Deputies by process, for link readers.
pub type Deputies = Arc<RwLock<HashMap<i32, Arc<Deputy>>>>;

/// Everything that is needed to reach hosts, shared by the engine and its workers.
pub struct Hosts {
    job: JobId,
    home: Nonce,
    identity: Identity,
    pins: Pins,
    known: Mutex<HashMap<NodeName, Arc<Host>>>,
    /// Held while a host is connected, which takes its time; [`Hosts::known`] never is.
    connecting: Mutex<()>,
    /// Processes whose bodies are away.
    pub deputies: Deputies,
    handle: Handle<Message>,
    view: Job,
    questions: Questions,
}

impl Hosts {
    /// Prepares; nothing is connected yet.
    ///
    /// # Errors
    /// When no keys can be made.
    pub fn new(job: JobId, home: Nonce, handle: Handle<Message>, view: Job) -> Result<Self, HostError> {
        Ok(Self {
            job,
            home,
            identity: Identity::generate()?,
            pins: Pins::default(),
            known: Mutex::default(),
            connecting: Mutex::default(),
            deputies: Deputies::default(),
            handle,
            view,
            questions: Questions::default(),
        })
    }

    fn security(&self, control: &Control) -> Result<Security, HostError> {
        if control.status()?.transport == "plain" {
            return Ok(Security::Plain);
        }
        Ok(Security::tls(&self.identity, &self.pins)?)
    }

    /// The session with a host; made when there is none.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn get(self: &Arc<Self>, node: &NodeName) -> Result<Arc<Host>, HostError> {
        let _one = self.connecting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = self.known(node) {
            return Ok(host);
        }
        let host = self.connect(node)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(node.clone(), Arc::clone(&host));
        drop(known);
        self.handle.message(Message::Connected(node.clone(), Arc::clone(&host)));
        Ok(host)
    }

    fn known(&self, node: &NodeName) -> Option<Arc<Host>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(node).map(Arc::clone)
    }

    /// Forgets a host whose session is over.
    pub fn forget(&self, node: &NodeName) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
    }

    fn connect(self: &Arc<Self>, node: &NodeName) -> Result<Arc<Host>, HostError> {
        let control = Control::local()?;
        let fingerprint = control.open_agent(&OpenAgent {
            node: node.clone(),
            job: self.job,
            home: self.home,
            supervisor: self.identity.fingerprint(),
            uid: nix::unistd::getuid().as_raw(),
        })?;
        self.pins.add(fingerprint);
        let security = self.security(&control)?;
        let (target, job) = (node.clone(), self.job);
        let opener = move || -> io::Result<Stream> {
            let fd = Control::local()?.open_stream(&target, job, Purpose::Session)?;
            Stream::dial(fd, &security).map_err(io::Error::other)
        };
        let session = Session::dial(opener, SessionOptions::default()).map_err(|error| HostError::Link {
            node: node.clone(),
            error,
        })?;
        let host = Arc::new(Host {
            node: node.clone(),
            fingerprint,
            session: Arc::new(session),
        });
        host.order(&ToHost::Hello {
            job: self.job,
            home: self.home,
            lease_s: LEASE_S,
            clocks: crate::process::capture::clocks(),
        });
        let telling = Arc::clone(&host);
        std::thread::Builder::new()
            .name(format!("clocks-{node}"))
            .spawn(move || {
                for _ in 0..CLOCK_SAMPLES {
                    std::thread::sleep(Duration::from_millis(1));
                    telling.order(&ToHost::Clocks(crate::process::capture::clocks()));
                }
            })?;
        let (hosts, reading) = (Arc::clone(self), Arc::clone(&host));
        std::thread::Builder::new()
            .name(format!("link-{node}"))
            .spawn(move || hosts.read(&reading))?;
        Ok(host)
    }

    /// What the policy asks about the job.
    pub fn view(&self) -> &Job {
        &self.view
    }

    /// Opens a page stream to a host. While the link to a known host is down, waits for it and tells so by `waiting`.
    ///
    /// # Errors
    /// [`HostError`], when there is no hope or no patience left.
    pub fn pages(&self, node: &NodeName, waiting: impl Fn(&str)) -> Result<Stream, HostError> {
        let (mut deadline, begun) = (Instant::now() + PATIENCE, Instant::now());
        loop {
            let error = match self.try_pages(node) {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            let state = self.known(node).map(|host| host.session.state());
            match (&error, state) {
                (HostError::Daemon(ClientError::NoAgent(_)), _) | (_, None | Some(State::Closed(_))) => {
                    return Err(error);
                }
                (_, Some(State::Down { .. })) => deadline = begun + PATIENCE,
                // What fails although the link stands will not be mended by the link; it may have been cut only a moment ago.
                (_, Some(State::Up)) => deadline = deadline.min(Instant::now() + UNNOTICED),
            }
            if Instant::now() >= deadline {
                return Err(error);
            }
            waiting(&format!("waiting for the link to {node} ({error})"));
            std::thread::sleep(AGAIN);
        }
    }

    fn try_pages(&self, node: &NodeName) -> Result<Stream, HostError> {
        let control = Control::local()?;
        let security = self.security(&control)?;
        let fd = control.open_stream(node, self.job, Purpose::Pages)?;
        Stream::dial(fd, &security).map_err(|error| HostError::Link {
            node: node.clone(),
            error,
        })
    }

    /// Serves one host: calls go to their deputies at once, everything else to the engine.
    fn read(&self, host: &Host) {
        let mut frame = crate::link::Frame::default();
        let why = loop {
            if let Err(closed) = host.session.recv_into(&mut frame) {
                break closed.to_string();
            }
            match frame.message::<ToHome>() {
                Ok(ToHome::Call(call)) => {
                    let (pid, epoch) = (call.pid, call.epoch);
                    let deputy = self.deputy(pid);
                    let (admitted, first) = deputy
                        .as_ref()
                        .map_or((false, false), |deputy| deputy.admit(&host.node, epoch));
                    if let (true, Some(deputy)) = (admitted, deputy) {
                        if first {
                            self.handle.message(Message::First(host.node.clone(), pid, epoch));
                        }
                        // Not for a single call: this thread would then wake deputy and host in turn, and the scheduler spreads who does.
                        let on = host.session.is_amid().then_some(&host.session);
                        deputy.call(call, &frame.payload, &self.view, on);
                    } else {
                        // A frame of an old epoch is answered "dead".
                        tracing::debug!(node = %host.node, %pid, ?epoch, "call of a body that is not the one");
                        host.order(&ToHost::Drop { pid, epoch });
                    }
                }
                Ok(ToHome::WriteBack { pid, epoch, address }) => {
                    let deputy = self.deputy(pid);
                    let (admitted, first) = deputy
                        .as_ref()
                        .map_or((false, false), |deputy| deputy.admit(&host.node, epoch));
                    if first {
                        self.handle.message(Message::First(host.node.clone(), pid, epoch));
                    }
                    if let (true, Some(deputy)) = (admitted, deputy)
                        && let Err(error) = super::write_back::write(deputy.pid, address, &frame.payload)
                    {
                        tracing::warn!(node = %host.node, %pid, address, %error, "shared memory that came back");
                    }
                }
                Ok(ToHome::ProcText { number }) => self.questions.answered(number, &frame.payload),
                Ok(message) => self.handle.message(Message::From(host.node.clone(), Box::new(message))),
                Err(error) => {
                    host.session.close();
                    break format!("it sends what this version does not understand: {error}");
                }
            }
        };
        self.handle.message(Message::Lost(host.node.clone(), why));
    }

    fn deputy(&self, pid: Pid) -> Option<Arc<Deputy>> {
        self.deputies
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&pid.0)
            .cloned()
    }

    /// What the kernel of the host of `pid`'s body says in a file of /proc; see [`JobView::body_text`](crate::syscall::policy::JobView::body_text).
    pub fn body_text(&self, pid: i32, thread: Option<i32>, file: ProcFile) -> Option<Option<Vec<u8>>> {
        let session = self.deputy(Pid(pid))?.session()?;
        Some(self.questions.ask(&session, pid, thread, file))
    }

    /// Ends all sessions for good.
    pub fn bye(&self) {
        let known = std::mem::take(&mut *self.known.lock().unwrap_or_else(PoisonError::into_inner));
        for host in known.values() {
            host.order(&ToHost::Bye);
            host.session.close();
        }
    }
}
