//! `cargo xtask gen-docs`: writes the pages that are made from the code.

use crate::workspace::{cargo, root};
use anyhow::{Context, Result, ensure};

/// Options of `cargo xtask gen-docs`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Lets `mosix` print its lists, adds the tests of each call, and writes docs/syscalls.md and docs/reasons.md.
pub fn run(_args: Args) -> Result<()> {
    let syscalls = mosix_tests::coverage::page(&printed("syscalls")?);
    let reasons = printed("reasons")?;
    for (name, text) in [("syscalls", syscalls), ("reasons", reasons)] {
        let page = root()?.join(format!("docs/{name}.md"));
        std::fs::write(&page, text).with_context(|| page.display().to_string())?;
        println!("{}", page.display());
    }
    Ok(())
}

/// What `mosix ctl NAME --markdown` prints.
fn printed(name: &str) -> Result<String> {
    let mut command = cargo()?;
    command.args(["run", "--quiet", "--package", "mosix", "--", "ctl", name, "--markdown"]);
    let output = command.output().context("running mosix")?;
    ensure!(
        output.status.success(),
        "mosix ctl {name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).context("the page")
}
