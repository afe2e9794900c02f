//! The agent: supervises the bodies of one job on one host.
//!
//! Its place on the host is made by [`nest`], before anything else. Which threads it has is in [`shared`]; what it does with a
//! body and when is decided by the commit rules ([`crate::contract::commit`]), which [`tracer`] carries out.

pub mod birth;
pub mod build;
pub mod calls;
pub mod check;
pub mod files;
pub mod guest;
pub mod nest;
pub mod serve;
pub mod shared;
pub mod usage;
pub mod verify;
