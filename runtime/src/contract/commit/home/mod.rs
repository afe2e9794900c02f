//! Home's state of one process.
//!
//! ```text
//!                  Migrate(node)                Complete                first frame of the new epoch
//!   ┌────────▶ AtHome ────────▶ Departing ───────────────▶ AwaitRunning ─────────────────────▶ Away ◀─────────────┐
//!   │            ▲                  │                        │   ▲   │                          │ │              │
//!   │            └──── failed ──────┘                        │   │   └─ failed, old copy away ─▶│ │              │
//!   │            └──────────── failed, old copy here ────────┘   │                              │ │              │
//!   │                                                            │ Complete and Frozen          │ │ Migrate(node)│
//!   │                                                            └─────────────── Moving ◀──────┼─┘              │
//!   │                                                                                └── failed ┼────────────────┤
//!   │  built and frozen                                                Migrate(home), WantHome  │                │
//!   └───────────────────────────────────── Returning ◀──────────────────────────────────────────┘                │
//!                                              └───────────── failed ────────────────────────────────────────────┘
//!   Unborn ── Born ──▶ AwaitRunning, with no old copy
//!   every state ── the deputy has executed a program ──▶ AtHome
//!   every state ── exited, deputy killed, last copy lost ──▶ Dead
//! ```
//!
//! The transitions are in `steps`.

mod steps;

use super::types::{Cause, Epochs, Order, Place, Report};
use mosix_wire::ids::Epoch;

/// Where the body of a process is, and which copies may still be needed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Home<N> {
    /// Both halves are one process at home.
    AtHome {
        /// The epoch that runs.
        epoch: Epoch,
    },
    /// Frozen at home; its image is under way.
    Departing {
        /// The epoch of the copy at home.
        epoch: Epoch,
        /// Where to.
        to: N,
        /// Epoch of the image.
        attempt: Epoch,
    },
    /// Committed: the new body was told to run and was not heard yet. The old copy is kept.
    AwaitRunning {
        /// Where the new body is.
        at: N,
        /// Its epoch.
        epoch: Epoch,
        /// The copy that home can go back to.
        old: Old<N>,
    },
    /// The body runs on a host.
    Away {
        /// The host.
        at: N,
        /// Its epoch.
        epoch: Epoch,
    },
    /// From host to host, not committed.
    Moving {
        /// The source.
        from: N,
        /// The epoch of the body there.
        epoch: Epoch,
        /// The destination.
        to: N,
        /// Epoch of the image.
        attempt: Epoch,
        /// What is known of the source.
        source: Source,
        /// The destination is complete.
        complete: bool,
    },
    /// From a host to home, not committed.
    Returning {
        /// The source.
        from: N,
        /// The epoch of the body there.
        epoch: Epoch,
        /// Epoch of the image.
        attempt: Epoch,
        /// What is known of the source.
        source: Source,
        /// The process is rebuilt here and waits.
        built: bool,
    },
    /// The deputy of a body away has forked: this is the child's deputy, and its body is still to be made where the parent's is.
    Unborn,
    /// The process is no more.
    Dead(Cause),
}

/// The copy that home can go back to while it waits for the new body.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Old<N> {
    /// The original process, frozen at home.
    Here,
    /// A frozen body on a host.
    At {
        /// The host.
        node: N,
        /// Its epoch.
        epoch: Epoch,
    },
    /// There is none any more.
    Gone,
}

/// What home knows of the source of a move that is not committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Told to freeze; its calls are still accepted.
    Runs,
    /// Frozen, and its session is drained: no call of it is accepted any more.
    Frozen,
    /// Known dead, or it has lost the body.
    Gone,
}

/// What happens to a process, seen from home.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HomeEvent<N> {
    /// The user or a policy wants the body there.
    Migrate(Place<N>),
    /// A host says something about the commit.
    Report(N, Report),
    /// The body of an unborn process was made there, and waits.
    Born(N),
    /// A call, disposition change, thread exit or other message of the body with this epoch. Acted on only when the answer
    /// contains [`HomeEffect::Accept`].
    Frame(N, Epoch),
    /// The image of this attempt was wholly received and the process rebuilt from it here; it waits for its release.
    BuiltHere(Epoch),
    /// Freezing, sending (a departure), receiving or rebuilding (a return) failed for this attempt.
    ImageFailed(Epoch),
    /// This agent is known dead, by its node's word or a new life of it. Never a guess from silence. To be given after the
    /// frames that had arrived before.
    PeerDead(N),
    /// The process here has executed a program, for a call of its body: that is past, and no body has a call to make any more. Whatever
    /// there was of the process elsewhere, or on its way, is of the program before.
    Executed,
    /// Home waited long enough for the present move.
    Timeout,
    /// The deputy, or the whole process at home, is dead.
    DeputyDead,
}

/// What the supervisor does, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HomeEffect<N> {
    /// Say this to the host's session.
    Order(N, Order<N>),
    /// Freeze the process here, capture it, and send the image with this epoch. Nothing of the process is given up.
    SendHere {
        /// Where to.
        to: N,
        /// Epoch of the image.
        attempt: Epoch,
    },
    /// The deputies end with the supervisor from now on (PTRACE_O_EXITKILL).
    CommitHere,
    /// Let the frozen process here run on, untouched; stop a sending stream; undo `CommitHere`.
    WakeHere,
    /// Drop the memory of the old copy here: it is a deputy from now on.
    DropHere,
    /// Receive the image of this attempt and rebuild the process from it; answer with `BuiltHere` or `ImageFailed`.
    BuildHere(Epoch),
    /// Throw away what was received and rebuilt here; the process stays a deputy.
    DiscardHere,
    /// The rebuilt process runs at home.
    ReleaseHere,
    /// The process here is whole, with a memory of its own, and stands before its first instruction: forget that it was a deputy, or was to
    /// become one, and let it run.
    BeginHere,
    /// End and reap the process here, and report why.
    EndHere(Cause),
    /// Act on the frame.
    Accept,
    /// The process is in another move, dead, or already there; nothing was done.
    Busy,
}

impl<N: Clone + PartialEq> Home<N> {
    /// Returns the state after `event` and what to do.
    #[must_use]
    pub fn step(self, event: HomeEvent<N>, epochs: &mut Epochs) -> (Self, Vec<HomeEffect<N>>) {
        match event {
            HomeEvent::Migrate(to) => self.migrate(to, epochs),
            HomeEvent::Report(from, report) => self.report(from, report, epochs),
            HomeEvent::Born(at) => self.born(at, epochs),
            HomeEvent::Frame(from, epoch) => self.frame(&from, epoch),
            HomeEvent::BuiltHere(done) => self.built_here(done),
            HomeEvent::ImageFailed(failed) => self.image_failed(failed),
            HomeEvent::PeerDead(node) => self.gone(&node, epochs),
            HomeEvent::Executed => self.executed(epochs),
            HomeEvent::Timeout => self.timeout(epochs),
            HomeEvent::DeputyDead => self.end(Cause::Killed),
        }
    }

    /// The epoch whose frames are accepted, and from where; none while no body away may have effects.
    #[must_use]
    pub fn accepted(&self) -> Option<(&N, Epoch)> {
        match self {
            Self::AwaitRunning { at, epoch, .. } | Self::Away { at, epoch } => Some((at, *epoch)),
            Self::Moving {
                from,
                epoch,
                source: Source::Runs,
                ..
            }
            | Self::Returning {
                from,
                epoch,
                source: Source::Runs,
                ..
            } => Some((from, *epoch)),
            _ => None,
        }
    }

    /// The host that signals are sent to now: whose body may make calls, since what a call raises comes before its answer. None: no body
    /// runs, or it is home's own. Whoever has it may be captured before they come, or not run yet: home keeps them until they are taken.
    #[must_use]
    pub fn signals_to(&self) -> Option<&N> {
        self.accepted().map(|(at, _)| at)
    }

    /// Whether this body's word counts that it has signals, and keeps them whatever comes: one that home might not have run yet does not.
    #[must_use]
    pub fn keeps_signals(&self, from: &N, epoch: Epoch) -> bool {
        !matches!(self, Self::AwaitRunning { .. }) && self.accepted() == Some((from, epoch))
    }

    /// True when no move is open.
    #[must_use]
    pub fn settled(&self) -> bool {
        matches!(self, Self::AtHome { .. } | Self::Away { .. } | Self::Dead(_))
    }

    /// The copies on hosts that home may still need, with their epochs.
    #[must_use]
    pub fn copies(&self) -> Vec<(&N, Epoch)> {
        match self {
            Self::AtHome { .. } | Self::Unborn | Self::Dead(_) => vec![],
            Self::Departing { to, attempt, .. } => vec![(to, *attempt)],
            Self::AwaitRunning {
                at,
                epoch,
                old: Old::At { node, epoch: before },
            } => {
                vec![(at, *epoch), (node, *before)]
            }
            Self::AwaitRunning { at, epoch, .. } | Self::Away { at, epoch } => vec![(at, *epoch)],
            Self::Moving {
                to,
                attempt,
                source: Source::Gone,
                ..
            } => vec![(to, *attempt)],
            Self::Moving {
                from,
                epoch,
                to,
                attempt,
                ..
            } => vec![(from, *epoch), (to, *attempt)],
            Self::Returning {
                source: Source::Gone, ..
            } => vec![],
            Self::Returning { from, epoch, .. } => vec![(from, *epoch)],
        }
    }
}
