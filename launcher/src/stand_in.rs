//! The launcher's life after the start: it stands for the program in the terminal.
//!
//! ```text
//!  terminal, kill(1) ── signal ──▶ launcher ── relay, unless the program got it as well ──▶ program
//!  supervisor ── Stopped ────────▶ launcher stops itself by the same signal: the shell sees its job stopped
//!  shell ── SIGCONT (fg, bg) ────▶ launcher ── SIGCONT, if the program is still stopped ──▶ program
//!  supervisor ── Ended ──────────▶ launcher exits, or kills itself by the same signal
//! ```
//!
//! Launcher and program are in one process group, so what the terminal sends reaches both; such signals, those that the program or
//! its children sent to their group, and those that others sent to all of the group ([`Canary`]) are not relayed. If the supervisor is killed, the launcher is the next subreaper above the
//! program: it becomes the program's parent and goes on by itself. A program that was away, or on its way, is lost then, and the launcher
//! says so and ends with 125.

use mosix_runtime::process::stat::Stat;
use mosix_runtime::supervisor::launch::Launched;
use mosix_runtime::supervisor::mirror::ToLauncher;
use mosix_runtime::supervisor::processes::is_descendant;
use mosix_sys::process::{Wait, WaitStatus, die_by, kill, queue, stop_by, wait_any, wait_for};
use mosix_sys::signalfd::{Received, Signals};
use mosix_wire::job::Place;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::canary::Canary;
use crate::exit::Exit;

/// A launcher that stands for its program.
#[derive(Debug)]
struct StandIn {
    launched: Launched,
    signals: Signals,
    canary: Option<Canary>,
    /// The program, once it was started.
    program: Option<i32>,
    /// Where its body is.
    place: Place,
    /// The supervisor was killed: the program is a child of this process.
    alone: bool,
}

/// What to do about the program.
enum Next {
    Wait,
    End(WaitStatus),
    Fail(u8),
}

/// Stands for the program until it ends; then ends in the same way, or returns the exit code.
///
/// # Errors
/// Those of poll(2) and of reading signals.
pub fn stand_in(launched: Launched) -> io::Result<u8> {
    let (signals, canary) = (Signals::open()?, Canary::start().ok());
    if let Some(errno) = launched.unguarded {
        say(&format!(
            "no guardian could be started ({}): if the supervisor is killed, the program can start no others",
            errno.desc()
        ));
    }
    let mut me = StandIn {
        launched,
        signals,
        canary,
        program: None,
        place: Place::Home,
        alone: false,
    };
    loop {
        match me.step()? {
            Next::Wait => me.wait()?,
            Next::Fail(code) => return Ok(code),
            Next::End(status) => {
                let code = status.code().and_then(|c| u8::try_from(c).ok());
                if let (None, Some((signal, _))) = (code, status.killed()) {
                    die_by(signal);
                }
                return Ok(code.unwrap_or(u8::MAX));
            }
        }
    }
}

impl StandIn {
    fn wait(&self) -> io::Result<()> {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if !self.alone {
            fds.push(PollFd::new(self.launched.mirror.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Deals with everything that has arrived.
    fn step(&mut self) -> io::Result<Next> {
        // The supervisor first: a signal may be about a stop that it has just reported.
        if !self.alone
            && let Some(next) = self.hear()
        {
            return Ok(next);
        }
        while let Some(received) = self.signals.next()? {
            if received.signal == libc::SIGCONT {
                self.went_on();
            } else if received.signal != libc::SIGCHLD && !self.reached_program(&received) {
                self.relay(&received);
            }
        }
        self.reap()
    }

    /// Takes what the supervisor says. Of several stops and continuations only the last counts.
    fn hear(&mut self) -> Option<Next> {
        let mut stop = None;
        loop {
            match self.launched.mirror.next() {
                Ok(None) => break,
                Ok(Some(message)) => match message {
                    ToLauncher::Started { pid } => self.program = Some(pid),
                    ToLauncher::Failed { code, line } => {
                        say(&line);
                        self.leave(true);
                        return Some(Next::Fail(code));
                    }
                    ToLauncher::Notice(line) => say(&line),
                    ToLauncher::At(place) => self.place = place,
                    ToLauncher::Stopped(signal) => stop = Some(signal),
                    ToLauncher::Continued => stop = None,
                    ToLauncher::Ended { status, last } => {
                        self.leave(last);
                        return Some(Next::End(WaitStatus::from_raw(status)));
                    }
                },
                Err(_) => return self.supervisor_gone(),
            }
        }
        if let Some(signal) = stop {
            self.stop(signal);
        }
        None
    }

    /// Stops as the program did, and comes back when somebody continues this process.
    fn stop(&mut self, signal: i32) {
        // Old news: whoever continued the program since then continued this process as well, and stopping now would be a stop
        // that nobody ends. Happens when a signal of the terminal stopped both, before the supervisor could say so.
        let runs = |pid| Stat::read(pid).is_ok_and(|s| matches!(s.state, 'R' | 'S' | 'D'));
        if self.program.is_some_and(runs) {
            return;
        }
        stop_by(signal);
        self.went_on();
    }

    /// This process was continued: the program must go on too. The shell's SIGCONT for the group has reached it already, unless it
    /// is in another group.
    fn went_on(&self) {
        if let Some(pid) = self.program
            && Stat::read(pid).is_ok_and(|s| s.state == 'T')
        {
            let _ = kill(pid, libc::SIGCONT);
        }
    }

    /// Whether the program got this signal without us.
    fn reached_program(&self, received: &Received) -> bool {
        let known = received.is_from_kernel()
            // A process of the job signalled its group. One that means the launcher alone has no reason to exist.
            || received.pid != 0 && is_descendant(received.pid, self.launched.supervisor);
        match &self.canary {
            None => known,
            Some(canary) if known => {
                canary.forget(received.signal);
                true
            }
            Some(canary) => canary.heard(received.signal),
        }
    }

    fn relay(&self, received: &Received) {
        let Some(pid) = self.program else { return };
        // Fails when the program has just ended, which the supervisor is about to say.
        let _ = if received.is_queued() {
            queue(pid, received.signal, received.value)
        } else {
            kill(pid, received.signal)
        };
    }

    /// Before the end: when the supervisor ends as well, waits for it, so that the CPU time of the whole job counts as this process's
    /// children's for whoever waits for us (the shell's `time`).
    fn leave(&self, last: bool) {
        if last {
            wait_for(self.launched.supervisor, true);
        }
    }

    fn supervisor_gone(&mut self) -> Option<Next> {
        self.alone = true;
        // It closes its socket a moment before its children get a new parent: wait for its end.
        let how = match wait_for(self.launched.supervisor, true) {
            Wait::Some(waited) => match (waited.status.killed(), waited.status.code()) {
                (Some((signal, _)), _) => format!("was killed (signal {signal})"),
                (None, Some(code)) => format!("ended unexpectedly (code {code})"),
                (None, None) => "is gone".to_owned(),
            },
            _ => "is gone".to_owned(),
        };
        let Some(program) = self.program else {
            say(&format!("the supervisor {how} before it could start the program"));
            return Some(Next::Fail(Exit::RunFailed as u8));
        };
        let lost = match fate(program) {
            Fate::Lives => {
                say(&format!(
                    "the supervisor {how}: the program goes on at home, and can no longer move"
                ));
                return None;
            }
            Fate::Stopped(signal) => {
                say(&format!(
                    "the supervisor {how}: the program is stopped at home, and can no longer move"
                ));
                self.stop(signal);
                return None;
            }
            Fate::Ended(status) => return Some(Next::End(status)),
            Fate::Killed => match &self.place {
                Place::Home => "the program is lost with it, because it was away or on its way".to_owned(),
                place => format!("the program is lost with it, because it was away on {place}"),
            },
            Fate::Unknown => "the program ended together with it; how is not known".to_owned(),
        };
        say(&format!("the supervisor {how}: {lost}"));
        Some(Next::Fail(Exit::RunFailed as u8))
    }

    /// Takes wait(2) reports: only about the program, and only when it is our child.
    fn reap(&mut self) -> io::Result<Next> {
        if !self.alone {
            // The guardian, the supervisor: their ends show on the socket.
            return Ok(Next::Wait);
        }
        loop {
            match wait_any() {
                Wait::Some(w) if Some(w.pid) == self.program => {
                    if w.status.is_end() {
                        return Ok(Next::End(w.status));
                    }
                    if let Some(signal) = w.status.stopped() {
                        self.stop(signal);
                    }
                }
                Wait::Some(_) => {}
                // The canary and the guardian are children too.
                Wait::Nothing | Wait::NoChild => return Ok(Next::Wait),
            }
        }
    }
}

/// What became of the program when its supervisor was gone.
enum Fate {
    /// It runs on as a child of this process.
    Lives,
    /// So it does, stopped by this signal.
    Stopped(i32),
    /// It ended by itself.
    Ended(WaitStatus),
    /// It was killed with the supervisor, which held it by ptrace.
    Killed,
    /// The supervisor had reaped it, and could not say how it ended.
    Unknown,
}

/// How long a killed program may take to be gone; it is lost in any case.
const DYING: Duration = Duration::from_secs(2);

/// Looks what became of `program`, after its supervisor was reaped: by then the kernel has sent the SIGKILL that takes tracees along.
fn fate(program: i32) -> Fate {
    let deadline = Instant::now() + DYING;
    loop {
        match wait_for(program, false) {
            Wait::NoChild => return Fate::Unknown,
            Wait::Some(w) if w.status.killed().is_some_and(|(signal, _)| signal == libc::SIGKILL) => {
                return Fate::Killed;
            }
            Wait::Some(w) if w.status.is_end() => return Fate::Ended(w.status),
            Wait::Some(w) => {
                if let Some(signal) = w.status.stopped() {
                    return Fate::Stopped(signal);
                }
            }
            Wait::Nothing if !is_killed(program) => return Fate::Lives,
            Wait::Nothing if Instant::now() > deadline => return Fate::Killed,
            Wait::Nothing => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Whether a process is dead, or was sent a SIGKILL that it has not died of yet.
fn is_killed(pid: i32) -> bool {
    let seen = || {
        let (Ok(stat), Ok(status)) = (Stat::read(pid), std::fs::read_to_string(format!("/proc/{pid}/status"))) else {
            return true;
        };
        let dead = stat.is_dead();
        // PF_EXITING and PF_SIGNALED of linux/sched.h: it has taken the signal and is on its way out.
        let leaving = stat.flags & (0x4 | 0x400) != 0;
        let pending = |name| {
            let mask = status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            mask.and_then(|mask| u64::from_str_radix(mask, 16).ok())
                .is_some_and(|mask| mask >> (libc::SIGKILL - 1) & 1 == 1)
        };
        dead || leaving || pending("SigPnd:") || pending("ShdPnd:")
    };
    // Twice, for the moment between taking the signal and noting it.
    seen() || {
        std::thread::sleep(Duration::from_millis(5));
        seen()
    }
}

fn say(line: &str) {
    use std::io::Write;
    // Standard error may be closed or full; the program's status matters more.
    let _ = writeln!(io::stderr(), "mosix: {line}");
}
