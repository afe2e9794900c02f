//! Signals of home for a body: which thread gets one, with home's siginfo, and what becomes of a call that it interrupts.
//!
//! The body's kernel holds pending signals and masks, so it decides what they decide at home; only the choice of the thread and the
//! end of a call that is open at home need help:
//!
//! ```text
//!  came before             not taken again (contract "owner")
//!  ignored                 dropped
//!  deadly by default       the body ends
//!  thread in a home call   Cancel; home's answer ends the call natively, under PTRACE_INTERRUPT, then as below
//!  else                    the stopped thread queues it to itself, or to its process when no thread takes it now: only so may
//!                          siginfo be true, and what is pending is wholly the kernel's
//! ```
//! See design.md, "Signals"; ptrace(2) for delivery stops.

use super::exec::Seen;
use super::process::Process;
use super::serve;
use super::shared::{BodyCalls, Shared};
use crate::contract::owner::Inbox;
use crate::process::freeze::{FrozenThread, put_back, wait_for};
use crate::process::restart::{
    EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS, Standing, settle,
};
use crate::process::status::Status;
use crate::process::step;
use crate::process::window::Window;
use crate::syscall::decide::{Decision, decide};
use crate::syscall::table;
use mosix_loader::script::stub;
use mosix_sys::notif::Answer;
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace::{self, Event, RawSigInfo};
use mosix_wire::ids::{Seq, Tid};
use mosix_wire::image::{ProcessImage, SigInfo, ThreadImage};
use mosix_wire::link::{Exit, ToHome};
use std::io;
use std::time::{Duration, Instant};

/// Where an injected call's siginfo lies in the buffer of its thread's slot.
const INFO_AT: usize = 0x1000;
const LIMIT: Duration = Duration::from_secs(2);
/// Home is told after so many signals that it need not keep them.
const TOOK_EVERY: u64 = 16;
/// Offset of uc_sigmask in the frame of a handler: return address, then ucontext's flags, link, stack and mcontext.
const FRAME_MASK: u64 = 8 + 8 + 8 + 24 + 256;

/// A signal that is not in the body's kernel yet.
#[derive(Debug, Clone)]
pub struct Due {
    /// The thread for whose call's end it waits; none: for the body to run again.
    waits_for: Option<Tid>,
    /// The thread that it is for; none: the process. Its place among the kernel's pending signals follows from this.
    to: Option<Tid>,
    info: RawSigInfo,
}

impl Due {
    /// One that waits for the body to run again.
    pub fn new(to: Option<Tid>, info: RawSigInfo) -> Self {
        let waits_for = None;
        Self { waits_for, to, info }
    }
}

/// Signals on their way to one body.
#[derive(Debug, Default)]
pub struct Signals {
    /// What the body has of home's signals.
    pub inbox: Inbox,
    /// Wait for the end of a call, or for the body to run again.
    due: Vec<Due>,
    /// Some of them could not be placed: to be tried again.
    pub late: bool,
    /// Threads whose call ended with a restart code that means what it says.
    coded: Vec<i32>,
    /// What is pending in the body's kernel, for a thread that executes a program.
    pub seen: Option<Seen>,
}

impl Signals {
    /// Those of an arriving image. What is due for a thread that makes a call which is open at home must not run before that call: it is
    /// taken out of what the kernel will be given.
    pub fn arriving(image: &mut ProcessImage) -> Self {
        let mut due = Vec::new();
        let mut carve = |pending: &mut Vec<SigInfo>, tid: Option<Tid>, mask: u64| {
            pending.retain(|info| match RawSigInfo::try_from(info.0.as_slice()) {
                Ok(info) if mask & bit(number(&info)) == 0 => {
                    due.push(Due::new(tid, info));
                    false
                }
                _ => true,
            });
        };
        let mut waiting = u64::MAX;
        for thread in image.threads.iter_mut().filter(|thread| thread.in_flight) {
            waiting &= thread.mask;
            carve(&mut thread.pending, Some(thread.tid), thread.mask);
        }
        carve(&mut image.pending, None, waiting);
        Self {
            inbox: Inbox(image.signals),
            due,
            late: false,
            coded: Vec::new(),
            seen: None,
        }
    }

    /// The threads of the image are there, with these numbers: a call that an image shows as interrupted had begun.
    pub fn arrived(&mut self, tids: &[i32], threads: &[ThreadImage]) {
        let interrupted = |thread: &ThreadImage| {
            let regs = ptrace::Regs(thread.regs);
            !thread.in_flight && is_trapped(&regs) && matches!(regs.rax() as i64, ERESTARTSYS | ERESTARTNOHAND)
        };
        let coded = tids.iter().zip(threads).filter(|(_, thread)| interrupted(thread));
        self.coded = coded.map(|(tid, _)| *tid).collect();
    }

    /// A signal waits.
    pub fn put_off(&mut self, due: Due) {
        self.due.push(due);
    }

    /// Whether something waits for the end of this thread's call.
    pub fn has_due(&self, tid: Option<Tid>) -> bool {
        self.due.iter().any(|due| tid.is_some() && due.waits_for == tid)
    }

    /// What was not delivered: the thread it is for, or the process, and siginfo.
    pub fn undelivered(&self) -> Vec<(Option<Tid>, RawSigInfo)> {
        self.due.iter().map(|due| (due.to, due.info)).collect()
    }
}

/// Whether registers stand at a call that the agent answers.
fn is_trapped(regs: &ptrace::Regs) -> bool {
    let nr = regs.orig_rax();
    (nr as i64) >= 0 && decide(table::row(nr as u32), &regs.args()) != Decision::Native
}

/// Classifies a stopped thread of a body, as [`settle`] does; but what a trapped call gave is its answer, and one that was not received
/// yet has not begun.
pub fn settle_body(process: &Process, tid: i32, regs: &mut ptrace::Regs) -> Standing {
    if !is_trapped(regs) {
        return settle(regs, |_| false);
    }
    match regs.rax() as i64 {
        ERESTARTSYS | ERESTARTNOHAND if !process.signals.coded.contains(&tid) => {
            regs.set_rax(ERESTARTNOINTR as u64);
            Standing::Again
        }
        ERESTARTSYS | ERESTARTNOHAND | ERESTARTNOINTR => Standing::Again,
        _ => {
            regs.set_orig_rax(u64::MAX);
            Standing::User
        }
    }
}

/// What to do with a thread at a delivery stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Deliver this signal.
    Deliver(i32),
    /// Nothing is delivered.
    Nothing,
    /// The body ends.
    Fatal(Exit),
}

/// A thread's signal state, from /proc.
#[derive(Debug, Clone, Copy, Default)]
pub struct Masks {
    /// It takes none of these now.
    pub blocked: u64,
    /// Its process ignores these.
    pub ignored: u64,
    caught: u64,
    /// These wait for it, or for its process.
    pub pending: u64,
}

fn bit(signal: i32) -> u64 {
    1u64.checked_shl((signal - 1) as u32).unwrap_or(0)
}

/// Reads it; none when the thread is gone.
pub fn masks(tid: i32) -> Option<Masks> {
    let status = Status::read(tid).ok()?;
    Some(Masks {
        blocked: status.signals("SigBlk")? | awaited(tid).unwrap_or(0),
        ignored: status.signals("SigIgn")?,
        caught: status.signals("SigCgt")?,
        pending: status.signals("SigPnd")? | status.signals("ShdPnd")?,
    })
}

/// Whether a signal with a handler waits that the thread blocks and that would be let in by this mask.
fn opens(tid: i32, mask: u64) -> bool {
    masks(tid).is_some_and(|masks| masks.pending & masks.blocked & masks.caught & !mask != 0)
}

/// The signals that a thread waits for in rt_sigtimedwait. The kernel shows them as unblocked meanwhile, but no handler and no default
/// action is due: queued, they end the wait.
fn awaited(tid: i32) -> Option<u64> {
    let call = std::fs::read_to_string(format!("/proc/{tid}/syscall")).ok()?;
    let mut fields = call.split_whitespace();
    if fields.next()?.parse() != Ok(libc::SYS_rt_sigtimedwait) {
        return None;
    }
    let set = u64::from_str_radix(fields.next()?.trim_start_matches("0x"), 16).ok()?;
    ProcMem::guest(tid).read_u64(set).ok()
}

/// What the kernel does with a signal that has no handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Default_ {
    Ignore,
    Stop,
    End { core: bool },
}

fn default_of(signal: i32) -> Default_ {
    match signal {
        libc::SIGCHLD | libc::SIGCONT | libc::SIGURG | libc::SIGWINCH => Default_::Ignore,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => Default_::Stop,
        libc::SIGQUIT
        | libc::SIGILL
        | libc::SIGABRT
        | libc::SIGFPE
        | libc::SIGSEGV
        | libc::SIGBUS
        | libc::SIGSYS
        | libc::SIGTRAP
        | libc::SIGXCPU
        | libc::SIGXFSZ => Default_::End { core: true },
        _ => Default_::End { core: false },
    }
}

fn number(info: &RawSigInfo) -> i32 {
    i32::from_le_bytes([info[0], info[1], info[2], info[3]])
}

/// Home forwards a signal. Gives how the body ended, when that is what it does.
pub fn from_home(
    shared: &Shared,
    process: &mut Process,
    number_at_home: u64,
    tid: Option<Tid>,
    info: &SigInfo,
) -> Option<Exit> {
    let calls = process.calls.clone()?;
    // A captured body takes nothing that its image does not have, and one that home has not released nothing at all: home sends it
    // again, wherever the body goes on.
    if !process.released || process.departure.is_some() || !process.signals.inbox.admit(number_at_home) {
        return None;
    }
    let executes = calls.calls.executes();
    if number_at_home.is_multiple_of(TOOK_EVERY) && !executes {
        let (pid, epoch) = (calls.pid, calls.epoch());
        let number = number_at_home;
        shared.tell(&ToHome::Took { pid, epoch, number }, &[]);
    }
    let info = RawSigInfo::try_from(info.0.as_slice()).ok()?;
    if !(1..=64).contains(&number(&info)) {
        return None;
    }
    if process.frozen.is_some() || process.lent.is_some() || executes {
        process.signals.due.push(Due::new(tid, info));
        return None;
    }
    raise(shared, process, tid, info)
}

/// Delivers what waited while the body stood still.
pub fn catch_up(shared: &Shared, process: &mut Process) -> Option<Exit> {
    // Of a new program they are home's to give.
    let executes = process.calls.as_ref().is_some_and(|calls| calls.calls.executes());
    if process.lent.is_some() || executes {
        return None;
    }
    for due in std::mem::take(&mut process.signals.due) {
        if let Some(how) = raise(shared, process, due.to, due.info) {
            return Some(how);
        }
    }
    None
}

fn raise(shared: &Shared, process: &mut Process, tid: Option<Tid>, info: RawSigInfo) -> Option<Exit> {
    let signal = number(&info);
    let calls = process.calls.clone()?;
    let candidates: Vec<i32> = match tid {
        // One for a thread that has ended went with it.
        Some(tid) => vec![calls.calls.host_tid(tid)?],
        None => process.tids.clone(),
    };
    let taker = candidates.iter().find_map(|tid| {
        let masks = masks(*tid)?;
        // Calls such as ppoll bring a mask of their own, which home's half of the call does not have.
        let blocked = calls.calls.mask(*tid).unwrap_or(masks.blocked);
        (blocked & bit(signal) == 0).then_some((*tid, masks))
    });
    let Some((host, masks)) = taker else {
        // Nobody takes it now: it is pending, in the body's own kernel.
        let host = match (tid, &process.built) {
            (None, Some(built)) => built.body.pid,
            _ => candidates.first().copied()?,
        };
        let queued = queue_to_self(shared, process, host, tid.is_some(), &info);
        process.placed(Due::new(tid, info), queued);
        // Meanwhile one of them may have begun a call whose own mask lets it in.
        for host in candidates {
            end_if_let_in(shared, &calls, host);
        }
        return None;
    };
    if masks.caught & bit(signal) == 0 {
        return match default_of(signal) {
            _ if masks.ignored & bit(signal) != 0 => None,
            Default_::Ignore => None,
            Default_::Stop => {
                stop_at_home(shared, process, signal);
                None
            }
            Default_::End { core } => Some(Exit::Signal {
                signal: signal as u8,
                core,
            }),
        };
    }
    if let Some(end) = calls.calls.wait_for_call(host) {
        let waits_for = calls.calls.home_tid(host);
        process.signals.due.push(Due {
            waits_for,
            to: tid,
            info,
        });
        if let Some(seq) = end {
            cancel(shared, &calls, host, seq);
        }
    } else {
        // The thread that it is to reach queues it: still in the kernel's hands, it is the first that can take it.
        let queued = queue_to_self(shared, process, host, tid.is_some(), &info);
        process.placed(Due::new(tid, info), queued);
    }
    None
}

/// Asks home to end the open call of a thread when a signal waits that the thread blocks and the mask of the call lets in.
pub fn end_if_let_in(shared: &Shared, calls: &BodyCalls, host: i32) {
    let opened = calls.calls.mask(host).is_some_and(|mask| opens(host, mask));
    if opened && let Some(Some(seq)) = calls.calls.wait_for_call(host) {
        cancel(shared, calls, host, seq);
    }
}

/// Asks home to end the open call of a thread.
fn cancel(shared: &Shared, calls: &BodyCalls, host: i32, seq: Seq) {
    if let Some(tid) = calls.calls.home_tid(host) {
        let (pid, epoch) = (calls.pid, calls.epoch());
        shared.tell(&ToHome::Cancel { pid, tid, epoch, seq }, &[]);
    }
}

/// Stops are made at home, whose parent and terminal must see them; the body follows.
fn stop_at_home(shared: &Shared, process: &Process, signal: i32) {
    if let Some(calls) = &process.calls {
        shared.tell(
            &ToHome::StopSignal {
                pid: calls.pid,
                epoch: calls.epoch(),
                signal: signal as u8,
            },
            &[],
        );
    }
}

/// A thread of the body is about to get a signal.
pub fn at_stop(shared: &Shared, process: &mut Process, tid: i32, signal: i32) -> Delivery {
    let masks = masks(tid).unwrap_or_default();
    if masks.caught & bit(signal) == 0 {
        return match default_of(signal) {
            _ if masks.ignored & bit(signal) != 0 => Delivery::Nothing,
            Default_::Ignore => Delivery::Nothing,
            Default_::Stop => {
                stop_at_home(shared, process, signal);
                Delivery::Nothing
            }
            Default_::End { core } => Delivery::Fatal(Exit::Signal {
                signal: signal as u8,
                core,
            }),
        };
    }
    let coded = process.signals.coded.iter().position(|other| *other == tid);
    match coded {
        Some(index) => {
            process.signals.coded.swap_remove(index);
        }
        None => spare_call(tid),
    }
    Delivery::Deliver(signal)
}

/// A trapped call that was interrupted before the agent received it has not begun: it must not end with EINTR.
fn spare_call(tid: i32) {
    let Ok(mut regs) = ptrace::regs(tid) else { return };
    if is_trapped(&regs) && matches!(regs.rax() as i64, ERESTARTSYS | ERESTARTNOHAND) {
        regs.set_rax(ERESTARTNOINTR as u64);
        let _ = ptrace::set_regs(tid, &regs);
    }
}

/// A call is over at home for whose end signals waited: the thread gets the result while it is interrupted, and the signals before it
/// returns to its program.
///
/// # Errors
/// The thread ended, or does not stop.
pub fn call_over(process: &mut Process, host: i32, result: i64) -> io::Result<()> {
    let Some(calls) = process.calls.clone() else {
        return Ok(());
    };
    ptrace::interrupt(host)?;
    let Some((id, nr, mask)) = calls.calls.take_due(host) else {
        // Its thread was stopped meanwhile, at the call's instruction: result and signals wait for it to make the call again.
        calls.calls.over(host, result);
        return Ok(());
    };
    let tid = calls.calls.home_tid(host);
    let due = process.signals.take_due(tid);
    let opened = mask.is_some_and(|mask| opens(host, mask));
    let answer = match result {
        // Also without time to wait these look for signals, when nothing else is ready.
        0 if opened && matches!(i64::from(nr), libc::SYS_ppoll | libc::SYS_pselect6) => ERESTARTNOHAND,
        // The deadline is home's; a handler ends such a call with EINTR whatever its flags, and without one it goes on.
        ERESTART_RESTARTBLOCK if due.is_empty() => ERESTARTNOINTR,
        ERESTART_RESTARTBLOCK => EINTR,
        -515 => ERESTARTNOINTR,
        other => other,
    };
    // A call that found what it waited for lets no signal in.
    let mask = mask.filter(|_| matches!(answer, EINTR | ERESTARTSYS | ERESTARTNOHAND | ERESTARTNOINTR));
    serve::send(&calls, host, id, Answer::Result(answer));
    if let Err(error) = process.wait_stop(host) {
        process.signals.due.extend(due);
        process.signals.late = true;
        return Err(error);
    }
    let old = ptrace::sigmask(host)?;
    let during = mask.unwrap_or(old);
    if mask.is_some() {
        ptrace::set_sigmask(host, during)?;
    }
    process.signals.coded.retain(|other| *other != host);
    if opened || due.iter().any(|due| during & bit(number(&due.info)) == 0) {
        process.signals.coded.push(host);
    }
    for due in due {
        let queued = queue_stopped(process, host, due.to.is_some(), &due.info);
        process.placed(due, queued);
    }
    if mask.is_some() {
        under_mask(process, host, during, old)?;
    }
    ptrace::cont(host, 0)
}

/// Lets the first handler begin under a temporary mask, with the old mask as what its return brings back. The thread is let go only while a
/// signal with a handler waits: that signal's stop is where it is interrupted again, before the handler's first instruction. Interrupted
/// earlier it would stop before any signal.
fn under_mask(process: &mut Process, host: i32, during: u64, old: u64) -> io::Result<()> {
    let before = ptrace::regs(host)?.rsp();
    // Each time at least one signal is taken.
    for _ in 0..64 {
        let waits = masks(host).is_some_and(|masks| masks.pending & masks.caught & !during != 0);
        if !waits {
            break;
        }
        ptrace::cont(host, 0)?;
        process.wait_stop(host)?;
        let regs = ptrace::regs(host)?;
        if regs.rsp() < before && in_handler(&regs) {
            return ProcMem::guest(host).write(regs.rsp() + FRAME_MASK, &old.to_le_bytes());
        }
    }
    ptrace::set_sigmask(host, old)
}

/// At a handler's first instruction rdx points at the frame's ucontext.
fn in_handler(regs: &ptrace::Regs) -> bool {
    regs.rdx() == regs.rsp() + 8
}

impl Signals {
    /// What waits for the end of this thread's call.
    fn take_due(&mut self, tid: Option<Tid>) -> Vec<Due> {
        let (now, later) = std::mem::take(&mut self.due)
            .into_iter()
            .partition(|due| tid.is_some() && due.waits_for == tid);
        self.due = later;
        now
    }
}

impl Process {
    /// A signal was queued, or could not be: then it is tried again, unless nobody is left to take it.
    fn placed(&mut self, due: Due, result: io::Result<()>) {
        let signal = number(&due.info);
        match result {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                tracing::debug!(pid = %self.pid, signal, "nobody is left for a signal");
            }
            Err(error) => {
                tracing::warn!(pid = %self.pid, signal, %error, "a signal has to wait");
                self.signals.due.push(due);
                self.signals.late = true;
            }
        }
    }

    /// Waits until a thread stands still that was interrupted and whose call was answered.
    fn wait_stop(&mut self, tid: i32) -> io::Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match wait_for(tid, deadline)? {
                Some(Event::Stop(_)) => return Ok(()),
                Some(Event::Signal(signal)) => {
                    ptrace::interrupt(tid)?;
                    ptrace::cont(tid, signal)?;
                }
                Some(Event::Exited(_) | Event::Killed(..)) => {
                    self.thread_gone(tid);
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                Some(_) => {
                    ptrace::interrupt(tid)?;
                    ptrace::cont(tid, 0)?;
                }
                None => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }
}

/// Makes the body queue a signal to itself: to a thread of it, or to the process. Only so may siginfo say anything.
fn queue_to_self(
    shared: &Shared,
    process: &mut Process,
    host: i32,
    to_thread: bool,
    info: &RawSigInfo,
) -> io::Result<()> {
    let sleeper = process.sleeper(host);
    process.stop_thread(shared, host, LIMIT)?;
    let stopped = FrozenThread::take(host, sleeper, |regs| settle_body(process, host, regs))?;
    put_back(&stopped)?;
    let queued = queue_stopped(process, host, to_thread, info);
    process.go_on_alone(stopped)?;
    queued
}

/// The same for a thread that stands still, and goes on standing as it does.
fn queue_stopped(process: &Process, host: i32, to_thread: bool, info: &RawSigInfo) -> io::Result<()> {
    let gone = || io::Error::from_raw_os_error(libc::ESRCH);
    let (Some(built), Some(calls)) = (&process.built, process.calls.as_ref()) else {
        return Err(gone());
    };
    let slot = built.body.tids.iter().position(|tid| *tid == host).ok_or_else(gone)?;
    // The kernel lets a thread choose any siginfo only for a signal to its own process, by its own numbers.
    let number_inside = built.image.threads.get(slot).map_or(0, |thread| thread.tid.0) as u64;
    built.body.window.write_buffer(slot as u32, INFO_AT, info)?;
    let at = Window::buffer(slot as u32).0 + INFO_AT as u64;
    let (signal, pid) = (number(info) as u64, process.pid.0 as u64);
    // Only the first thread may say in the process's name that another process sent it. Another one that is about to take the signal may
    // as well have it for itself: nobody else could take it before.
    let (nr, args) = if to_thread || number_inside != pid {
        (libc::SYS_rt_tgsigqueueinfo, [pid, number_inside, signal, at, 0, 0])
    } else {
        (libc::SYS_rt_sigqueueinfo, [pid, signal, at, 0, 0, 0])
    };
    calls.calls.set_injecting(host, true);
    let result = inject(host, nr, args);
    calls.calls.set_injecting(host, false);
    match result? {
        error @ -4095..=-1 => Err(io::Error::from_raw_os_error(-error as i32)),
        _ => Ok(()),
    }
}

/// Makes a stopped thread execute one system call, from the stub's text so that it is known for the agent's own.
///
/// # Errors
/// As [`step::call`].
pub fn inject(tid: i32, nr: i64, args: [u64; 6]) -> io::Result<i64> {
    let at = stub().map_err(io::Error::other)?.syscall;
    let saved = ptrace::regs(tid)?;
    let mask = ptrace::sigmask(tid)?;
    ptrace::set_sigmask(tid, step::QUIET)?;
    let result = step::call(tid, at, nr as u64, args, LIMIT);
    ptrace::set_regs(tid, &saved)?;
    ptrace::set_sigmask(tid, mask)?;
    result
}
