//! One job at home: the supervisor and what belongs to it.
//!
//! ```text
//!  shell
//!    └─ launcher          what the user started; foreground group; mirrors the program's stops and end
//!         ├─ guardian     sleeps; answers execve if the supervisor was killed
//!         └─ supervisor   own process group; subreaper; ends with the last descendant
//!              └─ program      in the launcher's process group
//!                   └─ …       all descendants stay below the supervisor
//! ```
//!
//! The launcher is not the program's parent, the supervisor is: so the supervisor stays an ancestor of every process of the job (which
//! Yama wants of a tracer) after the launcher has ended with the program, and terminal signals never reach it.
//!
//! Threads of the supervisor: the *tracer* ([`tracer`], its main thread, with the [`engine`]), *notify* ([`notify`]), *exec-log*
//! ([`execlog`]), *job-socket* and one per request ([`socket`]). They meet in [`shared`].

pub mod engine;
pub mod environment;
pub mod exec;
pub mod frames;
pub mod last_words;
pub mod launch;
pub mod mirror;
pub mod processes;
pub mod rundir;
pub mod shared;
pub mod socket;
pub mod tracer;

mod birth;
mod execlog;
mod fdpass;
mod guardian;
mod launcher_watch;
mod notify;
