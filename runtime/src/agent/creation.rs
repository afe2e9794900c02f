//! New threads of a body, made here: home's half first, then the body's own clone(2) under the tracer's eyes. See the contract "creation".
//!
//! ```text
//!  calls' thread   clone, flags in registers ──▶ Call ─────────▶ home
//!  tracer          ◀── Reply: the number ────────────────────────┘
//!                  creator stopped at the call; process 1 sets the number that comes next; one step over a `syscall` in the stub
//!                  with the creator's own registers; TRACECLONE: looked at, entered in all books; both go on
//! ```
//! All of it happens between two commands of the tracer: no freeze, no other creation and no signal comes in between. Until it is done the
//! creator has a call open at home under one number, so a creator that is stopped or moved before that makes the same call again and gets
//! the same thread.

use super::calls::NewThread;
use super::nest::Nest;
use super::process::Process;
use super::serve;
use super::shared::{BodyCalls, Shared};
use super::signals::{self, Due};
use super::verify;
use crate::deputy::creation::is_thread;
use crate::process::freeze::wait_for;
use crate::process::restart::ERESTARTNOINTR;
use crate::process::step::QUIET;
use mosix_loader::script::stub;
use mosix_sys::notif::{Answer, Notification};
use mosix_sys::ptrace::{self, Event, Regs};
use mosix_wire::call::Call;
use mosix_wire::ids::{Seq, Tid};
use mosix_wire::image::ThreadImage;
use mosix_wire::link::Exit;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long one step of a creation may take: a machine that is busy beyond all measure must not cost the program its life.
const LIMIT: Duration = Duration::from_secs(60);
/// The trap flag.
const TRAP: u64 = 0x100;

/// Home's half of a creation. Only the flags go home: every pointer is the body's.
pub fn call(body: &BodyCalls, n: &Notification, tid: Tid, seq: Seq) -> Call {
    Call {
        pid: body.pid,
        tid,
        epoch: body.epoch(),
        seq,
        nr: libc::SYS_clone as u32,
        args: [n.args[0], 0, 0, 0, 0, 0],
        relocs: Vec::new(),
        size: 0,
        outputs: Vec::new(),
    }
}

/// The deputy has the new thread, `number`: the body of it is made. Gives how the body ended, when it did.
pub fn follow(
    shared: &Shared,
    nest: &Nest,
    process: &mut Process,
    (host, id): (i32, u64),
    number: Tid,
) -> Option<Exit> {
    let calls = process.calls.clone()?;
    if !calls.calls.begin_creation(host, id) {
        // It was stopped meanwhile, and asks again.
        return None;
    }
    match create(shared, nest, process, &calls, (host, id), number) {
        Ok(()) => signals::catch_up(shared, process),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
            tracing::debug!(pid = %process.pid, tid = host, "a thread ended while it made another one");
            None
        }
        Err(error) => {
            tracing::error!(pid = %process.pid, tid = host, %number, %error, "a new thread is neither here nor undone");
            Some(Exit::Signal {
                signal: libc::SIGKILL as u8,
                core: false,
            })
        }
    }
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}

fn create(
    shared: &Shared,
    nest: &Nest,
    process: &mut Process,
    calls: &BodyCalls,
    (host, id): (i32, u64),
    number: Tid,
) -> io::Result<()> {
    ptrace::interrupt(host)?;
    serve::send(calls, host, id, Answer::Result(ERESTARTNOINTR));
    stand(process, host)?;
    let saved = ptrace::regs(host)?;
    let at_call = saved.orig_rax() == libc::SYS_clone as u64 && saved.rax() as i64 == ERESTARTNOINTR;
    if !at_call || !is_thread(saved.rdi()) {
        // It makes the call again, or another one first.
        return ptrace::cont(host, 0);
    }
    if let Err(error) = nest.init.number_next(number.0) {
        tracing::warn!(%error, "threads of this job are made at home from here on");
        shared.numbers.store(false, Ordering::Release);
        return ptrace::cont(host, 0);
    }
    let mask = ptrace::sigmask(host)?;
    // The new thread inherits what is set here, and gets the true mask below.
    ptrace::set_sigmask(host, QUIET)?;
    calls.calls.set_injecting(host, true);
    let made = clone_stopped(host, &saved);
    calls.calls.set_injecting(host, false);
    let (mut result, child) = made?;
    if let Some(child) = child {
        let built = process.built.as_ref().ok_or_else(gone)?;
        let looked = verify::threads(built.body.pid, &[child]).map_err(io::Error::other)?;
        if looked.first().map(|(_, inside)| *inside) == Some(number.0) {
            process.adopt(host, child, number);
            calls.calls.add(NewThread {
                host: child,
                tid: number,
                seq: 0,
                open: None,
            });
            begin(child, &saved, mask)?;
        } else {
            tracing::warn!(pid = %process.pid, ?looked, %number, "a new thread got another number");
            discard(calls, child, number)?;
            result = -i64::from(libc::EAGAIN);
        }
    }
    if result < 0 {
        shared.thread_ended(calls, number, 0);
    }
    calls.calls.end_creation(host);
    let mut regs = saved;
    regs.set_rax(result as u64);
    regs.set_orig_rax(u64::MAX);
    ptrace::set_regs(host, &regs)?;
    ptrace::set_sigmask(host, mask)?;
    ptrace::cont(host, 0)
}

/// Waits until an interrupted thread stands still. Signals that it was about to get wait for the end of the creation.
fn stand(process: &mut Process, host: i32) -> io::Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match wait_for(host, deadline)?.ok_or(io::ErrorKind::TimedOut)? {
            Event::Stop(_) => return Ok(()),
            Event::Signal(_) => {
                let info = ptrace::siginfo(host)?;
                process.signals.put_off(Due::new(None, info));
                ptrace::interrupt(host)?;
                ptrace::cont(host, 0)?;
            }
            Event::Exited(_) | Event::Killed(..) => return Err(gone()),
            Event::Ptrace(_) | Event::Job(_) => {
                ptrace::interrupt(host)?;
                ptrace::cont(host, 0)?;
            }
        }
    }
}

/// Makes a stopped thread execute the clone(2) that its registers hold, from the stub's text so that it is known for the agent's own: the
/// kernel's answer, and the new thread, which stands before its first instruction.
fn clone_stopped(host: i32, saved: &Regs) -> io::Result<(i64, Option<i32>)> {
    let mut regs = *saved;
    regs.set_call(libc::SYS_clone as u64, saved.args());
    regs.set_rip(stub().map_err(io::Error::other)?.syscall);
    regs.set_orig_rax(u64::MAX);
    ptrace::set_regs(host, &regs)?;
    let deadline = Instant::now() + LIMIT;
    let mut child = None;
    loop {
        ptrace::step(host)?;
        match wait_for(host, deadline)?.ok_or(io::ErrorKind::TimedOut)? {
            Event::Signal(libc::SIGTRAP) => break,
            // An interrupt that came too early; the kernel makes the call again.
            Event::Stop(_) => {}
            Event::Ptrace(libc::PTRACE_EVENT_CLONE) => {
                let made = ptrace::event_message(host)? as i32;
                match wait_for(made, deadline)?.ok_or(io::ErrorKind::TimedOut)? {
                    Event::Stop(_) => child = Some(made),
                    _ => return Err(gone()),
                }
            }
            _ => return Err(gone()),
        }
    }
    let result = ptrace::regs(host)?.rax() as i64;
    match (child, result) {
        (None, 0..) => Err(io::Error::other("a thread was made unseen")),
        seen => Ok((seen.1, seen.0)),
    }
}

/// Lets a new thread begin behind the call of its creator.
fn begin(child: i32, creator: &Regs, mask: u64) -> io::Result<()> {
    let mut regs = ptrace::regs(child)?;
    regs.set_rip(creator.rip());
    regs.set_rcx(creator.rip());
    regs.set_r11(creator.r11());
    regs.set_eflags(regs.eflags() & !TRAP);
    regs.set_orig_rax(u64::MAX);
    ptrace::set_regs(child, &regs)?;
    ptrace::set_sigmask(child, mask)?;
    ptrace::cont(child, 0)
}

/// Ends a new thread that must not be, without a trace in the program's memory.
fn discard(calls: &BodyCalls, child: i32, number: Tid) -> io::Result<()> {
    calls.calls.add(NewThread {
        host: child,
        tid: number,
        seq: 0,
        open: None,
    });
    calls.calls.set_injecting(child, true);
    let ended = signals::inject(child, libc::SYS_set_tid_address, [0; 6]).and_then(|_| {
        let mut regs = ptrace::regs(child)?;
        regs.set_call(libc::SYS_exit as u64, [0; 6]);
        regs.set_orig_rax(u64::MAX);
        regs.set_rip(stub().map_err(io::Error::other)?.syscall);
        ptrace::set_regs(child, &regs)?;
        ptrace::cont(child, 0)?;
        wait_for(child, Instant::now() + LIMIT).map(drop)
    });
    calls.calls.ended(child);
    ended
}

impl Process {
    /// A thread that was made here is one of the body's.
    fn adopt(&mut self, creator: i32, child: i32, number: Tid) {
        // Of another thread that had this number of the node before.
        self.bury(child);
        self.tids.push(child);
        let Some(built) = &mut self.built else { return };
        let place = built.body.tids.iter().rposition(|tid| *tid == creator);
        let like = place.and_then(|place| built.image.threads.get(place));
        let Some(like) = like.or(built.image.threads.first()) else {
            return;
        };
        // What a capture here does not ask the thread itself.
        let thread = ThreadImage {
            tid: number,
            regs: [0; 27],
            xsave: Vec::new(),
            mask: 0,
            altstack: (0, libc::SS_DISABLE, 0),
            robust: (0, 0),
            clear_child_tid: 0,
            rseq: None,
            pending: Vec::new(),
            timer_slack: like.timer_slack,
            comm: like.comm.clone(),
            seq: 0,
            in_flight: false,
            since: None,
            cpu_ns: 0,
        };
        built.image.threads.push(thread);
        built.body.tids.push(child);
    }

    /// A thread has ended, and its end was taken: its number may be another's soon.
    pub fn bury(&mut self, tid: i32) {
        if let Some(built) = &mut self.built
            && tid != built.body.pid
            && built.body.tids.len() == built.image.threads.len()
            && let Some(place) = built.body.tids.iter().position(|other| *other == tid)
        {
            built.body.tids.remove(place);
            built.image.threads.remove(place);
        }
    }
}

impl Shared {
    /// Whether the numbers of new threads can be chosen here.
    pub fn makes_threads(&self) -> bool {
        self.numbers.load(Ordering::Acquire)
    }
}
