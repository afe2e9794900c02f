//! Rows: measuring in turns, the table, and the JSON.

use crate::table;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::fs;
use std::time::Instant;

/// What a row's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// With mosix divided by without.
    Ratio,
    /// With mosix minus without, in milliseconds.
    MoreMilliseconds,
    /// Milliseconds with mosix; "without" only shows what the machine can do in this minute.
    Milliseconds,
}

/// Nanoseconds without and with mosix: one per round, each the median of that round's batches.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    /// Without mosix; empty when there is no such thing.
    pub without: Vec<f64>,
    /// With it.
    pub with: Vec<f64>,
    /// CPU time with it divided by CPU time without it, per round, of whole commands.
    pub cpu: Vec<f64>,
}

/// A line of the table.
#[derive(Debug, Serialize)]
pub struct Row {
    group: &'static str,
    name: String,
    kind: Kind,
    without_ns: Option<f64>,
    with_ns: Option<f64>,
    /// The quickest turn with mosix: nearest to what it costs on a machine with nothing else to do.
    least_ns: Option<f64>,
    /// The median of the rounds.
    value: Option<f64>,
    /// Where the middle half of the rounds lies.
    middle: Option<(f64, f64)>,
    /// Median of the rounds' ratios of CPU time, which other programs disturb less than the time that passes.
    cpu: Option<f64>,
    /// Rounds measured.
    rounds: usize,
    goal: f64,
    verdict: Option<Verdict>,
    error: Option<String>,
}

/// What the rounds say of the goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// Three quarters of the rounds meet it.
    Met,
    /// Three quarters of the rounds miss it.
    Missed,
    /// Neither: the machine's other work is larger than the difference.
    Undecided,
}

/// The whole result.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    rows: Vec<Row>,
    #[serde(skip)]
    filter: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Machine {
    kernel: String,
    cpu: String,
    cpus: usize,
    load_before: String,
    load_after: String,
}

/// The middle value; none of an empty list.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => sorted.get(middle).copied(),
        _ => Some((sorted.get(middle)? + sorted.get(middle - 1)?) / 2.0),
    }
}

/// The value below which a part of the values lies; none of an empty list.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "there are a handful of rounds"
)]
fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = part * (sorted.len().checked_sub(1)?) as f64;
    let (low, high) = (sorted.get(at.floor() as usize)?, sorted.get(at.ceil() as usize)?);
    Some(low + (high - low) * at.fract())
}

/// Runs `without` and `with` in turn: A B, B A, A B …, so that a load that grows or shrinks favours neither.
pub fn turns(
    rounds: usize,
    mut without: impl FnMut() -> Result<f64>,
    mut with: impl FnMut() -> Result<f64>,
) -> Result<Turns> {
    let mut turns = Turns::default();
    for round in 0..rounds {
        if round % 2 == 0 {
            turns.without.push(without()?);
            turns.with.push(with()?);
        } else {
            turns.with.push(with()?);
            turns.without.push(without()?);
        }
    }
    Ok(turns)
}

/// The median of a program's output: a number per line.
pub fn median_of(text: &str) -> Result<f64> {
    let numbers: Vec<f64> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    median(&numbers).with_context(|| format!("no numbers in {text:?}"))
}

impl Report {
    /// An empty report of this machine; only rows that contain `filter` are measured.
    pub fn new(filter: Option<String>) -> Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        let model = info.lines().find(|line| line.starts_with("model name"));
        let cpu = model
            .and_then(|line| line.split_once(": "))
            .map(|(_, name)| name.to_owned());
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let machine = Machine {
            kernel: kernel.trim().to_owned(),
            cpu: cpu.unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            load_before: load()?,
            load_after: String::new(),
        };
        Ok(Self {
            machine,
            rows: Vec::new(),
            filter,
        })
    }

    /// Measures a row and keeps what came out, also an error.
    pub fn row(
        &mut self,
        group: &'static str,
        name: impl Into<String>,
        kind: Kind,
        goal: f64,
        measure: impl FnOnce() -> Result<Turns>,
    ) {
        let name = name.into();
        let wanted = |part: &String| group.contains(part.as_str()) || name.contains(part.as_str());
        if !self.filter.as_ref().is_none_or(wanted) {
            return;
        }
        let begin = Instant::now();
        eprint!("{group}: {name} … ");
        let mut row = Row {
            group,
            name,
            kind,
            goal,
            without_ns: None,
            with_ns: None,
            least_ns: None,
            value: None,
            middle: None,
            cpu: None,
            rounds: 0,
            verdict: None,
            error: None,
        };
        match measure().and_then(|turns| row.fill(&turns)) {
            Ok(()) => eprintln!("{} ({:.0} s)", row.shown(), begin.elapsed().as_secs_f64()),
            Err(error) => {
                eprintln!("{error:#}");
                row.error = Some(format!("{error:#}"));
            }
        }
        self.rows.push(row);
    }

    /// Notes the machine's load at the end.
    pub fn end(&mut self) -> Result<()> {
        self.machine.load_after = load()?;
        Ok(())
    }

    /// How many rows could not be measured.
    pub fn failed(&self) -> usize {
        self.rows.iter().filter(|row| row.error.is_some()).count()
    }

    /// As JSON.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).context("JSON")
    }

    /// As tables, one per group.
    pub fn text(&self) -> String {
        let m = &self.machine;
        let mut text = format!(
            "\nLinux {}, {} x {}; load before {}, after {}\n",
            m.kernel, m.cpus, m.cpu, m.load_before, m.load_after
        );
        let mut groups: Vec<&str> = self.rows.iter().map(|row| row.group).collect();
        groups.dedup();
        for group in groups {
            text += &format!("\n{group}\n");
            let rows = self.rows.iter().filter(|row| row.group == group).map(Row::cells);
            let head = [
                "WHAT",
                "WITHOUT",
                "WITH",
                "LEAST",
                "RESULT",
                "MIDDLE HALF",
                "GOAL",
                "VERDICT",
                "CPU",
            ];
            text += &table::layout(&head, &rows.collect::<Vec<_>>(), 1);
        }
        text += "\nRESULT: the median of the rounds, each compared within itself. Undecided: the goal lies within the middle half of the rounds.\n\
                 CPU: the same for the CPU time of the whole command, without what nobody waits for.\n";
        for row in &self.rows {
            if let Some(error) = &row.error {
                text += &format!("not measured: {}: {error}\n", row.name);
            }
        }
        text
    }
}

impl Row {
    fn fill(&mut self, turns: &Turns) -> Result<()> {
        self.with_ns = Some(median(&turns.with).context("nothing was measured")?);
        self.without_ns = median(&turns.without);
        self.least_ns = turns.with.iter().copied().min_by(f64::total_cmp);
        ensure!(
            self.kind == Kind::Milliseconds || turns.without.len() == turns.with.len(),
            "nothing was measured without mosix"
        );
        // Both turns of a round met the same load, or nearly: so rounds are compared, not medians over all of them.
        let rounds: Vec<f64> = match self.kind {
            Kind::Milliseconds => turns.with.iter().map(|with| with / 1e6).collect(),
            Kind::Ratio => turns.with.iter().zip(&turns.without).map(|(a, b)| a / b).collect(),
            Kind::MoreMilliseconds => {
                let pairs = turns.with.iter().zip(&turns.without);
                pairs.map(|(a, b)| (a - b) / 1e6).collect()
            }
        };
        let all = || {
            quantile(&rounds, 0.25)
                .zip(quantile(&rounds, 0.75))
                .zip(median(&rounds))
        };
        let ((low, high), value) = all().context("nothing was measured")?;
        ensure!(low.is_finite() && high.is_finite(), "{rounds:?} is no result");
        (self.value, self.middle, self.rounds) = (Some(value), Some((low, high)), rounds.len());
        self.cpu = median(&turns.cpu);
        self.verdict = Some(match self.goal {
            goal if high <= goal => Verdict::Met,
            goal if low > goal => Verdict::Missed,
            _ => Verdict::Undecided,
        });
        Ok(())
    }

    fn number(&self, value: f64) -> String {
        match self.kind {
            Kind::Ratio => format!("{value:.2}"),
            Kind::MoreMilliseconds => format!("{value:+.1} ms"),
            Kind::Milliseconds => format!("{value:.1} ms"),
        }
    }

    fn shown(&self) -> String {
        self.value.map_or_else(|| "-".into(), |value| self.number(value))
    }

    fn cells(&self) -> Vec<String> {
        let dash = || "-".to_owned();
        let verdict = |verdict| match verdict {
            Verdict::Met => "met".to_owned(),
            Verdict::Missed => "MISSED".to_owned(),
            Verdict::Undecided => "undecided".to_owned(),
        };
        let middle = |(low, high)| format!("{} .. {}", self.number(low), self.number(high));
        vec![
            self.name.clone(),
            self.without_ns.map_or_else(dash, time),
            self.with_ns.map_or_else(dash, time),
            self.least_ns.map_or_else(dash, time),
            self.shown(),
            self.middle.map_or_else(dash, middle),
            format!("≤ {}", self.number(self.goal)),
            self.verdict.map_or_else(dash, verdict),
            self.cpu.map_or_else(dash, |cpu| format!("{cpu:.2}")),
        ]
    }
}

/// Nanoseconds in a unit that reads well.
fn time(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.1} us", ns / 1e3),
        ns if ns < 1e9 => format!("{:.1} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

/// Load averages of 1, 5 and 15 minutes.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(kind: Kind, goal: f64, without: &[f64], with: &[f64]) -> Row {
        let mut report = Report {
            machine: Machine::default(),
            rows: vec![],
            filter: None,
        };
        let turns = Turns {
            without: without.to_vec(),
            with: with.to_vec(),
            cpu: Vec::new(),
        };
        report.row("group", "name", kind, goal, || Ok(turns));
        report.rows.remove(0)
    }

    #[test]
    fn the_middle_is_found() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 100.0]), Some(3.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 100.0]), Some(3.0));
        assert_eq!(quantile(&[4.0, 1.0, 2.0, 3.0, 5.0], 0.25), Some(2.0));
        assert_eq!(quantile(&[1.0, 2.0], 0.75), Some(1.75));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(median_of("ready\n5\n7\n6\n").unwrap(), 6.0);
        assert!(median_of("ready\n").is_err());
    }

    #[test]
    fn goals_are_judged() {
        let ratio = filled(Kind::Ratio, 1.4, &[100.0, 110.0, 90.0], &[150.0, 165.0, 9.0]);
        assert_eq!((ratio.value, ratio.rounds), (Some(1.5), 3));
        assert_eq!(ratio.verdict, Some(Verdict::Undecided));
        // A load that slows both turns of a round down changes nothing.
        let loaded = filled(Kind::Ratio, 1.4, &[100.0, 1000.0, 100.0], &[150.0, 1500.0, 150.0]);
        assert_eq!((loaded.value, loaded.middle), (Some(1.5), Some((1.5, 1.5))));
        assert_eq!(loaded.verdict, Some(Verdict::Missed));
        let more = filled(Kind::MoreMilliseconds, 5.0, &[1e6], &[4e6]);
        assert_eq!((more.value, more.verdict), (Some(3.0), Some(Verdict::Met)));
        let alone = filled(Kind::Milliseconds, 15.0, &[], &[16e6, 17e6]);
        assert_eq!((alone.value, alone.verdict), (Some(16.5), Some(Verdict::Missed)));
    }

    #[test]
    fn what_was_not_measured_is_said() {
        assert!(filled(Kind::Ratio, 1.0, &[], &[5.0]).error.is_some());
        assert!(filled(Kind::Ratio, 1.0, &[0.0], &[5.0]).error.is_some());
    }
}
