//! Programs that deputies have executed: the process is whole again, and goes back at once to where its body was.

use super::*;
use crate::migrate::exec::{self, Inherited};

/// How long a new program waits for its departure before it begins at home; it then departs as any other does.
const PATIENCE: Duration = Duration::from_secs(1);

impl HomeEngine {
    /// A deputy, or a thread that lingers in the stub, has executed a program, and stands at the event that tells.
    pub(super) fn executed(&mut self, cx: &mut Cx<'_>, pid: i32) {
        let former = ptrace::event_message(pid).map_or(pid, |tid| tid as i32);
        let birth = self.birth.get_or_init(|| self.cpu.birth());
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        tracing::debug!(pid, former, state = ?process.state, "a program was executed");
        process.inherited = Some(inherited(process, former));
        if let Some(deputy) = process.deputy.take() {
            deputy.close();
            deputy.end();
        }
        if let Some(hosts) = &self.hosts {
            let mut deputies = hosts.deputies.write().unwrap_or_else(PoisonError::into_inner);
            deputies.remove(&pid);
        }
        let journey = process.journey.take();
        let at = match &process.state {
            Home::Returning { from: at, .. } | Home::Moving { from: at, .. } => Some(at.clone()),
            state => state.accepted().map(|(at, _)| at.clone()),
        };
        // What there was belongs to the program before.
        let fresh = Process::new(pid, Epoch::default(), birth);
        let old = std::mem::replace(process, fresh);
        process.state = old.state;
        process.inherited = old.inherited;
        process.dying = old.dying;
        // A thread that was making them has ended in the middle of that.
        for child in old.unborn.iter().chain(&old.newborn) {
            let _ = mosix_sys::process::kill(*child, libc::SIGKILL);
        }
        process.held.insert(pid);
        self.step(cx, pid, HomeEvent::Executed);
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if !matches!(process.state, Home::AtHome { .. }) {
            return;
        }
        process.fresh = Some(Instant::now() + PATIENCE);
        if let (Some(reply), Some(at)) = (journey.as_ref().and_then(Journey::homeward), &at) {
            cx.shared.place(pid, |placement| placement.moves += 1);
            reply.moved(Moved {
                pid: Pid(pid),
                program: process.program.clone(),
                from: Place::Node(at.clone()),
                to: Place::Home,
                freeze_us: 0,
                total_us: journey
                    .as_ref()
                    .map_or(0, |journey| journey.begun.elapsed().as_micros() as u64),
                bytes: 0,
            });
            return self.begin(pid);
        }
        let (reply, going, since) = match journey {
            Some(journey) => (journey.reply, Some(journey.to), journey.begun),
            None => (None, None, Instant::now()),
        };
        let asked = going.filter(|to| reply.is_some() || *to != Place::Home);
        if let Some(to) = asked.or(at.clone().map(Place::Node)) {
            let in_place = reply.is_none() && at.map(Place::Node).as_ref() == Some(&to);
            let wish = Wish {
                pid,
                to,
                reply,
                since,
                in_place,
            };
            self.wish(cx, wish);
        }
        self.begin(pid);
    }

    /// The process stands behind its execve from now on.
    pub(super) fn stand(&mut self, pid: i32) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let inherited = process.inherited.take().unwrap_or_default();
        if let Err(error) = exec::stand(pid, inherited) {
            tracing::debug!(pid, %error, "a new program is gone");
        }
    }

    /// Lets a new program begin at home that has nowhere to go.
    pub(super) fn begin(&mut self, pid: i32) {
        let waits = self.wishes.iter().any(|wish| wish.pid == pid);
        if let Some(process) = self.processes.get_mut(&pid)
            && !waits
            && matches!(process.state, Home::AtHome { .. })
            && process.begin()
        {
            self.is_home(pid);
        }
    }

    /// Those that have waited long enough begin at home.
    pub(super) fn begin_late(&mut self, now: Instant) {
        let late = |process: &mut Process| process.fresh.is_some_and(|until| until <= now) && process.begin();
        let late: Vec<i32> = self
            .processes
            .iter_mut()
            .filter_map(|(pid, process)| late(process).then_some(*pid))
            .collect();
        for pid in late {
            self.is_home(pid);
        }
    }

    /// For whom looks at it the process was where its body was, until now.
    fn is_home(&self, pid: i32) {
        self.shared.place(pid, |placement| {
            placement.place = Place::Home;
            placement.usage = Usage::default();
        });
    }
}

/// What the kernel here does not have of the program before. Of a body that is home it has everything but what waits for the thread.
fn inherited(process: &mut Process, former: i32) -> Inherited {
    let mut inherited = Inherited::default();
    if let Some(thread) = process.lingering.remove(&former) {
        inherited.mask = thread.mask;
        inherited
            .pending
            .extend(thread.pending.into_iter().map(|info| (true, info)));
    } else if let Some(exec) = process.deputy.as_ref().and_then(|deputy| deputy.executing(former)) {
        inherited.mask = exec.mask;
        inherited
            .pending
            .extend(exec.pending.into_iter().map(|info| (false, info)));
        inherited.pending.extend(exec.own.into_iter().map(|info| (true, info)));
        process.signals.taken(exec.signals);
    }
    // Those for other threads went with them.
    for (tid, info) in process.signals.hand_over() {
        if tid.is_none_or(|tid| tid == former) {
            inherited.pending.push((tid.is_some(), info));
        }
    }
    inherited
}
