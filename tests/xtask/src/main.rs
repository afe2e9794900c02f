//! Developer commands of mosix: `cargo xtask VERB`.
//!
//! One file per verb, each with its clap `Args` and a `run`; this file only parses and maps the outcome to an exit
//! code. A verb that ran another program (`vm exec`) ends with that program's code, everything else with 0 or 1.
#![forbid(unsafe_code)]

mod bench;
mod count;
mod demo;
mod gen_docs;
mod stage;
mod table;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of mosix.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build mosix, bring up three nodes, move a running program around and compare its output with a plain run.
    Demo(demo::Args),
    /// Run the tests: unit tests of every crate, end-to-end tests, and what the machine allows beyond.
    Test(test::Args),
    /// Measure what mosix costs, as ratios against the same work without it.
    Bench(bench::Args),
    /// Small QEMU guests with other kernels and other CPUs, as nodes.
    Vm(vm::Args),
    /// Write the pages that are generated from code, or check that they are fresh.
    GenDocs(gen_docs::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Demo(args) => demo::run(args).map(|()| ExitCode::SUCCESS),
        Verb::Test(args) => test::run(args),
        Verb::Bench(args) => bench::run(args).map(|()| ExitCode::SUCCESS),
        Verb::Vm(args) => vm::run(args),
        Verb::GenDocs(args) => gen_docs::run(args).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
