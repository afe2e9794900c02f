//! What the CPU says of itself: the CPUID and XGETBV instructions.
//!
//! See "CPUID" and "XGETBV" in the Intel 64 manual, volume 2.

use core::arch::x86_64::{__cpuid, __cpuid_count};
use std::collections::HashMap;
use std::sync::{LazyLock, PoisonError, RwLock};

type Leaves = HashMap<(u32, u32), [u32; 4]>;

/// What was asked before. In a virtual machine every CPUID is an exit to the host, tens of microseconds, and its answers do not change while
/// the kernel runs, but for the number of the CPU that executes it.
static KNOWN: LazyLock<RwLock<Leaves>> = LazyLock::new(RwLock::default);

/// eax, ebx, ecx, edx of a CPUID leaf and subleaf; all zero for a leaf that this CPU does not have.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(result) = known.get(&(leaf, subleaf)) {
        return *result;
    }
    drop(known);
    let result = ask(leaf, subleaf);
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    known.insert((leaf, subleaf), result);
    result
}

fn ask(leaf: u32, subleaf: u32) -> [u32; 4] {
    // SAFETY: every x86-64 CPU has the instruction; it only writes the four registers, which the intrinsic declares.
    #[allow(unused_unsafe, reason = "safe from Rust 1.94 on")]
    let (last, result) = unsafe { (__cpuid(leaf & 0x8000_0000).eax, __cpuid_count(leaf, subleaf)) };
    if leaf > last {
        [0; 4]
    } else {
        [result.eax, result.ebx, result.ecx, result.edx]
    }
}

/// XCR0: the state components that the kernel has enabled for user programs. `None` when it has not enabled XSAVE at all.
#[must_use]
pub fn xcr0() -> Option<u64> {
    const OSXSAVE: u32 = 1 << 27;
    if cpuid(1, 0)[2] & OSXSAVE == 0 {
        return None;
    }
    // SAFETY: OSXSAVE says that the kernel has set CR4.OSXSAVE, which is all that XGETBV with index 0 needs; it has no other effect
    // than its result.
    Some(unsafe { xgetbv() })
}

/// # Safety
/// CR4.OSXSAVE must be set.
#[target_feature(enable = "xsave")]
unsafe fn xgetbv() -> u64 {
    #[allow(
        unused_unsafe,
        reason = "safe inside a function with the target feature, from some Rust version on"
    )]
    // SAFETY: the caller vouches for CR4.OSXSAVE.
    unsafe {
        core::arch::x86_64::_xgetbv(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sse2_is_there_and_leaves_beyond_the_last_are_empty() {
        assert_ne!(cpuid(1, 0)[3] & 1 << 26, 0);
        assert_eq!(cpuid(0x7fff_ffff, 0), [0; 4]);
        assert!(xcr0().is_none_or(|enabled| enabled & 3 == 3));
    }
}
