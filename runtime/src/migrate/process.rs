//! One process of the job as the engine knows it, and its departure from home.

use super::exec::{self, Inherited};
use super::incoming::Ready;
use super::mapped::Mapped;
use super::outgoing::{Errand, Outgoing};
use crate::contract::commit::Home;
use crate::contract::owner::Outbox;
use crate::deputy::{Deputy, Job, RESUMED, Resume};
use crate::process::capture::{self, CaptureError, Captured, capture};
use crate::process::freeze::{FreezeError, Frozen, freeze, release};
use crate::process::inject::{InjectError, has_window, inject};
use crate::process::layout::{self, Layout, Unmovable};
use crate::process::materialise::set_cpu_timers;
use crate::process::phases::Phases;
use crate::process::rest::{self, Timeout};
use crate::process::restart::Standing;
use crate::process::step;
use crate::process::waited::monotonic;
use crate::process::window::ScriptError;
use crate::process::{freeze as freezing, maps, restore};
use crate::reason::{Reason, probe};
use crate::supervisor::engine::Reply;
use crate::syscall::table;
use mosix_loader::script::Op;
use mosix_loader::script::abi::{OP_STOP_ON_ERROR, SHARED};
use mosix_loader::script::stub;
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace;
use mosix_wire::ids::{Epoch, NodeName, Nonce, Pid, Seq};
use mosix_wire::image::{CpuImage, ProcessImage, SigInfo, ThreadImage};
use mosix_wire::job::{Place, Why};
use mosix_wire::link::Exit;
use mosix_wire::spent::Spent;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// How long a process may take to freeze.
const FREEZE_LIMIT: Duration = Duration::from_secs(3);

/// Why a process could not depart. It runs on.
#[derive(Debug, thiserror::Error)]
pub enum DepartError {
    /// Its threads could not be stopped.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// The window could not be put into it.
    #[error(transparent)]
    Inject(#[from] InjectError),
    /// A thread stays in the vDSO.
    #[error(transparent)]
    Step(#[from] crate::process::step::StepError),
    /// It could not be captured.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Its memory map cannot travel.
    #[error("process {pid} cannot move: {why}")]
    Unmovable {
        /// The process.
        pid: i32,
        /// Why.
        why: Unmovable,
    },
    /// The kernel refused something.
    #[error("process {pid}: {what}: {error}")]
    Os {
        /// The process.
        pid: i32,
        /// What was done.
        what: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
}

impl DepartError {
    /// The reason of the fixed list, if it is one.
    pub fn why(&self) -> Option<Why> {
        Some(match self {
            Self::Unmovable { why, .. } => why.0.clone(),
            Self::Freeze(FreezeError::Stopped(_)) => Reason::Stopped.why(),
            Self::Freeze(FreezeError::ZombieLeader(_)) => Reason::LeaderExited.why(),
            Self::Freeze(FreezeError::Stuck { vfork: true, .. }) => Reason::Vfork.why(),
            Self::Freeze(stuck @ FreezeError::Stuck { .. }) => Reason::Uninterruptible.because(stuck.to_string()),
            Self::Inject(InjectError::Taken(_)) => Reason::Window.why(),
            Self::Capture(CaptureError::Threads { count, .. }) => probe::too_many_threads(*count),
            Self::Capture(CaptureError::LocalDescriptors(_)) => Reason::LocalDescriptors.why(),
            Self::Capture(CaptureError::Dispatch(_)) => Reason::SyscallDispatch.why(),
            _ => return None,
        })
    }

    /// Whether only a freeze can find that: nothing shows it in /proc.
    pub fn hidden(&self) -> bool {
        let hidden = [
            Reason::LocalDescriptors,
            Reason::SyscallDispatch,
            Reason::ProtectionKeys,
            Reason::ShadowStack,
        ];
        self.why()
            .is_some_and(|why| hidden.iter().any(|reason| reason.code() == why.code))
    }
}

/// The move under way, for its report.
#[derive(Debug)]
pub struct Journey {
    /// Who asked; None for a move that the process itself needs.
    pub reply: Option<Reply>,
    /// Where from.
    pub from: Place,
    /// Where to.
    pub to: Place,
    /// When it was asked for.
    pub begun: Instant,
    /// When the process stopped computing.
    pub frozen: Option<Instant>,
    /// When it was known to compute again.
    pub thawed: Option<Instant>,
    /// Bytes of memory sent.
    pub bytes: u64,
    /// Why it failed, once known.
    pub why: Option<String>,
    /// The reason of the fixed list, if it is one.
    pub reason: Option<Why>,
}

impl Journey {
    /// Who wants the process home.
    pub fn homeward(&self) -> Option<&Reply> {
        self.reply.as_ref().filter(|_| self.to == Place::Home)
    }
}

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Thread-group id.
    pub pid: i32,
    /// Program name.
    pub program: String,
    /// What it may use of the CPU since its birth, which every node it visits must have.
    pub birth: CpuImage,
    /// Where the body is, by the commit rules.
    pub state: Home<NodeName>,
    /// Its kernel half, once it has departed for the first time.
    pub deputy: Option<Arc<Deputy>>,
    /// Threads that this tracer has seized.
    pub held: HashSet<i32>,
    /// The image that is under way or away.
    pub image: Option<ProcessImage>,
    /// What left home last.
    pub layout: Layout,
    /// The move under way.
    pub journey: Option<Journey>,
    /// Gives the captured process to the sending worker.
    pub outgoing: Option<Sender<Outgoing>>,
    /// Tells the receiving worker that pages may be written.
    pub incoming: Option<Sender<Ready>>,
    /// All pages of the returning body are here, before the host said that nothing more comes from it: epoch, bytes.
    pub landed: Option<(Epoch, u64)>,
    /// Files that the body mapped while away.
    pub mapped: Mapped,
    /// The returning body.
    pub returning: Option<Box<ProcessImage>>,
    /// Frozen threads of a departure that is not committed yet.
    pub frozen: Option<Frozen>,
    /// Threads that went on at home in a native call with the rest of its time-out: how often each had left a CPU when it slept there, and
    /// when the time-out began.
    pub waits: HashMap<i32, (u64, i64)>,
    /// Threads that finish an open call in the stub although the body is home.
    pub lingering: HashMap<i32, ThreadImage>,
    /// The deputy's memory was dropped: what the body has not sent is zeros or file bytes.
    pub dropped: bool,
    /// Deadline of the destination's answer.
    pub deadline: Option<Instant>,
    /// Epoch of the move whose destination was asked again, because its source is gone.
    pub asked: Option<Epoch>,
    /// What was last heard of a body that is no more.
    pub loss: Option<String>,
    /// The process is being ended like its body.
    pub dying: Option<Exit>,
    /// Stopped by this signal (job control).
    pub stopped: Option<i32>,
    /// Signals for the body: the thread, or the process, and siginfo.
    pub signals: Outbox<(Option<i32>, SigInfo)>,
    /// Threads of a returning body whose own state waits for the end of their calls.
    pub undressed: HashSet<i32>,
    /// Threads that are to stop because somebody asked, and have not yet.
    pub interrupted: HashSet<i32>,
    /// New threads that have stopped for the first time before their creators have told of them.
    pub early: HashSet<i32>,
    /// When to look again at threads whose calls are to end.
    pub again: Option<Instant>,
    /// Stop signals that came while their thread was held: raised again when it is not.
    pub stops: Vec<i32>,
    /// The deputy's threads take signals: whoever makes one execute something must keep them off.
    pub open: bool,
    /// The old copy's memory is to be dropped as soon as the move was reported.
    pub drop_due: bool,
    /// Bytes of memory that its last move carried.
    pub carried: u64,
    /// It is at home with a limit of CPU time, of which its bodies have used some: this supervisor sees to it.
    pub cpu_limited: bool,
    /// It stands before the first instruction of a new program, for a departure, until then.
    pub fresh: Option<Instant>,
    /// What a program inherits that the deputy has just executed.
    pub inherited: Option<Inherited>,
    /// Open calls to be cancelled when their deputy thread stops: thread, number.
    pub cancels: HashMap<i32, Seq>,
    /// Children that its deputy has made while its threads were held: they stand before their first instruction.
    pub newborn: Vec<i32>,
    /// Children that have no body yet.
    pub unborn: HashSet<i32>,
    /// Children that never were: the word of their ends is nobody's.
    pub unmade: HashSet<i32>,
}

impl Process {
    /// A process at home that was never moved.
    pub fn new(pid: i32, epoch: Epoch, birth: &CpuImage) -> Self {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Self {
            pid,
            program: comm.trim_end().to_owned(),
            birth: birth.clone(),
            state: Home::AtHome { epoch },
            deputy: None,
            held: HashSet::new(),
            image: None,
            layout: Layout::default(),
            journey: None,
            outgoing: None,
            incoming: None,
            landed: None,
            mapped: Mapped::default(),
            returning: None,
            frozen: None,
            waits: HashMap::new(),
            lingering: HashMap::new(),
            dropped: false,
            deadline: None,
            asked: None,
            loss: None,
            dying: None,
            stopped: None,
            signals: Outbox::default(),
            undressed: HashSet::new(),
            interrupted: HashSet::new(),
            early: HashSet::new(),
            again: None,
            stops: Vec::new(),
            open: false,
            drop_due: false,
            carried: 0,
            cpu_limited: false,
            fresh: None,
            inherited: None,
            cancels: HashMap::new(),
            newborn: Vec::new(),
            unborn: HashSet::new(),
            unmade: HashSet::new(),
        }
    }

    /// Epoch of the move under way.
    pub fn attempt(&self) -> Option<Epoch> {
        match self.state {
            Home::Departing { attempt, .. } | Home::Moving { attempt, .. } | Home::Returning { attempt, .. } => {
                Some(attempt)
            }
            _ => None,
        }
    }

    /// The errand of a worker for the move under way.
    pub fn errand(&self, attempt: Epoch, node: NodeName, bytes: u64) -> Errand {
        let reply = self.journey.as_ref().and_then(|journey| journey.reply.clone());
        Errand {
            pid: self.pid,
            attempt,
            to: node,
            reply,
            bytes,
        }
    }

    /// Freezes and captures the process. Afterwards its threads sit in the stub; [`Process::wake`] undoes it.
    ///
    /// # Errors
    /// [`DepartError`]; the process then runs on.
    pub fn depart(
        &mut self,
        (attempt, home): (Epoch, Nonce),
        spent: Spent,
        judged: impl FnOnce() -> Option<Why>,
        deputy: impl FnOnce(crate::process::window::Window) -> io::Result<Arc<Deputy>>,
    ) -> Result<Outgoing, DepartError> {
        let pid = self.pid;
        let flags = maps::flags(pid).unwrap_or_default();
        let mut phases = Phases::default();
        if !self.lingering.is_empty() && maps::read(pid).is_ok_and(|maps| !has_window(&maps)) {
            // One of them has just executed a program: what lingered is gone.
            self.lingering.clear();
        }
        let lingering: Vec<i32> = self.lingering.keys().copied().collect();
        let mut frozen = match self.fresh {
            Some(_) => exec::frozen(pid).map_err(|_| FreezeError::Ended(pid))?,
            None => freeze(pid, &lingering, FREEZE_LIMIT)?,
        };
        self.fresh = None;
        if let Some(journey) = &mut self.journey {
            journey.frozen = Some(frozen.since);
        }
        phases.mark("freeze");
        for thread in &mut frozen.threads {
            if let Some((switches, since)) = self.waits.get(&thread.tid)
                && thread.switches == Some(*switches)
                && thread.since.is_some()
            {
                // It has not run since it went on in that call.
                thread.since = Some(*since);
            }
        }
        self.waits.clear();
        let captured = self.capture(frozen, (attempt, home, spent), &flags, judged, deputy, &mut phases);
        phases.log(pid, "departure");
        if captured.is_err() {
            self.wake();
        }
        captured
    }

    fn capture(
        &mut self,
        frozen: Frozen,
        (attempt, home, spent): (Epoch, Nonce, Spent),
        flags: &HashMap<u64, Vec<[u8; 2]>>,
        judged: impl FnOnce() -> Option<Why>,
        deputy: impl FnOnce(crate::process::window::Window) -> io::Result<Arc<Deputy>>,
        phases: &mut Phases,
    ) -> Result<Outgoing, DepartError> {
        let pid = self.pid;
        let os = |what| move |error| DepartError::Os { pid, what, error };
        self.held = frozen
            .threads
            .iter()
            .map(|thread| thread.tid)
            .chain(self.lingering.keys().copied())
            .collect();
        let frozen = self.frozen.insert(frozen);
        let mut mappings = maps::read(pid).map_err(os("maps"))?;
        let vdso = capture::vdso_of(&mappings).map_or(0..0, |vdso| vdso.start..vdso.end);
        crate::process::step::out_of(frozen, |ip| vdso.contains(&ip))?;
        let frozen = &*frozen;
        maps::attach(&mut mappings, flags);
        let layout = layout::of_home(pid, &mappings, judged).map_err(|why| DepartError::Unmovable { pid, why })?;
        phases.mark("maps");
        let kept = has_window(&mappings);
        let deputy = match self.deputy.take() {
            Some(deputy) if kept => deputy,
            stale => {
                if let Some(stale) = stale {
                    stale.end();
                }
                let first = frozen.threads.first().ok_or(FreezeError::Ended(pid))?;
                let window = inject((pid, first.tid), &mappings)?;
                deputy(window).map_err(os("starting the deputy"))?
            }
        };
        self.deputy = Some(Arc::clone(&deputy));
        self.open = false;
        // Until the deputy's threads take signals: what a call raises must be on its way before the call's answer.
        deputy.defer();
        let memory = ProcMem::force(pid).map_err(os("memory"))?;
        phases.mark("window");
        let captured = self.threads_of(&deputy)?;
        phases.mark("capture");
        let runs = layout::runs(pid, &layout.vmas, &layout.pages).map_err(os("pagemap"))?;
        let image = ProcessImage {
            pid: Pid(pid),
            epoch: attempt,
            home,
            uid: nix::unistd::getuid().as_raw(),
            exe: exe(pid),
            threads: captured.threads,
            vmas: layout.vmas.clone(),
            files: layout.files.clone(),
            mm: capture::mm(pid, captured.brk)?,
            actions: captured.actions,
            // Pending signals stay with the deputy and are forwarded when its mask is lifted.
            pending: Vec::new(),
            signals: self.signals.given(),
            spent,
            home_cpu_ns: crate::process::stat::cpu_ns(pid).unwrap_or(0),
            clocks: capture::clocks(),
            vdso: layout::vdso(&memory, &mappings),
            cpu: self.birth.clone(),
            attributes: captured.attributes,
        };
        phases.mark("image");
        let paths = layout.paths.clone();
        self.layout = layout;
        self.image = Some(image.clone());
        Ok(Outgoing {
            image: Box::new(image),
            runs,
            memory,
            paths,
        })
    }

    /// Captures the threads that ran, and adds those that linger in the stub.
    fn threads_of(&self, deputy: &Deputy) -> Result<Captured, DepartError> {
        let frozen = self.frozen.as_ref().ok_or(FreezeError::Ended(self.pid))?;
        let mut captured = if frozen.threads.is_empty() {
            // Nothing of the program ran since it came home: it is as it was.
            let before = self.image.as_ref().ok_or(FreezeError::Ended(self.pid))?;
            Captured {
                threads: Vec::new(),
                actions: before.actions.clone(),
                pending: Vec::new(),
                brk: before.mm.fields[5],
                attributes: before.attributes,
            }
        } else {
            for (tid, _) in deputy.seats() {
                if !self.lingering.contains_key(&tid) {
                    deputy.leave(tid);
                }
            }
            let slots = deputy.free_slots(frozen.threads.len());
            let captured = capture(frozen, deputy.window(), &slots, |tid| tid)?;
            for (thread, slot) in frozen.threads.iter().zip(slots) {
                deputy.seat(thread.tid, slot, Seq(0), resume(self.pid, thread));
            }
            captured
        };
        let before = self.image.as_ref().map_or(&[][..], |image| &image.threads);
        let before: HashMap<_, _> = before.iter().map(|thread| (thread.tid, thread.cpu)).collect();
        for thread in &mut captured.threads {
            thread.pending.clear();
            thread.cpu = before.get(&thread.tid).copied().unwrap_or_default();
        }
        for thread in captured.threads.iter_mut().filter(|thread| thread.in_flight) {
            // Its call goes on under a number of its own: what the stop has cut short is taken up by it alone.
            thread.seq = RESUMED.0;
        }
        for (tid, thread) in &self.lingering {
            let mut thread = thread.clone();
            thread.seq = deputy.seq(*tid).0;
            thread.in_flight = true;
            captured.threads.push(thread);
        }
        let pid = self.pid;
        captured
            .threads
            .sort_by_key(|thread| (thread.tid.0 != pid, thread.tid.0));
        Ok(captured)
    }

    /// Lets a new program begin here; false when it is none that waits.
    pub fn begin(&mut self) -> bool {
        let waited = self.fresh.take().is_some();
        if waited {
            self.held.clear();
            if let Err(error) = ptrace::detach(self.pid, 0) {
                tracing::debug!(pid = self.pid, %error, "a new program is gone");
            }
        }
        waited
    }

    /// Undoes a departure that was not committed: every thread goes on as if nothing had been.
    pub fn wake(&mut self) {
        let Some(frozen) = self.frozen.take() else { return };
        let image = self.image.as_ref().map_or_else(Vec::new, |image| image.threads.clone());
        for thread in &frozen.threads {
            let tid = thread.tid;
            let inside = ptrace::regs(tid).is_err();
            if inside && super::signals::hold_away(self, tid).is_err() {
                continue;
            }
            if let Some(before) = image.iter().find(|image| image.tid.0 == tid) {
                let _ = ptrace::set_xstate(tid, &before.xsave);
                let _ = ptrace::set_sigmask(tid, before.mask);
            }
        }
        release(&frozen);
        if let Some(deputy) = &self.deputy {
            deputy.forget_deferred();
            for thread in &frozen.threads {
                deputy.leave(thread.tid);
            }
        }
        self.held = self.lingering.keys().copied().collect();
    }

    /// The body runs elsewhere: the deputy becomes one in earnest. Its signals are no longer blocked (the tracer forwards them), it dies
    /// with this supervisor, and its memory goes.
    pub fn settle_away(&mut self, job: Option<&Job>) {
        self.frozen = None;
        self.lingering.clear();
        for tid in self.interrupt_all() {
            if let Err(error) = harden(self, tid) {
                tracing::debug!(tid, %error, "thread is gone");
            }
        }
        self.open = true;
        if let (Some(deputy), Some(job)) = (&self.deputy, job) {
            deputy.undefer(job);
        }
    }

    /// Drops the memory of a deputy whose body runs elsewhere.
    pub fn drop_memory(&mut self) {
        if self
            .image
            .as_ref()
            .is_some_and(|image| image.attributes.has_cpu_timers())
        {
            self.disarm();
        }
        let mappings = maps::read(self.pid).unwrap_or_default();
        let drop = restore::drop_memory(&mappings, &self.words());
        match self.run(&drop) {
            Ok(_) => self.dropped = true,
            Err(error) => tracing::warn!(pid = self.pid, %error, "memory not dropped"),
        }
    }

    /// The pages of the deputy that keep their contents.
    pub fn words(&self) -> std::ops::Range<u64> {
        self.image.as_ref().map_or(0..0, |image| restore::words(&image.mm))
    }

    /// Ends the deputy's timers of CPU time: they go on in the body.
    pub fn disarm(&mut self) {
        let Some(deputy) = self.deputy.clone() else { return };
        let data = super::home::STATE_DATA;
        let (ops, bytes) = set_cpu_timers(&Default::default(), SHARED + data);
        let done = deputy.window().shared().write(data, &bytes).map_err(ScriptError::from);
        if let Err(error) = done.and_then(|()| self.run(&ops)) {
            tracing::warn!(pid = self.pid, %error, "timers of CPU time not ended");
        }
    }

    /// Interrupts all threads, so that they stop side by side; who they are.
    fn interrupt_all(&mut self) -> Vec<i32> {
        let tids: Vec<i32> = self.held.iter().copied().collect();
        for tid in &tids {
            let _ = super::signals::interrupt(self, *tid);
        }
        tids
    }

    /// Lets signals through to all threads again.
    pub fn unshut(&mut self) {
        for tid in self.interrupt_all() {
            if let Err(error) = super::signals::set_mask(self, tid, 0) {
                tracing::debug!(tid, %error, "thread is gone");
            }
        }
        self.open = true;
    }

    /// Takes signals off all threads; gives those without an open call, which stand still until [`super::signals::go_on`].
    pub fn shut(&mut self) -> HashSet<i32> {
        let mut still = HashSet::new();
        for tid in self.interrupt_all() {
            let shut = super::signals::hold_away(self, tid).and_then(|()| {
                ptrace::set_sigmask(tid, u64::MAX)?;
                if self.deputy.as_ref().is_some_and(|deputy| deputy.open(tid).is_some()) {
                    return super::signals::go_on(tid, self.deputy.as_deref());
                }
                still.insert(tid);
                Ok(())
            });
            if let Err(error) = shut {
                tracing::debug!(tid, %error, "thread is gone");
            }
        }
        self.open = false;
        still
    }

    /// Runs system calls in the process.
    pub fn run(&mut self, ops: &[Op]) -> Result<Vec<i64>, ScriptError> {
        let Some(deputy) = self.deputy.clone() else {
            return Ok(Vec::new());
        };
        // A thread that stops for a signal meanwhile would wait for this one, which waits for the script.
        let idle = deputy.idle().filter(|_| self.open);
        if let Some(tid) = idle {
            let _ = super::signals::set_mask(self, tid, u64::MAX);
        }
        let done = match idle {
            Some(tid) => deputy.run_in(tid, ops, RUN_LIMIT),
            None if self.open => Err(ScriptError::Busy(0)),
            None => deputy.run(ops, RUN_LIMIT),
        };
        if let Some(tid) = idle {
            let _ = super::signals::set_mask(self, tid, 0);
        }
        match done {
            // Every thread waits in a call of its own: one of them does it in between.
            Err(ScriptError::Busy(_)) => borrow(self, &deputy, ops),
            done => done,
        }
    }
}

/// How long a script may take.
const RUN_LIMIT: Duration = Duration::from_secs(20);

/// Runs system calls in a thread that is inside a call of its own, one step at a time; its call then goes on.
fn borrow(process: &mut Process, deputy: &Deputy, ops: &[Op]) -> Result<Vec<i64>, ScriptError> {
    let failed = |nr, error| ScriptError::Failed {
        slot: 0,
        index: 0,
        nr,
        error,
    };
    let tid = *process.held.iter().min().ok_or(ScriptError::Busy(0))?;
    let address = stub().map_err(|error| failed(0, io::Error::other(error)))?.syscall;
    let gone = |error| failed(0, error);
    super::signals::hold_away(process, tid).map_err(gone)?;
    let (regs, mask) = (ptrace::regs(tid).map_err(gone)?, ptrace::sigmask(tid).map_err(gone)?);
    ptrace::set_sigmask(tid, step::QUIET).map_err(gone)?;
    let mut results = Vec::with_capacity(ops.len());
    let mut outcome = Ok(());
    for op in ops {
        match step::call(tid, address, op.nr.into(), op.args, Duration::from_secs(5)) {
            Ok(result) if (-4095..0).contains(&result) && op.flags & OP_STOP_ON_ERROR != 0 => {
                outcome = Err(failed(op.nr, io::Error::from_raw_os_error(-result as i32)));
                break;
            }
            Ok(result) => results.push(result),
            Err(error) => {
                outcome = Err(failed(op.nr, error));
                break;
            }
        }
    }
    ptrace::set_regs(tid, &regs).map_err(gone)?;
    ptrace::set_sigmask(tid, mask).map_err(gone)?;
    super::signals::go_on(tid, Some(deputy)).map_err(gone)?;
    outcome.map(|()| results)
}

/// Makes a thread of the deputy, the leader if possible, execute one last system call in place of whatever it does.
///
/// # Errors
/// When no thread can be stopped any more.
pub fn divert(process: &mut Process, nr: i64, args: [u64; 6]) -> io::Result<()> {
    let leader = process.held.get(&process.pid);
    let tid = *leader
        .or_else(|| process.held.iter().next())
        .ok_or(io::ErrorKind::NotFound)?;
    leave_by(process, tid, nr, args)
}

/// Makes a thread of the deputy execute one last system call in place of whatever it does.
///
/// # Errors
/// When it cannot be stopped any more.
pub fn leave_by(process: &mut Process, tid: i32, nr: i64, args: [u64; 6]) -> io::Result<()> {
    let address = stub().map_err(io::Error::other)?.syscall;
    super::signals::hold_away(process, tid)?;
    let mut regs = ptrace::regs(tid)?;
    regs.set_call(nr as u64, args);
    regs.set_orig_rax(u64::MAX);
    regs.set_rip(address);
    ptrace::set_regs(tid, &regs)?;
    ptrace::cont(tid, 0)
}

/// Makes the deputy die of a signal as its body did, whatever the deputy's threads block and whatever its handlers are.
///
/// # Errors
/// When no thread can be stopped any more.
pub fn die(process: &mut Process, signal: i32) -> io::Result<()> {
    if signal != libc::SIGKILL {
        let leader = process.held.get(&process.pid);
        let tid = *leader
            .or_else(|| process.held.iter().next())
            .ok_or(io::ErrorKind::NotFound)?;
        let at = stub().map_err(io::Error::other)?.syscall;
        super::signals::hold_away(process, tid)?;
        ptrace::set_sigmask(tid, step::QUIET)?;
        if let Some(deputy) = &process.deputy {
            // SIG_DFL, no flags, no mask.
            let data = super::home::STATE_DATA;
            deputy
                .window()
                .shared()
                .write(data, &[0; 32])
                .map_err(io::Error::other)?;
            let default = [signal as u64, SHARED + data, 0, 8, 0, 0];
            step::call(tid, at, libc::SYS_rt_sigaction as u64, default, Duration::from_secs(5))?;
        }
        ptrace::set_sigmask(tid, !(1 << (signal - 1)))?;
        mosix_sys::process::tgkill(process.pid, tid, signal)?;
        return ptrace::cont(tid, 0);
    }
    Ok(mosix_sys::process::kill(process.pid, signal)?)
}

/// Stops a thread of a deputy for a moment to unblock its signals and to tie its life to the tracer's.
fn harden(process: &mut Process, tid: i32) -> io::Result<()> {
    super::signals::hold_away(process, tid)?;
    ptrace::set_options(tid, ptrace::OPTIONS | libc::PTRACE_O_EXITKILL)?;
    ptrace::set_sigmask(tid, 0)?;
    super::signals::go_on(tid, process.deputy.as_deref())
}

/// How a thread's interrupted call goes on when a host makes it.
fn resume(pid: i32, thread: &freezing::FrozenThread) -> Option<Resume> {
    let (nr, args) = (thread.regs.orig_rax(), thread.regs.args());
    let sleeps = matches!(nr as i64, libc::SYS_nanosleep | libc::SYS_clock_nanosleep);
    let nr = nr as u32;
    match thread.standing {
        Standing::Block if sleeps => Some(Resume::Block { nr, at: Instant::now() }),
        Standing::Short(written) => Some(Resume::Short { nr, written }),
        // A host makes it natively, or not at all.
        _ if !table::row(nr).forwards() => None,
        _ => {
            let passed = u64::try_from(monotonic().saturating_sub(thread.since?)).unwrap_or(0);
            let since = Instant::now().checked_sub(Duration::from_nanos(passed))?;
            let socket = match rest::timeout(nr.into(), &args)? {
                Timeout::Socket { sends } => Some(super::signals::socket_timeout(pid, args[0] as i32, sends)?),
                _ => None,
            };
            Some(Resume::Rest { nr, since, socket })
        }
    }
}

fn exe(pid: i32) -> String {
    std::fs::read_link(format!("/proc/{pid}/exe"))
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default()
}
