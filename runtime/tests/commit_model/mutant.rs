//! Deliberately wrong rules. Each is a small change of one machine, and the search must catch each.

use crate::world::Node;
use mosix_runtime::contract::commit::{
    Cause, Epochs, Home, HomeEffect, HomeEvent, Host, HostEffect, HostEvent, Old, Order, Report, Source,
};

/// A wrong rule, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The product's rules.
    None,
    /// A source in doubt wakes its body on a timer instead of asking home.
    SourceResumesAlone,
    /// Home commits on Complete, although frames of the source may still be under way.
    CommitUndrained,
    /// Home acts on frames of any epoch while it has a deputy.
    NoEpochCheck,
    /// Home drops the old copy when it says Run.
    DropOldAtCommit,
    /// Home gives a process up when the source of a move dies, although the destination may be complete.
    SourceGoneIsLost,
    /// A host wakes its body at any Thaw, also at a late one of an earlier attempt.
    ThawAny,
    /// A destination that cannot build does not say so.
    SilentRefusal,
    /// The process executed a program, and hosts that have a copy of the one before are not told.
    ExecutedUntold,
    /// The process executed a program, and a move that is under way goes on as if nothing had been.
    ExecutedUnseen,
}

impl Mutant {
    /// Home's step under this rule.
    pub fn home(
        self,
        state: Home<Node>,
        event: HomeEvent<Node>,
        epochs: &mut Epochs,
    ) -> (Home<Node>, Vec<HomeEffect<Node>>) {
        match (self, state, event) {
            (
                Self::CommitUndrained,
                Home::Moving {
                    from,
                    epoch,
                    to,
                    attempt,
                    complete,
                    ..
                },
                event @ HomeEvent::Report(_, Report::Complete(_)),
            ) => Home::Moving {
                from,
                epoch,
                to,
                attempt,
                complete,
                source: Source::Frozen,
            }
            .step(event, epochs),
            (Self::NoEpochCheck, state @ (Home::Away { .. } | Home::AwaitRunning { .. }), HomeEvent::Frame(..)) => {
                (state, vec![HomeEffect::Accept])
            }
            (Self::SourceGoneIsLost, Home::Moving { from, to, attempt, .. }, HomeEvent::PeerDead(node))
                if node == from =>
            {
                let drop = HomeEffect::Order(to, Order::Drop { epoch: attempt });
                (Home::Dead(Cause::Lost), vec![drop, HomeEffect::EndHere(Cause::Lost)])
            }
            (Self::DropOldAtCommit, state, event) => {
                let (state, mut effects) = state.step(event, epochs);
                match state {
                    Home::AwaitRunning { at, epoch, old } => {
                        match old {
                            Old::Here => effects.push(HomeEffect::DropHere),
                            Old::At { node, epoch } => effects.push(HomeEffect::Order(node, Order::Drop { epoch })),
                            Old::Gone => {}
                        }
                        (
                            Home::AwaitRunning {
                                at,
                                epoch,
                                old: Old::Gone,
                            },
                            effects,
                        )
                    }
                    state => (state, effects),
                }
            }
            (Self::ExecutedUntold, state, event @ HomeEvent::Executed) => {
                let (state, mut effects) = state.step(event, epochs);
                effects.retain(|effect| !matches!(effect, HomeEffect::Order(..)));
                (state, effects)
            }
            (Self::ExecutedUnseen, state, HomeEvent::Executed) if !state.settled() => {
                (state, vec![HomeEffect::BeginHere])
            }
            (_, state, event) => state.step(event, epochs),
        }
    }

    /// A host's step under this rule.
    pub fn host(self, state: Host<Node>, event: HostEvent<Node>) -> (Host<Node>, Vec<HostEffect<Node>>) {
        match (self, state, event) {
            (
                Self::SourceResumesAlone,
                Host::Frozen {
                    epoch,
                    attempt,
                    sent: true,
                    ..
                },
                HostEvent::Ask,
            ) => {
                let running = Host::Running {
                    epoch,
                    seen: attempt,
                    held: false,
                };
                (
                    running,
                    vec![
                        HostEffect::ResumeBody(epoch),
                        HostEffect::Report(Report::CannotDepart(attempt)),
                    ],
                )
            }
            (
                Self::ThawAny,
                Host::Frozen { attempt, .. } | Host::Freezing { attempt, .. },
                HostEvent::Order(Order::Thaw { epoch, .. }),
            ) => (
                Host::Running {
                    epoch,
                    seen: attempt,
                    held: false,
                },
                vec![HostEffect::ResumeBody(epoch)],
            ),
            (Self::SilentRefusal, state, event @ HostEvent::BuildFailed(_)) => {
                let (state, mut effects) = state.step(event);
                effects.retain(|effect| !matches!(effect, HostEffect::Report(_)));
                (state, effects)
            }
            (_, state, event) => state.step(event),
        }
    }
}
