//! Children of bodies that are away: their deputies, and the word of the host that has made their bodies.
//!
//! ```text
//!  deputy's fork ──▶ Forked event: child seated, Unborn ──▶ the creator goes on ──▶ Reply: its number
//!  agent: the body's own fork ──▶ Forked ──▶ Born: Run, under the child's first epoch
//!                             └─▶ NotForked ──▶ unmade
//! ```

use super::*;

impl HomeEngine {
    /// `creator`, a thread of the deputy, stands at the event that tells of its child; the child is seated before anybody hears its number.
    pub(super) fn forked_here(&mut self, cx: &mut Cx<'_>, pid: i32, creator: i32, child: i32) {
        self.seat_child(cx, pid, child);
        if let Err(error) = ptrace::cont(creator, 0) {
            tracing::debug!(tid = creator, %error, "thread of a deputy is gone");
        }
    }

    fn seat_child(&mut self, cx: &mut Cx<'_>, pid: i32, child: i32) {
        let early = self.early.remove(&child);
        let (handle, accounts) = (cx.handle.clone(), Arc::clone(&self.accounts));
        let linger = Box::new(move |ended| handle.message(Message::Lingered(child, ended)));
        let Some(parent) = self.processes.get_mut(&pid) else {
            return;
        };
        match births::seat(parent, (child, early), |window| {
            Deputy::new(child, window, linger, accounts)
        }) {
            Ok(process) => {
                parent.unborn.insert(child);
                // The number may have been another's, whose end was never told.
                parent.unmade.remove(&child);
                self.processes.insert(child, process);
            }
            Err(error) => {
                // The host's half finds nobody to tell of, and ends.
                tracing::warn!(pid, child, %error, "a child of a deputy has no place");
                if let Err(error) = births::unmake(parent, &[child]) {
                    tracing::warn!(pid, child, %error, "a child of a deputy does not end");
                }
            }
        }
    }

    /// Seats the children that came while threads of their parents were held.
    pub(super) fn seat_newborn(&mut self, cx: &mut Cx<'_>) {
        let newborn: Vec<(i32, i32)> = self
            .processes
            .values_mut()
            .flat_map(|process| {
                process
                    .newborn
                    .drain(..)
                    .map(|child| (process.pid, child))
                    .collect::<Vec<_>>()
            })
            .collect();
        for (pid, child) in newborn {
            self.seat_child(cx, pid, child);
        }
    }

    /// The first stop of a child whose parent has not told of it yet.
    pub(super) fn early_child(&mut self, tid: i32) -> bool {
        let waits = births::parent(tid)
            .and_then(|parent| self.processes.get(&parent))
            .is_some_and(|process| !process.held.is_empty() && process.state.accepted().is_some());
        waits && self.early.insert(tid)
    }

    /// The process whose body on that host may speak of this child, which has no body yet.
    fn parent_of(&mut self, node: &NodeName, (pid, epoch): (i32, Epoch), child: i32) -> Option<&mut Process> {
        let parent = self.processes.get_mut(&pid)?;
        let speaks = parent.state.accepted() == Some((node, epoch));
        (speaks && parent.unborn.contains(&child)).then_some(parent)
    }

    /// A host has made the body of a child.
    pub(super) fn born(&mut self, cx: &mut Cx<'_>, node: &NodeName, (pid, epoch): (i32, Epoch), child: i32) {
        self.seat_newborn(cx);
        let Some(host) = self.connected.get(node).cloned() else {
            return;
        };
        let Some(parent) = self.parent_of(node, (pid, epoch), child) else {
            let (pid, epoch) = (Pid(child), Epoch(u64::MAX));
            return host.order(&ToHost::Drop { pid, epoch });
        };
        parent.unborn.remove(&child);
        let image = parent.image.clone();
        let Some(process) = self.processes.get_mut(&child) else {
            return;
        };
        // What the parent has said of its handlers came before this.
        process.image = image.map(|mut image| {
            image.pid = Pid(child);
            image.threads.truncate(1);
            for thread in &mut image.threads {
                thread.tid = Tid(child);
                thread.pending.clear();
            }
            image
        });
        let place = Place::Node(node.clone());
        cx.shared.place(child, |placement| placement.place = place);
        self.deadline(child, ANSWER);
        self.step(cx, child, HomeEvent::Born(node.clone()));
        if let Some(process) = self.processes.get_mut(&child)
            && !process.dropped
        {
            process.drop_memory();
        }
        self.usage_due.get_or_insert(Instant::now() + USAGE);
    }

    /// A host could not make the body of a child: there is none.
    pub(super) fn not_born(&mut self, cx: &mut Cx<'_>, node: &NodeName, (pid, epoch): (i32, Epoch), child: i32) {
        self.seat_newborn(cx);
        let Some(parent) = self.parent_of(node, (pid, epoch), child) else {
            return;
        };
        if let Err(error) = births::unmake(parent, &[child]) {
            tracing::warn!(pid, child, %error, "a child without a body does not end");
        }
        self.bury_unmade(pid);
    }

    /// Forgets the deputies of children that were ended because their bodies were never made.
    pub(super) fn bury_unmade(&mut self, pid: i32) {
        let Some(process) = self.processes.get(&pid) else {
            return;
        };
        let unmade: Vec<i32> = process.unmade.iter().copied().collect();
        for child in unmade {
            if self
                .processes
                .get(&child)
                .is_some_and(|child| child.state == Home::Unborn)
            {
                self.forget(child);
            }
        }
    }
}
