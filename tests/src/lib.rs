//! Harness of the end-to-end tests.
//!
//! A test brings up a [`Lab`] (or shares one), runs a program in it plainly, under `mosix run` at home, or with moves all
//! the time ([`run`]), and compares. Guests are small C programs with one protocol ([`guest`]). What a machine lacks is
//! skipped loudly ([`require!`]).

#![forbid(unsafe_code)]
// The harness speaks by panics: a test that cannot set up has failed, and says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod binary;
pub mod cluster;
pub mod coverage;
pub mod executable;
pub mod guest;
pub mod inputs;
pub mod packages;
pub mod require;
pub mod run;
pub mod yardstick;

pub use cluster::{Lab, Node};
pub use executable::executable;
pub use guest::Guest;
pub use run::{How, Outcome, Program};
