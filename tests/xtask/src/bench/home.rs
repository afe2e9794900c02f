//! At home: a program under `mosix run` that stays where it is, against the same program without mosix.

use super::Extent;
use super::away::Guest;
use super::programs::Programs;
use super::report::{Kind, Report, Turns, median_of, turns};
use crate::stage::Stage;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const GROUP: &str = "At home, against the same without mosix";

/// Calls in a loop: name, kind for `calls`, turns per batch (far less than a time slice), goal.
const LOOPS: [(&str, &str, u32, f64); 5] = [
    ("CPU loop", "cpu", 200, 1.01),
    ("getppid", "getppid", 2000, 1.4),
    ("pread of 1 byte", "pread", 1000, 1.15),
    ("open + close", "open", 300, 1.15),
    ("fork + exit + wait", "fork", 2, 1.15),
];

/// Measures all of it.
pub fn measure(report: &mut Report, stage: &Stage, programs: &Programs, extent: Extent) {
    let batches = extent.of(501, 1001);
    for (name, kind, count, goal) in LOOPS {
        report.row(GROUP, name, Kind::Ratio, goal, || {
            let run = |mosix| Guest::calls(stage, programs, mosix, kind, [batches, count, 1])?.measured();
            turns(extent.rounds, || run(false), || run(true))
        });
    }
    let commands = |times, rounds, argv: &[&str], prepare: &dyn Fn() -> Result<()>| {
        let bench = Commands {
            stage,
            wall: programs.c("wall"),
            times,
        };
        bench.turns(rounds, argv, prepare)
    };
    // Short commands: many short rounds, so that a load that comes and goes meets both sides alike.
    let many = extent.rounds * 3;
    let nothing = || Ok(());
    let times = extent.of(100, 500);
    report.row(
        GROUP,
        format!("sh running /bin/true {times} times"),
        Kind::Ratio,
        1.5,
        || {
            let again = format!("i=0; while [ $i -lt {times} ]; do /bin/true; i=$((i+1)); done");
            commands(1, extent.rounds, &["sh", "-c", &again], &nothing)
        },
    );
    let work = stage.work();
    let files = extent.of(8, 24);
    report.row(GROUP, format!("gcc -j2 of {files} C files"), Kind::Ratio, 1.05, || {
        sources(&work.join("c"), files)?;
        let make = "cd c && printf '%s\\n' *.c | xargs -n 1 -P 2 cc -O2 -c";
        commands(1, extent.rounds, &["sh", "-c", make], &nothing)
    });
    report.row(GROUP, "find over /usr/share", Kind::Ratio, 1.05, || {
        commands(
            1,
            many,
            &["find", "/usr/share", "-type", "f", "-size", "+100k"],
            &nothing,
        )
    });
    let files = extent.of(1000, 4000);
    let create = ["tar", "-cf", "tree.tar", "tree"];
    report.row(
        GROUP,
        format!("tar, creating of {files} files"),
        Kind::Ratio,
        1.05,
        || {
            tree(&work.join("tree"), files)?;
            commands(1, many, &create, &nothing)
        },
    );
    report.row(
        GROUP,
        format!("tar, extracting of {files} files"),
        Kind::Ratio,
        1.05,
        || {
            tree(&work.join("tree"), files)?;
            stage.output("n1", create)?;
            let into = work.join("out");
            let empty = || {
                let _ = fs::remove_dir_all(&into);
                fs::create_dir_all(&into).context("folder to extract into")
            };
            commands(1, many, &["tar", "-xf", "tree.tar", "-C", "out"], &empty)
        },
    );
    report.row(GROUP, "start of /bin/true", Kind::MoreMilliseconds, 5.0, || {
        commands(7, many, &["/bin/true"], &nothing)
    });
}

/// Commands under `wall` on n1.
struct Commands<'a> {
    stage: &'a Stage,
    wall: String,
    /// How often in a turn, of which the median counts.
    times: u32,
}

impl Commands<'_> {
    /// `argv` without and with mosix, in turns; `prepare` comes before each and is not counted.
    fn turns(&self, rounds: usize, argv: &[&str], prepare: &dyn Fn() -> Result<()>) -> Result<Turns> {
        let times = self.times.to_string();
        let run = |mosix: &[&str]| {
            prepare()?;
            let wall = ["timeout", "-k", "5", "600", &self.wall, &times];
            let said = self.stage.output("n1", wall.iter().chain(mosix).chain(argv))?;
            let column = |n: usize| {
                let words = said.lines().filter_map(|line| line.split(' ').nth(n));
                median_of(&words.collect::<Vec<_>>().join("\n"))
            };
            Ok((column(0)?, column(1)?))
        };
        // The first run finds cold caches; it belongs to nobody.
        run(&[])?;
        let (mut without, mut with) = (Vec::new(), Vec::new());
        let keep = |all: &mut Vec<f64>, (wall, cpu): (f64, f64)| {
            all.push(cpu);
            wall
        };
        let mut turns = turns(
            rounds,
            || run(&[]).map(|both| keep(&mut without, both)),
            || run(&["mosix", "run", "--"]).map(|both| keep(&mut with, both)),
        )?;
        turns.cpu = with
            .iter()
            .zip(&without)
            .map(|(with, without)| with / without)
            .collect();
        Ok(turns)
    }
}

/// C files that take a compiler some tenths of a second each.
fn sources(folder: &Path, count: u32) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for file in 0..count {
        let mut text = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
        for f in 0..60 {
            let cases = f % 7 + 3;
            let _ = write!(
                text,
                "int f{f}(const char *s, int n)\n{{\n    int a[64] = {{ {file}, {f} }}, sum = 0;\n    \
                 for (int i = 0; i < n; i++)\n        switch (s[i] % {cases}) {{\n        case 0: a[i & 63] += s[i]; break;\n        \
                 case 1: a[(i * {f}) & 63] ^= n; break;\n        default: sum += a[i & 63] * {file};\n        }}\n    \
                 return sum + (int)strlen(s) + snprintf(0, 0, \"%d %s\", sum, s);\n}}\n"
            );
        }
        let path = folder.join(format!("f{file}.c"));
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// A tree of files of 1 to 16 KiB, 100 in a folder.
fn tree(root: &Path, files: u32) -> Result<()> {
    for number in 0..files {
        let folder = root.join((number / 100).to_string());
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let byte = u8::try_from(number % 251).unwrap_or_default();
        let size = 1024 * (1 + usize::try_from(number % 16).unwrap_or_default());
        fs::write(folder.join(format!("{number}.dat")), vec![byte; size]).context("file of the tree")?;
    }
    Ok(())
}
