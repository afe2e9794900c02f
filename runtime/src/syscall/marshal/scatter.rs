//! Writes the results of a forwarded call into guest memory.

use super::Ids;
use crate::syscall::memory::GuestMemory;
use crate::syscall::rusage::Part;
use mosix_wire::call::{Extent, Output, Reply};

/// Where one output goes in the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Guest ranges (address, bytes), filled in order.
    pub to: Vec<(u64, u64)>,
    /// Written only when the result is above this (messages of recvmmsg that were received).
    pub above: Option<u32>,
}

impl Piece {
    /// One range.
    pub fn one(addr: u64, len: u64) -> Self {
        Self {
            to: vec![(addr, len)],
            above: None,
        }
    }
}

/// What to do with the reply to one call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scatter {
    pub(super) ids: Ids,
    pub(super) outputs: Vec<Output>,
    pub(super) pieces: Vec<Piece>,
    /// What the body's side adds to the outputs before they are applied.
    pub part: Option<Part>,
}

/// A reply that does not fit its call. Home never sends one: the link or home is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("reply to call {seq} of thread {tid} does not fit the call: {why}")]
pub struct BadReply {
    tid: i32,
    seq: u64,
    why: &'static str,
}

impl Scatter {
    /// For a call that has no outputs.
    pub fn none(ids: Ids) -> Self {
        Self {
            ids,
            outputs: Vec::new(),
            pieces: Vec::new(),
            part: None,
        }
    }

    /// Writes the outputs of `reply` (its payload) to the guest and returns the raw result that the guest gets: the
    /// reply's, or `-EFAULT` when a successful call's output cannot be written. Internal restart codes pass unchanged.
    ///
    /// # Errors
    /// [`BadReply`] when the reply does not fit the call; nothing was written.
    pub fn apply(&self, mem: &impl GuestMemory, reply: &Reply, payload: &[u8]) -> Result<i64, BadReply> {
        let bad = |why| BadReply {
            tid: self.ids.tid.0,
            seq: self.ids.seq.0,
            why,
        };
        if (reply.pid, reply.tid, reply.seq) != (self.ids.pid, self.ids.tid, self.ids.seq) {
            return Err(bad("it answers another call"));
        }
        // A call that failed before the deputy ran it comes without lengths.
        if reply.lengths.is_empty() && payload.is_empty() && (reply.result < 0 || self.outputs.is_empty()) {
            return Ok(reply.result);
        }
        if reply.lengths.len() != self.outputs.len() {
            return Err(bad("number of outputs"));
        }
        let mut total = 0u64;
        for (&len, output) in reply.lengths.iter().zip(&self.outputs) {
            if len > output.room {
                return Err(bad("output longer than its room"));
            }
            total += u64::from(len);
        }
        if total != payload.len() as u64 {
            return Err(bad("payload length"));
        }
        let mut rest = payload;
        let mut fault = false;
        for ((&len, piece), output) in reply.lengths.iter().zip(&self.pieces).zip(&self.outputs) {
            let (mut bytes, tail) = rest.split_at(len as usize);
            rest = tail;
            if piece.above.is_some_and(|index| reply.result <= i64::from(index)) {
                continue;
            }
            for &(addr, room) in &piece.to {
                let step = (bytes.len() as u64).min(room) as usize;
                let (now, later) = bytes.split_at(step);
                bytes = later;
                if !now.is_empty() && mem.write(addr, now).is_err() {
                    // The rest of a time-out in read-only memory: the kernel does not mind either.
                    fault |= output.extent != Extent::Always;
                    break;
                }
            }
        }
        if fault && reply.result >= 0 {
            Ok(-i64::from(libc::EFAULT))
        } else {
            Ok(reply.result)
        }
    }
}
