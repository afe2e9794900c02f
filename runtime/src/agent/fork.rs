//! What makes a forked body one of its own: a window, books, a number at home. Its memory, filter, limits and clocks are its parent's by the
//! kernel's own fork.
//!
//! ```text
//!  creator's notification waits   the memfd of new slots is put on its descriptor 0
//!  fork                           the child inherits that; the parent's slots it does not (MADV_DONTFORK)
//!  child stands                   mmap of the slots, sealed; descriptor 0 closed, here and in the parent
//!  Forked ──▶ home ──▶ Run        it begins, under its first epoch
//! ```
//! A child of vfork(2) lives in its parent's memory, slots included, until it executes a program, ends, or leaves with a copy, and the thread
//! that made it stands so long. The parent can not be captured meanwhile, and signals for it wait.

use super::build::{Built, DONT_FORK, SYS_MSEAL};
use super::calls::{Calls, NewThread};
use super::creation::{Creation, begin};
use super::process::Process;
use super::shared::{BodyCalls, Shared, lock};
use super::signals::inject;
use super::verify;
use crate::contract::commit::Host;
use crate::deputy::creation::Kind;
use crate::process::materialise::Body;
use crate::process::window::Window;
use mosix_loader::script::abi::{SHARED, SHARED_SIZE};
use mosix_sys::ptrace::{self, Regs};
use mosix_wire::ids::{Epoch, Pid};
use mosix_wire::link::ToHome;
use mosix_wire::spent::{CpuTime, Spent};
use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

/// The descriptor on which a child inherits its slots. What may lie there is a copy of a file that no call of a body can reach.
const SLOTS_FD: i32 = 0;
/// Arguments of close(2) for it.
const CLOSE: [u64; 6] = [SLOTS_FD as u64, 0, 0, 0, 0, 0];

impl Creation<'_> {
    /// Makes the slots of a child and lets the creator hold them.
    pub(super) fn slots(&self) -> io::Result<Window> {
        let (window, memfd) = Window::create()?;
        let listener = self.calls.listener();
        listener.add_fd(self.id, memfd.as_fd(), Some(SLOTS_FD), true)?;
        Ok(window)
    }

    /// The creator holds them no more.
    pub(super) fn take_slots_back(&self) -> io::Result<()> {
        match own_call(self.calls, self.host, libc::SYS_close, CLOSE) {
            // It never held them.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Says home what became of the child.
    pub(super) fn tell(&self, made: bool) {
        let (pid, epoch, child) = (self.calls.pid, self.calls.epoch(), Pid(self.number.0));
        let message = if made {
            ToHome::Forked { pid, epoch, child }
        } else {
            ToHome::NotForked { pid, epoch, child }
        };
        self.shared.tell(&message, &[]);
    }

    /// Makes `new`, which stands before its first instruction, a process like its parent, with these `slots` or its parent's.
    pub(super) fn child(
        &self,
        parent: &Process,
        new: i32,
        slots: Option<io::Result<Window>>,
        saved: &Regs,
        mask: u64,
    ) -> io::Result<Process> {
        let built = parent.built.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let looked = verify::threads(new, &[new]).map_err(io::Error::other)?;
        if looked.first().map(|(_, inside)| *inside) != Some(self.number.0) {
            return Err(io::Error::other(format!("it has the number {looked:?}")));
        }
        let pid = Pid(self.number.0);
        let calls = Arc::new(BodyCalls {
            pid,
            host: new,
            epoch: AtomicU64::new(0),
            family: Arc::clone(&self.calls.family),
            watched: Mutex::default(),
            sending: Mutex::new(()),
            usage: Mutex::new(lock(&self.calls.usage).child(new)),
            calls: Calls::new(&[NewThread {
                host: new,
                tid: self.number,
                seq: 0,
                open: None,
            }]),
        });
        calls.family.join(&calls);
        let borrows = self.kind == Kind::Borrower;
        let furnished = match slots {
            Some(window) => window.and_then(|window| furnish(&calls).map(|()| window)),
            // Those of its parent, which nobody uses meanwhile.
            None => Ok(built.body.window.lend()),
        };
        let begun = furnished.and_then(|window| begin(new, saved, mask).map(|()| window));
        if begun.is_err() {
            calls.family.leave(pid);
        }
        let window = begun?;
        let mut image = built.image.clone();
        image.pid = pid;
        image.epoch = Epoch(0);
        (image.spent, image.home_cpu_ns) = (Spent::default(), 0);
        let place = built.body.tids.iter().position(|tid| *tid == self.host);
        image.threads.swap(0, place.unwrap_or(0));
        image.threads.truncate(1);
        for thread in &mut image.threads {
            thread.tid = self.number;
            thread.since = None;
            thread.cpu = CpuTime::default();
        }
        let mut body = Body::new(new, window);
        body.node.clone_from(&built.body.node);
        let mut child = Process::new(pid);
        child.state = Host::Born;
        child.borrows = borrows.then_some(parent.pid);
        child.tids = vec![new];
        child.built = Some(Built {
            image,
            body,
            realtime: built.realtime,
            ahead: built.ahead,
            vdso: built.vdso.clone(),
        });
        self.shared.enter(&calls);
        child.calls = Some(calls);
        Ok(child)
    }
}

impl Process {
    /// The child that had this process's memory is gone: the thread that made it goes on.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn memory_back(&mut self) -> io::Result<()> {
        match self.lent.take() {
            Some((_, creator)) => ptrace::cont(creator, 0),
            None => Ok(()),
        }
    }
}

impl Shared {
    /// The calls of this body are served from now on.
    pub fn enter(&self, calls: &Arc<BodyCalls>) {
        let mut bodies = self.bodies.write().unwrap_or_else(|poison| poison.into_inner());
        bodies.insert(calls.pid, Arc::clone(calls));
    }
}

/// Maps the slots that the child has inherited.
fn furnish(calls: &BodyCalls) -> io::Result<()> {
    let access = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = (libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE) as u64;
    let call = |nr, args| own_call(calls, calls.host, nr, args);
    call(libc::SYS_mmap, [SHARED, SHARED_SIZE, access, flags, SLOTS_FD as u64, 0])?;
    call(libc::SYS_madvise, DONT_FORK)?;
    // Older kernels know no mseal; there the filter alone guards the window.
    match call(SYS_MSEAL, [SHARED, SHARED_SIZE, 0, 0, 0, 0]) {
        Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => return Err(error),
        _ => {}
    }
    call(libc::SYS_close, CLOSE).map(drop)
}

/// Makes a stopped thread of the family execute a call of the agent's.
fn own_call(calls: &BodyCalls, host: i32, nr: i64, args: [u64; 6]) -> io::Result<i64> {
    calls.calls.set_injecting(host, true);
    let result = inject(host, nr, args);
    calls.calls.set_injecting(host, false);
    match result? {
        error @ -4095..=-1 => Err(io::Error::from_raw_os_error(-error as i32)),
        result => Ok(result),
    }
}
