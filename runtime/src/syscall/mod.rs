//! System calls of moved processes: one table, and everything that derives from it.
//!
//! ```text
//!  host: notification ──▶ decide ──▶ native (CONTINUE) │ answer │ special │ come home
//!                            └─────▶ gather ──▶ Call + payload ════ link ════▶ home: permit ──▶ place ──▶ deputy
//!        guest memory ◀── Scatter::apply ◀══════ Reply + payload ════ link ═══════════ collect ◀── result ◀──┘
//! ```
//!
//! - [`table`]: a row for every x86-64 number.
//! - [`filter`]: the seccomp programs at home and away.
//! - [`decide`]: what the agent does with one trapped call.
//! - [`marshal`]: guest memory to [`mosix_wire::call::Call`] and back, on the host.
//! - [`relocate`]: a `Call` into the deputy's memory and its results out of it, at home.
//! - [`audit`] and [`policy`]: what home checks before a deputy sees a call. A host may lie in every byte.
//! - [`report`]: the table for people.
//! - [`rusage`]: sums of what home and hosts know of CPU time.

pub mod audit;
pub mod decide;
pub mod emulate;
pub mod filter;
pub mod marshal;
pub mod memory;
pub mod policy;
pub mod relocate;
pub mod report;
pub mod rusage;
pub mod table;

/// The address that stands for every bad guest pointer on the wire. Page zero is never mapped, so home's kernel itself
/// finds the fault, at the same point and in the same order of checks as it would have for the program's own pointer.
pub const BAD_POINTER: u64 = 16;

/// As [`BAD_POINTER`], for addresses that no user process can have: the kernel refuses these before it does anything.
pub const BAD_ADDRESS: u64 = 1 << 63;
