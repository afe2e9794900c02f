//! Which test shows which system call.
//!
//! A behaviour in `tests/guests` names the calls that it makes while it is away, and fails when its agent has not served them (`MOSIX_TALLY`). The
//! programs in `runtime/tests/syscalls` have a real deputy execute calls, and fail when one is left out. From both comes the column
//! `test` of `docs/syscalls.md`.

use crate::binary::{mosix, workspace};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::sync::OnceLock;

/// A behaviour of a guest program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Behaviour {
    /// The program, as its file is named.
    pub program: String,
    /// Its name.
    pub name: String,
    /// The calls that it shows.
    pub calls: Vec<String>,
}

/// All behaviours, by program, in the order of the sources.
pub fn behaviours() -> Vec<Behaviour> {
    let folder = workspace().join("tests/guests");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("tests/guests")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "c"))
        .collect();
    files.sort();
    files
        .iter()
        .flat_map(|path| {
            let program = path.file_stem().expect("a name").to_string_lossy();
            declared(&program, &fs::read_to_string(path).expect("a guest"))
        })
        .collect()
}

/// The behaviours that a source declares: `BEHAVIOUR(name, "call call")`.
fn declared(program: &str, source: &str) -> Vec<Behaviour> {
    source
        .split("\nBEHAVIOUR(")
        .skip(1)
        .filter_map(|text| {
            let (name, rest) = text.split_once(',')?;
            let (list, _) = rest.split_once(")\n{")?;
            // Every second part stands between quotes.
            let calls = list.split('"').skip(1).step_by(2).flat_map(str::split_whitespace);
            Some(Behaviour {
                program: program.to_owned(),
                name: name.trim().to_owned(),
                calls: calls.map(str::to_owned).collect(),
            })
        })
        .collect()
}

/// A row of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The call.
    pub name: String,
    /// What happens to it away.
    pub away: String,
}

impl Row {
    /// How an agent serves it, as its tally says; none when it may never come to an agent.
    pub fn way(&self) -> Option<&'static str> {
        match self.away.as_str() {
            "home" | "both" | "native, else home" => Some("home"),
            "special" | "native, else special" => Some("here"),
            "return" => Some("return"),
            _ => None,
        }
    }
}

/// The table of `mosix` under test.
pub fn table() -> &'static [Row] {
    static TABLE: OnceLock<Vec<Row>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let output = Command::new(mosix())
            .args(["ctl", "syscalls", "--json"])
            .output()
            .expect("run mosix");
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("rows");
        let text = |value: &serde_json::Value| value.as_str().expect("a word").to_owned();
        let rows = rows.as_array().expect("rows");
        rows.iter()
            .map(|row| Row {
                name: text(&row["name"]),
                away: text(&row["away"]),
            })
            .collect()
    })
}

/// The tests of each call.
pub fn tests() -> BTreeMap<String, Vec<String>> {
    let mut tests: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for one in behaviours() {
        for call in one.calls {
            tests
                .entry(call)
                .or_default()
                .push(format!("{}:{}", one.program, one.name));
        }
    }
    let folder = workspace().join("runtime/tests/syscalls");
    for file in ["files", "sockets", "process", "differential"] {
        let source = fs::read_to_string(folder.join(file).with_extension("rs")).expect("a test of calls");
        let mut names: Vec<&str> = source.split('"').skip(1).step_by(2).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            tests.entry(name.to_owned()).or_default().push(format!("*{file}*"));
        }
    }
    tests
}

/// Most tests that the page names for one call.
const NAMED: usize = 3;

/// The page of calls with its column `test`.
pub fn page(calls: &str) -> String {
    let tests = tests();
    let mut page = String::new();
    for line in calls.lines() {
        let _ = match line.strip_prefix("| ").and_then(|row| row.split(" | ").nth(1)) {
            Some("call") => writeln!(page, "{line} test |"),
            Some(call) => {
                let all = tests.get(call).map_or(&[][..], Vec::as_slice);
                let (named, more) = all.split_at(all.len().min(NAMED));
                let rest = if more.is_empty() {
                    String::new()
                } else {
                    format!(", {} more", more.len())
                };
                writeln!(page, "{line} {}{rest} |", named.join(", "))
            }
            None if line.starts_with("|--") => writeln!(page, "{line}---|"),
            None => writeln!(page, "{line}"),
        };
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_read() {
        let source =
            "x\nBEHAVIOUR(one, \"read write\")\n{\n\tf(\"no\");\n}\n\nBEHAVIOUR(two, \"a\"\n\t       \" b\")\n{\n";
        let found = declared("p", source);
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].name.as_str(), found[0].calls.join(" ")),
            ("one", "read write".to_owned())
        );
        assert_eq!(
            (found[1].name.as_str(), found[1].calls.join(" ")),
            ("two", "a b".to_owned())
        );
    }
}
