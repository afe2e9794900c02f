//! `cargo xtask bench`.

use anyhow::{Result, bail};

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> Result<()> {
    bail!("bench: not built yet")
}
