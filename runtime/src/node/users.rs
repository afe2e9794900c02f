//! Which user the bodies of a job have on this node: one that nobody else has.
//!
//! Only root can give processes another user. The numbers in use are taken from the kernel, not from a list: so agents that an earlier
//! daemon started count, and those of another daemon on the machine.

use mosix_wire::ids::JobId;
use std::collections::HashSet;
use std::ops::RangeInclusive;

/// A user for the bodies of a job; `None` when this daemon has none to give: they are its own user's then.
pub fn for_job(range: Option<&RangeInclusive<u32>>, job: JobId) -> Option<u32> {
    let range = range?;
    let may = |capability| caps::has_cap(None, caps::CapSet::Effective, capability).unwrap_or(false);
    let privileged = rustix::process::geteuid().is_root()
        && may(caps::Capability::CAP_SETUID)
        && may(caps::Capability::CAP_SETGID)
        && may(caps::Capability::CAP_SYS_ADMIN);
    if !privileged || !["uid_map", "gid_map"].into_iter().all(|map| is_mapped(map, range)) {
        return None;
    }
    let used = used();
    let count = u64::from(range.end() - range.start()) + 1;
    (0..count)
        .map(|step| range.start() + u32::try_from((job.0 % count + step) % count).unwrap_or(0))
        .find(|uid| !used.contains(uid))
}

/// Whether the whole range exists in this process's user namespace.
fn is_mapped(map: &str, range: &RangeInclusive<u32>) -> bool {
    let text = std::fs::read_to_string(format!("/proc/self/{map}")).unwrap_or_default();
    covers(&text, range)
}

fn covers(map: &str, range: &RangeInclusive<u32>) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        matches!(numbers[..], [inside, _, count] if inside <= u64::from(*range.start()) && u64::from(*range.end()) < inside + count)
    })
}

/// Users that processes of this machine have.
fn used() -> HashSet<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return HashSet::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .first()
                .is_some_and(u8::is_ascii_digit)
        })
        .filter_map(|entry| {
            // Not the folder's owner: it is root for processes that may not be looked into.
            let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
            line.split_whitespace().next()?.parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_must_exist_here() {
        assert!(covers(
            "         0          0 4294967295\n",
            &(1_900_000_000..=1_900_065_535)
        ));
        assert!(!covers("0 1000 1\n1 100000 65536\n", &(1_900_000_000..=1_900_065_535)));
        assert!(covers("0 1000 1\n1 100000 200000\n", &(100_000..=150_000)));
        assert!(!covers("", &(100_000..=150_000)));
    }

    #[test]
    fn users_in_use_are_seen() {
        assert!(used().contains(&rustix::process::getuid().as_raw()));
        assert_eq!(for_job(None, JobId(7)), None);
    }
}
