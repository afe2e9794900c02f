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
use super::birth::{self, BirthError, blank};
use super::calls::{Calls, NewThread};
use super::nest::{self, Nest};
use super::shared::{BodyCalls, Shared, lock};
use super::verify::{self, Unsafe};
use crate::cpu;
use crate::process::materialise::{Body, BuildError};
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
use mosix_wire::image::ProcessImage;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Draws of the address space before a collision with the node's own vDSO is given up.
const DRAWS: usize = 8;
/// First descriptor of the image's files in a blank process.
const FILES_AT: i32 = 4;
/// Version of capset(2)'s structures with two words of each set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
const SYS_MSEAL: i64 = 462;

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
    /// The kernel refused something.
    #[error("{what}: {error}")]
    Os {
        /// What.
        what: &'static str,
        /// Its answer.
        error: io::Error,
    },
}

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

/// Makes the process and its memory map; gives the body and where its pages go.
///
/// # Errors
/// Everything that can go wrong, with nothing left.
pub fn begin(
    shared: &Shared,
    nest: &Nest,
    program: &OwnedFd,
    mut image: Box<ProcessImage>,
) -> Result<(Built, ProcMem), ArrivalError> {
    cpu::settle(&mut image)?;
    let files = lock(&shared.files);
    let mut open: Vec<BorrowedFd<'_>> = Vec::with_capacity(image.files.len());
    for file in &image.files {
        let (fd, _) = files.get(file).ok_or_else(|| ArrivalError::File(file.path.clone()))?;
        open.push(fd);
    }
    let now = nest::now().map_err(os("reading the clocks"))?;
    let clocks = shared.ahead();
    let ahead = clocks.of_body(&image.clocks, &now);
    let realtime = clocks.realtime();
    tracing::debug!(pid = %image.pid, ?ahead, realtime, "home's clocks");
    if realtime.abs() > WILD {
        return Err(ArrivalError::Clock {
            by: Duration::from_nanos(realtime.unsigned_abs()),
            which: if realtime > 0 { "behind" } else { "ahead of" },
        });
    }
    let mut draw = 1;
    let body = loop {
        let fresh = blank(nest, program, image.pid, ahead, &open)?;
        if let Some(bytes) = shared.config.memory
            && let Err(error) = super::memory::bound(fresh.host, bytes)
        {
            birth::end(fresh.host);
            return Err(os("limiting memory")(error));
        }
        let mut body = Body::new(fresh.host, fresh.window);
        match body.map(&image, |file| FILES_AT + file as i32) {
            Ok(()) => break body,
            Err(error) => {
                birth::end(fresh.host);
                match error {
                    BuildError::Collision(_) if draw < DRAWS => draw += 1,
                    error => return Err(error.into()),
                }
            }
        }
    };
    drop(files);
    let mut built = Built {
        image,
        body,
        ahead,
        realtime,
        vdso: None,
    };
    match built.furnish() {
        Ok(memory) => Ok((built, memory)),
        Err(error) => {
            birth::end(built.body.pid);
            Err(error)
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
        let seals = [seal(WINDOW, TEXT_ROOM), seal(SHARED, SHARED_SIZE)];
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
    pub fn finish(&mut self, nest: &Nest) -> Result<Arc<BodyCalls>, ArrivalError> {
        self.body.spawn_threads(&self.image)?;
        self.body.dress(&self.image, &self.undress()?)?;
        let listener = self.filter(nest)?;
        self.body.set_registers(&self.image)?;
        let options = ptrace::OPTIONS | libc::PTRACE_O_EXITKILL;
        for tid in &self.body.tids {
            ptrace::set_options(*tid, options).map_err(os("trace options"))?;
        }
        verify::body(&self.body, &self.image)?;
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
        Ok(Arc::new(BodyCalls {
            pid: self.image.pid,
            host: self.body.pid,
            epoch: AtomicU64::new(self.image.epoch.0),
            listener,
            sending: Mutex::new(()),
            calls: Calls::new(&threads.collect::<Vec<_>>()),
        }))
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
        let program = filter::away(None)?;
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
        let _ = kill(self.body.pid, libc::SIGKILL);
        birth::end_threads(self.body.pid, &self.body.tids);
    }
}
