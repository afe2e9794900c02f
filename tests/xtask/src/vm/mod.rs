//! `cargo xtask vm`: small QEMU guests with other kernels and other CPUs, as nodes.

use std::process::ExitCode;

use anyhow::{Result, bail};

/// Options of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> Result<ExitCode> {
    bail!("vm: not built yet")
}
