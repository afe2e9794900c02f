//! The transitions of home's state, one function per kind of event.

use super::{Home, HomeEffect as Do, Old, Source};
use crate::contract::commit::types::{Cause, Epochs, Order, Place, Report};
use mosix_wire::ids::Epoch;

impl<N: Clone + PartialEq> Home<N> {
    pub(super) fn migrate(self, target: Place<N>, epochs: &mut Epochs) -> (Self, Vec<Do<N>>) {
        match (self, target) {
            // AtHome ── Migrate(node) ──▶ Departing
            (Self::AtHome { epoch }, Place::Node(to)) => {
                let attempt = epochs.fresh();
                (
                    Self::Departing {
                        epoch,
                        to: to.clone(),
                        attempt,
                    },
                    vec![Do::SendHere { to, attempt }],
                )
            }
            // Away ── Migrate(node) ──▶ Moving
            (Self::Away { at, epoch }, Place::Node(to)) if at != to => {
                let attempt = epochs.fresh();
                let orders = vec![
                    Do::Order(
                        to.clone(),
                        Order::Expect {
                            epoch: attempt,
                            from: at.clone(),
                        },
                    ),
                    Do::Order(
                        at.clone(),
                        Order::Depart {
                            attempt,
                            to: Place::Node(to.clone()),
                        },
                    ),
                ];
                (
                    Self::Moving {
                        from: at,
                        epoch,
                        to,
                        attempt,
                        source: Source::Runs,
                        complete: false,
                    },
                    orders,
                )
            }
            // Away ── Migrate(home) ──▶ Returning
            (Self::Away { at, epoch }, Place::Home) => Self::bring(at, epoch, epochs),
            (state, _) => (state, vec![Do::Busy]),
        }
    }

    /// Orders the body home.
    fn bring(at: N, epoch: Epoch, epochs: &mut Epochs) -> (Self, Vec<Do<N>>) {
        let attempt = epochs.fresh();
        let order = Do::Order(
            at.clone(),
            Order::Depart {
                attempt,
                to: Place::Home,
            },
        );
        let state = Self::Returning {
            from: at,
            epoch,
            attempt,
            source: Source::Runs,
            built: false,
        };
        (state, vec![order, Do::BuildHere(attempt)])
    }

    /// Unborn ── Born ──▶ AwaitRunning: the body exists once, there, and never ran.
    pub(super) fn born(self, at: N, epochs: &mut Epochs) -> (Self, Vec<Do<N>>) {
        if self != Self::Unborn {
            return (self, vec![]);
        }
        let epoch = epochs.fresh();
        let run = Do::Order(at.clone(), Order::Run { epoch });
        let old = Old::Gone;
        (Self::AwaitRunning { at, epoch, old }, vec![run])
    }

    pub(super) fn report(self, from: N, report: Report, epochs: &mut Epochs) -> (Self, Vec<Do<N>>) {
        match report {
            Report::Complete(epoch) => self.complete(&from, epoch),
            Report::Refused(epoch) => self.refused(&from, epoch, epochs),
            Report::Frozen(attempt) => self.frozen(&from, attempt),
            Report::CannotDepart(attempt) => self.cannot_depart(&from, attempt),
            Report::Running(epoch) => self.running(&from, epoch),
            Report::WantHome(epoch) => match self.running(&from, epoch) {
                (Self::Away { at, epoch: now }, mut effects) if at == from && now == epoch => {
                    let (state, more) = Self::bring(at, now, epochs);
                    effects.extend(more);
                    (state, effects)
                }
                other => other,
            },
            Report::Exited(epoch) => {
                let (state, mut effects) = self.running(&from, epoch);
                if state.accepted() != Some((&from, epoch)) {
                    return (state, effects);
                }
                let (state, more) = state.end(Cause::Exited);
                effects.extend(more);
                (state, effects)
            }
        }
    }

    /// A destination is complete: commit when the source is drained too.
    fn complete(self, from: &N, done: Epoch) -> (Self, Vec<Do<N>>) {
        match self {
            // Departing ── Complete ──▶ AwaitRunning
            Self::Departing { to, attempt, .. } if to == *from && attempt == done => {
                let run = Do::Order(to.clone(), Order::Run { epoch: attempt });
                (
                    Self::AwaitRunning {
                        at: to,
                        epoch: attempt,
                        old: Old::Here,
                    },
                    vec![Do::CommitHere, run],
                )
            }
            Self::Moving {
                from: source_node,
                epoch,
                to,
                attempt,
                source,
                ..
            } if to == *from && attempt == done => Self::Moving {
                from: source_node,
                epoch,
                to,
                attempt,
                source,
                complete: true,
            }
            .try_commit(),
            // Asked again: the answer is the same.
            Self::AwaitRunning { at, epoch, old } if at == *from && epoch == done => {
                let run = Do::Order(at.clone(), Order::Run { epoch });
                (Self::AwaitRunning { at, epoch, old }, vec![run])
            }
            state => state.answer_stale(from, done),
        }
    }

    /// Moving ── Complete and Frozen ──▶ AwaitRunning; Returning ── built and Frozen ──▶ AtHome.
    fn try_commit(self) -> (Self, Vec<Do<N>>) {
        match self {
            Self::Moving {
                from,
                epoch,
                to,
                attempt,
                source,
                complete: true,
            } if source != Source::Runs => {
                let old = if source == Source::Frozen {
                    Old::At { node: from, epoch }
                } else {
                    Old::Gone
                };
                let run = Do::Order(to.clone(), Order::Run { epoch: attempt });
                (
                    Self::AwaitRunning {
                        at: to,
                        epoch: attempt,
                        old,
                    },
                    vec![run],
                )
            }
            Self::Returning {
                from,
                epoch,
                attempt,
                source,
                built: true,
            } if source != Source::Runs => {
                let drop = Do::Order(from, Order::Drop { epoch });
                (Self::AtHome { epoch: attempt }, vec![Do::ReleaseHere, drop])
            }
            state => (state, vec![]),
        }
    }

    fn frozen(self, from: &N, asked: Epoch) -> (Self, Vec<Do<N>>) {
        match self {
            Self::Moving {
                from: node,
                epoch,
                to,
                attempt,
                source: Source::Runs,
                complete,
            } if node == *from && attempt == asked => Self::Moving {
                from: node,
                epoch,
                to,
                attempt,
                source: Source::Frozen,
                complete,
            }
            .try_commit(),
            Self::Returning {
                from: node,
                epoch,
                attempt,
                source: Source::Runs,
                built,
            } if node == *from && attempt == asked => Self::Returning {
                from: node,
                epoch,
                attempt,
                source: Source::Frozen,
                built,
            }
            .try_commit(),
            // Frozen for the open attempt, and asking: it has to wait.
            state @ (Self::Moving { attempt, .. } | Self::Returning { attempt, .. }) if attempt == asked => {
                (state, vec![])
            }
            // The body is frozen for an attempt that is over: it runs on.
            Self::Away { at, epoch } if at == *from && asked > epoch => {
                let thaw = Do::Order(at.clone(), Order::Thaw { attempt: asked, epoch });
                (Self::Away { at, epoch }, vec![thaw])
            }
            state => state.answer_stale(from, asked),
        }
    }

    /// The source runs on: the attempt is over.
    fn cannot_depart(self, from: &N, failed: Epoch) -> (Self, Vec<Do<N>>) {
        match self {
            Self::Moving {
                from: node,
                epoch,
                to,
                attempt,
                source,
                ..
            } if node == *from && attempt == failed && source != Source::Gone => (
                Self::Away { at: node, epoch },
                vec![Do::Order(to, Order::Drop { epoch: attempt })],
            ),
            Self::Returning {
                from: node,
                epoch,
                attempt,
                source,
                ..
            } if node == *from && attempt == failed && source != Source::Gone => {
                (Self::Away { at: node, epoch }, vec![Do::DiscardHere])
            }
            state => (state, vec![]),
        }
    }

    /// A sign of life of a body: the point of no return when it is the awaited one.
    fn running(self, from: &N, heard: Epoch) -> (Self, Vec<Do<N>>) {
        match self {
            // AwaitRunning ── first frame ──▶ Away
            Self::AwaitRunning { at, epoch, old } if at == *from && epoch == heard => {
                let drop = match old {
                    Old::Here => vec![Do::DropHere],
                    Old::At { node, epoch } => vec![Do::Order(node, Order::Drop { epoch })],
                    Old::Gone => vec![],
                };
                (Self::Away { at, epoch }, drop)
            }
            state if state.accepted() == Some((from, heard)) => (state, vec![]),
            state => state.answer_stale(from, heard),
        }
    }

    pub(super) fn frame(self, from: &N, epoch: Epoch) -> (Self, Vec<Do<N>>) {
        let (state, mut effects) = self.running(from, epoch);
        if state.accepted() == Some((from, epoch)) {
            effects.push(Do::Accept);
        }
        (state, effects)
    }

    fn refused(self, from: &N, lost: Epoch, epochs: &mut Epochs) -> (Self, Vec<Do<N>>) {
        let concerned = match &self {
            Self::Departing { to, attempt, .. } => to == from && *attempt == lost,
            Self::AwaitRunning { at, epoch, old } => {
                (at == from && *epoch == lost)
                    || matches!(old, Old::At { node, epoch } if node == from && *epoch == lost)
            }
            Self::Away { at, epoch } => at == from && *epoch == lost,
            Self::Moving {
                from: node,
                epoch,
                to,
                attempt,
                ..
            } => (to == from && *attempt == lost) || (node == from && (*epoch == lost || *attempt == lost)),
            Self::Returning {
                from: node,
                epoch,
                attempt,
                ..
            } => node == from && (*epoch == lost || *attempt == lost),
            Self::AtHome { .. } | Self::Unborn | Self::Dead(_) => false,
        };
        if concerned {
            self.gone(from, epochs)
        } else {
            (self, vec![])
        }
    }

    /// What the node had of this process is gone.
    pub(super) fn gone(self, node: &N, epochs: &mut Epochs) -> (Self, Vec<Do<N>>) {
        match self {
            Self::Departing { epoch, to, .. } if to == *node => (Self::AtHome { epoch }, vec![Do::WakeHere]),
            Self::AwaitRunning {
                at,
                epoch,
                old: Old::Gone,
            } if at == *node => Self::Away { at, epoch }.end(Cause::Lost),
            Self::AwaitRunning { at, epoch, old } if at == *node => Self::take_back(at, epoch, old, epochs),
            Self::AwaitRunning {
                at,
                epoch,
                old: Old::At { node: kept, .. },
            } if kept == *node => (
                Self::AwaitRunning {
                    at,
                    epoch,
                    old: Old::Gone,
                },
                vec![],
            ),
            Self::Away { at, epoch } if at == *node => Self::Away { at, epoch }.end(Cause::Lost),
            state @ Self::Moving { .. } => state.gone_while_moving(node),
            Self::Returning {
                from,
                epoch,
                attempt,
                built,
                ..
            } if from == *node => {
                // The image may be received wholly all the same: its stream's end tells.
                Self::Returning {
                    from,
                    epoch,
                    attempt,
                    source: Source::Gone,
                    built,
                }
                .try_commit()
            }
            state => (state, vec![]),
        }
    }

    fn gone_while_moving(self, node: &N) -> (Self, Vec<Do<N>>) {
        match self {
            Self::Moving {
                from,
                epoch,
                to,
                attempt,
                complete,
                ..
            } if from == *node => {
                // The destination may have the whole image: its word decides.
                Self::Moving {
                    from,
                    epoch,
                    to,
                    attempt,
                    source: Source::Gone,
                    complete,
                }
                .try_commit()
            }
            Self::Moving {
                to,
                source: Source::Gone,
                from,
                epoch,
                attempt,
                complete,
            } if to == *node => Self::Moving {
                to,
                source: Source::Gone,
                from,
                epoch,
                attempt,
                complete,
            }
            .end(Cause::Lost),
            state @ Self::Moving { .. } if matches!(&state, Self::Moving { to, .. } if to == node) => state.abort(),
            state => (state, vec![]),
        }
    }

    /// Gives up a move that is not committed and whose source lives.
    fn abort(self) -> (Self, Vec<Do<N>>) {
        match self {
            Self::Departing { epoch, to, attempt } => (
                Self::AtHome { epoch },
                vec![Do::Order(to, Order::Drop { epoch: attempt }), Do::WakeHere],
            ),
            Self::Moving {
                from,
                epoch,
                to,
                attempt,
                source: Source::Runs | Source::Frozen,
                ..
            } => {
                let drop = Do::Order(to, Order::Drop { epoch: attempt });
                let thaw = Do::Order(from.clone(), Order::Thaw { attempt, epoch });
                (Self::Away { at: from, epoch }, vec![drop, thaw])
            }
            Self::Returning {
                from,
                epoch,
                attempt,
                source: Source::Runs | Source::Frozen,
                ..
            } => {
                let thaw = Do::Order(from.clone(), Order::Thaw { attempt, epoch });
                (Self::Away { at: from, epoch }, vec![Do::DiscardHere, thaw])
            }
            state => (state, vec![]),
        }
    }

    /// Takes a committed body back before it was heard: its epoch is dead, the old copy wakes under a new one.
    fn take_back(at: N, epoch: Epoch, old: Old<N>, epochs: &mut Epochs) -> (Self, Vec<Do<N>>) {
        let drop = Do::Order(at.clone(), Order::Drop { epoch });
        match old {
            Old::Here => (Self::AtHome { epoch: epochs.fresh() }, vec![drop, Do::WakeHere]),
            Old::At { node, .. } => {
                let raised = epochs.fresh();
                let thaw = Do::Order(
                    node.clone(),
                    Order::Thaw {
                        attempt: epoch,
                        epoch: raised,
                    },
                );
                (
                    Self::Away {
                        at: node,
                        epoch: raised,
                    },
                    vec![drop, thaw],
                )
            }
            Old::Gone => (
                Self::AwaitRunning {
                    at,
                    epoch,
                    old: Old::Gone,
                },
                vec![],
            ),
        }
    }

    pub(super) fn timeout(self, epochs: &mut Epochs) -> (Self, Vec<Do<N>>) {
        match self {
            Self::AwaitRunning { at, epoch, old } => Self::take_back(at, epoch, old, epochs),
            state => state.abort(),
        }
    }

    /// The process here is another program: every copy of the one before is told, and none is ever accepted again.
    pub(super) fn executed(self, epochs: &mut Epochs) -> (Self, Vec<Do<N>>) {
        if let Self::Dead(cause) = self {
            return (self, vec![Do::EndHere(cause)]);
        }
        // The newest number that anybody was told of: an attempt under way dies too.
        let epoch = epochs.fresh();
        let drop = |node: &N| Do::Order(node.clone(), Order::Drop { epoch });
        let mut effects: Vec<_> = self.copies().into_iter().map(|(node, _)| drop(node)).collect();
        effects.push(Do::BeginHere);
        (Self::AtHome { epoch }, effects)
    }

    pub(super) fn built_here(self, done: Epoch) -> (Self, Vec<Do<N>>) {
        match self {
            Self::Returning {
                from,
                epoch,
                attempt,
                source,
                ..
            } if attempt == done => Self::Returning {
                from,
                epoch,
                attempt,
                source,
                built: true,
            }
            .try_commit(),
            state => (state, vec![]),
        }
    }

    pub(super) fn image_failed(self, failed: Epoch) -> (Self, Vec<Do<N>>) {
        match self {
            Self::Departing { attempt, .. } if attempt == failed => self.abort(),
            Self::Returning {
                attempt,
                source: Source::Gone,
                ..
            } if attempt == failed => self.end(Cause::Lost),
            Self::Returning { attempt, .. } if attempt == failed => self.abort(),
            state => (state, vec![]),
        }
    }

    /// The process is no more: every copy on a host is told.
    pub(super) fn end(self, cause: Cause) -> (Self, Vec<Do<N>>) {
        if let Self::Dead(_) = self {
            return (self, vec![]);
        }
        let mut effects: Vec<_> = self
            .copies()
            .into_iter()
            .map(|(node, epoch)| Do::Order(node.clone(), Order::Drop { epoch }))
            .collect();
        effects.push(Do::EndHere(cause));
        (Self::Dead(cause), effects)
    }

    /// "Dead" to a frame of a body that is not accepted, unless that would reach a copy that is still needed.
    fn answer_stale(self, from: &N, epoch: Epoch) -> (Self, Vec<Do<N>>) {
        let needed = self
            .copies()
            .into_iter()
            .any(|(node, kept)| node == from && kept <= epoch);
        let answer = if needed {
            vec![]
        } else {
            vec![Do::Order(from.clone(), Order::Drop { epoch })]
        };
        (self, answer)
    }
}
