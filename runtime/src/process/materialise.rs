//! From a [`ProcessImage`] to a stopped process on this node, ready to run: the one way in which bodies come to be.
//!
//! The process starts as the stub alone ([`mosix_sys::spawn::blank`]), seized, all signals blocked. Scripts in its slots do the rest:
//!
//! ```text
//! 1 memory      munmap what exec left, mmap the plan, close every descriptor, PR_SET_MM_MAP
//! 2 (pages)     written from outside, by the caller
//! 3 threads     clone3(set_tid) of all threads, each waiting on its slot; each is seized
//! 4 per thread  alternate stack, tid address, robust list, name, pending signals, capabilities dropped
//! 5 process     handlers, pending signals, membarrier
//! 6 filter      seccomp with TSYNC in every thread: from here on nothing of the guest can reach the host
//! 7 registers   set by ptrace; every thread stays stopped until home says run
//! ```
//! All signals stay blocked in every thread until step 7, so no handler of the guest can run before the filter holds.

use super::capture::rseq_script;
use super::freeze::wait_for;
use super::maps::{self, Mapping};
use super::window::{ScriptError, Window, slot_address};
use mosix_loader::script::Op;
use mosix_loader::script::abi::*;
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace::{self, Event, Regs};
use mosix_wire::ids::Tid;
use mosix_wire::image::{Backing, IntervalTimer, ProcessImage, ThreadImage, Vma, VmaFlags};
use std::io;
use std::time::{Duration, Instant};

/// How long one script may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Where the structures that scripts point to lie in the arena, as address in the guest and offset in the window.
const DATA: u64 = ARENA + (8 << 20);
const PR_SET_THP_DISABLE: u64 = 41;
const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;
const CLONE_ARGS: usize = 88;

/// Why a body could not be built. Whatever exists of it is to be killed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The node's own vDSO lies where the guest has memory; a new blank process draws another address.
    #[error("this draw of the address space collides with the guest at {0:#x}")]
    Collision(u64),
    /// A step failed in the process.
    #[error("{step}: {error}")]
    Script {
        /// Which step.
        step: &'static str,
        /// What failed.
        error: ScriptError,
    },
    /// ptrace or /proc failed.
    #[error("{step}: {error}")]
    Os {
        /// Which step.
        step: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
}

fn os(step: &'static str) -> impl Fn(io::Error) -> BuildError {
    move |error| BuildError::Os { step, error }
}

fn script(step: &'static str) -> impl Fn(ScriptError) -> BuildError {
    move |error| BuildError::Script { step, error }
}

/// A body under construction.
#[derive(Debug)]
pub struct Body {
    /// Process id as the tracer sees it.
    pub pid: i32,
    /// Thread ids as the tracer sees them, in the order of the image's threads.
    pub tids: Vec<i32>,
    /// Its window.
    pub window: Window,
    /// Mappings of the node that the body keeps: its vDSO and data pages.
    pub node: Vec<Mapping>,
}

impl Body {
    /// Takes a blank process that the caller spawned and seized; it must already serve slot 0.
    pub fn new(pid: i32, window: Window) -> Self {
        Self {
            pid,
            tids: vec![pid],
            window: window.of(pid),
            node: Vec::new(),
        }
    }

    /// Step 1: the memory map. `file_fd` gives the descriptor in the process for each file of the image.
    pub fn map(&mut self, image: &ProcessImage, file_fd: impl Fn(u32) -> i32) -> Result<(), BuildError> {
        // The stub must have run its start before its mappings are read.
        self.run(0, &[Op::may(libc::SYS_getpid, [0; 6])], "start of the stub")?;
        let present = maps::read(self.pid).map_err(os("maps"))?;
        let mut ops = Vec::new();
        for mapping in &present {
            if mapping.special() {
                if mapping.name != "[vsyscall]" {
                    self.node.push(mapping.clone());
                }
            } else if mapping.end <= WINDOW || mapping.start >= WINDOW_END {
                ops.push(Op::must(libc::SYS_munmap, [mapping.start, mapping.len(), 0, 0, 0, 0]));
            }
        }
        let collides = |vma: &&Vma| {
            self.node
                .iter()
                .any(|node| vma.start < node.end && vma.end > node.start)
        };
        if let Some(vma) = image.vmas.iter().find(collides) {
            return Err(BuildError::Collision(vma.start));
        }
        for vma in &image.vmas {
            map_one(vma, &file_fd, &mut ops);
        }
        ops.push(Op::must(libc::SYS_close_range, [0, u64::from(u32::MAX), 0, 0, 0, 0]));
        self.run(0, &ops, "memory map")?;
        self.set_mm(image)
    }

    fn set_mm(&self, image: &ProcessImage) -> Result<(), BuildError> {
        let at = DATA;
        let auxv_at = SHARED + at + 256;
        let mut bytes = Vec::with_capacity(104);
        for field in image.mm.fields {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(auxv_at.to_le_bytes());
        bytes.extend((image.mm.auxv.len() as u32).to_le_bytes());
        bytes.extend(u32::MAX.to_le_bytes());
        let put = |at, bytes: &[u8]| {
            self.window
                .shared()
                .write(at, bytes)
                .map_err(|error| script("mm fields")(error.into()))
        };
        put(at, &bytes)?;
        put(at + 256, &image.mm.auxv)?;
        let args = [PR_SET_MM, PR_SET_MM_MAP, SHARED + at, bytes.len() as u64, 0, 0];
        let mut ops = vec![Op::must(libc::SYS_prctl, args)];
        let attributes = &image.attributes;
        ops.push(Op::may(
            libc::SYS_personality,
            [attributes.personality.into(), 0, 0, 0, 0, 0],
        ));
        if attributes.thp_disable {
            ops.push(Op::may(libc::SYS_prctl, [PR_SET_THP_DISABLE, 1, 0, 0, 0, 0]));
        }
        self.run(0, &ops, "mm fields")
    }

    /// The memory of the body, for writing pages and patched vDSO text.
    pub fn memory(&self) -> Result<ProcMem, BuildError> {
        ProcMem::force(self.pid).map_err(os("memory"))
    }

    /// Step 3, which may be the first: all threads beyond the leader, each seized and waiting on the slot of its place in `threads`.
    pub fn spawn_threads(&mut self, threads: &[Tid]) -> Result<(), BuildError> {
        let flags = (libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM) as u64;
        let mut ops = Vec::with_capacity(threads.len());
        for (slot, thread) in threads.iter().enumerate().skip(1) {
            let at = DATA + 0x1_0000 + slot as u64 * 128;
            let mut args = [0u8; 128];
            let mut put =
                |index: usize, value: u64| args[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
            put(0, flags);
            // Room below the top for the call that enters the loop; the stack ends at a multiple of 16.
            put(5, slot_address(slot as u32) + SLOT_BUFFER + SLOT_BUFFER_SIZE);
            put(6, SLOT_STACK_TOP - SLOT_BUFFER - SLOT_BUFFER_SIZE);
            put(8, SHARED + at + 96);
            put(9, 1);
            args[96..100].copy_from_slice(&thread.0.to_le_bytes());
            self.window
                .reset(slot as u32)
                .map_err(|error| script("threads")(error.into()))?;
            self.window
                .shared()
                .write(at, &args)
                .map_err(|error| script("threads")(error.into()))?;
            let call = [SHARED + at, CLONE_ARGS as u64, slot_address(slot as u32), 0, 0, 0];
            ops.push(Op {
                flags: OP_STOP_ON_ERROR | OP_SPAWN,
                ..Op::must(libc::SYS_clone3, call)
            });
        }
        if ops.is_empty() {
            return Ok(());
        }
        self.run(0, &ops, "threads")?;
        // Which of them is which is asked when they stand still.
        for tid in super::freeze::threads(self.pid).map_err(os("threads"))? {
            if tid != self.pid {
                ptrace::seize(tid, ptrace::OPTIONS | libc::PTRACE_O_EXITKILL).map_err(os("seizing a thread"))?;
                self.tids.push(tid);
            }
        }
        if self.tids.len() != threads.len() {
            return Err(os("threads")(io::ErrorKind::NotFound.into()));
        }
        Ok(())
    }

    /// Steps 4 and 5. `last` are further calls of every thread (dropping capabilities).
    pub fn dress(&self, image: &ProcessImage, last: &[Op]) -> Result<(), BuildError> {
        self.dress_process(image)?;
        let mut scripts = Vec::with_capacity(image.threads.len());
        for (slot, thread) in image.threads.iter().enumerate() {
            queue_pending(&self.window, slot as u32, image.pid, thread).map_err(script("pending signals"))?;
            let mut ops = self.dress_thread(slot as u32, thread)?;
            // The leader's was set with its memory; a thread made before that does not have it.
            let personality = image.attributes.personality.into();
            ops.push(Op::may(libc::SYS_personality, [personality, 0, 0, 0, 0, 0]));
            ops.extend_from_slice(last);
            self.window.post(slot as u32, &ops).map_err(script("thread state"))?;
            scripts.push(ops);
        }
        let deadline = Instant::now() + LIMIT;
        let slots: Vec<u32> = (0..scripts.len() as u32).collect();
        self.window
            .settle(&slots, deadline)
            .map_err(|error| script("thread state")(error.into()))?;
        for (slot, ops) in scripts.iter().enumerate() {
            self.window
                .finish(slot as u32, ops, deadline)
                .map_err(script("thread state"))?;
        }
        Ok(())
    }

    fn dress_thread(&self, slot: u32, thread: &ThreadImage) -> Result<Vec<Op>, BuildError> {
        let (ops, bytes) = thread_state(slot, thread);
        self.window
            .write_buffer(slot, 0, &bytes)
            .map_err(|error| script("thread state")(error.into()))?;
        Ok(ops)
    }

    fn dress_process(&self, image: &ProcessImage) -> Result<(), BuildError> {
        let (ops, bytes) = process_state(image, SHARED + DATA);
        self.window
            .shared()
            .write(DATA, &bytes)
            .map_err(|error| script("handlers")(error.into()))?;
        self.run(0, &ops, "handlers")
    }

    /// Step 6: makes the leader execute the calls that install the filter; returns the last one's result (the listener's number).
    pub fn install(&self, program: &[u8], flags: u64) -> Result<i64, BuildError> {
        let step = "filter";
        let at = DATA + 64;
        let mut header = [0u8; 16];
        header[0..2].copy_from_slice(&((program.len() / 8) as u16).to_le_bytes());
        header[8..16].copy_from_slice(&(SHARED + at).to_le_bytes());
        self.window
            .shared()
            .write(DATA, &header)
            .map_err(|error| script(step)(error.into()))?;
        self.window
            .shared()
            .write(at, program)
            .map_err(|error| script(step)(error.into()))?;
        let ops = [
            Op::must(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0]),
            Op::must(
                libc::SYS_seccomp,
                [u64::from(libc::SECCOMP_SET_MODE_FILTER), flags, SHARED + DATA, 0, 0, 0],
            ),
        ];
        let results = self.window.run(0, &ops, LIMIT).map_err(script(step))?;
        results
            .last()
            .copied()
            .ok_or_else(|| os(step)(io::ErrorKind::NotFound.into()))
    }

    /// Step 7: every thread stops and gets its registers; nothing runs until [`Body::release`].
    pub fn set_registers(&mut self, image: &ProcessImage) -> Result<(), BuildError> {
        stop_all(&self.tids).map_err(os("stopping a thread"))?;
        self.sort_threads().map_err(os("telling threads apart"))?;
        for (tid, thread) in self.tids.iter().zip(&image.threads) {
            set_thread(*tid, thread).map_err(os("registers"))?;
        }
        Ok(())
    }

    /// Puts the threads into the image's order: each stands in the slot of its place there.
    fn sort_threads(&mut self) -> io::Result<()> {
        let mut sorted = vec![0; self.tids.len()];
        for tid in &self.tids {
            // The leader came with exec and has its stack elsewhere.
            let slot = if *tid == self.pid {
                0
            } else {
                let stack = ptrace::regs(*tid)?.rsp().wrapping_sub(1);
                stack.wrapping_sub(slot_address(0)) / SLOT_SIZE
            };
            match sorted.get_mut(usize::try_from(slot).unwrap_or(usize::MAX)) {
                Some(place @ 0) => *place = *tid,
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        self.tids = sorted;
        Ok(())
    }

    /// Lets every thread run its program, but those in `running`, which do.
    pub fn release(&self, running: &[i32]) -> io::Result<()> {
        let mut tids = self.tids.iter().filter(|tid| !running.contains(tid));
        tids.try_for_each(|tid| ptrace::cont(*tid, 0))
    }

    fn run(&self, slot: u32, ops: &[Op], step: &'static str) -> Result<(), BuildError> {
        self.window.run(slot, ops, LIMIT).map(drop).map_err(script(step))
    }
}

/// Sets registers, vector state and mask of a stopped thread.
pub fn set_thread(tid: i32, thread: &ThreadImage) -> io::Result<()> {
    ptrace::set_xstate(tid, &thread.xsave)?;
    ptrace::set_regs(tid, &Regs(thread.regs))?;
    ptrace::set_sigmask(tid, thread.mask)
}

/// Interrupts threads that wait in the stub and waits until each stands still.
pub fn stop_all(tids: &[i32]) -> io::Result<()> {
    for tid in tids {
        ptrace::interrupt(*tid)?;
    }
    let deadline = Instant::now() + LIMIT;
    tids.iter().try_for_each(|tid| stopped(*tid, deadline))
}

/// Waits until an interrupted thread stands still.
fn stopped(tid: i32, deadline: Instant) -> io::Result<()> {
    loop {
        match wait_for(tid, deadline)? {
            Some(Event::Stop(_)) => return Ok(()),
            Some(Event::Exited(_) | Event::Killed(..)) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            Some(Event::Signal(signal)) => {
                // While it stands: asked in a later stop it would stop once more than anybody waits for.
                ptrace::interrupt(tid)?;
                ptrace::cont(tid, signal)?;
            }
            Some(_) => {
                ptrace::interrupt(tid)?;
                ptrace::cont(tid, 0)?;
            }
            None => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn signal_of(info: &[u8]) -> u64 {
    u64::from(info.first().copied().unwrap_or(0))
}

/// Sets the timers of CPU time, or ends them all, with data at `at` in the guest.
pub fn set_cpu_timers(timers: &[IntervalTimer; 2], at: u64) -> (Vec<Op>, Vec<u8>) {
    let mut bytes = Vec::new();
    for timer in timers {
        for time in [timer.every_us, timer.left_us] {
            bytes.extend((time / 1_000_000).to_le_bytes());
            bytes.extend((time % 1_000_000).to_le_bytes());
        }
    }
    let which = [libc::ITIMER_VIRTUAL as u64, libc::ITIMER_PROF as u64];
    let ops = which.into_iter().zip([at, at + 32]);
    let ops = ops.map(|(which, at)| Op::may(libc::SYS_setitimer, [which, at, 0, 0, 0, 0]));
    (ops.collect(), bytes)
}

/// The script that sets handlers, process-wide pending signals, timers of CPU time and membarrier, with the data it points to (at `base` in the guest).
pub fn process_state(image: &ProcessImage, base: u64) -> (Vec<Op>, Vec<u8>) {
    let (mut ops, mut bytes) = (Vec::new(), Vec::new());
    for (index, action) in image.actions.iter().enumerate() {
        let signal = index as u64 + 1;
        if signal == libc::SIGKILL as u64 || signal == libc::SIGSTOP as u64 {
            continue;
        }
        let at = base + bytes.len() as u64;
        for field in [action.handler, action.flags, action.restorer, action.mask] {
            bytes.extend(field.to_le_bytes());
        }
        ops.push(Op::may(libc::SYS_rt_sigaction, [signal, at, 0, 8, 0, 0]));
    }
    for info in &image.pending {
        let at = base + bytes.len() as u64;
        bytes.extend_from_slice(&info.0);
        bytes.resize((at - base) as usize + 128, 0);
        ops.push(Op::may(
            libc::SYS_rt_sigqueueinfo,
            [image.pid.0 as u64, signal_of(&info.0), at, 0, 0, 0],
        ));
    }
    if image.attributes.has_cpu_timers() {
        let (timers, data) = set_cpu_timers(&image.attributes.cpu_timers, base + bytes.len() as u64);
        ops.extend(timers);
        bytes.extend(data);
    }
    for bit in (0..16).filter(|bit| image.attributes.membarrier & (1 << bit) != 0) {
        ops.push(Op::may(libc::SYS_membarrier, [1 << bit, 0, 0, 0, 0, 0]));
    }
    (ops, bytes)
}

fn map_one(vma: &Vma, file_fd: &impl Fn(u32) -> i32, ops: &mut Vec<Op>) {
    let length = vma.end - vma.start;
    let mut flags = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
    let mut prot = u64::from(vma.prot);
    let (mut fd, mut offset) = (u64::MAX, 0);
    match vma.backing {
        Backing::File { file, offset: from } => {
            fd = file_fd(file) as u64;
            offset = from;
        }
        Backing::Anonymous | Backing::Vdso => flags |= libc::MAP_ANONYMOUS,
        Backing::Reserved => {
            flags |= libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            prot = 0;
        }
    }
    for (bit, flag) in [
        (VmaFlags::GROWS_DOWN, libc::MAP_GROWSDOWN),
        (VmaFlags::NO_RESERVE, libc::MAP_NORESERVE),
    ] {
        if vma.flags & bit != 0 {
            flags |= flag;
        }
    }
    ops.push(Op::must(
        libc::SYS_mmap,
        [vma.start, length, prot, flags as u64, fd, offset],
    ));
    let advice = [
        (VmaFlags::DONT_FORK, libc::MADV_DONTFORK),
        (VmaFlags::WIPE_ON_FORK, libc::MADV_WIPEONFORK),
        (VmaFlags::DONT_DUMP, libc::MADV_DONTDUMP),
        (VmaFlags::HUGE, libc::MADV_HUGEPAGE),
        (VmaFlags::NO_HUGE, libc::MADV_NOHUGEPAGE),
    ];
    for (_, advice) in advice.iter().filter(|(bit, _)| vma.flags & bit != 0) {
        ops.push(Op::may(libc::SYS_madvise, [vma.start, length, *advice as u64, 0, 0, 0]));
    }
}

/// Signals that one script queues: it must stay a short one, as threads run theirs side by side.
const BATCH: usize = 64;

/// Makes a thread, which blocks all signals, queue its own pending ones to itself.
///
/// # Errors
/// As [`Window::run`]; the kernel's limit on pending signals is no error, as it is none natively.
pub fn queue_pending(
    window: &Window,
    slot: u32,
    pid: mosix_wire::ids::Pid,
    thread: &ThreadImage,
) -> Result<(), ScriptError> {
    let (buffer, _) = Window::buffer(slot);
    for batch in thread.pending.chunks(BATCH) {
        let mut bytes = Vec::with_capacity(batch.len() * 128);
        let mut ops = Vec::with_capacity(batch.len());
        for info in batch {
            let at = bytes.len();
            bytes.extend_from_slice(&info.0);
            bytes.resize(at + 128, 0);
            let (pid, tid) = (pid.0 as u64, thread.tid.0 as u64);
            ops.push(Op::may(
                libc::SYS_rt_tgsigqueueinfo,
                [pid, tid, signal_of(&info.0), buffer + at as u64, 0, 0],
            ));
        }
        window.write_buffer(slot, 0, &bytes)?;
        for (result, info) in window.run(slot, &ops, LIMIT)?.into_iter().zip(batch) {
            if result < 0 {
                tracing::warn!(
                    tid = thread.tid.0,
                    signal = signal_of(&info.0),
                    result,
                    "a pending signal is lost"
                );
            }
        }
    }
    Ok(())
}

/// The script that sets what only a thread itself can set, with the data it points to (the start of the slot's buffer). Its pending
/// signals are [`queue_pending`]'s.
pub fn thread_state(slot: u32, thread: &ThreadImage) -> (Vec<Op>, Vec<u8>) {
    let (buffer, _) = Window::buffer(slot);
    let mut bytes = vec![0u8; 64];
    let mut ops = Vec::new();
    let (sp, flags, size) = thread.altstack;
    if flags & libc::SS_DISABLE == 0 && size > 0 {
        bytes[0..8].copy_from_slice(&sp.to_le_bytes());
        bytes[8..12].copy_from_slice(&(flags & !libc::SS_ONSTACK).to_le_bytes());
        bytes[16..24].copy_from_slice(&size.to_le_bytes());
        ops.push(Op::must(libc::SYS_sigaltstack, [buffer, 0, 0, 0, 0, 0]));
    }
    let name = thread.comm.as_bytes();
    let name = &name[..name.len().min(15)];
    bytes[32..32 + name.len()].copy_from_slice(name);
    ops.push(Op::may(
        libc::SYS_prctl,
        [libc::PR_SET_NAME as u64, buffer + 32, 0, 0, 0, 0],
    ));
    ops.push(Op::may(
        libc::SYS_set_tid_address,
        [thread.clear_child_tid, 0, 0, 0, 0, 0],
    ));
    if thread.robust.0 != 0 {
        ops.push(Op::may(
            libc::SYS_set_robust_list,
            [thread.robust.0, thread.robust.1, 0, 0, 0, 0],
        ));
    }
    if thread.timer_slack > 0 {
        ops.push(Op::may(
            libc::SYS_prctl,
            [libc::PR_SET_TIMERSLACK as u64, thread.timer_slack, 0, 0, 0, 0],
        ));
    }
    ops.extend(rseq_script(thread));
    (ops, bytes)
}
