//! A program that a deputy has executed for its body, from PTRACE_EVENT_EXEC to its first instruction. See the contract "creation", Exec.
//!
//! ```text
//! the event ─▶ stands behind execve ─▶ signals of the body queued, its mask ─▶ departs again, or begins here
//! ```

use crate::process::freeze::{Frozen, FrozenThread, wait_for};
use crate::process::inject::Gadget;
use crate::process::maps;
use crate::process::restart::settle;
use crate::process::step::QUIET;
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace::{self, Event, RawSigInfo};
use mosix_wire::image::SigInfo;
use mosix_wire::link::Exit;
use std::io;
use std::time::{Duration, Instant};

/// How long a stop may take: the kernel only has to finish the call.
const LIMIT: Duration = Duration::from_secs(10);
/// How far below the stack pointer a siginfo lies for the moment in which it is read.
const BELOW: u64 = 1024;
const INFO: usize = 128;

/// What the new program has of the old one that is not the kernel's already.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The mask of the thread that executed it.
    pub mask: u64,
    /// Signals that wait, in order; whether for the thread or for the process.
    pub pending: Vec<(bool, SigInfo)>,
}

/// Lets a process that stands at the event stand behind its call, and gives it what it inherits.
///
/// # Errors
/// It is gone.
pub fn stand(pid: i32, mut inherited: Inherited) -> io::Result<()> {
    // Nothing is taken before the mask is the program's own.
    ptrace::set_sigmask(pid, QUIET)?;
    // At the event it is inside of the call, whose end would overwrite registers.
    ptrace::interrupt(pid)?;
    ptrace::cont(pid, 0)?;
    let deadline = Instant::now() + LIMIT;
    loop {
        match wait_for(pid, deadline)?.ok_or(io::ErrorKind::TimedOut)? {
            Event::Stop(_) => break,
            Event::Exited(_) | Event::Killed(..) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            Event::Signal(_) => inherited.pending.push((false, SigInfo(ptrace::siginfo(pid)?.to_vec()))),
            Event::Ptrace(_) | Event::Job(_) => {}
        }
        ptrace::interrupt(pid)?;
        ptrace::cont(pid, 0)?;
    }
    // Not those of a 32-bit program, which goes nowhere.
    if let Ok(mut regs) = ptrace::regs(pid) {
        // No later stop may take it for an interrupted call.
        regs.set_orig_rax(u64::MAX);
        ptrace::set_regs(pid, &regs)?;
    }
    if !inherited.pending.is_empty()
        && let Err(error) = queue(pid, &inherited.pending)
    {
        // A program that nobody may look into: then they come without what came with them.
        tracing::debug!(pid, %error, "siginfo is lost at an exec");
        for (_, info) in &inherited.pending {
            let _ = mosix_sys::process::kill(pid, info.signal());
        }
    }
    ptrace::set_sigmask(pid, inherited.mask)
}

/// Makes the program queue signals to itself: only so may their siginfo say anything.
fn queue(pid: i32, pending: &[(bool, SigInfo)]) -> io::Result<()> {
    let saved = ptrace::regs(pid)?;
    let memory = ProcMem::force(pid)?;
    let gadget = Gadget::find(pid, pid, &maps::read(pid)?, &memory).map_err(io::Error::other)?;
    let at = saved.rsp().wrapping_sub(BELOW) & !0xf;
    // Nothing is queued twice: what can go wrong goes wrong here.
    memory.write(at, &[0; INFO])?;
    for (own, info) in pending {
        let Ok(bytes) = RawSigInfo::try_from(info.0.as_slice()) else {
            continue;
        };
        let _ = memory.write(at, &bytes);
        let (signal, own_pid) = (info.signal() as u64, pid as u64);
        let done = if *own {
            let args = [own_pid, own_pid, signal, at, 0, 0];
            gadget.call(pid, "rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, args)
        } else {
            gadget.call(
                pid,
                "rt_sigqueueinfo",
                libc::SYS_rt_sigqueueinfo,
                [own_pid, signal, at, 0, 0, 0],
            )
        };
        if let Err(error) = done {
            tracing::warn!(pid, signal, %error, "a pending signal is lost at an exec");
        }
    }
    memory.write(at, &[0; INFO])?;
    ptrace::set_regs(pid, &saved)
}

/// A process that stands as [`stand`] left it, as a frozen one.
///
/// # Errors
/// It is gone.
pub fn frozen(pid: i32) -> io::Result<Frozen> {
    let thread = FrozenThread::take(pid, None, |regs| settle(regs, |_| false))?;
    Ok(Frozen {
        pid,
        threads: vec![thread],
        since: Instant::now(),
    })
}

/// Ends a process that stands at the event, and whose body has ended, as its body did.
pub fn finish(pid: i32, how: Option<Exit>) {
    let ended = stand(pid, Inherited::default()).and_then(|()| match how {
        Some(Exit::Code(code)) => {
            let memory = ProcMem::force(pid)?;
            let gadget = Gadget::find(pid, pid, &maps::read(pid)?, &memory).map_err(io::Error::other)?;
            gadget.leave(libc::SYS_exit_group, [code as u64, 0, 0, 0, 0, 0])
        }
        Some(Exit::Signal { signal, .. }) => mosix_sys::process::kill(pid, signal.into())
            .map_err(io::Error::from)
            .and_then(|()| ptrace::cont(pid, 0)),
        None => Err(io::ErrorKind::NotFound.into()),
    });
    if ended.is_err() {
        let _ = mosix_sys::process::kill(pid, libc::SIGKILL);
    }
}
