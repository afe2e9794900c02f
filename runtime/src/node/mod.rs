//! The node daemon `mosixd` and what others need to talk to it.
//!
//! ```text
//!  supervisor ──unix──▶ control.sock ┐            ┌ control link (TLS, one per pair of nodes) ┐
//!  mosix CLI  ──unix──▶              mosixd n1 ◀──┴── one TCP port each ──────────────────────┴──▶ mosixd n2
//!      ▲                                 │ dials, says whom it wants, hands the socket over          │ accepts, hands it on
//!      └── TCP, by SCM_RIGHTS ───────────┘                                       agents/<job>.sock ──▶ agent
//! ```
//!
//! The daemon listens, dials and passes descriptors on; it never sees what a job sends. It holds no state that a restart
//! would lose: supervisors and agents dial its socket anew for each request, running agents are found by their sockets.

pub mod agent_socket;
pub mod agent_start;
mod agents;
mod cgroup;
pub mod client;
pub mod config;
mod control;
mod daemon;
mod io;
mod jobs;
mod jobs_file;
pub mod keys;
mod listener;
pub mod message;
pub mod paths;
mod peers;
mod secure;
mod tcp;
mod users;

pub use agent_socket::{AgentSocket, Incoming};
pub use agent_start::{AgentReady, AgentStart};
pub use client::{ClientError, Control};
pub use config::{Config, ConfigError, Transport};
pub use daemon::{NodeError, run};
pub use keys::{Authority, KeyError, create_authority, init};
