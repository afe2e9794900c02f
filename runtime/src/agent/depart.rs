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
use super::shared::{Command, Shared, lock};
use super::usage;
use super::{layout, mapping};
use crate::link::{LinkError, Sender, Stream};
use crate::node::ClientError;
use crate::process::capture::{self, CaptureError};
use crate::process::freeze::Frozen;
use crate::process::layout::{Run, runs};
use crate::process::maps::{self, Mapping};
use crate::process::materialise::stop_all;
use crate::process::memory;
use crate::process::restart::{EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS, Standing};
use crate::process::step;
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace;
use mosix_wire::control::{Fingerprint, Purpose};
use mosix_wire::frame::encode_body;
use mosix_wire::ids::{Epoch, NodeName, Pid};
use mosix_wire::image::{Clocks, FileRef, ProcessImage, SigInfo, ThreadImage};
use mosix_wire::limits::PAGE_RUN;
use mosix_wire::link::{ToHome, ToHost};
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
/// How long a link to the destination that is down is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

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
/// The stream is taken when it is used.
///
/// # Errors
/// The body is not frozen, or frozen as it was, with every thread where it stood.
pub fn begin(
    shared: &Arc<Shared>,
    process: &mut Process,
    attempt: Epoch,
    stream: &mut Option<Box<Sender>>,
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
    process.freeze(shared).map_err(DepartError::Freeze)?;
    let (Some(built), Some(mut frozen), Some(calls)) = (&process.built, process.frozen.take(), &process.calls) else {
        return Err(DepartError::Freeze(io::ErrorKind::NotFound.into()));
    };
    let mut seqs = Vec::with_capacity(frozen.threads.len());
    for thread in &mut frozen.threads {
        let leaving = calls.calls.leaving(thread.tid);
        // Home answered while the thread was being stopped: the call ends here.
        let result = match leaving.over {
            Some(Over::Reply(sent, reply, payload)) => {
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
    let captured = out_of_vdso(built, &mut frozen)
        .and_then(|()| image_of(built, &frozen, &seqs, attempt, &flags, (&file_of, offered)));
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
    let Some(stream) = stream.take() else {
        return Err(DepartError::Freeze(io::ErrorKind::NotConnected.into()));
    };
    let job = Job {
        shared: Arc::clone(shared),
        image,
        pages,
        memory,
        stream,
        go,
        to_home,
        attempt,
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

fn image_of(
    built: &Built,
    frozen: &Frozen,
    seqs: &[(u64, bool)],
    attempt: Epoch,
    flags: &std::collections::HashMap<u64, Vec<[u8; 2]>>,
    (file_of, offered): (layout::FileOf<'_>, Option<&[FileRef]>),
) -> Result<(ProcessImage, Vec<Run>), DepartError> {
    let pid = built.body.pid;
    let mut present = maps::read(pid).map_err(os("maps"))?;
    maps::attach(&mut present, flags);
    let (vmas, pages, files) = layout::of_body(built, &present, file_of, offered)?;
    let numbers = built.numbers();
    let number = |tid: i32| numbers.get(&tid).copied().unwrap_or(tid);
    let old = &built.image;
    let mut saved = Vec::with_capacity(frozen.threads.len());
    for thread in &frozen.threads {
        let state = ptrace::sigmask(thread.tid).and_then(|mask| Ok((mask, ptrace::xstate(thread.tid)?)));
        saved.push(state.map_err(os("saving a thread"))?);
    }
    let slots: Vec<u32> = (0..frozen.threads.len() as u32).collect();
    let captured = capture::capture(frozen, &built.body.window, &slots, number);
    let mut captured = match captured {
        Ok(captured) => captured,
        Err(error) => {
            // Some threads are in the stub, some are not: all are stopped and get back what the stub changed.
            let tids: Vec<i32> = frozen.threads.iter().map(|thread| thread.tid).collect();
            let _ = stop_all(&tids);
            for (tid, (mask, xstate)) in tids.into_iter().zip(&saved) {
                let _ = ptrace::set_sigmask(tid, *mask).and_then(|()| ptrace::set_xstate(tid, xstate));
            }
            return Err(error.into());
        }
    };
    for ((thread, (seq, in_flight)), frozen) in captured.threads.iter_mut().zip(seqs).zip(&frozen.threads) {
        thread.seq = *seq;
        thread.in_flight = *in_flight;
        let before = old
            .threads
            .iter()
            .find(|before| before.tid == thread.tid)
            .map_or(0, |before| before.cpu_ns);
        thread.cpu_ns = before.saturating_add(usage::cpu_ns(pid, Some(frozen.tid)).unwrap_or(0));
    }
    let pages = runs(pid, &vmas, &pages).map_err(os("pagemap"))?;
    let now = nest::now().map_err(os("reading the clocks"))?;
    let clocks = Clocks {
        monotonic: now.monotonic + built.ahead.0,
        boottime: now.boottime + built.ahead.1,
        realtime: now.realtime.saturating_add(built.realtime),
    };
    // What this host gives a body of its own says nothing about the process.
    let mut attributes = captured.attributes;
    attributes.dumpable = old.attributes.dumpable;
    attributes.stack_limit = old.attributes.stack_limit;
    let image = ProcessImage {
        pid: old.pid,
        epoch: attempt,
        home: old.home,
        uid: old.uid,
        exe: old.exe.clone(),
        threads: captured.threads,
        vmas,
        files,
        mm: capture::mm(pid, captured.brk)?,
        actions: captured.actions,
        pending: captured.pending,
        signals: 0,
        clocks,
        vdso: old.vdso.clone(),
        cpu: crate::cpu::captured_here(&old.cpu),
        attributes,
    };
    Ok((image, pages))
}

/// Steps threads out of code that is not the same on the next node: the node's own vDSO and the jumps into it.
fn out_of_vdso(built: &Built, frozen: &mut Frozen) -> Result<(), DepartError> {
    let node = built
        .body
        .node
        .iter()
        .filter(|mapping| mapping.name == "[vdso]")
        .map(Mapping::clone)
        .collect::<Vec<_>>();
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
        own || (home && !stable)
    };
    Ok(step::out_of(frozen, inside)?)
}

/// The thread of a departure.
struct Job {
    shared: Arc<Shared>,
    image: Arc<ProcessImage>,
    pages: Vec<Run>,
    memory: ProcMem,
    stream: Box<Sender>,
    go: mpsc::Receiver<()>,
    to_home: bool,
    attempt: Epoch,
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
        let end = if self.to_home {
            encode_body(&ToHome::ImageEnd { pid, pages: count })
        } else {
            encode_body(&ToHost::ImageEnd { pid, pages: count })
        };
        let sent = end
            .map_err(LinkError::from)
            .and_then(|end| self.stream.send(&end, &[]))
            .and_then(|()| self.stream.finish());
        if let Err(error) = sent {
            // Home decides now; it learns of the break from the other end, or by silence.
            tracing::warn!(%pid, %error, "the end of an image could not be sent");
        }
    }

    fn send(&mut self) -> Result<u64, LinkError> {
        let image = Box::new(ProcessImage::clone(&self.image));
        let first = if self.to_home {
            encode_body(&ToHome::Departing(image))
        } else {
            encode_body(&ToHost::Arrive(image))
        };
        self.stream.send(&first?, &[])?;
        let (pid, to_home) = (self.image.pid, self.to_home);
        let (stream, memory) = (&mut self.stream, &self.memory);
        let mut each = |address: u64, bytes: &[u8]| -> io::Result<()> {
            let head = if to_home {
                encode_body(&ToHome::Pages { pid, address })
            } else {
                encode_body(&ToHost::Pages { pid, address })
            };
            stream
                .send(&head.map_err(io::Error::other)?, &[bytes])
                .map_err(io::Error::other)
        };
        Ok(memory::read(memory, &self.pages, &mut each)? / PAGE)
    }
}

/// Connects to the agent on another node and gives it the files that it lacks. Runs on a thread of its own, before the freeze.
pub fn dial(shared: &Arc<Shared>, pid: Pid, attempt: Epoch, node: NodeName, peer: Fingerprint, files: Vec<FileRef>) {
    let worker = Arc::clone(shared);
    let started = shared.start(format!("dial {node}"), move || {
        let deadline = Instant::now() + PATIENCE;
        let dialled = loop {
            match connect(&worker, &node, peer, &files) {
                Ok(stream) => break Ok(stream),
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
    node: &NodeName,
    peer: Fingerprint,
    files: &[FileRef],
) -> Result<Sender, Box<dyn std::error::Error>> {
    let control = &shared.config.control;
    let fd = control.open_stream(node, shared.config.job, Purpose::Pages).map_err(
        |error| -> Box<dyn std::error::Error> {
            match error {
                ClientError::NoAgent(why) => Box::new(Refused(why)),
                other => Box::new(other),
            }
        },
    )?;
    let mut stream = Stream::dial(fd, &shared.security(peer)?)?;
    stream.send(&encode_body(&ToHost::Files(files.to_vec()))?, &[])?;
    let lacks = match stream.recv()?.message()? {
        ToHome::Lacks(lacks) => lacks,
        ToHome::Refused { reason, .. } => return Err(Box::new(Refused(reason))),
        _ => return Err("the other agent does not say which files it lacks".into()),
    };
    let mut buffer = vec![0; PAGE_RUN];
    for file in lacks {
        let memfd = {
            let known = lock(&shared.files);
            let (fd, _) = known
                .get(&file)
                .ok_or_else(|| format!("the bytes of {} are not here", file.path))?;
            fd.try_clone_to_owned()?
        };
        let mut offset = 0;
        loop {
            let count = rustix::io::pread(&memfd, &mut buffer[..], offset)?;
            let last = count == 0 || offset + count as u64 >= file.size;
            let head = ToHost::FileBytes {
                file: file.clone(),
                offset,
                last,
            };
            stream.send(&encode_body(&head)?, &[buffer.get(..count).unwrap_or_default()])?;
            offset += count as u64;
            if last {
                break;
            }
        }
    }
    Ok(stream.split().0)
}
