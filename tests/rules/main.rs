//! Rules of the repository that no compiler checks, as tests. Numbers are ratchets: they may only become better.

#![forbid(unsafe_code)]
// A test speaks by panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod code;
mod docs;
mod layers;
mod tree;
