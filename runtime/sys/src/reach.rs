//! How much of a guest's range can be read, without copying it.
//!
//! See [process_vm_readv(2)](https://man7.org/linux/man-pages/man2/process_vm_readv.2.html): a transfer ends at the first remote
//! element that cannot be read, so one element of one byte for each page finds the first bad page.

use std::io;

const PAGE: u64 = 4096;
/// Elements of one call (IOV_MAX).
const BATCH: usize = 1024;

/// Returns how many bytes from `address` on thread `tid` could read, at most `len`. Pages are faulted in as a read would.
///
/// # Errors
/// ESRCH when the thread is gone, EPERM without ptrace rights; never EFAULT.
pub fn readable(tid: i32, address: u64, len: u64) -> io::Result<u64> {
    let Some(end) = address.checked_add(len) else {
        return Ok(0);
    };
    let mut at = address;
    let mut bytes = [0u8; BATCH];
    while at < end {
        let mut remote = Vec::new();
        let mut page = at;
        while page < end && remote.len() < BATCH {
            remote.push(libc::iovec {
                iov_base: page as *mut libc::c_void,
                iov_len: 1,
            });
            page = (page & !(PAGE - 1)).saturating_add(PAGE);
        }
        let local = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: remote.len(),
        };
        // SAFETY: `local` has room for one byte of each remote element; remote addresses are checked by the kernel.
        let count = unsafe { libc::process_vm_readv(tid, &local, 1, remote.as_ptr(), remote.len() as u64, 0) };
        let good = match usize::try_from(count) {
            Ok(count) => count,
            Err(_) => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EFAULT) => 0,
                error => return Err(error),
            },
        };
        if let Some(bad) = remote.get(good) {
            // What was found up to here ends where the bad element begins.
            return Ok(bad.iov_base as u64 - address);
        }
        at = page;
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_unreadable_page() {
        let len = 4000 * PAGE as usize;
        // SAFETY: a fresh anonymous mapping, used by address alone; one page is taken away again below.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        let (start, me) = (base as u64, std::process::id() as i32);
        assert_eq!(readable(me, start, len as u64).unwrap(), len as u64);
        let hole = start + 3000 * PAGE;
        // SAFETY: the page belongs to the mapping above and holds nothing.
        let protected = unsafe { libc::mprotect(hole as *mut _, PAGE as usize, libc::PROT_NONE) };
        assert_eq!(protected, 0);
        assert_eq!(readable(me, start, len as u64).unwrap(), 3000 * PAGE);
        assert_eq!(readable(me, start + 100, len as u64 - 100).unwrap(), 3000 * PAGE - 100);
        assert_eq!(readable(me, hole - 1, 2).unwrap(), 1);
        assert_eq!(readable(me, hole, 1).unwrap(), 0);
        assert_eq!(readable(me, hole + PAGE, PAGE).unwrap(), PAGE);
        assert_eq!(readable(me, 16, 100).unwrap(), 0);
        assert_eq!(readable(me, u64::MAX - 3, 100).unwrap(), 0);
        assert_eq!(readable(me, start, 0).unwrap(), 0);
        assert!(readable(i32::MAX, start, 1).is_err());
        // SAFETY: the whole mapping made above; nothing refers to it any more.
        unsafe { libc::munmap(base, len) };
    }
}
