//! The agents of this node: one per job, started on demand, found again after a restart of the daemon, forgotten when they end.
//!
//! An agent lives as long as its socket answers: the daemon holds a connection to it and waits for the end of that. It needs
//! no list on disk, and the agent needs no parent.

use super::agent_start::{AgentReady, AgentStart, LINE};
use super::cgroup::Groups;
use super::config::Config;
use super::{io as nodeio, paths};
use mosix_sys::fdpass;
use mosix_wire::control::{
    AgentAnswer, AgentIdentity, AgentMessage, AgentStatus, Fingerprint, StreamAnswer, StreamHello, encode, reason,
};
use mosix_wire::ids::{JobId, NodeName, Nonce};
use mosix_wire::limits;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;

/// How long an agent may take to be ready: it makes keys and namespaces, on a loaded machine.
const START: Duration = Duration::from_secs(10);

/// How long a living agent may take to answer on its socket.
const ANSWER: Duration = Duration::from_secs(3);

/// An agent's log is cut when it is longer than this: agents live for weeks.
const LOG_MOST: u64 = 4 << 20;

/// How often logs are looked at.
const LOG_CHECK: Duration = Duration::from_secs(60);

/// Bytes of an ended agent's log that go to the daemon's.
const LOG_TAIL: u64 = 2048;

/// Failures of agents that are remembered.
const FAILURES: usize = 256;

/// What an agent is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The job.
    pub job: JobId,
    /// Its home.
    pub home_node: NodeName,
    /// The supervisor's life.
    pub home: Nonce,
    /// The supervisor's certificate.
    pub supervisor: Fingerprint,
    /// The job's user at home.
    pub uid: u32,
}

struct Running {
    identity: AgentIdentity,
    pidfd: OwnedFd,
    pid: u32,
    /// This daemon has killed it: its end is no failure.
    ended_here: Arc<AtomicBool>,
}

/// One job's place; its lock is held while an agent is started or ended.
type Slot = Arc<tokio::sync::Mutex<Option<Running>>>;

/// All agents of the node.
pub struct Agents {
    config: Config,
    groups: Option<Groups>,
    slots: Mutex<HashMap<JobId, Slot>>,
    status: Mutex<BTreeMap<JobId, AgentStatus>>,
    /// How agents failed lately, for whoever asks for them.
    failures: Mutex<VecDeque<(JobId, String)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Agents {
    /// Prepares the folder and the groups.
    pub fn new(config: &Config) -> io::Result<Arc<Self>> {
        paths::create_dir(&paths::agents_dir(&config.state_dir), 0o700)?;
        let groups = Groups::find(&config.state_dir);
        Ok(Arc::new(Self {
            config: config.clone(),
            groups,
            slots: Mutex::default(),
            status: Mutex::default(),
            failures: Mutex::default(),
        }))
    }

    /// Finds the agents that an earlier daemon started, and clears away what dead ones left.
    pub async fn adopt(self: &Arc<Self>) -> io::Result<()> {
        let folder = paths::agents_dir(&self.config.state_dir);
        let mut entries = tokio::fs::read_dir(&folder).await?;
        let mut others = Vec::new();
        let mut asked = tokio::task::JoinSet::new();
        while let Some(entry) = entries.next_entry().await? {
            let path = entry.path();
            let job = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .and_then(|stem| stem.parse::<JobId>().ok());
            match (job, path.extension().and_then(|extension| extension.to_str())) {
                (Some(job), Some("sock")) => {
                    let this = self.clone();
                    asked.spawn(async move { this.adopt_or_clear(job, &path).await.then_some(job) });
                }
                (Some(job), _) => others.push((job, path)),
                (None, _) => tracing::warn!(path = %path.display(), "a file that does not belong here"),
            }
        }
        let living: Vec<JobId> = asked.join_all().await.into_iter().flatten().collect();
        for (job, path) in others {
            if !living.contains(&job) {
                let _ = tokio::fs::remove_file(path).await;
            }
        }
        if let Some(groups) = self.groups.clone() {
            let _ = tokio::task::spawn_blocking(move || groups.sweep(&living)).await;
        }
        Ok(())
    }

    /// Adopts the agent behind a socket, or clears away what a dead one left; false for a dead one.
    async fn adopt_or_clear(self: &Arc<Self>, job: JobId, path: &Path) -> bool {
        let slot = lock(&self.slots).entry(job).or_default().clone();
        let mut place = slot.lock().await;
        match self.adopt_one(job, path, &mut place, &slot).await {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                tracing::warn!(%job, "an agent does not answer; left alone");
                self.forget(job, &slot);
                true
            }
            Err(error) => {
                tracing::info!(%job, %error, "removing what an agent left that is gone");
                self.clear(job).await;
                self.forget(job, &slot);
                false
            }
        }
    }

    async fn adopt_one(
        self: &Arc<Self>,
        job: JobId,
        path: &Path,
        place: &mut Option<Running>,
        slot: &Slot,
    ) -> io::Result<()> {
        let (watch, identity, pid, pidfd) = identify(path).await?;
        if identity.job != job {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the agent there is another job's",
            ));
        }
        tracing::info!(%job, pid, home = %identity.home_node, "agent found again");
        self.enter(place, slot, Running::new(identity, pidfd, pid), watch, None);
        Ok(())
    }

    /// Notes a running agent and waits for its end in the background.
    fn enter(
        self: &Arc<Self>,
        place: &mut Option<Running>,
        slot: &Slot,
        running: Running,
        mut watch: UnixStream,
        child: Option<tokio::process::Child>,
    ) {
        let (job, pid) = (running.identity.job, running.pid);
        let (adopted, ended_here) = (child.is_none(), Arc::clone(&running.ended_here));
        lock(&self.failures).retain(|(other, _)| *other != job);
        let status = AgentStatus {
            job,
            home: running.identity.home_node.clone(),
            pid,
            uid: running.identity.uid,
            adopted,
        };
        lock(&self.status).insert(job, status);
        *place = Some(running);
        let (this, slot) = (self.clone(), slot.clone());
        tokio::spawn(async move {
            // Nothing is ever sent: the read ends with the agent.
            let _ = watch.read(&mut [0; 1]).await;
            // Its words before its files go.
            if !ended_here.load(Ordering::Acquire) {
                this.look_back(job, pid, child).await;
            }
            let mut place = slot.lock().await;
            if place.as_ref().is_some_and(|running| running.pid == pid) {
                *place = None;
                tracing::info!(%job, pid, "agent ended");
                this.clear(job).await;
                this.forget(job, &slot);
            }
        });
    }

    /// Notes how an agent ended that this daemon did not end, when it failed.
    async fn look_back(&self, job: JobId, pid: u32, child: Option<tokio::process::Child>) {
        let status = match child {
            Some(mut child) => match tokio::time::timeout(ANSWER, child.wait()).await {
                Ok(Ok(status)) if status.success() => return,
                Ok(Ok(status)) => status.to_string(),
                _ => "it is not gone yet".to_owned(),
            },
            // Another daemon's child: nobody knows its status.
            None => "status unknown".to_owned(),
        };
        let log = self.log_tail(job).await;
        tracing::warn!(%job, pid, status, log, "an agent failed");
        let words = match log.rsplit_once(" ERROR ") {
            Some((_, last)) => format!("{status}, {last}"),
            None => status,
        };
        let mut failures = lock(&self.failures);
        if failures.len() >= FAILURES {
            failures.pop_front();
        }
        failures.push_back((job, words));
    }

    /// How the last agent of a job failed here, once its end was seen.
    async fn failure(&self, job: JobId) -> Option<String> {
        for _ in 0..25 {
            if !lock(&self.slots).contains_key(&job) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let failures = lock(&self.failures);
        let found = failures.iter().find(|(other, _)| *other == job);
        found.map(|(_, why)| why.clone())
    }

    /// Takes the job's place out of the table. Called with the place's lock held and nobody in it.
    fn forget(&self, job: JobId, slot: &Slot) {
        lock(&self.status).remove(&job);
        let mut slots = lock(&self.slots);
        if slots.get(&job).is_some_and(|other| Arc::ptr_eq(other, slot)) {
            slots.remove(&job);
        }
    }

    /// Gives the agent of a job, starting one when there is none; the reason is for the user.
    pub async fn open(self: &Arc<Self>, wanted: &Wanted) -> Result<Fingerprint, String> {
        loop {
            let slot = {
                let mut slots = lock(&self.slots);
                if slots.len() >= self.config.limits.agents && !slots.contains_key(&wanted.job) {
                    return Err(format!(
                        "{} has {} agents already (limits.agents in its mosixd.toml)",
                        self.config.name,
                        slots.len()
                    ));
                }
                slots.entry(wanted.job).or_default().clone()
            };
            let mut place = slot.lock().await;
            // An agent that ended meanwhile has taken the place out of the table.
            if !lock(&self.slots)
                .get(&wanted.job)
                .is_some_and(|other| Arc::ptr_eq(other, &slot))
            {
                continue;
            }
            let socket = paths::agent_socket(&self.config.state_dir, wanted.job);
            if place.is_none() && socket.exists() {
                // One that did not answer when this daemon started. Never a second one beside it.
                match self.adopt_one(wanted.job, &socket, &mut place, &slot).await {
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                        self.forget(wanted.job, &slot);
                        return Err(format!(
                            "the agent of job {} on {} does not answer",
                            wanted.job, self.config.name
                        ));
                    }
                    Err(_) => self.clear(wanted.job).await,
                    Ok(()) => {}
                }
            }
            if let Some(running) = place.as_ref() {
                let identity = &running.identity;
                if identity.home_node != wanted.home_node {
                    return Err(format!(
                        "job {} is of {}, not of {}",
                        wanted.job, identity.home_node, wanted.home_node
                    ));
                }
                if identity.home == wanted.home && identity.supervisor == wanted.supervisor {
                    return Ok(identity.fingerprint);
                }
                tracing::info!(job = %wanted.job, pid = running.pid, "the job has a new supervisor: ending the old agent");
                end(running).await;
                *place = None;
                self.clear(wanted.job).await;
            }
            return match self.start(wanted, &mut place, &slot).await {
                Ok(fingerprint) => Ok(fingerprint),
                Err(why) => {
                    self.clear(wanted.job).await;
                    self.forget(wanted.job, &slot);
                    tracing::warn!(job = %wanted.job, why, "no agent");
                    Err(format!("no agent on {}: {why}", self.config.name))
                }
            };
        }
    }

    async fn start(
        self: &Arc<Self>,
        wanted: &Wanted,
        place: &mut Option<Running>,
        slot: &Slot,
    ) -> Result<Fingerprint, String> {
        let program = match &self.config.agent_program {
            Some(program) => program.clone(),
            // The running program itself, also when its file was replaced by an upgrade.
            None => std::path::PathBuf::from("/proc/self/exe"),
        };
        let log = self.log_path(wanted.job);
        let log_file = std::fs::File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log);
        let mut command = std::process::Command::new(&program);
        command
            .args(["agent", "--job", &wanted.job.to_string()])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file.map_err(|error| format!("{}: {error}", log.display()))?);
        mosix_sys::session::new_session(&mut command);
        let mut child = tokio::process::Command::from(command)
            .kill_on_drop(false)
            .spawn()
            .map_err(|error| format!("starting {}: {error}", program.display()))?;
        let pid = child.id().ok_or("the agent ended at once")?;
        if let Some(groups) = &self.groups {
            match groups.enter(wanted.job, pid) {
                Ok(()) => groups.limit(wanted.job, self.config.limits.memory()),
                Err(error) => tracing::debug!(job = %wanted.job, %error, "no cgroup for the agent"),
            }
        }
        let started = tokio::time::timeout(START, self.greet(wanted, &mut child)).await;
        let fingerprint = match started.unwrap_or_else(|_| Err(format!("not ready within {} s", START.as_secs()))) {
            Ok(fingerprint) => fingerprint,
            Err(why) => {
                let _ = child.start_kill();
                let status = child
                    .wait()
                    .await
                    .map_or_else(|error| error.to_string(), |status| status.to_string());
                let log = self.log_tail(wanted.job).await;
                let log = if log.is_empty() {
                    String::new()
                } else {
                    format!("; it wrote: {log}")
                };
                return Err(format!("{why} ({status}){log}"));
            }
        };
        let path = paths::agent_socket(&self.config.state_dir, wanted.job);
        let (watch, identity, _, pidfd) = match identify(&path).await {
            Ok(identified) => identified,
            Err(error) => {
                let _ = child.start_kill();
                return Err(format!("its socket {}: {error}", path.display()));
            }
        };
        if identity.fingerprint != fingerprint || identity.job != wanted.job {
            let _ = child.start_kill();
            return Err("it says different things on its two channels".to_owned());
        }
        tracing::info!(job = %wanted.job, pid, home = %wanted.home_node, "agent started");
        self.enter(place, slot, Running::new(identity, pidfd, pid), watch, Some(child));
        Ok(fingerprint)
    }

    /// Tells the agent its task and hears its answer.
    async fn greet(&self, wanted: &Wanted, child: &mut tokio::process::Child) -> Result<Fingerprint, String> {
        let start = AgentStart {
            job: wanted.job,
            node: self.config.name.clone(),
            home_node: wanted.home_node.clone(),
            home: wanted.home,
            supervisor: wanted.supervisor.to_string(),
            uid: wanted.uid,
            outside: super::users::for_job(self.config.uids.as_ref(), wanted.job),
            memory: Some(self.config.limits.memory()),
            state_dir: self.config.state_dir.clone(),
            runtime_dir: self.config.runtime_dir.clone(),
            transport: self.config.transport,
        };
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the agent has no pipes".to_owned());
        };
        let mut line = serde_json::to_vec(&start).map_err(|error| error.to_string())?;
        line.push(b'\n');
        // An agent that dies early is better explained by its answer and its log than by EPIPE.
        let _ = stdin.write_all(&line).await;
        drop(stdin);
        let mut answer = String::new();
        let read = BufReader::new(stdout.take(LINE)).read_line(&mut answer).await;
        read.map_err(|error| format!("its answer: {error}"))?;
        if answer.is_empty() {
            return Err("it ended without an answer".to_owned());
        }
        match serde_json::from_str(&answer) {
            Ok(AgentReady::Fingerprint(text)) => text.parse().map_err(|error| format!("its answer: {error}")),
            Ok(AgentReady::Error(why)) => Err(reason(why)),
            Err(error) => Err(format!("its answer is none: {error}")),
        }
    }

    /// Hands a connection to the agent of its job; gives what the dialling end is told.
    pub async fn hand_over(&self, hello: &StreamHello, fd: BorrowedFd<'_>) -> StreamAnswer {
        let path = paths::agent_socket(&self.config.state_dir, hello.job);
        let work = async {
            let mut socket = UnixStream::connect(&path).await?;
            send_with_fd(&socket, &AgentMessage::Stream(hello.clone()), fd).await?;
            nodeio::recv::<AgentAnswer>(&mut socket, limits::STREAM_HELLO).await
        };
        match nodeio::within(ANSWER, "the agent", work).await {
            Ok(AgentAnswer::Taken) => StreamAnswer::Ok,
            Ok(_) => StreamAnswer::No("the agent gave an unexpected answer".to_owned()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                let (node, job) = (&self.config.name, hello.job);
                StreamAnswer::NoAgent(match self.failure(job).await {
                    Some(why) => reason(format!("the agent of job {job} on {node} has failed ({why})")),
                    None => format!("{node} has no agent of job {job}"),
                })
            }
            Err(error) => StreamAnswer::No(format!(
                "the agent of job {} on {}: {error}",
                hello.job, self.config.name
            )),
        }
    }

    /// Ends the agent of a job whose supervisor's life is over.
    pub async fn job_ended(&self, job: JobId, home_node: &NodeName, home: Nonce) {
        let Some(slot) = lock(&self.slots).get(&job).cloned() else {
            return;
        };
        let place = slot.lock().await;
        if let Some(running) = place.as_ref()
            && running.identity.home_node == *home_node
            && running.identity.home == home
        {
            tracing::info!(%job, pid = running.pid, "the job's supervisor has ended: ending its agent");
            end(running).await;
        }
    }

    /// What is known of the agents.
    pub fn status(&self) -> Vec<AgentStatus> {
        lock(&self.status).values().cloned().collect()
    }

    fn log_path(&self, job: JobId) -> PathBuf {
        paths::agents_dir(&self.config.state_dir).join(format!("{job}.log"))
    }

    async fn log_tail(&self, job: JobId) -> String {
        let bytes = tokio::fs::read(self.log_path(job)).await.unwrap_or_default();
        let from = bytes.len().saturating_sub(LOG_TAIL as usize);
        reason(String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).trim())
    }

    /// Bounds the agents' logs, for ever.
    pub async fn watch_logs(self: Arc<Self>) {
        let mut tick = tokio::time::interval(LOG_CHECK);
        loop {
            tick.tick().await;
            for agent in self.status() {
                let path = self.log_path(agent.job);
                if tokio::fs::metadata(&path).await.is_ok_and(|meta| meta.len() > LOG_MOST) {
                    tracing::warn!(job = %agent.job, path = %path.display(), "an agent writes much; its log is cut");
                    // The agent appends, so it goes on at the new end.
                    if let Ok(file) = tokio::fs::File::options().write(true).open(&path).await {
                        let _ = file.set_len(0).await;
                    }
                }
            }
        }
    }

    /// Removes everything of a job that has no agent (any more).
    async fn clear(&self, job: JobId) {
        let socket = paths::agent_socket(&self.config.state_dir, job);
        for path in [socket.with_extension("new"), socket, self.log_path(job)] {
            let _ = tokio::fs::remove_file(path).await;
        }
        if let Some(groups) = self.groups.clone() {
            let _ = tokio::task::spawn_blocking(move || groups.end(job)).await;
        }
    }
}

/// Asks who listens on an agent's socket. The connection then tells of its end.
async fn identify(path: &Path) -> io::Result<(UnixStream, AgentIdentity, u32, OwnedFd)> {
    let work = async {
        let mut socket = UnixStream::connect(path).await?;
        nodeio::send(&mut socket, &AgentMessage::Identify, limits::STREAM_HELLO).await?;
        let AgentAnswer::Identity(identity) = nodeio::recv(&mut socket, limits::STREAM_HELLO).await? else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no identity"));
        };
        // The one that listens, as the kernel says: numbers out of messages are never signalled.
        let pid = socket
            .peer_cred()?
            .pid()
            .ok_or_else(|| io::Error::other("its socket has no owner"))?;
        let raw = rustix::process::Pid::from_raw(pid).ok_or_else(|| io::Error::other("its socket has no owner"))?;
        let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())?;
        Ok((socket, identity, raw.as_raw_nonzero().get().unsigned_abs(), pidfd))
    };
    nodeio::within(ANSWER, "the agent", work).await
}

impl Running {
    fn new(identity: AgentIdentity, pidfd: OwnedFd, pid: u32) -> Self {
        Self {
            identity,
            pidfd,
            pid,
            ended_here: Arc::default(),
        }
    }
}

/// Kills an agent and waits, for a while, until it is gone.
async fn end(running: &Running) {
    running.ended_here.store(true, Ordering::Release);
    let _ = rustix::process::pidfd_send_signal(&running.pidfd, rustix::process::Signal::KILL);
    let Ok(pidfd) = running.pidfd.try_clone() else { return };
    let gone = tokio::task::spawn_blocking(move || {
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec { tv_sec: 2, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&timeout))
    });
    let _ = gone.await;
}

/// Sends a message with a descriptor on an asynchronous socket.
pub async fn send_with_fd<T: serde::Serialize>(socket: &UnixStream, message: &T, fd: BorrowedFd<'_>) -> io::Result<()> {
    let bytes =
        encode(message, limits::CONTROL_MESSAGE).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let fds = [fd];
    let mut sent = socket
        .async_io(Interest::WRITABLE, || fdpass::send(socket.as_fd(), &bytes, &fds))
        .await?;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        sent += socket
            .async_io(Interest::WRITABLE, || fdpass::send(socket.as_fd(), rest, &[]))
            .await?;
    }
    Ok(())
}
