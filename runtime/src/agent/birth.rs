//! Blank processes under home's pids: the stub in an empty place, waiting for scripts, seized by the tracer.

use super::nest::Nest;
use crate::process::window::{ScriptError, Window};
use mosix_loader::script::{Op, STUB_ELF};
use mosix_sys::{ptrace, shared, spawn};
use mosix_wire::ids::Pid;
use rustix::process::{Resource, Rlimit};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long a fresh stub may take until it answers.
const ANSWER: Duration = Duration::from_secs(10);

/// Bodies die with the tracer, from their first moment. New threads are seized one by one, by the builder.
const OPTIONS: i32 = libc::PTRACE_O_EXITKILL;

/// A process that holds nothing but the stub.
#[derive(Debug)]
pub struct Blank {
    /// Its pid as the agent sees it; inside it has the wanted one.
    pub host: i32,
    /// Its window.
    pub window: Window,
}

/// Why there is no blank process. None is left.
#[derive(Debug, thiserror::Error)]
pub enum BirthError {
    /// Another process of the job has the number.
    #[error("pid {0} is taken in the job's pid namespace")]
    Taken(Pid),
    /// The number is larger than this kernel allows.
    #[error("pid {0} exceeds this node's kernel.pid_max: raise it")]
    TooLarge(Pid),
    /// The clocks of home cannot be had.
    #[error("cannot give pid {pid} its home's clocks: {error}")]
    Clocks {
        /// The process.
        pid: Pid,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The process could not be made or limited.
    #[error("cannot make a process for pid {pid}: {error}")]
    Process {
        /// The process.
        pid: Pid,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The stub did not answer.
    #[error("the stub of pid {pid} did not start ({end}): {error}")]
    Silent {
        /// The process.
        pid: Pid,
        /// How the process ended, if it did.
        end: String,
        /// What was waited for.
        error: ScriptError,
    },
    /// It answered with another pid.
    #[error("asked for pid {0}, got {1}")]
    Wrong(Pid, i64),
}

/// The stub as a program, for execveat.
pub fn stub_program() -> io::Result<OwnedFd> {
    let program = shared::memfd("mosix-stub", STUB_ELF.len() as u64)?;
    rustix::io::pwrite(&program, STUB_ELF, 0)?;
    Ok(program)
}

/// Makes a blank process with number `pid` whose monotonic and boot time are so many nanoseconds `ahead` of this thread's, with `files` as
/// its descriptors 4 and up. Must be called by the tracer thread.
///
/// # Errors
/// Every error leaves nothing behind.
pub fn blank(
    nest: &Nest,
    program: impl AsFd,
    pid: Pid,
    ahead: (i64, i64),
    files: &[BorrowedFd<'_>],
) -> Result<Blank, BirthError> {
    let failed = |error| BirthError::Process { pid, error };
    let (window, memfd) = Window::create().map_err(failed)?;
    nest.clocks
        .set_ahead(ahead)
        .map_err(|error| BirthError::Clocks { pid, error })?;
    let host = match spawn::blank_in(pid.0, program.as_fd(), memfd.as_fd(), files, Some(nest.init.mounts())) {
        Ok(host) => host,
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => return Err(BirthError::Taken(pid)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Err(BirthError::TooLarge(pid)),
        Err(error) => return Err(failed(error)),
    };
    match prepare(pid, host, &window) {
        Ok(()) => Ok(Blank { host, window }),
        Err(error) => {
            end(host);
            Err(error)
        }
    }
}

fn prepare(pid: Pid, host: i32, window: &Window) -> Result<(), BirthError> {
    let failed = |error| BirthError::Process { pid, error };
    let answer = window
        .run(0, &[Op::may(libc::SYS_getpid, [0; 6])], ANSWER)
        .map_err(|error| {
            let end = match ptrace::wait(Some(host), false) {
                Ok(Some((_, event))) => format!("{event:?}"),
                _ => "it lives".to_owned(),
            };
            BirthError::Silent { pid, end, error }
        })?;
    match answer[..] {
        [number] if number == i64::from(pid.0) => {}
        _ => return Err(BirthError::Wrong(pid, answer.first().copied().unwrap_or(0))),
    }
    // The host's memory is its owner's: when it runs out, guests go first.
    std::fs::write(format!("/proc/{host}/oom_score_adj"), "1000").map_err(failed)?;
    limit(host).map_err(failed)?;
    ptrace::seize(host, OPTIONS).map_err(failed)
}

/// No core of a guest may reach this node's handler: a pipe in core_pattern ignores a limit of 0, but not of 1.
fn limit(host: i32) -> io::Result<()> {
    let target = rustix::process::Pid::from_raw(host);
    let set = |resource, value| {
        rustix::process::prlimit(
            target,
            resource,
            Rlimit {
                current: Some(value),
                maximum: Some(value),
            },
        )
        .map(drop)
    };
    set(Resource::Core, 1).or_else(|_| set(Resource::Core, 0))?;
    Ok(set(Resource::Msgqueue, 0)?)
}

/// Leaves a body that has its memory no room for descriptors: it has none and gets none but for a moment. The hard limit leaves room for
/// [`room_for`]; nothing that a body can call makes a descriptor here, or changes a limit.
///
/// # Errors
/// Those of prlimit(2).
pub fn no_descriptors(host: i32) -> io::Result<()> {
    limit_descriptors(host, FEW)
}

/// Descriptors of a body, for the calls by which it is built.
const FEW: u64 = 4;
/// The highest number of a descriptor at home that can be mapped from.
const DESCRIPTORS: u64 = 1024;

/// Lets something be done for which descriptor `fd` of a body must be within its limit.
///
/// # Errors
/// Those of prlimit(2), such as for a number that is too high.
pub fn room_for<T>(host: i32, fd: i32, act: impl FnOnce() -> T) -> io::Result<T> {
    limit_descriptors(host, FEW.max(u64::try_from(fd).map_or(FEW, |fd| fd + 1)))?;
    let done = act();
    // A number that is taken stays so below any limit.
    limit_descriptors(host, FEW)?;
    Ok(done)
}

fn limit_descriptors(host: i32, current: u64) -> io::Result<()> {
    let limit = Rlimit {
        current: Some(current),
        maximum: Some(DESCRIPTORS),
    };
    rustix::process::prlimit(rustix::process::Pid::from_raw(host), Resource::Nofile, limit)?;
    Ok(())
}

/// Kills a process of ours and waits until nothing of it is left.
pub fn end(host: i32) {
    let _ = mosix_sys::process::kill(host, libc::SIGKILL);
    loop {
        match ptrace::wait(Some(host), true) {
            Ok(Some((_, ptrace::Event::Exited(_) | ptrace::Event::Killed(..)))) | Err(_) | Ok(None) => return,
            Ok(Some(_)) => {}
        }
    }
}

/// Takes the ends of all threads of a killed process, the leader last, until nothing of it is left.
pub fn end_threads(host: i32, tids: &[i32]) {
    for tid in tids.iter().filter(|tid| **tid != host) {
        loop {
            match ptrace::wait(Some(*tid), true) {
                Ok(Some((_, ptrace::Event::Exited(_) | ptrace::Event::Killed(..)))) | Err(_) | Ok(None) => break,
                Ok(Some(_)) => {}
            }
        }
    }
    end(host);
}
