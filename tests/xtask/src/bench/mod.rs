//! `cargo xtask bench`: what mosix costs, as a table of ratios.
//!
//! Every ratio is measured in this one run, on this machine, without and with mosix in turn (A B, B A), and is the median of
//! the rounds' ratios: a number from another day or another machine says nothing. A missed goal is a word in the table and never an
//! error; what could not be measured is one.

mod away;
mod freeze;
mod home;
mod programs;
mod report;

use crate::stage::{Stage, build, install};
use anyhow::{Result, ensure};
use report::Report;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON instead of the table.
    #[arg(long)]
    json: bool,
    /// Fewer rounds and smaller sizes, for a first look.
    #[arg(long)]
    quick: bool,
    /// Only rows whose group or name contains this.
    filter: Option<String>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// Rounds of A B.
    rounds: usize,
    /// Fewer turns and smaller inputs.
    quick: bool,
}

impl Extent {
    /// The small or the full amount.
    fn of(self, quick: u32, full: u32) -> u32 {
        if self.quick { quick } else { full }
    }
}

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    install(&[
        ("ip", "iproute2"),
        ("cc", "gcc"),
        ("find", "findutils"),
        ("tar", "tar"),
        ("timeout", "coreutils"),
    ])?;
    let mosix = build(true)?;
    let programs = programs::build()?;
    let stage = Stage::new("bench", &mosix)?;
    stage.up(2, &[])?;
    let extent = Extent {
        rounds: if args.quick { 4 } else { 9 },
        quick: args.quick,
    };
    let mut report = Report::new(args.filter)?;
    home::measure(&mut report, &stage, &programs, extent);
    away::measure(&mut report, &stage, &programs, extent);
    freeze::measure(&mut report, &stage, &programs, extent);
    drop(stage);
    report.end()?;
    if args.json {
        println!("{}", report.json()?);
    } else {
        print!("{}", report.text());
    }
    let failed = report.failed();
    ensure!(failed == 0, "bench: {failed} rows could not be measured");
    Ok(())
}
