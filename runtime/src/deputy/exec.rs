//! Programs that a body executes: the deputy executes them itself, in the place of the calling thread. See the contract "creation", Exec.
//!
//! ```text
//! call execve ──▶ dispositions as in the body, then execve in the caller's slot ──▶ failed: Reply, as of any call
//!                                                                               └─▶ TRACEEXEC: nothing of the deputy is left
//! ```
//! What is ignored is set before, by the deputy itself: so it holds also for a program that nobody may look into.

use crate::process::status::Status;
use mosix_loader::script::Op;
use mosix_wire::call::{Call, Exec};

/// Bytes of a sigaction.
const ACTION: usize = 32;

/// What the deputy does before it executes a program, and what follows the call's buffer for it, which ends at address `at`.
pub fn before(pid: i32, exec: &Exec, at: u64) -> (Vec<Op>, Vec<u8>) {
    let mut bytes = vec![0; 2 * ACTION];
    // The first action is SIG_DFL, the second SIG_IGN.
    bytes[ACTION] = libc::SIG_IGN as u8;
    let now = ignored(pid);
    let op = |signal: u64| {
        let action = at
            + if exec.ignored >> (signal - 1) & 1 == 1 {
                ACTION as u64
            } else {
                0
            };
        Op::may(libc::SYS_rt_sigaction, [signal, action, 0, 8, 0, 0])
    };
    let differs = |signal: &u64| {
        (exec.ignored ^ now) >> (signal - 1) & 1 == 1
            && *signal != libc::SIGKILL as u64
            && *signal != libc::SIGSTOP as u64
    };
    ((1..=64).filter(differs).map(op).collect(), bytes)
}

/// Bytes that a call needs behind its buffer.
pub fn room(call: &Call) -> usize {
    if call.exec.is_some() { 2 * ACTION } else { 0 }
}

/// Whether a program that the deputy executes gets what it would get natively. It is traced: without privileges of its own the tracer would
/// take from a set-uid program what that has, which only a job without no_new_privs can tell.
pub fn is_native(pid: i32) -> bool {
    let confined = || Status::read(pid).is_ok_and(|status| status.value("NoNewPrivs") == Some("1"));
    nix::unistd::geteuid().is_root() || confined()
}

fn ignored(pid: i32) -> u64 {
    let status = Status::read(pid).ok();
    status.and_then(|status| status.signals("SigIgn")).unwrap_or(0)
}
