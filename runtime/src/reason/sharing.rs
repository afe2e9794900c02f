//! Which processes of a job share memory: groups, found in /proc at the moment of asking.
//!
//! Two processes belong together when both map the same object shared and one of them may write to it: anonymous memory that both inherited, a
//! memfd, System V or POSIX shared memory, a file. An object is known by device and inode. They belong together as well when they have one
//! memory (vfork, CLONE_VM), which kcmp(2) tells.

use crate::process::maps::{self, Mapping};
use crate::process::stat::Stat;
use mosix_loader::script::abi::{WINDOW, WINDOW_END};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Device and inode of what is mapped.
type Object = (u64, u64);

/// What a process maps, as far as others may see it.
#[derive(Debug, Default)]
struct Shares {
    objects: Vec<Object>,
    twice: Option<String>,
    /// Memory that any process may attach by a name or a descriptor.
    open: Option<String>,
}

/// Most processes of one ancestor that another one is compared with, the latest first: who shares all memory is closely related.
const COMPARED: usize = 64;

/// Who maps an object.
#[derive(Debug, Default)]
struct Mappers {
    pids: Vec<i32>,
    written: bool,
    name: String,
}

/// The groups of a job.
#[derive(Debug, Default)]
pub struct Groups {
    /// A member's group is named by its lowest pid.
    leaders: BTreeMap<i32, i32>,
    shares: BTreeMap<i32, Shares>,
    objects: BTreeMap<Object, Mappers>,
    /// Processes that have one memory with another.
    one_memory: BTreeMap<i32, i32>,
}

impl Groups {
    /// Looks at these processes. What cannot be read shares nothing that can be seen.
    pub fn of(pids: &[i32]) -> Self {
        let mut groups = Self::default();
        for pid in pids {
            if let Ok(mappings) = maps::read(*pid) {
                groups.add(*pid, &mappings);
            }
        }
        groups.memories(pids);
        groups.join();
        groups
    }

    fn add(&mut self, pid: i32, mappings: &[Mapping]) {
        let mut shares = Shares::default();
        let shared: Vec<&Mapping> = mappings.iter().filter(|m| counts(m)).collect();
        for mapping in &shared {
            let object = (mapping.device, mapping.inode);
            let mappers = self.objects.entry(object).or_default();
            mappers.written |= writes(mapping);
            if mappers.pids.last() != Some(&pid) {
                mappers.pids.push(pid);
                mappers.name.clone_from(&mapping.name);
                shares.objects.push(object);
            }
            if writes(mapping) && attachable(&mapping.name) {
                shares.open.get_or_insert_with(|| mapping.name.clone());
            }
        }
        shares.twice = twice(&shared).map(|mapping| mapping.name.clone());
        self.shares.insert(pid, shares);
    }

    /// Finds processes with one memory. Their stacks begin at one address; so do those of children of fork, and kcmp tells them apart.
    fn memories(&mut self, pids: &[i32]) {
        let mut alike: BTreeMap<u64, Vec<i32>> = BTreeMap::new();
        for stat in pids.iter().filter_map(|pid| Stat::read(*pid).ok()) {
            if stat.is_dead() || stat.stack == 0 {
                continue;
            }
            let seen = alike.entry(stat.stack).or_default();
            let same = |other: &&i32| mosix_sys::kcmp::memory(**other, stat.pid) == Ok(Ordering::Equal);
            match seen.iter().rev().take(COMPARED).find(same) {
                Some(twin) => {
                    self.one_memory.insert(stat.pid, *twin);
                    self.one_memory.entry(*twin).or_insert(stat.pid);
                }
                None => seen.push(stat.pid),
            }
        }
    }

    fn join(&mut self) {
        let mut joined: Vec<Vec<i32>> = self
            .objects
            .values()
            .filter(|mappers| mappers.written && mappers.pids.len() > 1)
            .map(|mappers| mappers.pids.clone())
            .collect();
        joined.extend(self.one_memory.iter().map(|(a, b)| vec![*a, *b]));
        for pids in joined {
            let leaders: Vec<i32> = pids.iter().map(|pid| self.leader(*pid)).collect();
            let Some(first) = leaders.iter().min().copied() else {
                continue;
            };
            for leader in leaders {
                self.leaders.insert(leader, first);
            }
            for pid in pids {
                self.leaders.insert(pid, first);
            }
        }
        // Every member names its leader itself.
        let members: Vec<i32> = self.leaders.keys().copied().collect();
        for pid in members {
            let leader = self.leader(pid);
            self.leaders.insert(pid, leader);
        }
    }

    fn leader(&self, pid: i32) -> i32 {
        let mut at = pid;
        // A leader has a lower pid than who names it: this ends.
        while let Some(next) = self.leaders.get(&at).filter(|next| **next < at) {
            at = *next;
        }
        at
    }

    /// The name of the group that `pid` belongs to: its lowest pid.
    pub fn group(&self, pid: i32) -> Option<i32> {
        self.leaders.get(&pid).copied()
    }

    /// The other members of `pid`'s group.
    pub fn others(&self, pid: i32) -> Vec<i32> {
        let Some(group) = self.group(pid) else {
            return Vec::new();
        };
        let members = self.leaders.iter().filter(|(_, leader)| **leader == group);
        members
            .map(|(member, _)| *member)
            .filter(|member| *member != pid)
            .collect()
    }

    /// A process that has one memory with `pid`.
    pub fn twin(&self, pid: i32) -> Option<i32> {
        self.one_memory.get(&pid).copied()
    }

    /// What `pid` shares with the others of its group, by name.
    pub fn shared(&self, pid: i32) -> Option<&str> {
        let shares = self.shares.get(&pid)?;
        let common = shares.objects.iter().filter_map(|object| self.objects.get(object));
        let mut common = common.filter(|mappers| mappers.written && mappers.pids.len() > 1);
        common.next().map(|mappers| mappers.name.as_str())
    }

    /// An object that `pid` maps at two places.
    pub fn twice(&self, pid: i32) -> Option<&str> {
        self.shares.get(&pid)?.twice.as_deref()
    }

    /// Memory of `pid` that others may attach at any time.
    pub fn open(&self, pid: i32) -> Option<&str> {
        self.shares.get(&pid)?.open.as_deref()
    }
}

/// Whether others can see what is written there. The window has an object of its own in each process.
fn counts(mapping: &Mapping) -> bool {
    mapping.shared && mapping.inode != 0 && (mapping.end <= WINDOW || mapping.start >= WINDOW_END)
}

fn writes(mapping: &Mapping) -> bool {
    mapping.prot & libc::PROT_WRITE as u8 != 0
}

/// Memory by a descriptor or a key, which exists to be shared.
fn attachable(name: &str) -> bool {
    name.starts_with("/memfd:") || name.starts_with("/SYSV") || name.starts_with("/dev/shm/")
}

/// A mapping that shows bytes which another one, or a writer, shows as well.
fn twice<'a>(shared: &[&'a Mapping]) -> Option<&'a Mapping> {
    let mut by_object: BTreeMap<Object, Vec<&'a Mapping>> = BTreeMap::new();
    for mapping in shared {
        by_object
            .entry((mapping.device, mapping.inode))
            .or_default()
            .push(mapping);
    }
    by_object.into_values().find_map(|mut of_one| {
        of_one.sort_by_key(|mapping| mapping.offset);
        let overlaps = |pair: &[&'a Mapping]| pair[1].offset < pair[0].offset + pair[0].len();
        let found = of_one.windows(2).find(|pair| overlaps(pair))?[0];
        of_one.iter().any(|mapping| writes(mapping)).then_some(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(inode: u64, offset: u64, prot: u8, name: &str) -> Mapping {
        Mapping {
            start: 0x10_0000 + offset,
            end: 0x10_0000 + offset + 0x2000,
            prot,
            shared: true,
            offset,
            device: 1,
            inode,
            name: name.to_owned(),
            flags: Vec::new(),
        }
    }

    fn groups(of: &[(i32, Vec<Mapping>)]) -> Groups {
        let mut groups = Groups::default();
        for (pid, mappings) in of {
            groups.add(*pid, mappings);
        }
        groups.join();
        groups
    }

    #[test]
    fn writers_and_their_readers_are_one_group() {
        let found = groups(&[
            (10, vec![mapping(1, 0, 3, "/dev/zero (deleted)")]),
            (
                11,
                vec![
                    mapping(1, 0, 1, "/dev/zero (deleted)"),
                    mapping(2, 0, 3, "/memfd:x (deleted)"),
                ],
            ),
            (12, vec![mapping(2, 0, 3, "/memfd:x (deleted)")]),
            // Everybody reads, nobody writes.
            (13, vec![mapping(3, 0, 1, "/usr/lib/gconv.cache")]),
            (14, vec![mapping(3, 0, 1, "/usr/lib/gconv.cache")]),
        ]);
        assert_eq!(
            [10, 11, 12, 13].map(|pid| found.group(pid)),
            [Some(10), Some(10), Some(10), None]
        );
        assert_eq!(found.others(11), [10, 12]);
        assert_eq!(found.shared(12), Some("/memfd:x (deleted)"));
        assert_eq!((found.open(10), found.open(12)), (None, Some("/memfd:x (deleted)")));
    }

    #[test]
    fn groups_that_meet_late_become_one() {
        let found = groups(&[
            (5, vec![mapping(9, 0, 3, "a"), mapping(7, 0, 3, "c")]),
            (6, vec![mapping(8, 0, 3, "b")]),
            (7, vec![mapping(8, 0, 3, "b"), mapping(9, 0, 3, "a")]),
            (8, vec![mapping(7, 0, 3, "c")]),
        ]);
        assert_eq!([5, 6, 7, 8].map(|pid| found.group(pid)), [Some(5); 4]);
    }

    #[test]
    fn pieces_of_one_object_are_no_double() {
        let pieces = [mapping(1, 0, 3, "f"), mapping(1, 0x2000, 3, "f")];
        assert!(groups(&[(1, pieces.to_vec())]).twice(1).is_none());
        let readers = [mapping(1, 0, 1, "f"), mapping(1, 0x1000, 1, "f")];
        assert!(groups(&[(1, readers.to_vec())]).twice(1).is_none());
        let double = [mapping(1, 0, 3, "f"), mapping(1, 0x1000, 1, "f")];
        assert_eq!(groups(&[(1, double.to_vec())]).twice(1), Some("f"));
    }

    #[test]
    fn a_child_of_fork_has_its_own_memory() {
        let mut child = std::process::Command::new("sleep").arg("20").spawn().unwrap();
        let (me, pid) = (std::process::id().cast_signed(), child.id().cast_signed());
        let found = Groups::of(&[me, pid]);
        assert_eq!((found.twin(me), found.group(pid)), (None, None));
        assert_eq!(mosix_sys::kcmp::memory(pid, pid), Ok(Ordering::Equal));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
