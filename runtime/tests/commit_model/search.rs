//! Breadth-first search over all worlds, by fingerprint, with a trace to the first broken rule.

use crate::mutant::Mutant;
use crate::world::{Agent, Body, Budget, HOSTS, Here, Node, Stream, Up, World};
use mosix_runtime::contract::commit::{Home, HomeEvent, Host, HostEvent, Order, Place, Report};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What a search found.
pub enum Outcome {
    /// Nothing broken: number of states, and of those in which nothing more happens.
    Holds { states: usize, ends: usize },
    /// A broken rule and the way to it.
    Broken { why: String, trace: String },
}

/// More states than this are a mistake in the model, not a search.
const MOST: usize = 20_000_000;

/// Explores everything that the budget allows for a process that begins at home.
pub fn search(budget: Budget, mutant: Mutant) -> Outcome {
    search_from(World::new(budget), mutant)
}

/// Explores everything that can follow.
pub fn search_from(start: World, mutant: Mutant) -> Outcome {
    let mut seen = HashMap::new();
    // Steps that happen by themselves, to find a circle of them in which nothing ever ends.
    let mut needed: Vec<(u32, u32)> = vec![];
    let mut parents: Vec<(u32, String)> = vec![(0, "start".into())];
    let mut queue = VecDeque::new();
    let mut ends = 0;
    seen.insert(fingerprint(&start), 0_u32);
    queue.push_back((0_u32, start));
    while let Some((id, world)) = queue.pop_front() {
        let mut next = Steps {
            from: &world,
            mutant,
            out: vec![],
        };
        next.needed();
        if next.out.is_empty() {
            next.timers();
        }
        let by_itself = next.out.len();
        let end = by_itself == 0;
        next.optional();
        let mut out = next.out;
        if end {
            ends += 1;
            let mut last = world.clone();
            // With messages lost for good nothing is promised but safety.
            if !world.lossy {
                last.check_end();
            }
            if last.broken.is_some() {
                out.push(("nothing happens any more".into(), last));
            }
        }
        for (place, (label, mut after)) in out.into_iter().enumerate() {
            after.sweep();
            after.check();
            let broken = after.broken.take();
            let child = u32::try_from(parents.len()).expect("fewer states than MOST");
            let known = match seen.entry(fingerprint(&after)) {
                Entry::Occupied(known) => Some(*known.get()),
                Entry::Vacant(free) => {
                    free.insert(child);
                    None
                }
            };
            if place < by_itself {
                needed.push((id, known.unwrap_or(child)));
            }
            if known.is_some() && broken.is_none() {
                continue;
            }
            parents.push((id, label));
            if let Some(why) = broken {
                return Outcome::Broken {
                    why,
                    trace: trace(&parents, child, &after),
                };
            }
            queue.push_back((child, after));
        }
        assert!(seen.len() < MOST, "the model has grown beyond {MOST} states");
    }
    Outcome::Holds {
        states: seen.len(),
        ends,
    }
}

fn fingerprint(world: &World) -> u128 {
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        world.hash(&mut hasher);
        hasher.finish()
    };
    (u128::from(half(1)) << 64) | u128::from(half(2))
}

fn trace(parents: &[(u32, String)], end: u32, last: &World) -> String {
    let mut labels = vec![];
    let mut at = end;
    while at != 0 {
        let (parent, label) = &parents[at as usize];
        labels.push(label);
        at = *parent;
    }
    let mut text = String::new();
    for label in labels.iter().rev() {
        let _ = writeln!(text, "  {label}");
    }
    let _ = write!(text, "{last:#?}");
    text
}

struct Steps<'a> {
    from: &'a World,
    mutant: Mutant,
    out: Vec<(String, World)>,
}

impl Steps<'_> {
    fn add(&mut self, label: String, change: impl FnOnce(&mut World, Mutant)) {
        let mut world = self.from.clone();
        change(&mut world, self.mutant);
        if world != *self.from {
            self.out.push((label, world));
        }
    }

    fn fault(&mut self, label: String, change: impl FnOnce(&mut World, Mutant)) {
        if self.from.budget.faults > 0 {
            self.add(label, |world, mutant| {
                world.budget.faults -= 1;
                change(world, mutant);
            });
        }
    }

    /// What happens by itself, sooner or later.
    fn needed(&mut self) {
        for node in 0..HOSTS as Node {
            self.deliver(node);
            self.agent(node);
        }
        for index in 0..self.from.streams.len() {
            self.stream(index);
        }
        for (index, (node, order)) in self.from.beside.iter().cloned().enumerate() {
            self.add(format!("host {node} hears {order:?} on a page stream"), |w, m| {
                w.beside.remove(index);
                if w.agents[usize::from(node)].alive {
                    w.host_event(node, HostEvent::Order(order), m);
                }
            });
        }
        if self.from.opening && self.from.home.is_some() && self.from.here != Here::Dead {
            self.add("the deputy executes a program".into(), |w, m| w.execute(m));
            self.add("the deputy's execve fails".into(), |w, _| w.opening = false);
        }
        if let Some(attempt) = self.from.return_is_hopeless() {
            self.add(format!("home: no stream for {attempt:?}"), |w, m| {
                w.home_event(HomeEvent::ImageFailed(attempt), m);
            });
        }
    }

    fn deliver(&mut self, node: Node) {
        let index = usize::from(node);
        if let (true, Some(order)) = (self.from.agents[index].alive, self.from.down[index].first().cloned()) {
            self.add(format!("host {node} hears {order:?}"), |w, m| {
                w.down[index].remove(0);
                w.host_event(node, HostEvent::Order(order), m);
            });
        }
        if let (true, Some(up)) = (self.from.home.is_some(), self.from.up[index].first().copied()) {
            self.add(format!("home hears {up:?} from {node}"), |w, m| {
                w.up[index].remove(0);
                w.hear(node, up, m);
            });
        }
    }

    fn agent(&mut self, node: Node) {
        let agent: &Agent = &self.from.agents[usize::from(node)];
        if let (true, Host::Freezing { attempt, .. }) = (agent.alive, &agent.state) {
            let attempt = *attempt;
            self.add(format!("host {node}: body frozen for {attempt:?}"), |w, m| {
                w.agents[usize::from(node)].running = false;
                w.host_event(node, HostEvent::BodyFrozen(attempt), m);
            });
        }
        if agent.alive && agent.held {
            self.add(format!("host {node}: link back"), |w, m| {
                w.host_event(node, HostEvent::LinkBack, m)
            });
        }
        if !agent.alive && !agent.told && self.from.home.is_some() {
            self.add(format!("home learns that agent {node} is dead"), |w, m| {
                w.agents[usize::from(node)].told = true;
                w.home_event(HomeEvent::PeerDead(node), m);
            });
        }
        if agent.alive && self.from.home.is_none() {
            self.add(format!("host {node}: home gone"), |w, m| {
                w.host_event(node, HostEvent::HomeGone, m);
                w.agents[usize::from(node)].alive = false;
                w.down[usize::from(node)].clear();
                w.drop_streams_of(node);
            });
        }
    }

    fn stream(&mut self, index: usize) {
        let stream = self.from.streams[index].clone();
        let attempt = stream.attempt;
        if stream.broken {
            if !stream.told_sender {
                self.add(format!("sender sees {attempt:?} broken"), |w, m| {
                    w.see_break(index, true, m)
                });
            }
            if !stream.told_receiver {
                self.add(format!("receiver sees {attempt:?} broken"), |w, m| {
                    w.see_break(index, false, m)
                });
            }
            return;
        }
        if !stream.ended {
            match stream.from {
                Place::Home if self.from.home.is_some() => {
                    self.add(format!("home: end of image {attempt:?} sent"), |w, _| {
                        w.streams[index].ended = true
                    });
                }
                Place::Node(node) => self.add(format!("host {node}: pages of {attempt:?} sent"), |w, m| {
                    w.host_event(node, HostEvent::PagesSent(attempt), m);
                }),
                Place::Home => {}
            }
        }
        match stream.to {
            Place::Home if stream.ended => self.add(format!("home: {attempt:?} received and rebuilt"), |w, m| {
                w.streams.remove(index);
                if w.returning(attempt) && w.here == Here::Deputy {
                    w.here = Here::Rebuilt(stream.body);
                    w.home_event(HomeEvent::BuiltHere(attempt), m);
                }
            }),
            Place::Node(node) if !stream.arrived && self.announced(node, &stream) => {
                self.add(format!("host {node}: {attempt:?} arrives"), |w, m| {
                    w.host_event(node, HostEvent::Arrive(attempt, stream.from), m);
                    w.streams[index].arrived = true;
                })
            }
            Place::Node(node) if stream.arrived && stream.ended => {
                self.add(format!("host {node}: {attempt:?} built"), |w, m| {
                    w.streams.remove(index);
                    w.agents[usize::from(node)].body = Some(stream.body);
                    w.host_event(node, HostEvent::Built(attempt), m);
                })
            }
            _ => {}
        }
    }

    /// True when the host need not wait for home's word about a stream.
    fn announced(&self, node: Node, stream: &Stream) -> bool {
        let agent = &self.from.agents[usize::from(node)];
        stream.from == Place::Home
            || matches!(&agent.state, Host::Expecting { epoch, .. } if *epoch == stream.attempt)
            || !agent.alive
    }

    /// Timers that fire when nothing else happens.
    fn timers(&mut self) {
        for (index, stream) in self.from.streams.iter().enumerate() {
            if let (Place::Node(node), false, false) = (&stream.to, stream.arrived, stream.broken) {
                let (node, attempt, from) = (*node, stream.attempt, stream.from.clone());
                self.add(format!("host {node}: {attempt:?} was never announced"), |w, m| {
                    w.host_event(node, HostEvent::Arrive(attempt, from), m);
                    w.streams[index].arrived = true;
                });
            }
        }
        for node in 0..HOSTS as Node {
            if let Host::Expecting { epoch, .. } = self.from.agents[usize::from(node)].state {
                self.add(format!("host {node}: {epoch:?} did not come"), |w, m| {
                    w.host_event(node, HostEvent::BuildFailed(epoch), m);
                });
            }
        }
        if self.from.home.as_ref().is_some_and(|home| !home.settled()) {
            self.add("home: time-out".into(), |w, m| {
                w.home_event(HomeEvent::Timeout, m);
            });
        }
    }

    /// What may happen, and need not.
    fn optional(&mut self) {
        self.user();
        self.bodies();
        self.faults_of_home();
        for node in 0..HOSTS as Node {
            self.faults_of_host(node);
            self.faults_of_session(node);
        }
        for (index, (node, order)) in self.from.beside.iter().cloned().enumerate() {
            self.fault(format!("page stream breaks before {order:?} to {node}"), |w, m| {
                w.beside.remove(index);
                if let Order::Depart { attempt, .. } = order {
                    w.home_event(HomeEvent::ImageFailed(attempt), m);
                }
            });
        }
        for (index, (node, order)) in self.from.late_down.iter().cloned().enumerate() {
            self.add(format!("host {node} hears a late double of {order:?}"), |w, m| {
                w.late_down.remove(index);
                if w.agents[usize::from(node)].alive {
                    w.host_event(node, HostEvent::Order(order), m);
                }
            });
        }
        for (index, (node, up)) in self.from.late_up.iter().copied().enumerate() {
            self.add(format!("home hears a late double of {up:?} from {node}"), |w, m| {
                w.late_up.remove(index);
                w.hear(node, up, m);
            });
        }
        for (index, stream) in self.from.streams.iter().enumerate() {
            if !stream.broken {
                self.fault(format!("stream {:?} breaks", stream.attempt), |w, _| {
                    w.streams[index].broken = true
                });
            }
        }
    }

    fn user(&mut self) {
        let Some(home) = self.from.home.clone() else { return };
        if self.from.budget.moves == 0 || !home.settled() {
            return;
        }
        for to in [Place::Home, Place::Node(0), Place::Node(1)] {
            // Nobody opens a move to an agent that is known dead.
            if matches!(to, Place::Node(n) if self.from.agents[usize::from(n)].told) {
                continue;
            }
            self.add(format!("user: move to {to:?}"), |w, m| {
                w.budget.moves -= 1;
                w.home_event(HomeEvent::Migrate(to), m);
            });
        }
    }

    fn bodies(&mut self) {
        let world = self.from;
        if world.budget.calls > 0
            && !world.opening
            && let Here::Runs(body) = world.here
        {
            self.add("home body calls".into(), |w, _| {
                w.budget.calls -= 1;
                w.done = body.calls.max(w.done) + u8::from(body.calls == w.done);
                w.here = Here::Runs(Body { calls: w.done, ..body });
            });
        }
        for node in 0..HOSTS as Node {
            let agent = &world.agents[usize::from(node)];
            let (Some(body), Some(epoch), true) = (agent.body, agent.epoch(), agent.running && !agent.held) else {
                continue;
            };
            let blocked = body.calls > world.done || world.opening;
            for exec in [false, true] {
                let left = if exec { world.budget.execs } else { world.budget.calls };
                if left == 0 || blocked {
                    continue;
                }
                let what = if exec { "executes a program" } else { "calls" };
                self.add(format!("body on {node} {what}"), |w, _| {
                    if exec {
                        w.budget.execs -= 1;
                    } else {
                        w.budget.calls -= 1;
                    }
                    let seq = body.calls + 1;
                    let firm = w.incumbent == Place::Node(node);
                    w.agents[usize::from(node)].body = Some(Body {
                        calls: seq,
                        program: body.program,
                        execs: exec,
                    });
                    w.send_up(
                        node,
                        Up::Call {
                            epoch,
                            seq,
                            fresh: true,
                            exec,
                            firm,
                        },
                    );
                });
            }
            if world.budget.exits > 0 && body.calls <= world.done {
                self.add(format!("body on {node} exits"), |w, m| {
                    w.budget.exits -= 1;
                    w.host_event(node, HostEvent::BodyGone, m);
                    if let Some(Up::Exit { calls, program, .. }) = w.up[usize::from(node)].last_mut() {
                        (*calls, *program) = (body.calls, body.program);
                    }
                });
            }
            if world.budget.wants > 0 {
                self.add(format!("body on {node} wants home"), |w, _| {
                    w.budget.wants -= 1;
                    w.send_up(node, Up::Report(Report::WantHome(epoch)));
                });
            }
        }
    }

    fn faults_of_home(&mut self) {
        let Some(home) = self.from.home.clone() else { return };
        self.fault("the supervisor is killed".into(), |w, _| w.kill_home());
        if !matches!(home, Home::Dead(_)) {
            self.fault("the deputy is killed".into(), |w, m| {
                w.here = Here::Dead;
                w.home_event(HomeEvent::DeputyDead, m);
            });
        }
        if !home.settled() {
            self.fault("home: early time-out".into(), |w, m| {
                w.home_event(HomeEvent::Timeout, m);
            });
        }
        match home {
            Home::Departing { attempt, .. } | Home::Returning { attempt, .. } => {
                self.fault("home: freezing, sending or rebuilding fails".into(), |w, m| {
                    for stream in w.streams.iter_mut().filter(|s| s.attempt == attempt) {
                        stream.broken = true;
                    }
                    w.home_event(HomeEvent::ImageFailed(attempt), m);
                });
            }
            _ => {}
        }
    }

    fn faults_of_host(&mut self, node: Node) {
        let index = usize::from(node);
        let agent = &self.from.agents[index];
        if !agent.alive {
            return;
        }
        // What it had said arrives in part.
        for keep in 0..=self.from.up[index].len() {
            self.fault(
                format!("agent {node} is killed, {keep} of its messages arrive"),
                |w, _| {
                    w.kill_agent(node, keep);
                },
            );
        }
        match agent.state {
            Host::Building { epoch } | Host::Expecting { epoch, .. } => {
                self.fault(format!("host {node}: building {epoch:?} fails"), |w, m| {
                    w.host_event(node, HostEvent::BuildFailed(epoch), m);
                });
            }
            Host::Freezing { attempt, .. } => {
                self.fault(format!("host {node}: freezing for {attempt:?} fails"), |w, m| {
                    w.host_event(node, HostEvent::FreezeFailed(attempt), m);
                });
            }
            Host::Ready { .. } | Host::Frozen { .. } => {
                self.fault(format!("host {node}: frozen body killed"), |w, m| {
                    w.fault_at(node);
                    w.host_event(node, HostEvent::BodyGone, m);
                })
            }
            _ => {}
        }
        if matches!(agent.state, Host::Ready { .. } | Host::Frozen { .. }) {
            self.fault(format!("host {node} asks home"), |w, m| {
                w.host_event(node, HostEvent::Ask, m)
            });
        }
        if agent.state != Host::Absent {
            self.fault(format!("host {node}: final lease over"), |w, m| {
                w.fault_at(node);
                w.host_event(node, HostEvent::LeaseDead, m);
            });
            self.fault(format!("host {node}: lease over"), |w, m| {
                w.host_event(node, HostEvent::LeaseOver, m)
            });
        }
    }

    fn faults_of_session(&mut self, node: Node) {
        let index = usize::from(node);
        let (down, up) = (
            self.from.down[index].first().cloned(),
            self.from.up[index].first().copied(),
        );
        if self.from.budget.doubles > 0 {
            if let Some(order) = down.clone() {
                self.add(format!("{order:?} to {node} is doubled"), |w, _| {
                    w.budget.doubles -= 1;
                    w.late_down.push((node, order));
                });
            }
            if let Some(up) = up {
                self.add(format!("{up:?} from {node} is doubled"), |w, _| {
                    w.budget.doubles -= 1;
                    // Which of the two comes first is open: neither is a call that the body makes anew.
                    if let Up::Call { fresh, .. } = &mut w.up[index][0] {
                        *fresh = false;
                    }
                    let mut double = w.up[index][0];
                    if let Up::Call { firm, .. } = &mut double {
                        *firm = false;
                    }
                    w.late_up.push((node, double));
                });
            }
        }
        if self.from.budget.losses > 0 {
            if down.is_some() {
                self.add(format!("{down:?} to {node} is lost"), |w, _| {
                    w.budget.losses -= 1;
                    w.lossy = true;
                    w.down[index].remove(0);
                });
            }
            if up.is_some() {
                self.add(format!("{up:?} from {node} is lost"), |w, _| {
                    w.budget.losses -= 1;
                    w.lossy = true;
                    w.up[index].remove(0);
                });
            }
        }
    }
}
