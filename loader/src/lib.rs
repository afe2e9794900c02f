//! ELF to a ready address space, and the stub that builds it inside a process.

pub mod script;
