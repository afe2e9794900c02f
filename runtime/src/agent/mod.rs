//! The agent: supervises the bodies of one job on one host.
//!
//! Its place on the host is made by [`nest`], before anything else. Which threads it has is in [`shared`]; what it does with a
//! body and when is decided by the commit rules ([`crate::contract::commit`]), which [`tracer`] carries out.

pub mod ahead;
pub mod birth;
pub mod build;
pub mod calls;
pub mod check;
pub mod creation;
pub mod depart;
pub mod exec;
pub mod family;
pub mod files;
pub mod fork;
pub mod guest;
pub mod home;
pub mod lanes;
pub mod layout;
pub mod limits;
pub mod mapping;
pub mod memory;
pub mod nest;
mod proc_text;
pub mod process;
pub mod run;
pub mod serve;
pub mod shared;
pub mod signals;
pub mod streams;
pub mod tally;
pub mod tracer;
pub mod usage;
pub mod verify;
mod write_back;

pub use run::main;
pub use shared::Config;
