//! The world around the machines: queues of messages, page streams, bodies, deaths.

use crate::mutant::Mutant;
use mosix_runtime::contract::commit::{
    Cause, Epochs, Home, HomeEffect, HomeEvent, Host, HostEffect, HostEvent, Order, Place, Report, Source,
};
use mosix_wire::ids::Epoch;

/// A host, by number; home is no host.
pub type Node = u8;

/// How many hosts there are beside home.
pub const HOSTS: usize = 2;

/// What may still happen that nobody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Orders of the user to move the process.
    pub moves: u8,
    /// Deaths, breaks, failures, early time-outs and leases, together.
    pub faults: u8,
    /// System calls of the body, at home or away.
    pub calls: u8,
    /// Ends of the body by itself.
    pub exits: u8,
    /// Wishes of the body to come home.
    pub wants: u8,
    /// Session messages that arrive twice.
    pub doubles: u8,
    /// Session messages that never arrive.
    pub losses: u8,
    /// Programs that the body, away, has its deputy execute.
    pub execs: u8,
}

/// The memory of a body, as far as the model needs it: how many calls it has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Body {
    /// Calls made; the last may not be executed yet.
    pub calls: u8,
    /// Which program it is.
    pub program: u8,
    /// Its last call executes another one.
    pub execs: bool,
}

/// The process at home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Here {
    Runs(Body),
    Frozen(Body),
    Deputy,
    Rebuilt(Body),
    Dead,
}

/// One agent and what it physically has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    pub state: Host<Node>,
    pub alive: bool,
    /// Home was told of its death.
    pub told: bool,
    pub body: Option<Body>,
    pub running: bool,
    pub held: bool,
}

/// A session message to home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Up {
    Report(Report),
    /// A call with its number; `fresh` when the body makes it, not when it is repeated after a move.
    Call {
        epoch: Epoch,
        seq: u8,
        fresh: bool,
        exec: bool,
        /// Made by the body that home had heard last: home must not refuse it while its agent lives.
        firm: bool,
    },
    /// The body's end, with the calls that it had made.
    Exit {
        epoch: Epoch,
        calls: u8,
        program: u8,
    },
}

/// A page stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    pub attempt: Epoch,
    pub from: Place<Node>,
    pub to: Place<Node>,
    pub body: Body,
    pub arrived: bool,
    pub ended: bool,
    pub broken: bool,
    /// The sender has seen the break, or is done with the stream.
    pub told_sender: bool,
    /// The receiver likewise.
    pub told_receiver: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub home: Option<Home<Node>>,
    pub epochs: Epochs,
    pub here: Here,
    pub agents: [Agent; HOSTS],
    pub down: [Vec<Order<Node>>; HOSTS],
    pub up: [Vec<Up>; HOSTS],
    pub streams: Vec<Stream>,
    /// Doubles of messages, which may arrive at any later time.
    pub late_down: Vec<(Node, Order<Node>)>,
    pub late_up: Vec<(Node, Up)>,
    /// Orders to come home: they go on the page stream that the image comes back on, beside the session and its order.
    pub beside: Vec<(Node, Order<Node>)>,
    /// Calls executed at home.
    pub done: u8,
    /// The last of them is an execve that has neither failed nor succeeded yet.
    pub opening: bool,
    /// The program that the process is.
    pub program: u8,
    /// The copy that last was heard (or the one at home) was destroyed by a fault, not by a rule.
    pub incumbent_faulted: bool,
    pub incumbent: Place<Node>,
    /// Attempts that home gave up: their images are nothing that could be lost.
    pub burned: Vec<Epoch>,
    pub budget: Budget,
    /// A message was lost for good.
    pub lossy: bool,
    /// Set when a rule was seen broken.
    pub broken: Option<String>,
}

impl World {
    pub fn new(budget: Budget) -> Self {
        let agent = Agent {
            state: Host::Absent,
            alive: true,
            told: false,
            body: None,
            running: false,
            held: false,
        };
        Self {
            home: Some(Home::AtHome { epoch: Epoch(0) }),
            epochs: Epochs::default(),
            here: Here::Runs(Body {
                calls: 0,
                program: 0,
                execs: false,
            }),
            agents: [agent.clone(), agent],
            down: [vec![], vec![]],
            up: [vec![], vec![]],
            streams: vec![],
            late_down: vec![],
            late_up: vec![],
            beside: vec![],
            done: 0,
            opening: false,
            program: 0,
            incumbent_faulted: false,
            incumbent: Place::Home,
            burned: vec![],
            budget,
            lossy: false,
            broken: None,
        }
    }

    /// A process that was forked away: its body was made on host 0 and waits, and home has just heard of it.
    pub fn born(budget: Budget) -> Self {
        let mut world = Self::new(budget);
        world.home = Some(Home::Unborn);
        world.here = Here::Deputy;
        world.incumbent = Place::Node(0);
        world.agents[0].state = Host::Born;
        world.agents[0].body = Some(Body {
            calls: 0,
            execs: false,
            program: 0,
        });
        world.home_event(HomeEvent::Born(0), Mutant::None);
        world
    }

    pub fn fail(&mut self, why: String) {
        self.broken.get_or_insert(why);
    }

    /// Gives home an event and carries out what it says; true when it accepts the frame.
    pub fn home_event(&mut self, event: HomeEvent<Node>, mutant: Mutant) -> bool {
        let Some(before) = self.home.clone() else { return false };
        let (after, effects) = mutant.home(before.clone(), event, &mut self.epochs);
        if let (Home::AwaitRunning { .. }, Home::Away { at, epoch }) = (&before, &after)
            && matches!(&before, Home::AwaitRunning { at: awaited, epoch: e, .. } if awaited == at && e == epoch)
        {
            self.incumbent = Place::Node(*at);
            let agent = &self.agents[usize::from(*at)];
            self.incumbent_faulted = !agent.alive || agent.holds() != Some(*epoch) || agent.body.is_none();
        }
        let lost = after == Home::Dead(Cause::Lost) && before != after;
        let attempt = |home: &Home<Node>| match home {
            Home::Departing { attempt, .. } | Home::Moving { attempt, .. } | Home::Returning { attempt, .. } => {
                Some(*attempt)
            }
            Home::AwaitRunning { epoch, .. } | Home::Away { epoch, .. } | Home::AtHome { epoch } => Some(*epoch),
            Home::Unborn | Home::Dead(_) => None,
        };
        if lost {
            self.check_lost();
        } else if !before.settled() && attempt(&before) != attempt(&after) {
            self.burned.extend(attempt(&before));
        }
        self.home = Some(after);
        let mut accepted = false;
        for effect in effects {
            accepted |= self.home_effect(effect);
        }
        accepted
    }

    fn home_effect(&mut self, effect: HomeEffect<Node>) -> bool {
        match (effect, self.here) {
            (HomeEffect::Order(to, order @ Order::Depart { to: Place::Home, .. }), _) => {
                if self.agents[usize::from(to)].alive {
                    self.beside.push((to, order));
                }
            }
            (HomeEffect::Order(to, order), _) => {
                if self.agents[usize::from(to)].alive {
                    self.down[usize::from(to)].push(order);
                }
            }
            (HomeEffect::SendHere { to, attempt }, Here::Runs(body)) => {
                self.here = Here::Frozen(body);
                self.open(attempt, Place::Home, Place::Node(to), body);
            }
            (HomeEffect::WakeHere, Here::Frozen(body)) => {
                self.here = Here::Runs(body);
                self.streams.retain(|s| s.from != Place::Home || s.ended);
            }
            (HomeEffect::DropHere, Here::Frozen(_)) => self.here = Here::Deputy,
            (HomeEffect::DiscardHere, Here::Deputy | Here::Rebuilt(_)) => {
                self.here = Here::Deputy;
                for stream in self.streams.iter_mut().filter(|s| s.to == Place::Home) {
                    stream.broken = true;
                }
            }
            (HomeEffect::ReleaseHere, Here::Rebuilt(body)) => {
                self.here = Here::Runs(body);
                self.incumbent = Place::Home;
                self.incumbent_faulted = false;
            }
            (HomeEffect::BeginHere, Here::Runs(_)) => {
                self.incumbent = Place::Home;
                self.incumbent_faulted = false;
                self.streams.retain(|s| s.from != Place::Home || s.ended);
                for stream in self.streams.iter_mut().filter(|s| s.to == Place::Home) {
                    stream.broken = true;
                }
            }
            (HomeEffect::EndHere(_), _) => self.here = Here::Dead,
            (HomeEffect::Accept, _) => return true,
            (HomeEffect::CommitHere | HomeEffect::BuildHere(_) | HomeEffect::Busy, _) => {}
            (effect, here) => self.fail(format!("{effect:?} while the process at home is {here:?}")),
        }
        false
    }

    /// Gives a host an event and carries out what it says.
    pub fn host_event(&mut self, at: Node, event: HostEvent<Node>, mutant: Mutant) {
        let index = usize::from(at);
        let (after, effects) = mutant.host(self.agents[index].state.clone(), event);
        self.agents[index].state = after;
        for effect in effects {
            self.host_effect(at, effect);
        }
    }

    fn host_effect(&mut self, at: Node, effect: HostEffect<Node>) {
        let index = usize::from(at);
        match effect {
            HostEffect::Report(Report::Exited(epoch)) => {
                let calls = self.done; // The body's own number was checked when it ended.
                let program = self.program;
                self.send_up(at, Up::Exit { epoch, calls, program });
            }
            HostEffect::Report(report) => self.send_up(at, Up::Report(report)),
            HostEffect::Build(_) | HostEffect::FreezeBody { .. } => {}
            HostEffect::RefuseImage(epoch) => {
                for stream in &mut self.streams {
                    if stream.attempt == epoch && stream.to == Place::Node(at) {
                        stream.broken = true;
                    }
                }
            }
            HostEffect::ReleaseBody => {
                self.agents[index].running = true;
                self.repeat_call(at);
            }
            HostEffect::ResumeBody(_) => {
                let was_running = std::mem::replace(&mut self.agents[index].running, true);
                for stream in self
                    .streams
                    .iter_mut()
                    .filter(|s| s.from == Place::Node(at) && !s.ended)
                {
                    stream.broken = true;
                    stream.told_sender = true;
                }
                if !was_running {
                    self.repeat_call(at);
                }
            }
            HostEffect::SendImage(attempt) => {
                if let (Host::Frozen { to, .. }, Some(body)) = (&self.agents[index].state, self.agents[index].body) {
                    self.open(attempt, Place::Node(at), to.clone(), body);
                }
            }
            HostEffect::SendEnd(attempt) => {
                for stream in self
                    .streams
                    .iter_mut()
                    .filter(|s| s.attempt == attempt && s.from == Place::Node(at))
                {
                    stream.ended = true;
                }
            }
            HostEffect::HoldBody => self.agents[index].held = true,
            HostEffect::UnholdBody => self.agents[index].held = false,
            HostEffect::KillBody => self.wipe(at),
        }
    }

    /// What a host had is physically gone, with its streams.
    pub fn wipe(&mut self, at: Node) {
        let agent = &mut self.agents[usize::from(at)];
        (agent.body, agent.running, agent.held) = (None, false, false);
        for stream in &mut self.streams {
            if stream.from == Place::Node(at) {
                stream.told_sender = true;
                stream.broken |= !stream.ended;
            }
            if stream.to == Place::Node(at) && stream.arrived {
                stream.broken = true;
                stream.told_receiver = true;
            }
        }
    }

    /// The copy on this host met a fault.
    pub fn fault_at(&mut self, at: Node) {
        self.incumbent_faulted |= self.incumbent == Place::Node(at);
    }

    /// The agent dies; of what it had said the first `keep` messages arrive.
    pub fn kill_agent(&mut self, at: Node, keep: usize) {
        let index = usize::from(at);
        self.fault_at(at);
        self.wipe(at);
        self.agents[index].alive = false;
        self.agents[index].state = Host::Absent;
        self.up[index].truncate(keep);
        self.down[index].clear();
        self.beside.retain(|(to, _)| *to != at);
        self.drop_streams_of(at);
    }

    /// Nobody reads on this node any more; what was sent wholly may still be read by others.
    pub fn drop_streams_of(&mut self, at: Node) {
        for stream in &mut self.streams {
            if stream.to == Place::Node(at) {
                stream.broken = true;
                stream.told_receiver = true;
            }
            if stream.from == Place::Node(at) {
                stream.told_sender = true;
                stream.broken |= !stream.ended;
            }
        }
    }

    /// The supervisor dies: deputies die with it, a process that was not committed elsewhere runs on.
    pub fn kill_home(&mut self) {
        self.here = match (self.home.take(), self.here) {
            (Some(Home::AtHome { .. } | Home::Departing { .. }), Here::Runs(body) | Here::Frozen(body)) => {
                Here::Runs(body)
            }
            _ => Here::Dead,
        };
        self.opening = false;
        self.up = [vec![], vec![]];
        self.late_up.clear();
        for stream in &mut self.streams {
            if stream.to == Place::Home {
                stream.broken = true;
                stream.told_receiver = true;
            }
            if stream.from == Place::Home {
                stream.told_sender = true;
                stream.broken |= !stream.ended;
            }
        }
    }

    /// What became of an execve that was open at home: the process is another program, whatever it was.
    pub fn execute(&mut self, mutant: Mutant) {
        self.opening = false;
        self.program += 1;
        self.here = Here::Runs(Body {
            calls: self.done,
            program: self.program,
            execs: false,
        });
        self.home_event(HomeEvent::Executed, mutant);
    }

    /// Home reads a session message.
    pub fn hear(&mut self, from: Node, up: Up, mutant: Mutant) {
        match up {
            Up::Report(report) => {
                self.home_event(HomeEvent::Report(from, report), mutant);
            }
            Up::Exit { epoch, calls, program } => {
                let before = self.home.clone();
                self.home_event(HomeEvent::Report(from, Report::Exited(epoch)), mutant);
                if self.home == Some(Home::Dead(Cause::Exited)) && before != self.home && program != self.program {
                    self.fail("a body of the program before ended the process".into());
                }
                if self.home == Some(Home::Dead(Cause::Exited)) && calls < self.done {
                    self.fail(format!(
                        "a stale body ended the process: {calls} calls made, {} executed",
                        self.done
                    ));
                }
            }
            Up::Call {
                epoch,
                seq,
                fresh,
                exec,
                firm,
            } => {
                let accepted = self.home_event(HomeEvent::Frame(from, epoch), mutant);
                if !accepted {
                    let ended = matches!(self.home, Some(Home::Dead(_)));
                    // A double of what was executed, and ended the body.
                    let over = exec && seq <= self.done;
                    if firm && !ended && !over && !self.lossy && self.agents[usize::from(from)].alive {
                        self.fail(format!(
                            "frame of a body was refused although home had heard that body: {up:?}"
                        ));
                    }
                } else if seq == self.done + 1 {
                    self.done = seq;
                    self.opening = exec;
                } else if fresh || seq > self.done + 1 {
                    let done = self.done;
                    self.fail(format!("stale body: {from} makes call {seq}, {done} were executed"));
                }
            }
        }
    }

    /// Forgets streams that both ends are done with.
    pub fn sweep(&mut self) {
        self.streams.retain(|s| !(s.broken && s.told_sender && s.told_receiver));
    }

    /// One end of a broken stream sees the break.
    pub fn see_break(&mut self, index: usize, sender: bool, mutant: Mutant) {
        let stream = &mut self.streams[index];
        let attempt = stream.attempt;
        let end = if sender { stream.from.clone() } else { stream.to.clone() };
        let arrived = stream.arrived;
        if sender {
            stream.told_sender = true;
        } else {
            stream.told_receiver = true;
        }
        match end {
            Place::Home => {
                self.home_event(HomeEvent::ImageFailed(attempt), mutant);
            }
            Place::Node(node) if sender => self.host_event(node, HostEvent::StreamBroken(attempt), mutant),
            Place::Node(node) if arrived => self.host_event(node, HostEvent::BuildFailed(attempt), mutant),
            Place::Node(_) => {}
        }
    }

    pub fn send_up(&mut self, from: Node, message: Up) {
        if self.home.is_some() {
            self.up[usize::from(from)].push(message);
        }
    }

    /// A call that was open when the image was taken is issued again under the same number.
    fn repeat_call(&mut self, at: Node) {
        let agent = &self.agents[usize::from(at)];
        if let (Some(body), Some(epoch)) = (agent.body, agent.epoch())
            && body.calls > self.done
        {
            self.send_up(
                at,
                Up::Call {
                    epoch,
                    seq: body.calls,
                    fresh: false,
                    exec: body.execs,
                    firm: false,
                },
            );
        }
    }

    fn open(&mut self, attempt: Epoch, from: Place<Node>, to: Place<Node>, body: Body) {
        let arrived = to == Place::Home;
        // A dead agent cannot be dialled: the stream is broken from the start.
        let reader = match to {
            Place::Home => self.home.is_some(),
            Place::Node(node) => self.agents[usize::from(node)].alive,
        };
        self.streams.push(Stream {
            attempt,
            from,
            to,
            body,
            arrived,
            ended: false,
            broken: !reader,
            told_sender: false,
            told_receiver: !reader,
        });
    }

    /// True when home still waits for the image of this attempt.
    pub fn returning(&self, wanted: Epoch) -> bool {
        matches!(&self.home, Some(Home::Returning { attempt, built: false, .. }) if *attempt == wanted)
    }

    /// True when home waits for an image that nobody sends any more.
    pub fn return_is_hopeless(&self) -> Option<Epoch> {
        match &self.home {
            Some(Home::Returning {
                attempt,
                source: Source::Gone,
                built: false,
                ..
            }) if !self.streams.iter().any(|s| s.attempt == *attempt) => Some(*attempt),
            _ => None,
        }
    }
}

impl Agent {
    /// The epoch of what is here.
    pub fn holds(&self) -> Option<Epoch> {
        match &self.state {
            Host::Absent => None,
            Host::Born => Some(Epoch(0)),
            Host::Expecting { epoch, .. }
            | Host::Building { epoch }
            | Host::Ready { epoch }
            | Host::Running { epoch, .. }
            | Host::Freezing { epoch, .. }
            | Host::Frozen { epoch, .. } => Some(*epoch),
        }
    }

    /// The epoch under which the body speaks.
    pub fn epoch(&self) -> Option<Epoch> {
        match &self.state {
            Host::Running { epoch, .. } | Host::Freezing { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }
}
