//! Why a program cannot be loaded, and what execve would have said.

use std::io;

/// Most `#!` lines that lead from one to the next.
pub const SCRIPT_DEPTH: usize = 5;

/// Why a program cannot be loaded. The kernel finds some of these before its point of no return, where execve returns an errno, and the
/// rest behind it, where the old program is gone and the process ends by SIGSEGV: see [`LoadError::is_fatal`].
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Neither an ELF file nor a script.
    #[error("not a program: neither an ELF file nor a `#!` script")]
    NotExecutable,
    /// An ELF file for something else.
    #[error("ELF file is not for x86-64 (class {class}, machine {machine})")]
    WrongMachine {
        /// EI_CLASS: 1 for 32 bits, 2 for 64.
        class: u8,
        /// e_machine.
        machine: u16,
    },
    /// An object file or a core.
    #[error("ELF file of type {kind} is not a program")]
    WrongType {
        /// e_type.
        kind: u16,
    },
    /// The program headers are missing, too many, of the wrong size or cut off.
    #[error("ELF program headers are unusable: {0}")]
    Headers(&'static str),
    /// PT_INTERP holds no path.
    #[error("ELF interpreter path is unusable: {0}")]
    InterpreterPath(&'static str),
    /// The file ends before the interpreter's path.
    #[error("ELF file ends before its interpreter path")]
    Truncated,
    /// The interpreter that PT_INTERP names cannot interpret.
    #[error("ELF interpreter is unusable")]
    Interpreter(#[source] Box<LoadError>),
    /// A `#!` line without a usable interpreter.
    #[error("`#!` line names no interpreter: {0}")]
    Script(&'static str),
    /// An interpreter with the empty path, which is the current folder to the kernel.
    #[error("the program names an interpreter with an empty path")]
    EmptyPath,
    /// Scripts interpreted by scripts, too many of them.
    #[error("more than {SCRIPT_DEPTH} scripts interpret each other")]
    TooManyScripts,
    /// One argument or environment string is too long.
    #[error("{what} {index} has {length} bytes, more than {limit}")]
    StringTooLong {
        /// `argument` or `environment string`.
        what: &'static str,
        /// Its index.
        index: usize,
        /// Its length with the final 0.
        length: usize,
        /// The longest allowed.
        limit: usize,
    },
    /// Arguments and environment together are too long.
    #[error("arguments and environment are longer than {limit} bytes")]
    ArgumentsTooLong {
        /// What the stack limit allows.
        limit: u64,
    },
    /// An argument holds a 0 byte.
    #[error("{what} {index} holds a 0 byte")]
    InnerNul {
        /// `argument` or `environment string`.
        what: &'static str,
        /// Its index.
        index: usize,
    },
    /// Nothing to load.
    #[error("ELF file has no PT_LOAD segment")]
    NoSegments,
    /// A segment that no address space can hold.
    #[error("ELF segment {index} is unusable: {what}")]
    Segment {
        /// Its number among the program headers.
        index: usize,
        /// What is wrong.
        what: &'static str,
        /// What mmap or execve says to it.
        errno: i32,
    },
    /// The program wants memory that mosix keeps for itself.
    #[error("ELF segment at {start:#x}..{end:#x} lies in the window of mosix")]
    Window {
        /// First byte wanted.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Two parts of the address space want the same place.
    #[error("{what} at {start:#x}..{end:#x} overlaps another part of the program")]
    Collision {
        /// The part.
        what: &'static str,
        /// First byte wanted.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// The entry point is no address of a program.
    #[error("ELF entry point {0:#x} is outside the address space")]
    Entry(u64),
    /// Reading the file failed.
    #[error("program file cannot be read")]
    Read(#[from] io::Error),
}

/// errno values of x86-64 Linux, by value: this crate has no other use for libc.
mod errno {
    pub const EPERM: i32 = 1;
    pub const EIO: i32 = 5;
    pub const E2BIG: i32 = 7;
    pub const ENOEXEC: i32 = 8;
    pub const ENOMEM: i32 = 12;
    pub const EACCES: i32 = 13;
    pub const EFAULT: i32 = 14;
    pub const EEXIST: i32 = 17;
    pub const EINVAL: i32 = 22;
    pub const ELOOP: i32 = 40;
    pub const ELIBBAD: i32 = 80;
}
pub(crate) use errno::{EFAULT, EINVAL, ENOMEM, EPERM};

impl LoadError {
    /// What execve returns, or, for a fatal error, what the kernel finds before it kills the process.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotExecutable
            | Self::WrongMachine { .. }
            | Self::WrongType { .. }
            | Self::Headers(_)
            | Self::InterpreterPath(_)
            | Self::Script(_) => errno::ENOEXEC,
            Self::Truncated => errno::EIO,
            Self::Interpreter(cause) if cause.is_fatal() => cause.errno(),
            Self::Interpreter(cause) => match **cause {
                // The kernel reads the interpreter's header without asking why it is short.
                Self::Truncated => errno::EIO,
                Self::Read(_) => cause.errno(),
                _ => errno::ELIBBAD,
            },
            Self::EmptyPath => errno::EACCES,
            Self::TooManyScripts => errno::ELOOP,
            Self::StringTooLong { .. } | Self::ArgumentsTooLong { .. } => errno::E2BIG,
            Self::InnerNul { .. } | Self::NoSegments | Self::Entry(_) => errno::EINVAL,
            Self::Segment { errno, .. } => *errno,
            Self::Window { .. } => errno::ENOMEM,
            Self::Collision { .. } => errno::EEXIST,
            Self::Read(error) => error.raw_os_error().unwrap_or(errno::EIO),
        }
    }

    /// True when the kernel finds this only after its point of no return: the process ends by SIGSEGV, nobody gets an errno.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::NoSegments | Self::Segment { .. } | Self::Window { .. } | Self::Collision { .. } | Self::Entry(_) => {
                true
            }
            Self::Interpreter(cause) => cause.is_fatal() || matches!(**cause, Self::WrongType { .. }),
            _ => false,
        }
    }
}
