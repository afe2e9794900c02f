//! The vDSO that a body carries.
//!
//! A program finds the vDSO once, at start, and keeps pointers to its functions for life. When its body moves, the text of its
//! home's vDSO goes along as ordinary memory at the old address, but the kernel data it reads (vvar) cannot: it belongs to one
//! kernel's build and boot. So each exported function is overwritten with a jump to the function of the same name in the vDSO of the
//! node it is on:
//!
//! ```text
//!   program ──► home's vDSO, old address          node's own vDSO, in the window
//!               __vdso_clock_gettime:    ───────► __vdso_clock_gettime  (reads the node's vvar)
//!               __vdso_getrandom:        ──► own code in the dead body: system call
//! ```
//!
//! - [`image`] reads a vDSO image: exported functions, versions, executable ranges, an injection gadget.
//! - [`layout`] decides where in the dead bodies our code goes; a function of the image alone, the same on every node.
//! - [`code`] is that code: a few instructions per function.
//! - [`patch`] puts the three together.
//! - [`portable`] is the vDSO of a program that is born on a host and has no home text to carry.
//!
//! # Where a thread may stop
//! A thread must not be frozen with its instruction pointer (or the return address of a call into a vDSO) inside patched text: the
//! half-executed jump holds another node's address. Step it out first. The exception is [`patch::Patched::stable`]: code whose bytes
//! and place are the same on every node. CPU clocks are home's to tell, so their call may wait: it is made in the window, not here.

pub mod code;
pub mod image;
pub mod layout;
pub mod patch;
pub mod portable;

pub use image::{Export, VdsoImage, syscall_instruction};
pub use patch::{Patched, Presented, patch};
pub use portable::portable;

/// Why a vDSO image cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VdsoError {
    /// Longer than any vDSO that this program is prepared to read.
    #[error("vDSO image of {size} bytes is longer than {limit}")]
    TooLong {
        /// Bytes given.
        size: usize,
        /// Bytes accepted.
        limit: usize,
    },
    /// Not an ELF image, or one damaged beyond reading.
    #[error("vDSO image is not readable as ELF: {0}")]
    Malformed(String),
    /// Not for this machine.
    #[error("vDSO image is not a 64-bit x86-64 shared object")]
    WrongMachine,
    /// No executable segment, or no exported function.
    #[error("vDSO image exports no function")]
    NoFunctions,
    /// An exported function lies outside the executable bytes.
    #[error("vDSO function {name} at {offset:#x} lies outside the executable text")]
    OutsideText {
        /// Its name.
        name: String,
        /// Its place in the image.
        offset: u64,
    },
    /// A function is so short that not even a jump fits.
    #[error("vDSO function {name} has {size} bytes: no room for a jump")]
    TooShort {
        /// Its name.
        name: String,
        /// Its length in bytes.
        size: usize,
    },
    /// The bodies together have no room for the code of this function.
    #[error("vDSO has no room for {size} bytes of code for {name}")]
    NoRoom {
        /// The function that was being placed.
        name: String,
        /// Bytes needed.
        size: usize,
    },
}
