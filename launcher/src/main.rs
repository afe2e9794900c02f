//! The command `mosix`: parse, run, and turn an error into one line and an exit code.

#![forbid(unsafe_code)]

mod canary;
mod cli;
mod client;
mod exit;
mod stand_in;
mod target;

use exit::Exit;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::Cli::from_arguments() {
        Ok(cli) => cli.run(),
        Err(error) => {
            // Help and version are no errors. clap's own text goes to where it belongs; if that is closed, nobody reads it.
            let _ = error.print();
            if !error.use_stderr() {
                return Exit::Done.into();
            }
            // As env(1), nohup(1) and timeout(1): a code that a program's own 2 is not mistaken for.
            let is_run = std::env::args_os().nth(1).is_some_and(|verb| verb == "run");
            if is_run {
                Exit::RunFailed.into()
            } else {
                Exit::Usage.into()
            }
        }
    }
}
