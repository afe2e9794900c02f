//! `cargo xtask demo`.

use anyhow::{Result, bail};

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> Result<()> {
    bail!("demo: not built yet")
}
