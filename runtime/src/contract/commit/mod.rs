//! The commit rules: one process, at most one body that can have effects, whatever fails and whenever.
//!
//! [`Home`] is the supervisor's view of one process, [`Host`] is one agent's view of the same process. The property that makes
//! the rules easy: *all effects of a body pass through home*, so home may take a body back on its own until it has accepted
//! the first frame of the new epoch.
//!
//! ```text
//!  home A            source B            destination C         (a move from host to host; E runs, N is the attempt)
//!    │── Expect N ──────────────────────────▶│ Expecting
//!    │── Depart N ──────▶│ Freezing          │
//!    │◀──── Frozen N ────│ Frozen            │               after every call and action of epoch E
//!    │                   │══ image, pages ══▶│ Building
//!    │                   │══ end of image ══▶│               from here B is in doubt: only home may wake it
//!    │◀──────────────────────── Complete N ──│ Ready
//!    │ commit: N is the epoch, E is dead     │
//!    │── Run N ─────────────────────────────▶│ Running
//!    │◀───────────── Running N, or a call ───│               the point of no return
//!    │── Drop E ────────▶│ Absent            │
//! ```
//!
//! 1. Home alone raises epochs. A number is never used twice ([`Epochs`] counts for the whole job): each attempt to move
//!    takes a fresh one, and an aborted attempt burns its number.
//! 2. Home commits a move only when the destination is complete *and* the source's session is drained up to `Frozen` (or the
//!    source is known dead): nothing that the body did before the freeze can arrive after the commit.
//! 3. A source that has sent the last byte of an image stays frozen until home speaks. Before that the destination can never
//!    become complete, so the source may wake the body itself and say `CannotDepart`.
//! 4. Until the first accepted frame of the new epoch home keeps the old copy, and may raise the epoch again and wake it.
//! 5. A frame that is not of the accepted body is answered [`Order::Drop`], which never reaches a copy that home still needs.
//! 6. Only an image that home announced is built; an announcement kills every older copy on that host.
//! 7. Home gone, or lease over: kill. A host that killed a body tells home as soon as it can ([`Report::Refused`]).
//!
//! What the sessions owe: frames of one session arrive in order and once, also after a break; a session ends only with one of
//! its two processes. Page streams owe nothing. Signals wait at home from `Depart` (or the freeze at home) until the outcome,
//! so none is in flight to a frozen body. An agent that got a body from *another host* repeats the dispositions
//! (`ToHome::Action`) after `Running` and before the first call, since the source may have died with such frames unsent.

mod home;
mod host;
mod types;

pub use home::{Home, HomeEffect, HomeEvent, Old, Source};
pub use host::{Host, HostEffect, HostEvent};
pub use types::{Cause, Epochs, Order, Place, Report};
