//! A move that has been asked for and cannot begin yet.

use crate::supervisor::engine::Reply;
use mosix_wire::job::Place;
use std::time::Instant;

/// A wish that waits until its host is connected or its process has settled.
#[derive(Debug)]
pub struct Wish {
    /// The process.
    pub pid: i32,
    /// Where to.
    pub to: Place,
    /// Who asked.
    pub reply: Option<Reply>,
    /// When it was asked for.
    pub since: Instant,
    /// A new program goes back to where it was executed: no move to whom that looks at it.
    pub in_place: bool,
}
