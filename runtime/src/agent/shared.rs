//! What the agent's threads share.
//!
//! ```text
//!  main = tracer     ptrace, waits, births; embeds the commit rules        ◀── commands (queue + eventfd)
//!  home              receives the session: replies go straight to the body
//!  calls, per body   receives notifications; sends calls home
//!  streams           one thread per connection; an image arrives or leaves
//! ```

use super::ahead::Ahead;
use super::calls::Calls;
use super::depart::Streams;
use super::family::Family;
use super::files::Files;
use super::lanes::Lanes;
use super::mapping::Fetches;
use super::usage::Meter;
use super::write_back::Watched;
use crate::link::session::SendError;
use crate::link::{Identity, Pins, Security, Session};
use crate::node::client::Control;
use crate::syscall::marshal::Forward;
use mosix_sys::notif::Listener;
use mosix_sys::procmem::ProcMem;
use mosix_wire::call::Reply;
use mosix_wire::control::Fingerprint;
use mosix_wire::frame;
use mosix_wire::ids::{Epoch, JobId, NodeName, Nonce, Pid, Tid};
use mosix_wire::image::{Clocks, FileRef, ProcessImage};
use mosix_wire::link::{Exit, ToHome, ToHost};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

/// Who this agent is, as its command line says.
#[derive(Debug, Clone)]
pub struct Config {
    /// The job.
    pub job: JobId,
    /// Its home node.
    pub home_node: NodeName,
    /// The supervisor's life.
    pub home: Nonce,
    /// The certificate that the supervisor shows.
    pub supervisor: Fingerprint,
    /// The job's user at home.
    pub uid: u32,
    /// Bytes of memory that the bodies may have.
    pub memory: Option<u64>,
    /// State folder of this node's daemon.
    pub state_dir: PathBuf,
    /// The daemon, through its folder: with a user of its own the agent might not find the way to it any more.
    pub control: Arc<Control>,
    /// Links without TLS, because the node's configuration says so.
    pub plain: bool,
}

/// How the home of a process is reached from threads other than the tracer.
#[derive(Debug)]
pub struct BodyCalls {
    /// The process.
    pub pid: Pid,
    /// Its thread-group id on this node.
    pub host: i32,
    /// Its epoch, as calls name it; changes when it runs on after a failed move.
    pub epoch: AtomicU64,
    /// Where its calls arrive, with those of the bodies that it forked, or was forked from, here.
    pub family: Arc<Family>,
    /// Its calls.
    pub calls: Calls,
    /// Its memory that belongs to objects at home. Taken after `sending`.
    pub watched: Mutex<Watched>,
    /// What it has used.
    pub usage: Mutex<Meter>,
    /// Held while a call is on its way into the session: who has it knows that nothing older is still to be sent.
    pub sending: Mutex<()>,
}

impl BodyCalls {
    /// The epoch that calls name now.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// Where its calls arrive.
    pub fn listener(&self) -> &Listener {
        &self.family.listener
    }
}

/// What threads want of the tracer.
pub enum Command {
    /// A stream of another agent has ended.
    StreamEnded(NodeName),
    /// Home said something that is not a reply.
    Home(ToHost),
    /// The session ended; why.
    HomeGone(String),
    /// An image will come: process, epoch, files, threads.
    Prepare(Pid, Epoch, Vec<FileRef>, Vec<Tid>),
    /// The stream on which it was to come has ended.
    Unprepare(Pid, Epoch),
    /// An image arrives; the answer is where its pages go.
    Arrive {
        /// The image, already judged.
        image: Box<ProcessImage>,
        /// From another agent, or from home.
        from: Option<NodeName>,
        /// Where its pages go, or why it is refused.
        answer: SyncSender<Result<ProcMem, String>>,
    },
    /// All pages of an image are written: bytes.
    Filled(Pid, Epoch, u64),
    /// The stream of an image broke, or it is wrong.
    Broken(Pid, Epoch, String),
    /// Home's answer to a call, which came behind signals that are still to be placed.
    Reply(Reply, Vec<u8>),
    /// Signals waited for the end of a call that home did not get.
    Late(Pid),
    /// The deputy has made a thread, or a child: the process, its creator's number on this node and notification, its own number.
    Made(Pid, i32, u64, Tid),
    /// A thread executes a program: the process, its number on this node and notification, the call.
    Exec(Pid, i32, u64, Box<Forward>),
    /// A call is over for whose end signals waited: thread on this node, result.
    Due(Pid, i32, i64),
    /// A thread made a call that runs only at home.
    WantHome(Pid, u32),
    /// A thread called exit_group, or the last one exit.
    Exit(Pid, Exit),
    /// The listener of a body hung up: no thread is left.
    HungUp(Pid),
    /// Home wants a process on this stream.
    DepartHome {
        /// The process.
        pid: Pid,
        /// The epoch that the image will have.
        epoch: Epoch,
        /// Where the image goes.
        streams: Box<Streams>,
    },
    /// The stream for a departing image is there, and its files are known; or why not.
    Ready(Pid, Epoch, Result<Box<Streams>, String>),
    /// All of a departing image but its end was sent.
    PagesSent(Pid, Epoch),
    /// The stream of a departing image broke.
    StreamBroken(Pid, Epoch, String),
}

/// Shared by all threads of the agent.
pub struct Shared {
    /// Who this agent is.
    pub config: Config,
    /// The agent's life.
    pub life: Nonce,
    /// Its keys.
    pub identity: Identity,
    /// The session with home.
    pub session: Session,
    /// Bodies whose calls are served.
    pub bodies: RwLock<HashMap<Pid, Arc<BodyCalls>>>,
    /// Files of home.
    pub files: Mutex<Files>,
    /// Files that bodies map while they are here.
    pub fetches: Mutex<Fetches>,
    /// Signals of home that the tracer has not looked at yet: an answer that comes behind them waits for them.
    pub signals: AtomicUsize,
    /// Numbers of new threads and children can be chosen here: they are made here.
    pub numbers: AtomicBool,
    /// Further page streams of moves under way.
    pub lanes: Lanes,
    expected: Mutex<HashMap<NodeName, Fingerprint>>,
    announced: Condvar,
    /// Open streams of other agents.
    streams: Mutex<HashMap<NodeName, usize>>,
    ahead: Mutex<Ahead>,
    queue: Sender<Command>,
    bell: EventFd,
    starter: Sender<Start>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Work for a thread of its own, and where to say whether there is one.
type Start = (String, Box<dyn FnOnce() + Send>, SyncSender<io::Result<()>>);

/// Starts threads for the tracer, which cannot start any ([`super::nest::Nest::enter`]).
fn starter() -> io::Result<Sender<Start>> {
    let (tx, rx) = channel::<Start>();
    std::thread::Builder::new().name("starter".to_owned()).spawn(move || {
        for (name, work, answer) in rx {
            let started = std::thread::Builder::new().name(name).spawn(work);
            let _ = answer.send(started.map(drop));
        }
    })?;
    Ok(tx)
}

/// Takes a lock whose holder may have panicked: what it protects is kept whole between statements.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Shared {
    /// Makes it, with the tracer's end of the queue.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new(
        config: Config,
        identity: Identity,
        session: Session,
        life: Nonce,
    ) -> io::Result<(Arc<Self>, Receiver<Command>)> {
        let (queue, commands) = channel();
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Self {
            config,
            life,
            identity,
            session,
            bodies: RwLock::default(),
            files: Mutex::default(),
            fetches: Mutex::default(),
            signals: AtomicUsize::new(0),
            numbers: AtomicBool::new(false),
            lanes: Lanes::default(),
            expected: Mutex::default(),
            announced: Condvar::new(),
            streams: Mutex::default(),
            ahead: Mutex::default(),
            queue,
            bell,
            starter: starter()?,
        };
        Ok((Arc::new(shared), commands))
    }

    /// Starts a thread, from whichever thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(&self, name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let (answer, started) = sync_channel(1);
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        self.starter.send((name, Box::new(work), answer)).map_err(|_| gone())?;
        started.recv().map_err(|_| gone())?
    }

    /// Gives the tracer a command and wakes it.
    pub fn command(&self, command: Command) {
        // The tracer is the main thread: without it there is no process.
        let _ = self.queue.send(command);
        let _ = self.bell.write(1);
    }

    /// Readable when commands wait.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Makes the bell silent.
    pub fn quiet(&self) {
        let _ = self.bell.read();
    }

    /// The body with this pid at home.
    pub fn body(&self, pid: Pid) -> Option<Arc<BodyCalls>> {
        self.bodies
            .read()
            .unwrap_or_else(|poison| poison.into_inner())
            .get(&pid)
            .cloned()
    }

    /// Says something to home. A message that cannot be sent belongs to a session that is over: the receiving thread notices too.
    pub fn tell(&self, message: &ToHome, payload: &[&[u8]]) {
        if let Err(error) = self.try_tell(message, payload) {
            tracing::warn!(job = %self.config.job, %error, "a message to home was not sent");
        }
    }

    /// Says something from the receiving thread, which must not wait for room, because acknowledgements arrive on it. False when it was
    /// not sent.
    #[must_use]
    pub fn tell_at_once(&self, message: &ToHome) -> bool {
        frame::encode_body(message).is_ok_and(|body| self.session.try_send(&body, &[]).is_ok())
    }

    /// Says something to home with the session's next flush.
    pub fn tell_later(&self, message: &ToHome, payload: &[&[u8]]) {
        let encoded = frame::encode_body(message).map_err(SendError::from);
        if let Err(error) = encoded.and_then(|body| self.session.send_later(&body, payload)) {
            tracing::warn!(job = %self.config.job, %error, "a message to home was not sent");
        }
    }

    /// Says something to home, or why not.
    ///
    /// # Errors
    /// The session is over, or the message too large.
    pub fn try_tell(&self, message: &ToHome, payload: &[&[u8]]) -> Result<(), SendError> {
        self.session.send(&frame::encode_body(message)?, payload)
    }

    /// Keys for the supervisor's connections.
    ///
    /// # Errors
    /// Those of the TLS library's set-up.
    pub fn security(&self, peer: Fingerprint) -> Result<Security, crate::link::tls::TlsError> {
        if self.config.plain {
            Ok(Security::Plain)
        } else {
            Security::tls(&self.identity, &Pins::one(peer))
        }
    }

    /// A stream of another agent begins (+1) or ends (-1).
    pub fn count_stream(&self, node: &NodeName, change: isize) {
        let mut streams = lock(&self.streams);
        let count = streams.entry(node.clone()).or_default();
        *count = count.saturating_add_signed(change);
        if change < 0 {
            drop(streams);
            self.command(Command::StreamEnded(node.clone()));
        }
    }

    /// Streams of the agent on `node` that are open.
    pub fn streams_from(&self, node: &NodeName) -> usize {
        lock(&self.streams).get(node).copied().unwrap_or(0)
    }

    /// Home announced an agent whose connections are welcome.
    pub fn expect(&self, node: NodeName, fingerprint: Fingerprint) {
        lock(&self.expected).insert(node, fingerprint);
        self.announced.notify_all();
    }

    /// The certificate of the agent on `node`, once home has announced it.
    pub fn expected(&self, node: &NodeName, patience: Duration) -> Option<Fingerprint> {
        let deadline = Instant::now() + patience;
        let mut expected = lock(&self.expected);
        loop {
            if let Some(fingerprint) = expected.get(node) {
                return Some(*fingerprint);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            expected = self
                .announced
                .wait_timeout(expected, left)
                .unwrap_or_else(|poison| poison.into_inner())
                .0;
        }
    }

    /// How far home's clocks are ahead of this node's.
    pub fn ahead(&self) -> Ahead {
        *lock(&self.ahead)
    }

    /// Clocks of home came in a message.
    pub fn observe(&self, home: &Clocks, now: &Clocks) {
        lock(&self.ahead).observe(home, now);
    }

    /// Says home that a thread ended.
    pub fn thread_ended(&self, body: &BodyCalls, tid: Tid, status: i32) {
        self.tell(
            &ToHome::ThreadExit {
                pid: body.pid,
                tid,
                epoch: body.epoch(),
                status,
            },
            &[],
        );
    }
}
