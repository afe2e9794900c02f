//! Types that travel between nodes, between the processes of one node, and to disk.
//!
//! Nothing here does I/O. Every decoder is for bytes of a possibly hostile peer: sizes are bounded by [`limits`], nothing
//! panics, and nothing is allocated before its length was checked.

#![forbid(unsafe_code)]

pub mod call;
pub mod control;
pub mod frame;
pub mod ids;
pub mod image;
pub mod job;
pub mod limits;
pub mod link;
pub mod node;
pub mod spent;
