//! The engine in the tracer loop: carries out what the commit rules decide.

use super::hosts::{Host, Hosts};
use super::process::{Journey, Process};
use super::view::View;
use super::wish::Wish;
use super::{Message, home, incoming, outgoing, signals};
use crate::contract::commit::{Cause, Epochs, Home, HomeEffect, HomeEvent, Order, Place as Where, Report};
use crate::deputy::Deputy;
use crate::supervisor::engine::{Command, Context, Engine, Handle, Verdict};
use crate::supervisor::environment::CpuLevel;
use crate::supervisor::processes;
use crate::supervisor::shared::{Shared, Usage};
use crate::supervisor::stat::Stat;
use mosix_sys::process::Waited;
use mosix_sys::ptrace::{self, Event};
use mosix_wire::ids::{Epoch, NodeName, Nonce, Pid, Tid};
use mosix_wire::image::{CpuImage, SigInfo};
use mosix_wire::job::{Answer, Moved, Place, RefusalKind, Target};
use mosix_wire::link::{Destination, Exit, ToHome, ToHost};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How long a destination may take from the last byte to "complete", and a released body to its first frame.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the transfer of an image may take.
const TRANSFER: Duration = Duration::from_secs(3600);
/// How often hosts are asked what bodies use.
const USAGE: Duration = Duration::from_secs(2);

type Effect = HomeEffect<NodeName>;
type Happening = HomeEvent<NodeName>;

/// Moves the processes of one job.
pub struct HomeEngine {
    shared: Arc<Shared>,
    /// What the job's programs may use of the CPU.
    birth: CpuImage,
    epochs: Epochs,
    nonce: Nonce,
    hosts: Option<Arc<Hosts>>,
    connected: HashMap<NodeName, Arc<Host>>,
    connecting: Vec<NodeName>,
    processes: HashMap<i32, Process>,
    wishes: Vec<Wish>,
    usage_due: Option<Instant>,
}

impl std::fmt::Debug for HomeEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HomeEngine")
            .field("processes", &self.processes.len())
            .finish_non_exhaustive()
    }
}

type Cx<'a> = Context<'a, Message>;

impl HomeEngine {
    /// An engine for the job, whose programs were told to use no more than `cpu`; connects to nothing before the first move.
    pub fn new(shared: &Arc<Shared>, cpu: CpuLevel) -> Self {
        let mut nonce = [0; 8];
        // Only a name for this supervisor's life: if the kernel has no random bytes, the time names it too.
        if rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty()).is_err() {
            nonce = std::time::SystemTime::now()
                .elapsed()
                .unwrap_or_default()
                .as_nanos()
                .to_le_bytes()[..8]
                .try_into()
                .unwrap_or_default();
        }
        Self {
            shared: Arc::clone(shared),
            birth: cpu.birth(),
            epochs: Epochs::default(),
            nonce: Nonce(u64::from_le_bytes(nonce)),
            hosts: None,
            connected: HashMap::new(),
            connecting: Vec::new(),
            processes: HashMap::new(),
            wishes: Vec::new(),
            usage_due: None,
        }
    }

    fn hosts(&mut self, handle: &Handle<Message>) -> Result<Arc<Hosts>, super::hosts::HostError> {
        if let Some(hosts) = &self.hosts {
            return Ok(Arc::clone(hosts));
        }
        let view = Arc::new(View::new(self.shared.supervisor()));
        let hosts = Arc::new(Hosts::new(self.shared.id(), self.nonce, handle.clone(), view)?);
        self.hosts = Some(Arc::clone(&hosts));
        Ok(hosts)
    }

    /// Gives an event to the rules and carries out what they decide.
    fn step(&mut self, cx: &mut Cx<'_>, pid: i32, event: Happening) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(process) = self.processes.get_mut(&pid) else {
                return;
            };
            tracing::debug!(pid, ?event, state = ?process.state, "step");
            let before = process.state.accepted().map(|(node, epoch)| (node.clone(), epoch));
            // A reader may just now let the first call of an awaited body through, and its word be still on the way to this thread. Who
            // takes a body back must know, and shut the gate in the same moment: else the call and the old copy both have effects.
            let awaited = match (&process.state, &event) {
                (Home::AwaitRunning { at, epoch, .. }, HomeEvent::Timeout | HomeEvent::PeerDead(_))
                | (Home::AwaitRunning { at, epoch, .. }, HomeEvent::Report(_, Report::Refused(_))) => {
                    Some((at.clone(), *epoch))
                }
                _ => None,
            };
            let deputy = process.deputy.clone().filter(|_| awaited.is_some());
            let mut gate = deputy.as_ref().map(|deputy| deputy.gate());
            if let (Some(gate), Some((at, epoch))) = (&gate, awaited)
                && gate.seen
            {
                events.push_front(event);
                events.push_front(HomeEvent::Frame(at, epoch));
                continue;
            }
            let (state, effects) = process.state.clone().step(event, &mut self.epochs);
            process.state = state;
            if let Some(gate) = &mut gate
                && process.state.accepted() != before.as_ref().map(|(node, epoch)| (node, *epoch))
            {
                gate.open = None;
            }
            drop(gate);
            tracing::debug!(pid, state = ?process.state, ?effects, "stepped");
            self.sync_gate(pid, before);
            for effect in effects {
                self.perform(cx, pid, effect, &mut events);
            }
            self.settle(cx, pid);
        }
        self.retry(cx);
    }

    /// Opens or closes the deputy's gate to whom the rules accept.
    fn sync_gate(&mut self, pid: i32, before: Option<(NodeName, Epoch)>) {
        let Some(process) = self.processes.get(&pid) else {
            return;
        };
        let now = process.state.accepted().map(|(node, epoch)| (node.clone(), epoch));
        if now == before {
            return;
        }
        let Some(deputy) = &process.deputy else { return };
        match now {
            Some((node, epoch)) => {
                if let (Some(host), Some(hosts)) = (self.connected.get(&node), &self.hosts) {
                    let mut deputies = hosts.deputies.write().unwrap_or_else(PoisonError::into_inner);
                    deputies.insert(pid, Arc::clone(deputy));
                    deputy.open_to(node, epoch, Arc::clone(&host.session));
                }
            }
            None => deputy.close(),
        }
    }

    fn perform(&mut self, cx: &mut Cx<'_>, pid: i32, effect: Effect, events: &mut VecDeque<Happening>) {
        match effect {
            HomeEffect::Order(node, order) => self.order(pid, &node, order),
            HomeEffect::SendHere { to, attempt } => {
                if let Err(why) = self.send_here(cx, pid, to, attempt) {
                    self.fail(pid, &why);
                    events.push_back(HomeEvent::ImageFailed(attempt));
                }
            }
            HomeEffect::BuildHere(attempt) => {
                if let Err(why) = self.build_here(cx, pid, attempt) {
                    self.fail(pid, &why);
                    events.push_back(HomeEvent::ImageFailed(attempt));
                }
            }
            HomeEffect::CommitHere => self.deadline(pid, ANSWER),
            HomeEffect::WakeHere => {
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.outgoing = None;
                    process.wake();
                }
            }
            HomeEffect::DropHere => {
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.settle_away();
                }
            }
            HomeEffect::DiscardHere => {
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.incoming = None;
                    process.returning = None;
                    process.landed = None;
                    process.dropped = false;
                }
            }
            HomeEffect::ReleaseHere => {
                if let Some(process) = self.processes.get_mut(&pid)
                    && let Some(mut image) = process.returning.take()
                {
                    let left = home::owe(process, &mut image);
                    home::release(process, &image);
                    process.image = Some(*image);
                    process.incoming = None;
                    // No thread lingers for these: they are the kernel's again, without their senders' words.
                    for (tid, info) in left {
                        let Some(number) = info.0.first_chunk::<4>() else {
                            continue;
                        };
                        let signal = i32::from_le_bytes(*number);
                        let _ = match tid {
                            Some(tid) => mosix_sys::process::tgkill(pid, tid, signal),
                            None => mosix_sys::process::kill(pid, signal),
                        };
                    }
                }
            }
            HomeEffect::EndHere(cause) => self.end(cx, pid, cause),
            HomeEffect::Accept | HomeEffect::Busy => {}
        }
    }

    fn fail(&mut self, pid: i32, why: &str) {
        if let Some(journey) = self
            .processes
            .get_mut(&pid)
            .and_then(|process| process.journey.as_mut())
        {
            journey.why.get_or_insert_with(|| why.to_owned());
        }
    }

    fn deadline(&mut self, pid: i32, limit: Duration) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.deadline = Some(Instant::now() + limit);
        }
    }

    fn order(&self, pid: i32, node: &NodeName, order: Order<NodeName>) {
        let Some(host) = self.connected.get(node) else { return };
        let pid = Pid(pid);
        let message = match order {
            Order::Run { epoch } => ToHost::Run { pid, epoch },
            Order::Drop { epoch } => ToHost::Drop { pid, epoch },
            Order::Thaw { attempt, epoch } => ToHost::Thaw { pid, attempt, epoch },
            // Asked for on the page stream that the image will come on.
            Order::Depart { to: Where::Home, .. } => return,
            Order::Depart {
                attempt,
                to: Where::Node(to),
            } => {
                let Some(target) = self.connected.get(&to) else { return };
                let to = Destination::Node {
                    node: to,
                    fingerprint: target.fingerprint.0,
                };
                ToHost::Depart {
                    pid,
                    epoch: attempt,
                    to,
                    known_files: Vec::new(),
                }
            }
            Order::Expect { epoch, from } => {
                let Some(source) = self.connected.get(&from) else {
                    return;
                };
                ToHost::Expect {
                    pid,
                    epoch,
                    from,
                    fingerprint: source.fingerprint.0,
                }
            }
        };
        host.order(&message);
    }

    fn send_here(&mut self, cx: &mut Cx<'_>, pid: i32, to: NodeName, attempt: Epoch) -> Result<(), String> {
        let hosts = self.hosts(cx.handle).map_err(|error| error.to_string())?;
        let Some(process) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        process.deadline = Some(Instant::now() + TRANSFER);
        let errand = process.errand(attempt, to);
        let sender = outgoing::start(hosts, cx.handle.clone(), errand).map_err(|error| error.to_string())?;
        process.outgoing = Some(sender);
        Ok(())
    }

    fn build_here(&mut self, cx: &mut Cx<'_>, pid: i32, attempt: Epoch) -> Result<(), String> {
        let hosts = self.hosts(cx.handle).map_err(|error| error.to_string())?;
        let Some(process) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        let Some((node, _)) = process.state.accepted() else {
            return Err("the body is nowhere".to_owned());
        };
        process.deadline = Some(Instant::now() + TRANSFER);
        let from = node.clone();
        if process.journey.is_none() {
            process.journey = Some(Journey {
                reply: None,
                batch: None,
                from: Place::Node(from.clone()),
                to: Place::Home,
                begun: Instant::now(),
                frozen: None,
                bytes: 0,
                why: None,
            });
        }
        let errand = process.errand(attempt, from);
        let sender = incoming::start(hosts, cx.handle.clone(), errand).map_err(|error| error.to_string())?;
        process.incoming = Some(sender);
        Ok(())
    }

    /// A worker is ready to send: freeze and capture.
    fn prepared(&mut self, cx: &mut Cx<'_>, pid: i32, attempt: Epoch) {
        let nonce = self.nonce;
        let supervisor = self.shared.supervisor();
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let Some(sender) = process.outgoing.take() else { return };
        let handle = cx.handle.clone();
        let linger = Box::new(move |ended| handle.message(Message::Lingered(pid, ended)));
        let sole = |mapping: &crate::process::maps::Mapping| super::view::sole_mapper(supervisor, pid, mapping);
        match process.depart(attempt, nonce, sole, |window| Deputy::new(pid, window, linger)) {
            Ok(outgoing) => {
                // A worker that is gone has said why.
                let _ = sender.send(outgoing);
            }
            Err(error) => {
                self.fail(pid, &error.to_string());
                self.step(cx, pid, HomeEvent::ImageFailed(attempt));
            }
        }
    }

    /// The image of a returning body is here: prepare the deputy's memory map.
    fn image(&mut self, cx: &mut Cx<'_>, pid: i32, attempt: Epoch, image: Box<mosix_wire::image::ProcessImage>) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if let Some(journey) = &mut process.journey {
            journey.frozen.get_or_insert_with(Instant::now);
        }
        let mut image = image;
        if let Err(error) = crate::cpu::settle(&mut image) {
            self.fail(pid, &error.to_string());
            return self.step(cx, pid, HomeEvent::ImageFailed(attempt));
        }
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        match home::repair(process, &image) {
            Ok(ready) => {
                process.returning = Some(image);
                process.dropped = false;
                if let Some(sender) = process.incoming.take() {
                    let _ = sender.send(ready);
                }
            }
            Err(error) => {
                self.fail(pid, &error.to_string());
                self.step(cx, pid, HomeEvent::ImageFailed(attempt));
            }
        }
    }

    /// All pages are back: the rest of the process's own state, then the commit.
    fn landed(&mut self, cx: &mut Cx<'_>, pid: i32, attempt: Epoch, bytes: u64) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if process.state.accepted().is_some() {
            // Calls that the body made before it froze may still be on their way; what follows counts on having seen them all.
            process.landed = Some((attempt, bytes));
            return;
        }
        process.landed = None;
        if let Some(journey) = &mut process.journey {
            journey.bytes = bytes;
        }
        let Some(mut image) = process.returning.take() else {
            return;
        };
        // Signals that came to the deputy meanwhile wait behind those that the body brought.
        image.pending.extend(process.signals.drain(..).map(|(_, info)| info));
        match home::dress(process, &image) {
            Ok(()) => {
                process.returning = Some(image);
                self.step(cx, pid, HomeEvent::BuiltHere(attempt));
            }
            Err(error) => {
                self.fail(pid, &error.to_string());
                self.step(cx, pid, HomeEvent::ImageFailed(attempt));
            }
        }
    }

    /// Something a host said that concerns one process.
    fn heard(&mut self, cx: &mut Cx<'_>, node: NodeName, message: ToHome) {
        let report = |pid: Pid, report| (pid.0, HomeEvent::Report(node.clone(), report));
        let (pid, event) = match message {
            ToHome::Complete { pid, epoch, bytes } => {
                if let Some(journey) = self
                    .processes
                    .get_mut(&pid.0)
                    .and_then(|process| process.journey.as_mut())
                {
                    journey.bytes = bytes;
                }
                report(pid, Report::Complete(epoch))
            }
            ToHome::Refused { pid, epoch, reason } => {
                self.fail(pid.0, &format!("{node}: {reason}"));
                report(pid, Report::Refused(epoch))
            }
            ToHome::Running { pid, epoch } => report(pid, Report::Running(epoch)),
            ToHome::WantHome { pid, epoch, .. } => report(pid, Report::WantHome(epoch)),
            ToHome::Frozen { pid, epoch } => {
                if let Some(journey) = self
                    .processes
                    .get_mut(&pid.0)
                    .and_then(|process| process.journey.as_mut())
                {
                    journey.frozen.get_or_insert_with(Instant::now);
                }
                report(pid, Report::Frozen(epoch))
            }
            ToHome::CannotDepart { pid, epoch, reason } => {
                self.fail(pid.0, &format!("{node}: {reason}"));
                report(pid, Report::CannotDepart(epoch))
            }
            ToHome::Exited { pid, epoch, how } => {
                if let Some(process) = self.processes.get_mut(&pid.0)
                    && process.state.accepted() == Some((&node, epoch))
                {
                    process.dying = Some(how);
                }
                report(pid, Report::Exited(epoch))
            }
            ToHome::ThreadExit {
                pid,
                tid,
                epoch,
                status,
            } => {
                return self.thread_exit(&node, pid.0, tid.0, epoch, status);
            }
            ToHome::Cancel { pid, tid, epoch, seq } => {
                if let Some(process) = self.processes.get_mut(&pid.0)
                    && process.state.accepted() == Some((&node, epoch))
                    && process
                        .deputy
                        .as_ref()
                        .and_then(|deputy| deputy.open(tid.0))
                        .is_some_and(|open| open.seq == seq)
                {
                    process.cancels.insert(tid.0, seq);
                    let _ = ptrace::interrupt(tid.0);
                }
                return;
            }
            ToHome::StopSignal { pid, epoch, signal } => {
                // The deputy takes it at its delivery stop and really stops; nothing else may be asked for in this way.
                let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
                if let Some(process) = self.processes.get(&pid.0)
                    && process.state.accepted() == Some((&node, epoch))
                    && stops.contains(&i32::from(signal))
                {
                    let _ = mosix_sys::process::kill(pid.0, i32::from(signal));
                }
                return;
            }
            ToHome::Usage {
                pid,
                cpu_ns,
                resident,
                threads,
            } => {
                return cx.shared.place(pid.0, |placement| {
                    placement.usage = Usage {
                        cpu_ns,
                        resident,
                        threads,
                    };
                });
            }
            // Handled by the link reader, or belongs on a page stream.
            _ => return,
        };
        self.step(cx, pid, event);
        if let Some((attempt, bytes)) = self.processes.get_mut(&pid).and_then(|process| process.landed.take()) {
            self.landed(cx, pid, attempt, bytes);
        }
    }

    fn thread_exit(&mut self, node: &NodeName, pid: i32, tid: i32, epoch: Epoch, status: i32) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if process.state.accepted() != Some((node, epoch)) {
            return;
        }
        let Some(deputy) = &process.deputy else { return };
        if let Some(slot) = deputy.slot(tid) {
            let mut op = mosix_loader::script::Op::may(libc::SYS_exit, [status as u64, 0, 0, 0, 0, 0]);
            op.flags |= mosix_loader::script::abi::OP_QUIET;
            if let Err(error) = deputy.window().post(slot, &[op]) {
                tracing::warn!(pid, tid, %error, "the thread cannot end at home");
            }
        }
    }

    /// Ends the deputy as its body ended.
    fn end(&mut self, cx: &mut Cx<'_>, pid: i32, cause: Cause) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        match (cause, process.dying) {
            (Cause::Killed, _) => {}
            (Cause::Exited, Some(Exit::Code(code))) => {
                let args = [code as u64, 0, 0, 0, 0, 0];
                if super::process::divert(process, libc::SYS_exit_group, args).is_err() {
                    let _ = mosix_sys::process::kill(pid, libc::SIGKILL);
                }
            }
            (Cause::Exited, Some(Exit::Signal { signal, .. })) => {
                let _ = mosix_sys::process::kill(pid, i32::from(signal));
            }
            (Cause::Exited, None) => {}
            (Cause::Lost, _) => {
                cx.handle.notice(format!(
                    "process {pid} ({}) is lost: the node with its body is gone",
                    process.program
                ));
                process.dying = Some(Exit::Signal {
                    signal: libc::SIGKILL as u8,
                    core: false,
                });
                let _ = mosix_sys::process::kill(pid, libc::SIGKILL);
            }
        }
        if let Some(deputy) = &process.deputy {
            deputy.close();
        }
    }

    /// Reports a move that has come to its end, good or bad.
    fn settle(&mut self, cx: &mut Cx<'_>, pid: i32) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let place = match process.state.accepted() {
            Some((node, _)) => Place::Node(node.clone()),
            None => Place::Home,
        };
        if !process.state.settled() {
            cx.shared.place(pid, |placement| placement.moving = true);
            return;
        }
        process.deadline = None;
        let Some(journey) = process.journey.take() else { return };
        let moved = place == journey.to;
        cx.shared.place(pid, |placement| {
            placement.moving = false;
            placement.moves += u32::from(moved);
            if place == Place::Home {
                placement.usage = Usage::default();
            }
            placement.place = place.clone();
        });
        let now = Instant::now();
        let us = |since: Instant| now.duration_since(since).as_micros() as u64;
        if let Some(reply) = &journey.reply {
            if moved {
                reply.send(Answer::Moved(Moved {
                    pid: Pid(pid),
                    program: process.program.clone(),
                    from: journey.from,
                    to: journey.to,
                    freeze_us: journey.frozen.map_or(0, us),
                    total_us: us(journey.begun),
                    bytes: journey.bytes,
                }));
            } else {
                let why = journey
                    .why
                    .unwrap_or_else(|| "it ended, or the move was undone".to_owned());
                reply.refuse(
                    RefusalKind::Failed,
                    Some(pid),
                    format!("process {pid} stays where it was: {why}"),
                );
            }
            if moved && journey.batch.is_none_or(|batch| Arc::strong_count(&batch) == 1) {
                reply.send(Answer::Done);
            }
        } else if let Some(why) = journey.why.filter(|_| !moved) {
            cx.handle.notice(format!("process {pid} could not come home: {why}"));
        }
        if place != Place::Home {
            self.usage_due.get_or_insert(now + USAGE);
            self.flush(pid);
        }
    }

    /// Sends signals that waited for the body to be somewhere.
    fn flush(&mut self, pid: i32) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let waiting: Vec<_> = process.signals.drain(..).collect();
        for (tid, info) in waiting {
            self.forward(pid, tid, info);
        }
    }

    fn forward(&mut self, pid: i32, tid: Option<i32>, info: SigInfo) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        match process.state.signals_to().and_then(|node| self.connected.get(node)) {
            Some(host) => host.order(&ToHost::Signal {
                pid: Pid(pid),
                tid: tid.map(Tid),
                info,
            }),
            None => process.signals.push_back((tid, info)),
        }
    }

    /// Starts what was waiting for a host or for an earlier move.
    fn retry(&mut self, cx: &mut Cx<'_>) {
        for wish in std::mem::take(&mut self.wishes) {
            self.wish(cx, wish);
        }
    }

    fn wish(&mut self, cx: &mut Cx<'_>, wish: Wish) {
        let pid = wish.pid;
        let refuse = |kind, text: String| {
            if let Some(reply) = &wish.reply {
                reply.refuse(kind, Some(pid), text);
            }
        };
        if Stat::read(pid).map_or(true, |stat| stat.state == 'Z') {
            return refuse(RefusalKind::UnknownProcess, format!("process {pid} has ended"));
        }
        let epoch = self.epochs.fresh();
        let process = self
            .processes
            .entry(pid)
            .or_insert_with(|| Process::new(pid, epoch, &self.birth));
        if !process.state.settled() || process.journey.is_some() {
            if wish.since.elapsed() > TRANSFER {
                return refuse(RefusalKind::Failed, format!("process {pid} is still moving"));
            }
            return self.wishes.push(wish);
        }
        let from = process
            .state
            .accepted()
            .map_or(Place::Home, |(node, _)| Place::Node(node.clone()));
        if from == wish.to {
            if let Some(reply) = &wish.reply {
                let (program, to) = (process.program.clone(), wish.to.clone());
                let moved = Moved {
                    pid: Pid(pid),
                    program,
                    from,
                    to,
                    freeze_us: 0,
                    total_us: 0,
                    bytes: 0,
                };
                reply.send(Answer::Moved(moved));
                if wish.batch.is_none_or(|batch| Arc::strong_count(&batch) == 1) {
                    reply.send(Answer::Done);
                }
            }
            return;
        }
        let target = match &wish.to {
            Place::Home => Where::Home,
            Place::Node(node) if self.connected.contains_key(node) => Where::Node(node.clone()),
            Place::Node(node) => {
                let node = node.clone();
                self.wishes.push(wish);
                return self.connect(cx, node);
            }
        };
        let begun = wish.since;
        process.journey = Some(Journey {
            reply: wish.reply,
            batch: wish.batch,
            from,
            to: wish.to,
            begun,
            frozen: None,
            bytes: 0,
            why: None,
        });
        self.step(cx, pid, HomeEvent::Migrate(target));
    }

    fn connect(&mut self, cx: &mut Cx<'_>, node: NodeName) {
        if self.connecting.contains(&node) {
            return;
        }
        self.connecting.push(node.clone());
        let started = self
            .hosts(cx.handle)
            .map_err(|error| error.to_string())
            .and_then(|hosts| {
                let (handle, name) = (cx.handle.clone(), node.clone());
                std::thread::Builder::new()
                    .name(format!("connect-{node}"))
                    .spawn(move || {
                        if let Err(error) = hosts.get(&name) {
                            handle.message(Message::Lost(name, error.to_string()));
                        }
                    })
                    .map_err(|error| error.to_string())
            });
        if let Err(why) = started {
            self.lost(cx, &node, &why);
        }
    }

    /// A host cannot be reached, or its session is over for good.
    fn lost(&mut self, cx: &mut Cx<'_>, node: &NodeName, why: &str) {
        self.connecting.retain(|connecting| connecting != node);
        let (hopeless, rest): (Vec<Wish>, Vec<Wish>) = std::mem::take(&mut self.wishes)
            .into_iter()
            .partition(|wish| wish.to == Place::Node(node.clone()));
        self.wishes = rest;
        for wish in hopeless {
            if let Some(reply) = wish.reply {
                reply.refuse(RefusalKind::UnknownNode, Some(wish.pid), format!("node {node}: {why}"));
            }
        }
        if self.connected.remove(node).is_none() {
            return;
        }
        if let Some(hosts) = &self.hosts {
            hosts.forget(node);
        }
        for pid in self.processes.keys().copied().collect::<Vec<_>>() {
            self.fail(pid, &format!("node {node}: {why}"));
            self.step(cx, pid, HomeEvent::PeerDead(node.clone()));
        }
    }

    fn holder(&self, tid: i32) -> Option<i32> {
        if self
            .processes
            .get(&tid)
            .is_some_and(|process| process.held.contains(&tid))
        {
            return Some(tid);
        }
        self.processes
            .values()
            .find(|process| process.held.contains(&tid))
            .map(|process| process.pid)
    }

    /// A thread of a held process ended; with the leader, the process.
    fn thread_gone(&mut self, cx: &mut Cx<'_>, pid: i32, tid: i32) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.held.remove(&tid);
        process.lingering.remove(&tid);
        if let Some(deputy) = &process.deputy {
            deputy.leave(tid);
        }
        if tid != pid {
            return;
        }
        self.step(cx, pid, HomeEvent::DeputyDead);
        self.forget(pid);
    }

    fn forget(&mut self, pid: i32) {
        let Some(mut process) = self.processes.remove(&pid) else {
            return;
        };
        if let Some(reply) = process.journey.take().and_then(|journey| journey.reply) {
            let text = format!("process {pid} ended before it had moved");
            reply.refuse(RefusalKind::UnknownProcess, Some(pid), text);
        }
        if let Some(deputy) = &process.deputy {
            deputy.close();
            deputy.end();
        }
        if let Some(hosts) = &self.hosts {
            hosts
                .deputies
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&pid);
        }
    }

    /// A lingering thread of a process at home was stopped.
    fn lingering_event(&mut self, pid: i32, tid: i32, event: Event) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if !process.lingering.contains_key(&tid) {
            return;
        }
        let deputy = process.deputy.clone();
        let done = match event {
            Event::Signal(signal) if signals::ignored(pid, signal) => signals::go_on(tid, deputy.as_deref()),
            Event::Signal(_) => home::interrupted(process, tid),
            Event::Stop(libc::SIGTRAP) => home::go_on(process, tid),
            Event::Stop(_) => ptrace::listen(tid),
            _ => ptrace::cont(tid, 0),
        };
        if let Err(error) = done {
            tracing::debug!(tid, %error, "lingering thread is gone");
        }
    }
}

impl Engine for HomeEngine {
    type Message = Message;

    fn on_wait(&mut self, cx: &mut Cx<'_>, waited: Waited) -> Verdict {
        let tid = waited.pid;
        let event = ptrace::decode(waited.status.raw());
        let Some(pid) = self.holder(tid) else {
            if waited.status.is_end() && self.processes.contains_key(&tid) {
                self.forget(tid);
            }
            return Verdict::Pass;
        };
        if matches!(event, Event::Exited(_) | Event::Killed(..)) {
            self.thread_gone(cx, pid, tid);
            return if tid == pid { Verdict::Pass } else { Verdict::Mine };
        }
        let Some(process) = self.processes.get_mut(&pid) else {
            return Verdict::Pass;
        };
        if process.lingering.contains_key(&tid) && process.frozen.is_none() && process.state.accepted().is_none() {
            self.lingering_event(pid, tid, event);
            return Verdict::Mine;
        }
        match signals::event(process, tid, event) {
            signals::Outcome::Done | signals::Outcome::Ended => {}
            signals::Outcome::Forward(thread, info) => self.forward(pid, thread, SigInfo(info.to_vec())),
            signals::Outcome::Stopped(signal) => {
                self.stop_body(pid, true);
                cx.stopped(pid, signal);
            }
            signals::Outcome::Continued => {
                self.stop_body(pid, false);
                cx.continued(pid);
            }
        }
        Verdict::Mine
    }

    fn on_message(&mut self, cx: &mut Cx<'_>, message: Message) {
        match message {
            Message::Prepared { pid, attempt } => self.prepared(cx, pid, attempt),
            Message::Failed { pid, attempt, why } => {
                self.fail(pid, &why);
                self.step(cx, pid, HomeEvent::ImageFailed(attempt));
            }
            Message::Sent { pid, bytes, .. } => {
                if let Some(process) = self.processes.get_mut(&pid)
                    && let Some(journey) = &mut process.journey
                {
                    journey.bytes = bytes;
                    if process.deadline.is_some() {
                        process.deadline = Some(Instant::now() + ANSWER);
                    }
                }
            }
            Message::Image { pid, attempt, image } => self.image(cx, pid, attempt, image),
            Message::Landed { pid, attempt, bytes } => self.landed(cx, pid, attempt, bytes),
            Message::From(node, message) => self.heard(cx, node, *message),
            Message::First(node, pid, epoch) => self.step(cx, pid.0, HomeEvent::Frame(node, epoch)),
            Message::Lost(node, why) => self.lost(cx, &node, &why),
            Message::Connected(node, host) => {
                self.connecting.retain(|connecting| *connecting != node);
                self.connected.insert(node, host);
                self.retry(cx);
            }
            Message::Lingered(pid, ended) => {
                if let Some(process) = self.processes.get_mut(&pid)
                    && process.frozen.is_none()
                    && process.state.accepted().is_none()
                    && let Some(thread) = process.lingering.get(&ended.tid).cloned()
                {
                    home::lingered(process, &thread, ended);
                }
            }
        }
    }

    fn on_command(&mut self, cx: &mut Cx<'_>, command: Command) {
        let Command::Migrate { target, to, reply } = command;
        let pids = match target {
            Target::Process(pid) => vec![pid.0],
            Target::Job => match processes::descendants(self.shared.supervisor()) {
                Ok(all) => all
                    .into_iter()
                    .filter(|stat| stat.state != 'Z')
                    .map(|stat| stat.pid)
                    .collect(),
                Err(error) => return reply.refuse(RefusalKind::Failed, None, error.to_string()),
            },
        };
        let batch = (pids.len() > 1).then(|| Arc::new(()));
        for pid in pids {
            let (to, reply, batch) = (to.clone(), Some(reply.clone()), batch.clone());
            self.wish(
                cx,
                Wish {
                    pid,
                    to,
                    reply,
                    batch,
                    since: Instant::now(),
                },
            );
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.processes
            .values()
            .filter_map(|process| process.deadline)
            .chain(self.usage_due)
            .min()
    }

    fn tick(&mut self, cx: &mut Cx<'_>) {
        let now = Instant::now();
        let late = |process: &&Process| process.deadline.is_some_and(|deadline| deadline <= now);
        for pid in self
            .processes
            .values()
            .filter(late)
            .map(|process| process.pid)
            .collect::<Vec<_>>()
        {
            if let Some(process) = self.processes.get_mut(&pid) {
                process.deadline = None;
            }
            self.fail(pid, "the other node did not answer in time");
            self.step(cx, pid, HomeEvent::Timeout);
        }
        if self.usage_due.is_some_and(|due| due <= now) {
            let away = self
                .processes
                .values()
                .any(|process| process.state.accepted().is_some());
            self.usage_due = away.then(|| now + USAGE);
            for host in self.connected.values().filter(|_| away) {
                host.order(&ToHost::AskUsage);
            }
        }
    }

    fn is_busy(&self) -> bool {
        false
    }
}

impl HomeEngine {
    fn stop_body(&self, pid: i32, stop: bool) {
        let Some(process) = self.processes.get(&pid) else {
            return;
        };
        if let Some(host) = process.state.accepted().and_then(|(node, _)| self.connected.get(node)) {
            host.order(&ToHost::Stop { pid: Pid(pid), stop });
        }
    }
}

impl Drop for HomeEngine {
    fn drop(&mut self) {
        if let Some(hosts) = &self.hosts {
            hosts.bye();
        }
    }
}
