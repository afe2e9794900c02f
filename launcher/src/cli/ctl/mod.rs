//! `mosix ctl`: what this node can do, and what mosix does with each system call.

mod check;
mod probes;

use crate::exit::Exit;
use clap::{Args, Subcommand};
use mosix_runtime::reason::{self, Lasts, Reason};
use mosix_runtime::syscall::report;
use serde_json::json;
use std::process::ExitCode;

/// Look at this node.
#[derive(Args, Debug)]
pub struct CtlArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Try everything that mosix needs of this kernel and this user, and say what is missing and what would help.
    ///
    /// Exit code 1 when programs cannot be run or hosted here.
    Check(Json),
    /// Show what happens to each system call of a process that is away.
    Syscalls(PageArgs),
    /// List the reasons why a process cannot move, and what would help.
    Reasons(PageArgs),
}

#[derive(Args, Debug)]
struct PageArgs {
    #[command(flatten)]
    json: Json,
    /// Print the page of docs/.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

#[derive(Args, Debug)]
struct Json {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Does what was asked.
pub fn run(args: &CtlArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Check(json) => check::run(json.json),
        Verb::Syscalls(args) if args.markdown => {
            print!("{}", report::markdown());
            Ok(Exit::Done.into())
        }
        Verb::Syscalls(args) => syscalls(args.json.json),
        Verb::Reasons(args) if args.markdown => {
            print!("{}", reason::markdown());
            Ok(Exit::Done.into())
        }
        Verb::Reasons(args) => reasons(args.json.json),
    }
}

fn reasons(json: bool) -> anyhow::Result<ExitCode> {
    let lasts = |reason: &Reason| match reason.lasts() {
        Lasts::Now => "now",
        Lasts::Ever => "at all",
    };
    if json {
        let row = |reason: &Reason| json!({ "code": reason.code(), "cannot_move": lasts(reason), "text": reason.meaning(), "remedy": reason.remedy() });
        println!("{}", Reason::ALL.iter().map(row).collect::<serde_json::Value>());
        return Ok(Exit::Done.into());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["CODE", "CANNOT MOVE", "BECAUSE", "WHAT HELPS"]);
    for reason in Reason::ALL {
        table.add_row([reason.code(), lasts(reason), reason.meaning(), reason.remedy()]);
    }
    println!("{table}");
    Ok(Exit::Done.into())
}

fn syscalls(json: bool) -> anyhow::Result<ExitCode> {
    let rows = report::rows();
    if json {
        println!("{}", serde_json::to_string(&rows)?);
        return Ok(Exit::Done.into());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["NR", "CALL", "HOME", "AWAY", "RESTART", "SUPPORT", "NOTE"]);
    for row in rows {
        table.add_row([
            &row.nr.to_string(),
            row.name,
            row.home,
            row.away,
            row.restart,
            row.support,
            row.note,
        ]);
    }
    println!("{table}");
    Ok(Exit::Done.into())
}
