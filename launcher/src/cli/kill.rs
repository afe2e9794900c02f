//! `mosix kill`: signal a process of a job, or all of them.

use crate::exit::Exit;
use crate::target::{Failure, by_name, by_pid, pid};
use clap::Args;
use mosix_wire::job::{Answer, Request};
use nix::sys::signal::Signal;
use std::process::ExitCode;

/// Send a signal to a process of a job, or to all of a job.
///
/// Reaches all processes of a job, also those in other process groups and sessions, and daemons. For one process kill(1)
/// does the same.
#[derive(Args, Debug)]
pub struct KillArgs {
    /// All processes of this job (name or id).
    #[arg(long, value_name = "NAME", conflicts_with = "pid", required_unless_present = "pid")]
    job: Option<String>,

    /// The signal: a name (TERM, SIGKILL) or a number.
    #[arg(long, short, value_name = "SIGNAL", default_value = "TERM", value_parser = signal)]
    signal: i32,

    /// The process.
    #[arg(value_name = "PID", value_parser = pid)]
    pid: Option<i32>,
}

/// Reads a name or a number.
fn signal(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) {
            Ok(number)
        } else {
            Err(format!("{number} is no signal: 0 to 64"))
        };
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    name.parse::<Signal>()
        .map(|s| s as i32)
        .map_err(|_| format!("'{text}' is no signal"))
}

/// Sends it.
pub fn run(args: &KillArgs) -> ExitCode {
    kill(args).map_or_else(
        |failure| {
            eprintln!("mosix: {}", failure.text);
            failure.exit.into()
        },
        |()| Exit::Done.into(),
    )
}

fn kill(args: &KillArgs) -> Result<(), Failure> {
    let (found, target) = match (&args.job, args.pid) {
        (Some(job), _) => by_name(job)?,
        (None, Some(pid)) => by_pid(pid)?,
        (None, None) => return Err(Failure::new(Exit::Usage, "say which process, or --job NAME")),
    };
    let mut refused = None;
    found.request(
        &Request::Kill {
            target,
            signal: args.signal,
        },
        |answer| {
            if let Answer::Refused(refusal) = answer {
                refused = Some(refusal);
            }
            true
        },
    )?;
    refused.map_or(Ok(()), |r| Err(r.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal("TERM"), Ok(15));
        assert_eq!(signal("sigkill"), Ok(9));
        assert_eq!(signal("34"), Ok(34));
        assert!(signal("65").is_err() && signal("NOPE").is_err() && signal("").is_err());
    }
}
