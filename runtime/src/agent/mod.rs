//! The agent: supervises the bodies of one job on one host.
//!
//! Its place on the host is made by [`nest`], before anything else.

pub mod birth;
pub mod nest;
