//! The command `mosix`: parse, run, and turn an error into one line.

#![forbid(unsafe_code)]

mod cli;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Running Linux programs move between machines.
#[derive(Parser, Debug)]
#[command(name = "mosix", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Lab(cli::lab::LabArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Lab(args) => cli::lab::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("mosix: {error:#}");
        ExitCode::FAILURE
    })
}
