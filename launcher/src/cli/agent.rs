//! `mosix agent`: supervises the bodies of one job on this node. Started by the node's daemon, never by hand.

use clap::Args;
use std::process::ExitCode;

/// Hosts the processes of one job; started by the node's daemon.
#[derive(Args, Debug)]
pub struct AgentArgs {
    /// The job; shown by ps(1), everything else comes on standard input.
    #[arg(long)]
    job: mosix_wire::ids::JobId,
}

/// Runs the agent in this process.
pub fn run(args: &AgentArgs) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MOSIX_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    tracing::debug!(job = %args.job, "agent starts");
    mosix_runtime::agent::main()
}
