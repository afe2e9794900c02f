//! iovec arrays: the guest's ranges become one range at home.
//!
//! One contiguous buffer of the same total length is what a vector call means; only drivers without vector support could
//! tell the difference.

use super::{Gather, MAX_RW, Piece, Span, Spot, Stop, TooLarge, bad_pointer, data_align, is_user};
use crate::syscall::BAD_POINTER;
use crate::syscall::memory::GuestMemory;
use mosix_wire::limits;

/// Most iovecs of one call (UIO_MAXIOV).
pub const IOV_MAX: u64 = 1024;

/// Reads eight bytes at `at`; zeros behind the end.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// Reads four bytes at `at`; zeros behind the end.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// A guest's vector.
pub(super) enum Vector {
    /// Cannot be read, or has an impossible number of entries: sent with a bad address and this number.
    Unreadable(u64),
    /// Refused as a whole: this entry is what is wrong with it.
    Bad(u64, u64),
    /// Ranges that can be moved, their total, and how many bytes there are from the first fault on.
    Ranges(Vec<(u64, u64)>, u64, u64),
}

/// One iovec to be sent: where it points, or with which bad address; and its length.
pub(super) type Entry = (Result<Spot, u64>, u64);

/// A vector as it is sent.
pub(super) struct Sent {
    /// Place of the iovecs; `None` when their address is bad.
    pub(super) entries: Option<Spot>,
    /// Their number.
    pub(super) count: u64,
    /// The data's part, the guest's ranges and their total.
    pub(super) data: Option<(Spot, Vec<(u64, u64)>, u64)>,
}

impl<M: GuestMemory> Gather<'_, M> {
    /// Reads and checks the vector of `count` entries at `addr`.
    fn vector(&self, addr: u64, count: u64, write: bool) -> Vector {
        if count > IOV_MAX {
            return Vector::Unreadable(count);
        }
        let mut raw = vec![0; count as usize * 16];
        if self.mem.read(addr, &mut raw).is_err() {
            return Vector::Unreadable(count);
        }
        let entries = || raw.chunks_exact(16).map(|entry| (u64_at(entry, 0), u64_at(entry, 8)));
        // The kernel looks for negative lengths in all of them first.
        if let Some((base, len)) = entries().find(|&(_, len)| (len as i64) < 0) {
            return Vector::Bad(base, len);
        }
        let (mut ranges, mut total, mut fault) = (Vec::new(), 0, 0);
        for (base, len) in entries() {
            // One entry alone is shortened before it is checked.
            let len = if count == 1 { len.min(MAX_RW) } else { len };
            if !is_user(base, len) {
                return Vector::Bad(base, len);
            }
            let len = len.min(MAX_RW - total - fault);
            if fault > 0 {
                fault += len;
                continue;
            }
            let usable = if len == 0 { 0 } else { self.usable(base, len, write) };
            if usable > 0 {
                ranges.push((base, usable));
            }
            total += usable;
            fault = len - usable;
        }
        Vector::Ranges(ranges, total, fault)
    }

    /// Adds the data of `ranges`, `total` bytes, as one part. Inputs may turn out shorter: gives the part and its bytes.
    fn vector_part(&mut self, ranges: &[(u64, u64)], total: u64, write: bool) -> Result<(Spot, u64), Stop> {
        if total > limits::CALL_BUFFER as u64 {
            return Err(TooLarge.into());
        }
        let align = ranges
            .iter()
            .map(|&(base, len)| data_align(base, len))
            .min()
            .unwrap_or(8);
        if write {
            return Ok((self.b.room(total, align)?, total));
        }
        let mut copy = vec![0; total as usize];
        let mut done = 0;
        for &(base, len) in ranges {
            let step = self.mem.read_some(base, &mut copy[done..done + len as usize]);
            done += step;
            if step < len as usize {
                break;
            }
        }
        copy.truncate(done);
        Ok((self.b.input(&copy, align)?, done as u64))
    }

    /// Adds the data of the vector of `count` entries at `addr`, and iovecs that stand for it: one with all that can be
    /// moved and, after a fault, one that faults. What happens there is then up to the file, as it is for the guest's own.
    pub(super) fn vector_entries(&mut self, addr: u64, count: u64, write: bool) -> Result<Sent, Stop> {
        let (ranges, total, mut fault) = match self.vector(addr, count, write) {
            Vector::Unreadable(count) => {
                return Ok(Sent {
                    entries: None,
                    count,
                    data: None,
                });
            }
            Vector::Bad(base, len) => {
                let entries = self.entries(&[(Err(bad_pointer(base, len)), len)])?;
                return Ok(Sent {
                    entries: Some(entries),
                    count: 1,
                    data: None,
                });
            }
            Vector::Ranges(ranges, total, fault) => (ranges, total, fault),
        };
        let mut list: Vec<Entry> = Vec::new();
        let mut data = None;
        if total > 0 {
            let (part, done) = self.vector_part(&ranges, total, write)?;
            fault += total - done;
            if done > 0 {
                list.push((Ok(part), done));
                data = Some((part, ranges, done));
            }
        }
        if fault > 0 {
            list.push((Err(BAD_POINTER), fault));
        }
        let count = list.len() as u64;
        let entries = if list.is_empty() {
            None
        } else {
            Some(self.entries(&list)?)
        };
        Ok(Sent { entries, count, data })
    }

    /// An iovec array argument of readv and its kin.
    pub(super) fn iov(&mut self, i: u8, count: u8, write: bool) -> Result<(), Stop> {
        let (addr, given) = (self.value(i), self.value(count));
        let sent = self.vector_entries(addr, given, write)?;
        match sent.entries {
            Some(entries) => self.b.point_arg(i, entries),
            None => self.bad_range(i, sent.count.saturating_mul(16)),
        }
        self.b.args[usize::from(count)] = sent.count;
        if let Some((part, ranges, total)) = sent.data
            && write
        {
            let piece = Piece {
                to: ranges,
                above: None,
            };
            self.b.output(part, total as u32, Span::Result, piece);
        }
        Ok(())
    }

    /// Adds iovecs.
    pub(super) fn entries(&mut self, entries: &[Entry]) -> Result<Spot, Stop> {
        let mut raw = Vec::with_capacity(entries.len() * 16);
        for &(base, len) in entries {
            raw.extend_from_slice(&base.err().unwrap_or(0).to_le_bytes());
            raw.extend_from_slice(&len.to_le_bytes());
        }
        let at = self.b.input(&raw, 8)?;
        for (n, (base, _)) in entries.iter().enumerate() {
            if let Ok(base) = base {
                self.b.point_at(at.plus(n as u32 * 16), *base);
            }
        }
        Ok(at)
    }
}
