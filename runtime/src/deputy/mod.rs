//! A deputy: the kernel half of a process whose body is away, seen from its supervisor.
//!
//! ```text
//! link reader ──▶ Deputy::call ──▶ slot's script ──▶ stub thread executes ──▶ completion ring ──▶ completion thread ──▶ Reply
//! ```
//! No other thread lies on that path. The tracer thread comes in only for signals, cancels and moves. A call that is over when the link reader
//! comes back from waking its thread, with more calls at hand, is answered by the link reader.
//!
//! - [`calls`]: one record per thread: at most once, and what is open.
//! - [`rest`]: interrupted calls go on with what is left of their time-outs.
//! - [`creation`]: new threads.
//! - [`exec`]: programs that a body executes.
//! - [`arena`]: room for large buffers.
//! - [`accounts`]: what processes have used on hosts.
//! - [`procfile`], [`snapshot`]: /proc of processes that are away.

pub mod accounts;
pub mod arena;
pub mod calls;
pub mod creation;
pub mod exec;
pub mod procfile;
mod rest;
mod snapshot;

pub use calls::{Deputy, Gate, Job};
pub use rest::{RESUMED, Resume};
