//! Wishes of the user, and the nodes they need: sessions begin and are lost.

use super::*;

impl HomeEngine {
    /// Starts what was waiting for a host or for an earlier move.
    pub(super) fn retry(&mut self, cx: &mut Cx<'_>) {
        for wish in std::mem::take(&mut self.wishes) {
            self.wish(cx, wish);
        }
    }

    pub(super) fn wish(&mut self, cx: &mut Cx<'_>, wish: Wish) {
        let pid = wish.pid;
        let refuse = |kind, text: String| {
            if let Some(reply) = &wish.reply {
                reply.refuse(kind, Some(pid), text);
            }
        };
        if freeze::gone(pid) {
            return refuse(RefusalKind::UnknownProcess, format!("process {pid} has ended"));
        }
        let epoch = self.epochs.fresh();
        let birth = self.birth.get_or_init(|| self.cpu.birth());
        let process = self
            .processes
            .entry(pid)
            .or_insert_with(|| Process::new(pid, epoch, birth));
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
                reply.moved(moved);
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
        let from = if wish.in_place { wish.to.clone() } else { from };
        process.journey = Some(Journey {
            reply: wish.reply,
            from,
            to: wish.to,
            begun,
            frozen: None,
            thawed: None,
            bytes: 0,
            why: None,
            reason: None,
        });
        self.step(cx, pid, HomeEvent::Migrate(target));
    }

    pub(super) fn connect(&mut self, cx: &mut Cx<'_>, node: NodeName) {
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
    pub(super) fn lost(&mut self, cx: &mut Cx<'_>, node: &NodeName, why: &str) {
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
            // New programs that waited for it have nowhere to go.
            for pid in self.processes.keys().copied().collect::<Vec<_>>() {
                self.begin(pid);
            }
            return;
        }
        if let Some(hosts) = &self.hosts {
            hosts.forget(node);
        }
        for pid in self.processes.keys().copied().collect::<Vec<_>>() {
            let words = format!("node {node}: {why}");
            self.fail(pid, &words);
            if let Some(process) = self.processes.get_mut(&pid) {
                process.loss = Some(words);
            }
            self.step(cx, pid, HomeEvent::PeerDead(node.clone()));
        }
    }
}
