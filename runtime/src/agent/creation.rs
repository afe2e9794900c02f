//! New threads and children of a body, made here: home's half first, then the body's own clone(2) under the tracer's eyes. See the contract
//! "creation".
//!
//! ```text
//!  calls' thread   clone, flags in registers ──▶ Call ─────────▶ home
//!  tracer          ◀── Reply: the number ────────────────────────┘
//!                  creator stopped at the call; process 1 sets the number that comes next; one step over a `syscall` in the stub
//!                  with the creator's own registers; TRACECLONE, TRACEFORK: looked at, entered in all books
//!                  a thread goes on with its creator; a child waits for home's Run (`fork`)
//! ```
//! All of it happens between two commands of the tracer: no freeze, no other creation and no signal comes in between. Until it is done the
//! creator has a call open at home under one number, so a creator that is stopped or moved before that makes the same call again and gets
//! the same thread.

use super::birth;
use super::calls::NewThread;
use super::nest::Nest;
use super::process::Process;
use super::serve;
use super::shared::{BodyCalls, Shared, lock};
use super::signals::{self, Due};
use super::verify;
use crate::deputy::creation::{self, Kind};
use crate::process::freeze::wait_for;
use crate::process::restart::ERESTARTNOINTR;
use crate::process::step::QUIET;
use mosix_loader::script::stub;
use mosix_sys::notif::Answer;
use mosix_sys::ptrace::{self, Event, Regs};
use mosix_wire::call::Call;
use mosix_wire::ids::{Seq, Tid};
use mosix_wire::image::ThreadImage;
use mosix_wire::link::Exit;
use mosix_wire::spent::CpuTime;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long one step of a creation may take: a machine that is busy beyond all measure must not cost the program its life.
const LIMIT: Duration = Duration::from_secs(60);
/// Place of the thread pointer among the registers.
const FS_BASE: usize = 21;
/// The trap flag.
const TRAP: u64 = 0x100;

/// What became of a creation. Of a thread, or of nothing, its creator knows, or makes the call again.
#[derive(Default)]
pub struct Followed {
    /// A child, which stands before its first instruction, and of which home was told.
    pub child: Option<Box<Process>>,
    /// How the creator's body ended meanwhile. Its child lives on.
    pub ended: Option<Exit>,
}

/// Home's half of a creation. Only the flags go home: every pointer is the body's.
pub fn call(body: &BodyCalls, flags: u64, tid: Tid, seq: Seq) -> Call {
    Call {
        pid: body.pid,
        tid,
        epoch: body.epoch(),
        seq,
        nr: libc::SYS_clone as u32,
        args: [flags, 0, 0, 0, 0, 0],
        relocs: Vec::new(),
        size: 0,
        outputs: Vec::new(),
        exec: None,
    }
}

/// The deputy has the new thread or child, `number`: the body of it is made.
pub fn follow(shared: &Shared, nest: &Nest, process: &mut Process, (host, id): (i32, u64), number: Tid) -> Followed {
    let Some(calls) = process.calls.clone() else {
        return Followed::default();
    };
    let flags = calls.calls.begin_creation(host, id);
    let Some((flags, kind)) = flags.and_then(|flags| Some((flags, creation::kind(flags)?))) else {
        // It was stopped meanwhile, and asks again.
        return Followed::default();
    };
    let creation = Creation {
        shared,
        nest,
        calls: &calls,
        host,
        id,
        number,
        flags,
        kind,
    };
    match creation.create(process) {
        Ok(child) => Followed {
            child,
            ended: signals::catch_up(shared, process),
        },
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
            tracing::debug!(pid = %process.pid, tid = host, "a thread ended while it made another one");
            Followed::default()
        }
        Err(error) => {
            tracing::error!(pid = %process.pid, tid = host, %number, %error, "what a thread makes is neither here nor undone");
            let signal = libc::SIGKILL as u8;
            Followed {
                child: None,
                ended: Some(Exit::Signal { signal, core: false }),
            }
        }
    }
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}

/// One creation: who makes what.
pub(super) struct Creation<'a> {
    pub(super) shared: &'a Shared,
    nest: &'a Nest,
    pub(super) calls: &'a Arc<BodyCalls>,
    /// The creator.
    pub(super) host: i32,
    /// Its notification.
    pub(super) id: u64,
    /// What the deputy has made.
    pub(super) number: Tid,
    /// Flags of clone(2).
    flags: u64,
    /// What they make.
    pub(super) kind: Kind,
}

impl Creation<'_> {
    fn create(&self, process: &mut Process) -> io::Result<Option<Box<Process>>> {
        let host = self.host;
        // While its notification waits the creator can be given a descriptor, which its child inherits.
        let slots = (self.kind == Kind::Child).then(|| self.slots());
        ptrace::interrupt(host)?;
        serve::send(self.calls, host, self.id, Answer::Result(ERESTARTNOINTR));
        stand(process, host)?;
        let saved = ptrace::regs(host)?;
        let at_call = creation::flags(saved.orig_rax() as i64, &saved.args()) == Some(self.flags)
            && saved.rax() as i64 == ERESTARTNOINTR;
        if !at_call {
            // It makes the call again, or another one first.
            return self.leave(slots.is_some());
        }
        if let Err(error) = self.nest.init.number_next(self.number.0) {
            tracing::warn!(%error, "threads and children of this job are made at home from here on");
            self.shared.numbers.store(false, Ordering::Release);
            return self.leave(slots.is_some());
        }
        let mask = ptrace::sigmask(host)?;
        // What is new inherits what is set here, and gets the true mask below.
        ptrace::set_sigmask(host, QUIET)?;
        self.calls.calls.set_injecting(host, true);
        let made = match &slots {
            Some(Err(error)) => {
                tracing::warn!(pid = %process.pid, %error, "a child gets no window");
                Ok((-i64::from(libc::EAGAIN), None))
            }
            _ => clone_stopped(host, &saved, self.flags, self.kind != Kind::Thread),
        };
        self.calls.calls.set_injecting(host, false);
        let (mut result, new) = made?;
        let mut child = None;
        match (new, slots) {
            (Some(new), _) if self.kind == Kind::Thread => {
                result = self.thread(process, new, &saved, mask)?.unwrap_or(result);
            }
            (Some(new), slots) => match self.child(process, new, slots, &saved, mask) {
                Ok(built) => child = Some(Box::new(built)),
                Err(error) => {
                    tracing::warn!(pid = %process.pid, number = %self.number, %error, "a child cannot be made here");
                    birth::end(new);
                    result = -i64::from(libc::EAGAIN);
                }
            },
            (None, _) => {}
        }
        match self.kind {
            Kind::Thread if result < 0 => self.shared.thread_ended(self.calls, self.number, 0),
            Kind::Thread => {}
            Kind::Child => {
                self.take_slots_back()?;
                self.tell(child.is_some());
            }
            Kind::Borrower => self.tell(child.is_some()),
        }
        self.calls.calls.end_creation(host);
        let mut regs = saved;
        regs.set_rax(result as u64);
        regs.set_orig_rax(u64::MAX);
        ptrace::set_regs(host, &regs)?;
        ptrace::set_sigmask(host, mask)?;
        match &child {
            // It goes on when the child gives the memory back.
            Some(child) if self.kind == Kind::Borrower => process.lent = Some((child.pid, host)),
            _ => ptrace::cont(host, 0)?,
        }
        Ok(child)
    }

    /// Nothing is made: the creator goes on from its call.
    fn leave(&self, slots: bool) -> io::Result<Option<Box<Process>>> {
        if slots {
            self.take_slots_back()?;
        }
        ptrace::cont(self.host, 0)?;
        Ok(None)
    }

    /// Takes a new thread into the books and lets it run; an error for the program when it is not the one that was to be made.
    fn thread(&self, process: &mut Process, new: i32, saved: &Regs, mask: u64) -> io::Result<Option<i64>> {
        let built = process.built.as_ref().ok_or_else(gone)?;
        let looked = verify::threads(built.body.pid, &[new]).map_err(io::Error::other)?;
        if looked.first().map(|(_, inside)| *inside) != Some(self.number.0) {
            tracing::warn!(pid = %process.pid, ?looked, number = %self.number, "a new thread got another number");
            discard(self.calls, new, self.number)?;
            return Ok(Some(-i64::from(libc::EAGAIN)));
        }
        process.adopt(self.host, new, self.number);
        self.calls.calls.add(NewThread {
            host: new,
            tid: self.number,
            seq: 0,
            open: None,
        });
        begin(new, saved, mask)?;
        ptrace::cont(new, 0)?;
        Ok(None)
    }
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

/// Makes a stopped thread execute clone(2) with the rest of its registers as they are, from the stub's text so that it is known for the
/// agent's own: the kernel's answer, and the new thread, which stands before its first instruction. A `child` is no child of the body's, whose
/// kernel half has it at home: it becomes a sibling.
fn clone_stopped(host: i32, saved: &Regs, flags: u64, child: bool) -> io::Result<(i64, Option<i32>)> {
    let mut regs = *saved;
    let mut args = match saved.orig_rax() as i64 {
        libc::SYS_clone => saved.args(),
        _ => [0; 6],
    };
    args[0] = flags & !(libc::CLONE_VFORK as u64) | if child { libc::CLONE_PARENT as u64 } else { 0 };
    regs.set_call(libc::SYS_clone as u64, args);
    regs.set_rip(stub().map_err(io::Error::other)?.syscall);
    regs.set_orig_rax(u64::MAX);
    ptrace::set_regs(host, &regs)?;
    let deadline = Instant::now() + LIMIT;
    let mut new = None;
    loop {
        ptrace::step(host)?;
        match wait_for(host, deadline)?.ok_or(io::ErrorKind::TimedOut)? {
            Event::Signal(libc::SIGTRAP) => break,
            // An interrupt that came too early; the kernel makes the call again.
            Event::Stop(_) => {}
            Event::Ptrace(libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK) => {
                let made = ptrace::event_message(host)? as i32;
                match wait_for(made, deadline)?.ok_or(io::ErrorKind::TimedOut)? {
                    Event::Stop(_) => new = Some(made),
                    _ => return Err(gone()),
                }
            }
            _ => return Err(gone()),
        }
    }
    let result = ptrace::regs(host)?.rax() as i64;
    match (new, result) {
        (None, 0..) => Err(io::Error::other("something was made unseen")),
        seen => Ok((seen.1, seen.0)),
    }
}

/// Makes what is new begin behind the call of its creator. It stands still.
pub(super) fn begin(new: i32, creator: &Regs, mask: u64) -> io::Result<()> {
    let fresh = ptrace::regs(new)?;
    // The call was made with other arguments than its creator's, which must not see that: only what clone itself sets is new.
    let mut regs = *creator;
    regs.set_rax(fresh.rax());
    regs.set_rsp(fresh.rsp());
    regs.0[FS_BASE] = fresh.0[FS_BASE];
    regs.set_rcx(creator.rip());
    regs.set_eflags(creator.eflags() & !TRAP);
    regs.set_orig_rax(u64::MAX);
    ptrace::set_regs(new, &regs)?;
    ptrace::set_sigmask(new, mask)
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
        if let Some(calls) = &self.calls {
            lock(&calls.usage).born(child);
        }
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
            cpu: CpuTime::default(),
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
    /// Whether the numbers of new threads and children can be chosen here.
    pub fn makes_threads(&self) -> bool {
        self.numbers.load(Ordering::Acquire)
    }
}
