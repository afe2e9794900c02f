//! Why a process cannot move now, or at all: the fixed list.
//!
//! Each reason has a stable code, says whether it passes by itself, and what would help. `mosix ps`, `mosix migrate` and the generated page
//! docs/reasons.md show this list and nothing else; a new obstacle is a new row here.
//!
//! - [`probe`]: what /proc shows, at the moment of asking. The program is not touched.
//! - [`sharing`]: which processes share memory.
//!
//! What shows only in the process itself (an LDT, protection keys, shadow stacks, syscall user dispatch) is found when it is frozen for a
//! move, which is then undone; [`Placement::stuck`](crate::supervisor::shared::Placement) remembers it for `mosix ps`.

pub mod probe;
mod report;
pub mod sharing;

pub use probe::why_not;
pub use report::markdown;

use mosix_wire::job::Why;

/// Whether a reason passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lasts {
    /// It is a moment's: the same process may move later.
    Now,
    /// As long as the process is what it is.
    Ever,
}

macro_rules! reasons {
    ($($name:ident $code:literal $lasts:ident $meaning:literal $remedy:literal)*) => {
        /// A reason why a process cannot move.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Reason {
            $(#[doc = $meaning] $name,)*
        }

        impl Reason {
            /// All of them, in the order of the page.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The stable name.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            /// Whether it passes.
            pub const fn lasts(self) -> Lasts {
                match self { $(Self::$name => Lasts::$lasts),* }
            }

            /// What it means: a clause about "it", the process.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning),* }
            }

            /// What would help; empty when nothing does.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy),* }
            }
        }
    };
}

reasons! {
    Zombie "zombie" Ever
        "it has ended"
        ""
    LeaderExited "leader-exited" Ever
        "its first thread has ended while others run"
        "let the program end its first thread last"
    Stopped "stopped" Now
        "it is stopped by a signal (^Z or SIGSTOP)"
        "continue it first: fg, or kill -CONT"
    Traced "traced" Now
        "another process traces it"
        "end the debugger or strace first"
    Vfork "vfork" Now
        "it waits for its vfork child to execute a program"
        "try again when the child has executed it"
    SharesMemory "shares-memory" Now
        "it uses all memory of another process: a child of vfork, or clone with CLONE_VM"
        "a child of vfork can move when it has executed its program"
    Uninterruptible "uninterruptible" Now
        "a thread of it waits in the kernel and cannot be interrupted (state D)"
        "look at the disk or network file system that it waits for, and try again"
    SharedMemory "shared-memory" Now
        "it shares memory that can be written with other processes"
        "none yet: such processes stay together at home, and may move when they have unmapped it"
    MappedTwice "mapped-twice" Now
        "it maps the same shared memory at two places"
        "none yet: it may move when it has unmapped one of them"
    Device "device" Now
        "it maps a device"
        "it can move when it has closed the device"
    KernelQueue "kernel-queue" Now
        "it shares a queue with the kernel (io_uring or Linux AIO)"
        "have the program use ordinary reads and writes; many have a setting for that"
    FaultHandler "userfaultfd" Ever
        "it handles its own page faults (userfaultfd)"
        ""
    SecretMemory "secret-memory" Now
        "it holds secret memory (memfd_secret), which nobody else can read"
        ""
    NotDumpable "not-dumpable" Ever
        "it is protected from being looked at (not dumpable, or its program is unreadable)"
        "start the job as root if the program is to be moved all the same"
    SetUid "set-uid" Ever
        "it runs with another user's rights"
        "start the job as that user"
    Yama "yama" Now
        "the security module Yama forbids tracing"
        "sysctl kernel.yama.ptrace_scope=1"
    OwnFilter "own-seccomp-filter" Ever
        "it installed a seccomp filter of its own"
        "many programs have an option to leave their sandbox out"
    SyscallDispatch "syscall-dispatch" Ever
        "it handles its own system calls (syscall user dispatch)"
        ""
    ThirtyTwoBit "32-bit" Ever
        "it is a 32-bit program"
        "use a 64-bit build of the program"
    LocalDescriptors "ldt" Ever
        "it has a local descriptor table (modify_ldt)"
        ""
    ProtectionKeys "protection-keys" Now
        "it protects memory by keys (pkey_mprotect)"
        ""
    ShadowStack "shadow-stack" Ever
        "it runs with shadow stacks"
        "start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"
    Threads "threads" Now
        "it has more threads than can move"
        "have the program use fewer threads"
    Mappings "mappings" Now
        "it has more mappings than can move"
        ""
    Window "window" Now
        "it has mapped memory where the window of mosix belongs"
        ""
}

impl Reason {
    /// The reason with what was found: a clause that says more than [`Reason::meaning`], such as who traces.
    pub fn because(self, text: impl Into<String>) -> Why {
        Why {
            code: self.code().to_owned(),
            text: mosix_wire::control::reason(text.into()),
            remedy: self.remedy().to_owned(),
        }
    }

    /// The reason as the list words it.
    pub fn why(self) -> Why {
        self.because(self.meaning())
    }

    /// The reason with this code.
    pub fn of_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.code() == code)
    }
}

/// The line that refuses a move.
pub fn refusal(pid: i32, why: &Why) -> String {
    let remedy = if why.remedy.is_empty() {
        String::new()
    } else {
        format!(" ({})", why.remedy)
    };
    format!("process {pid} cannot move: {}{remedy}", why.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_stable_names_of_one_reason_each() {
        let codes: HashSet<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(reason.code().chars().all(plain), "{reason:?}");
            assert_eq!(Reason::of_code(reason.code()), Some(*reason));
            assert!(!reason.meaning().ends_with('.') && !reason.remedy().ends_with('.'));
        }
    }
}
