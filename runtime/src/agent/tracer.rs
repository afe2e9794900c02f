//! The agent's main thread: everything that traces, forks and waits, driven by the commit rules.
//!
//! Events come from the kernel (children and tracees), from the other threads, and from the clock. Each becomes a step of the process's
//! state machine ([`Host`]), whose effects are carried out here, in order.

mod vfork;

use super::birth;
use super::build;
use super::creation;
use super::depart;
use super::exec;
use super::nest::Nest;
use super::process::Process;
use super::serve;
use super::shared::{Command, Shared};
use super::signals::{self, Delivery, Signals};
use super::usage;
use super::{layout, mapping};
use crate::contract::commit::{Host, HostEffect, HostEvent, Order, Place, Report};
use crate::fault;
use crate::link::session::State as LinkState;
use crate::process::maps;
use mosix_sys::ptrace::{self, Event};
use mosix_sys::signalfd;
use mosix_wire::control::reason;
use mosix_wire::frame::encode_body;
use mosix_wire::ids::{Epoch, NodeName, Pid, Tid};
use mosix_wire::image::FileRef;
use mosix_wire::link::{Destination, Exit, ToHome, ToHost};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// How often the link and leases are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How long home may take for its first connection.
const FIRST_CONTACT: Duration = Duration::from_secs(60);
/// Lease until home says otherwise.
const LEASE: Duration = Duration::from_secs(300);
/// How long an image of another agent waits for home's word about it.
const UNANNOUNCED: Duration = Duration::from_secs(60);
/// Most processes that are prepared for images at a time.
const PREPARED: usize = 64;

type Effect = HostEffect<NodeName>;

/// The loop.
pub struct Tracer {
    shared: Arc<Shared>,
    nest: Nest,
    program: OwnedFd,
    commands: Receiver<Command>,
    signals: signalfd::Signals,
    processes: HashMap<Pid, Process>,
    lease: Duration,
    /// Since when home is silent.
    silent: Option<Instant>,
    greeted: bool,
    held: bool,
    over: Option<String>,
}

impl Tracer {
    /// Prepares the loop on the thread that made the place and that will run it.
    ///
    /// # Errors
    /// Those of signalfd(2) and memfd_create(2).
    pub fn new(shared: Arc<Shared>, nest: Nest, commands: Receiver<Command>) -> io::Result<Self> {
        // Asked now, so that the first arrival does not wait for the answers.
        let _ = crate::cpu::record();
        shared.numbers.store(nest.init.can_number(), Ordering::Release);
        Ok(Self {
            shared,
            nest,
            program: birth::stub_program()?,
            commands,
            signals: signalfd::Signals::open()?,
            processes: HashMap::new(),
            lease: LEASE,
            silent: Some(Instant::now()),
            greeted: false,
            held: false,
            over: None,
        })
    }

    /// Serves the job until it is over here; why. No body is left then.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn run(&mut self) -> io::Result<String> {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let left = next_tick.saturating_duration_since(Instant::now());
            let mut fds = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.shared.bell(), PollFlags::POLLIN),
            ];
            match poll(
                &mut fds,
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO),
            ) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            while let Some(signal) = self.signals.next()? {
                if matches!(signal.signal, libc::SIGTERM | libc::SIGINT) {
                    self.over.get_or_insert("ended by a signal".to_owned());
                }
            }
            self.reap();
            self.doom();
            // A signal may have taken a call back for which the calls' thread waits, with others still to be written.
            self.shared.session.flush();
            self.shared.quiet();
            while let Ok(command) = self.commands.try_recv() {
                self.command(command);
                self.reap();
                self.doom();
            }
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
            if let Some(why) = self.over.take() {
                for pid in self.processes.keys().copied().collect::<Vec<_>>() {
                    self.step(pid, HostEvent::HomeGone);
                }
                return Ok(why);
            }
        }
    }

    // ---- what the kernel says

    fn reap(&mut self) {
        while let Ok(Some((tid, event))) = ptrace::wait(None, false) {
            if tid == self.nest.init.pid {
                if matches!(event, Event::Exited(_) | Event::Killed(..)) {
                    self.over
                        .get_or_insert("process 1 of the job's namespace ended".to_owned());
                }
                continue;
            }
            let owner = self
                .processes
                .values()
                .find(|process| {
                    // The end of the leader is the body's, also when a freeze has seen it first.
                    let leader = process.built.as_ref().is_some_and(|built| built.body.pid == tid);
                    leader || process.tids.contains(&tid)
                })
                .map(|process| process.pid);
            match owner {
                Some(pid) => self.event(pid, tid, event),
                None => tracing::debug!(tid, ?event, "an event of nobody's thread"),
            }
        }
    }

    fn event(&mut self, pid: Pid, tid: i32, event: Event) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let resumed = match event {
            Event::Signal(signal) => match signals::at_stop(&self.shared, process, tid, signal) {
                Delivery::Deliver(signal) => ptrace::cont(tid, signal),
                Delivery::Nothing => ptrace::cont(tid, 0),
                Delivery::Fatal(how) => return self.ended(pid, how),
            },
            // An interrupt whose reason is gone, or a group-stop, which only home may order.
            Event::Stop(_) => ptrace::cont(tid, 0),
            Event::Job(_) => Ok(()),
            Event::Ptrace(kind) => {
                // Nothing that makes a thread, a process or a program is native: something slipped through.
                tracing::error!(%pid, tid, kind, "a body made a call that it cannot make; it ends");
                return self.ended(
                    pid,
                    Exit::Signal {
                        signal: libc::SIGKILL as u8,
                        core: false,
                    },
                );
            }
            Event::Exited(_) | Event::Killed(..) => {
                process.thread_gone(tid);
                process.bury(tid);
                let leader = process.built.as_ref().map(|built| built.body.pid);
                if leader == Some(tid) {
                    let how = match event {
                        Event::Exited(code) => Exit::Code(code),
                        Event::Killed(signal, core) => Exit::Signal {
                            signal: signal as u8,
                            core,
                        },
                        _ => Exit::Signal {
                            signal: libc::SIGKILL as u8,
                            core: false,
                        },
                    };
                    self.ended(pid, how);
                }
                return;
            }
        };
        if let Err(error) = resumed {
            tracing::debug!(%pid, tid, %error, "a thread went away");
        }
    }

    /// Ends bodies that a signal was about to end while they were being stopped.
    fn doom(&mut self) {
        let doomed = |process: &mut Process| Some((process.pid, process.fatal.take()?));
        for (pid, how) in self.processes.values_mut().filter_map(doomed).collect::<Vec<_>>() {
            self.ended(pid, how);
        }
    }

    /// The body ended by itself.
    fn ended(&mut self, pid: Pid, how: Exit) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.how = how;
        if let Some(usage) = process.calls.as_deref().and_then(usage::report) {
            self.shared.tell(&usage, &[]);
        }
        self.step(pid, HostEvent::BodyGone);
    }

    // ---- what other threads say

    fn command(&mut self, command: Command) {
        match command {
            Command::Home(message) => self.home(message),
            Command::HomeGone(why) => {
                self.over.get_or_insert(why);
            }
            Command::Prepare(pid, epoch, files, threads) => self.prepare(pid, epoch, files, threads),
            Command::Unprepare(pid, epoch) => {
                if let Some(process) = self.processes.get_mut(&pid)
                    && process
                        .prepared
                        .as_ref()
                        .is_some_and(|prepared| prepared.epoch() == epoch)
                {
                    process.unprepare();
                    self.forget_idle(pid);
                }
            }
            Command::Arrive { image, from, answer } => {
                let (pid, epoch) = (image.pid, image.epoch);
                if let Err(error) = super::check::image(&image) {
                    let _ = answer.send(Err(error.to_string()));
                    self.refuse(pid, epoch, error);
                    return;
                }
                // Home's word may be slower than the image, on a link that is just being made anew.
                let process = self.process(pid);
                let expected = matches!(&process.state, Host::Expecting { epoch: now, .. } if *now == epoch);
                let newer = process.state.epochs().is_none_or(|(_, newest)| newest < epoch);
                if from.is_some() && !expected && newer && process.early.is_none() {
                    process.early = Some((Command::Arrive { image, from, answer }, epoch, Instant::now()));
                    return;
                }
                let place = from.map_or(Place::Home, Place::Node);
                self.process(pid).incoming = Some((image, answer));
                self.step(pid, HostEvent::Arrive(epoch, place));
            }
            Command::Filled(pid, epoch, bytes) => {
                self.process(pid).bytes = bytes;
                self.filled(pid, epoch);
            }
            Command::Broken(pid, epoch, why) => {
                self.process(pid).why = why;
                self.step(pid, HostEvent::BuildFailed(epoch));
            }
            Command::Reply(reply, payload) => serve::replied(&self.shared, &reply, &payload),
            Command::Late(pid) => self.late(pid),
            Command::Made(pid, host, id, number) => self.made(pid, (host, id), number),
            Command::Exec(pid, host, id, call) => {
                if let Some(process) = self.processes.get_mut(&pid) {
                    exec::forward(&self.shared, process, (host, id), *call);
                }
            }
            Command::Due(pid, host, result) => {
                if let Some(process) = self.processes.get_mut(&pid)
                    && let Err(error) = signals::call_over(process, host, result)
                {
                    tracing::debug!(%pid, tid = host, %error, "an interrupted thread went away");
                }
            }
            Command::WantHome(pid, nr) => {
                let Some(process) = self.processes.get_mut(&pid) else {
                    return;
                };
                if process.lent.is_some() {
                    process.wanted_home = Some(nr);
                    return;
                }
                if let Some(calls) = process.calls.clone() {
                    self.shared.tell(
                        &ToHome::WantHome {
                            pid,
                            epoch: calls.epoch(),
                            nr,
                        },
                        &[],
                    );
                }
            }
            // Of a frozen body the call is a part of the image: whoever goes on with it makes it again.
            Command::Exit(pid, how) => {
                if self.processes.get(&pid).is_none_or(|process| !process.is_frozen()) {
                    self.ended(pid, how);
                }
            }
            Command::HungUp(pid) => tracing::debug!(%pid, "the listener has nobody left"),
            Command::DepartHome { pid, epoch, streams } => {
                self.process(pid).way = Some(streams);
                self.order(
                    pid,
                    Order::Depart {
                        attempt: epoch,
                        to: Place::Home,
                    },
                );
                // Whatever the rules said, an unused stream ends here, and home sees it.
                if let Some(mut unused) = self.processes.get_mut(&pid).and_then(|process| process.way.take()) {
                    let reason = "the process is not running here, or leaves already".to_owned();
                    let no = ToHome::CannotDepart { pid, epoch, reason };
                    let _ = encode_body(&no).map(|body| unused.image.send(&body, &[]));
                }
            }
            Command::Ready(pid, attempt, Ok(streams)) => self.capture(pid, attempt, streams, false),
            Command::Ready(pid, attempt, Err(why)) => {
                self.process(pid).why = why;
                self.step(pid, HostEvent::FreezeFailed(attempt));
            }
            Command::StreamEnded(node) => self.hopeless(&node),
            Command::PagesSent(pid, attempt) => self.step(pid, HostEvent::PagesSent(attempt)),
            Command::StreamBroken(pid, attempt, why) => {
                self.process(pid).why = why;
                self.step(pid, HostEvent::StreamBroken(attempt));
            }
        }
    }

    fn home(&mut self, message: ToHost) {
        self.greeted = true;
        match message {
            ToHost::Hello { lease_s, .. } => self.lease = Duration::from_secs(lease_s.max(1).into()),
            ToHost::Expect { pid, epoch, from, .. } => {
                let again = matches!(&self.process(pid).state, Host::Expecting { epoch: now, .. } if *now == epoch);
                self.process(pid).last_stream = again;
                if again {
                    self.hopeless(&from);
                } else {
                    self.order(pid, Order::Expect { epoch, from });
                    if let Some((early, ..)) = self.process(pid).early.take() {
                        self.command(early);
                    }
                }
            }
            ToHost::Run { pid, epoch } => self.order(pid, Order::Run { epoch }),
            ToHost::Drop { pid, epoch } => {
                if let Some(process) = self.processes.get_mut(&pid)
                    && let Some((Command::Arrive { answer, .. }, ..)) = process.early.take_if(|early| early.1 <= epoch)
                {
                    let _ = answer.send(Err("home has given this move up".to_owned()));
                }
                self.order(pid, Order::Drop { epoch });
            }
            ToHost::Depart { pid, epoch, to, .. } => {
                let place = match &to {
                    Destination::Home => {
                        // Home fetches an image on a page stream; only there.
                        let reason = "home asked for an image without a stream for it".to_owned();
                        return self.shared.tell(&ToHome::CannotDepart { pid, epoch, reason }, &[]);
                    }
                    Destination::Node { node, .. } => Place::Node(node.clone()),
                };
                self.process(pid).destination = Some(to);
                self.order(
                    pid,
                    Order::Depart {
                        attempt: epoch,
                        to: place,
                    },
                );
            }
            ToHost::Thaw { pid, attempt, epoch } => self.order(pid, Order::Thaw { attempt, epoch }),
            ToHost::Signal { pid, number, tid, info } => {
                let process = self.processes.get_mut(&pid);
                let how = process.and_then(|process| signals::from_home(&self.shared, process, number, tid, &info));
                self.shared.signals.fetch_sub(1, Ordering::AcqRel);
                if let Some(how) = how {
                    self.ended(pid, how);
                }
            }
            ToHost::Stop { pid, stop } => self.stop(pid, stop),
            ToHost::AskUsage => {
                for process in self.processes.values() {
                    if let Some(usage) = process.calls.as_deref().and_then(usage::report) {
                        self.shared.tell(&usage, &[]);
                    }
                }
            }
            ToHost::Bye => {
                self.over.get_or_insert("home said good-bye".to_owned());
            }
            ToHost::Clocks(_)
            | ToHost::Files { .. }
            | ToHost::FileBytes { .. }
            | ToHost::MapFile { .. }
            | ToHost::AskProc { .. }
            | ToHost::NoFile(_)
            | ToHost::Arrive(_)
            | ToHost::Prepare { .. }
            | ToHost::Lane { .. }
            | ToHost::Pages { .. }
            | ToHost::ImageEnd { .. }
            | ToHost::Reply(_) => tracing::warn!("home said something on the session that belongs elsewhere"),
        }
    }

    /// Makes the body of a thread, or of a child, that the deputy has made.
    fn made(&mut self, pid: Pid, creator: (i32, u64), number: Tid) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let followed = creation::follow(&self.shared, &self.nest, process, creator, number);
        if let Some(child) = followed.child {
            // Of another process that had this number before nothing is left here: the number was free.
            self.processes.insert(child.pid, *child);
        }
        if let Some(how) = followed.ended {
            self.ended(pid, how);
        }
    }

    /// Places signals again that could not be placed, or whose call was none of home's.
    fn late(&mut self, pid: Pid) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if process.frozen.is_some() || process.calls.is_none() {
            return;
        }
        process.signals.late = false;
        if let Some(how) = signals::catch_up(&self.shared, process) {
            self.ended(pid, how);
        }
    }

    /// Gives up images that nobody brings: home has said that their source is gone, and no stream of it is open.
    fn hopeless(&mut self, node: &NodeName) {
        if self.shared.streams_from(node) > 0 {
            return;
        }
        let waiting = self.processes.values().filter_map(|process| match &process.state {
            Host::Expecting { epoch, from } if from == node && process.last_stream => Some((process.pid, *epoch)),
            _ => None,
        });
        for (pid, epoch) in waiting.collect::<Vec<_>>() {
            self.process(pid).why = format!("{node} has ended before it sent the image");
            self.step(pid, HostEvent::BuildFailed(epoch));
        }
    }

    /// The deputy stopped, or goes on: so does the body.
    fn stop(&mut self, pid: Pid, stop: bool) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.stopped = stop;
        if !matches!(process.state, Host::Running { .. }) {
            return;
        }
        if stop {
            let shared = Arc::clone(&self.shared);
            let Some(process) = self.processes.get_mut(&pid) else {
                return;
            };
            if let Err(error) = process.freeze(&shared) {
                tracing::warn!(%pid, %error, "the body could not be stopped");
            }
            return;
        }
        self.resume(pid);
    }

    /// Lets a frozen body run on, with the signals that waited.
    fn resume(&mut self, pid: Pid) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if let Err(error) = process.thaw() {
            tracing::error!(%pid, %error, "a frozen body could not be put back");
            return self.ended(
                pid,
                Exit::Signal {
                    signal: libc::SIGKILL as u8,
                    core: false,
                },
            );
        }
        if process.frozen.is_some() {
            return;
        }
        if let Some(how) = signals::catch_up(&self.shared, process) {
            self.ended(pid, how);
        }
    }

    // ---- the commit rules

    fn process(&mut self, pid: Pid) -> &mut Process {
        self.processes.entry(pid).or_insert_with(|| Process::new(pid))
    }

    fn order(&mut self, pid: Pid, order: Order<NodeName>) {
        self.step(pid, HostEvent::Order(order));
    }

    fn step(&mut self, pid: Pid, event: HostEvent<NodeName>) {
        let process = self.process(pid);
        let state = std::mem::replace(&mut process.state, Host::Absent);
        let (state, effects) = state.step(event);
        process.state = state;
        for effect in effects {
            self.perform(pid, effect);
        }
        self.forget_idle(pid);
    }

    fn forget_idle(&mut self, pid: Pid) {
        if self.processes.get(&pid).is_some_and(Process::is_idle) {
            self.processes.remove(&pid);
        }
    }

    /// Makes a process for an image that is still to come, when its place is free. That there is none is no error: it is made with the image.
    fn prepare(&mut self, pid: Pid, epoch: Epoch, files: Vec<FileRef>, threads: Vec<Tid>) {
        let others = self.processes.values().filter(|process| process.prepared.is_some());
        if others.count() >= PREPARED {
            return;
        }
        let process = self.process(pid);
        if process.built.is_none() && process.incoming.is_none() {
            process.unprepare();
            match build::Prepared::new(&self.shared, &self.nest, &self.program, (pid, epoch), (files, threads)) {
                Ok(prepared) => self.process(pid).prepared = Some(prepared),
                Err(error) => tracing::debug!(%pid, %error, "nothing is prepared"),
            }
        }
        self.forget_idle(pid);
    }

    fn perform(&mut self, pid: Pid, effect: Effect) {
        match effect {
            Effect::Report(report) => self.report(pid, report),
            Effect::Build(epoch) => self.build(pid, epoch),
            Effect::RefuseImage(epoch) => {
                if let Some((image, answer)) = self.process(pid).incoming.take_if(|(image, _)| image.epoch == epoch) {
                    let _ = answer.send(Err(format!(
                        "home does not expect epoch {} of process {}",
                        image.epoch.0, image.pid
                    )));
                }
            }
            Effect::ReleaseBody => self.release(pid),
            Effect::FreezeBody { attempt, .. } => self.leave(pid, attempt),
            Effect::SendImage(_) => {}
            Effect::SendEnd(_) => {
                if let Some(departure) = &self.process(pid).departure {
                    departure.send_end();
                }
            }
            Effect::ResumeBody(epoch) => {
                if let Some(calls) = &self.process(pid).calls {
                    calls.epoch.store(epoch.0, Ordering::Release);
                }
                self.resume(pid);
            }
            Effect::HoldBody => {
                let shared = Arc::clone(&self.shared);
                let process = self.process(pid);
                process.held = true;
                if let Err(error) = process.freeze(&shared) {
                    tracing::warn!(%pid, %error, "the body could not be held");
                }
            }
            Effect::UnholdBody => {
                self.process(pid).held = false;
                self.resume(pid);
            }
            Effect::KillBody => self.kill(pid),
        }
    }

    fn report(&mut self, pid: Pid, report: Report) {
        let process = self.process(pid);
        let why = || {
            reason(if process.why.is_empty() {
                "it is not here"
            } else {
                &process.why
            })
        };
        let message = match report {
            Report::Complete(epoch) => ToHome::Complete {
                pid,
                epoch,
                bytes: process.bytes,
            },
            Report::Refused(epoch) => ToHome::Refused {
                pid,
                epoch,
                reason: why(),
            },
            Report::Running(epoch) => ToHome::Running { pid, epoch },
            Report::Frozen(epoch) => ToHome::Frozen {
                pid,
                epoch,
                for_us: process.still.map_or(0, |since| since.elapsed().as_micros() as u64),
            },
            Report::CannotDepart(epoch) => ToHome::CannotDepart {
                pid,
                epoch,
                reason: why(),
            },
            Report::WantHome(epoch) => ToHome::WantHome { pid, epoch, nr: 0 },
            Report::Exited(epoch) => ToHome::Exited {
                pid,
                epoch,
                how: process.how,
            },
        };
        self.shared.tell(&message, &[]);
    }

    fn refuse(&self, pid: Pid, epoch: Epoch, why: impl std::fmt::Display) {
        self.shared.tell(
            &ToHome::Refused {
                pid,
                epoch,
                reason: reason(why),
            },
            &[],
        );
    }

    fn build(&mut self, pid: Pid, epoch: Epoch) {
        let Some((image, answer)) = self.process(pid).incoming.take() else {
            self.process(pid).why = "its image is gone".to_owned();
            return self.step(pid, HostEvent::BuildFailed(epoch));
        };
        let mut image = image;
        let signals = Signals::arriving(&mut image);
        let prepared = self.process(pid).prepared.take();
        match build::begin(&self.shared, &self.nest, &self.program, image, prepared) {
            Ok((mut built, memory)) => {
                fault::at("host.building");
                let process = self.process(pid);
                process.signals = signals;
                // A receiver that is gone has sent, or will send, that its stream broke.
                let _ = answer.send(Ok(memory));
                // While its pages come.
                let made = built.threads();
                process.tids = built.body.tids.clone();
                process.built = Some(built);
                if let Err(error) = made {
                    process.why = error.to_string();
                    self.step(pid, HostEvent::BuildFailed(epoch));
                }
            }
            Err(error) => {
                let why = error.to_string();
                let _ = answer.send(Err(why.clone()));
                self.process(pid).why = why;
                self.step(pid, HostEvent::BuildFailed(epoch));
            }
        }
    }

    /// All pages of an image are there.
    fn filled(&mut self, pid: Pid, epoch: Epoch) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if process.state != (Host::Building { epoch }) {
            return;
        }
        let Some(built) = &mut process.built else { return };
        match built.finish(&self.shared, &self.nest) {
            Ok(calls) => {
                fault::at("host.built");
                process.tids = built.body.tids.clone();
                process.signals.arrived(&built.body.tids, &built.image.threads);
                process.calls = Some(Arc::clone(&calls));
                self.shared.enter(&calls);
                let shared = Arc::clone(&self.shared);
                let family = Arc::clone(&calls.family);
                match self
                    .shared
                    .start(format!("calls {pid}"), move || serve::run(&shared, pid, &family))
                {
                    Ok(()) => self.step(pid, HostEvent::Built(epoch)),
                    Err(error) => {
                        process.why = error.to_string();
                        self.step(pid, HostEvent::BuildFailed(epoch));
                    }
                }
            }
            Err(error) => {
                process.why = error.to_string();
                self.step(pid, HostEvent::BuildFailed(epoch));
            }
        }
    }

    fn release(&mut self, pid: Pid) {
        fault::at("host.running");
        let process = self.process(pid);
        if let (Host::Running { epoch, .. }, Some(calls)) = (&process.state, &process.calls) {
            // Of one that was forked here it is the first.
            calls.epoch.store(epoch.0, Ordering::Release);
        }
        process.released = true;
        if process.stopped {
            // The deputy is stopped: the body begins when it goes on. Its threads stand where the builder left them.
            process.frozen = process.standing_still();
            return;
        }
        let released = process.release();
        if let Err(error) = released {
            tracing::error!(%pid, %error, "a built body could not be released");
            self.ended(
                pid,
                Exit::Signal {
                    signal: libc::SIGKILL as u8,
                    core: false,
                },
            );
            return;
        }
        self.resume(pid);
    }

    /// Freezes and captures, or first connects to where the body goes.
    fn leave(&mut self, pid: Pid, attempt: Epoch) {
        fault::at("source.leaving");
        let shared = Arc::clone(&self.shared);
        let process = self.process(pid);
        if let Some(streams) = process.way.take() {
            return self.capture(pid, attempt, streams, true);
        }
        let (Some(Destination::Node { node, fingerprint }), Some(built)) = (&process.destination, &process.built)
        else {
            process.why = "there is no way to the destination".to_owned();
            return self.step(pid, HostEvent::FreezeFailed(attempt));
        };
        let peer = mosix_wire::control::Fingerprint(*fingerprint);
        let host = built.body.pid;
        let file_of = |inode| mapping::file_of(&shared, inode);
        let files = maps::read(host).map_or_else(
            |_| built.image.files.clone(),
            |present| layout::files(&present, &file_of),
        );
        let numbers = built.numbers();
        let threads = process.tids.iter().filter_map(|tid| numbers.get(tid).copied().map(Tid));
        let (there, threads) = ((node.clone(), peer), threads.collect());
        process.offered.clone_from(&files);
        depart::dial(&shared, (pid, host), attempt, there, files, threads);
    }

    fn capture(&mut self, pid: Pid, attempt: Epoch, streams: Box<depart::Streams>, to_home: bool) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if !matches!(process.state, Host::Freezing { attempt: now, .. } if now == attempt) {
            return;
        }
        if process.lent.is_some() {
            process.leaves = Some((attempt, streams, to_home, Instant::now()));
            return;
        }
        self.depart(pid, attempt, streams, to_home);
    }

    fn depart(&mut self, pid: Pid, attempt: Epoch, streams: Box<depart::Streams>, to_home: bool) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let shared = Arc::clone(&self.shared);
        let mut streams = Some(streams);
        match depart::begin(&shared, process, attempt, &mut streams, to_home) {
            Ok(()) => {
                fault::at("source.frozen");
                self.step(pid, HostEvent::BodyFrozen(attempt));
            }
            Err(error) => {
                process.why = error.to_string();
                if let (Some(mut streams), true) = (streams, to_home) {
                    // Home waits on the stream as well as on the session.
                    let no = ToHome::CannotDepart {
                        pid,
                        epoch: attempt,
                        reason: reason(&error),
                    };
                    let _ = encode_body(&no).map(|body| streams.image.send(&body, &[]));
                }
                let undone = depart::undo(process);
                if undone.is_err() || process.tids.is_empty() {
                    return self.ended(
                        pid,
                        Exit::Signal {
                            signal: libc::SIGKILL as u8,
                            core: false,
                        },
                    );
                }
                self.step(pid, HostEvent::FreezeFailed(attempt));
                self.resume(pid);
            }
        }
    }

    fn kill(&mut self, pid: Pid) {
        let calls = self
            .shared
            .bodies
            .write()
            .unwrap_or_else(|poison| poison.into_inner())
            .remove(&pid);
        let lender = self.process(pid).borrows;
        self.process(pid).end();
        if let Some(calls) = calls {
            calls.family.leave(pid);
        }
        if let Some(lender) = lender {
            self.memory_back(lender, pid);
        }
        let none = self.processes.values().all(|process| process.built.is_none());
        if none && let Err(error) = self.nest.init.release() {
            self.over
                .get_or_insert(format!("process 1 of the job's namespace is gone: {error}"));
        }
    }

    // ---- the clock

    /// Refuses images that came unannounced and stay so.
    fn late_words(&mut self) {
        for process in self.processes.values_mut() {
            let late = |early: &mut (Command, Epoch, Instant)| early.2.elapsed() > UNANNOUNCED;
            if let Some((Command::Arrive { answer, .. }, epoch, _)) = process.early.take_if(late) {
                let _ = answer.send(Err(format!(
                    "home has said nothing of epoch {} of process {}",
                    epoch.0, process.pid
                )));
            }
        }
        self.processes.retain(|_, process| !process.is_idle());
    }

    fn tick(&mut self) {
        self.late_words();
        self.late_leaves();
        let late = self.processes.values().filter(|process| process.signals.late);
        for pid in late.map(|process| process.pid).collect::<Vec<_>>() {
            self.late(pid);
        }
        match self.shared.session.state() {
            LinkState::Up => {
                self.silent = None;
                if std::mem::take(&mut self.held) {
                    self.each(&HostEvent::LinkBack);
                }
            }
            LinkState::Down { .. } => {
                let silent = self.silent.get_or_insert_with(Instant::now).elapsed();
                if !self.greeted && silent > FIRST_CONTACT {
                    self.over.get_or_insert("home never called".to_owned());
                } else if silent > self.lease * 2 {
                    self.over
                        .get_or_insert(format!("home was silent for {} s", silent.as_secs()));
                } else if silent > self.lease && !self.held {
                    self.held = true;
                    self.each(&HostEvent::LeaseOver);
                }
            }
            LinkState::Closed(closed) => {
                self.over.get_or_insert(closed.to_string());
            }
        }
    }

    fn each(&mut self, event: &HostEvent<NodeName>) {
        for pid in self.processes.keys().copied().collect::<Vec<_>>() {
            self.step(pid, event.clone());
        }
    }
}
