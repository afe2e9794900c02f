//! The table for people: `mosix ctl syscalls`, its JSON, and the generated page.

use super::table::{self, Away, Home, Otherwise, Restart, Row, Support};
use serde::Serialize;
use std::fmt::Write as _;

/// One row as reports show it. Field names are stable.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ReportRow {
    /// x86-64 number.
    pub nr: u32,
    /// Name.
    pub name: &'static str,
    /// Family heading.
    pub family: &'static str,
    /// `native` or `trap`.
    pub home: &'static str,
    /// `native`, `native, else …`, `home`, `both`, `special`, `return`, `emulate`, `refuse`.
    pub away: &'static str,
    /// `none`, `sys`, `nointr`, `nohand`, `eintr`, `timed`.
    pub restart: &'static str,
    /// `full`, `partial`, `comes home`.
    pub support: &'static str,
    /// What a reader should know, or empty.
    pub note: &'static str,
}

/// All rows, by number.
pub fn rows() -> Vec<ReportRow> {
    let mut all: Vec<_> = table::FAMILIES
        .iter()
        .flat_map(|family| family.rows.iter().map(|row| report(family.name, row)))
        .collect();
    all.sort_by_key(|row| row.nr);
    all
}

fn report(family: &'static str, row: &'static Row) -> ReportRow {
    ReportRow {
        nr: row.nr,
        name: row.name,
        family,
        home: match row.home {
            Home::Native => "native",
            Home::Trap => "trap",
        },
        away: match row.away {
            Away::Native => "native",
            Away::NativeIf { otherwise, .. } => match otherwise {
                Otherwise::Emulate => "native, else judged by the agent",
                Otherwise::Home => "native, else home",
                Otherwise::Special => "native, else special",
                Otherwise::Return => "native, else return",
            },
            Away::Emulate => "emulate",
            Away::Home => "home",
            Away::Both => "both",
            Away::Special => "special",
            Away::Return => "return",
            Away::Refuse(_) => "refuse",
        },
        restart: match row.restart {
            Restart::None => "none",
            Restart::Sys => "sys",
            Restart::NoInt => "nointr",
            Restart::NoHand => "nohand",
            Restart::Eintr => "eintr",
            Restart::Timed => "timed",
        },
        support: match row.support {
            Support::Full => "full",
            Support::Partial => "partial",
            Support::ComesHome => "comes home",
        },
        note: row.note,
    }
}

/// The compatibility page as Markdown.
pub fn markdown() -> String {
    let rows = rows();
    let count = |support| rows.iter().filter(|row| row.support == support).count();
    let mut page = String::new();
    page.push_str("# System calls\n\n<!-- Generated from the syscall table; do not edit. -->\n\n");
    let _ = writeln!(
        page,
        "At home every call is the kernel's own; only execve and execveat are reported to the supervisor. This page says \
         what happens while a process's body runs on another node. Of {} calls {} work there in full, {} with the named \
         difference, and for {} the process comes home first and runs them there. Numbers that are not listed come home \
         too.\n",
        rows.len(),
        count("full"),
        count("partial"),
        count("comes home"),
    );
    page.push_str(
        "*away*: **native** the host's kernel executes it on the body alone; **home** the process's kernel half at home \
         executes it; **both** home first, then the body's part; **special** hand-written; **return** the process comes \
         home and executes it there; **refuse** fails as it does at home.\n\n*restart*: what an interruption by a stop or \
         signal does (signal(7)).\n",
    );
    for family in table::FAMILIES {
        let _ = writeln!(
            page,
            "\n## {}\n\n| nr | call | away | restart | support | note |\n|---:|---|---|---|---|---|",
            family.name
        );
        for row in rows.iter().filter(|row| row.family == family.name) {
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {} | {} |",
                row.nr,
                row.name.trim_start_matches('_'),
                row.away,
                row.restart,
                row.support,
                row.note.replace('|', "\\|")
            );
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_and_json_name_every_call() {
        let page = markdown();
        let json = serde_json::to_string(&rows()).unwrap();
        for row in table::rows() {
            assert!(
                page.contains(&format!("| {} | {} |", row.nr, row.name.trim_start_matches('_'))),
                "{}",
                row.name
            );
            assert!(
                json.contains(&format!("\"nr\":{},\"name\":\"{}\"", row.nr, row.name)),
                "{}",
                row.name
            );
        }
    }
}
