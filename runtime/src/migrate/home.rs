//! Taking a body back: the deputy becomes the whole process again.
//!
//! ```text
//! image ─▶ repair the memory map ─▶ pages (worker) ─▶ thread and process state ─▶ built
//! commit ─▶ registers, detach: native speed. A thread whose call is still open stays in the stub until the call ends.
//! ```

use super::incoming::Ready;
use super::process::Process;
use crate::deputy::RESUMED;
use crate::deputy::calls::Ended;
use crate::process::enter::{Wait, enter};
use crate::process::materialise::{process_state, queue_pending, set_thread, thread_state};
use crate::process::phases::Phases;
use crate::process::waited::monotonic;
use crate::process::window::ScriptError;
use crate::process::{maps, restore};
use crate::syscall::decide::{Decision, decide};
use crate::syscall::marshal::{Gathered, Ids, gather};
use crate::syscall::memory::{Fault, GuestMemory};
use crate::syscall::{rusage, table};
use mosix_loader::script::Op;
use mosix_loader::script::abi::{ARENA, SHARED};
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace::{self, Regs};
use mosix_wire::call::NEEDS_HOME;
use mosix_wire::ids::{Pid, Seq, Tid};
use mosix_wire::image::{FileRef, ProcessImage, SigInfo, ThreadImage};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a body could not be taken back; it stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum ReturnError {
    /// The image names threads that the deputy does not have, or the other way round.
    #[error("process {0}: the image's threads are not the deputy's")]
    Threads(i32),
    /// A file that the body has mapped cannot be read.
    #[error("process {pid}: {path}: {error}")]
    File {
        /// The process.
        pid: i32,
        /// The file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// A script failed.
    #[error("process {pid}: {step}: {error}")]
    Script {
        /// The process.
        pid: i32,
        /// Which step.
        step: &'static str,
        /// Why.
        error: ScriptError,
    },
    /// The kernel refused something.
    #[error("process {pid}: {error}")]
    Os {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// Where the process-wide script's data lies in the arena: beyond long scripts, before call buffers.
pub(super) const STATE_DATA: u64 = ARENA + (12 << 20);

/// Makes the deputy's memory map the body's; pages may then be written.
///
/// # Errors
/// [`ReturnError`].
pub fn repair(process: &mut Process, image: &ProcessImage) -> Result<Ready, ReturnError> {
    let pid = process.pid;
    let os = |error| ReturnError::Os { pid, error };
    let failed = |step| move |error| ReturnError::Script { pid, step, error };
    let mut phases = Phases::default();
    super::births::settle(process, image).map_err(os)?;
    let deputy = process.deputy.as_ref().ok_or(ReturnError::Threads(pid))?;
    let mut seats: Vec<i32> = deputy.seats().into_iter().map(|(tid, _)| tid).collect();
    let mut threads: Vec<i32> = image.threads.iter().map(|thread| thread.tid.0).collect();
    seats.sort_unstable();
    threads.sort_unstable();
    if seats != threads {
        return Err(ReturnError::Threads(pid));
    }
    // What the kernel wrote for an interrupted sleep is no memory of the body's.
    let soiled = deputy.soiled();
    let mut present = maps::read(pid).map_err(os)?;
    if process.dropped && !soiled {
        // Only what `ps` could read meanwhile is left.
        let words = process.words();
        present.retain(|mapping| mapping.start < words.end && words.start < mapping.end);
    }
    if !present.is_empty() {
        process
            .run(&restore::drop_memory(&present, &(0..0)))
            .map_err(failed("dropping memory"))?;
    }
    process
        .run(&[Op::may(libc::SYS_brk, [image.mm.fields[5], 0, 0, 0, 0, 0])])
        .map_err(failed("program break"))?;
    phases.mark("drop, break");
    let here = maps::read(pid).map_err(os)?;
    let sent = (process.layout.vmas.as_slice(), process.layout.files.as_slice());
    let repair = restore::repair(&here, sent, (&image.vmas, &image.files));
    if !repair.ops.is_empty() {
        process.run(&repair.ops).map_err(failed("memory map"))?;
    }
    let memory = ProcMem::force(pid).map_err(os)?;
    let mut fills = Vec::with_capacity(repair.fills.len());
    for (start, length, file, offset) in repair.fills {
        let source = file_at_home(process, &file).map_err(|error| ReturnError::File {
            pid,
            path: file.path.clone(),
            error,
        })?;
        fills.push((start, length, source, offset));
    }
    phases.mark("memory map");
    phases.log(pid, "repair");
    Ok(Ready { memory, fills })
}

/// A file that left with the process, or that it mapped since. A host cannot name any other.
fn file_at_home(process: &Process, file: &FileRef) -> io::Result<Arc<File>> {
    if let Some(open) = process.mapped.get(file) {
        return Ok(open);
    }
    let layout = &process.layout;
    let left = layout.files.iter().zip(&layout.paths).find(|(known, _)| *known == file);
    let (_, path) = left.ok_or_else(|| io::Error::other("the host names a file that home never gave it"))?;
    let open = File::open(path)?;
    let meta = open.metadata()?;
    if (meta.dev(), meta.ino()) != (file.device, file.inode) {
        return Err(io::Error::other("the path means another file by now"));
    }
    Ok(Arc::new(open))
}

/// Whether home has seen the call that the image says is open: only then the thread waits for it in the stub.
fn open_here(process: &Process, thread: &ThreadImage) -> bool {
    let Some(deputy) = &process.deputy else { return false };
    // A thread, or a child, is made natively by who is native again.
    let creates = crate::deputy::creation::creates(Regs(thread.regs).orig_rax() as i64);
    !creates && thread.in_flight && thread.seq > 0 && deputy.seq(thread.tid.0) == Seq(thread.seq)
}

/// Sets what only the process can set about itself. Everything but registers is then as in the body.
///
/// # Errors
/// [`ReturnError`].
pub fn dress(process: &mut Process, image: &mut ProcessImage) -> Result<(), ReturnError> {
    let pid = process.pid;
    // A call of before may have been slower than the image.
    super::births::settle(process, image)
        .and_then(|()| super::births::unmake_all(process))
        .map_err(|error| ReturnError::Os { pid, error })?;
    // From here on what comes is pending in the kernel here; what came before waits behind what the body brought.
    let mut phases = Phases::default();
    let mut still = process.shut();
    phases.mark("shut");
    let dressed = dress_still(process, image, &mut still);
    for tid in still {
        if let Err(error) = super::signals::go_on(tid, process.deputy.as_deref()) {
            tracing::debug!(tid, %error, "thread is gone");
        }
    }
    dressed?;
    phases.mark("threads");
    let failed = |error| ReturnError::Script {
        pid,
        step: "process state",
        error,
    };
    let deputy = process.deputy.clone().ok_or(ReturnError::Threads(pid))?;
    let (ops, bytes) = process_state(image, SHARED + STATE_DATA);
    let written = deputy.window().shared().write(STATE_DATA, &bytes);
    written.map_err(|error| failed(error.into()))?;
    let done = process.run(&ops).map(drop).map_err(failed);
    phases.mark("process");
    phases.log(pid, "dress");
    done
}

/// Dresses the threads. Those that stand `still` go on with their script, without being woken for it once more, and are taken out.
fn dress_still(process: &mut Process, image: &mut ProcessImage, still: &mut HashSet<i32>) -> Result<(), ReturnError> {
    let pid = process.pid;
    process.signals.taken(image.signals);
    for (_, (tid, info)) in process.signals.kept() {
        match tid.map(|tid| image.threads.iter_mut().find(|thread| thread.tid.0 == tid)) {
            None => image.pending.push(info.clone()),
            Some(Some(thread)) => thread.pending.push(info.clone()),
            // It went with its thread.
            Some(None) => {}
        }
    }
    let image = &*image;
    let failed = |error| ReturnError::Script {
        pid,
        step: "process state",
        error,
    };
    let deputy = process.deputy.clone().ok_or(ReturnError::Threads(pid))?;
    let window = deputy.window();
    let mut posted = Vec::new();
    let mut undressed = HashSet::new();
    for thread in &image.threads {
        let tid = thread.tid.0;
        let Some(slot) = deputy.slot(tid) else {
            return Err(ReturnError::Threads(pid));
        };
        if deputy.open(tid).is_some() {
            undressed.insert(tid);
            continue;
        }
        let (ops, bytes) = thread_state(slot, thread);
        window
            .write_buffer(slot, 0, &bytes)
            .map_err(|error| failed(error.into()))?;
        window.place(slot, &ops).map_err(failed)?;
        let woken = if still.remove(&tid) {
            super::signals::go_on(tid, Some(&deputy)).map_err(ScriptError::Os)
        } else {
            window.wake(slot).map_err(ScriptError::from)
        };
        woken.map_err(failed)?;
        posted.push((slot, ops));
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let slots: Vec<u32> = posted.iter().map(|(slot, _)| *slot).collect();
    window.settle(&slots, deadline).map_err(|error| failed(error.into()))?;
    for (slot, ops) in &posted {
        window.finish(*slot, ops, deadline).map_err(failed)?;
    }
    process.undressed = undressed;
    let dressed = |thread: &&ThreadImage| !process.undressed.contains(&thread.tid.0);
    for thread in image.threads.iter().filter(dressed) {
        if let Some(slot) = deputy.slot(thread.tid.0) {
            queue_pending(window, slot, image.pid, thread).map_err(failed)?;
        }
    }
    Ok(())
}

/// Lets the whole process run at home. Threads with open calls linger; the rest is native again.
pub fn release(process: &mut Process, image: &ProcessImage) {
    let Some(deputy) = process.deputy.clone() else { return };
    // From now on answers come to the engine, not to a host.
    deputy.close();
    if let Err(error) = super::births::settle(process, image) {
        tracing::warn!(pid = process.pid, %error, "a thread without a body does not end");
    }
    process.lingering.clear();
    process.mapped.clear();
    let waiting = go_on_waiting(process, image);
    // All at once: each stop is a switch to the thread and back. Who is gone is told by the next thing that is done with it.
    let mut phases = Phases::default();
    for thread in image.threads.iter().filter(|thread| !waiting.contains(&thread.tid.0)) {
        let _ = super::signals::interrupt(process, thread.tid.0);
    }
    phases.mark("stop");
    for thread in &image.threads {
        let tid = thread.tid.0;
        if waiting.contains(&tid) {
            free(process, tid);
            continue;
        }
        tracing::trace!(
            tid,
            seq = thread.seq,
            in_flight = thread.in_flight,
            here = deputy.seq(tid).0,
            answered = deputy.answered(tid).is_some(),
            rax = thread.regs[10] as i64,
            nr = thread.regs[15] as i64,
            "back"
        );
        let open = open_here(process, thread);
        if !open && !taken_up(process, thread) {
            native(process, thread, None);
        } else if let Some((reply, payload)) = deputy.answered(tid) {
            // A call that no host may have made is made now.
            let executed = reply.result != NEEDS_HOME;
            let ended = executed.then_some(Ended { tid, reply, payload });
            if process.undressed.contains(&tid) {
                // It ended after the others were dressed.
                process.lingering.insert(tid, thread.clone());
                lingered(process, tid, ended);
            } else {
                native(process, thread, ended);
            }
        } else {
            let mut thread = thread.clone();
            if !process.undressed.contains(&tid) {
                // They are the kernel's already.
                thread.pending.clear();
            }
            let mask = thread.mask;
            process.lingering.insert(tid, thread);
            if let Err(error) = relax(process, tid, mask) {
                tracing::debug!(tid, %error, "thread is gone");
            }
        }
    }
    process.dropped = false;
    phases.mark("registers");
    phases.log(process.pid, "release");
}

/// Goes on with a call that the thread's departure interrupted and that no host has made again, where only the deputy knows how: the rest
/// of a write, a deadline. False when there is none.
fn taken_up(process: &Process, thread: &ThreadImage) -> bool {
    let (tid, regs) = (thread.tid.0, Regs(thread.regs));
    let Some(deputy) = process.deputy.as_ref().filter(|deputy| deputy.is_cut(tid)) else {
        return false;
    };
    if !thread.in_flight || Seq(thread.seq) != RESUMED {
        return false;
    }
    let ids = Ids {
        pid: Pid(process.pid),
        tid: thread.tid,
        epoch: Default::default(),
        seq: RESUMED,
    };
    let memory = Memory(ProcMem::guest(tid));
    match gather(table::row(regs.orig_rax() as u32), regs.args(), &memory, ids) {
        Gathered::Forward(forward) => {
            deputy.take_up(forward.call, &forward.payload);
            true
        }
        _ => false,
    }
}

/// Lets threads go on that wait in calls that were native where they come from, with the rest of their time-outs; gives them. Nothing else of
/// the process runs.
fn go_on_waiting(process: &mut Process, image: &ProcessImage) -> Vec<i32> {
    let mut waits = Vec::new();
    for thread in &image.threads {
        let (tid, regs) = (thread.tid.0, Regs(thread.regs));
        let native = decide(table::row(regs.orig_rax() as u32), &regs.args()) == Decision::Native;
        let Some(since) = thread.since.filter(|_| native) else {
            continue;
        };
        match keep(process, tid).and_then(|()| set_thread(tid, thread)) {
            Ok(()) => waits.push(Wait { tid, regs, since }),
            Err(error) => tracing::debug!(tid, %error, "thread is gone"),
        }
    }
    let entered = enter(process.pid, &waits, monotonic(), |tid| ptrace::detach(tid, 0));
    process.waits = waits
        .iter()
        .zip(&entered)
        .filter_map(|(wait, (tid, switches))| Some((*tid, ((*switches)?, wait.since))))
        .collect();
    waits.iter().map(|wait| wait.tid).collect()
}

/// A thread is no longer this tracer's.
fn free(process: &mut Process, tid: i32) {
    process.held.remove(&tid);
    process.interrupted.remove(&tid);
    process.lingering.remove(&tid);
    if let Some(deputy) = &process.deputy {
        deputy.leave(tid);
    }
}

/// A lingering thread takes signals by its own mask. It still dies with the tracer, which alone can lead it out of the stub.
fn relax(process: &mut Process, tid: i32, mask: u64) -> io::Result<()> {
    keep(process, tid)?;
    ptrace::set_options(tid, ptrace::OPTIONS | libc::PTRACE_O_EXITKILL)?;
    ptrace::set_sigmask(tid, mask)?;
    go_on(process, tid)
}

/// Stops a lingering thread; signals that it was about to get wait for its own state.
fn keep(process: &mut Process, tid: i32) -> io::Result<()> {
    let came = super::signals::hold(process, tid)?;
    if let Some(thread) = process.lingering.get_mut(&tid) {
        thread.pending.extend(came.into_iter().map(|(_, info)| info));
    }
    Ok(())
}

/// Gives a thread its registers and lets it go. `ended` is the answer of the call it waited for.
pub fn native(process: &mut Process, thread: &ThreadImage, ended: Option<Ended>) {
    let tid = thread.tid.0;
    let result = ended.map(|ended| deliver(process, thread, &ended));
    let gone = keep(process, tid).and_then(|()| {
        set_thread(tid, thread)?;
        if let Some(result) = result {
            let mut regs = Regs(thread.regs);
            regs.set_rax(result as u64);
            if result > -512 {
                regs.set_orig_rax(u64::MAX);
            }
            ptrace::set_regs(tid, &regs)?;
        }
        ptrace::detach(tid, 0)
    });
    if let Err(error) = gone {
        tracing::debug!(tid, %error, "thread is gone");
    }
    free(process, tid);
}

/// The open call of a lingering thread has ended: the thread is native again.
pub fn lingered(process: &mut Process, tid: i32, ended: Option<Ended>) {
    // It executes what follows with all signals blocked: one that stopped it would wait for this thread, and this thread for it.
    let shut = keep(process, tid)
        .and_then(|()| ptrace::set_sigmask(tid, u64::MAX))
        .and_then(|()| super::signals::go_on(tid, process.deputy.as_deref()));
    let Some(thread) = process.lingering.get(&tid).cloned() else {
        return;
    };
    if let Some(deputy) = process.deputy.clone()
        && let Some(slot) = deputy.slot(tid)
    {
        let (ops, bytes) = thread_state(slot, &thread);
        let window = deputy.window();
        let dressed = shut.map_err(ScriptError::Os).and_then(|()| {
            window.write_buffer(slot, 0, &bytes)?;
            window.run(slot, &ops, Duration::from_secs(2))?;
            queue_pending(window, slot, Pid(process.pid), &thread)
        });
        if let Err(error) = dressed {
            tracing::warn!(pid = process.pid, %error, "thread state not restored");
        }
    }
    native(process, &thread, ended);
}

/// A signal is due for a lingering thread stopped at its delivery: its call is ended, and the signal waits, with what waited before it,
/// for the thread's own state. The kernel then makes of it and of the call's restart code what it always does.
///
/// # Errors
/// When the thread is gone.
pub fn interrupted(process: &mut Process, tid: i32) -> io::Result<()> {
    let info = ptrace::siginfo(tid)?;
    if let Some(thread) = process.lingering.get_mut(&tid) {
        thread.pending.push(SigInfo(info.to_vec()));
    }
    go_on(process, tid)
}

/// Lets a stopped lingering thread go on: to the end of its call when a signal is due, else with it.
///
/// # Errors
/// When the thread is gone.
pub fn go_on(process: &mut Process, tid: i32) -> io::Result<()> {
    let deputy = process.deputy.as_deref();
    match (process.lingering.get(&tid), deputy.and_then(|deputy| deputy.open(tid))) {
        (Some(thread), Some(open)) if !open.brief && is_due(process.pid, thread) => {
            if !super::signals::cancel(tid, open.nr)? {
                super::signals::later(process);
            }
            Ok(())
        }
        _ => super::signals::go_on(tid, deputy),
    }
}

/// Whether a signal that the thread does not block, and the process does not ignore, waits for it.
pub(super) fn is_due(pid: i32, thread: &ThreadImage) -> bool {
    thread.pending.iter().any(|info| {
        let signal = info.signal();
        (1..=64).contains(&signal) && thread.mask >> (signal - 1) & 1 == 0 && !super::signals::ignored(pid, signal)
    })
}

/// Gives signals that came during a departure which was undone to the threads that linger: no other thread's came to the tracer.
pub fn give_back(process: &mut Process) {
    for (tid, info) in process.signals.hand_over() {
        let signal = info.signal();
        let free = |thread: &ThreadImage| (1..=64).contains(&signal) && thread.mask >> (signal - 1) & 1 == 0;
        let takes = |thread: &&mut ThreadImage| tid.map_or(free(thread), |tid| tid == thread.tid.0);
        match process.lingering.values_mut().find(takes) {
            Some(thread) => {
                thread.pending.push(info);
                // At the stop that follows its call is ended, if that is due.
                let tid = thread.tid.0;
                let _ = super::signals::interrupt(process, tid);
            }
            None => {
                let _ = match tid {
                    Some(tid) => mosix_sys::process::tgkill(process.pid, tid, signal),
                    None => mosix_sys::process::kill(process.pid, signal),
                };
            }
        }
    }
}

/// Writes the outputs of an ended call into the process's memory, as the host's agent would have; gives the call's result.
fn deliver(process: &Process, thread: &ThreadImage, ended: &Ended) -> i64 {
    let pid = process.pid;
    let regs = Regs(thread.regs);
    let memory = Memory(ProcMem::guest(thread.tid.0));
    let ids = Ids {
        pid: Pid(pid),
        tid: Tid(thread.tid.0),
        epoch: Default::default(),
        seq: ended.reply.seq,
    };
    match gather(table::row(regs.orig_rax() as u32), regs.args(), &memory, ids) {
        Gathered::Forward(forward) => {
            let mut payload = Cow::Borrowed(&ended.payload);
            if let (Some(part), Some(deputy)) = (forward.scatter.part, &process.deputy) {
                rusage::add(part, payload.to_mut(), &deputy.spent(), thread.cpu);
            }
            match forward.scatter.apply(&memory, &ended.reply, &payload) {
                Ok(result) => result,
                Err(error) => {
                    tracing::warn!(pid, %error, "answer of an open call does not fit");
                    -i64::from(libc::EFAULT)
                }
            }
        }
        _ => ended.reply.result,
    }
}

/// Memory of a process at home as the marshalling engine sees it.
struct Memory(ProcMem);

impl GuestMemory for Memory {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Fault> {
        self.0.read(addr, buf).map_err(|_| Fault(addr))
    }

    fn write(&self, addr: u64, data: &[u8]) -> Result<(), Fault> {
        self.0.write(addr, data).map_err(|_| Fault(addr))
    }
}
