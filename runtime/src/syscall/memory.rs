//! Guest memory as the marshaller sees it.

use std::ops::ControlFlow;

/// An address of the guest that cannot be accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("guest address {0:#x} is not accessible")]
pub struct Fault(pub u64);

/// Bytes per page: faults are found page by page.
pub const PAGE: u64 = 4096;

/// One past the highest address of a user process; the kernel refuses ranges that reach beyond it.
pub const TASK_END: u64 = 0x7fff_ffff_f000;

/// The memory of a guest, while one of its threads waits for the answer to a system call.
///
/// Other threads of the guest run on and may change everything between two reads: callers read each thing once and use
/// their copy.
pub trait GuestMemory {
    /// Fills `buf` from `addr`, completely or not at all.
    ///
    /// # Errors
    /// [`Fault`] when a byte is not readable.
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Fault>;

    /// Fills `buf` from `addr` as far as memory can be read; returns how many bytes.
    fn read_some(&self, addr: u64, buf: &mut [u8]) -> usize {
        if self.read(addr, buf).is_ok() {
            return buf.len();
        }
        let good = self.prefix(addr, buf.len() as u64) as usize;
        let Some(head) = buf.get_mut(..good) else { return 0 };
        if self.read(addr, head).is_ok() { good } else { 0 }
    }

    /// Writes `data` to `addr`. Some of it may be written before a fault is found, as the kernel does.
    ///
    /// # Errors
    /// [`Fault`] when a byte is not writable.
    fn write(&self, addr: u64, data: &[u8]) -> Result<(), Fault>;

    /// How many bytes from `addr` on are accessible, at most `len`.
    ///
    /// The default reads the first and the last byte and, only when the last one faults, looks at every page. It proves that
    /// pages are mapped, not that they are writable, and overlooks a hole in the middle: a fault then shows when the range
    /// is used. A memory that knows its mappings should know better.
    fn accessible(&self, addr: u64, len: u64, _write: bool) -> u64 {
        let mut byte = [0];
        if len == 0 || addr >= TASK_END || self.read(addr, &mut byte).is_err() {
            return 0;
        }
        let len = len.min(TASK_END - addr);
        if self.read(addr + len - 1, &mut byte).is_ok() {
            len
        } else {
            self.prefix(addr, len)
        }
    }

    /// How many bytes from `addr` on are readable, at most `len`: one byte of every page is read.
    fn prefix(&self, addr: u64, len: u64) -> u64 {
        let mut byte = [0];
        let len = len.min(TASK_END.saturating_sub(addr));
        let mut at = addr;
        while at < addr + len && self.read(at, &mut byte).is_ok() {
            at = (at & !(PAGE - 1)) + PAGE;
        }
        at.saturating_sub(addr).min(len)
    }

    /// Reads a C string: its bytes without the NUL, or `None` when there is no NUL among the first `room` bytes.
    ///
    /// # Errors
    /// [`Fault`] when memory ends before the NUL.
    fn read_cstr(&self, addr: u64, room: usize) -> Result<Option<Vec<u8>>, Fault> {
        let mut text = Vec::new();
        let mut at = addr;
        while text.len() < room {
            // Up to a page's end at a time, a small piece first: most strings are short, and a read across a page's end
            // could fault behind the NUL.
            let want = if text.is_empty() { 128 } else { PAGE };
            let step = (PAGE - at % PAGE).min(want).min((room - text.len()) as u64);
            let mut piece = [0u8; PAGE as usize];
            let piece = &mut piece[..step as usize];
            self.read(at, piece)?;
            let found = piece.iter().try_for_each(|&b| {
                if b == 0 {
                    return ControlFlow::Break(());
                }
                text.push(b);
                ControlFlow::Continue(())
            });
            if found.is_break() {
                return Ok(Some(text));
            }
            at = at.checked_add(step).ok_or(Fault(at))?;
        }
        Ok(None)
    }
}

impl<M: GuestMemory + ?Sized> GuestMemory for &M {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Fault> {
        (**self).read(addr, buf)
    }

    fn read_some(&self, addr: u64, buf: &mut [u8]) -> usize {
        (**self).read_some(addr, buf)
    }

    fn write(&self, addr: u64, data: &[u8]) -> Result<(), Fault> {
        (**self).write(addr, data)
    }

    fn accessible(&self, addr: u64, len: u64, write: bool) -> u64 {
        (**self).accessible(addr, len, write)
    }
}
