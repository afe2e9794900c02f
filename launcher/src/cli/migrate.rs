//! `mosix migrate`: move a running process, or all of a job.

use crate::exit::Exit;
use crate::target::{Failure, by_name, by_pid, pid};
use bytesize::ByteSize;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use mosix_wire::job::{Answer, Moved, Place, Progress, Refusal, Request};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

/// Move a running process (or a whole job) to another node, or home.
///
/// Waits until it runs there and prints how long it stood still and how much travelled. If it cannot move, it goes on where
/// it is. Of a job, the processes that can move do, and each that stays is named. Exit codes: 0 moved, 1 failed, 3 no such process or job, 4 no such node, 5 it cannot move (`mosix ps` says why),
/// 6 the node refused it, 7 not allowed.
#[derive(Args, Debug)]
#[command(override_usage = "mosix migrate [--json] PID NODE|home\n       mosix migrate [--json] --job NAME NODE|home")]
pub struct MigrateArgs {
    /// Move all processes of this job (name or id).
    #[arg(long, value_name = "NAME")]
    job: Option<String>,

    /// Print JSON: `moved`, `error` (the first) and `errors`.
    #[arg(long)]
    json: bool,

    /// The process, unless --job is given; then where to: a node's name or `home`.
    #[arg(required = true, num_args = 1..=2, value_names = ["PID", "NODE|home"])]
    words: Vec<String>,
}

/// What became of the processes.
#[derive(Default)]
struct Outcome {
    moved: Vec<Moved>,
    /// Of several, those that did not move.
    stays: Vec<Failure>,
}

/// Moves, and waits for the end of it.
pub fn run(args: MigrateArgs) -> ExitCode {
    let mut outcome = Outcome::default();
    let result = migrate(&args, &mut outcome);
    let failures: Vec<&Failure> = result.as_ref().err().into_iter().chain(&outcome.stays).collect();
    if args.json {
        let moved: Vec<Value> = outcome.moved.iter().map(as_json).collect();
        let errors: Vec<Value> = failures
            .iter()
            .map(|f| json!({ "code": f.exit as u8, "text": f.text, "cannot_move": f.why.as_ref().map(super::ps::why) }))
            .collect();
        println!(
            "{}",
            json!({ "moved": moved, "error": errors.first(), "errors": errors })
        );
    } else {
        for failure in &failures {
            eprintln!("mosix: {}", failure.text);
        }
    }
    failures.first().map_or(Exit::Done, |failure| failure.exit).into()
}

fn migrate(args: &MigrateArgs, outcome: &mut Outcome) -> Result<(), Failure> {
    let usage = |text: String| Failure::new(Exit::Usage, text);
    let place = |to: &str| Place::parse(to).map_err(|e| usage(e.to_string()));
    // What is wrong with the words themselves comes before what is wrong with the process.
    let (to, (found, target)) = match (&args.job, args.words.as_slice()) {
        (Some(job), [to]) => (place(to)?, by_name(job)?),
        (None, [process, to]) => {
            let process = pid(process).map_err(usage)?;
            (place(to)?, by_pid(process)?)
        }
        (Some(_), _) => {
            return Err(usage(
                "with --job, say only where to: mosix migrate --job NAME NODE|home".into(),
            ));
        }
        (None, _) => {
            return Err(usage(
                "say which process and where to: mosix migrate PID NODE|home".into(),
            ));
        }
    };
    let bar = Bar::new(args.json);
    let mut refused: Option<Refusal> = None;
    found.request(&Request::Migrate { target, to }, |answer| match answer {
        Answer::Progress(progress) => {
            bar.show(&progress);
            false
        }
        Answer::Moved(report) => {
            bar.line(|| {
                if !args.json {
                    println!("{}", as_line(&report));
                }
            });
            outcome.moved.push(report);
            false
        }
        Answer::Stays(refusal) => {
            outcome.stays.push(refusal.into());
            false
        }
        Answer::Refused(refusal) => {
            refused = Some(refusal);
            true
        }
        Answer::Done | Answer::Rows { .. } => true,
    })?;
    bar.end();
    refused.map_or(Ok(()), |r| Err(r.into()))
}

/// Progress of long moves, on a terminal only.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(json: bool) -> Self {
        if json || !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new(0);
        bar.set_style(style(false));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(Some(bar))
    }

    fn show(&self, progress: &Progress) {
        let Some(bar) = &self.0 else { return };
        bar.set_style(style(progress.total > 0));
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        bar.set_message(format!("process {}: {}", progress.pid, progress.phase));
    }

    fn line(&self, print: impl FnOnce()) {
        match &self.0 {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn style(sized: bool) -> ProgressStyle {
    let template = if sized {
        "{spinner} {msg} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
    } else {
        "{spinner} {msg} {elapsed}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn as_line(m: &Moved) -> String {
    format!(
        "process {} ({}): {} -> {}, stood still {:.1} ms, {} in {:.2} s",
        m.pid,
        m.program.chars().filter(|c| !c.is_control()).collect::<String>(),
        m.from,
        m.to,
        Duration::from_micros(m.freeze_us).as_secs_f64() * 1e3,
        ByteSize::b(m.bytes).display().iec(),
        Duration::from_micros(m.total_us).as_secs_f64(),
    )
}

fn as_json(m: &Moved) -> Value {
    json!({
        "pid": m.pid.0, "program": m.program, "from": m.from.to_string(), "to": m.to.to_string(),
        "freeze_us": m.freeze_us, "total_us": m.total_us, "bytes": m.bytes,
    })
}
