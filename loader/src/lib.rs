//! From program file to ready address space: what execve does in the kernel, done in user space and described as values.
//!
//! Stages, each a module that knows nothing of the next: `elf` (checked program headers) → `interp` (`#!`, `PT_INTERP`) → `plan`
//! (mappings, entry, brk) → `stack` + `auxv` (the initial stack as bytes) → `map` (a plan as raw system calls for the stub).
//! Beside them stand [`script`], the system calls that the stub executes inside a process, and [`vdso`], the vDSO that a body
//! carries from node to node.
//!
//! Nothing here does I/O or touches a process: everything works on bytes and returns values, so it runs on hostile input and in
//! property tests alike.
#![forbid(unsafe_code)]

pub mod script;
pub mod vdso;
