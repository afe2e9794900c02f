//! Signals of home for a body: which thread gets one, with home's siginfo, and what becomes of a call that it interrupts.
//!
//! The body's kernel holds pending signals and masks, so it decides what they decide at home; only the choice of the thread and the
//! end of a call that is open at home need help:
//!
//! ```text
//!  no thread takes it      the body queues it to itself, with the true siginfo: it is pending natively
//!  ignored                 dropped
//!  deadly by default       the body ends
//!  thread in a home call   Cancel; home's answer ends the call natively, under PTRACE_INTERRUPT, then as below
//!  else                    tgkill, and the true siginfo at the delivery stop
//! ```
//! See design.md, "Signals"; ptrace(2) for delivery stops.

use super::process::Process;
use super::serve;
use super::shared::Shared;
use crate::process::freeze::wait_for;
use crate::process::restart::{EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOINTR, settle};
use crate::process::step;
use crate::process::window::Window;
use crate::syscall::decide::{Decision, decide};
use crate::syscall::table;
use mosix_loader::script::stub;
use mosix_sys::notif::Answer;
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace::{self, Event, RawSigInfo};
use mosix_wire::ids::Tid;
use mosix_wire::image::SigInfo;
use mosix_wire::link::{Exit, ToHome};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

/// Standard signals are not queued twice.
const FIRST_REAL_TIME: i32 = 32;
const SI_TKILL: i32 = -6;
/// Where an injected call's siginfo lies in the buffer of its thread's slot.
const INFO_AT: usize = 0x1000;
const LIMIT: Duration = Duration::from_secs(2);
/// Offset of uc_sigmask in the frame of a handler: return address, then ucontext's flags, link, stack and mcontext.
const FRAME_MASK: u64 = 8 + 8 + 8 + 24 + 256;

/// Signals on their way to one body.
#[derive(Debug, Default)]
pub struct Signals {
    /// Sent with tgkill, not delivered yet, with what home said of them.
    expected: HashMap<(i32, i32), VecDeque<RawSigInfo>>,
    /// Wait for the end of a call, or for the body to run again.
    due: Vec<(Option<Tid>, RawSigInfo)>,
    /// Threads whose call was answered with a restart code on purpose.
    coded: Vec<i32>,
}

impl Signals {
    /// Gives captured pending signals of a thread their true siginfo: what the agent had sent itself shows only the agent.
    pub fn make_true(&self, host: i32, pending: &mut [SigInfo]) {
        let mut used: HashMap<i32, usize> = HashMap::new();
        for pending in pending {
            let Ok(info) = RawSigInfo::try_from(pending.0.as_slice()) else {
                continue;
            };
            if code(&info) != SI_TKILL || sender(&info) != 0 {
                continue;
            }
            let signal = number(&info);
            let place = used.entry(signal).or_default();
            if let Some(truth) = self.expected.get(&(host, signal)).and_then(|queue| queue.get(*place)) {
                pending.0 = truth.to_vec();
                *place += 1;
            }
        }
    }

    /// What was not delivered: the thread it is for, or the process, and siginfo.
    pub fn undelivered(&self) -> Vec<(Option<Tid>, RawSigInfo)> {
        self.due.clone()
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
struct Masks {
    blocked: u64,
    ignored: u64,
    caught: u64,
}

fn bit(signal: i32) -> u64 {
    1u64.checked_shl((signal - 1) as u32).unwrap_or(0)
}

fn masks(tid: i32) -> Option<Masks> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    Some(Masks {
        blocked: field("SigBlk:")? | awaited(tid).unwrap_or(0),
        ignored: field("SigIgn:")?,
        caught: field("SigCgt:")?,
    })
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

fn code(info: &RawSigInfo) -> i32 {
    i32::from_le_bytes([info[8], info[9], info[10], info[11]])
}

fn sender(info: &RawSigInfo) -> i32 {
    i32::from_le_bytes([info[16], info[17], info[18], info[19]])
}

/// Home forwards a signal. Gives how the body ended, when that is what it does.
pub fn from_home(shared: &Shared, process: &mut Process, tid: Option<Tid>, info: &SigInfo) -> Option<Exit> {
    let Ok(info) = RawSigInfo::try_from(info.0.as_slice()) else {
        return None;
    };
    if !(1..=64).contains(&number(&info)) {
        return None;
    }
    if process.frozen.is_some() {
        process.signals.due.push((tid, info));
        return None;
    }
    raise(shared, process, tid, info)
}

/// Delivers what waited while the body stood still.
pub fn catch_up(shared: &Shared, process: &mut Process) -> Option<Exit> {
    for (tid, info) in std::mem::take(&mut process.signals.due) {
        if let Some(how) = raise(shared, process, tid, info) {
            return Some(how);
        }
    }
    None
}

fn raise(shared: &Shared, process: &mut Process, tid: Option<Tid>, info: RawSigInfo) -> Option<Exit> {
    let signal = number(&info);
    let calls = process.calls.clone()?;
    let candidates: Vec<i32> = match tid {
        Some(tid) => calls.calls.host_tid(tid).into_iter().collect(),
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
        let queued = queue_to_self(shared, process, tid.and(candidates.first().copied()), &info);
        report(process, signal, queued);
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
    if let Some(cancel) = calls.calls.wait_for_call(host) {
        let home = calls.calls.home_tid(host);
        process.signals.due.push((home, info));
        if let (Some(seq), Some(tid)) = (cancel, home) {
            shared.tell(
                &ToHome::Cancel {
                    pid: calls.pid,
                    tid,
                    epoch: calls.epoch(),
                    seq,
                },
                &[],
            );
        }
    } else if calls.calls.is_waiting(host) {
        // It waits for the process to come home: the signal goes with it.
        process.signals.due.push((calls.calls.home_tid(host), info));
    } else if waits_for_signals(host) {
        // sigwaitinfo(2) takes a signal without a delivery stop: it must be true from the start.
        let queued = queue_to_self(shared, process, tid.map(|_| host), &info);
        report(process, signal, queued);
    } else {
        let sent = send(process, host, info);
        report(process, signal, sent);
    }
    None
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

fn report(process: &Process, signal: i32, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(pid = %process.pid, signal, %error, "a signal could not be given to the body");
    }
}

fn waits_for_signals(tid: i32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
    call.split(' ').next() == Some("128")
}

/// Sends a signal natively and remembers what it must look like.
fn send(process: &mut Process, host: i32, info: RawSigInfo) -> io::Result<()> {
    let signal = number(&info);
    let group = process.built.as_ref().map_or(host, |built| built.body.pid);
    let expected = process.signals.expected.entry((host, signal)).or_default();
    if signal < FIRST_REAL_TIME && !expected.is_empty() {
        return Ok(());
    }
    expected.push_back(info);
    mosix_sys::process::tgkill(group, host, signal).map_err(io::Error::from)
}

/// A thread of the body is about to get a signal.
pub fn at_stop(shared: &Shared, process: &mut Process, tid: i32, signal: i32) -> Delivery {
    if !process.expects(tid, signal).unwrap_or(false) {
        return Delivery::Nothing;
    }
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
    let (nr, result) = (regs.orig_rax(), regs.rax() as i64);
    if (nr as i64) < 0 || !matches!(result, -514 | -512) {
        return;
    }
    if decide(table::row(nr as u32), &regs.args()) != Decision::Native {
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
    let tid = calls.calls.home_tid(host);
    let infos = take_due(process, tid);
    let answer = match result {
        // The deadline is home's; a handler ends such a call with EINTR whatever its flags, and without one it goes on.
        ERESTART_RESTARTBLOCK if infos.is_empty() => ERESTARTNOINTR,
        ERESTART_RESTARTBLOCK => EINTR,
        -515 => ERESTARTNOINTR,
        other => other,
    };
    ptrace::interrupt(host)?;
    let Some((id, mask)) = calls.calls.take_due(host) else {
        // Its thread was stopped meanwhile, at the call's instruction: result and signals wait for it to make the call again.
        calls.calls.over(host, answer);
        process.signals.due.extend(infos.into_iter().map(|info| (tid, info)));
        return Ok(());
    };
    serve::send(&calls, host, id, Answer::Result(answer));
    process.wait_stop(host)?;
    process.signals.coded.push(host);
    let old = ptrace::sigmask(host)?;
    if let Some(mask) = mask {
        ptrace::set_sigmask(host, mask)?;
    }
    for info in infos {
        let signal = number(&info);
        let sent = send(process, host, info);
        report(process, signal, sent);
    }
    if mask.is_some() {
        under_mask(process, host, old)?;
    }
    ptrace::cont(host, 0)
}

/// Lets the first handler begin under a temporary mask, with the old mask as what its return brings back.
fn under_mask(process: &mut Process, host: i32, old: u64) -> io::Result<()> {
    let before = ptrace::regs(host)?.rsp();
    // The interrupt is renewed while the thread stands: after whatever the signals do, it stops before its program's next instruction.
    ptrace::interrupt(host)?;
    ptrace::cont(host, 0)?;
    process.wait_stop(host)?;
    let regs = ptrace::regs(host)?;
    if regs.rsp() < before && in_handler(&regs) {
        ProcMem::guest(host).write(regs.rsp() + FRAME_MASK, &old.to_le_bytes())
    } else {
        ptrace::set_sigmask(host, old)
    }
}

/// At a handler's first instruction rdx points at the frame's ucontext.
fn in_handler(regs: &ptrace::Regs) -> bool {
    regs.rdx() == regs.rsp() + 8
}

fn take_due(process: &mut Process, tid: Option<Tid>) -> Vec<RawSigInfo> {
    let due = std::mem::take(&mut process.signals.due);
    let (now, later) = due.into_iter().partition(|(whose, _)| *whose == tid);
    process.signals.due = later;
    let now: Vec<(Option<Tid>, RawSigInfo)> = now;
    now.into_iter().map(|(_, info)| info).collect()
}

impl Process {
    /// At a delivery stop of an expected signal: its true siginfo is put in place.
    fn expects(&mut self, tid: i32, signal: i32) -> io::Result<bool> {
        let info = ptrace::siginfo(tid)?;
        if code(&info) != SI_TKILL || sender(&info) != 0 {
            return Ok(true);
        }
        match self
            .signals
            .expected
            .get_mut(&(tid, signal))
            .and_then(VecDeque::pop_front)
        {
            Some(truth) => ptrace::set_siginfo(tid, &truth).map(|()| true),
            None => Ok(false),
        }
    }

    /// Waits until a thread stands still that was interrupted and whose call was answered.
    fn wait_stop(&mut self, tid: i32) -> io::Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match wait_for(tid, deadline)? {
                Some(Event::Stop(_)) => return Ok(()),
                Some(Event::Signal(signal)) => {
                    let deliver = if self.expects(tid, signal)? { signal } else { 0 };
                    ptrace::interrupt(tid)?;
                    ptrace::cont(tid, deliver)?;
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
fn queue_to_self(shared: &Shared, process: &mut Process, thread: Option<i32>, info: &RawSigInfo) -> io::Result<()> {
    let (Some(built), Some(calls)) = (&process.built, process.calls.clone()) else {
        return Ok(());
    };
    // The kernel lets a thread choose any siginfo only for a signal to its own number.
    let host = thread.unwrap_or(built.body.pid);
    let slot = built.body.tids.iter().position(|tid| *tid == host);
    let slot = slot.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))? as u32;
    let number_inside = built.image.threads.get(slot as usize).map_or(0, |thread| thread.tid.0) as u64;
    built.body.window.write_buffer(slot, INFO_AT, info)?;
    let at = Window::buffer(slot).0 + INFO_AT as u64;
    let (signal, pid) = (number(info) as u64, process.pid.0 as u64);
    process.stop_thread(shared, host, LIMIT)?;
    calls.calls.set_injecting(host, true);
    let result = match thread {
        Some(_) => inject(
            host,
            libc::SYS_rt_tgsigqueueinfo,
            [pid, number_inside, signal, at, 0, 0],
        ),
        None => inject(host, libc::SYS_rt_sigqueueinfo, [pid, signal, at, 0, 0, 0]),
    };
    calls.calls.set_injecting(host, false);
    ptrace::cont(host, 0)?;
    match result? {
        error @ -4095..=-1 => Err(io::Error::from_raw_os_error(-error as i32)),
        _ => Ok(()),
    }
}

/// Makes a stopped thread execute one system call, from the stub's text so that it is known for the agent's own.
fn inject(tid: i32, nr: i64, args: [u64; 6]) -> io::Result<i64> {
    let at = stub().map_err(io::Error::other)?.syscall;
    let mut saved = ptrace::regs(tid)?;
    settle(&mut saved, |_| false);
    let mask = ptrace::sigmask(tid)?;
    ptrace::set_sigmask(tid, step::QUIET)?;
    let result = step::call(tid, at, nr as u64, args, LIMIT);
    ptrace::set_regs(tid, &saved)?;
    ptrace::set_sigmask(tid, mask)?;
    result
}
