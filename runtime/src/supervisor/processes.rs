//! The processes of a job: all descendants of its supervisor, found in /proc.
//!
//! A child subreaper keeps every descendant below it, daemons included, so the tree of parents is the job. fork and exit are not
//! trapped; reading every /proc/PID/stat once is cheaper than anything that would slow them down.

use super::shared::Shared;
use crate::process::stat::Stat;
use crate::reason::sharing::Groups;
use crate::reason::why_not;
use mosix_wire::ids::Pid;
use mosix_wire::job::{Place, Process, State, Why};
use std::collections::BTreeMap;
use std::io;

/// All descendants of `ancestor` in ascending order of pids, without it.
///
/// # Errors
/// When /proc cannot be listed.
pub fn descendants(ancestor: i32) -> io::Result<Vec<Stat>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        // One that ended meanwhile is no descendant any more.
        if let Ok(stat) = Stat::read(pid) {
            all.insert(pid, stat);
        }
    }
    let mut below: BTreeMap<i32, bool> = BTreeMap::from([(ancestor, true), (0, false), (1, ancestor == 1)]);
    for start in all.keys().copied() {
        let mut path = Vec::new();
        let mut pid = start;
        let answer = loop {
            if let Some(known) = below.get(&pid) {
                break *known;
            }
            path.push(pid);
            match all.get(&pid) {
                // A parent that was reused while we read could close a circle.
                Some(stat) if path.len() <= all.len() => pid = stat.parent,
                _ => break false,
            }
        };
        below.extend(path.into_iter().map(|p| (p, answer)));
    }
    Ok(all
        .into_values()
        .filter(|s| s.pid != ancestor && below.get(&s.pid) == Some(&true))
        .collect())
}

/// Whether `pid` is a descendant of `ancestor`.
pub fn is_descendant(pid: i32, ancestor: i32) -> bool {
    let mut at = pid;
    // Deeper trees do not exist: pid_max is 2^22, and real ones have a few dozen levels.
    for _ in 0..4096 {
        match Stat::read(at) {
            Ok(stat) if stat.parent == ancestor => return true,
            Ok(stat) if stat.parent > 1 => at = stat.parent,
            _ => return false,
        }
    }
    false
}

/// Why a process cannot leave home, as far as /proc shows it. None for one whose body is away, which has left. `groups`: those of the job, where
/// they are known already.
pub fn cannot_leave(shared: &Shared, pid: i32, groups: Option<&Groups>) -> Option<Why> {
    if shared.placement(pid).place != Place::Home {
        return None;
    }
    let found;
    let groups = match groups {
        Some(groups) => groups,
        None => {
            found = groups_of(shared);
            &found
        }
    };
    why_not(pid, shared.own_filters(), shared.supervisor(), groups)
}

/// Which processes of the job share memory.
pub fn groups_of(shared: &Shared) -> Groups {
    let all = descendants(shared.supervisor()).unwrap_or_default();
    Groups::of(&all.iter().map(|stat| stat.pid).collect::<Vec<_>>())
}

/// Lists the job for `mosix ps`.
///
/// # Errors
/// When /proc cannot be listed.
pub fn list(shared: &Shared) -> io::Result<Vec<Process>> {
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    let all = descendants(shared.supervisor())?;
    let groups = Groups::of(&all.iter().map(|stat| stat.pid).collect::<Vec<_>>());
    let rows = all.into_iter().map(|stat| {
        let placement = shared.placement(stat.pid);
        let stuck = placement
            .stuck
            .clone()
            .or_else(|| cannot_leave(shared, stat.pid, Some(&groups)));
        let state = match stat.state {
            _ if placement.moving => State::Moving,
            _ if placement.waiting => State::Waiting,
            'R' => State::Running,
            // The deputy waits for its body.
            'S' if placement.usage.running => State::Running,
            'D' => State::Blocked,
            'T' | 't' => State::Stopped,
            'Z' | 'X' => State::Zombie,
            _ => State::Sleeping,
        };
        Process {
            pid: Pid(stat.pid),
            parent: Pid(stat.parent),
            program: program(shared, &stat),
            threads: placement.usage.threads.max(stat.threads),
            memory: stat.resident.saturating_mul(page).max(placement.usage.resident),
            cpu_ns: stat
                .ticks()
                .saturating_mul(tick_ns)
                .saturating_add(placement.usage.cpu_ns),
            state,
            place: placement.place,
            moves: placement.moves,
            stuck,
            group: groups.group(stat.pid).map(Pid),
        }
    });
    Ok(rows.collect())
}

/// The program's name. The kernel keeps 15 bytes of it; what was executed last says the rest, if it is the same.
fn program(shared: &Shared, stat: &Stat) -> String {
    match shared.last_executed(stat.pid) {
        Some(name) if name.len() > stat.comm.len() && name.starts_with(&stat.comm) => name,
        _ => stat.comm.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_a_descendant_and_its_parent_is_not() {
        let mut child = std::process::Command::new("sleep").arg("20").spawn().unwrap();
        let me = std::process::id().cast_signed();
        let pid = child.id().cast_signed();
        assert!(descendants(me).unwrap().iter().any(|s| s.pid == pid));
        assert!(is_descendant(pid, me));
        let parent = std::os::unix::process::parent_id().cast_signed();
        assert!(!descendants(me).unwrap().iter().any(|s| s.pid == parent || s.pid == me));
        assert!(!is_descendant(parent, me));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_descendant(pid, me));
    }
}
