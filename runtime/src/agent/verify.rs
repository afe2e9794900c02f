//! The last look from outside before home may let a body run: is it as confined as it must be?
//!
//! The image came from elsewhere and the scripts ran inside the process, so nothing of the building is believed here: the kernel
//! is asked. Whatever cannot be read counts as wrong.

use crate::process::freeze;
use crate::process::maps::{self, Mapping};
use crate::process::materialise::Body;
use mosix_loader::script::abi::{SHARED, SHARED_SIZE, TEXT_ROOM, WINDOW};
use mosix_wire::image::{ProcessImage, VmaFlags};
use std::io;

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
    ("Seccomp:", "2"),
    ("NoNewPrivs:", "1"),
    ("CapInh:", "0000000000000000"),
    ("CapPrm:", "0000000000000000"),
    ("CapEff:", "0000000000000000"),
    ("CapBnd:", "0000000000000000"),
    ("CapAmb:", "0000000000000000"),
];

/// Looks at a stopped body.
///
/// # Errors
/// The first thing wrong with it.
pub fn body(body: &Body, image: &ProcessImage) -> Result<(), Unsafe> {
    let pid = body.pid;
    let proc = |file| move |error| Unsafe::Proc { pid, file, error };
    let mut found = freeze::threads(pid).map_err(proc("task"))?;
    let mut wanted = body.tids.clone();
    found.sort_unstable();
    wanted.sort_unstable();
    if found != wanted || wanted.len() != image.threads.len() {
        return Err(Unsafe::Threads {
            pid,
            found: found.len(),
            wanted: image.threads.len(),
        });
    }
    for tid in found {
        let status = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).map_err(proc("task/status"))?;
        for (field, must) in MUST {
            let value = status
                .lines()
                .find_map(|line| line.strip_prefix(field))
                .unwrap_or("missing")
                .trim();
            if value != must {
                return Err(Unsafe::Thread {
                    tid,
                    field,
                    value: value.to_owned(),
                });
            }
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
