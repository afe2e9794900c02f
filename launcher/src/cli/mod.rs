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
use std::ffi::OsString;
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
    /// Parses this process's arguments.
    ///
    /// # Errors
    /// What to print instead: an error, help or the version.
    pub fn from_arguments() -> Result<Self, clap::Error> {
        let words: Vec<OsString> = std::env::args_os().collect();
        match words.get(1..).and_then(run::RunArgs::parse_alone) {
            Some(args) => Ok(Self { verb: Verb::Run(args) }),
            None => Self::try_parse_from(words),
        }
    }

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

    #[test]
    fn run_alone_accepts_what_the_whole_accepts() {
        let lines = [
            "run true",
            "run -- true",
            "run --job a --on n2 --cpu v3 --no-filter sh -c x --job b",
            "run --on=home --cpu=native -- -x --help",
            "run",
            "run --",
            "run --help",
            "run -h",
            "run --version",
            "run -V true",
            "run --unknown true",
            "run --cpu v9 true",
            "run --job , true",
            "run --on",
            "run help",
            "help run",
            "ps",
            "",
        ];
        for line in lines {
            let words: Vec<OsString> = line.split_ascii_whitespace().map(OsString::from).collect();
            let alone = run::RunArgs::parse_alone(&words).map(|args| format!("{:?}", Verb::Run(args)));
            let whole = Cli::try_parse_from([OsString::from("mosix")].into_iter().chain(words));
            let whole = whole
                .ok()
                .map(|cli| cli.verb)
                .filter(|verb| matches!(verb, Verb::Run(_)));
            assert_eq!(alone, whole.map(|verb| format!("{verb:?}")), "mosix {line}");
        }
    }
}
