//! Starting a job: launcher, guardian, supervisor, program.
//!
//! The launcher is what the user started, with one thread. It forks the guardian and the supervisor and then stands for the
//! program in the terminal (`mosix`'s own code does that, with [`Launched`]); see [`super`] for the picture.

use super::birth::{Filtering, Program, fork_guest};
use super::engine::Engine;
use super::environment::{CpuLevel, inherited as inherited_environment, with_tunables};
use super::guardian::{self, Guardian};
use super::launcher_watch::LauncherWatch;
use super::mirror::{self, Mirror, Receiver, ToLauncher};
use super::notify::Execed;
use super::shared::Shared;
use super::socket::JobSocket;
use super::tracer::{Parts, Tracer};
use super::{execlog, last_words, notify, rundir};
use crate::process::stat::Stat;
use crate::reason::probe::filters_of;
use anyhow::Context as _;
use mosix_sys::notif::Listener;
use mosix_sys::process::{Fork, block_all_signals, close_all_but, default_action, exit_now, fork};
use mosix_wire::ids::{JobId, Pid};
use mosix_wire::job::{Job, Place};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

/// What `mosix run` was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spec {
    /// The program and its arguments.
    pub words: Vec<OsString>,
    /// Where it shall run from the start, when not at home.
    pub on: Option<Place>,
    /// CPU features that glibc may use.
    pub cpu: CpuLevel,
    /// The job's name.
    pub name: Option<String>,
    /// Trap execve.
    pub filter: bool,
}

/// A job under way, as its launcher holds it.
#[derive(Debug)]
pub struct Launched {
    /// The supervisor, a child of the launcher.
    pub supervisor: i32,
    /// What the supervisor says.
    pub mirror: Receiver,
    /// Why the job has no guardian, if it should have one.
    pub unguarded: Option<Errno>,
}

/// Starts a job. The caller has one thread; afterwards all its signals are blocked, and its standard input and output are
/// closed, so that pipes end with the program and not with the launcher.
///
/// `engine` makes the migration engine, in the supervisor.
///
/// The supervisor is forked first and then works on its own: the user waits for it, and for nobody else.
///
/// # Errors
/// When a process or a descriptor cannot be had: nothing was started then.
pub fn launch<E: Engine>(spec: Spec, engine: impl FnOnce(&Arc<Shared>) -> E) -> anyhow::Result<Launched> {
    let program = program(&spec)?;
    block_all_signals().context("blocking signals")?;
    // Inherited "ignore" would make the kernel reap children behind our back. The program gets it back.
    default_action(Signal::SIGCHLD).context("resetting SIGCHLD")?;
    nix::sys::prctl::set_dumpable(false).context("becoming non-dumpable")?;
    nix::sys::prctl::set_child_subreaper(true).context("becoming a child subreaper")?;
    let (receiver, mirror) = mirror::pair().context("making a socket")?;
    let (guard, post) = if spec.filter {
        let (guard, post) = Guard::new()?;
        (Some(guard), Some(post))
    } else {
        (None, None)
    };
    let launcher = nix::unistd::getpid().as_raw();
    match fork().context("starting the supervisor")? {
        Fork::Parent(supervisor) => {
            drop(mirror);
            let unguarded = guard
                .zip(post)
                .and_then(|(guard, post)| guard.fork_guardian(&post).err());
            release_pipes();
            Ok(Launched {
                supervisor,
                mirror: receiver,
                unguarded,
            })
        }
        Fork::Child => {
            drop((receiver, post));
            let start = Start {
                spec,
                program,
                mirror,
                guard,
                launcher,
            };
            exit_now(i32::from(supervise(start, engine).is_err()));
        }
    }
}

/// What the supervisor starts with.
struct Start {
    spec: Spec,
    program: Program,
    mirror: Mirror,
    guard: Option<Guard>,
    launcher: i32,
}

/// The socket to the guardian, and the file that tells it what the notify thread has in hand.
struct Guard {
    guardian: Guardian,
    in_hand: File,
}

impl Guard {
    /// Makes both, and the guardian's end of the socket.
    fn new() -> anyhow::Result<(Self, OwnedFd)> {
        let (guardian, post) = guardian::pair().context("making a socket")?;
        let in_hand = memfd_create(c"mosix-in-hand", MFdFlags::MFD_CLOEXEC).context("making a memory file")?;
        let in_hand = in_hand.into();
        Ok((Self { guardian, in_hand }, post))
    }

    /// Forks the guardian, a child of the launcher: the job's tree holds the job alone. What the supervisor sent it meanwhile waits
    /// in the socket.
    fn fork_guardian(self, post: &OwnedFd) -> Result<(), Errno> {
        match fork()? {
            Fork::Parent(_) => Ok(()),
            Fork::Child => {
                let _ = nix::sys::prctl::set_name(c"mosix-guardian");
                let _ = nix::unistd::setsid();
                let ready =
                    close_all_but(&[post.as_fd(), self.in_hand.as_fd()]).and_then(|()| std::env::set_current_dir("/"));
                let code = ready.and_then(|()| guardian::run(post, &self.in_hand)).is_err();
                exit_now(i32::from(code));
            }
        }
    }
}

/// How the supervisor leaves the launcher's process group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Apart {
    /// A process group of its own in the same session: the program's parent is then what a shell would be, so that process
    /// groups that the program makes for itself are not orphaned.
    Group,
    /// A session of its own, because the launcher's group is orphaned (nobody could continue it after a stop) and must stay so:
    /// a parent in the same session but another group would end that, and ^Z would stop the program for good.
    Session,
}

impl Apart {
    /// Looks whether the group of process `launcher` is orphaned: up the tree to the first parent outside the group.
    fn find(launcher: i32) -> Self {
        let Ok(me) = Stat::read(launcher) else {
            return Self::Session;
        };
        let mut at = me.clone();
        for _ in 0..4096 {
            match Stat::read(at.parent) {
                Ok(parent) if parent.group == me.group => at = parent,
                Ok(parent) if parent.session == me.session => return Self::Group,
                _ => return Self::Session,
            }
        }
        Self::Session
    }

    fn go(self) -> nix::Result<()> {
        match self {
            Self::Group => nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0)),
            Self::Session => nix::unistd::setsid().map(drop),
        }
    }
}

/// Prepares what execve(2) takes.
fn program(spec: &Spec) -> anyhow::Result<Program> {
    let environment = inherited_environment().context("reading /proc/self/environ")?;
    let path = environment
        .iter()
        .find_map(|e| e.strip_prefix(b"PATH="))
        .map(<[u8]>::to_vec);
    let c_strings = |all: Vec<Vec<u8>>| all.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    Ok(Program {
        arguments: c_strings(spec.words.iter().map(|w| w.clone().into_vec()).collect())?,
        environment: c_strings(with_tunables(environment, spec.cpu))?,
        path,
        filter: spec.filter,
    })
}

/// Closes the launcher's copies of the user's descriptors but standard error, which its own messages need.
fn release_pipes() {
    let Ok(null) = File::options().read(true).write(true).open("/dev/null") else {
        return;
    };
    let _ = nix::unistd::dup2_stdin(&null);
    let _ = nix::unistd::dup2_stdout(&null);
}

/// The supervisor's life.
fn supervise<E: Engine>(mut start: Start, engine: impl FnOnce(&Arc<Shared>) -> E) -> anyhow::Result<()> {
    let result = prepare(&mut start).and_then(|prepared| prepared.run(start, engine));
    result.inspect_err(|e| last_words::say(&format!("the supervisor fails: {e:#}")))
}

/// A guest that waits for its "go", and what was made for it.
struct Prepared {
    born: super::birth::Born,
    filtering: Filtering,
    listener: Option<Listener>,
    filters_before: u32,
    id: JobId,
    socket: Option<JobSocket>,
}

/// Forks the guest, leaves the launcher's surroundings and opens the job's socket.
fn prepare(start: &mut Start) -> anyhow::Result<Prepared> {
    prepare_or_fail(start).inspect_err(|e| {
        start.mirror.send(ToLauncher::Failed {
            code: 125,
            line: format!("{e:#}"),
        });
    })
}

fn prepare_or_fail(start: &mut Start) -> anyhow::Result<Prepared> {
    let _ = nix::sys::prctl::set_name(c"mosix-superv");
    nix::sys::prctl::set_child_subreaper(true).context("becoming a child subreaper")?;
    let born = fork_guest(&start.program).context("starting the program's process")?;
    // While the guest makes and installs its filter.
    Apart::find(start.launcher)
        .go()
        .context("leaving the launcher's process group")?;
    let filters_before = filters_of(nix::unistd::getpid().as_raw());
    leave_surroundings(start, &born)?;
    let id = random_id();
    let socket = bind(id, &mut start.mirror);
    let (filtering, listener) = born.birth.ready().context("waiting for the program's filter")?;
    let listener = listener
        .map(Listener::new)
        .transpose()
        .context("taking the filter's listener")?;
    Ok(Prepared {
        born,
        filtering,
        listener,
        filters_before,
        id,
        socket,
    })
}

/// Lets go of everything that was inherited from the launcher and is not ours.
fn leave_surroundings(start: &Start, born: &super::birth::Born) -> anyhow::Result<()> {
    let keep = [
        start.mirror.socket(),
        start.guard.as_ref().map(|g| g.guardian.as_fd()),
        start.guard.as_ref().map(|g| g.in_hand.as_fd()),
        Some(born.birth.as_fd()),
    ];
    let keep: Vec<_> = keep.into_iter().flatten().collect();
    close_all_but(&keep).context("closing inherited descriptors")?;
    quiet_standard_descriptors()?;
    crate::fault::prepare();
    last_words::install(
        start
            .mirror
            .socket()
            .and_then(|socket| socket.try_clone_to_owned().ok()),
    );
    std::env::set_current_dir("/").context("leaving the current folder")
}

impl Prepared {
    fn run<E: Engine>(self, mut start: Start, engine: impl FnOnce(&Arc<Shared>) -> E) -> anyhow::Result<()> {
        let shared = Arc::new(Shared::new(self.job(&start.spec)));
        shared.set_own_filters(self.filters_before + u32::from(self.listener.is_some()));
        start.mirror.send(ToLauncher::Started { pid: self.born.pid });
        let served = match (self.listener, &start.guard) {
            (Some(listener), Some(guard)) => Some(serve_filter(listener, guard, self.socket.as_ref())?),
            _ => None,
        };
        let tracer = Tracer::new(Parts {
            engine: engine(&shared),
            shared: Arc::clone(&shared),
            mirror: start.mirror,
            birth: self.born.birth,
            launcher: LauncherWatch::new(start.launcher),
            start_on: start.spec.on.filter(|p| *p != Place::Home),
        })?;
        tracer.go().context("letting the program run")?;
        // What follows is done while the program starts: it waits for nobody but the notify thread.
        let handle = tracer.handle();
        if let Some(execed) = served {
            let no_new_privs = matches!(self.filtering, Filtering::On { no_new_privs: true, .. });
            let (log, show) = (Arc::clone(&shared), handle.clone());
            let watch = move || execlog::watch(&execed, &log, no_new_privs, |line| show.notice(line));
            if let Err(e) = thread("exec-log", watch) {
                handle.notice(format!("`mosix ps` cannot name the programs of this job: {e}"));
            }
        }
        if let Some(socket) = &self.socket
            && let Err(e) = socket.serve(shared, handle.clone())
        {
            handle.notice(unreachable_job(&e.into()));
        }
        let result = tracer.run().context("tracer loop");
        drop(self.socket);
        result
    }

    fn job(&self, spec: &Spec) -> Job {
        let unfiltered = match self.filtering {
            Filtering::On { .. } => None,
            Filtering::Off => Some("started with --no-filter".to_owned()),
            Filtering::Refused(libc::EBUSY) => Some(
                "another program's filter listener is there already (a job inside a job, or a container's)".to_owned(),
            ),
            Filtering::Refused(e) => Some(format!(
                "the kernel refused the filter: {}",
                nix::errno::Errno::from_raw(e).desc()
            )),
        };
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Job {
            id: self.id,
            name: spec.name.clone(),
            home: home_name(),
            uid: nix::unistd::geteuid().as_raw(),
            supervisor: Pid(nix::unistd::getpid().as_raw()),
            first: Pid(self.born.pid),
            started: now.as_secs(),
            unfiltered,
            notes: Vec::new(),
        }
    }
}

/// Starts the thread that serves the filter. What it hears of programs comes out of the receiver.
fn serve_filter(
    listener: Listener,
    guard: &Guard,
    socket: Option<&JobSocket>,
) -> anyhow::Result<mpsc::Receiver<Execed>> {
    listener.set_sync_wake_up();
    let path = socket.map(|s| s.path().to_owned()).unwrap_or_default();
    if let Err(e) = guard.guardian.guard(listener.as_fd(), &path) {
        // The launcher could not start it, and tells the user.
        tracing::warn!("no guardian has the filter's listener: {e}");
    }
    let in_hand = guard.in_hand.try_clone().context("duplicating a descriptor")?;
    let (tell, execed) = mpsc::channel();
    let serve = move || {
        if let Err(e) = notify::serve(&listener, &in_hand, &tell) {
            // The guardian takes over: processes at home go on.
            last_words::end(&format!("execve of the job's processes cannot be answered: {e}"));
        }
    };
    thread("notify", serve).context("starting a thread")?;
    Ok(execed)
}

/// Starts a thread that lives as long as it likes.
fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

/// Binds the job's socket. A job without one runs all the same, but the user is told.
fn bind(id: JobId, mirror: &mut Mirror) -> Option<JobSocket> {
    let bound = rundir::make_jobs_dir()
        .map_err(anyhow::Error::from)
        .and_then(|jobs| JobSocket::bind(&jobs, id).with_context(|| format!("socket in {}", jobs.display())));
    bound
        .inspect_err(|e| mirror.send(ToLauncher::Notice(unreachable_job(e))))
        .ok()
}

fn unreachable_job(why: &anyhow::Error) -> String {
    format!("`mosix ps` and `mosix migrate` cannot reach this job: {why:#}")
}

/// Puts /dev/null on 0, 1 and 2, which are closed: nothing that is opened later may land there.
fn quiet_standard_descriptors() -> anyhow::Result<()> {
    loop {
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .context("opening /dev/null")?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        // Stays open as long as the process.
        std::mem::forget(null);
    }
}

/// A random job id.
fn random_id() -> JobId {
    let mut bytes = [0; 8];
    match File::open("/dev/urandom").and_then(|mut f| io::Read::read_exact(&mut f, &mut bytes)) {
        Ok(()) => JobId(u64::from_ne_bytes(bytes)),
        // Unique on this machine at least.
        Err(_) => {
            use std::hash::{BuildHasher, Hasher};
            JobId(std::hash::RandomState::new().build_hasher().finish())
        }
    }
}

/// The home node's name: what the node's configuration says in `MOSIX_NODE`, else the host's name.
fn home_name() -> String {
    std::env::var("MOSIX_NODE")
        .ok()
        .filter(|n| !n.is_empty())
        .unwrap_or_else(|| {
            nix::unistd::gethostname().map_or_else(|_| "localhost".to_owned(), |n| n.to_string_lossy().into_owned())
        })
}

/// Where the job's socket would be, for messages.
pub fn socket_path(job: JobId) -> Option<PathBuf> {
    Some(rundir::jobs_dir().ok()?.join(rundir::socket_name(job)))
}
