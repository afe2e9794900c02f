//! What /proc says of a process whose body is away: home's text with what only the body's kernel knows.
//!
//! ```text
//!  body: open("/proc/self/status") ─▶ deputy opens its own ─▶ the name of what was opened tells which file of whom
//!                                     home's text ◀── merged ── AskProc ─▶ the body's host: the text of its kernel
//!                                     a sealed memfd with both takes the place of the descriptor
//! ```
//! Descriptors, folders, limits, environment, command line and credentials are the deputy's and right as they are. Memory, CPU time,
//! state, signal masks and threads are the body's.

use mosix_wire::link::ProcFile;

/// Most bytes of such a text: the maps of a process with as many mappings as can move, with names.
pub const LARGEST: usize = 32 << 20;

/// Which file of which process or thread `name` is, when its text depends on where the body is: pid, thread.
pub fn parse(name: &[u8]) -> Option<(i32, Option<i32>, ProcFile)> {
    let name = std::str::from_utf8(name).ok()?.strip_prefix("/proc/")?;
    let mut parts = name.split('/');
    let pid = parts.next()?.parse().ok().filter(|pid| *pid > 0)?;
    let (thread, leaf) = match (parts.next()?, parts.next(), parts.next(), parts.next()) {
        ("task", Some(tid), Some(leaf), None) => (Some(tid.parse().ok()?), leaf),
        (leaf, None, None, None) => (None, leaf),
        _ => return None,
    };
    let file = match leaf {
        "maps" => ProcFile::Maps,
        "smaps" => ProcFile::Smaps,
        "smaps_rollup" => ProcFile::SmapsRollup,
        "status" => ProcFile::Status,
        "stat" => ProcFile::Stat,
        "statm" => ProcFile::Statm,
        _ => return None,
    };
    Some((pid, thread, file))
}

/// Merges home's text of a file with the body's. `runs`: who reads is the process itself, which natively finds itself running.
pub fn merge(file: ProcFile, home: &[u8], body: &[u8], runs: bool) -> Vec<u8> {
    match file {
        ProcFile::Maps | ProcFile::Smaps | ProcFile::SmapsRollup | ProcFile::Statm => body.to_vec(),
        ProcFile::Status => status(&String::from_utf8_lossy(home), &String::from_utf8_lossy(body), runs),
        ProcFile::Stat => stat(home, body, runs).unwrap_or_else(|| home.to_vec()),
    }
}

/// Lines of status that the body's kernel knows.
fn is_bodys(key: &str) -> bool {
    key.starts_with("Vm")
        || key.starts_with("Rss")
        || key.ends_with("voluntary_ctxt_switches")
        || matches!(
            key,
            "State" | "SigPnd" | "ShdPnd" | "SigBlk" | "SigIgn" | "SigCgt" | "HugetlbPages" | "Threads"
        )
}

fn status(home: &str, body: &str, runs: bool) -> Vec<u8> {
    let of_body = |key: &str| {
        let mut lines = body.lines();
        lines.find(|line| line.split_once(':').is_some_and(|(name, _)| name == key))
    };
    let mut text = String::with_capacity(home.len());
    for line in home.lines() {
        let key = line.split_once(':').map_or("", |(key, _)| key);
        let shown = match key {
            "State" if runs => "State:\tR (running)",
            // The supervisor, which natively is not there.
            "TracerPid" => "TracerPid:\t0",
            key if is_bodys(key) => of_body(key).unwrap_or(line),
            _ => line,
        };
        text.push_str(shown);
        text.push('\n');
    }
    text.into_bytes()
}

/// Fields of proc_pid_stat(5) that the body's kernel knows: state, faults, threads, sizes, stack and instruction pointers, signals, where it
/// waits.
const BODYS: [usize; 16] = [3, 10, 11, 12, 13, 20, 23, 24, 29, 30, 31, 32, 33, 34, 35, 39];
/// User and system time: what was used at home counts too.
const SUMMED: [usize; 2] = [14, 15];

fn stat(home: &[u8], body: &[u8], runs: bool) -> Option<Vec<u8>> {
    // The name may hold anything; the fields begin behind its last parenthesis.
    let split = |text: &'_ [u8]| -> Option<(String, Vec<String>)> {
        let end = text.iter().rposition(|byte| *byte == b')')? + 1;
        let fields = std::str::from_utf8(text.get(end..)?).ok()?;
        let fields = fields.split_ascii_whitespace().map(str::to_owned).collect();
        Some((String::from_utf8_lossy(&text[..end]).into_owned(), fields))
    };
    let ((head, mut fields), (_, of_body)) = (split(home)?, split(body)?);
    for number in BODYS {
        if let (Some(field), Some(own)) = (fields.get_mut(number - 3), of_body.get(number - 3)) {
            field.clone_from(own);
        }
    }
    for number in SUMMED {
        let ticks = |fields: &[String]| fields.get(number - 3).and_then(|field| field.parse::<u64>().ok());
        if let (Some(here), Some(there)) = (ticks(&fields), ticks(&of_body)) {
            fields[number - 3] = here.saturating_add(there).to_string();
        }
    }
    if runs && let Some(state) = fields.first_mut() {
        "R".clone_into(state);
    }
    Some(format!("{head} {}\n", fields.join(" ")).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_depend_on_the_body_are_meant() {
        assert_eq!(parse(b"/proc/12/maps"), Some((12, None, ProcFile::Maps)));
        assert_eq!(parse(b"/proc/12/task/13/stat"), Some((12, Some(13), ProcFile::Stat)));
        for name in [
            "/proc/12/cmdline",
            "/proc/self/maps",
            "/proc/12/fd/maps",
            "/proc/stat",
            "/tmp/proc/1/maps",
            "/proc/-1/maps",
        ] {
            assert_eq!(parse(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn status_has_the_body_s_memory_and_masks_and_home_s_numbers() {
        let home =
            "Name:\tx\nState:\tS (sleeping)\nPid:\t7\nTracerPid:\t5\nVmRSS:\t  8 kB\nSigBlk:\t0000\nCpus_allowed:\t3\n";
        let body = "Name:\tx\nState:\tS (sleeping)\nPid:\t99\nTracerPid:\t6\nVmRSS:\t 800 kB\nSigBlk:\t0004\nCpus_allowed:\t1\n";
        let text = |runs| String::from_utf8(merge(ProcFile::Status, home.as_bytes(), body.as_bytes(), runs)).unwrap();
        assert_eq!(
            text(true),
            "Name:\tx\nState:\tR (running)\nPid:\t7\nTracerPid:\t0\nVmRSS:\t 800 kB\nSigBlk:\t0004\nCpus_allowed:\t3\n"
        );
        assert!(text(false).contains("State:\tS"));
    }

    #[test]
    fn stat_of_this_process_merges_with_itself() {
        let own = std::fs::read("/proc/self/stat").unwrap();
        let merged = merge(ProcFile::Stat, &own, &own, true);
        let (before, after) = (
            crate::process::stat::Stat::parse(&own).unwrap(),
            crate::process::stat::Stat::parse(&merged).unwrap(),
        );
        assert_eq!(
            (after.pid, after.state, after.ticks()),
            (before.pid, 'R', before.ticks() * 2)
        );
        assert_eq!((&after.comm, after.start), (&before.comm, before.start));
    }

    #[test]
    fn foreign_texts_do_no_harm() {
        for body in [&b""[..], b")", b"1 (x) ", &[0xff; 64], b"State\nVmRSS"] {
            for file in [ProcFile::Stat, ProcFile::Status, ProcFile::Maps] {
                let _ = merge(file, b"7 (a b) S 1 2 3\n", body, true);
                let _ = merge(file, body, b"7 (a b) S 1 2 3\n", false);
            }
        }
    }
}
