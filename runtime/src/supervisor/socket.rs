//! The job's socket: `mosix ps`, `mosix migrate` and `mosix kill` ask the supervisor itself, without any daemon.
//!
//! Who may ask: the job's own user and root, by SO_PEERCRED. A process of this job may not while any of the job's bodies is away: a
//! deputy executes what a host asks for, so its connection could be the host's.

use super::engine::{Command, Handle, Reply};
use super::frames;
use super::processes::{cannot_leave, descendants, is_descendant, list};
use super::rundir::{remove_socket, socket_name, unheard_name};
use super::shared::Shared;
use crate::reason;
use mosix_sys::process::kill;
use mosix_wire::ids::{JobId, Pid};
use mosix_wire::job::{Answer, Refusal, RefusalKind, Request, Target};
use nix::sys::socket::{getsockopt, sockopt};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest request in bytes.
const LONGEST: usize = 4096;
/// Most connections at once: each has a thread.
const CONNECTIONS: usize = 32;
/// How long a connection may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a request to move waits for the end of a vfork.
const VFORK: Duration = Duration::from_secs(2);
/// How long the supervisor's end waits for answers that are being written.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The bound socket. Removes itself, after the answers that are under way were given.
#[derive(Debug)]
pub struct JobSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Requests that were read and are not answered yet.
    answering: Arc<AtomicUsize>,
}

impl JobSocket {
    /// Binds the socket of job `id` in the folder `jobs`, which the caller has verified. Whoever connects waits until it is served.
    ///
    /// # Errors
    /// Those of bind(2) and rename(2).
    pub fn bind(jobs: &Path, id: JobId) -> io::Result<Self> {
        // Through the folder's descriptor: the path itself may be longer than the 108 bytes that a socket's name can have.
        let folder = std::fs::File::open(jobs)?;
        let unheard = through(&folder, &unheard_name(id));
        // Made with mode 0600 from the start: nobody else can connect in between.
        let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(&unheard);
        nix::sys::stat::umask(old);
        let listener = bound?;
        std::fs::set_permissions(&unheard, PermissionsExt::from_mode(0o600))?;
        // Between bind(2) and listen(2) it refuses connections, and looks like a socket that a killed supervisor left: `mosix ps`
        // would remove it. So it gets its name only now.
        let path = jobs.join(socket_name(id));
        std::fs::rename(&unheard, &path)?;
        Ok(Self {
            listener,
            path,
            answering: Arc::default(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves on a thread of its own until the process ends.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn serve<M: Send + 'static>(&self, shared: Arc<Shared>, handle: Handle<M>) -> io::Result<()> {
        let listener = self.listener.try_clone()?;
        let busy = Arc::new(AtomicUsize::new(0));
        let answering = Arc::clone(&self.answering);
        std::thread::Builder::new().name("job-socket".into()).spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else {
                    // Out of descriptors or memory: the backlog waits.
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                };
                if busy.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
                    busy.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                let (shared, handle, slot) = (Arc::clone(&shared), handle.clone(), Slot(Arc::clone(&busy)));
                let answering = Arc::clone(&answering);
                // A failed spawn drops the closure and with it the connection and its slot.
                let _ = std::thread::Builder::new().name("job-request".into()).spawn(move || {
                    let _slot = slot;
                    // The asker sees the end of its connection; there is nobody else to tell.
                    let _ = answer(stream, &shared, &handle, &answering);
                });
            }
        })?;
        Ok(())
    }
}

impl Drop for JobSocket {
    fn drop(&mut self) {
        remove_socket(&self.path);
        // Whoever killed the job's last process by a request still wants to hear that it was done.
        let deadline = Instant::now() + LAST_WORDS;
        while self.answering.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// One in a count, until dropped.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The path of `name` in an open folder, short whatever the folder's own path is.
pub fn through(folder: &std::fs::File, name: &str) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

fn answer<M: Send + 'static>(
    mut stream: UnixStream,
    shared: &Shared,
    handle: &Handle<M>,
    answering: &Arc<AtomicUsize>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    if let Err(refusal) = admit(&stream, shared) {
        return frames::write(&mut stream, &Answer::Refused(refusal));
    }
    let Some(request) = frames::read::<Request>(&mut stream, LONGEST)? else {
        return Ok(());
    };
    answering.fetch_add(1, Ordering::AcqRel);
    let _answering = Slot(Arc::clone(answering));
    match request {
        Request::Ps => {
            let processes = list(shared)?;
            frames::write(
                &mut stream,
                &Answer::Rows {
                    job: shared.job(),
                    processes,
                },
            )
        }
        Request::Kill { target, signal } => frames::write(&mut stream, &send_signal(shared, target, signal)),
        Request::Migrate { target, to } => {
            if let Target::Process(Pid(pid)) = target
                && let Some(refusal) = not_movable(shared, pid)
            {
                return frames::write(&mut stream, &Answer::Refused(refusal));
            }
            let (reply, answers) = Reply::new();
            handle.command(Command::Migrate { target, to, reply });
            let mut last = false;
            for answer in answers {
                last = matches!(answer, Answer::Done | Answer::Refused(_));
                frames::write(&mut stream, &answer)?;
            }
            if !last {
                let text = "the supervisor dropped the request; see `mosix ps` for where the process is".to_owned();
                frames::write(
                    &mut stream,
                    &Answer::Refused(Refusal {
                        kind: RefusalKind::Failed,
                        pid: None,
                        text,
                        why: None,
                    }),
                )?;
            }
            Ok(())
        }
    }
}

fn refusal(kind: RefusalKind, pid: Option<i32>, text: String) -> Refusal {
    Refusal {
        kind,
        pid: pid.map(Pid),
        text,
        why: None,
    }
}

/// Judges who connected.
fn admit(stream: &UnixStream, shared: &Shared) -> Result<(), Refusal> {
    let forbidden = |text: String| refusal(RefusalKind::Forbidden, None, text);
    let peer =
        getsockopt(stream, sockopt::PeerCredentials).map_err(|e| forbidden(format!("cannot tell who asks: {e}")))?;
    let me = nix::unistd::geteuid().as_raw();
    if peer.uid() != me && peer.uid() != 0 {
        return Err(forbidden(format!(
            "user {} may not ask about a job of user {me}",
            peer.uid()
        )));
    }
    if shared.any_away() && is_descendant(peer.pid(), shared.supervisor()) {
        let text = "a process of the job itself may not ask while part of the job is away".to_owned();
        return Err(forbidden(text));
    }
    Ok(())
}

/// Why `pid` cannot be asked to move, if so.
fn not_movable(shared: &Shared, pid: i32) -> Option<Refusal> {
    if !is_descendant(pid, shared.supervisor()) {
        let text = format!("process {pid} does not belong to job {}", shared.id());
        return Some(refusal(RefusalKind::UnknownProcess, Some(pid), text));
    }
    let deadline = Instant::now() + VFORK;
    let why = loop {
        match cannot_leave(shared, pid, None)? {
            // Most children execute their program at once.
            why if why.code == "vfork" && Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            why => break why,
        }
    };
    let mut refused = refusal(RefusalKind::CannotMove, Some(pid), reason::refusal(pid, &why));
    refused.why = Some(why);
    Some(refused)
}

/// Signals a process of the job, or all.
fn send_signal(shared: &Shared, target: Target, signal: i32) -> Answer {
    let pids: Vec<i32> = match target {
        Target::Process(Pid(pid)) if is_descendant(pid, shared.supervisor()) => vec![pid],
        Target::Process(Pid(pid)) => {
            let text = format!("process {pid} does not belong to job {}", shared.id());
            return Answer::Refused(refusal(RefusalKind::UnknownProcess, Some(pid), text));
        }
        Target::Job => descendants(shared.supervisor())
            .unwrap_or_default()
            .into_iter()
            .map(|s| s.pid)
            .collect(),
    };
    for pid in pids {
        match kill(pid, signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(e) => {
                let text = format!("process {pid} cannot be sent signal {signal}: {}", e.desc());
                return Answer::Refused(refusal(RefusalKind::Failed, Some(pid), text));
            }
        }
    }
    Answer::Done
}
