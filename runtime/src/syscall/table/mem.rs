//! Memory calls: native on a host for anonymous memory, as long as they cannot reach the window.
//!
//! BPF compares single arguments, so a range test is built from two bounds that need no addition: a range that starts at
//! or above [`WINDOW_END`] (ranges grow upward), or one that starts below [`LOW_START`] and is at most [`LOW_LENGTH`]
//! long. What passes neither goes to the agent, which does the exact arithmetic ([`crate::syscall::emulate::memory`]) and
//! lets the kernel continue: these calls have all their arguments in registers.

use super::kinds::{
    Arg::*, Cond, Otherwise, Restart, Row, at_least, at_most, below, comes_home, home, int_is, masked, native,
    native_if,
};

/// First address of the window (stub, slots, arena).
pub const WINDOW_START: u64 = 0x7e80_0000_0000;

/// First address behind everything the window may hold. It ends below the lowest randomised `mmap_base` (about
/// 0x7efb00000000), so that ordinary mappings lie above it and pass with one comparison.
pub const WINDOW_END: u64 = 0x7ec0_0000_0000;

/// A range that starts below this and is no longer than [`LOW_LENGTH`] ends at or below the window.
pub(super) const LOW_START: u64 = 0x7e00_0000_0000;

/// See [`LOW_START`]; 512 GiB.
pub(super) const LOW_LENGTH: u64 = WINDOW_START - LOW_START;

/// Addresses a user process can have.
const TASK: u64 = 1 << 47;

const RWX: u64 = 7;
const HIGH: Cond = at_least(0, WINDOW_END);
const LOW: Cond = below(0, LOW_START);
const SHORT: Cond = at_most(1, LOW_LENGTH);

/// Advice that touches nothing but the range itself. Not MERGEABLE (side channel between tenants), REMOVE and HWPOISON
/// (other objects), POPULATE (memory at once), GUARD (absent on older hosts).
const ADVICE: [u32; 16] = [0, 1, 2, 3, 4, 8, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21];

macro_rules! advised {
    ($($n:literal)*) => { &[$(&[HIGH, int_is(2, ADVICE[$n])], &[LOW, SHORT, int_is(2, ADVICE[$n])]),*] };
}

const MAP_PRIVATE_ANON: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
/// Type of the mapping, ANONYMOUS, FIXED, LOCKED, HUGETLB, and GROWSDOWN, which escapes RLIMIT_DATA. POPULATE, NORESERVE, STACK, 32BIT
/// are free.
const MAP_CHECKED: u64 =
    0xf | (libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_LOCKED | libc::MAP_HUGETLB | libc::MAP_GROWSDOWN) as u64;
const MAP_FIXED_ANON: u64 = MAP_PRIVATE_ANON | libc::MAP_FIXED as u64;
const NOT_FIXED: Cond = masked(3, 2, 0);
const NEW_HIGH: Cond = at_least(4, WINDOW_END);
const NEW_LOW: Cond = below(4, LOW_START);
const NEW_SHORT: Cond = at_most(2, LOW_LENGTH);
/// Growth stays below the end of the address space, so that no sum of ours overflows.
const SANE: Cond = at_most(2, TASK);

pub(super) const ROWS: &[Row] = &[
    native_if(
        9,
        "mmap",
        &[Addr, Int, Int, Int, Fd, Int],
        Restart::None,
        &[
            // Without MAP_FIXED the kernel never replaces a mapping, whatever the hint.
            &[masked(3, MAP_CHECKED, MAP_PRIVATE_ANON)],
            &[masked(3, MAP_CHECKED, MAP_FIXED_ANON), HIGH],
            &[masked(3, MAP_CHECKED, MAP_FIXED_ANON), LOW, SHORT],
        ],
        Otherwise::Emulate,
    )
    .partial("private memory is native; files are mapped in place, privately or shared to be read; other shared memory comes home"),
    native_if(
        10,
        "mprotect",
        &[Addr, Int, Int],
        Restart::None,
        &[&[HIGH, masked(2, !RWX, 0)], &[LOW, SHORT, masked(2, !RWX, 0)]],
        Otherwise::Emulate,
    ),
    native_if(
        11,
        "munmap",
        &[Addr, Int],
        Restart::None,
        &[&[HIGH], &[LOW, SHORT]],
        Otherwise::Emulate,
    ),
    native(12, "brk", &[Addr], Restart::None),
    native_if(
        25,
        "mremap",
        &[Addr, Int, Int, Int, Addr],
        Restart::None,
        &[
            &[HIGH, SANE, NOT_FIXED],
            &[LOW, SHORT, SANE, NOT_FIXED],
            &[HIGH, SANE, NEW_HIGH],
            &[HIGH, NEW_LOW, NEW_SHORT],
            &[LOW, SHORT, SANE, NEW_HIGH],
            &[LOW, SHORT, NEW_LOW, NEW_SHORT],
        ],
        Otherwise::Emulate,
    ),
    home(26, "msync", &[Int, Int, Int], Restart::None)
        .note("of memory shared with a file, after what was written there has gone home; of other memory native"),
    native(27, "mincore", &[Addr, Int, Addr], Restart::None),
    native_if(
        28,
        "madvise",
        &[Addr, Int, Int],
        Restart::None,
        advised!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15),
        Otherwise::Emulate,
    )
    .partial("advice that reaches beyond the process's anonymous memory comes home"),
    comes_home(149, "mlock", Restart::None, "locks are taken at home"),
    comes_home(150, "munlock", Restart::None, "locks are taken at home"),
    comes_home(151, "mlockall", Restart::None, "locks are taken at home"),
    comes_home(152, "munlockall", Restart::None, "locks are taken at home"),
    comes_home(216, "remap_file_pages", Restart::None, "file mappings"),
    comes_home(237, "mbind", Restart::None, "NUMA nodes are the node's own"),
    comes_home(238, "set_mempolicy", Restart::None, "NUMA nodes are the node's own"),
    comes_home(239, "get_mempolicy", Restart::None, "NUMA nodes are the node's own"),
    comes_home(256, "migrate_pages", Restart::None, "NUMA nodes are the node's own"),
    comes_home(279, "move_pages", Restart::None, "NUMA nodes are the node's own"),
    comes_home(
        323,
        "userfaultfd",
        Restart::None,
        "a process that handles its own faults stays at home",
    ),
    native(324, "membarrier", &[Int, Int, Int], Restart::None),
    comes_home(325, "mlock2", Restart::None, "locks are taken at home"),
    comes_home(329, "pkey_mprotect", Restart::None, "protection keys do not travel"),
    comes_home(330, "pkey_alloc", Restart::None, "protection keys do not travel"),
    comes_home(331, "pkey_free", Restart::None, "protection keys do not travel"),
    comes_home(440, "process_madvise", Restart::None, "other processes' memory"),
    comes_home(447, "memfd_secret", Restart::None, "secret memory does not travel"),
    comes_home(448, "process_mrelease", Restart::None, "other processes' memory"),
    comes_home(
        450,
        "set_mempolicy_home_node",
        Restart::None,
        "NUMA nodes are the node's own",
    ),
    comes_home(453, "map_shadow_stack", Restart::None, "shadow stacks do not travel"),
    comes_home(462, "mseal", Restart::None, "sealed at home, where the mapping stays"),
    comes_home(310, "process_vm_readv", Restart::None, "other processes' memory"),
    comes_home(311, "process_vm_writev", Restart::None, "other processes' memory"),
    // Futexes: all of them, because glibc joins threads on one that is not private. Memory shared with another process
    // is excluded when a process asks to move, not by the flag.
    native(202, "futex", &[Addr, Int, Int, Addr, Addr, Int], Restart::Sys),
    native(449, "futex_waitv", &[Addr, Int, Int, Addr, Int], Restart::Sys),
    native(454, "futex_wake", &[Addr, Int, Int, Int], Restart::None),
    native(455, "futex_wait", &[Addr, Int, Int, Int, Addr, Int], Restart::Sys),
    native(456, "futex_requeue", &[Addr, Int, Int, Int], Restart::None),
    native(273, "set_robust_list", &[Addr, Int], Restart::None),
    native_if(
        274,
        "get_robust_list",
        &[Int, Addr, Addr],
        Restart::None,
        &[&[int_is(0, 0)]],
        Otherwise::Return,
    ),
    native(218, "set_tid_address", &[Addr], Restart::None),
    native(334, "rseq", &[Addr, Int, Int, Int], Restart::None)
        .note("off from birth; a program that registers by itself sees the host's CPU numbers"),
    native_if(
        158,
        "arch_prctl",
        &[Int, Addr],
        Restart::None,
        &[
            // SET_GS, SET_FS, GET_FS, GET_GS; GET_CPUID; GET_XCOMP_SUPP, GET_XCOMP_PERM; CET_STATUS of old glibc (EINVAL).
            &[int_is(0, 0x1001)],
            &[int_is(0, 0x1002)],
            &[int_is(0, 0x1003)],
            &[int_is(0, 0x1004)],
            &[int_is(0, 0x1011)],
            &[int_is(0, 0x1021)],
            &[int_is(0, 0x1022)],
            &[int_is(0, 0x3001)],
        ],
        Otherwise::Return,
    )
    .partial("AMX permission and shadow stacks come home"),
    comes_home(154, "modify_ldt", Restart::None, "an LDT does not travel"),
    native(309, "getcpu", &[Addr, Addr, Addr], Restart::None),
];
