//! /proc/PID/stat, as far as it is needed here, in one read.
//!
//! `procfs` parses the whole file and stats the folder first; a job of thousands of processes is listed by reading every
//! process of the machine once, so this stays small. See proc_pid_stat(5).

use nix::time::{ClockId, clock_gettime};
use std::io;

/// Selected fields.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stat {
    /// Process id.
    pub pid: i32,
    /// Name of the program, at most 15 bytes.
    pub comm: String,
    /// State letter.
    pub state: char,
    /// Parent.
    pub parent: i32,
    /// Process group.
    pub group: i32,
    /// Session.
    pub session: i32,
    /// PF_ flags of linux/sched.h.
    pub flags: u32,
    /// Page faults that needed no I/O, without children.
    pub minor_faults: u64,
    /// Those that did.
    pub major_faults: u64,
    /// User time in clock ticks, without children.
    pub user: u64,
    /// System time likewise.
    pub system: u64,
    /// Threads.
    pub threads: u32,
    /// Start after boot in clock ticks: with the pid, names a process for good.
    pub start: u64,
    /// Resident pages.
    pub resident: u64,
    /// Where the stack of its first thread begins; 0 when it may not be looked at.
    pub stack: u64,
}

impl Stat {
    /// Reads it.
    ///
    /// # Errors
    /// `NotFound` when there is no such process; `InvalidData` when the kernel's text is not understood.
    pub fn read(pid: i32) -> io::Result<Self> {
        Self::read_from(&format!("/proc/{pid}/stat"))
    }

    /// Reads that of thread `tid` of process `pid`: times and faults are its own.
    ///
    /// # Errors
    /// As [`Stat::read`].
    pub fn of_thread(pid: i32, tid: i32) -> io::Result<Self> {
        Self::read_from(&format!("/proc/{pid}/task/{tid}/stat"))
    }

    fn read_from(path: &str) -> io::Result<Self> {
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, format!("{path} has an unknown form"));
        Self::parse(&std::fs::read(path)?).ok_or_else(unknown)
    }

    /// Parses the text of the file.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|&b| b == b'(')?;
        let close = end_of_name(text)?;
        let pid = std::str::from_utf8(text.get(..open)?).ok()?.trim().parse().ok()?;
        let comm = String::from_utf8_lossy(text.get(open + 1..close)?).into_owned();
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Field numbers of the manual start at 3 here.
        let number = |n: usize| fields.get(n - 3).and_then(|f| f.parse::<i64>().ok());
        Some(Self {
            pid,
            comm,
            state: fields.first()?.chars().next()?,
            parent: i32::try_from(number(4)?).ok()?,
            group: i32::try_from(number(5)?).ok()?,
            session: i32::try_from(number(6)?).ok()?,
            flags: number(9)?.try_into().ok()?,
            minor_faults: number(10)?.try_into().ok()?,
            major_faults: number(12)?.try_into().ok()?,
            user: number(14)?.try_into().ok()?,
            system: number(15)?.try_into().ok()?,
            threads: number(20)?.try_into().ok()?,
            start: number(22)?.try_into().ok()?,
            resident: number(24)?.try_into().ok()?,
            stack: fields.get(28 - 3).and_then(|f| f.parse().ok()).unwrap_or(0),
        })
    }

    /// User and system time in clock ticks, without children.
    pub fn ticks(&self) -> u64 {
        self.user.saturating_add(self.system)
    }

    /// Whether it is dead, reaped or not.
    pub fn is_dead(&self) -> bool {
        is_dead(self.state)
    }
}

/// The state letter of thread `tid` of process `pid` alone, for paths on which a program stands still; `None` when there is no such thread.
pub fn state(pid: i32, tid: i32) -> Option<char> {
    let text = std::fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    let after = text.get(end_of_name(&text)? + 1..)?;
    after
        .iter()
        .find(|byte| !byte.is_ascii_whitespace())
        .copied()
        .map(char::from)
}

/// CPU time in nanoseconds of a process and all threads that it has had.
pub fn cpu_ns(pid: i32) -> Option<u64> {
    let clock = ClockId::pid_cpu_clock_id(nix::unistd::Pid::from_raw(pid)).ok()?;
    let time = clock_gettime(clock).ok()?;
    u64::try_from(std::time::Duration::from(time).as_nanos()).ok()
}

/// Whether a state letter is that of a zombie or of a task that is being reaped.
pub fn is_dead(state: char) -> bool {
    matches!(state, 'Z' | 'X' | 'x')
}

/// Where the closing bracket of the name is. The name may hold anything, brackets and newlines too: it ends at the last one.
fn end_of_name(text: &[u8]) -> Option<usize> {
    text.iter().rposition(|&b| b == b')')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_found_in_it() {
        let me = Stat::read(std::process::id().cast_signed()).unwrap();
        assert_eq!(me.parent, std::os::unix::process::parent_id().cast_signed());
        assert!(me.threads >= 1 && me.resident > 0 && !me.is_dead());
        assert!(state(me.pid, me.pid).is_some_and(|state| !is_dead(state)));
        assert!(state(me.pid, 0).is_none());
        assert!(cpu_ns(me.pid).is_some_and(|ns| ns > 0) && cpu_ns((1 << 22) + 1).is_none());
    }

    #[test]
    fn names_with_brackets_and_spaces_do_not_confuse() {
        let line = b"7 (a) R 1 (\n) S 1 2 3 0 -1 4194304 1 0 0 0 11 22 0 0 20 0 5 0 99 1000 77 18446744073709551615";
        let s = Stat::parse(line).unwrap();
        assert_eq!((s.pid, s.comm.as_str(), s.state, s.parent), (7, "a) R 1 (\n", 'S', 1));
        assert_eq!(
            (s.group, s.session, s.flags, s.ticks(), s.threads, s.start, s.resident),
            (2, 3, 4194304, 33, 5, 99, 77)
        );
    }

    #[test]
    fn what_is_cut_is_refused() {
        assert!(Stat::parse(b"12 (cut) S 1").is_none());
        assert!(Stat::parse(b"").is_none());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = Stat::parse(&bytes);
        }
    }
}
