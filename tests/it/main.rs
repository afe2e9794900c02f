//! End-to-end tests: one program, so that the shared lab is brought up once.

#![forbid(unsafe_code)]
// A test speaks by panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod accounting;
mod behaviours;
mod cli;
mod exec;
mod faults;
mod forks;
mod guests;
mod hazards;
mod home;
mod lab;
mod phases;
mod proc;
mod programs;
mod reasons;
mod run;
mod terminal;
mod threads;
