//! Installing a seccomp filter with a notification listener.
//!
//! seccompiler compiles rules but cannot install a notify filter (it takes the listener's number for an error), so the
//! product installs with its own call. See [seccomp(2)](https://man7.org/linux/man-pages/man2/seccomp.2.html).

use nix::errno::Errno;
use std::os::fd::{FromRawFd, OwnedFd};

/// One classic-BPF instruction; the same four fields as seccompiler's `sock_filter`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instruction {
    /// Operation code.
    pub code: u16,
    /// Instructions to skip when the comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Constant.
    pub k: u32,
}

/// How a filter was installed.
#[derive(Debug)]
pub struct Installed {
    /// The descriptor that notifications arrive on; close-on-exec.
    pub listener: OwnedFd,
    /// The kernel knows `WAIT_KILLABLE_RECV` (5.19): a received notification is interrupted by nothing but death.
    pub wait_killable: bool,
    /// no_new_privs had to be set because the caller lacks CAP_SYS_ADMIN: set-uid programs run without their privilege.
    pub no_new_privs: bool,
}

/// Whether no_new_privs may be set when the kernel demands it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privs {
    /// Set it only when the kernel refuses otherwise (no CAP_SYS_ADMIN).
    WhenNeeded,
    /// Always set it first.
    NoNew,
}

/// Installs `program` for the calling thread with a new listener.
///
/// # Errors
/// `EBUSY` when a filter with a listener is in the thread's chain already (a nested `mosix run`, some containers), `EINVAL`
/// when the kernel has no user notification (before 5.0) or the program is malformed, and the errors of seccomp(2).
pub fn install_with_listener(program: &[Instruction], privs: Privs) -> Result<Installed, Errno> {
    let mut no_new_privs = false;
    if privs == Privs::NoNew {
        nix::sys::prctl::set_no_new_privs()?;
        no_new_privs = true;
    }
    let mut flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    loop {
        match set_mode_filter(program, flags) {
            Ok(listener) => {
                let wait_killable = flags & libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV != 0;
                return Ok(Installed {
                    listener,
                    wait_killable,
                    no_new_privs,
                });
            }
            Err(Errno::EACCES) if !no_new_privs => {
                nix::sys::prctl::set_no_new_privs()?;
                no_new_privs = true;
            }
            Err(Errno::EINVAL) if flags & libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV != 0 => {
                flags &= !libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
            }
            Err(e) => return Err(e),
        }
    }
}

/// Calls seccomp(SET_MODE_FILTER) with `flags`, which hold NEW_LISTENER, and owns the descriptor that it returns.
fn set_mode_filter(program: &[Instruction], flags: libc::c_ulong) -> Result<OwnedFd, Errno> {
    let mut raw: Vec<libc::sock_filter> = program
        .iter()
        .map(|i| libc::sock_filter {
            code: i.code,
            jt: i.jt,
            jf: i.jf,
            k: i.k,
        })
        .collect();
    let len = u16::try_from(raw.len()).map_err(|_| Errno::EINVAL)?;
    let prog = libc::sock_fprog {
        len,
        filter: raw.as_mut_ptr(),
    };
    // SAFETY: `prog` points at `len` initialised instructions that live until the call returns; the kernel copies them.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const prog) };
    let fd = Errno::result(fd)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: with NEW_LISTENER the result is a descriptor that the kernel just made for this process; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sizes that this kernel uses for its notification structures, in bytes: notification, response, seccomp_data.
///
/// # Errors
/// `EINVAL` when the kernel has no user notification.
pub fn notif_sizes() -> Result<(u16, u16, u16), Errno> {
    let mut sizes = libc::seccomp_notif_sizes {
        seccomp_notif: 0,
        seccomp_notif_resp: 0,
        seccomp_data: 0,
    };
    // SAFETY: GET_NOTIF_SIZES writes exactly one `seccomp_notif_sizes` to the given place, which is one.
    let r = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, &raw mut sizes) };
    Errno::result(r)?;
    Ok((sizes.seccomp_notif, sizes.seccomp_notif_resp, sizes.seccomp_data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_reports_sizes_that_hold_our_structures() {
        let (n, r, d) = notif_sizes().unwrap();
        assert!(usize::from(n) >= size_of::<libc::seccomp_notif>());
        assert!(usize::from(r) >= size_of::<libc::seccomp_notif_resp>());
        assert!(usize::from(d) >= size_of::<libc::seccomp_data>());
    }

    #[test]
    fn an_empty_program_is_refused() {
        // Runs in a thread of its own: nothing may stick to the test's other threads even if a kernel accepted it.
        let r = std::thread::spawn(|| install_with_listener(&[], Privs::WhenNeeded).map(|_| ()))
            .join()
            .unwrap();
        assert_eq!(r, Err(Errno::EINVAL));
    }
}
