//! RLIMIT_CPU of a body: what is left of its process's limit, counted over all nodes. The host's kernel then does what home's would.
//!
//! A kernel takes limits in whole seconds: here each comes late by less than one.

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use std::io;

const SECOND: u64 = 1_000_000_000;

/// Limits a body whose process has `limit`, soft and hard in seconds, and used `elsewhere` nanoseconds on other nodes.
///
/// # Errors
/// Those of prlimit(2).
pub fn cpu(host: i32, (soft, hard): (u64, u64), elsewhere: u64) -> io::Result<()> {
    // Never more than this host gives anybody.
    let most = getrlimit(Resource::Cpu).maximum;
    let bounded = |limit: Option<u64>| limit.into_iter().chain(most).min();
    let limit = Rlimit {
        current: bounded(left(soft, elsewhere)),
        maximum: bounded(left(hard, elsewhere)),
    };
    prlimit(Pid::from_raw(host), Resource::Cpu, limit)?;
    Ok(())
}

/// What is left of a limit; none when it is infinite.
fn left(limit: u64, elsewhere: u64) -> Option<u64> {
    if limit == libc::RLIM_INFINITY {
        return None;
    }
    let left = limit.saturating_mul(SECOND).saturating_sub(elsewhere);
    // The kernel takes 0 for one second too.
    Some(left.div_ceil(SECOND).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_elsewhere_is_taken_off() {
        assert_eq!(left(5, 2 * SECOND), Some(3));
        assert_eq!(left(5, 2 * SECOND + 1), Some(3));
        assert_eq!(left(5, 9 * SECOND), Some(1));
        assert_eq!(left(libc::RLIM_INFINITY, 9 * SECOND), None);
        assert!(left(u64::MAX - 1, 1).is_some());
    }

    #[test]
    fn a_process_is_limited() {
        let mut child = std::process::Command::new("sleep").arg("9").spawn().unwrap();
        cpu(child.id().cast_signed(), (7, 9), 3 * SECOND).unwrap();
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max cpu time")).unwrap();
        assert_eq!(line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["4", "6"]);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
