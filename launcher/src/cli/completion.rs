//! `mosix completion` and `mosix man`: made from the command line's own definition.

use super::Cli;
use crate::exit::Exit;
use anyhow::Context as _;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::path::PathBuf;
use std::process::ExitCode;

/// Print a completion script for a shell.
#[derive(Args, Debug)]
pub struct CompletionArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the manual page, or write the pages of all verbs to a folder.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Where to write mosix.1, mosix-run.1, … to.
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// Prints the script.
pub fn completion(args: &CompletionArgs) -> ExitCode {
    clap_complete::generate(args.shell, &mut Cli::command(), "mosix", &mut std::io::stdout());
    Exit::Done.into()
}

/// Prints or writes the pages.
pub fn man(args: &ManArgs) -> anyhow::Result<ExitCode> {
    match &args.folder {
        None => clap_mangen::Man::new(Cli::command())
            .render(&mut std::io::stdout())
            .context("printing the page")?,
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("folder {}", folder.display()))?;
            clap_mangen::generate_to(Cli::command(), folder)
                .with_context(|| format!("pages in {}", folder.display()))?;
        }
    }
    Ok(Exit::Done.into())
}
