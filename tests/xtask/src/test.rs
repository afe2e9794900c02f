//! `cargo xtask test`.

use anyhow::{Result, bail};

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> Result<()> {
    bail!("test: not built yet")
}
