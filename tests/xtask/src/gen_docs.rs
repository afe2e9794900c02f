//! `cargo xtask gen-docs`.

use anyhow::{Result, bail};

/// Options of `cargo xtask gen-docs`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> Result<()> {
    bail!("gen-docs: not built yet")
}
