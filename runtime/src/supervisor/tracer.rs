//! The tracer loop: one permanent thread of the supervisor that waits, traces and forks.
//!
//! ```text
//!  signalfd(SIGCHLD) ──▶ wait4(any) ──▶ Engine::on_wait ──Pass──▶ record, mirror
//!  eventfd + queue ────▶ Engine::on_command / on_message
//!  launcher's socket ──▶ gone: the program it stood for is killed
//!  birth socket ───────▶ execve failed, or succeeded
//!  deadline ───────────▶ Engine::tick
//! ```
//!
//! It is the supervisor's main thread, so it lives as long as the process: tracees and `PTRACE_O_EXITKILL` hang on it. It ends when
//! no descendant is left. All signals are blocked; those sent to the supervisor itself are ignored, because a supervisor
//! ends by its job's end only.

use super::birth::{Birth, BirthEvent};
use super::engine::{Command, Context, Engine, Handle, Input, JobControl, Reply, Verdict};
use super::launcher_watch::LauncherWatch;
use super::mirror::{Mirror, ToLauncher, ended};
use super::shared::Shared;
use mosix_sys::process::{Wait, WaitStatus, Waited, kill, wait_any};
use mosix_sys::signalfd::Signals;
use mosix_wire::job::{Answer, Place, Target};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// Everything that the loop works on.
#[derive(Debug)]
pub struct Tracer<E: Engine> {
    engine: E,
    shared: Arc<Shared>,
    handle: Handle<E::Message>,
    queue: Receiver<Input<E::Message>>,
    wake: Arc<EventFd>,
    signals: Signals,
    mirror: Mirror,
    birth: Option<Birth>,
    launcher: LauncherWatch,
    /// Where the program shall go as soon as it runs.
    start_on: Option<Place>,
    /// How the first process ended, until the launcher was told.
    first_end: Option<WaitStatus>,
    /// The first process was reaped: its pid may be anybody's.
    first_reaped: bool,
    /// Where the launcher was told that the program is.
    place: Place,
    reports: Vec<(i32, JobControl)>,
}

/// What a [`Tracer`] starts with.
#[derive(Debug)]
pub struct Parts<E: Engine> {
    /// The migration engine.
    pub engine: E,
    /// The job.
    pub shared: Arc<Shared>,
    /// The supervisor's end of the launcher's socket.
    pub mirror: Mirror,
    /// The first process on its way to its program.
    pub birth: Birth,
    /// The launcher, to wake it after a stop.
    pub launcher: LauncherWatch,
    /// `--on`.
    pub start_on: Option<Place>,
}

impl<E: Engine> Tracer<E> {
    /// Prepares the loop. All signals must be blocked already.
    ///
    /// # Errors
    /// Those of signalfd(2) and eventfd(2).
    pub fn new(parts: Parts<E>) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(
            nix::sys::eventfd::EfdFlags::EFD_CLOEXEC | nix::sys::eventfd::EfdFlags::EFD_NONBLOCK,
        )?);
        let (handle, queue) = Handle::new(Arc::clone(&wake));
        Ok(Self {
            engine: parts.engine,
            shared: parts.shared,
            handle,
            queue,
            wake,
            signals: Signals::open()?,
            mirror: parts.mirror,
            birth: Some(parts.birth),
            launcher: parts.launcher,
            start_on: parts.start_on,
            first_end: None,
            first_reaped: false,
            place: Place::Home,
            reports: Vec::new(),
        })
    }

    /// For threads that want something of the loop.
    pub fn handle(&self) -> Handle<E::Message> {
        self.handle.clone()
    }

    /// Lets the first process execute its program.
    ///
    /// # Errors
    /// When it died.
    pub fn go(&self) -> io::Result<()> {
        self.birth.as_ref().map_or(Ok(()), Birth::go)
    }

    /// Runs until no descendant is left and the engine is idle.
    ///
    /// # Errors
    /// Those of poll(2) and of reading signals: the supervisor cannot go on then, and its guardian takes over.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            let children = self.reap();
            if !children && !self.engine.is_busy() {
                self.end();
                return Ok(());
            }
            if let Some(status) = self.first_end.take() {
                self.mirror.send(ended(status, false));
            }
            self.wait()?;
            while self.signals.next()?.is_some() {}
            let _ = self.wake.read();
            while let Ok(input) = self.queue.try_recv() {
                self.input(input);
            }
            self.step_birth();
            self.mirror.flush();
            self.launcher.recheck();
            if self.engine.deadline().is_some_and(|d| d <= Instant::now()) {
                self.call(|engine, cx| engine.tick(cx));
            }
        }
    }

    /// Waits until something wants attention.
    fn wait(&mut self) -> io::Result<()> {
        let deadline = [self.engine.deadline(), self.launcher.deadline()]
            .into_iter()
            .flatten()
            .min();
        let timeout = match deadline {
            None => PollTimeout::NONE,
            // One millisecond more, so that the deadline has really passed and the loop does not spin on the rest of one.
            Some(d) => {
                let left = d.saturating_duration_since(Instant::now());
                let left = if left.is_zero() {
                    left
                } else {
                    left + Duration::from_millis(1)
                };
                PollTimeout::try_from(left.min(Duration::from_secs(3600))).unwrap_or(PollTimeout::ZERO)
            }
        };
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
        ];
        let launcher = self.mirror.socket().map(|socket| {
            let out = if self.mirror.is_waiting() {
                PollFlags::POLLOUT
            } else {
                PollFlags::empty()
            };
            fds.push(PollFd::new(socket, PollFlags::POLLIN | out));
            fds.len() - 1
        });
        if let Some(birth) = &self.birth {
            fds.push(PollFd::new(birth.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let gone = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        let ready = launcher
            .and_then(|i| fds[i].revents())
            .is_some_and(|r| r.intersects(gone));
        if ready && self.mirror.is_gone()? {
            self.launcher_gone();
        }
        Ok(())
    }

    /// Takes all reports of wait(2). Returns whether any child or tracee is left.
    fn reap(&mut self) -> bool {
        loop {
            match wait_any() {
                Wait::Some(waited) => self.waited(waited),
                Wait::Nothing => return true,
                Wait::NoChild => return false,
            }
        }
    }

    fn waited(&mut self, waited: Waited) {
        let verdict = self.call(|engine, cx| engine.on_wait(cx, waited));
        if verdict == Verdict::Mine {
            return;
        }
        if waited.status.is_end() {
            self.shared.forget(waited.pid);
        }
        if waited.pid != self.shared.first() || self.first_reaped {
            return;
        }
        if waited.status.is_end() {
            // What birth still has to say comes before the end.
            self.step_birth();
            self.first_end = Some(waited.status);
            self.first_reaped = true;
        } else if waited.status.continued() {
            self.job_control(JobControl::Continued);
        } else if let (Some(signal), None) = (waited.status.stopped(), waited.status.event()) {
            self.job_control(JobControl::Stopped(signal));
        }
    }

    /// Mirrors a stop or continuation of the first process.
    fn job_control(&mut self, event: JobControl) {
        match event {
            JobControl::Stopped(signal) => {
                self.launcher.guest_stopped();
                self.mirror.send(ToLauncher::Stopped(signal));
            }
            JobControl::Continued => {
                self.mirror.send(ToLauncher::Continued);
                self.launcher.guest_continued();
            }
        }
    }

    fn input(&mut self, input: Input<E::Message>) {
        match input {
            Input::Message(message) => self.call(|engine, cx| engine.on_message(cx, message)),
            Input::Command(command) => self.call(|engine, cx| engine.on_command(cx, command)),
            Input::Notice(line) => self.mirror.send(ToLauncher::Notice(line)),
        }
    }

    /// Calls the engine and then mirrors what it reported.
    fn call<R>(&mut self, f: impl FnOnce(&mut E, &mut Context<'_, E::Message>) -> R) -> R {
        let mut cx = Context {
            shared: &self.shared,
            handle: &self.handle,
            reports: &mut self.reports,
        };
        let result = f(&mut self.engine, &mut cx);
        for (pid, event) in std::mem::take(&mut self.reports) {
            if pid == self.shared.first() {
                self.job_control(event);
            }
        }
        let place = self.shared.placement(self.shared.first()).place;
        if place != self.place {
            self.mirror.send(ToLauncher::At(place.clone()));
            self.place = place;
        }
        result
    }

    /// Looks what became of the first process's execve.
    fn step_birth(&mut self) {
        let Some(birth) = &self.birth else { return };
        match birth.next() {
            BirthEvent::Nothing => {}
            BirthEvent::Failed(failure) => {
                self.mirror.send(ToLauncher::Failed {
                    code: failure.code,
                    line: failure.line,
                });
                self.birth = None;
                self.start_on = None;
            }
            BirthEvent::Executed => {
                self.birth = None;
                if let Some(to) = self.start_on.take() {
                    self.send_away(to);
                }
            }
        }
    }

    /// Moves the fresh program to where `--on` wants it; it stays, and the user learns why, when that fails.
    fn send_away(&mut self, to: Place) {
        let (reply, answers) = Reply::new();
        let target = Target::Process(mosix_wire::ids::Pid(self.shared.first()));
        let handle = self.handle.clone();
        let place = to.clone();
        let spawned = std::thread::Builder::new().name("start-on".into()).spawn(move || {
            for answer in answers {
                if let Answer::Refused(refusal) = answer {
                    handle.notice(format!("the program runs at home, not on {place}: {}", refusal.text));
                }
            }
        });
        match spawned {
            Ok(_) => self.call(|engine, cx| engine.on_command(cx, Command::Migrate { target, to, reply })),
            Err(e) => self.mirror.send(ToLauncher::Notice(format!(
                "the program runs at home, not on {to}: {e}"
            ))),
        }
    }

    /// The launcher was killed: it stood for the program, so the program goes the same way.
    fn launcher_gone(&mut self) {
        if !self.first_reaped {
            // Only this thread reaps, so the number is still the program's. It may be a zombie already: no harm.
            let _ = kill(self.shared.first(), libc::SIGKILL);
        }
    }

    /// Last words.
    fn end(&mut self) {
        if let Some(status) = self.first_end.take() {
            self.mirror.send(ended(status, true));
        }
    }
}
