//! Vectors of strings: argv and envp of a program to be executed.
//!
//! Whatever the kernel would find wrong with them home's kernel is to find, in its own order: a string that is too long is sent as one that
//! is too long, an address that faults as one that faults, and of vectors that are too large so much that they are too large.

use super::{Gather, Spot, Stop};
use crate::syscall::BAD_POINTER;
use crate::syscall::memory::{Fault, GuestMemory, PAGE};

/// Longest string with its NUL (MAX_ARG_STRLEN).
pub const ARG_LENGTH: usize = 32 * PAGE as usize;

/// More bytes of strings and pointers no program gets: three quarters of the kernel's stack of 8 MiB.
pub const ARG_TOTAL: u64 = 6 << 20;

/// Reads a vector's pointers, a page at most at a time: it may end just before memory does.
struct Pointers<'a, M> {
    mem: &'a M,
    at: u64,
    page: Vec<u8>,
    used: usize,
}

impl<M: GuestMemory> Pointers<'_, M> {
    fn next(&mut self) -> Result<u64, Fault> {
        if self.used == self.page.len() {
            let room = (PAGE - self.at % PAGE).min(512) / 8 * 8;
            // One that crosses a page's end is read alone.
            self.page.resize(room.max(8) as usize, 0);
            self.used = 0;
            self.mem
                .read(self.at, &mut self.page)
                .inspect_err(|_| self.page.clear())?;
            self.at = self.at.checked_add(self.page.len() as u64).ok_or(Fault(self.at))?;
        }
        let word = super::vectors::u64_at(&self.page, self.used);
        self.used += 8;
        Ok(word)
    }
}

impl<M: GuestMemory> Gather<'_, M> {
    /// A vector of strings that ends with a null pointer.
    pub(super) fn strings(&mut self, i: u8) -> Result<(), Stop> {
        let mut pointers = Pointers {
            mem: self.mem,
            at: self.value(i),
            page: Vec::new(),
            used: 0,
        };
        let mut parts: Vec<Spot> = Vec::new();
        let mut total = 0;
        let end = loop {
            match pointers.next() {
                Ok(0) => break &[0][..],
                Ok(pointer) => match self.mem.read_cstr(pointer, ARG_LENGTH) {
                    Ok(Some(mut text)) => {
                        text.push(0);
                        total += text.len() as u64 + 8;
                        parts.push(self.b.input(&text, 1)?);
                    }
                    Ok(None) => {
                        let mut long = vec![b'x'; ARG_LENGTH];
                        long.push(0);
                        parts.push(self.b.input(&long, 1)?);
                        break &[0];
                    }
                    Err(_) => break &[BAD_POINTER, 0],
                },
                // No vector at all.
                Err(_) if parts.is_empty() => {
                    self.bad(i);
                    return Ok(());
                }
                Err(_) => break &[BAD_POINTER, 0],
            }
            if total > ARG_TOTAL {
                break &[0];
            }
        };
        let at = self.b.vector(&parts, end)?;
        self.b.point_arg(i, at);
        Ok(())
    }
}
