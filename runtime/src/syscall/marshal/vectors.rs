//! iovec arrays: the guest's ranges become one range at home.
//!
//! One contiguous buffer of the same total length is what a vector call means; only drivers without vector support could
//! tell the difference.

use super::{Gather, MAX_RW, Piece, Span, Spot, Stop, TooLarge, data_align};
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
    /// Cannot be used; what to send instead: number of iovecs, length of the one at the bad address.
    Bad(u64, Option<u64>),
    /// Nothing to move.
    Empty,
    /// Ranges that can be moved, with their total.
    Ranges(Vec<(u64, u64)>, u64),
}

impl<M: GuestMemory> Gather<'_, M> {
    /// Reads and checks the vector of `count` entries at `addr`. `whole` calls need all of it; others use what comes
    /// before the first fault.
    pub(super) fn vector(&self, addr: u64, count: u64, write: bool, whole: bool) -> Vector {
        if count == 0 || count > IOV_MAX {
            return Vector::Bad(count, None);
        }
        let mut raw = vec![0; count as usize * 16];
        if self.mem.read(addr, &mut raw).is_err() {
            return Vector::Bad(count, None);
        }
        let mut ranges = Vec::new();
        let mut total = 0;
        let mut cut = false;
        for entry in raw.chunks_exact(16) {
            let (base, len) = (u64_at(entry, 0), u64_at(entry, 8));
            if (len as i64) < 0 {
                return Vector::Bad(1, Some(len));
            }
            let len = len.min(MAX_RW - total);
            if len == 0 || cut {
                continue;
            }
            let usable = self.usable(base, len, write);
            if usable < len && (whole || total + usable == 0) {
                return Vector::Bad(1, Some(len));
            }
            cut = usable < len;
            if usable > 0 {
                ranges.push((base, usable));
                total += usable;
            }
        }
        if total == 0 {
            Vector::Empty
        } else {
            Vector::Ranges(ranges, total)
        }
    }

    /// Adds the data of `ranges` as one input or output part. `None`: it became unreadable meanwhile.
    pub(super) fn vector_part(&mut self, ranges: &[(u64, u64)], total: u64, write: bool) -> Result<Option<Spot>, Stop> {
        if total > limits::CALL_BUFFER as u64 {
            return Err(TooLarge.into());
        }
        let align = ranges
            .iter()
            .map(|&(base, len)| data_align(base, len))
            .min()
            .unwrap_or(8);
        if write {
            return Ok(Some(self.b.room(total, align)?));
        }
        let mut copy = vec![0; total as usize];
        let mut rest = copy.as_mut_slice();
        for &(base, len) in ranges {
            let (now, later) = rest.split_at_mut(len as usize);
            rest = later;
            if self.mem.read(base, now).is_err() {
                return Ok(None);
            }
        }
        Ok(Some(self.b.input(&copy, align)?))
    }

    /// An iovec array argument of readv and its kin.
    pub(super) fn iov(&mut self, i: u8, count: u8, write: bool) -> Result<(), Stop> {
        // The vector calls take an `unsigned long` that import_iovec checks.
        let vector = self.vector(self.value(i), self.value(count), write, false);
        let (base, len) = match vector {
            Vector::Bad(_, None) => {
                self.bad(i);
                return Ok(());
            }
            Vector::Bad(_, Some(len)) => (None, len),
            Vector::Empty => (None, 0),
            Vector::Ranges(ranges, total) => {
                let part = self.vector_part(&ranges, total, write)?;
                if let Some(spot) = part
                    && write
                {
                    self.b.output(
                        spot,
                        total as u32,
                        Span::Result,
                        Piece {
                            to: ranges,
                            above: None,
                        },
                    );
                }
                (part, total)
            }
        };
        let at = self.entry(base, len)?;
        self.b.point_arg(i, at);
        self.b.args[usize::from(count)] = 1;
        Ok(())
    }

    /// Adds one iovec that points to `base`, or to the bad address.
    pub(super) fn entry(&mut self, base: Option<Spot>, len: u64) -> Result<Spot, Stop> {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&BAD_POINTER.to_le_bytes());
        raw[8..].copy_from_slice(&len.to_le_bytes());
        let at = self.b.input(&raw, 8)?;
        if let Some(base) = base {
            self.b.point_at(at, base);
        }
        Ok(at)
    }
}
