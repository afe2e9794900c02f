//! What must hold in every state, and at every end.

use crate::world::{Here, Node, World};
use mosix_runtime::contract::commit::{Home, Host, Order, Place};

impl World {
    /// Checks a reachable state.
    pub fn check(&mut self) {
        let mut able = vec![];
        if let Here::Runs(body) = self.here {
            able.push((Place::Home, body));
        }
        if let Some((node, epoch)) = self.home.as_ref().and_then(Home::accepted) {
            let agent = &self.agents[usize::from(*node)];
            if let (true, Some(body)) = (agent.running && agent.epoch() == Some(epoch), agent.body) {
                able.push((Place::Node(*node), body));
            }
        }
        if able.len() > 1 {
            self.fail(format!("two bodies can have effects: {able:?}"));
        }
        for (place, body) in able {
            if body.program != self.program {
                let program = self.program;
                self.fail(format!(
                    "a body of program {} can have effects at {place:?}, and {program} was executed",
                    body.program
                ));
            }
            if body.calls < self.done || body.calls > self.done + 1 {
                let done = self.done;
                self.fail(format!(
                    "stale body: {place:?} runs with {} calls made, {done} were executed",
                    body.calls
                ));
            }
        }
    }

    /// Home declares the process lost: the last copy that was heard must have died, and nothing good may be left.
    pub fn check_lost(&mut self) {
        if self.lossy {
            return; // Orders were lost for good: nothing is promised about the copies they were about.
        }
        if !self.incumbent_faulted {
            let incumbent = self.incumbent.clone();
            self.fail(format!("lost although the copy of {incumbent:?} had met no fault"));
        }
        for node in 0..self.agents.len() {
            let agent = &self.agents[node];
            let Some(held) = agent.holds().filter(|held| agent.alive && !self.burned.contains(held)) else {
                continue;
            };
            // A successor was heard, or the attempt aborted, before: the copy is condemned, the order on its way.
            if self.down[node]
                .iter()
                .any(|order| matches!(order, Order::Drop { epoch } if held <= *epoch))
            {
                continue;
            }
            let coming = self
                .streams
                .iter()
                .find(|s| s.attempt == held && s.arrived && s.ended && !s.broken);
            if agent
                .body
                .or(coming.map(|s| s.body))
                .is_some_and(|body| body.calls >= self.done)
            {
                self.fail(format!("lost although a good copy is left on host {node}"));
            }
        }
        if self
            .streams
            .iter()
            .any(|s| s.to == Place::Home && s.ended && !s.broken && self.returning(s.attempt))
        {
            self.fail("lost although a good copy is on its way home".into());
        }
    }

    /// Checks a state in which nothing happens any more by itself.
    pub fn check_end(&mut self) {
        let bodies: Vec<Node> = (0..2).filter(|n| self.agents[usize::from(*n)].body.is_some()).collect();
        let states: Vec<Node> = (0..2)
            .filter(|n| self.agents[usize::from(*n)].state != Host::Absent)
            .collect();
        let problem = match (&self.home, self.here) {
            (None, Here::Frozen(_)) => Some("the process at home stays frozen for ever after the supervisor's death"),
            (None, _) if !bodies.is_empty() => Some("a body is left although home is dead"),
            (None, _) => None,
            (Some(Home::AtHome { .. }), Here::Runs(_)) if bodies.is_empty() && states.is_empty() => None,
            (Some(Home::AtHome { .. }), _) => Some("at home, yet not running there alone"),
            (Some(Home::Away { at, epoch }), Here::Deputy) => {
                let agent = &self.agents[usize::from(*at)];
                let alone = bodies == [*at] && states == [*at];
                (!alone || !agent.running || agent.held || agent.epoch() != Some(*epoch))
                    .then_some("away, yet not running there alone, for ever")
            }
            (Some(Home::Dead(_)), Here::Dead) if bodies.is_empty() && states.is_empty() => None,
            (Some(Home::Dead(_)), _) => Some("dead, yet something is left behind"),
            (Some(_), _) => Some("home waits for ever"),
        };
        if let Some(problem) = problem {
            self.fail(problem.into());
        }
        if self.opening && !matches!(self.here, Here::Dead) {
            self.fail("an execve neither fails nor succeeds".into());
        }
        if !self.streams.is_empty() {
            self.fail("a page stream is left for ever".into());
        }
    }
}
