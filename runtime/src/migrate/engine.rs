//! The engine in the tracer loop: carries out what the commit rules decide.

mod bodies;
mod exec;
mod forks;
mod images;
mod nodes;

use super::hosts::{Host, Hosts};
use super::process::{Journey, Process};
use super::view::View;
use super::wish::Wish;
use super::{Message, births, home, incoming, limits, mapped, outgoing, signals};
use crate::contract::commit::{Cause, Epochs, Home, HomeEffect, HomeEvent, Order, Place as Where, Report};
use crate::deputy::Deputy;
use crate::deputy::accounts::Accounts;
use crate::fault;
use crate::process::freeze;
use crate::supervisor::engine::{Command, Context, Engine, Handle, Verdict};
use crate::supervisor::environment::CpuLevel;
use crate::supervisor::processes;
use crate::supervisor::shared::{Shared, Usage};
use crate::syscall::rusage::Elsewhere;
use mosix_sys::process::Waited;
use mosix_sys::ptrace::{self, Event};
use mosix_wire::ids::{Epoch, NodeName, Nonce, Pid, Tid};
use mosix_wire::image::{CpuImage, SigInfo};
use mosix_wire::job::{Moved, Place, RefusalKind, Target};
use mosix_wire::link::{Destination, Exit, ToHome, ToHost};
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How long a destination may take from the last byte to "complete", and a released body to its first frame.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the transfer of an image may take.
const TRANSFER: Duration = Duration::from_secs(3600);
/// How often hosts are asked what bodies use.
const USAGE: Duration = Duration::from_secs(1);

type Effect = HomeEffect<NodeName>;
type Happening = HomeEvent<NodeName>;

/// Moves the processes of one job.
pub struct HomeEngine {
    shared: Arc<Shared>,
    /// How much the job's programs were told to use of the CPU.
    cpu: CpuLevel,
    /// What that is on this node. Asked at the first move: a virtual machine's CPU answers slowly, and most jobs never move.
    birth: OnceCell<CpuImage>,
    epochs: Epochs,
    nonce: Nonce,
    hosts: Option<Arc<Hosts>>,
    connected: HashMap<NodeName, Arc<Host>>,
    connecting: Vec<NodeName>,
    processes: HashMap<i32, Process>,
    wishes: Vec<Wish>,
    usage_due: Option<Instant>,
    /// Children whose first stop was seen before their parents' word of them.
    early: HashSet<i32>,
    accounts: Arc<Accounts>,
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
            cpu,
            birth: OnceCell::new(),
            epochs: Epochs::default(),
            nonce: Nonce(u64::from_le_bytes(nonce)),
            hosts: None,
            connected: HashMap::new(),
            connecting: Vec::new(),
            processes: HashMap::new(),
            wishes: Vec::new(),
            usage_due: None,
            early: HashSet::new(),
            accounts: Arc::default(),
        }
    }

    fn hosts(&mut self, handle: &Handle<Message>) -> Result<Arc<Hosts>, super::hosts::HostError> {
        if let Some(hosts) = &self.hosts {
            return Ok(Arc::clone(hosts));
        }
        let view = Arc::new(View::new(self.shared.supervisor()));
        let job: crate::deputy::calls::Job = view.clone();
        let hosts = Arc::new(Hosts::new(self.shared.id(), self.nonce, handle.clone(), job)?);
        view.ask(Arc::downgrade(&hosts));
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
            if let (Some(journey), HomeEvent::Frame(..) | HomeEvent::Report(_, Report::Running(_))) =
                (&mut process.journey, &event)
            {
                journey.thawed.get_or_insert_with(Instant::now);
            }
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
            let heard = before.clone();
            self.sync_gate(pid, before);
            for effect in effects {
                self.perform(cx, pid, effect, &mut events);
            }
            self.ask_again(pid);
            // To whoever may make calls now, before anything newer. One who does not run yet does not take them, and gets them once more.
            let accepted = |process: &Process| process.state.accepted().map(|(node, epoch)| (node.clone(), epoch));
            let now = self.processes.get(&pid).and_then(accepted);
            if now.is_some() && now != heard {
                self.flush(pid);
            }
            self.settle(cx, pid);
            // Freeing memory takes its time; who asked for the move need not wait for that.
            if let Some(process) = self.processes.get_mut(&pid)
                && std::mem::take(&mut process.drop_due)
            {
                process.drop_memory();
                // What came to the deputy's threads meanwhile is the body's. Signals are numbered: one that went already is not taken again.
                self.flush(pid);
            }
        }
        self.retry(cx);
        self.begin(pid);
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
            HomeEffect::Order(node, order) => {
                if let Order::Run { .. } = order {
                    fault::at("home.commit");
                }
                if let Order::Depart { .. } = order {
                    self.deadline(pid, TRANSFER);
                }
                self.order(pid, &node, order);
            }
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
                    home::give_back(process);
                }
            }
            HomeEffect::DropHere => {
                fault::at("home.dropping");
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.settle_away(self.hosts.as_ref().map(|hosts| hosts.view()));
                    process.drop_due = true;
                }
            }
            HomeEffect::DiscardHere => {
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.incoming = None;
                    if process
                        .returning
                        .take()
                        .is_some_and(|image| image.attributes.has_cpu_timers())
                    {
                        process.disarm();
                    }
                    process.landed = None;
                    process.dropped = false;
                    if !process.open {
                        process.unshut();
                    }
                }
            }
            HomeEffect::ReleaseHere => {
                fault::at("home.releasing");
                if let Some(process) = self.processes.get_mut(&pid)
                    && let Some(image) = process.returning.take()
                {
                    // All of them are in the image: since then the kernel here keeps what comes.
                    process.signals.hand_over();
                    process.open = false;
                    self.accounts.report(pid, image.spent);
                    process.cpu_limited = image.attributes.cpu_limit.is_some();
                    if process.cpu_limited {
                        self.usage_due.get_or_insert_with(Instant::now);
                    }
                    home::release(process, &image);
                    process.image = Some(*image);
                    process.incoming = None;
                }
                self.bury_unmade(pid);
            }
            HomeEffect::BeginHere => self.stand(pid),
            HomeEffect::EndHere(cause) => self.end(cx, pid, cause),
            HomeEffect::Accept | HomeEffect::Busy => {}
        }
    }

    /// The move of a process that is under way.
    fn journey(&mut self, pid: i32) -> Option<&mut Journey> {
        self.processes.get_mut(&pid)?.journey.as_mut()
    }

    fn fail(&mut self, pid: i32, why: &str) {
        if let Some(journey) = self.journey(pid) {
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
                    lanes: 0,
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
}

impl Engine for HomeEngine {
    type Message = Message;

    fn on_wait(&mut self, cx: &mut Cx<'_>, waited: Waited) -> Verdict {
        let tid = waited.pid;
        let event = ptrace::decode(waited.status.raw());
        // Whichever thread did it, it is the leader now.
        if event == Event::Ptrace(libc::PTRACE_EVENT_EXEC) && self.processes.contains_key(&tid) {
            self.executed(cx, tid);
            return Verdict::Mine;
        }
        let Some(pid) = self.holder(tid) else {
            if matches!(event, Event::Stop(_))
                && let Some(process) = births::group(tid).and_then(|pid| self.processes.get_mut(&pid))
                && !process.held.is_empty()
            {
                process.early.insert(tid);
                return Verdict::Mine;
            }
            if matches!(event, Event::Stop(_)) && self.early_child(tid) {
                return Verdict::Mine;
            }
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
            signals::Outcome::Forward(thread, info) => {
                self.forward(pid, thread, SigInfo(info.to_vec()));
                let deputy = self.processes.get(&pid).and_then(|process| process.deputy.clone());
                if let Err(error) = signals::go_on(tid, deputy.as_deref()) {
                    tracing::debug!(tid, %error, "thread of a deputy is gone");
                }
            }
            signals::Outcome::Forked(child) => self.forked_here(cx, pid, tid, child),
            signals::Outcome::Stopped(signal) => {
                self.stop_body(pid, true);
                cx.stopped(pid, signal);
            }
            signals::Outcome::Continued => {
                self.stop_body(pid, false);
                cx.continued(pid);
            }
        }
        self.seat_newborn(cx);
        Verdict::Mine
    }

    fn on_message(&mut self, cx: &mut Cx<'_>, message: Message) {
        match message {
            Message::Prepared { pid, attempt } => self.prepared(cx, pid, attempt),
            Message::Failed { pid, attempt, why } => {
                // Late words of a move that is over say nothing about the one after it.
                if self.processes.get(&pid).and_then(Process::attempt) == Some(attempt) {
                    self.fail(pid, &why);
                }
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
                    && process.lingering.contains_key(&ended.tid)
                {
                    home::lingered(process, ended.tid, Some(ended));
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
                    .filter(|stat| !freeze::gone(stat.pid))
                    .map(|stat| stat.pid)
                    .collect(),
                Err(error) => return reply.refuse(RefusalKind::Failed, None, error.to_string()),
            },
        };
        // A job's processes may end at any time.
        let reply = match target {
            Target::Process(_) => reply,
            Target::Job => reply.of_all(),
        };
        let groups = matches!(target, Target::Job).then(|| processes::groups_of(&self.shared));
        for pid in pids {
            // One that was named has been looked at by whoever took the command.
            if let Some(groups) = &groups
                && to != Place::Home
                && let Some(why) = processes::cannot_leave(&self.shared, pid, Some(groups))
            {
                reply.refuse_for(pid, &why);
                continue;
            }
            let (to, reply) = (to.clone(), Some(reply.clone()));
            self.wish(
                cx,
                Wish {
                    pid,
                    to,
                    reply,
                    since: Instant::now(),
                    in_place: false,
                },
            );
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.processes
            .values()
            .flat_map(|process| [process.deadline, process.again, process.fresh])
            .flatten()
            .chain(self.usage_due)
            .min()
    }

    fn tick(&mut self, cx: &mut Cx<'_>) {
        let now = Instant::now();
        for process in self.processes.values_mut() {
            if process.again.is_some_and(|again| again <= now) {
                signals::look_again(process);
            }
        }
        self.begin_late(now);
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
            for process in self.processes.values_mut().filter(|process| process.cpu_limited) {
                let at_home = process.state.accepted().is_none();
                process.cpu_limited = at_home && limits::enforce_cpu(process.pid, self.accounts.own(process.pid).cpu);
            }
            let limited = self.processes.values().any(|process| process.cpu_limited);
            self.usage_due = (away || limited).then(|| now + USAGE);
            for host in self.connected.values().filter(|_| away) {
                host.order(&ToHost::Clocks(crate::process::capture::clocks()));
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
