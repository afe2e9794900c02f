//! An image becomes a body: stopped, filtered, verified from outside, ready for home's word.
//!
//! ```text
//!  begin    blank process, memory map, vDSO      ── on Arrive
//!           (pages are written by the stream)
//!  finish   threads, state, filter, registers,   ── on ImageEnd
//!           verification
//! ```
//! Runs on the tracer thread. Every failure kills what exists.

use super::ahead::WILD;
use super::birth::{self, BirthError, Blank, blank};
use super::calls::{Calls, NewThread};
use super::family::Family;
use super::nest::{self, Nest};
use super::shared::{BodyCalls, Shared, lock};
use super::usage::Meter;
use super::verify::{self, Unsafe};
use super::write_back::{Watched, is_watched};
use crate::cpu;
use crate::process::materialise::{Body, BuildError};
use crate::process::phases::Phases;
use crate::process::window::BUFFERS;
use crate::syscall::decide::{Decision, decide};
use crate::syscall::{filter, table};
use mosix_loader::script::Op;
use mosix_loader::script::abi::{SHARED, SHARED_SIZE, TEXT_ROOM, WINDOW};
use mosix_loader::vdso::{self, Patched, Presented, VdsoError};
use mosix_sys::notif::{Answer, Listener};
use mosix_sys::process::kill;
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace;
use mosix_wire::ids::{Epoch, Pid, Tid};
use mosix_wire::image::{Clocks, FileRef, ProcessImage};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// Draws of the address space before a collision with the node's own vDSO is given up.
const DRAWS: usize = 8;
/// First descriptor of the image's files in a blank process.
const FILES_AT: i32 = 4;
/// Version of capset(2)'s structures with two words of each set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// Number of mseal(2).
pub const SYS_MSEAL: i64 = 462;
/// Arguments of madvise(2) that keep the slots from children.
pub const DONT_FORK: [u64; 6] = [SHARED, SHARED_SIZE, libc::MADV_DONTFORK as u64, 0, 0, 0];
/// How far the clocks of an image may be ahead of those of a process that was prepared for it: less than the rest of the building takes.
const AHEAD: Duration = Duration::from_millis(2);

/// Why there is no body. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum ArrivalError {
    /// No blank process.
    #[error(transparent)]
    Birth(#[from] BirthError),
    /// A step of the materialiser.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// Its bytes were never sent.
    #[error("the bytes of {0} are not here")]
    File(String),
    /// The carried vDSO cannot be used.
    #[error("home's vDSO: {0}")]
    Vdso(#[from] VdsoError),
    /// A register file that this CPU cannot hold.
    #[error(transparent)]
    Registers(#[from] cpu::xsave::XsaveError),
    /// The filter could not be made.
    #[error(transparent)]
    Filter(#[from] filter::FilterError),
    /// The body is not as confined as it must be.
    #[error(transparent)]
    Unsafe(#[from] Unsafe),
    /// The wall clocks of the nodes differ too much.
    #[error("this node's clock is {by:.1?} {which} home's: set it (for example by NTP), then move again")]
    Clock {
        /// By how much.
        by: Duration,
        /// In which direction.
        which: &'static str,
    },
    /// Nobody could look at its threads.
    #[error("a thread that was to look at the body is gone")]
    Blind,
    /// The kernel refused something.
    #[error("{what}: {error}")]
    Os {
        /// What.
        what: &'static str,
        /// Its answer.
        error: io::Error,
    },
}

type Look = Result<Vec<(i32, i32)>, Unsafe>;

fn os<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> ArrivalError {
    move |error| ArrivalError::Os {
        what,
        error: error.into(),
    }
}

/// A body under construction or built.
#[derive(Debug)]
pub struct Built {
    /// What it is built from. Its registers fit this node.
    pub image: Box<ProcessImage>,
    /// The process.
    pub body: Body,
    /// Home's wall clock less this node's, in nanoseconds.
    pub realtime: i64,
    /// The body's monotonic and boot time less this node's, in nanoseconds.
    pub ahead: (i64, i64),
    /// Where home's vDSO lies, and what of it may be stopped in.
    pub vdso: Option<(u64, Patched)>,
}

/// A process for a body whose image is still to come: made while the program still runs where it is.
#[derive(Debug)]
pub struct Prepared {
    body: Body,
    epoch: Epoch,
    /// Its threads.
    threads: Vec<Tid>,
    /// What lies on its descriptors.
    files: Vec<FileRef>,
    /// Its clocks less this node's.
    ahead: (i64, i64),
}

impl Prepared {
    /// Makes a process for the image of `pid` and `epoch`, which will have these files, with home's clocks as they are known here.
    ///
    /// # Errors
    /// Everything that can go wrong, with nothing left.
    pub fn new(
        shared: &Shared,
        nest: &Nest,
        program: &OwnedFd,
        (pid, epoch): (Pid, Epoch),
        (files, threads): (Vec<FileRef>, Vec<Tid>),
    ) -> Result<Self, ArrivalError> {
        let known = lock(&shared.files);
        let open = files
            .iter()
            .map(|file| {
                known
                    .get(file)
                    .map(|(fd, _)| fd)
                    .ok_or_else(|| ArrivalError::File(file.path.clone()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let now = nest::now().map_err(os("reading the clocks"))?;
        let ahead = shared.ahead().of_body(&Clocks::default(), &now);
        let fresh = bounded(shared, nest, program, pid, ahead, &open)?;
        drop(open);
        drop(known);
        let mut body = Body::new(fresh.host, fresh.window);
        if let Err(error) = body.spawn_threads(&threads) {
            end(&body);
            return Err(error.into());
        }
        Ok(Self {
            body,
            epoch,
            threads,
            files,
            ahead,
        })
    }

    /// The epoch of the image that it is for.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Kills it.
    pub fn end(self) {
        end(&self.body);
    }

    /// The process and its clocks, when it is one for this image; else it ends.
    fn fitting(self, image: &ProcessImage, now: &Clocks) -> Option<Ready> {
        let near = AHEAD.as_nanos() as i64;
        let clocks = image.clocks.monotonic.saturating_sub(now.monotonic) <= self.ahead.0.saturating_add(near)
            && image.clocks.boottime.saturating_sub(now.boottime) <= self.ahead.1.saturating_add(near);
        let threads = self.threads.iter().eq(image.threads.iter().map(|thread| &thread.tid));
        if clocks && threads && self.epoch == image.epoch && self.files == image.files {
            return Some((self.body, self.ahead));
        }
        tracing::debug!(pid = %image.pid, clocks, threads, "a prepared process does not fit");
        self.end();
        None
    }
}

/// Makes the process, or takes the one prepared for it, and its memory map; gives the body and where its pages go.
///
/// # Errors
/// Everything that can go wrong, with nothing left.
pub fn begin(
    shared: &Shared,
    nest: &Nest,
    program: &OwnedFd,
    mut image: Box<ProcessImage>,
    prepared: Option<Prepared>,
) -> Result<(Built, ProcMem), ArrivalError> {
    let now = nest::now().map_err(os("reading the clocks"))?;
    let realtime = shared.ahead().realtime();
    let mut prepared = prepared.and_then(|prepared| prepared.fitting(&image, &now));
    let begun = tame(realtime).and_then(|()| begin_with(shared, nest, program, &mut image, &now, &mut prepared));
    if let Some((unused, _)) = prepared {
        end(&unused);
    }
    let (body, ahead, mut phases) = begun?;
    let mut built = Built {
        image,
        body,
        ahead,
        realtime,
        vdso: None,
    };
    match built.furnish() {
        Ok(memory) => {
            phases.mark("vdso, seals");
            phases.log(built.image.pid.0, "begin");
            Ok((built, memory))
        }
        Err(error) => {
            end(&built.body);
            Err(error)
        }
    }
}

/// A process without memory, and its clocks less this node's.
type Ready = (Body, (i64, i64));
type Begun = (Body, (i64, i64), Phases);

/// Refuses to take a body from a home whose wall clock is nowhere near this node's.
fn tame(realtime: i64) -> Result<(), ArrivalError> {
    if realtime.abs() <= WILD {
        return Ok(());
    }
    Err(ArrivalError::Clock {
        by: Duration::from_nanos(realtime.unsigned_abs()),
        which: if realtime > 0 { "behind" } else { "ahead of" },
    })
}

/// A blank process with no more memory than the job's bodies may have.
fn bounded(
    shared: &Shared,
    nest: &Nest,
    program: &OwnedFd,
    pid: Pid,
    ahead: (i64, i64),
    files: &[BorrowedFd<'_>],
) -> Result<Blank, ArrivalError> {
    let fresh = blank(nest, program, pid, ahead, files)?;
    if let Some(bytes) = shared.config.memory
        && let Err(error) = super::memory::bound(fresh.host, bytes)
    {
        birth::end(fresh.host);
        return Err(os("limiting memory")(error));
    }
    Ok(fresh)
}

fn begin_with(
    shared: &Shared,
    nest: &Nest,
    program: &OwnedFd,
    image: &mut ProcessImage,
    now: &Clocks,
    prepared: &mut Option<Ready>,
) -> Result<Begun, ArrivalError> {
    let mut phases = Phases::default();
    cpu::settle(image)?;
    phases.mark("registers");
    let files = lock(&shared.files);
    let mut open: Vec<BorrowedFd<'_>> = Vec::with_capacity(image.files.len());
    for file in &image.files {
        let (fd, _) = files.get(file).ok_or_else(|| ArrivalError::File(file.path.clone()))?;
        open.push(fd);
    }
    let mut draw = 1;
    loop {
        let (mut body, ahead) = match prepared.take() {
            Some(prepared) => prepared,
            None => {
                let ahead = shared.ahead().of_body(&image.clocks, now);
                tracing::debug!(pid = %image.pid, ?ahead, "home's clocks");
                let fresh = bounded(shared, nest, program, image.pid, ahead, &open)?;
                (Body::new(fresh.host, fresh.window), ahead)
            }
        };
        phases.mark("blank");
        match body.map(image, |file| FILES_AT + file as i32) {
            Ok(()) => {
                phases.mark("map");
                return Ok((body, ahead, phases));
            }
            Err(error) => {
                end(&body);
                match error {
                    BuildError::Collision(_) if draw < DRAWS => draw += 1,
                    error => return Err(error.into()),
                }
            }
        }
    }
}

impl Built {
    /// What the map alone does not bring: the vDSO that works here, no descriptors, a sealed window.
    fn furnish(&mut self) -> Result<ProcMem, ArrivalError> {
        let memory = self.body.memory()?;
        if let Some(carried) = &self.image.vdso {
            let mut text = carried.text.clone();
            let functions = self.node_functions(&memory)?;
            let presented = Presented {
                cpus: self.image.cpu.cpus,
                realtime_offset_ns: self.realtime,
            };
            let patched = vdso::patch(&mut text, &functions, presented)?;
            memory.write(carried.base, &text).map_err(os("writing home's vDSO"))?;
            self.vdso = Some((carried.base, patched));
        }
        birth::no_descriptors(self.body.pid).map_err(os("limiting descriptors"))?;
        // Older kernels know no mseal; there the filter alone guards the window.
        let seal = |start: u64, length: u64| Op::may(SYS_MSEAL, [start, length, 0, 0, 0, 0]);
        // A child that the body forks here has slots of its own.
        let alone = Op::must(libc::SYS_madvise, DONT_FORK);
        let seals = [alone, seal(WINDOW, TEXT_ROOM), seal(SHARED, SHARED_SIZE)];
        let limit = std::time::Duration::from_secs(5);
        let sealed = self.body.window.run(0, &seals, limit);
        sealed.map_err(|error| BuildError::Script {
            step: "sealing the window",
            error,
        })?;
        Ok(memory)
    }

    fn node_functions(&self, memory: &ProcMem) -> Result<Vec<(String, u64)>, ArrivalError> {
        let Some(mapping) = self.body.node.iter().find(|mapping| mapping.name == "[vdso]") else {
            return Ok(Vec::new());
        };
        let mut text = vec![0; (mapping.len() as usize).min(1 << 16)];
        memory
            .read(mapping.start, &mut text)
            .map_err(os("reading the node's vDSO"))?;
        Ok(vdso::VdsoImage::parse(&text)?.addresses(mapping.start))
    }

    /// Makes threads, state, filter and registers, and verifies the result. The body stands still afterwards.
    ///
    /// # Errors
    /// As [`begin`]; the caller ends the process.
    pub fn finish(&mut self, shared: &Shared, nest: &Nest) -> Result<Arc<BodyCalls>, ArrivalError> {
        let mut phases = Phases::default();
        self.threads()?;
        phases.mark("threads");
        self.body.dress(&self.image, &self.undress()?)?;
        phases.mark("state");
        let listener = self.filter(nest)?;
        phases.mark("filter");
        let looks = self.look(shared)?;
        self.body.set_registers(&self.image)?;
        phases.mark("registers");
        // The others have them since they were made; the leader made them.
        let options = ptrace::OPTIONS | libc::PTRACE_O_EXITKILL;
        ptrace::set_options(self.body.pid, options).map_err(os("trace options"))?;
        let mut numbers = Vec::with_capacity(self.body.tids.len());
        for look in looks {
            let looked = look.recv().map_err(|_| ArrivalError::Blind)?;
            numbers.extend(looked?);
        }
        verify::body(&self.body, &self.image, &numbers)?;
        // Its clocks go on from those of the image, which may have travelled faster than any word of home before.
        self.wait_for_clocks()?;
        phases.mark("look");
        phases.log(self.image.pid.0, "finish");
        let watched = Watched::of(&self.image.vmas, &self.body.memory()?).map_err(os("shared memory"))?;
        let threads = self.body.tids.iter().zip(&self.image.threads).map(|(host, thread)| {
            // Registers stand behind the call's instruction, its number in orig_rax.
            let call = (thread.regs[15] as i32, thread.regs[16]);
            // One that is native here is no call of home's any more.
            let regs = ptrace::Regs(thread.regs);
            let native = decide(table::row(call.0 as u32), &regs.args()) == Decision::Native;
            let open = (thread.in_flight && !native).then_some(call);
            NewThread {
                host: *host,
                tid: thread.tid,
                seq: thread.seq,
                open,
            }
        });
        let mut usage = Meter::new(&self.image, &self.body.tids);
        usage.limit_cpu(self.body.pid, None);
        let family = Family::new(listener);
        let calls = Arc::new(BodyCalls {
            pid: self.image.pid,
            host: self.body.pid,
            epoch: AtomicU64::new(self.image.epoch.0),
            family: Arc::clone(&family),
            watched: Mutex::new(watched),
            sending: Mutex::new(()),
            usage: Mutex::new(usage),
            calls: Calls::new(&threads.collect::<Vec<_>>()),
        });
        family.join(&calls);
        Ok(calls)
    }

    /// Makes the threads beyond the leader, once: as soon as there is memory for their stacks, also before there are pages.
    ///
    /// # Errors
    /// As [`begin`]; the caller ends the process.
    pub fn threads(&mut self) -> Result<(), ArrivalError> {
        if self.body.tids.len() < self.image.threads.len() {
            let threads: Vec<Tid> = self.image.threads.iter().map(|thread| thread.tid).collect();
            self.body.spawn_threads(&threads)?;
        }
        Ok(())
    }

    /// Has the threads looked at, by several threads of ours when there are many: /proc takes its time for each.
    fn look(&self, shared: &Shared) -> Result<Vec<mpsc::Receiver<Look>>, ArrivalError> {
        const SHARE: usize = 128;
        let pid = self.body.pid;
        let mut looks = Vec::new();
        for tids in self.body.tids.chunks(SHARE) {
            let (answer, look) = mpsc::sync_channel(1);
            let tids = tids.to_vec();
            let work = move || {
                let _ = answer.send(verify::threads(pid, &tids));
            };
            if self.body.tids.len() > SHARE {
                shared
                    .start(format!("look {pid}"), work)
                    .map_err(os("looking at threads"))?;
            } else {
                work();
            }
            looks.push(look);
        }
        Ok(looks)
    }

    fn wait_for_clocks(&self) -> Result<(), ArrivalError> {
        let now = nest::now().map_err(os("reading the clocks"))?;
        let behind = (self.image.clocks.monotonic - now.monotonic - self.ahead.0)
            .max(self.image.clocks.boottime - now.boottime - self.ahead.1);
        if let Ok(behind @ 1..) = u64::try_from(behind) {
            std::thread::sleep(Duration::from_nanos(behind).min(2 * AHEAD));
        }
        Ok(())
    }

    /// The calls by which each thread gives up its last capability.
    fn undress(&self) -> Result<[Op; 2], ArrivalError> {
        let mut bytes = [0u8; 32];
        bytes[..4].copy_from_slice(&CAPABILITY_VERSION.to_le_bytes());
        self.body
            .window
            .shared()
            .write(BUFFERS, &bytes)
            .map_err(os("the window"))?;
        let at = SHARED + BUFFERS;
        let (ambient, clear) = (libc::PR_CAP_AMBIENT as u64, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64);
        Ok([
            Op::must(libc::SYS_prctl, [ambient, clear, 0, 0, 0, 0]),
            Op::must(libc::SYS_capset, [at, at + 8, 0, 0, 0, 0]),
        ])
    }

    /// Puts the strict filter on every thread and takes its listener out of the body.
    fn filter(&self, nest: &Nest) -> Result<Listener, ArrivalError> {
        let watches = self.image.vmas.iter().any(is_watched);
        let program = filter::away_of(None, watches)?;
        let mut bytes = Vec::with_capacity(program.len() * 8);
        for i in &program {
            bytes.extend_from_slice(&i.code.to_le_bytes());
            bytes.extend_from_slice(&[i.jt, i.jf]);
            bytes.extend_from_slice(&i.k.to_le_bytes());
        }
        let flags = libc::SECCOMP_FILTER_FLAG_TSYNC
            | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH
            | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
            | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
        let inside = self.body.install(&bytes, flags)?;
        let fd = crate::process::descriptor::fetch(self.body.pid, inside as i32).map_err(os("taking the listener"))?;
        nest.init
            .hold(fd.as_fd())
            .map_err(os("giving process 1 the listener"))?;
        let listener = Listener::new(fd).map_err(os("the listener"))?;
        if !listener.set_sync_wake_up() {
            tracing::debug!("this kernel has no SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: calls take longer");
        }
        // The body's own descriptor of it goes, by the first call that the filter reports.
        let close = [Op::must(libc::SYS_close, [inside as u64, 0, 0, 0, 0, 0])];
        let failed = |error| BuildError::Script {
            step: "closing the listener",
            error,
        };
        self.body.window.post(0, &close).map_err(failed)?;
        let n = listener.recv(None).map_err(os("the first call"))?;
        let n = n.ok_or_else(|| os("the first call")(io::Error::from(io::ErrorKind::UnexpectedEof)))?;
        if i64::from(n.nr) != libc::SYS_close || n.args[0] != inside as u64 {
            return Err(os("the first call")(io::Error::from(io::ErrorKind::InvalidData)));
        }
        listener.send(n.id, Answer::Continue).map_err(os("the first call"))?;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        self.body.window.finish(0, &close, deadline).map_err(failed)?;
        Ok(listener)
    }

    /// Numbers at home by numbers of this node.
    pub fn numbers(&self) -> HashMap<i32, i32> {
        self.body
            .tids
            .iter()
            .zip(&self.image.threads)
            .map(|(host, thread)| (*host, thread.tid.0))
            .collect()
    }

    /// Kills the body and waits until nothing of it is left.
    pub fn end(self) {
        end(&self.body);
    }
}

fn end(body: &Body) {
    let _ = kill(body.pid, libc::SIGKILL);
    birth::end_threads(body.pid, &body.tids);
}
