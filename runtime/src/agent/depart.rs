//! A body leaves this host: frozen, captured as a value, its pages sent; or, when that fails, everything as it was.
//!
//! ```text
//!  tracer            freeze ─▶ out of the vDSO ─▶ capture ─▶ image ────────────────▶ Frozen, on the session
//!  a thread of       dial, files ─┘                            └─▶ image, pages … ─▶ ImageEnd, when the tracer says so
//!  the departure
//! ```

use super::build::Built;
use super::calls::Over;
use super::guest::Guest;
use super::nest;
use super::process::Process;
use super::shared::{BodyCalls, Command, Shared, lock};
use super::usage;
use super::{layout, mapping, write_back};
use crate::link::{Sender, Stream};
use crate::node::ClientError;
use crate::process::capture::{self, CaptureError};
use crate::process::freeze::Frozen;
use crate::process::layout::{Run, runs};
use crate::process::maps;
use crate::process::materialise::stop_all;
use crate::process::memory::Feed;
use crate::process::phases::Phases;
use crate::process::restart::{EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS, Standing};
use crate::process::step;
use crate::transfer::{self, Failure, Way};
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace;
use mosix_wire::control::{Fingerprint, Purpose};
use mosix_wire::frame::encode_body;
use mosix_wire::ids::{Epoch, NodeName, Pid, Tid};
use mosix_wire::image::{Clocks, FileRef, ProcessImage, SigInfo, ThreadImage};
use mosix_wire::link::{ToHome, ToHost};
use mosix_wire::spent::CpuTime;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a link to the destination that is down is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// The streams of a move that begins here.
pub struct Streams {
    /// The one with the image.
    pub image: Sender,
    /// Lanes for pages beside it.
    pub lanes: Vec<Sender>,
}

/// A captured body whose image is on its way.
#[derive(Debug)]
pub struct Departure {
    /// The threads as they were captured.
    threads: Vec<ThreadImage>,
    /// Tells the sending thread to send the end, or, dropped, to give up.
    end: mpsc::Sender<()>,
    /// The image, to be said again when home asks.
    pub image: Arc<ProcessImage>,
}

/// Why a body cannot leave. It runs on.
#[derive(Debug, thiserror::Error)]
pub enum DepartError {
    /// It could not be stopped.
    #[error("it could not be stopped: {0}")]
    Freeze(io::Error),
    /// A thread cannot be moved where it stands.
    #[error(transparent)]
    Step(#[from] step::StepError),
    /// The capture failed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Memory that cannot be described.
    #[error(transparent)]
    Layout(#[from] layout::Strange),
    /// The kernel refused something.
    #[error("{what}: {error}")]
    Os {
        /// What.
        what: &'static str,
        /// Its answer.
        error: io::Error,
    },
}

fn os(what: &'static str) -> impl Fn(io::Error) -> DepartError {
    move |error| DepartError::Os { what, error }
}

impl Departure {
    /// Puts captured threads back where they were. They stand still afterwards, with registers to be set.
    ///
    /// # Errors
    /// A thread is gone: the body is lost.
    pub fn undo(self, built: &Built, frozen: &mut Frozen) -> io::Result<()> {
        put_back(built, frozen, &self.threads)
    }

    /// Lets the sending thread send the end of the image.
    pub fn send_end(&self) {
        let _ = self.end.send(());
    }
}

fn put_back(built: &Built, frozen: &mut Frozen, images: &[ThreadImage]) -> io::Result<()> {
    for (slot, image) in images.iter().enumerate() {
        if let Some(op) = capture::rseq_script(image) {
            let ran = built.body.window.run(slot as u32, &[op], Duration::from_secs(2));
            ran.map_err(io::Error::other)?;
        }
    }
    let tids: Vec<i32> = frozen.threads.iter().map(|thread| thread.tid).collect();
    stop_all(&tids)?;
    for (thread, image) in frozen.threads.iter_mut().zip(images) {
        ptrace::set_xstate(thread.tid, &image.xsave)?;
        ptrace::set_sigmask(thread.tid, image.mask)?;
        if matches!(thread.standing, Standing::Block | Standing::Short(_)) {
            // The restart block went with the calls of the capture: the call is made again, with the rest of its time-out.
            thread.standing = Standing::Again;
        }
    }
    Ok(())
}

/// Freezes and captures a body for a move of epoch `attempt`, and starts the thread that sends its image.
///
/// The streams are taken when they are used.
///
/// # Errors
/// The body is not frozen, or frozen as it was, with every thread where it stood.
pub fn begin(
    shared: &Arc<Shared>,
    process: &mut Process,
    attempt: Epoch,
    streams: &mut Option<Box<Streams>>,
    to_home: bool,
) -> Result<(), DepartError> {
    let file_of = |inode| mapping::file_of(shared, inode);
    let offered = std::mem::take(&mut process.offered);
    let offered = (!to_home).then_some(offered.as_slice());
    let Some(pid) = process.built.as_ref().map(|built| built.body.pid) else {
        return Err(DepartError::Freeze(io::ErrorKind::NotFound.into()));
    };
    // Slow, so before the freeze; a mapping that changes meanwhile keeps no flags.
    let flags = maps::flags(pid).unwrap_or_default();
    let mut phases = Phases::default();
    let begun = Instant::now();
    process.freeze(shared).map_err(DepartError::Freeze)?;
    // Who stands still already, for another reason, does so for this one from here on.
    process.still = process.frozen.as_ref().map(|frozen| frozen.since.max(begun));
    phases.mark("look, freeze");
    let (Some(built), Some(mut frozen), Some(calls)) = (&process.built, process.frozen.take(), &process.calls) else {
        return Err(DepartError::Freeze(io::ErrorKind::NotFound.into()));
    };
    let mut seqs = Vec::with_capacity(frozen.threads.len());
    for thread in &mut frozen.threads {
        let leaving = calls.calls.leaving(thread.tid);
        // Home answered while the thread was being stopped: the call ends here.
        let result = match leaving.over {
            Some(Over::Reply(sent, reply, payload)) => {
                let payload = usage::add(calls, thread.tid, sent.scatter.part, reply.result, &payload);
                sent.scatter.apply(&Guest::of(thread.tid), &reply, &payload).ok()
            }
            Some(Over::Result(result)) => Some(result),
            None => None,
        };
        match result {
            // The kernel that resumes it decides what a signal makes of it.
            Some(result @ (ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND)) => thread.regs.set_rax(result as u64),
            Some(ERESTART_RESTARTBLOCK) => {
                let due = process.signals.has_due(calls.calls.home_tid(thread.tid));
                thread.regs.set_rax(if due { EINTR } else { ERESTARTNOINTR } as u64);
                if due {
                    thread.regs.set_orig_rax(u64::MAX);
                    thread.standing = Standing::User;
                    thread.since = None;
                }
            }
            Some(result) => {
                thread.regs.set_rax(result as u64);
                thread.regs.set_orig_rax(u64::MAX);
                thread.standing = Standing::User;
                thread.since = None;
            }
            None => {}
        }
        seqs.push((leaving.seq, leaving.in_flight));
    }
    calls.calls.set_capturing(true);
    // Before the word that it stands still.
    write_back::push_all(shared, calls);
    let watched = lock(&calls.watched).ranges();
    let captured = out_of_vdso(built, &mut frozen, to_home).and_then(|()| {
        image_of(
            shared,
            (built, calls),
            &frozen,
            (&seqs, attempt),
            &flags,
            (&file_of, offered, &watched),
            &mut phases,
        )
    });
    calls.calls.set_capturing(false);
    // Whatever the body said before is in the session when this lock is free.
    drop(lock(&calls.sending));
    let (mut image, pages) = match captured {
        Ok(done) => done,
        Err(error) => {
            process.frozen = Some(frozen);
            return Err(error);
        }
    };
    image.signals = process.signals.inbox.0;
    for (tid, info) in process.signals.undelivered() {
        let info = SigInfo(info.to_vec());
        match tid.and_then(|tid| image.threads.iter_mut().find(|thread| thread.tid == tid)) {
            Some(thread) => thread.pending.push(info),
            None => image.pending.push(info),
        }
    }
    phases.mark("image");
    phases.log(process.pid.0, "capture");
    let memory = ProcMem::force(built.body.pid).map_err(os("memory"));
    let (end, go) = mpsc::channel();
    let departure = Departure {
        threads: image.threads.clone(),
        end,
        image: Arc::new(image),
    };
    let image = Arc::clone(&departure.image);
    process.frozen = Some(frozen);
    process.departure = Some(departure);
    let memory = memory?;
    let Some(streams) = streams.take() else {
        return Err(DepartError::Freeze(io::ErrorKind::NotConnected.into()));
    };
    let job = Job {
        shared: Arc::clone(shared),
        image,
        pages,
        memory,
        streams: *streams,
        go,
        to_home,
        attempt,
        lanes: 0,
    };
    shared
        .start(format!("depart {}", process.pid), move || job.run())
        .map_err(os("starting the sending thread"))
}

/// Undoes [`begin`]'s capture after one of its later steps failed; the body stays frozen.
///
/// # Errors
/// The body is lost.
pub fn undo(process: &mut Process) -> io::Result<()> {
    if let (Some(departure), Some(built), Some(frozen)) =
        (process.departure.take(), &process.built, &mut process.frozen)
    {
        departure.undo(built, frozen)?;
    }
    Ok(())
}

/// What each thread has used of the CPU on hosts, asked by several threads of ours when there are many: /proc takes its time for each.
fn used(
    shared: &Shared,
    calls: &Arc<BodyCalls>,
    frozen: &Frozen,
) -> Result<Vec<mpsc::Receiver<Vec<CpuTime>>>, DepartError> {
    const SHARE: usize = 128;
    let pid = frozen.pid;
    let mut all = Vec::new();
    for threads in frozen.threads.chunks(SHARE) {
        let (answer, used) = mpsc::sync_channel(1);
        let tids: Vec<i32> = threads.iter().map(|thread| thread.tid).collect();
        let calls = Arc::clone(calls);
        let work = move || {
            let cpu = tids.iter().map(|tid| lock(&calls.usage).thread_alike(pid, *tid));
            let _ = answer.send(cpu.collect());
        };
        if frozen.threads.len() > SHARE {
            shared
                .start(format!("usage {pid}"), work)
                .map_err(os("asking for CPU time"))?;
        } else {
            work();
        }
        all.push(used);
    }
    Ok(all)
}

fn image_of(
    shared: &Shared,
    (built, calls): (&Built, &Arc<BodyCalls>),
    frozen: &Frozen,
    (seqs, attempt): (&[(u64, bool)], Epoch),
    flags: &HashMap<u64, Vec<[u8; 2]>>,
    (file_of, offered, watched): (layout::FileOf<'_>, Option<&[FileRef]>, &[Range<u64>]),
    phases: &mut Phases,
) -> Result<(ProcessImage, Vec<Run>), DepartError> {
    let pid = built.body.pid;
    let mut present = maps::read(pid).map_err(os("maps"))?;
    maps::attach(&mut present, flags);
    let (vmas, pages, files) = layout::of_body(built, &present, file_of, offered, watched)?;
    phases.mark("maps");
    let numbers = built.numbers();
    let number = |tid: i32| numbers.get(&tid).copied().unwrap_or(tid);
    let old = &built.image;
    // Before the scripts of the capture: what a move costs is not the program's.
    let spent = lock(&calls.usage).process(pid);
    let used = used(shared, calls, frozen)?;
    let mut threads = capture::outside(frozen, number)?;
    phases.mark("registers");
    let slots: Vec<u32> = (0..frozen.threads.len() as u32).collect();
    let inside = capture::inside(frozen, &built.body.window, &slots, &mut threads, false);
    let (actions, brk, mut attributes, pending) = match inside {
        Ok(inside) => inside,
        Err(error) => {
            // Some threads are in the stub, some are not: all are stopped and get back what the stub changed.
            let tids: Vec<i32> = frozen.threads.iter().map(|thread| thread.tid).collect();
            let _ = stop_all(&tids);
            for (tid, thread) in tids.into_iter().zip(&threads) {
                let _ = ptrace::set_sigmask(tid, thread.mask).and_then(|()| ptrace::set_xstate(tid, &thread.xsave));
            }
            return Err(error.into());
        }
    };
    phases.mark("scripts");
    let before: HashMap<Tid, &ThreadImage> = old.threads.iter().map(|before| (before.tid, before)).collect();
    let used: Vec<CpuTime> = used
        .into_iter()
        .flat_map(|used| used.recv().unwrap_or_default())
        .collect();
    for (index, (thread, (seq, in_flight))) in threads.iter_mut().zip(seqs).enumerate() {
        thread.seq = *seq;
        thread.in_flight = *in_flight;
        thread.cpu = used.get(index).copied().unwrap_or_default();
        if let Some(before) = before.get(&thread.tid) {
            thread.comm.clone_from(&before.comm);
            thread.timer_slack = before.timer_slack;
        }
    }
    phases.mark("usage");
    let pages = runs(pid, &vmas, &pages).map_err(os("pagemap"))?;
    phases.mark("pagemap");
    let now = nest::now().map_err(os("reading the clocks"))?;
    let clocks = Clocks {
        monotonic: now.monotonic + built.ahead.0,
        boottime: now.boottime + built.ahead.1,
        realtime: now.realtime.saturating_add(built.realtime),
    };
    // Home's, and what this host gives a body of its own says nothing about the process. A change comes home first.
    attributes.personality = old.attributes.personality;
    attributes.dumpable = old.attributes.dumpable;
    attributes.stack_limit = old.attributes.stack_limit;
    attributes.cpu_limit = lock(&calls.usage).cpu_limit();
    let image = ProcessImage {
        pid: old.pid,
        epoch: attempt,
        home: old.home,
        uid: old.uid,
        exe: old.exe.clone(),
        threads,
        vmas,
        files,
        mm: capture::mm(pid, brk)?,
        actions,
        pending,
        signals: 0,
        spent,
        home_cpu_ns: old.home_cpu_ns,
        clocks,
        vdso: old.vdso.clone(),
        cpu: crate::cpu::captured_here(&old.cpu),
        attributes,
    };
    Ok((image, pages))
}

/// Steps threads out of code that is not the same on the next node: the node's own vDSO and the jumps into it.
fn out_of_vdso(built: &Built, frozen: &mut Frozen, to_home: bool) -> Result<(), DepartError> {
    let node: Vec<_> = built
        .body
        .node
        .iter()
        .filter(|mapping| mapping.name == "[vdso]")
        .collect();
    let carried = built
        .image
        .vdso
        .as_ref()
        .map(|vdso| vdso.base..vdso.base + vdso.text.len() as u64);
    let inside = |ip: u64| {
        let own = node.iter().any(|mapping| (mapping.start..mapping.end).contains(&ip));
        let home = carried.as_ref().is_some_and(|range| range.contains(&ip));
        let stable = built
            .vdso
            .as_ref()
            .is_some_and(|(base, patched)| ip.checked_sub(*base).is_some_and(|at| patched.is_stable(at as usize)));
        // At home the kernel's own code is there again.
        own || (home && (to_home || !stable))
    };
    Ok(step::out_of(frozen, inside)?)
}

/// The thread of a departure.
struct Job {
    shared: Arc<Shared>,
    image: Arc<ProcessImage>,
    pages: Vec<Run>,
    memory: ProcMem,
    streams: Streams,
    go: mpsc::Receiver<()>,
    to_home: bool,
    attempt: Epoch,
    /// Lanes that were used.
    lanes: u8,
}

impl Job {
    fn run(mut self) {
        let (pid, shared) = (self.image.pid, Arc::clone(&self.shared));
        let count = match self.send() {
            Ok(count) => count,
            Err(error) => {
                shared.command(Command::StreamBroken(pid, self.attempt, error.to_string()));
                return;
            }
        };
        shared.command(Command::PagesSent(pid, self.attempt));
        if self.go.recv().is_err() {
            return;
        }
        crate::fault::at("source.sent");
        let end = self
            .way()
            .end(pid, count, self.lanes)
            .and_then(|end| self.streams.image.send(&end, &[]))
            .and_then(|()| self.streams.image.finish());
        if let Err(error) = end {
            // Home decides now; it learns of the break from the other end, or by silence.
            tracing::warn!(%pid, %error, "the end of an image could not be sent");
        }
    }

    fn way(&self) -> Way {
        if self.to_home { Way::ToHome } else { Way::ToHost }
    }

    /// Sends all but the end; how many pages went over the image's own stream.
    fn send(&mut self) -> Result<u64, Failure> {
        let image = Box::new(ProcessImage::clone(&self.image));
        let first = match self.way() {
            Way::ToHome => encode_body(&ToHome::Departing(image)),
            Way::ToHost => encode_body(&ToHost::Arrive(image)),
        };
        self.streams.image.send(&first?, &[])?;
        let feed = Feed::new(&self.memory, &self.pages);
        let lanes = std::mem::take(&mut self.streams.lanes);
        self.lanes = lanes.len() as u8;
        let (pid, way) = (self.image.pid, self.way());
        transfer::send((pid, way), &feed, &mut self.streams.image, lanes, &|_| {})
    }
}

/// Connects to the agent on another node and gives it the files that it lacks. Runs on a thread of its own, before the freeze.
pub fn dial(
    shared: &Arc<Shared>,
    (pid, host): (Pid, i32),
    attempt: Epoch,
    (node, peer): (NodeName, Fingerprint),
    files: Vec<FileRef>,
    threads: Vec<Tid>,
) {
    let worker = Arc::clone(shared);
    let started = shared.start(format!("dial {node}"), move || {
        let lanes = transfer::lanes_for(transfer::resident(host));
        let deadline = Instant::now() + PATIENCE;
        let dialled = loop {
            match connect(&worker, (&node, peer), (&files, &threads), (pid, attempt), lanes) {
                Ok(streams) => break Ok(streams),
                // What the other node itself says does not change by trying again; a link that was cut comes back.
                Err(error) if error.is::<Refused>() || Instant::now() > deadline => break Err(error),
                Err(error) => tracing::debug!(%node, %error, "not connected yet"),
            }
            std::thread::sleep(Duration::from_millis(200));
        };
        let dialled = dialled.map_err(|error| format!("{node}: {error}"));
        worker.command(Command::Ready(pid, attempt, dialled.map(Box::new)));
    });
    if let Err(error) = started {
        shared.command(Command::Ready(pid, attempt, Err(error.to_string())));
    }
}

/// The other node's own word.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

fn connect(
    shared: &Shared,
    (node, peer): (&NodeName, Fingerprint),
    (files, threads): (&[FileRef], &[Tid]),
    (pid, attempt): (Pid, Epoch),
    lanes: usize,
) -> Result<Streams, Failure> {
    let open = || -> Result<Stream, Failure> {
        let control = &shared.config.control;
        let opened = control.open_stream(node, shared.config.job, Purpose::Pages);
        let fd = opened.map_err(|error| -> Failure {
            match error {
                ClientError::NoAgent(why) => Box::new(Refused(why)),
                other => Box::new(other),
            }
        })?;
        Ok(Stream::dial(fd, &shared.security(peer)?)?)
    };
    let mut stream = open()?;
    let offer = ToHost::Files {
        pid,
        epoch: attempt,
        files: files.to_vec(),
    };
    stream.send(&encode_body(&offer)?, &[])?;
    let lacks = match stream.recv()?.message()? {
        ToHome::Lacks(lacks) => lacks,
        ToHome::Refused { reason, .. } => return Err(Box::new(Refused(reason))),
        _ => return Err("the other agent does not say which files it lacks".into()),
    };
    for file in lacks {
        let memfd = {
            let known = lock(&shared.files);
            let (fd, _) = known
                .get(&file)
                .ok_or_else(|| format!("the bytes of {} are not here", file.path))?;
            fd.try_clone_to_owned()?
        };
        transfer::send_file(&file, &memfd, |head, bytes| {
            Ok(stream.send(&encode_body(head)?, &[bytes])?)
        })?;
    }
    let ahead = ToHost::Prepare {
        pid,
        epoch: attempt,
        files: files.to_vec(),
        threads: threads.to_vec(),
        // The other agent has them from home.
        clocks: Clocks::default(),
    };
    stream.send(&encode_body(&ahead)?, &[])?;
    let lanes = transfer::open_lanes(lanes, (pid, attempt), false, open)?;
    Ok(Streams {
        image: stream.split().0,
        lanes: lanes.into_iter().map(|lane| lane.split().0).collect(),
    })
}
