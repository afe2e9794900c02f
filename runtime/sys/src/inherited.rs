//! What this process inherited, recorded before Rust's own start-up changes it.
//!
//! A launcher must hand its program exactly what it was given. By the time `main` runs, the standard library has set SIGPIPE to
//! "ignore" and opened /dev/null on closed standard descriptors, so a constructor (`.init_array`) looks first.

use nix::errno::Errno;
use std::sync::OnceLock;

/// Dispositions, mask and standard descriptors as execve(2) left them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inherited {
    /// Blocked signals; bit n-1 is signal n.
    pub blocked: u64,
    /// Ignored signals; bit n-1 is signal n.
    pub ignored: u64,
    /// Which of descriptors 0, 1, 2 were closed.
    pub closed: [bool; 3],
}

static RECORD: OnceLock<Inherited> = OnceLock::new();

#[used]
// SAFETY: `.init_array` holds pointers to functions that the C runtime calls once, single-threaded, before main; `record` is one and
// touches only its own static and the kernel.
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = {
    extern "C" fn record() {
        let _ = RECORD.set(look());
    }
    record
};

/// `struct sigaction` of the kernel, which is not libc's.
#[repr(C)]
#[derive(Clone, Copy)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

const SET_BYTES: usize = 8;

fn look() -> Inherited {
    let mut seen = Inherited {
        blocked: 0,
        ignored: 0,
        closed: [false; 3],
    };
    // Raw calls, since libc hides signals 32 and 33.
    // SAFETY: reads the mask into eight bytes that are ours.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            0usize,
            &raw mut seen.blocked,
            SET_BYTES,
        );
    }
    for signal in 1..=64u32 {
        let mut action = KernelAction {
            handler: 0,
            flags: 0,
            restorer: 0,
            mask: 0,
        };
        // SAFETY: reads one kernel sigaction into a structure of its layout.
        let r = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, 0usize, &raw mut action, SET_BYTES) };
        if r == 0 && action.handler == libc::SIG_IGN {
            seen.ignored |= 1 << (signal - 1);
        }
    }
    for (fd, closed) in (0..).zip(&mut seen.closed) {
        // SAFETY: F_GETFD has no memory argument.
        *closed = unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1;
    }
    seen
}

/// What this process inherited. Looks now, with what the standard library left, only if the constructor was not linked in.
pub fn inherited() -> &'static Inherited {
    std::hint::black_box(&CONSTRUCTOR);
    RECORD.get_or_init(look)
}

impl Inherited {
    /// Puts dispositions, standard descriptors and, last, the mask back. For a child of fork that is about to execute a program.
    ///
    /// # Errors
    /// Those of rt_sigaction(2) and rt_sigprocmask(2), which do not fail for these arguments.
    pub fn restore(&self) -> Result<(), Errno> {
        for (fd, closed) in (0..).zip(self.closed) {
            if closed {
                // SAFETY: closes what the standard library opened in place of a closed descriptor; this process only executes next.
                unsafe { libc::close(fd) };
            }
        }
        for signal in 1..=64u32 {
            if signal == libc::SIGKILL as u32 || signal == libc::SIGSTOP as u32 {
                continue;
            }
            let ignored = self.ignored & (1 << (signal - 1)) != 0;
            let handler = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
            let action = KernelAction {
                handler,
                flags: 0,
                restorer: 0,
                mask: 0,
            };
            // SAFETY: neither "ignore" nor "default" runs code; the structure has the kernel's layout.
            let r = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, 0usize, SET_BYTES) };
            Errno::result(r)?;
        }
        // SAFETY: sets the mask from eight bytes that are ours.
        let r = unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const self.blocked,
                0usize,
                SET_BYTES,
            )
        };
        Errno::result(r).map(drop)
    }
}
