//! Single steps of stopped threads: out of code that will not be there, or not be the same, where they go (a vDSO), and over a system call
//! instruction, which makes a thread execute a call for its tracer.

use super::freeze::{Frozen, wait_for};
use super::restart::Standing;
use mosix_sys::ptrace::{self, Event};
use std::io;
use std::time::{Duration, Instant};

/// Instructions that a thread may need to leave; a vDSO function has well below a hundred, but reads its data page again while the kernel
/// updates it.
const STEPS: usize = 20_000;

/// Signals to block while a thread is stepped: a handler must not run now. SIGTRAP stays open, because forced while blocked it would reset
/// the program's own disposition.
pub const QUIET: u64 = !(1 << (libc::SIGTRAP - 1));

/// Makes a stopped thread execute one system call through the instruction at `at`, and returns the raw result. Registers are the call's
/// afterwards: who needs the old ones keeps and restores them, and sets [`QUIET`] as mask meanwhile.
///
/// # Errors
/// ESRCH when the thread is gone, `TimedOut` when the call does not return within `limit`, else ptrace's.
pub fn call(tid: i32, at: u64, nr: u64, args: [u64; 6], limit: Duration) -> io::Result<i64> {
    let mut regs = ptrace::regs(tid)?;
    regs.set_call(nr, args);
    regs.set_rip(at);
    regs.set_orig_rax(u64::MAX);
    ptrace::set_regs(tid, &regs)?;
    let deadline = Instant::now() + limit;
    loop {
        ptrace::step(tid)?;
        match wait_for(tid, deadline)? {
            Some(Event::Signal(libc::SIGTRAP)) => return Ok(ptrace::regs(tid)?.rax() as i64),
            // A group-stop or interrupt reports itself again before the call runs.
            Some(Event::Stop(_)) => {}
            Some(_) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            None => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Why a thread could not leave.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// It waits in a system call there, or does not come out.
    #[error("thread {0} does not leave the vDSO; try again")]
    Inside(i32),
    /// ptrace failed: the thread is gone.
    #[error("thread {tid}: {error}")]
    Gone {
        /// The thread.
        tid: i32,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// Executes single instructions of each thread whose instruction pointer is `inside`, until it is not.
///
/// # Errors
/// [`StepError`]; every thread is still frozen.
pub fn out_of(frozen: &mut Frozen, inside: impl Fn(u64) -> bool) -> Result<(), StepError> {
    for thread in frozen.threads.iter_mut().filter(|thread| inside(thread.regs.rip())) {
        let tid = thread.tid;
        if thread.standing != Standing::User {
            return Err(StepError::Inside(tid));
        }
        let gone = |error| StepError::Gone { tid, error };
        let mask = ptrace::sigmask(tid).map_err(gone)?;
        ptrace::set_sigmask(tid, QUIET).map_err(gone)?;
        ptrace::set_regs(tid, &thread.regs).map_err(gone)?;
        let mut left = Err(StepError::Inside(tid));
        for _ in 0..STEPS {
            ptrace::step(tid).map_err(gone)?;
            match wait_for(tid, Instant::now() + Duration::from_secs(1)).map_err(gone)? {
                Some(Event::Signal(libc::SIGTRAP) | Event::Stop(_)) => {}
                _ => break,
            }
            thread.regs = ptrace::regs(tid).map_err(gone)?;
            if !inside(thread.regs.rip()) {
                left = Ok(());
                break;
            }
        }
        thread.regs.set_orig_rax(u64::MAX);
        thread.raw = thread.regs.rax();
        ptrace::set_sigmask(tid, mask).map_err(gone)?;
        left?;
    }
    Ok(())
}
