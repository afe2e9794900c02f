//! The command line: one file per verb. A new verb is a file, a variant of [`Verb`] and a line in [`Cli::run`].

mod agent;
mod completion;
mod ctl;
mod kill;
pub mod lab;
mod migrate;
mod node;
mod ps;
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
    Ps(ps::PsArgs),
    Migrate(migrate::MigrateArgs),
    Kill(kill::KillArgs),
    Ctl(ctl::CtlArgs),
    Lab(lab::LabArgs),
    Node(node::NodeArgs),
    #[command(hide = true)]
    Agent(agent::AgentArgs),
    Completion(completion::CompletionArgs),
    Man(completion::ManArgs),
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> ExitCode {
        if self.verb.is_filter() {
            // `mosix ps | head` ends quietly, as other commands do. Everything that starts or serves others must not.
            let _ = mosix_sys::process::default_action(nix::sys::signal::Signal::SIGPIPE);
        }
        match self.verb {
            Verb::Run(args) => run::run(args),
            Verb::Ps(args) => ended(ps::run(args)),
            Verb::Migrate(args) => migrate::run(args),
            Verb::Kill(args) => kill::run(&args),
            Verb::Ctl(args) => ended(ctl::run(&args)),
            Verb::Lab(args) => ended(lab::run(args)),
            Verb::Node(args) => ended(node::run(args)),
            Verb::Agent(args) => agent::run(&args),
            Verb::Completion(args) => completion::completion(&args),
            Verb::Man(args) => ended(completion::man(&args)),
        }
    }
}

impl Verb {
    /// Only prints.
    fn is_filter(&self) -> bool {
        matches!(self, Self::Ps(_) | Self::Ctl(_) | Self::Completion(_) | Self::Man(_))
    }
}

/// Prints an error as one line.
fn ended(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("mosix: {error:#}");
        Exit::Failed.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
