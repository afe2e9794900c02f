//! What a stop did to a thread inside a system call, and how the call goes on.
//!
//! The kernel shows an interrupted call's fate in rax at the stop (`include/linux/errno.h`): internal restart codes, or, for some calls,
//! plain EINTR although no signal was delivered. Here those results become "issue it again" or "finish it at home".

use super::rest::{self, Timeout};
use super::waited::monotonic;
use crate::syscall::table::{self, Restart};
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace::Regs;
use std::time::Duration;

/// Restart after any signal unless a handler without SA_RESTART runs.
pub const ERESTARTSYS: i64 = -512;
/// Restart always.
pub const ERESTARTNOINTR: i64 = -513;
/// Restart unless a handler runs.
pub const ERESTARTNOHAND: i64 = -514;
/// Restart through restart_syscall(2), which knows the deadline.
pub const ERESTART_RESTARTBLOCK: i64 = -516;
/// EINTR.
pub const EINTR: i64 = -4;

/// How a thread stood when it stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// In user code, or its call had ended: registers are as they should be.
    User,
    /// In a call that starts again; the kernel that resumes the registers sees to it.
    Again,
    /// In a call whose deadline only the kernel's restart block of this very task knows.
    Block,
    /// A blocking write or send that this stop cut short after so many bytes.
    Short(u64),
}

/// System calls that return EINTR for any stop, never a restart code (review: five measured, the rest by kernel source).
fn returns_eintr(nr: u64) -> bool {
    let nr = nr as i64;
    matches!(
        nr,
        libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
            | libc::SYS_epoll_pwait2
            | libc::SYS_semop
            | libc::SYS_semtimedop
            | libc::SYS_rt_sigtimedwait
            | libc::SYS_io_getevents
            // When the rest of the time-out cannot be written where it was.
            | libc::SYS_select
            | libc::SYS_pselect6
            | libc::SYS_ppoll
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_recvmmsg
            | libc::SYS_sendto
            | libc::SYS_sendmsg
            | libc::SYS_sendmmsg
            | libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_connect
            | libc::SYS_read
            | libc::SYS_readv
            | libc::SYS_write
            | libc::SYS_writev
    )
}

/// Whether a call only looks, or does what it does at once: a signal that comes meanwhile is none that ended it.
pub fn never_waits(nr: u64, args: &[u64; 6]) -> bool {
    match nr as i64 {
        libc::SYS_poll => args[2] as i32 == 0,
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => args[3] as i32 == 0,
        // What they make must be known: they are not ended half-way.
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_execve | libc::SYS_execveat => true,
        _ => false,
    }
}

/// Takes back a restart that the kernel has decided but the thread has not executed: stopped once more before its call's instruction, it
/// shows the call's number where a result would be, and a write, number 1, would seem to have written one byte.
pub fn take_back(tid: i32, regs: &mut Regs) {
    let (nr, shown) = (regs.orig_rax(), regs.rax());
    if (nr as i64) < 0 || (shown != nr && shown != libc::SYS_restart_syscall as u64) {
        return;
    }
    let mut instruction = [0; 2];
    if ProcMem::guest(tid).read(regs.rip(), &mut instruction).is_err() || instruction != [0x0f, 0x05] {
        return;
    }
    let code = match table::row(nr as u32).restart {
        _ if shown != nr => ERESTART_RESTARTBLOCK,
        Restart::Sys => ERESTARTSYS,
        Restart::NoHand | Restart::Eintr | Restart::Timed => ERESTARTNOHAND,
        Restart::NoInt | Restart::None => ERESTARTNOINTR,
    };
    regs.set_rip(regs.rip() + 2);
    regs.set_rax(code as u64);
}

/// Classifies a thread stopped by PTRACE_INTERRUPT. A call that is to start again keeps its number in orig_rax and gets a restart code in
/// rax, so that whichever kernel resumes these registers decides about handlers and SA_RESTART as it does natively.
/// `blocking` tells whether a descriptor blocks (asked only for short writes).
pub fn settle(regs: &mut Regs, blocking: impl FnOnce(i32) -> bool) -> Standing {
    let (nr, result) = (regs.orig_rax(), regs.rax() as i64);
    if (nr as i64) < 0 {
        return Standing::User;
    }
    if matches!(result, ERESTARTNOHAND | ERESTART_RESTARTBLOCK) && never_waits(nr, &regs.args()) {
        // It was met on its way through: no handler could natively have ended it.
        regs.set_rax(ERESTARTNOINTR as u64);
        return Standing::Again;
    }
    let standing = match result {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => return Standing::Again,
        ERESTART_RESTARTBLOCK => Standing::Block,
        EINTR if returns_eintr(nr) => Standing::Again,
        short
            if matches!(nr as i64, libc::SYS_write | libc::SYS_sendto)
                && short > 0
                && (short as u64) < regs.rdx()
                && blocking(regs.rdi() as i32) =>
        {
            Standing::Short(short as u64)
        }
        _ => {
            // The call has ended: keep its result, but let no later stop take it for an interrupted call.
            regs.set_orig_rax(u64::MAX);
            return Standing::User;
        }
    };
    // These calls end with EINTR when a handler runs and go on when none does: what -514 says.
    regs.set_rax(ERESTARTNOHAND as u64);
    standing
}

/// When the time-out that the call's arguments show began to count: it was interrupted now, after it had `waited`.
pub fn since(regs: &Regs, raw: u64, waited: Option<Duration>) -> Option<i64> {
    let now = monotonic();
    let timeout = rest::timeout(regs.orig_rax(), &regs.args())?;
    // Without a time-out these calls answer with -512.
    if matches!(timeout, Timeout::Socket { .. }) && raw as i64 != EINTR {
        return None;
    }
    // The arguments show the rest already.
    if rest::writes_rest(regs.orig_rax()) && raw as i64 != EINTR {
        return Some(now);
    }
    let waited = waited.unwrap_or_default();
    Some(now.saturating_sub(i64::try_from(waited.as_nanos()).unwrap_or(0)))
}

/// Whether a call that starts again never waits: its time-out is zero. No signal may end it.
pub fn brief(tid: i32, regs: &Regs) -> bool {
    let args = regs.args();
    let Some(timeout) = rest::timeout(regs.orig_rax(), &args) else {
        return false;
    };
    let read = |at| {
        let mut bytes = [0; 16];
        ProcMem::guest(tid).read(at, &mut bytes).ok().map(|()| bytes)
    };
    rest::shown(timeout, &args, read).is_some_and(|time| time.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(nr: i64, result: i64) -> Regs {
        let mut regs = Regs([0; 27]);
        regs.set_orig_rax(nr as u64);
        regs.set_rax(result as u64);
        regs.set_rip(0x1002);
        regs.set_rdx(300_000);
        regs
    }

    #[test]
    fn restart_codes_stay() {
        for code in [ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND] {
            let mut regs = regs(libc::SYS_read, code);
            assert_eq!(settle(&mut regs, |_| true), Standing::Again);
            assert_eq!(
                (regs.rip(), regs.rax() as i64, regs.orig_rax()),
                (0x1002, code, libc::SYS_read as u64)
            );
        }
    }

    #[test]
    fn eintr_class_starts_again_and_others_do_not() {
        assert_eq!(
            settle(&mut regs(libc::SYS_epoll_wait, EINTR), |_| true),
            Standing::Again
        );
        assert_eq!(settle(&mut regs(libc::SYS_close, EINTR), |_| true), Standing::User);
    }

    #[test]
    fn short_blocking_write_is_seen() {
        assert_eq!(
            settle(&mut regs(libc::SYS_write, 65_536), |_| true),
            Standing::Short(65_536)
        );
        assert_eq!(settle(&mut regs(libc::SYS_write, 65_536), |_| false), Standing::User);
        assert_eq!(settle(&mut regs(-1, 65_536), |_| true), Standing::User);
    }
}
