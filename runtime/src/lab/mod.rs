//! A cluster on one machine, for trying, tests and benchmarks.
//!
//! ```text
//!   n1 10.77.0.1      n2 10.77.0.2      n3 10.77.0.3      each a network namespace with its own mosixd,
//!      veth0             veth0             veth0          state folder and key
//!        │ tbf             │ tbf             │ tbf
//!       p1 ─────────────  p2 ─────────────  p3   ── br0   the switch: one more network namespace
//! ```
//!
//! One process, the [`keeper`], creates all these namespaces and holds them by open descriptors, so nothing has a name in
//! /run/netns and nothing outlives it. Whoever wants in goes through `/proc/<keeper>/fd/<n>` ([`enter`]). Without
//! privilege the keeper first makes a user namespace in which it owns the network; the user's number stays the same
//! inside, so programs there are as unprivileged as outside.
//!
//! All that a lab knows lies in `<runtime dir>/lab/<name>` ([`folder`]). Each process of the lab records itself there (pid,
//! start time, boot) *before* it becomes what it is, so that [`down`] finds exactly these processes whatever crashed.
//! Pids are those of the machine: the nodes share its pid namespace.

pub mod down;
pub mod enter;
mod error;
pub mod folder;
pub mod keeper;
pub mod keys;
mod net;
pub mod nodes;
pub mod record;
pub mod spec;
pub mod status;
mod sweep;
pub mod up;

pub use error::LabError;
pub use folder::LabFolder;
pub use spec::{LabNode, LabSpec, Rate};
