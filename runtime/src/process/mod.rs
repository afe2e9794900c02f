//! A process as something that can be frozen, captured as a value, and built again: shared by supervisor and agent.
//!
//! ```text
//!  freeze ──▶ window (injected once) ──▶ capture ──▶ memory ──▶ … wire … ──▶ materialise (host)
//!                                                                        └─▶ restore     (home)
//!                                                          program (birth, exec) ─▶ materialise
//! ```
//! Every step that must run *inside* the process is a script of raw system calls for the stub in its [`window`].

pub mod asleep;
pub mod capture;
pub mod descriptor;
pub mod enter;
pub mod freeze;
pub mod inject;
pub mod landing;
pub mod layout;
pub mod maps;
pub mod materialise;
pub mod memory;
pub mod phases;
pub mod program;
pub mod rest;
pub mod restart;
pub mod restore;
pub mod stat;
pub mod status;
pub mod step;
pub mod timers;
pub mod waited;
pub mod window;
