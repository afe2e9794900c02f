//! From program file to ready address space: what execve does in the kernel, done in user space and described as values.
//!
//! Stages, each a module that knows nothing of the next: [`interp`] (`#!` scripts) → [`elf`] (checked program headers) → [`place`]
//! (where the parts go) → [`plan`] (mappings, entry, brk) → [`stack`] with [`auxv`] (the first stack as bytes) → [`map`] (all that as
//! work for the stub). Beside them stand [`script`], the system calls that the stub executes inside a process, and [`vdso`], the vDSO
//! that a body carries from node to node.
//!
//! Nothing here touches a process, and of files only heads and headers are read: everything works on bytes and returns values, so it
//! runs on hostile input and in property tests alike.
#![forbid(unsafe_code)]

pub mod auxv;
pub mod elf;
pub mod error;
pub mod interp;
pub mod map;
pub mod place;
pub mod plan;
pub mod script;
pub mod stack;
pub mod vdso;

pub use error::LoadError;
