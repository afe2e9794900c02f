//! The one syscall table: a row for every x86-64 number.
//!
//! Both seccomp filters, the marshalling engine, the audit of forwarded calls at home, `mosix ctl syscalls` and the
//! generated page derive from it. Rows are grouped by family; a number the table does not know ([`UNKNOWN`]) comes home
//! and runs there, so a newer kernel's calls work from the first day.

pub mod kinds;

mod commands;
mod fd;
mod fs;
mod ioctl;
mod ipc;
mod mem;
mod misc;
mod net;
mod poll;
mod process;
mod signal;
mod time;

pub use kinds::{Arg, Away, Cond, Home, Op, Otherwise, Request, Restart, Row, Size, Support};
pub use mem::{WINDOW_END, WINDOW_START};

/// A family of calls: a heading for reports and its rows.
pub struct Family {
    /// Heading.
    pub name: &'static str,
    /// Its calls.
    pub rows: &'static [Row],
}

/// All families, in the order of reports.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "descriptors",
        rows: fd::ROWS,
    },
    Family {
        name: "files by path",
        rows: fs::ROWS,
    },
    Family {
        name: "memory",
        rows: mem::ROWS,
    },
    Family {
        name: "processes and credentials",
        rows: process::ROWS,
    },
    Family {
        name: "signals",
        rows: signal::ROWS,
    },
    Family {
        name: "time",
        rows: time::ROWS,
    },
    Family {
        name: "sockets",
        rows: net::ROWS,
    },
    Family {
        name: "System V and POSIX IPC",
        rows: ipc::ROWS,
    },
    Family {
        name: "waiting for descriptors",
        rows: poll::ROWS,
    },
    Family {
        name: "everything else",
        rows: misc::ROWS,
    },
];

/// One past the highest number that can have a row.
const SPAN: usize = 512;

/// Place of a number in [`FAMILIES`]: family index and row index, or `NONE`.
const NONE: (u8, u8) = (u8::MAX, u8::MAX);
static INDEX: [(u8, u8); SPAN] = index();

const fn index() -> [(u8, u8); SPAN] {
    let mut places = [NONE; SPAN];
    let mut family = 0;
    while family < FAMILIES.len() {
        let rows = FAMILIES[family].rows;
        let mut at = 0;
        while at < rows.len() {
            let nr = rows[at].nr as usize;
            assert!(places[nr].0 == u8::MAX, "a system call number has two rows");
            places[nr] = (family as u8, at as u8);
            at += 1;
        }
        family += 1;
    }
    places
}

/// The row of every number that the table does not know.
pub static UNKNOWN: Row = Row {
    nr: u32::MAX,
    name: "unknown",
    home: Home::Native,
    away: Away::Return,
    args: &[],
    restart: Restart::None,
    support: Support::ComesHome,
    note: "not in the table: the process comes home and runs it there",
};

/// Returns the row of `nr`, or [`UNKNOWN`].
pub fn row(nr: u32) -> &'static Row {
    match INDEX.get(nr as usize) {
        Some(&(family, at)) if (family, at) != NONE => &FAMILIES[family as usize].rows[at as usize],
        _ => &UNKNOWN,
    }
}

/// All rows, by family.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    FAMILIES.iter().flat_map(|family| family.rows)
}

/// Whether one of the rules holds for these register arguments.
pub fn matches(rules: &[&[Cond]], args: &[u64; 6]) -> bool {
    rules.iter().any(|rule| rule.iter().all(|cond| cond.holds(args)))
}

#[cfg(test)]
mod tests;
