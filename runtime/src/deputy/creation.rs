//! New threads of a deputy: made by the thread that stands for the creator, so that credentials, limits, affinity and names are inherited as
//! the kernel does it. See the contract "creation".
//!
//! ```text
//! call clone ──▶ slot reserved, clone3 in the creator's slot ──▶ TRACECLONE: the new thread gets its seat ──▶ Reply: its number
//! ```
//! The new thread sits in the stub's loop, as every thread of a deputy; it is taken out again by a script that ends it.

use crate::process::window::slot_address;
use mosix_loader::script::Op;
use mosix_loader::script::abi::{OP_SPAWN, SLOT_BUFFER, SLOT_BUFFER_SIZE, SLOT_STACK_TOP};
use mosix_wire::call::Call;
use std::collections::{BTreeMap, HashSet};

/// Flags that every thread library uses; without one of them the new task shares less than a deputy's threads do.
const SHARED: u64 =
    (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;
/// Flags that concern the body alone, or both halves alike: semaphore undo, thread pointer, places for the number; the one that musl sets
/// and that means nothing; the signal at the end, which a thread does not send.
const HARMLESS: u64 = (libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_SETTID
    | libc::CLONE_CHILD_CLEARTID
    | libc::CLONE_DETACHED) as u64
    | 0xff;
/// Bytes of clone_args up to the stack's size, all that is used.
const CLONE_ARGS: u64 = 64;

/// Whether clone(2) with these flags makes a thread that can be made away.
pub fn is_thread(flags: u64) -> bool {
    // The upper half is no part of clone's flags.
    let flags = flags & u64::from(u32::MAX);
    flags & SHARED == SHARED && flags & !(SHARED | HARMLESS) == 0
}

/// Whether a forwarded call asks for a thread, and nothing else.
pub fn asks(call: &Call) -> bool {
    i64::from(call.nr) == libc::SYS_clone
        && call.size == 0
        && call.relocs.is_empty()
        && call.outputs.is_empty()
        && is_thread(call.args[0])
}

/// Creations under way: by the creator, the slot that the new thread gets.
#[derive(Debug, Default)]
pub struct Births(BTreeMap<i32, u32>);

impl Births {
    /// Reserves a slot that neither a thread has nor another creation; none when all are taken.
    pub fn reserve(&mut self, creator: i32, seats: &[(i32, u32)]) -> Option<u32> {
        let used: HashSet<u32> = seats
            .iter()
            .map(|(_, slot)| *slot)
            .chain(self.0.values().copied())
            .collect();
        let slot = (0..mosix_wire::limits::THREADS as u32).find(|slot| !used.contains(slot))?;
        self.0.insert(creator, slot);
        Some(slot)
    }

    /// The slot of the thread that `creator` is making.
    pub fn of(&self, creator: i32) -> Option<u32> {
        self.0.get(&creator).copied()
    }

    /// The creation is over, or its creator is gone.
    pub fn over(&mut self, creator: i32) {
        self.0.remove(&creator);
    }

    /// A thread that is making another one.
    pub fn any(&self) -> Option<i32> {
        self.0.keys().next().copied()
    }

    /// The slots that are reserved.
    pub fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.values().copied()
    }
}

/// The call by which the stub makes a thread for slot `new`, and the structure that it reads, which lies at `at` in the process.
pub fn spawn(flags: u64, new: u32, at: u64) -> (Op, [u8; CLONE_ARGS as usize]) {
    let mut args = [0; CLONE_ARGS as usize];
    let mut put = |index: usize, value: u64| args[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
    put(0, SHARED | flags & libc::CLONE_SYSVSEM as u64);
    // Room below the top for the call that enters the loop; the stack ends at a multiple of 16.
    put(5, slot_address(new) + SLOT_BUFFER + SLOT_BUFFER_SIZE);
    put(6, SLOT_STACK_TOP - SLOT_BUFFER - SLOT_BUFFER_SIZE);
    let call = [at, CLONE_ARGS, slot_address(new), 0, 0, 0];
    let mut op = Op::may(libc::SYS_clone3, call);
    op.flags |= OP_SPAWN;
    (op, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_thread_libraries_ask_for_is_a_thread_and_nothing_else_is() {
        // glibc, musl, Go.
        for flags in [0x003d_0f00, 0x007d_0f00, 0x0005_0f00] {
            assert!(is_thread(flags), "{flags:#x}");
        }
        let thread = 0x003d_0f00;
        // fork, vfork, and threads with a flag too many or too few: untraced, a namespace, a pidfd, descriptors of their own.
        for flags in [
            17,
            0x4111,
            thread | 0x0080_0000,
            thread | 0x2000_0000,
            thread | 0x1000,
            thread & !0x400,
            thread & !0x200,
        ] {
            assert!(!is_thread(flags), "{flags:#x}");
        }
    }

    #[test]
    fn a_slot_is_given_once() {
        let mut births = Births::default();
        let seats = [(100, 0), (101, 2)];
        assert_eq!(births.reserve(100, &seats), Some(1));
        assert_eq!(births.reserve(101, &seats), Some(3));
        assert_eq!(births.any(), Some(100));
        births.over(100);
        assert_eq!((births.of(100), births.of(101)), (None, Some(3)));
        assert_eq!(births.reserve(100, &seats), Some(1));
    }
}
