//! Small trials of kernel features, for `mosix ctl check`: each does the thing once and says what the kernel answered.

use linux_raw_sys::general::pm_scan_arg;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;

const PR_SET_MM: i32 = 35;
const PR_SET_MM_MAP_SIZE: u64 = 15;
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// Whether prctl(PR_SET_MM_MAP) exists: asks for the size of its structure, which needs no privilege.
///
/// # Errors
/// `EINVAL` when the kernel was built without CONFIG_CHECKPOINT_RESTORE.
pub fn set_mm_map() -> Result<(), Errno> {
    let mut size: u32 = 0;
    // SAFETY: PR_SET_MM_MAP_SIZE writes one u32 behind the third argument, which is one.
    let r = unsafe { libc::prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, &raw mut size, 0, 0) };
    Errno::result(r).map(drop)
}

/// Whether the PAGEMAP_SCAN ioctl exists (Linux 6.7): scans an empty range of this process.
///
/// # Errors
/// `ENOTTY` when it does not.
pub fn pagemap_scan() -> Result<(), Errno> {
    let file = File::open("/proc/self/pagemap").map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    // SAFETY: plain numbers; all-zero is valid.
    let mut args: pm_scan_arg = unsafe { std::mem::zeroed() };
    args.size = size_of::<pm_scan_arg>() as u64;
    // SAFETY: the structure has the size that it names; with no output vector the kernel writes only into it.
    let r = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut args) };
    Errno::result(r).map(drop)
}

/// Creates a child with pid `pid` in the pid namespace for the caller's children, which ends at once, and waits for it.
///
/// # Errors
/// `EPERM` without CAP_CHECKPOINT_RESTORE over the namespace, `EEXIST` when the pid is taken, `EINVAL` beyond pid_max or before
/// Linux 5.5.
pub fn clone_with_pid(pid: i32) -> Result<(), Errno> {
    let wanted = [pid];
    // SAFETY: plain numbers; all-zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    args.set_tid = wanted.as_ptr() as u64;
    args.set_tid_size = 1;
    // SAFETY: without CLONE_VM the child has a copy of memory; it makes one system call and ends.
    let child = unsafe {
        let child = libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>());
        if child == 0 {
            libc::_exit(0);
        }
        child
    };
    let child = i32::try_from(Errno::result(child)?).map_err(|_| Errno::EOVERFLOW)?;
    crate::process::wait_for(child, true);
    Ok(())
}
