//! `mosix ps`: where the processes of jobs are, what they do, and why they cannot move.

use crate::client::{Found, jobs};
use crate::exit::Exit;
use bytesize::ByteSize;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use mosix_wire::job::{Process, Why};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

/// Show jobs and their processes: where each is, and why it cannot move.
///
/// GROUP: processes with the same number share memory that can be written. The reasons are listed by `mosix ctl reasons`.
#[derive(Args, Debug)]
pub struct PsArgs {
    /// Print JSON: `jobs`, `processes` and `silent`, with stable names, sizes in bytes and times in nanoseconds.
    #[arg(long)]
    json: bool,

    /// Show jobs of all users (root).
    #[arg(long, short)]
    all: bool,
}

/// Prints the list.
pub fn run(args: PsArgs) -> anyhow::Result<ExitCode> {
    if args.all && !nix::unistd::geteuid().is_root() {
        eprintln!("mosix: only root can see the jobs of other users");
        return Ok(Exit::Forbidden.into());
    }
    let search = jobs(args.all)?;
    if args.json {
        let processes: Vec<Value> = search
            .found
            .iter()
            .flat_map(|f| f.processes.iter().map(|p| process(f, p)))
            .collect();
        let jobs: Vec<Value> = search.found.iter().map(job).collect();
        println!(
            "{}",
            json!({ "jobs": jobs, "processes": processes, "silent": search.silent })
        );
        return Ok(Exit::Done.into());
    }
    for line in &search.silent {
        eprintln!("mosix: {line}");
    }
    if search.found.is_empty() {
        eprintln!("mosix: no job runs; start one with `mosix run PROGRAM`");
        return Ok(Exit::Done.into());
    }
    println!("{}", table(&search.found, args.all));
    for found in &search.found {
        if let Some(reason) = &found.job.unfiltered {
            println!(
                "job {}: programs are not placed when they start: {reason}",
                found.label()
            );
        }
        for note in &found.job.notes {
            println!("job {}: {note}", found.label());
        }
    }
    Ok(Exit::Done.into())
}

fn table(all: &[Found], users: bool) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    let mut head = vec![
        "PID",
        "PROGRAM",
        "JOB",
        "HOME",
        "WHERE",
        "THR",
        "MEMORY",
        "CPU",
        "STATE",
        "MOVES",
        "GROUP",
        "CANNOT MOVE",
    ];
    if users {
        head.insert(0, "UID");
    }
    table.set_header(head);
    for found in all {
        for p in &found.processes {
            let mut row = vec![
                p.pid.to_string(),
                p.program.clone(),
                found.label(),
                found.job.home.clone(),
                p.place.to_string(),
                p.threads.to_string(),
                ByteSize::b(p.memory).display().iec_short().to_string(),
                cpu(p.cpu_ns),
                p.state.to_string(),
                p.moves.to_string(),
                p.group.map(|pid| pid.to_string()).unwrap_or_default(),
                p.stuck.as_ref().map(|w| w.text.clone()).unwrap_or_default(),
            ];
            if users {
                row.insert(0, found.job.uid.to_string());
            }
            table.add_row(row.into_iter().map(|cell| printable(&cell)));
        }
    }
    table
}

/// CPU time as minutes, seconds and hundredths, or hours, minutes and seconds.
fn cpu(ns: u64) -> String {
    let time = Duration::from_nanos(ns);
    let (s, hundredths) = (time.as_secs(), time.subsec_millis() / 10);
    if s < 3600 {
        format!("{}:{:02}.{hundredths:02}", s / 60, s % 60)
    } else {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    }
}

/// A program chooses its own name: nothing in it may move the cursor or colour the screen.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn job(found: &Found) -> Value {
    let j = &found.job;
    json!({
        "id": j.id.to_string(), "name": j.name, "home": j.home, "uid": j.uid, "supervisor": j.supervisor.0,
        "first": j.first.0, "started": j.started, "unfiltered": j.unfiltered, "notes": j.notes,
    })
}

fn process(found: &Found, p: &Process) -> Value {
    json!({
        "pid": p.pid.0, "parent": p.parent.0, "program": p.program, "job": found.label(), "job_id": found.job.id.to_string(),
        "home": found.job.home, "where": p.place.to_string(), "threads": p.threads, "memory": p.memory, "cpu_ns": p.cpu_ns,
        "state": p.state.to_string(), "moves": p.moves,
        "cannot_move": p.stuck.as_ref().map(why), "group": p.group.map(|pid| pid.0),
    })
}

/// A reason of the list in docs/reasons.md.
pub fn why(w: &Why) -> Value {
    json!({ "code": w.code, "text": w.text, "remedy": w.remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_in_top() {
        assert_eq!(cpu(0), "0:00.00");
        assert_eq!(cpu(61_239_999_999), "1:01.23");
        assert_eq!(cpu(3_600_000_000_000 * 27), "27:00:00");
    }

    #[test]
    fn names_cannot_write_to_the_terminal() {
        assert_eq!(printable("a\u{1b}[31m\n"), "a?[31m?");
    }
}
