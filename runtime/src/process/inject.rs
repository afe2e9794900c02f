//! Putting the window into a frozen process, once, at its first departure.
//!
//! Four system calls are made by one stopped thread, single-stepped over a `syscall` instruction of its own vDSO: memfd_create, two
//! mmaps, close. The memfd's number lives only while every thread is stopped: no descriptor of ours remains in a job process.

use super::maps::Mapping;
use super::step;
use super::window::Window;
use mosix_loader::script::abi::*;
use mosix_loader::script::{Stub, StubError, stub};
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace;
use std::io;
use std::time::Duration;

/// Why the window could not be put into a process.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// Something of the guest lies where the window belongs.
    #[error("process {0} has memory mapped where the window belongs ({WINDOW:#x})")]
    Taken(i32),
    /// No `syscall` instruction was found.
    #[error("process {0} has no vDSO with a syscall instruction")]
    NoGadget(i32),
    /// An injected call failed in the process.
    #[error("process {pid}: {what}: {error}{}", remedy(.error))]
    Call {
        /// The process.
        pid: i32,
        /// The call.
        what: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
    /// ptrace or /proc failed: the process is ending.
    #[error("process {pid}: {error}")]
    Gone {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The stub in this binary is damaged.
    #[error(transparent)]
    Stub(#[from] StubError),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => " (its descriptor table is full: raise `ulimit -n`)",
        Some(libc::ENOMEM) => " (its address space is limited: raise `ulimit -v`)",
        _ => "",
    }
}

/// Puts a window into the process through one of its threads, `tid`, which stands still and does so afterwards as before.
pub fn inject((pid, tid): (i32, i32), mappings: &[Mapping]) -> Result<Window, InjectError> {
    let gone = |error| InjectError::Gone { pid, error };
    if mappings
        .iter()
        .any(|mapping| mapping.start < WINDOW_END && mapping.end > WINDOW)
    {
        return Err(InjectError::Taken(pid));
    }
    let stub: Stub = stub()?;
    let memory = ProcMem::force(tid).map_err(gone)?;
    let gadget = Gadget::find(pid, tid, mappings, &memory)?;
    let saved = (ptrace::regs(tid).map_err(gone)?, ptrace::sigmask(tid).map_err(gone)?);
    ptrace::set_sigmask(tid, step::QUIET).map_err(gone)?;
    let made = gadget.make_window(pid, &memory, &stub);
    let restored = ptrace::set_regs(tid, &saved.0).and_then(|()| ptrace::set_sigmask(tid, saved.1));
    let window = made?;
    restored.map_err(gone)?;
    Ok(window)
}

/// A `syscall` instruction of the process's own.
pub struct Gadget {
    tid: i32,
    address: u64,
    /// Address of a zero byte: an empty name for memfd_create.
    empty: u64,
}

impl Gadget {
    /// Looks for one in the vDSO.
    ///
    /// # Errors
    /// There is none, or the process is gone.
    pub fn find(pid: i32, tid: i32, mappings: &[Mapping], memory: &ProcMem) -> Result<Self, InjectError> {
        let vdso = mappings
            .iter()
            .find(|mapping| mapping.name == "[vdso]")
            .ok_or(InjectError::NoGadget(pid))?;
        let mut text = vec![0; (vdso.len() as usize).min(1 << 16)];
        memory
            .read(vdso.start, &mut text)
            .map_err(|error| InjectError::Gone { pid, error })?;
        let at = text
            .windows(2)
            .position(|pair| pair == [0x0f, 0x05])
            .ok_or(InjectError::NoGadget(pid))?;
        let zero = text
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(InjectError::NoGadget(pid))?;
        Ok(Self {
            tid,
            address: vdso.start + at as u64,
            empty: vdso.start + zero as u64,
        })
    }

    /// Makes the stopped thread execute one last system call.
    ///
    /// # Errors
    /// It is gone.
    pub fn leave(&self, nr: i64, args: [u64; 6]) -> io::Result<()> {
        let mut regs = ptrace::regs(self.tid)?;
        regs.set_call(nr as u64, args);
        regs.set_orig_rax(u64::MAX);
        regs.set_rip(self.address);
        ptrace::set_regs(self.tid, &regs)?;
        ptrace::cont(self.tid, 0)
    }

    /// Makes one system call in the stopped thread. Its registers are the call's afterwards.
    ///
    /// # Errors
    /// What the kernel answered, or that the process is gone.
    pub fn call(&self, pid: i32, what: &'static str, nr: i64, args: [u64; 6]) -> Result<u64, InjectError> {
        let gone = |error| InjectError::Gone { pid, error };
        let result = step::call(self.tid, self.address, nr as u64, args, Duration::from_secs(2)).map_err(gone)?;
        if (-4095..0).contains(&result) {
            let error = io::Error::from_raw_os_error(-result as i32);
            return Err(InjectError::Call { pid, what, error });
        }
        Ok(result as u64)
    }

    fn make_window(&self, pid: i32, memory: &ProcMem, stub: &Stub) -> Result<Window, InjectError> {
        use libc::{MAP_ANONYMOUS, MAP_FIXED_NOREPLACE, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED};
        let gone = |error| InjectError::Gone { pid, error };
        let text = (MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE) as u64;
        let room = TEXT_ROOM;
        let rx = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        self.call(
            pid,
            "mmap of the stub",
            libc::SYS_mmap,
            [WINDOW, room, rx, text, u64::MAX, 0],
        )?;
        memory.write(WINDOW, stub.text).map_err(gone)?;
        let name = [
            self.empty,
            u64::from(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING),
            0,
            0,
            0,
            0,
        ];
        let fd = self.call(pid, "memfd_create", libc::SYS_memfd_create, name)?;
        let shared = self.share(pid, fd);
        let mapped = shared.and_then(|window| {
            let rw = (libc::PROT_READ | libc::PROT_WRITE) as u64;
            let flags = (MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_NORESERVE) as u64;
            self.call(
                pid,
                "mmap of the window",
                libc::SYS_mmap,
                [SHARED, SHARED_SIZE, rw, flags, fd, 0],
            )?;
            let dont_fork = libc::MADV_DONTFORK as u64;
            self.call(
                pid,
                "madvise",
                libc::SYS_madvise,
                [SHARED, SHARED_SIZE, dont_fork, 0, 0, 0],
            )?;
            self.call(pid, "madvise", libc::SYS_madvise, [WINDOW, room, dont_fork, 0, 0, 0])?;
            Ok(window)
        });
        self.call(pid, "close", libc::SYS_close, [fd, 0, 0, 0, 0, 0])?;
        if mapped.is_err() {
            let _ = self.call(pid, "munmap", libc::SYS_munmap, [WINDOW, room, 0, 0, 0, 0]);
        }
        mapped
    }

    /// Fetches the process's memfd, sizes and seals it from outside.
    fn share(&self, pid: i32, fd: u64) -> Result<Window, InjectError> {
        let gone = |error: io::Error| InjectError::Gone { pid, error };
        let memfd = super::descriptor::fetch(pid, fd as i32).map_err(gone)?;
        rustix::fs::ftruncate(&memfd, SHARED_SIZE).map_err(|error| gone(error.into()))?;
        rustix::fs::fcntl_add_seals(&memfd, rustix::fs::SealFlags::SHRINK).map_err(|error| gone(error.into()))?;
        Ok(Window::adopt(&memfd).map_err(gone)?.of(pid))
    }
}

/// Whether a process already has a window (its memory has not been replaced by exec since).
pub fn has_window(mappings: &[Mapping]) -> bool {
    mappings.iter().any(|mapping| mapping.start == SHARED && mapping.shared)
}
