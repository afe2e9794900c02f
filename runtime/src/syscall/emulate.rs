//! Answers that follow from the arguments alone.

use super::table::{WINDOW_END, WINDOW_START};

/// What the agent does with a memory call that the filter reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// The host's kernel may execute it: all its arguments are in registers and it cannot touch the window.
    Continue,
    /// It fails with this errno.
    Errno(i32),
    /// It maps a file privately, or shared to be read; the file is home's.
    File,
    /// It needs the home node; why.
    Return(&'static str),
}

/// Whether `[addr, addr + len)`, rounded to pages, touches the window. A range that wraps touches everything.
pub fn touches_window(addr: u64, len: u64) -> bool {
    let start = addr & !0xfff;
    let Some(end) = addr.checked_add(len).and_then(|end| end.checked_add(0xfff)) else {
        return true;
    };
    start < WINDOW_END && (end & !0xfff) > WINDOW_START
}

/// Judges a memory call that the filter's single comparisons could not pass. The window behaves like a sealed mapping:
/// a call that would change it fails with EPERM.
pub fn memory(nr: u32, args: &[u64; 6]) -> Memory {
    let &[addr, len, third, flags, new_addr, _] = args;
    let window = Memory::Errno(libc::EPERM);
    match i64::from(nr) {
        libc::SYS_mmap => {
            let anonymous = flags & libc::MAP_ANONYMOUS as u64 != 0;
            // Shared and to be read: as good as a copy, when nobody can make it writable, which home knows.
            let read = !anonymous && third & libc::PROT_WRITE as u64 == 0 && matches!(flags & 0xf, 1 | 3);
            if flags & 0xf != libc::MAP_PRIVATE as u64 && !read {
                return Memory::Return(if anonymous {
                    "maps shared memory"
                } else {
                    "maps a file shared"
                });
            }
            if flags & (libc::MAP_LOCKED | libc::MAP_HUGETLB) as u64 != 0 {
                return Memory::Return("maps locked or huge pages");
            }
            if flags & libc::MAP_GROWSDOWN as u64 != 0 {
                return Memory::Return("maps memory that grows");
            }
            if flags & libc::MAP_FIXED as u64 != 0 && touches_window(addr, len) {
                window
            } else if anonymous {
                Memory::Continue
            } else {
                Memory::File
            }
        }
        libc::SYS_munmap | libc::SYS_mprotect => {
            if touches_window(addr, len) {
                window
            } else {
                Memory::Continue
            }
        }
        libc::SYS_mremap => {
            let fixed = flags & 2 != 0;
            if touches_window(addr, len) || (fixed && touches_window(new_addr, third)) {
                return window;
            }
            Memory::Continue
        }
        libc::SYS_madvise => {
            if touches_window(addr, len) {
                return window;
            }
            // 0 to 4, 8 (FREE), 10, 11 (fork), 14 to 21: what the table calls native; other numbers the kernel does not
            // know at all fail the same way everywhere.
            match third as u32 {
                0..=4 | 8 | 10 | 11 | 14..=21 => Memory::Continue,
                _ => Memory::Return("advice that reaches beyond anonymous memory"),
            }
        }
        _ => Memory::Return("not in place yet"),
    }
}

/// A CPU clock of the caller itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuClock {
    /// CLOCK_PROCESS_CPUTIME_ID and its numeric forms.
    Process,
    /// CLOCK_THREAD_CPUTIME_ID and its numeric forms.
    Thread,
    /// The CPU clock of another thread of the job, by thread id; `true` for a whole process.
    Other(i32, bool),
}

/// Reads a clock id: `None` when it is no CPU clock.
///
/// The kernel encodes CPU clocks of a task as `!pid << 3 | thread << 2 | which` with `which` below 3; 3 is a descriptor.
pub fn cpu_clock(id: u64, pid: i32, tid: i32) -> Option<CpuClock> {
    match id as i32 {
        2 => Some(CpuClock::Process),
        3 => Some(CpuClock::Thread),
        id if id < 0 && id & 3 != 3 => {
            let (task, thread) = (!(id >> 3), id & 4 != 0);
            Some(match (task, thread) {
                (0, false) => CpuClock::Process,
                (0, true) => CpuClock::Thread,
                (n, false) if n == pid => CpuClock::Process,
                (n, true) if n == tid => CpuClock::Thread,
                (n, thread) => CpuClock::Other(n, !thread),
            })
        }
        _ => None,
    }
}

/// Leaves of /proc/PID that are the memory or the CPU state of the process: they must be used where the body is. Those that only describe it
/// are put together at home, see [`crate::deputy::procfile`].
const OWN: &[&[u8]] = &[
    b"numa_maps",
    b"map_files",
    b"mem",
    b"pagemap",
    b"clear_refs",
    b"stack",
    b"syscall",
    b"wchan",
    b"sched",
    b"schedstat",
];

/// Whether `path` names, by its letters, a file in /proc that is the calling process's own memory, or its state.
///
/// Links to it, and paths relative to a descriptor or a cwd inside /proc, are not seen here.
pub fn own_memory_path(path: &[u8], pid: i32, tid: i32) -> bool {
    let mut parts = path
        .split(|&b| b == b'/')
        .filter(|part| !part.is_empty() && *part != b".");
    if !path.starts_with(b"/") || parts.next() != Some(b"proc".as_slice()) {
        return false;
    }
    let own = |name: &[u8]| {
        name == b"self"
            || name == b"thread-self"
            || std::str::from_utf8(name).is_ok_and(|n| n.parse() == Ok(pid) || n.parse() == Ok(tid))
    };
    let Some(first) = parts.next() else { return false };
    if !own(first) {
        return false;
    }
    match parts.next() {
        Some(b"task") => {
            let _thread = parts.next();
            parts.next().is_some_and(|leaf| OWN.contains(&leaf))
        }
        Some(leaf) => OWN.contains(&leaf),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_is_sealed_and_its_neighbours_are_not() {
        assert_eq!(
            memory(11, &[WINDOW_START - 4096, 8192, 0, 0, 0, 0]),
            Memory::Errno(libc::EPERM)
        );
        assert_eq!(memory(11, &[WINDOW_START - 4096, 4096, 0, 0, 0, 0]), Memory::Continue);
        assert_eq!(
            memory(11, &[WINDOW_START - 4096, 4097, 0, 0, 0, 0]),
            Memory::Errno(libc::EPERM)
        );
        assert_eq!(memory(11, &[WINDOW_END, 4096, 0, 0, 0, 0]), Memory::Continue);
        assert_eq!(memory(10, &[0x1000, u64::MAX, 0, 0, 0, 0]), Memory::Errno(libc::EPERM));
        assert_eq!(
            memory(25, &[0x1000, 4096, 8192, 3, WINDOW_START, 0]),
            Memory::Errno(libc::EPERM)
        );
        assert_eq!(
            memory(9, &[WINDOW_START, 4096, 3, 0x32, 0, 0]),
            Memory::Errno(libc::EPERM)
        );
        assert_eq!(memory(9, &[WINDOW_START, 4096, 3, 0x02, 3, 0]), Memory::File);
        assert_eq!(memory(9, &[0, 4096, 1, 0x01, 3, 0]), Memory::File);
        assert!(matches!(memory(9, &[0, 4096, 3, 0x01, 3, 0]), Memory::Return(_)));
        assert!(matches!(memory(9, &[0, 4096, 1, 0x21, 0, 0]), Memory::Return(_)));
    }

    #[test]
    fn cpu_clocks_are_told_from_others() {
        assert_eq!(cpu_clock(0, 10, 11), None);
        assert_eq!(cpu_clock(2, 10, 11), Some(CpuClock::Process));
        assert_eq!(cpu_clock(3, 10, 11), Some(CpuClock::Thread));
        // pthread_getcpuclockid of thread 11, clock_getcpuclockid of process 10, of process 99, and a PTP descriptor 4.
        assert_eq!(
            cpu_clock(((!11i32) << 3 | 6) as u32 as u64, 10, 11),
            Some(CpuClock::Thread)
        );
        assert_eq!(
            cpu_clock(((!10i32) << 3 | 2) as u32 as u64, 10, 11),
            Some(CpuClock::Process)
        );
        assert_eq!(
            cpu_clock(((!99i32) << 3 | 2) as u32 as u64, 10, 11),
            Some(CpuClock::Other(99, true))
        );
        assert_eq!(cpu_clock(((!4i32) << 3 | 3) as u32 as u64, 10, 11), None);
    }

    #[test]
    fn own_proc_files_are_known() {
        for path in [
            "/proc/self/mem",
            "//proc/./self//pagemap",
            "/proc/10/numa_maps",
            "/proc/self/task/11/wchan",
        ] {
            assert!(own_memory_path(path.as_bytes(), 10, 11), "{path}");
        }
        for path in [
            "/proc/self/fd/3",
            "/proc/self/maps",
            "/proc/9/mem",
            "/proc/meminfo",
            "proc/self/mem",
            "/tmp/mem",
            "/proc/self",
        ] {
            assert!(!own_memory_path(path.as_bytes(), 10, 11), "{path}");
        }
    }
}
