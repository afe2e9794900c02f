//! New threads and children of a deputy: made by the thread that stands for the creator, so that credentials, limits, affinity, names and
//! descriptors are inherited as the kernel does it. See the contract "creation".
//!
//! ```text
//! thread   slot reserved, clone3 in the creator's slot ──▶ TRACECLONE: the new thread gets its seat ──▶ Reply: its number
//! child    clone in the creator's slot ──▶ TRACEFORK: the child gets a window of its own and a seat ──▶ Reply: its number
//! ```
//! The new thread, and the child's, sit in the stub's loop, as every thread of a deputy.

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

/// Flags of a child that concern its body alone: thread pointer, places for the number.
const CHILD: u64 =
    (libc::CLONE_SETTLS | libc::CLONE_PARENT_SETTID | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID) as u64;
/// What vfork(2) is.
const VFORK: u64 = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
/// The signal that a child sends at its end.
const EXIT_SIGNAL: u64 = 0xff;

/// What a creation makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A thread of the creator's process.
    Thread,
    /// A child process with a copy of its memory.
    Child,
    /// A child process in the creator's own memory, which waits until the child executes a program or ends: vfork(2), posix_spawn(3).
    Borrower,
}

/// What clone(2) with these flags makes, when that can be made away.
pub fn kind(flags: u64) -> Option<Kind> {
    if is_thread(flags) {
        return Some(Kind::Thread);
    }
    let flags = flags & u64::from(u32::MAX);
    let known = flags & !(CHILD | VFORK | EXIT_SIGNAL) == 0 && flags & EXIT_SIGNAL <= 64;
    match flags & VFORK {
        0 if known => Some(Kind::Child),
        VFORK if known => Some(Kind::Borrower),
        _ => None,
    }
}

/// The flags of clone(2) that one of the calls asks for which make threads and processes from registers alone.
pub fn flags(nr: i64, args: &[u64; 6]) -> Option<u64> {
    match nr {
        libc::SYS_clone => Some(args[0]),
        libc::SYS_fork => Some(libc::SIGCHLD as u64),
        libc::SYS_vfork => Some(VFORK | libc::SIGCHLD as u64),
        _ => None,
    }
}

/// What a forwarded call asks to be made, when it asks for that and nothing else.
pub fn asks(call: &Call) -> Option<Kind> {
    let plain = call.size == 0 && call.relocs.is_empty() && call.outputs.is_empty();
    let clone = i64::from(call.nr) == libc::SYS_clone;
    (plain && clone).then(|| kind(call.args[0])).flatten()
}

/// Whether a call is, or may be, one that makes something.
pub fn creates(nr: i64) -> bool {
    matches!(nr, libc::SYS_clone | libc::SYS_fork | libc::SYS_vfork)
}

/// Creations under way: by the creator, the slot that the new thread gets; none for a child.
#[derive(Debug, Default)]
pub struct Births(BTreeMap<i32, Option<u32>>);

impl Births {
    /// Reserves a slot that neither a thread has nor another creation; none when all are taken.
    pub fn reserve(&mut self, creator: i32, seats: &[(i32, u32)]) -> Option<u32> {
        let used: HashSet<u32> = seats.iter().map(|(_, slot)| *slot).chain(self.slots()).collect();
        let slot = (0..mosix_wire::limits::THREADS as u32).find(|slot| !used.contains(slot))?;
        self.0.insert(creator, Some(slot));
        Some(slot)
    }

    /// `creator` is making a child.
    pub fn child(&mut self, creator: i32) {
        self.0.insert(creator, None);
    }

    /// The slot of the thread that `creator` is making.
    pub fn of(&self, creator: i32) -> Option<u32> {
        self.0.get(&creator).copied().flatten()
    }

    /// Whether `creator` is making a child.
    pub fn is_child(&self, creator: i32) -> bool {
        self.0.get(&creator) == Some(&None)
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
        self.0.values().copied().flatten()
    }
}

/// The call by which the stub makes a child. It comes back in the child too, but is never seen there: the child begins elsewhere.
pub fn fork(flags: u64) -> Op {
    Op::may(libc::SYS_clone, [flags & EXIT_SIGNAL, 0, 0, 0, 0, 0])
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
        // What fork is in glibc, musl and the kernel.
        for flags in [0x0120_0011, 17, 0] {
            assert_eq!(kind(flags), Some(Kind::Child), "{flags:#x}");
        }
        // What vfork is, and posix_spawn, and Go's.
        for flags in [0x4111, 0x4100] {
            assert_eq!(kind(flags), Some(Kind::Borrower), "{flags:#x}");
        }
        // Memory shared for good, a parent's sibling, shared descriptors, a pidfd, a signal that is none.
        for flags in [0x111, 0x4011, 0x8011, 0x411, 0x1011, 0x41] {
            assert_eq!(kind(flags), None, "{flags:#x}");
        }
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
