//! `mosix run`: start a program as a job.

use crate::exit::Exit;
use crate::stand_in::stand_in;
use anyhow::Context as _;
use clap::{Args, Parser, ValueEnum};
use mosix_runtime::migrate::HomeEngine;
use mosix_runtime::supervisor::environment::CpuLevel;
use mosix_runtime::supervisor::launch::{Spec, launch};
use mosix_wire::job::Place;
use std::ffi::OsString;
use std::process::ExitCode;

/// Start a program so that it can move between nodes while it runs.
///
/// Terminal, pipes, signals and job control are as without mosix, and the exit code is the program's. mosix's own failures are
/// 125; 126 means that the program cannot be executed, 127 that there is none. No daemon and no privilege is needed.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Move the program to this node as soon as it runs; `home` keeps it here.
    #[arg(long, value_name = "NODE|home")]
    on: Option<Place>,

    /// What glibc may use of the CPU, so that the program can also run on nodes that have no more.
    #[arg(long, value_enum, default_value = "native")]
    cpu: Cpu,

    /// Name the job, for `mosix ps` and `mosix migrate --job`.
    #[arg(long, value_name = "NAME", value_parser = job_name)]
    job: Option<String>,

    /// Do not look at the programs that the job starts: set-uid programs keep their privilege, and programs are not placed
    /// when they start.
    #[arg(long)]
    no_filter: bool,

    /// The program (a path, or a name to look up in PATH) and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_names = ["PROG", "ARGS"])]
    words: Vec<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Cpu {
    /// SSE4.2.
    V2,
    /// AVX2.
    V3,
    /// AVX-512.
    V4,
    /// Whatever this node has.
    Native,
}

/// Accepts what a table can show and a shell does not mangle.
fn job_name(text: &str) -> Result<String, String> {
    let max = mosix_wire::limits::JOB_NAME;
    let fine = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/' | '@' | '+');
    if text.is_empty() || text.len() > max || !text.chars().all(fine) {
        return Err(format!("a name has 1 to {max} bytes: letters, digits and -_.:/@+"));
    }
    Ok(text.to_owned())
}

/// `mosix run` by itself. All verbs together take a hundred times as long to describe as these few options, and every
/// start of a program would pay for it.
#[derive(Parser, Debug)]
#[command(disable_help_flag = true)]
struct Alone {
    #[command(flatten)]
    args: RunArgs,
}

impl RunArgs {
    /// Parses what comes after `mosix`, when it is `run` with good arguments. Everything else, help too, is for the whole parser, which
    /// accepts the same and knows the words for errors.
    pub fn parse_alone(words: &[OsString]) -> Option<Self> {
        words.first().filter(|verb| *verb == "run")?;
        Alone::try_parse_from(words).ok().map(|alone| alone.args)
    }
}

/// Runs the program and ends as it does.
pub fn run(args: RunArgs) -> ExitCode {
    match start(args) {
        // Somebody waits for the end of this process, and nothing in it is worth tidying up.
        Ok(code) => mosix_sys::process::exit_now(code.into()),
        Err(error) => {
            eprintln!("mosix: {error:#}");
            Exit::RunFailed.into()
        }
    }
}

fn start(args: RunArgs) -> anyhow::Result<u8> {
    let cpu = match args.cpu {
        Cpu::V2 => CpuLevel::V2,
        Cpu::V3 => CpuLevel::V3,
        Cpu::V4 => CpuLevel::V4,
        Cpu::Native => CpuLevel::Native,
    };
    let spec = Spec {
        words: args.words,
        on: args.on,
        cpu,
        name: args.job,
        filter: !args.no_filter,
    };
    log_to_file();
    let launched = launch(spec, |shared| HomeEngine::new(shared, cpu)).context("cannot start the job")?;
    stand_in(launched).context("lost sight of the program")
}

/// Lets launcher and supervisor log to the file `MOSIX_LOG_FILE`, filtered by `MOSIX_LOG`; their standard error is the program's.
///
/// The file is opened for each line: the supervisor keeps no descriptor that it inherited.
fn log_to_file() {
    let Some(path) = std::env::var_os("MOSIX_LOG_FILE") else {
        return;
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("MOSIX_LOG").unwrap_or_else(|_| "info".into());
    let writer = move || -> Box<dyn std::io::Write> {
        match std::fs::File::options().create(true).append(true).open(&path) {
            Ok(file) => Box::new(file),
            Err(_) => Box::new(std::io::sink()),
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false)
        .init();
}
