//! Letting threads go on in native calls with the rest of their time-outs (futex(2), rt_sigtimedwait(2)).
//!
//! The call is made again by the kernel with the thread's own registers, so only what the time-out's pointer points to can differ: the rest is
//! written there, the thread is resumed, and as soon as it sleeps in the call the program's own bytes are put back. The kernel has read
//! them by then, and nobody else does: at a move all other threads of the process stand still.

use super::rest::{self, Timeout};
use super::stat::state;
use super::waited;
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace::Regs;
use std::io;
use std::time::{Duration, Instant};

/// How long a thread may take until it sleeps.
const LIMIT: Duration = Duration::from_millis(100);
/// A rest is never nothing: the bytes are to be back before the call ends.
const LEAST: Duration = Duration::from_millis(1);

/// A stopped thread whose interrupted call the kernel makes again when it is resumed.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    /// Its number on this node.
    pub tid: i32,
    /// Its registers.
    pub regs: Regs,
    /// When the time-out began to count, on the clock of `now`.
    pub since: i64,
}

impl Wait {
    /// Where the time-out lies, when the call keeps it in memory.
    fn place(&self) -> Option<(u64, Timeout)> {
        let args = self.regs.args();
        match rest::timeout(self.regs.orig_rax(), &args)? {
            timeout @ (Timeout::Spec(arg) | Timeout::Val(arg)) => Some((args[arg], timeout)),
            _ => None,
        }
    }

    /// Whether the call ends at once, whatever its time-out.
    fn is_over(&self, memory: &ProcMem) -> bool {
        let args = self.regs.args();
        let mut word = [0; 4];
        self.regs.orig_rax() == libc::SYS_futex as u64
            && memory.read(args[0], &mut word).is_ok()
            && u32::from_le_bytes(word) != args[2] as u32
    }
}

/// Resumes each of the threads in its call; gives for each how often it had left a CPU when it slept there.
pub fn enter(pid: i32, waits: &[Wait], now: i64, resume: impl Fn(i32) -> io::Result<()>) -> Vec<(i32, Option<u64>)> {
    let mut entered = Vec::with_capacity(waits.len());
    for wait in waits {
        let changed = shorten(wait, now);
        let resumed = resume(wait.tid);
        if let Some((memory, address, before)) = changed {
            if resumed.is_ok() {
                asleep(pid, wait);
            }
            if let Err(error) = memory.write(address, &before) {
                tracing::debug!(tid = wait.tid, %error, "a time-out was not put back");
            }
        }
        if let Err(error) = resumed {
            tracing::debug!(tid = wait.tid, %error, "a waiting thread is gone");
        }
        entered.push((wait.tid, waited::switches(pid, wait.tid)));
    }
    entered
}

/// Writes the rest; gives what was there.
fn shorten(wait: &Wait, now: i64) -> Option<(ProcMem, u64, [u8; 16])> {
    let (address, timeout) = wait.place()?;
    let memory = ProcMem::force(wait.tid).ok()?;
    let mut before = [0; 16];
    memory.read(address, &mut before).ok()?;
    let whole = rest::decode(before, timeout)?;
    if whole <= LEAST || wait.is_over(&memory) {
        return None;
    }
    let passed = Duration::from_nanos(u64::try_from(now.saturating_sub(wait.since)).unwrap_or(0));
    let left = whole.saturating_sub(passed).max(LEAST);
    memory.write(address, &rest::encode(left, timeout)).ok()?;
    Some((memory, address, before))
}

/// Waits until the resumed thread sleeps, in its call: before that it only runs there.
fn asleep(pid: i32, wait: &Wait) {
    let deadline = Instant::now() + LIMIT;
    while matches!(state(pid, wait.tid), Some('R' | 'D')) {
        if Instant::now() >= deadline {
            tracing::debug!(tid = wait.tid, "a thread did not sleep in its call again in time");
            return;
        }
        std::thread::sleep(Duration::from_micros(30));
    }
}
