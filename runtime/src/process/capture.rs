//! From a frozen process to a [`ProcessImage`].
//!
//! What the kernel tells from outside is read from /proc and by ptrace; what only the thread itself can ask (alternate stack, tid address,
//! handlers …) is asked by a script in its slot: every thread enters the stub, runs its script in parallel with the others, and
//! waits there. At home it stays as the deputy's thread, on a host it waits for its end or its thaw.

use super::freeze::{Frozen, FrozenThread};
use super::maps::Mapping;
use super::restart::Standing;
use super::window::{ScriptError, Window, slot_address};
use crate::syscall::table;
use mosix_loader::script::abi::SLOT_STACK_TOP;
use mosix_loader::script::{Op, StubError, stub};
use mosix_sys::ptrace;
use mosix_wire::ids::Tid;
use mosix_wire::image::{Attributes, Clocks, IntervalTimer, MmImage, Rseq, SigAction, SigInfo, ThreadImage};
use mosix_wire::spent::CpuTime;
use std::io;
use std::time::{Duration, Instant};

/// How long one round of capture scripts may take.
const SCRIPT_LIMIT: Duration = Duration::from_secs(5);
const PR_GET_TID_ADDRESS: u64 = 40;
const PR_GET_THP_DISABLE: u64 = 42;
const MEMBARRIER_GET_REGISTRATIONS: u64 = 1 << 9;
const RSEQ_UNREGISTER: u64 = 1;
const SIGNALS: usize = 64;
const LDT_ENTRY: u64 = 8;
const KERNEL_SIGACTION: usize = 32;

/// What only the process itself could tell.
#[derive(Debug)]
pub struct Captured {
    /// One image per frozen thread, in the same order.
    pub threads: Vec<ThreadImage>,
    /// Dispositions of signals 1 to 64.
    pub actions: Vec<SigAction>,
    /// Signals pending for the process.
    pub pending: Vec<SigInfo>,
    /// Current program break.
    pub brk: u64,
    /// prctl and personality values.
    pub attributes: Attributes,
}

/// Why a capture failed. The threads still sit in the stub, or are gone; [`undo`] brings them back.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A thread vanished or ptrace failed.
    #[error("thread {tid}: {error}")]
    Thread {
        /// The thread.
        tid: i32,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A capture script failed.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// /proc did not tell what the image needs.
    #[error("/proc/{pid}/{file}: {error}")]
    Proc {
        /// The process.
        pid: i32,
        /// The file.
        file: &'static str,
        /// What went wrong.
        error: io::Error,
    },
    /// More threads than a window has slots.
    #[error(
        "process {pid} has {count} threads; at most {} can move",
        mosix_wire::limits::THREADS
    )]
    Threads {
        /// The process.
        pid: i32,
        /// Its threads.
        count: usize,
    },
    /// It has a local descriptor table.
    #[error("process {0} has a local descriptor table (modify_ldt)")]
    LocalDescriptors(i32),
    /// It handles system calls by itself.
    #[error("thread {0} handles its own system calls (syscall user dispatch)")]
    Dispatch(i32),
    /// The stub in this binary is damaged.
    #[error(transparent)]
    Stub(#[from] StubError),
}

/// Sends every frozen thread into the stub and asks it what only it knows. Thread `i` uses slot `slots[i]`.
///
/// `number` translates a tid of this node into the one that the program sees.
pub fn capture(
    frozen: &Frozen,
    window: &Window,
    slots: &[u32],
    number: impl Fn(i32) -> i32,
) -> Result<Captured, CaptureError> {
    let count = frozen.threads.len();
    if count > mosix_wire::limits::THREADS || count == 0 || slots.len() != count {
        return Err(CaptureError::Threads { pid: frozen.pid, count });
    }
    if let Some(thread) = frozen.threads.iter().find(|thread| ptrace::dispatches(thread.tid)) {
        return Err(CaptureError::Dispatch(thread.tid));
    }
    let mut images = outside(frozen, number)?;
    let (actions, brk, attributes, pending) = inside(frozen, window, slots, &mut images, true)?;
    let buffer = Window::buffer(slots[0]).0;
    // READ of modify_ldt(2): how many bytes of a table there are.
    let ask = Op::may(libc::SYS_modify_ldt, [0, buffer, LDT_ENTRY, 0, 0, 0]);
    if window
        .run(slots[0], &[ask], SCRIPT_LIMIT)?
        .first()
        .is_some_and(|bytes| *bytes > 0)
    {
        return Err(CaptureError::LocalDescriptors(frozen.pid));
    }
    Ok(Captured {
        threads: images,
        actions,
        pending,
        brk,
        attributes,
    })
}

/// What the kernel tells of frozen threads from outside. Nothing of them has changed yet.
///
/// # Errors
/// A thread vanished.
pub fn outside(frozen: &Frozen, number: impl Fn(i32) -> i32) -> Result<Vec<ThreadImage>, CaptureError> {
    let one = |thread: &FrozenThread| {
        outside_one(thread, number(thread.tid)).map_err(|error| CaptureError::Thread { tid: thread.tid, error })
    };
    frozen.threads.iter().map(one).collect()
}

type Inside = (Vec<SigAction>, u64, Attributes, Vec<SigInfo>);

/// Sends every thread into the stub and asks it the rest; gives what concerns the process: dispositions, program break, attributes, pending
/// signals. Names, timer slacks, personality, dumpability and the stack limit are asked for `at_home` alone: on a host these calls are
/// home's.
///
/// # Errors
/// [`CaptureError`]; some threads are in the stub then, some are not.
pub fn inside(
    frozen: &Frozen,
    window: &Window,
    slots: &[u32],
    images: &mut [ThreadImage],
    at_home: bool,
) -> Result<Inside, CaptureError> {
    let count = frozen.threads.len();
    if count > mosix_wire::limits::THREADS || count == 0 || slots.len() != count || images.len() != count {
        return Err(CaptureError::Threads { pid: frozen.pid, count });
    }
    let entry = stub()?.deputy_entry;
    let mut scripts = Vec::with_capacity(count);
    let shared_pending = ptrace::pending(frozen.pid, true).unwrap_or_default();
    for ((slot, thread), image) in slots.iter().copied().zip(&frozen.threads).zip(images.iter()) {
        let script = questions(slot, image, at_home);
        window.reset(slot).map_err(ScriptError::from)?;
        window.post(slot, &script)?;
        enter(thread, slot, entry).map_err(|error| CaptureError::Thread { tid: thread.tid, error })?;
        scripts.push(script);
    }
    let deadline = Instant::now() + SCRIPT_LIMIT;
    window.settle(slots, deadline).map_err(ScriptError::from)?;
    for (slot, (image, script)) in slots.iter().copied().zip(images.iter_mut().zip(&scripts)) {
        let results = window.finish(slot, script, deadline)?;
        answers(window, slot, &results, image, at_home)?;
    }
    let (actions, brk, attributes) = process_questions(window, slots[0], at_home)?;
    let pending = shared_pending.into_iter().map(|info| SigInfo(info.to_vec())).collect();
    Ok((actions, brk, attributes, pending))
}

/// Points a stopped thread at the stub with all signals blocked, and lets it go.
fn enter(thread: &FrozenThread, slot: u32, entry: u64) -> io::Result<()> {
    enter_stub((thread.tid, thread.regs), slot, entry, u64::MAX)
}

/// Points a stopped thread at the stub's loop, at `entry`, with this slot and signal mask, and lets it go.
///
/// # Errors
/// When the thread is gone.
pub fn enter_stub((tid, mut regs): (i32, ptrace::Regs), slot: u32, entry: u64, mask: u64) -> io::Result<()> {
    regs.set_orig_rax(u64::MAX);
    regs.set_rax(0);
    regs.set_rip(entry);
    regs.set_rdi(slot_address(slot));
    regs.set_rsp(slot_address(slot) + SLOT_STACK_TOP);
    // The direction flag and single-step bits of the guest must not reach the stub.
    regs.set_eflags(0x202);
    ptrace::set_regs(tid, &regs)?;
    ptrace::set_sigmask(tid, mask)?;
    ptrace::cont(tid, 0)
}

fn outside_one(thread: &FrozenThread, number: i32) -> io::Result<ThreadImage> {
    let tid = thread.tid;
    // What a host executes itself is no call of home's that goes on.
    let forwarded = table::row(thread.regs.orig_rax() as u32).forwards();
    Ok(ThreadImage {
        tid: Tid(number),
        regs: thread.regs.0,
        xsave: ptrace::xstate(tid)?,
        mask: ptrace::sigmask(tid)?,
        altstack: (0, 2, 0),
        robust: ptrace::robust_list(tid)?,
        clear_child_tid: 0,
        rseq: ptrace::rseq(tid)
            .unwrap_or(None)
            .map(|(address, size, signature)| Rseq {
                address,
                size,
                signature,
            }),
        pending: ptrace::pending(tid, false)?
            .into_iter()
            .map(|info| SigInfo(info.to_vec()))
            .collect(),
        timer_slack: 0,
        comm: String::new(),
        seq: 0,
        in_flight: forwarded
            && (matches!(thread.standing, Standing::Block | Standing::Short(_)) || thread.since.is_some()),
        since: thread.since,
        cpu: CpuTime::default(),
    })
}

/// Offsets in the slot's buffer of what the thread's script writes.
const AT_ALTSTACK: usize = 0;
const AT_TID_ADDRESS: usize = 32;
const AT_NAME: usize = 48;
const AT_END: usize = 64;

fn questions(slot: u32, image: &ThreadImage, at_home: bool) -> Vec<Op> {
    let buffer = Window::buffer(slot).0;
    let mut script = vec![
        Op::may(libc::SYS_sigaltstack, [0, buffer + AT_ALTSTACK as u64, 0, 0, 0, 0]),
        Op::may(
            libc::SYS_prctl,
            [PR_GET_TID_ADDRESS, buffer + AT_TID_ADDRESS as u64, 0, 0, 0, 0],
        ),
    ];
    if at_home {
        let name = buffer + AT_NAME as u64;
        script.push(Op::may(
            libc::SYS_prctl,
            [libc::PR_GET_TIMERSLACK as u64, 0, 0, 0, 0, 0],
        ));
        script.push(Op::may(libc::SYS_prctl, [libc::PR_GET_NAME as u64, name, 0, 0, 0, 0]));
    }
    if let Some(rseq) = image.rseq {
        // Left registered, the kernel would fault the area in again, or kill a deputy whose memory was dropped.
        let args = [
            rseq.address,
            rseq.size.into(),
            RSEQ_UNREGISTER,
            rseq.signature.into(),
            0,
            0,
        ];
        script.push(Op::may(libc::SYS_rseq, args));
    }
    script
}

fn answers(
    window: &Window,
    slot: u32,
    results: &[i64],
    image: &mut ThreadImage,
    at_home: bool,
) -> Result<(), CaptureError> {
    let bytes = window.read_buffer(slot, 0, AT_END).map_err(ScriptError::from)?;
    if results.first() == Some(&0) {
        let flags = u32_at(&bytes, AT_ALTSTACK + 8) as i32;
        image.altstack = (u64_at(&bytes, AT_ALTSTACK), flags, u64_at(&bytes, AT_ALTSTACK + 16));
    }
    if results.get(1) == Some(&0) {
        image.clear_child_tid = u64_at(&bytes, AT_TID_ADDRESS);
    }
    if at_home {
        image.timer_slack = results.get(2).copied().unwrap_or(0).max(0) as u64;
        let name = bytes.get(AT_NAME..AT_END).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        image.comm = String::from_utf8_lossy(name).into_owned();
    }
    Ok(())
}

/// The reverse of the capture's rseq removal, as a script for the thread when it goes back to its program.
pub fn rseq_script(image: &ThreadImage) -> Option<Op> {
    let rseq = image.rseq?;
    Some(Op::may(
        libc::SYS_rseq,
        [rseq.address, rseq.size.into(), 0, rseq.signature.into(), 0, 0],
    ))
}

/// Asks one thread what concerns the whole process. On a host it asks only what is native there: the rest is home's word, and each question
/// would cost a round trip to the agent while the program stands still.
fn process_questions(
    window: &Window,
    slot: u32,
    at_home: bool,
) -> Result<(Vec<SigAction>, u64, Attributes), CaptureError> {
    let buffer = Window::buffer(slot).0;
    let mut script: Vec<Op> = (1..=SIGNALS as u64)
        .map(|signal| {
            let at = buffer + (signal - 1) * KERNEL_SIGACTION as u64;
            Op::may(libc::SYS_rt_sigaction, [signal, 0, at, 8, 0, 0])
        })
        .collect();
    let limits = SIGNALS * KERNEL_SIGACTION;
    let at = |offset: usize| buffer + (limits + offset) as u64;
    script.extend([
        Op::may(libc::SYS_brk, [0; 6]),
        Op::may(libc::SYS_prctl, [PR_GET_THP_DISABLE, 0, 0, 0, 0, 0]),
        Op::may(libc::SYS_membarrier, [MEMBARRIER_GET_REGISTRATIONS, 0, 0, 0, 0, 0]),
        Op::may(libc::SYS_getitimer, [libc::ITIMER_VIRTUAL as u64, at(32), 0, 0, 0, 0]),
        Op::may(libc::SYS_getitimer, [libc::ITIMER_PROF as u64, at(64), 0, 0, 0, 0]),
    ]);
    if at_home {
        let (stack, cpu) = (u64::from(libc::RLIMIT_STACK), u64::from(libc::RLIMIT_CPU));
        script.extend([
            Op::may(libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0]),
            Op::may(libc::SYS_prctl, [libc::PR_GET_DUMPABLE as u64, 0, 0, 0, 0, 0]),
            Op::may(libc::SYS_prlimit64, [0, stack, 0, at(0), 0, 0]),
            Op::may(libc::SYS_prlimit64, [0, cpu, 0, at(16), 0, 0]),
        ]);
    }
    let results = window.run(slot, &script, SCRIPT_LIMIT)?;
    let bytes = window.read_buffer(slot, 0, limits + 96).map_err(ScriptError::from)?;
    let actions = (0..SIGNALS)
        .map(|index| {
            let at = index * KERNEL_SIGACTION;
            let field = |field: usize| u64_at(&bytes, at + field * 8);
            SigAction {
                handler: field(0),
                flags: field(1),
                restorer: field(2),
                mask: field(3),
            }
        })
        .collect();
    let value = |index: usize| results.get(SIGNALS + index).copied().unwrap_or(0).max(0) as u64;
    let mut attributes = Attributes {
        thp_disable: value(1) == 1,
        membarrier: value(2) as u32,
        cpu_timers: [itimer_at(&bytes, limits + 32), itimer_at(&bytes, limits + 64)],
        ..Attributes::default()
    };
    if at_home {
        attributes.personality = value(5) as u32;
        attributes.dumpable = value(6) as u8;
        attributes.stack_limit = u64_at(&bytes, limits);
        let cpu_limit = (u64_at(&bytes, limits + 16), u64_at(&bytes, limits + 24));
        attributes.cpu_limit = Some(cpu_limit).filter(|limit| *limit != (libc::RLIM_INFINITY, libc::RLIM_INFINITY));
    }
    Ok((actions, value(0), attributes))
}

/// Reads the observable fields of mm_struct from /proc; `brk` comes from the process itself.
pub fn mm(tid: i32, brk: u64) -> Result<MmImage, CaptureError> {
    let failed = |file, error| CaptureError::Proc { pid: tid, file, error };
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).map_err(|error| failed("stat", error))?;
    let rest = stat.rfind(')').map_or("", |end| &stat[end + 1..]);
    let fields: Vec<u64> = rest
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // Field numbers of proc_pid_stat(5), less the three before and including the state's predecessor.
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    if field(26) == 0 {
        return Err(failed(
            "stat",
            io::Error::other("addresses are hidden (no ptrace rights)"),
        ));
    }
    let fields = [
        field(26),
        field(27),
        field(45),
        field(46),
        field(47),
        brk,
        field(28),
        field(48),
        field(49),
        field(50),
        field(51),
    ];
    let auxv = std::fs::read(format!("/proc/{tid}/auxv")).map_err(|error| failed("auxv", error))?;
    Ok(MmImage { fields, auxv })
}

/// Reads the clocks of this node.
pub fn clocks() -> Clocks {
    let read = |id| {
        let time = rustix::time::clock_gettime(id);
        time.tv_sec * 1_000_000_000 + time.tv_nsec
    };
    use rustix::time::ClockId;
    Clocks {
        monotonic: read(ClockId::Monotonic),
        boottime: read(ClockId::Boottime),
        realtime: read(ClockId::Realtime),
    }
}

/// The special mappings of a process by kind: vDSO text, and the data pages before it.
pub fn vdso_of(mappings: &[Mapping]) -> Option<&Mapping> {
    mappings.iter().find(|mapping| mapping.name == "[vdso]")
}

/// `struct itimerval`: interval, then value.
fn itimer_at(bytes: &[u8], at: usize) -> IntervalTimer {
    let time = |at: usize| {
        let seconds = u64_at(bytes, at).saturating_mul(1_000_000);
        seconds.saturating_add(u64_at(bytes, at + 8))
    };
    IntervalTimer {
        left_us: time(at + 16),
        every_us: time(at),
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |bytes| {
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u64_at(bytes, at) as u32
}
