//! Supervisor, deputies, agents, migration, links and the node daemon of mosix.

#![forbid(unsafe_code)]

pub mod agent;
pub mod contract;
pub mod cpu;
pub mod deputy;
pub mod fault;
pub mod lab;
pub mod link;
pub mod migrate;
pub mod node;
pub mod process;
pub mod reason;
pub mod supervisor;
pub mod syscall;
pub mod transfer;
