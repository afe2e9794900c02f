//! kcmp(2): whether two processes have one kernel object.

use nix::errno::Errno;
use std::cmp::Ordering;

/// KCMP_VM of linux/kcmp.h.
const KCMP_VM: libc::c_int = 1;

/// Compares the address spaces of two processes. The order of different ones means nothing, but it is the same at each call.
///
/// # Errors
/// Those of kcmp(2): a process is gone, or may not be looked at.
pub fn memory(a: i32, b: i32) -> Result<Ordering, Errno> {
    // SAFETY: kcmp takes numbers alone and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_VM, 0, 0) };
    match Errno::result(result)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(Errno::EINVAL),
    }
}
