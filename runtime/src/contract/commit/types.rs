//! What home and hosts say to each other about one process, and the counter of epochs.

use mosix_wire::ids::Epoch;

/// A place where a body can be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place<N> {
    /// The job's home.
    Home,
    /// A host.
    Node(N),
}

/// The job's counter of epochs. One counter serves all processes of a job, so that a pid that is used again never meets an
/// epoch of its predecessor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Epochs(u64);

impl Epochs {
    /// Takes a number that was never used.
    pub fn fresh(&mut self) -> Epoch {
        self.0 += 1;
        Epoch(self.0)
    }
}

/// Home's word to a host, about one process. Sent as the message of the same name of `mosix_wire::link::ToHost`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Order<N> {
    /// An image of this epoch will come from that host.
    Expect {
        /// Epoch of the image.
        epoch: Epoch,
        /// The source.
        from: N,
    },
    /// Home has committed: release the body of this epoch.
    Run {
        /// The epoch that begins.
        epoch: Epoch,
    },
    /// Kill every copy of this or an older epoch.
    Drop {
        /// The newest epoch that dies.
        epoch: Epoch,
    },
    /// Freeze the body and send its image.
    Depart {
        /// Epoch of the image.
        attempt: Epoch,
        /// Where to.
        to: Place<N>,
    },
    /// The move failed: the frozen body runs on.
    Thaw {
        /// The move that failed.
        attempt: Epoch,
        /// Epoch under which the body runs on.
        epoch: Epoch,
    },
}

/// A host's word to home, about one process. Sent as the message of the same name of `mosix_wire::link::ToHome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Report {
    /// The body of this epoch is built and verified, and waits.
    Complete(Epoch),
    /// There is no body of this epoch here (any more).
    Refused(Epoch),
    /// The body of this epoch runs.
    Running(Epoch),
    /// The body is frozen for this attempt; repeated, it asks "what now?". To home itself this is `ToHome::Departing`.
    Frozen(Epoch),
    /// The body runs on; this attempt is over.
    CannotDepart(Epoch),
    /// The body of this epoch asks to come home. The agent repeats it after `Thaw` and `CannotDepart`.
    WantHome(Epoch),
    /// The body of this epoch ended by itself.
    Exited(Epoch),
}

/// Why a process is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Its body ended by itself.
    Exited,
    /// Its kernel half, the deputy, was killed at home.
    Killed,
    /// Every copy of its body was on hosts that are gone.
    Lost,
}
