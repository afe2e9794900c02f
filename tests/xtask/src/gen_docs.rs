//! `cargo xtask gen-docs`: writes the pages that are made from the code.

use crate::workspace::{cargo, root};
use anyhow::{Context, Result, ensure};

/// Options of `cargo xtask gen-docs`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Lets `mosix` print its table, adds the tests of each call, and writes docs/syscalls.md.
pub fn run(_args: Args) -> Result<()> {
    let mut command = cargo()?;
    command.args([
        "run",
        "--quiet",
        "--package",
        "mosix",
        "--",
        "ctl",
        "syscalls",
        "--markdown",
    ]);
    let output = command.output().context("running mosix")?;
    ensure!(
        output.status.success(),
        "mosix ctl syscalls: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let page = root()?.join("docs/syscalls.md");
    let text = mosix_tests::coverage::page(&String::from_utf8(output.stdout).context("the page")?);
    std::fs::write(&page, text).with_context(|| page.display().to_string())?;
    println!("{}", page.display());
    Ok(())
}
