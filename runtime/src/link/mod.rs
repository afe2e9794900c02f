//! The link of a job: supervisor and agent, and two agents during a move, each end a few blocking threads.
//!
//! ```text
//!   Session   numbered frames, kept until acknowledged, sent again after a break   (calls, replies, control)
//!   Stream    frames over one connection, no memory of it                          (pages of one move)
//!   Tls       TLS 1.3, each end pinned to the other's certificate                  (or plain, when configured so)
//!   TCP       opened and accepted by the node daemons, passed by descriptor
//! ```
//!
//! Nothing here is asynchronous: a forwarded call costs a write on the caller's thread and a read on the thread that waits,
//! no queue and no other thread in between.

mod engine;
mod records;
pub mod session;
pub mod socket;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod tls;

pub use session::{Closed, Session, SessionOptions, State};
pub use stream::{Frame, LinkError, Receiver, Sender, Stream};
pub use tls::{Identity, Pins, Security};
