//! Control links: one per peer, dialled by either side, dialled again when it breaks.
//!
//! Both daemons of a pair dial, so that one that cannot be dialled (behind NAT, a closed port) still has its link. When both
//! succeed, the link dialled by the node whose name comes first stays; both sides decide by the same rule. A link that is
//! dialled again from the same side replaces the earlier one: its dialler knows that it broke.

use super::config::{Config, PeerConfig};
use super::io::{Connection, recv, send, within};
use super::secure::describe;
use mosix_wire::control::{Peer, reason};
use mosix_wire::ids::NodeName;
use mosix_wire::limits;
use mosix_wire::node::{NodeAnswer, NodeHello, NodeMessage, NodeRequest, Refusal};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot};

/// Time for connecting, for a handshake, and for the hello.
pub(super) const GREETING: Duration = Duration::from_secs(5);

/// Pings this often.
const PING: Duration = Duration::from_secs(2);

/// A link on which nothing came for so long is dead.
const SILENCE: Duration = Duration::from_secs(7);

/// Pause between two attempts to dial: first, and longest.
const REDIAL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// How long the node whose name comes second leaves the dialling to the other.
const COURTESY: Duration = Duration::from_millis(300);

/// Longest wait for a peer's answer: it may be starting an agent.
const ANSWER: Duration = Duration::from_secs(20);

/// Requests of one peer under way at once.
const REQUESTS: usize = 64;

/// What answers a peer's requests.
pub type Handler = Arc<
    dyn Fn(NodeName, NodeRequest) -> Pin<Box<dyn Future<Output = Result<NodeAnswer, String>> + Send>> + Send + Sync,
>;

/// What dials a peer.
pub type Dialler =
    Arc<dyn Fn(PeerConfig) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send>> + Send + Sync>;

/// All peers of the node.
pub struct Peers {
    own: NodeHello,
    peers: HashMap<NodeName, Arc<PeerState>>,
    handler: Handler,
    next_link: AtomicU64,
}

struct PeerState {
    config: PeerConfig,
    inner: Mutex<Inner>,
    /// Signalled when the link goes.
    down: Notify,
    /// Signalled when a link comes.
    up: Notify,
}

struct Inner {
    link: Option<Link>,
    since: Instant,
    hello: Option<NodeHello>,
    rtt: Option<Duration>,
    last_error: Option<String>,
}

struct Link {
    id: u64,
    /// This node has dialled it.
    dialled: bool,
    outbox: mpsc::Sender<NodeMessage>,
    pending: Arc<Mutex<HashMap<u64, oneshot::Sender<Result<NodeAnswer, String>>>>>,
    next_request: Arc<AtomicU64>,
    /// Ends the link's tasks when dropped.
    _end: oneshot::Sender<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl PeerState {
    fn failed(&self, why: String) {
        let mut inner = lock(&self.inner);
        if inner.last_error.as_ref() != Some(&why) {
            tracing::warn!(peer = %self.config.name, address = %self.config.address, "{why}");
        }
        inner.last_error = Some(why);
    }
}

impl Peers {
    /// The peers of a configuration, all down.
    pub fn new(config: &Config, own: NodeHello, handler: Handler) -> Arc<Self> {
        let peers = config.peers.iter().map(|peer| {
            let inner = Inner {
                link: None,
                since: Instant::now(),
                hello: None,
                rtt: None,
                last_error: None,
            };
            let state = PeerState {
                config: peer.clone(),
                inner: Mutex::new(inner),
                down: Notify::new(),
                up: Notify::new(),
            };
            (peer.name.clone(), Arc::new(state))
        });
        let peers = peers.collect();
        Arc::new(Self {
            own,
            peers,
            handler,
            next_link: AtomicU64::new(1),
        })
    }

    /// Dials every peer, for ever.
    pub fn start(self: &Arc<Self>, dialler: &Dialler) {
        for peer in self.peers.values() {
            tokio::spawn(self.clone().keep(peer.clone(), dialler.clone()));
        }
    }

    async fn keep(self: Arc<Self>, peer: Arc<PeerState>, dialler: Dialler) {
        let mut pause = Duration::ZERO;
        loop {
            let down = peer.down.notified();
            if lock(&peer.inner).link.is_some() {
                down.await;
                pause = REDIAL.0;
            }
            let courtesy = if self.own.name > peer.config.name {
                COURTESY
            } else {
                Duration::ZERO
            };
            tokio::time::sleep(pause + courtesy).await;
            if lock(&peer.inner).link.is_some() {
                continue;
            }
            let mut refused = false;
            let attempt = async {
                let mut connection = dialler(peer.config.clone()).await?;
                let hello = self.greet(&mut connection).await?;
                if hello.name != peer.config.name {
                    let what = format!("the node there is {}, not {}", hello.name, peer.config.name);
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
                }
                Ok((connection, hello))
            };
            match attempt.await {
                Ok((connection, hello)) => {
                    refused = !self.install(&peer, connection, hello, true).await;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => refused = true,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    peer.failed(
                        "it closed the connection without a word: is its transport the same? its log says why"
                            .to_owned(),
                    );
                }
                Err(error) => peer.failed(describe(&error)),
            }
            if refused {
                // The other side's link is on its way to here; it may also be one that only the other side believes in.
                let _ = tokio::time::timeout(REDIAL.1, peer.up.notified()).await;
            }
            pause = (pause * 2).clamp(REDIAL.0, REDIAL.1);
        }
    }

    /// Exchanges hellos on a new connection, as dialler.
    async fn greet(&self, connection: &mut Box<dyn Connection>) -> io::Result<NodeHello> {
        within(GREETING, "greeting", async {
            send(connection, &NodeMessage::Hello(self.own.clone()), limits::NODE_MESSAGE).await?;
            match recv(connection, limits::NODE_MESSAGE).await? {
                NodeMessage::Hello(hello) => Ok(clean(hello)),
                NodeMessage::Refused(Refusal::Duplicate) => Err(io::ErrorKind::AlreadyExists.into()),
                NodeMessage::Refused(Refusal::Because(why)) => {
                    Err(io::Error::other(format!("it refused: {}", reason(why))))
                }
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it did not greet")),
            }
        })
        .await
    }

    /// Takes a connection that a peer has dialled. `proven` is the name in its certificate, with TLS.
    pub async fn accept(&self, proven: Option<NodeName>, mut connection: Box<dyn Connection>) -> io::Result<()> {
        let first = within(GREETING, "greeting", recv(&mut connection, limits::NODE_MESSAGE)).await?;
        let NodeMessage::Hello(hello) = first else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it did not greet"));
        };
        let hello = clean(hello);
        let refusal = match (&proven, self.peers.get(&hello.name)) {
            (Some(proven), _) if *proven != hello.name => Err(format!(
                "it says that it is {}, but its certificate is of {proven}",
                hello.name
            )),
            (_, None) if hello.name == self.own.name => Err(format!("two nodes call themselves {}", hello.name)),
            (_, None) => Err(format!(
                "{} does not list {} among its peers (mosixd.toml)",
                self.own.name, hello.name
            )),
            (_, Some(peer)) => Ok(peer),
        };
        let peer = match refusal {
            Ok(peer) => peer,
            Err(why) => {
                let message = NodeMessage::Refused(Refusal::Because(why.clone()));
                let _ = within(
                    GREETING,
                    "refusing",
                    send(&mut connection, &message, limits::NODE_MESSAGE),
                )
                .await;
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            }
        };
        if !self.wanted(peer, false) {
            let message = NodeMessage::Refused(Refusal::Duplicate);
            return within(
                GREETING,
                "refusing",
                send(&mut connection, &message, limits::NODE_MESSAGE),
            )
            .await;
        }
        let message = NodeMessage::Hello(self.own.clone());
        within(
            GREETING,
            "greeting",
            send(&mut connection, &message, limits::NODE_MESSAGE),
        )
        .await?;
        self.install(peer, connection, hello, false).await;
        Ok(())
    }

    /// Whether a link dialled by this side (or else by the peer) may take the place of what is there.
    fn wanted(&self, peer: &PeerState, dialled: bool) -> bool {
        let inner = lock(&peer.inner);
        let Some(link) = &inner.link else { return true };
        // In doubt the old link is asked for a sign of life: if it is dead, that shows it.
        let _ = link.outbox.try_send(NodeMessage::Ping(0));
        let ours_preferred = self.own.name < peer.config.name;
        link.dialled == dialled || dialled == ours_preferred
    }

    /// Makes a greeted connection the link of the peer; false when there is a better one.
    async fn install(
        &self,
        peer: &Arc<PeerState>,
        connection: Box<dyn Connection>,
        hello: NodeHello,
        dialled: bool,
    ) -> bool {
        if !self.wanted(peer, dialled) {
            return false;
        }
        let (outbox, inbox) = mpsc::channel(REQUESTS * 2);
        let (end, ended) = oneshot::channel();
        let pending = Arc::new(Mutex::new(HashMap::new()));
        let id = self.next_link.fetch_add(1, Ordering::Relaxed);
        let link = Link {
            id,
            dialled,
            outbox: outbox.clone(),
            pending: pending.clone(),
            next_request: Arc::new(AtomicU64::new(1)),
            _end: end,
        };
        {
            let mut inner = lock(&peer.inner);
            if inner.link.is_none() {
                inner.since = Instant::now();
            }
            tracing::info!(peer = %peer.config.name, dialled, kernel = hello.kernel, "link up");
            inner.hello = Some(hello);
            inner.last_error = None;
            inner.link = Some(link);
        }
        peer.up.notify_one();
        let run = Run {
            peer: peer.clone(),
            handler: self.handler.clone(),
            outbox,
            pending,
        };
        tokio::spawn(async move {
            let why = tokio::select! {
                why = run.run(connection, inbox) => why,
                _ = ended => "another link took its place".to_owned(),
            };
            run.gone(id, why);
        });
        true
    }

    /// Asks a peer and waits for its answer; the reason is for the user.
    pub async fn request(&self, node: &NodeName, request: NodeRequest) -> Result<NodeAnswer, String> {
        let Some(peer) = self.peers.get(node) else {
            let known = self
                .peers
                .keys()
                .map(|name| name.0.as_str())
                .collect::<Vec<_>>()
                .join(", ");
            return Err(format!(
                "unknown node {node}; the peers of {} are: {known}",
                self.own.name
            ));
        };
        // A link that breaks under the request is tried again on the next one, once: requests are idempotent.
        for last in [false, true] {
            let sent = {
                let inner = lock(&peer.inner);
                inner.link.as_ref().map(|link| {
                    let (tell, told) = oneshot::channel();
                    let id = link.next_request.fetch_add(1, Ordering::Relaxed);
                    lock(&link.pending).insert(id, tell);
                    (link.outbox.clone(), link.pending.clone(), id, told)
                })
            };
            let Some((outbox, pending, id, told)) = sent else {
                if !last
                    && tokio::time::timeout(Duration::from_secs(1), peer.up.notified())
                        .await
                        .is_ok()
                {
                    continue;
                }
                return Err(self.down(peer));
            };
            let message = NodeMessage::Request {
                id,
                request: request.clone(),
            };
            if outbox.send(message).await.is_ok() {
                match tokio::time::timeout(ANSWER, told).await {
                    Ok(Ok(answer)) => return answer.map_err(reason),
                    Ok(Err(_)) => {}
                    Err(_) => {
                        lock(&pending).remove(&id);
                        return Err(format!("{node} did not answer within {} s", ANSWER.as_secs()));
                    }
                }
            }
            if !last {
                let _ = tokio::time::timeout(Duration::from_secs(3), peer.up.notified()).await;
            }
        }
        Err(self.down(peer))
    }

    fn down(&self, peer: &PeerState) -> String {
        let inner = lock(&peer.inner);
        let why = inner.last_error.as_deref().unwrap_or("not connected yet");
        format!("no link to {} at {}: {why}", peer.config.name, peer.config.address)
    }

    /// The configuration of a peer.
    pub fn config(&self, node: &NodeName) -> Option<&PeerConfig> {
        self.peers.get(node).map(|peer| &peer.config)
    }

    /// Says farewell on all links.
    pub async fn bye(&self) {
        for peer in self.peers.values() {
            let link = lock(&peer.inner).link.as_ref().map(|link| link.outbox.clone());
            if let Some(outbox) = link {
                let _ = outbox.try_send(NodeMessage::Bye);
            }
        }
        // The writers have nothing else to do; a stuck one is not waited for.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// What is known of the peers.
    pub fn status(&self) -> Vec<Peer> {
        let mut out: Vec<Peer> = self
            .peers
            .values()
            .map(|peer| {
                let inner = lock(&peer.inner);
                Peer {
                    name: peer.config.name.clone(),
                    address: peer.config.address.to_string(),
                    local: false,
                    up: inner.link.is_some(),
                    since_s: inner.since.elapsed().as_secs(),
                    kernel: inner.hello.as_ref().map(|hello| hello.kernel.clone()),
                    version: inner.hello.as_ref().map(|hello| hello.version.clone()),
                    rtt_us: inner.rtt.map(|rtt| rtt.as_micros() as u64),
                    last_error: inner.last_error.clone(),
                }
            })
            .collect();
        out.sort_by(|a, b| a.name.cmp(&b.name));
        out
    }
}

/// A peer's words about itself, fit to be shown.
fn clean(hello: NodeHello) -> NodeHello {
    NodeHello {
        name: hello.name,
        version: reason(hello.version),
        kernel: reason(hello.kernel),
    }
}

/// A link at work.
struct Run {
    peer: Arc<PeerState>,
    handler: Handler,
    outbox: mpsc::Sender<NodeMessage>,
    pending: Arc<Mutex<HashMap<u64, oneshot::Sender<Result<NodeAnswer, String>>>>>,
}

impl Run {
    /// Runs the link until it ends, and says why it did.
    async fn run(&self, connection: Box<dyn Connection>, inbox: mpsc::Receiver<NodeMessage>) -> String {
        let (mut from, mut to) = tokio::io::split(connection);
        let pings = Mutex::new(HashMap::new());
        let why = tokio::select! {
            error = self.write(&mut to, inbox, &pings) => error,
            error = self.read(&mut from, &pings) => error,
        };
        let _ = tokio::time::timeout(Duration::from_millis(200), tokio::io::AsyncWriteExt::shutdown(&mut to)).await;
        why
    }

    async fn write(
        &self,
        to: &mut (impl tokio::io::AsyncWrite + Unpin),
        mut inbox: mpsc::Receiver<NodeMessage>,
        pings: &Mutex<HashMap<u64, Instant>>,
    ) -> String {
        let mut tick = tokio::time::interval(PING);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut number = 0;
        loop {
            let message = tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => message,
                    None => return "the daemon stops".to_owned(),
                },
                _ = tick.tick() => {
                    number += 1;
                    let mut pings = lock(pings);
                    pings.retain(|_, sent| sent.elapsed() < SILENCE);
                    pings.insert(number, Instant::now());
                    NodeMessage::Ping(number)
                }
            };
            let last = matches!(message, NodeMessage::Bye);
            if let Err(error) = within(SILENCE, "writing", send(to, &message, limits::NODE_MESSAGE)).await {
                return describe(&error);
            }
            if last {
                return "this daemon stops".to_owned();
            }
        }
    }

    async fn read(
        &self,
        from: &mut (impl tokio::io::AsyncRead + Unpin),
        pings: &Mutex<HashMap<u64, Instant>>,
    ) -> String {
        let permits = Arc::new(tokio::sync::Semaphore::new(REQUESTS));
        loop {
            let message = match within(SILENCE, "the link is silent", recv(from, limits::NODE_MESSAGE)).await {
                Ok(message) => message,
                Err(error) => return describe(&error),
            };
            match message {
                NodeMessage::Ping(number) => {
                    // With a full outbox the peer hears enough from us.
                    let _ = self.outbox.try_send(NodeMessage::Pong(number));
                }
                NodeMessage::Pong(number) => {
                    if let Some(sent) = lock(pings).remove(&number) {
                        lock(&self.peer.inner).rtt = Some(sent.elapsed());
                    }
                }
                NodeMessage::Request { id, request } => {
                    let Ok(permit) = permits.clone().try_acquire_owned() else {
                        return format!("more than {REQUESTS} requests at once");
                    };
                    let (handler, outbox, name) =
                        (self.handler.clone(), self.outbox.clone(), self.peer.config.name.clone());
                    tokio::spawn(async move {
                        let answer = handler(name, request).await;
                        let _ = outbox
                            .send(NodeMessage::Answer {
                                id,
                                answer: answer.map_err(reason),
                            })
                            .await;
                        drop(permit);
                    });
                }
                NodeMessage::Answer { id, answer } => {
                    if let Some(tell) = lock(&self.pending).remove(&id) {
                        let _ = tell.send(answer);
                    }
                }
                NodeMessage::Refused(Refusal::Duplicate) => return "another link took its place".to_owned(),
                NodeMessage::Refused(Refusal::Because(why)) => return format!("it refused: {}", reason(why)),
                NodeMessage::Bye => return "its daemon was stopped".to_owned(),
                NodeMessage::Hello(_) => return "it greeted twice".to_owned(),
            }
        }
    }

    /// Notes the end of the link with this number.
    fn gone(&self, id: u64, why: String) {
        // Dropping what waits tells the waiters.
        lock(&self.pending).clear();
        let mut inner = lock(&self.peer.inner);
        if inner.link.as_ref().is_some_and(|link| link.id == id) {
            tracing::info!(peer = %self.peer.config.name, why, "link down");
            inner.link = None;
            inner.since = Instant::now();
            inner.last_error = Some(why);
            drop(inner);
            self.peer.down.notify_one();
        }
    }
}
