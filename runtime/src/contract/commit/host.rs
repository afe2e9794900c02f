//! A host's state of one process: as destination, as place of the body, as source.
//!
//! ```text
//!            Expect              Arrive             built             Run               Depart            frozen
//!  Absent ──────────▶ Expecting ────────▶ Building ───────▶ Ready ─────────▶ Running ──────────▶ Freezing ──────▶ Frozen
//!    │        Arrive from home            ▲                                   ▲ ▲                   │               │
//!    └────────────────────────────────────┘                                   │ └── failed, Thaw ───┘               │
//!                                                                             └──── Thaw; stream broken before its ─┘
//!                                                                                   end was sent
//!  Born ── Run ──▶ Running
//!  every state ── Drop, home gone, lease over for good, body gone ──▶ Absent
//! ```

use super::types::{Order, Place, Report};
use mosix_wire::ids::Epoch;

/// What a host has of a process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host<N> {
    /// Nothing.
    Absent,
    /// Home announced an image.
    Expecting {
        /// Its epoch.
        epoch: Epoch,
        /// The host that will send it.
        from: N,
    },
    /// An image arrives.
    Building {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The body is built and frozen, and waits for home.
    Ready {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The body was forked here from another one and never ran; home gives it its first epoch with the order to run.
    Born,
    /// The body runs.
    Running {
        /// Its epoch.
        epoch: Epoch,
        /// The newest attempt to move it that is over.
        seen: Epoch,
        /// Stopped because home was silent for too long.
        held: bool,
    },
    /// The body is being frozen and captured.
    Freezing {
        /// Its epoch.
        epoch: Epoch,
        /// Epoch of the image.
        attempt: Epoch,
        /// Where to.
        to: Place<N>,
    },
    /// The body is frozen, its image under way.
    Frozen {
        /// Its epoch.
        epoch: Epoch,
        /// Epoch of the image.
        attempt: Epoch,
        /// Where to.
        to: Place<N>,
        /// The end of the image was handed to the stream: only home may wake the body.
        sent: bool,
    },
}

/// What happens to a process, seen from a host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostEvent<N> {
    /// Home's word.
    Order(Order<N>),
    /// An image of this epoch begins to arrive from there (authenticated). The stream may be faster than home's announcement:
    /// an agent keeps it waiting for a bounded time before it gives the event, else the move fails for nothing.
    Arrive(Epoch, Place<N>),
    /// The body of this epoch is built, its filter verified in every thread.
    Built(Epoch),
    /// The image of this epoch broke off, did not come in time, or the body could not be built.
    BuildFailed(Epoch),
    /// The body is frozen and captured for this attempt.
    BodyFrozen(Epoch),
    /// The body could not be frozen or captured for this attempt; what was done is undone.
    FreezeFailed(Epoch),
    /// All of the image but its end was sent for this attempt.
    PagesSent(Epoch),
    /// The page stream of this attempt broke.
    StreamBroken(Epoch),
    /// The body ended or was killed.
    BodyGone,
    /// Home's node says that the supervisor is dead, or home shows another life.
    HomeGone,
    /// Home was silent for the lease.
    LeaseOver,
    /// Home was silent for the second, final lease.
    LeaseDead,
    /// The session with home is up again.
    LinkBack,
    /// A timer: ask home again when in doubt.
    Ask,
}

/// What the agent does, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostEffect<N> {
    /// Say this on the session with home.
    Report(Report),
    /// Read and build the image that arrives; answer with `Built` or `BuildFailed`.
    Build(Epoch),
    /// Refuse the image of this epoch: close its stream.
    RefuseImage(Epoch),
    /// Let the built body run.
    ReleaseBody,
    /// Freeze and capture the body; answer with `BodyFrozen` or `FreezeFailed`.
    FreezeBody {
        /// Epoch of the image.
        attempt: Epoch,
        /// Where to.
        to: Place<N>,
    },
    /// Send the image; answer with `PagesSent` or `StreamBroken`.
    SendImage(Epoch),
    /// Send the end of the image. To be done after the state was stored: from here on only home wakes the body.
    SendEnd(Epoch),
    /// Undo a freeze, whole or under way; close the page stream; the body runs under this epoch.
    ResumeBody(Epoch),
    /// Stop the body; it is not captured.
    HoldBody,
    /// Let a held body run on.
    UnholdBody,
    /// Kill the body or what is built of it; close its streams.
    KillBody,
}

use HostEffect as Do;

impl<N: Clone + PartialEq> Host<N> {
    /// Returns the state after `event` and what to do.
    #[must_use]
    pub fn step(self, event: HostEvent<N>) -> (Self, Vec<HostEffect<N>>) {
        match event {
            HostEvent::Order(order) => {
                // An order is a sign of life of home.
                let (state, mut effects) = self.unhold();
                let (state, more) = state.order(order);
                effects.extend(more);
                (state, effects)
            }
            HostEvent::Arrive(epoch, from) => self.arrive(epoch, &from),
            HostEvent::Built(done) => match self {
                Self::Building { epoch } if epoch == done => {
                    (Self::Ready { epoch }, vec![Do::Report(Report::Complete(epoch))])
                }
                state => (state, vec![]),
            },
            HostEvent::BuildFailed(failed) => match self {
                Self::Building { epoch } | Self::Expecting { epoch, .. } if epoch == failed => self.lose(),
                state => (state, vec![]),
            },
            HostEvent::BodyFrozen(_)
            | HostEvent::FreezeFailed(_)
            | HostEvent::PagesSent(_)
            | HostEvent::StreamBroken(_) => self.departure(&event),
            HostEvent::BodyGone => match self {
                Self::Running { epoch, .. } | Self::Freezing { epoch, .. } => {
                    (Self::Absent, vec![Do::KillBody, Do::Report(Report::Exited(epoch))])
                }
                state => state.lose(),
            },
            HostEvent::HomeGone => self.kill(),
            HostEvent::LeaseOver => match self {
                Self::Running {
                    epoch,
                    seen,
                    held: false,
                } => (
                    Self::Running {
                        epoch,
                        seen,
                        held: true,
                    },
                    vec![Do::HoldBody],
                ),
                state => (state, vec![]),
            },
            HostEvent::LeaseDead => self.lose(),
            HostEvent::LinkBack => match self {
                Self::Running {
                    epoch,
                    seen,
                    held: true,
                } => (
                    Self::Running {
                        epoch,
                        seen,
                        held: false,
                    },
                    vec![Do::UnholdBody],
                ),
                state => state.ask(),
            },
            HostEvent::Ask => self.ask(),
        }
    }

    /// The epoch of what is here, and the newest number that home has named to this copy.
    #[must_use]
    pub fn epochs(&self) -> Option<(Epoch, Epoch)> {
        match self {
            Self::Absent => None,
            // Older than all that home has ever named.
            Self::Born => Some((Epoch(0), Epoch(0))),
            Self::Expecting { epoch, .. } | Self::Building { epoch } | Self::Ready { epoch } => Some((*epoch, *epoch)),
            Self::Running { epoch, seen, .. } => Some((*epoch, (*epoch).max(*seen))),
            Self::Freezing { epoch, attempt, .. } | Self::Frozen { epoch, attempt, .. } => {
                Some((*epoch, (*epoch).max(*attempt)))
            }
        }
    }

    fn order(self, order: Order<N>) -> (Self, Vec<Do<N>>) {
        match order {
            Order::Expect { epoch, from } => {
                // Home's word that everything older of this process on this host is dead.
                if self.epochs().is_some_and(|(_, newest)| newest >= epoch) {
                    return (self, vec![]);
                }
                let (_, effects) = self.kill();
                (Self::Expecting { epoch, from }, effects)
            }
            Order::Drop { epoch: dead } => match self.epochs() {
                Some((epoch, _)) if epoch <= dead => self.kill(),
                _ => (self, vec![]),
            },
            Order::Run { epoch: begins } => match self {
                Self::Ready { epoch } if epoch == begins => (
                    Self::Running {
                        epoch,
                        seen: epoch,
                        held: false,
                    },
                    vec![Do::ReleaseBody, Do::Report(Report::Running(epoch))],
                ),
                Self::Born => (
                    Self::Running {
                        epoch: begins,
                        seen: begins,
                        held: false,
                    },
                    vec![Do::ReleaseBody, Do::Report(Report::Running(begins))],
                ),
                Self::Running { epoch, .. } if epoch == begins => (self, vec![Do::Report(Report::Running(epoch))]),
                state if state.epochs().is_some_and(|(_, newest)| newest >= begins) => (state, vec![]),
                state => (state, vec![Do::Report(Report::Refused(begins))]),
            },
            Order::Depart { attempt, to } => match self {
                Self::Running { epoch, seen, .. } if attempt > seen => (
                    Self::Freezing {
                        epoch,
                        attempt,
                        to: to.clone(),
                    },
                    vec![Do::FreezeBody { attempt, to }],
                ),
                Self::Absent => (self, vec![Do::Report(Report::Refused(attempt))]),
                state => (state, vec![]),
            },
            Order::Thaw {
                attempt: over,
                epoch: runs,
            } => match self {
                // A thaw of a later attempt means that this one is over too; one of an earlier attempt is late.
                Self::Freezing { attempt, .. } | Self::Frozen { attempt, .. } if over >= attempt => (
                    Self::Running {
                        epoch: runs,
                        seen: over,
                        held: false,
                    },
                    vec![Do::ResumeBody(runs)],
                ),
                Self::Absent => (self, vec![Do::Report(Report::Refused(runs))]),
                state => (state, vec![]),
            },
        }
    }

    fn arrive(self, epoch: Epoch, from: &Place<N>) -> (Self, Vec<Do<N>>) {
        let wanted = match (&self, from) {
            (
                Self::Expecting {
                    epoch: announced,
                    from: source,
                },
                Place::Node(node),
            ) => *announced == epoch && source == node,
            (_, Place::Node(_)) => false,
            // From home itself the image is its own announcement.
            (state, Place::Home) => state.epochs().is_none_or(|(_, newest)| newest < epoch),
        };
        if !wanted {
            return (self, vec![Do::RefuseImage(epoch)]);
        }
        let (_, mut effects) = self.kill();
        effects.push(Do::Build(epoch));
        (Self::Building { epoch }, effects)
    }

    /// The steps of a departure, from the freeze to the end of the image.
    fn departure(self, event: &HostEvent<N>) -> (Self, Vec<Do<N>>) {
        match (self, event) {
            (Self::Freezing { epoch, attempt, to }, HostEvent::BodyFrozen(now)) if attempt == *now => (
                Self::Frozen {
                    epoch,
                    attempt,
                    to,
                    sent: false,
                },
                vec![Do::Report(Report::Frozen(attempt)), Do::SendImage(attempt)],
            ),
            (Self::Freezing { epoch, attempt, .. }, HostEvent::FreezeFailed(now)) if attempt == *now => (
                Self::Running {
                    epoch,
                    seen: attempt,
                    held: false,
                },
                vec![Do::Report(Report::CannotDepart(attempt))],
            ),
            (
                Self::Frozen {
                    epoch,
                    attempt,
                    to,
                    sent: false,
                },
                HostEvent::PagesSent(now),
            ) if attempt == *now => (
                Self::Frozen {
                    epoch,
                    attempt,
                    to,
                    sent: true,
                },
                vec![Do::SendEnd(attempt)],
            ),
            // Before the end was sent nobody can be complete: the body may run on without home's word.
            (
                Self::Freezing { epoch, attempt, .. }
                | Self::Frozen {
                    epoch,
                    attempt,
                    sent: false,
                    ..
                },
                HostEvent::StreamBroken(now),
            ) if attempt == *now => (
                Self::Running {
                    epoch,
                    seen: attempt,
                    held: false,
                },
                vec![Do::Report(Report::CannotDepart(attempt)), Do::ResumeBody(epoch)],
            ),
            (state, _) => (state, vec![]),
        }
    }

    fn unhold(self) -> (Self, Vec<Do<N>>) {
        match self {
            Self::Running {
                epoch,
                seen,
                held: true,
            } => (
                Self::Running {
                    epoch,
                    seen,
                    held: false,
                },
                vec![Do::UnholdBody],
            ),
            state => (state, vec![]),
        }
    }

    fn ask(self) -> (Self, Vec<Do<N>>) {
        let question = match &self {
            Self::Ready { epoch } => Some(Report::Complete(*epoch)),
            Self::Frozen { attempt, .. } => Some(Report::Frozen(*attempt)),
            _ => None,
        };
        (self, question.map(Do::Report).into_iter().collect())
    }

    /// Kills what is here.
    fn kill(self) -> (Self, Vec<Do<N>>) {
        match self {
            Self::Absent | Self::Expecting { .. } => (Self::Absent, vec![]),
            _ => (Self::Absent, vec![Do::KillBody]),
        }
    }

    /// Kills what is here and tells home that it is gone.
    fn lose(self) -> (Self, Vec<Do<N>>) {
        let lost = self.epochs();
        let (state, mut effects) = self.kill();
        effects.extend(lost.map(|(epoch, _)| Do::Report(Report::Refused(epoch))));
        (state, effects)
    }
}
