//! The last look from outside before home may let a body run: is it as confined as it must be?
//!
//! The image came from elsewhere and the scripts ran inside the process, so nothing of the building is believed here: the kernel
//! is asked. Whatever cannot be read counts as wrong.

use crate::process::freeze;
use crate::process::maps::{self, Mapping};
use crate::process::materialise::Body;
use mosix_loader::script::abi::{SHARED, SHARED_SIZE, TEXT_ROOM, WINDOW};
use mosix_wire::image::{ProcessImage, VmaFlags};
use rustix::fs::{Mode, OFlags, openat};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};

/// Why a built body must not run.
#[derive(Debug, thiserror::Error)]
pub enum Unsafe {
    /// A thread has rights that it must not have, or lacks the filter.
    #[error("thread {tid} is not confined: {field} is {value:?}")]
    Thread {
        /// The thread on this node.
        tid: i32,
        /// Line of /proc/TID/status.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// There are other threads than the image has.
    #[error("process {pid} has {found} threads, its image {wanted}")]
    Threads {
        /// The process on this node.
        pid: i32,
        /// How many there are.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// Memory that no plan names.
    #[error("process {pid} has memory at {start:#x} that is not in its image")]
    Memory {
        /// The process on this node.
        pid: i32,
        /// Where.
        start: u64,
    },
    /// A descriptor is left.
    #[error("process {pid} has {count} descriptors left")]
    Descriptors {
        /// The process on this node.
        pid: i32,
        /// How many.
        count: usize,
    },
    /// /proc did not answer.
    #[error("/proc/{pid}/{file}: {error}")]
    Proc {
        /// The process on this node.
        pid: i32,
        /// The file.
        file: &'static str,
        /// Its answer.
        error: io::Error,
    },
}

/// What every thread's status must say.
const MUST: [(&str, &str); 7] = [
    ("Seccomp", "2"),
    ("NoNewPrivs", "1"),
    ("CapInh", "0000000000000000"),
    ("CapPrm", "0000000000000000"),
    ("CapEff", "0000000000000000"),
    ("CapBnd", "0000000000000000"),
    ("CapAmb", "0000000000000000"),
];

/// Field of a thread's numbers, the innermost namespace's last.
const NUMBERS: &str = "NSpid";

/// Looks at threads of a process; gives their numbers here and in their namespace.
///
/// # Errors
/// The first thing wrong with one.
pub fn threads(pid: i32, tids: &[i32]) -> Result<Vec<(i32, i32)>, Unsafe> {
    let proc = |file| move |error| Unsafe::Proc { pid, file, error };
    let folder = File::open(format!("/proc/{pid}/task")).map_err(proc("task"))?;
    let mut numbers = Vec::with_capacity(tids.len());
    let mut status = Vec::new();
    for tid in tids.iter().copied() {
        status.clear();
        // From the folder: its own path is long, and there may be thousands of them while the program stands still.
        openat(
            &folder,
            format!("{tid}/status"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(io::Error::from)
        .and_then(|file| File::from(file).read_to_end(&mut status))
        .map_err(proc("task/status"))?;
        numbers.push((tid, confined(tid, &String::from_utf8_lossy(&status))?));
    }
    Ok(numbers)
}

/// Whether a thread's status says what it must; gives its number in its namespace.
fn confined(tid: i32, status: &str) -> Result<i32, Unsafe> {
    let (mut inside, mut values) = ("missing", ["missing"; MUST.len()]);
    // Of a field that is there twice the last counts: the program's name, which is its own choice, comes first.
    for (name, value) in status.lines().filter_map(|line| line.split_once(':')) {
        if let Some(index) = MUST.iter().position(|(field, _)| *field == name) {
            values[index] = value.trim();
        } else if name == NUMBERS {
            inside = value.trim();
        }
    }
    let bad = |field, value: &str| Unsafe::Thread {
        tid,
        field,
        value: value.to_owned(),
    };
    for ((field, must), value) in MUST.iter().zip(values) {
        if value != *must {
            return Err(bad(field, value));
        }
    }
    let number = inside.split_whitespace().next_back();
    number
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| bad(NUMBERS, inside))
}

/// Looks at a stopped body, whose threads [`threads`] has looked at after they got their filter.
///
/// # Errors
/// The first thing wrong with it.
pub fn body(body: &Body, image: &ProcessImage, numbers: &[(i32, i32)]) -> Result<(), Unsafe> {
    let pid = body.pid;
    let proc = |file| move |error| Unsafe::Proc { pid, file, error };
    let mut found = freeze::threads(pid).map_err(proc("task"))?;
    let mut wanted = body.tids.clone();
    found.sort_unstable();
    wanted.sort_unstable();
    let looked_at: HashMap<i32, i32> = numbers.iter().copied().collect();
    if found != wanted || wanted.len() != image.threads.len() || wanted.len() != looked_at.len() {
        return Err(Unsafe::Threads {
            pid,
            found: found.len(),
            wanted: image.threads.len(),
        });
    }
    for (tid, thread) in body.tids.iter().zip(&image.threads) {
        let number = looked_at.get(tid);
        if number != Some(&thread.tid.0) {
            return Err(Unsafe::Thread {
                tid: *tid,
                field: NUMBERS,
                value: number.map_or_else(|| "not looked at".to_owned(), ToString::to_string),
            });
        }
    }
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .map_err(proc("fd"))?
        .count();
    if descriptors > 0 {
        return Err(Unsafe::Descriptors {
            pid,
            count: descriptors,
        });
    }
    let present = maps::read(pid).map_err(proc("maps"))?;
    match present.iter().find(|mapping| !planned(mapping, body, image)) {
        Some(mapping) => Err(Unsafe::Memory {
            pid,
            start: mapping.start,
        }),
        None => Ok(()),
    }
}

fn planned(mapping: &Mapping, body: &Body, image: &ProcessImage) -> bool {
    let within = |start: u64, length: u64| mapping.start >= start && mapping.end <= start + length;
    if within(WINDOW, TEXT_ROOM) {
        return mapping.prot & 2 == 0;
    }
    if mapping.shared {
        return within(SHARED, SHARED_SIZE);
    }
    if mapping.special() {
        let known = |node: &Mapping| node.start == mapping.start && node.end == mapping.end;
        return mapping.name == "[vsyscall]" || body.node.iter().any(known);
    }
    // A stack may have grown while its pages were written.
    let grows = image
        .vmas
        .iter()
        .find(|vma| vma.end == mapping.end && vma.flags & VmaFlags::GROWS_DOWN != 0);
    grows.is_some() || super::check::covered(&image.vmas, mapping.start, mapping.end - mapping.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Name:\tSeccomp:2\nNSpid:\t4711\t17\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n\
        CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n\
        Seccomp_filters:\t1\n";

    #[test]
    fn every_field_counts() {
        assert_eq!(confined(4711, GOOD).ok(), Some(17));
        for (field, must) in MUST {
            let line = format!("\n{field}:\t{must}");
            assert!(confined(4711, &GOOD.replace(&line, "")).is_err(), "{field} missing");
            assert!(
                confined(4711, &GOOD.replace(&line, &format!("\n{field}:\t7"))).is_err(),
                "{field}"
            );
        }
        assert!(confined(4711, &GOOD.replace("\nNSpid:\t4711\t17", "")).is_err());
    }
}
