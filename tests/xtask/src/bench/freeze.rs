//! How long a program stands still while it moves, and how long a large move takes as a whole.

use super::Extent;
use super::away::Guest;
use super::programs::Programs;
use super::report::{Kind, Report, median_of, turns};
use crate::stage::Stage;
use anyhow::{Context, Result, ensure};
use std::fs;

const GROUP: &str = "Moves";

/// Name, MiB of memory, threads, goal in milliseconds.
const FREEZES: [(&str, u32, u32, f64); 3] = [
    ("16 MiB", 16, 1, 15.0),
    ("100 MiB", 100, 1, 100.0),
    ("500 threads", 1, 500, 60.0),
];

/// Measures all of it.
pub fn measure(report: &mut Report, stage: &Stage, programs: &Programs, extent: Extent) {
    for (name, mib, threads, goal) in FREEZES {
        for (way, leaving) in [("leaving home", true), ("coming home", false)] {
            let name = format!("standing still with {name}, {way}");
            report.row(GROUP, name, Kind::Milliseconds, goal, || {
                let guest = memory(stage, programs, mib, threads)?;
                // Its first move starts the agent and puts the window into it.
                guest.to("n2")?;
                guest.to("home")?;
                let turns = turns(
                    extent.of(3, 9) as usize,
                    || bulk(stage, programs, mib),
                    || {
                        let (away, home) = (guest.to("n2")?, guest.to("home")?);
                        Ok(nanoseconds(if leaving { away.freeze_us } else { home.freeze_us }))
                    },
                )?;
                intact(guest)?;
                Ok(turns)
            });
        }
    }
    let mib = extent.of(256, 1024);
    for (which, moves) in [("first", 1), ("second", 2)] {
        let name = format!("whole move of {mib} MiB, the {which} away, against one bare TLS stream");
        report.row(GROUP, name, Kind::Ratio, 1.3, || {
            let free = available_mib()?;
            ensure!(
                free > u64::from(mib) * 3,
                "{free} MiB of memory are free, three times {mib} are needed"
            );
            let moved = || {
                let guest = memory(stage, programs, mib, 1)?;
                for _ in 1..moves {
                    guest.to("n2")?;
                    guest.to("home")?;
                }
                let moved = guest.to("n2")?;
                intact(guest)?;
                Ok(nanoseconds(moved.total_us))
            };
            turns(extent.rounds.min(3), || bulk(stage, programs, mib), moved)
        });
    }
}

fn memory<'a>(stage: &'a Stage, programs: &Programs, mib: u32, threads: u32) -> Result<Guest<'a>> {
    let argv = [programs.c("memory"), mib.to_string(), threads.to_string()];
    Guest::start(stage, true, &argv.each_ref().map(String::as_str))
}

/// Its memory is what it was before the moves: a fast move of wrong bytes is no result.
fn intact(guest: Guest<'_>) -> Result<()> {
    let said = guest.finish()?;
    ensure!(said == "ok\n", "its memory is damaged: {said}");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a move fit 52 bits")]
fn nanoseconds(us: u64) -> f64 {
    us as f64 * 1e3
}

/// So many bytes through the same TLS and the same cable, and nothing else.
fn bulk(stage: &Stage, programs: &Programs, mib: u32) -> Result<f64> {
    let (program, to) = (programs.bulk(), format!("{}:7901", stage.address("n1")?));
    let server = Guest::start(stage, false, &[&program, "serve", &to])?;
    let said = stage.output("n2", ["timeout", "600", &program, "send", &to, &mib.to_string()])?;
    server.finish()?;
    median_of(&said)
}

fn available_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
    Ok(kib.context("/proc/meminfo: no MemAvailable")? / 1024)
}
