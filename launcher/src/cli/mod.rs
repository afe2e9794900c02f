//! The command line: one file per verb. A new verb is a file, a variant of [`Verb`] and a line in [`Cli::run`].

pub mod lab;
mod run;

use crate::exit::Exit;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Running Linux programs move between machines.
///
/// A program started with `mosix run` can be moved, while it runs, to another node and back, and does not notice: `mosix ps`
/// shows where the processes are, `mosix migrate` moves them.
#[derive(Parser, Debug)]
#[command(name = "mosix", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Run(run::RunArgs),
    Lab(lab::LabArgs),
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> ExitCode {
        match self.verb {
            Verb::Run(args) => run::run(args),
            Verb::Lab(args) => ended(lab::run(args)),
        }
    }
}

/// Prints an error as one line.
fn ended(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("mosix: {error:#}");
        Exit::Failed.into()
    })
}
