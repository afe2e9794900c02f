//! Why a process cannot move: the fixed list, and a probe that reads /proc alone.
//!
//! The probe touches nothing of the process, so `mosix ps` may ask at any time. What only shows in the process itself (pkeys, shadow
//! stacks, an LDT) the engine finds at the first try and puts into [`super::shared::Placement::stuck`].

use crate::process::stat::Stat;
use mosix_loader::script::abi::{TEXT_ROOM, WINDOW};
use mosix_wire::job::Why;
use std::collections::BTreeMap;
use std::io::{self, Read};

/// A reason why a process cannot move.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Another tracer owns it.
    Traced {
        /// The tracer.
        by: i32,
    },
    /// It may not be looked at: prctl(PR_SET_DUMPABLE, 0), or a program without read permission.
    NotDumpable,
    /// It runs with another user's rights than its starter's.
    SetUid,
    /// It has a seccomp filter of its own.
    OwnFilter,
    /// It runs 32-bit or x32 code.
    ThirtyTwoBit,
    /// It waits for its vfork child to execute a program.
    Vfork,
    /// It shares writable memory with another process.
    SharedMemory {
        /// That process.
        with: i32,
    },
    /// It maps a device.
    Device {
        /// Path of the device.
        path: String,
    },
    /// The security module Yama forbids tracing.
    Yama {
        /// kernel.yama.ptrace_scope.
        scope: u8,
    },
    /// It has more threads than a window has slots.
    Threads {
        /// How many.
        count: u32,
    },
    /// It has ended.
    Zombie,
}

impl Reason {
    /// Its stable name, text and remedy.
    pub fn why(&self) -> Why {
        let (code, text, remedy) = match self {
            Self::Traced { by } => (
                "traced",
                format!("process {by} traces it"),
                "end the debugger or strace first".to_owned(),
            ),
            Self::NotDumpable => (
                "not-dumpable",
                "it is protected from being looked at (not dumpable, or its program is unreadable)".to_owned(),
                String::new(),
            ),
            Self::SetUid => (
                "set-uid",
                "it runs with another user's rights".to_owned(),
                "start the job as that user".to_owned(),
            ),
            Self::OwnFilter => (
                "own-seccomp-filter",
                "it installed a seccomp filter of its own".to_owned(),
                String::new(),
            ),
            Self::ThirtyTwoBit => (
                "32-bit",
                "it is a 32-bit program".to_owned(),
                "use a 64-bit build of the program".to_owned(),
            ),
            Self::Vfork => (
                "vfork",
                "it waits for its vfork child to execute a program".to_owned(),
                "try again when the child has executed it".to_owned(),
            ),
            Self::SharedMemory { with } => (
                "shared-memory",
                format!("it shares writable memory with process {with}"),
                "none yet: such processes stay together at home".to_owned(),
            ),
            Self::Device { path } => ("device", format!("it maps the device {path}"), String::new()),
            Self::Yama { scope } => (
                "yama",
                format!("kernel.yama.ptrace_scope is {scope}"),
                "sysctl kernel.yama.ptrace_scope=1".to_owned(),
            ),
            Self::Threads { count } => (
                "threads",
                format!(
                    "it has {count} threads, more than the {} that can move",
                    mosix_wire::limits::THREADS
                ),
                String::new(),
            ),
            Self::Zombie => ("zombie", "it has ended".to_owned(), String::new()),
        };
        Why {
            code: code.to_owned(),
            text,
            remedy,
        }
    }
}

/// Writable shared mappings of the processes seen so far, by device and inode: finds those that share.
pub type Sharing = BTreeMap<(String, u64), i32>;

/// Largest /proc file read by the probe: maps of a process with as many mappings as can move.
const LARGEST: u64 = 32 << 20;

/// Looks why `pid` cannot move. `own_filters` is how many filters the job itself gave it; `tracer` the supervisor, whose tracing does not
/// count.
pub fn why_not(pid: i32, own_filters: u32, tracer: i32, sharing: &mut Sharing) -> Option<Reason> {
    let stat = Stat::read(pid).ok()?;
    if stat.state == 'Z' {
        return Some(Reason::Zombie);
    }
    let status = Status::read(pid).ok()?;
    if status.tracer != 0 && status.tracer != tracer {
        return Some(Reason::Traced { by: status.tracer });
    }
    if status.filters > own_filters {
        return Some(Reason::OwnFilter);
    }
    if usize::try_from(stat.threads).unwrap_or(usize::MAX) > mosix_wire::limits::THREADS {
        return Some(Reason::Threads { count: stat.threads });
    }
    let root = nix::unistd::geteuid().is_root();
    if !root && status.uids.iter().any(|u| *u != status.uids[0]) {
        return Some(Reason::SetUid);
    }
    if let Some(scope) = yama()
        && (scope == 3 || scope == 2 && !root)
    {
        return Some(Reason::Yama { scope });
    }
    let maps = match read_bounded(&format!("/proc/{pid}/maps")) {
        Ok(maps) => maps,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Some(Reason::NotDumpable),
        Err(_) => return None,
    };
    if is_32_bit(pid) {
        return Some(Reason::ThirtyTwoBit);
    }
    if in_vfork(pid) {
        return Some(Reason::Vfork);
    }
    for line in String::from_utf8_lossy(&maps).lines() {
        if let Some(found) = mapping(line, pid, sharing) {
            return Some(found);
        }
    }
    None
}

/// Judges one line of maps.
fn mapping(line: &str, pid: i32, sharing: &mut Sharing) -> Option<Reason> {
    let mut fields = line.split_ascii_whitespace();
    let (_, modes, _, device, inode) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    if !modes.ends_with('s') {
        return None;
    }
    let path = fields.collect::<Vec<_>>().join(" ");
    if path.starts_with("/dev/") && !path.starts_with("/dev/zero") && !path.starts_with("/dev/shm/") {
        return Some(Reason::Device { path });
    }
    if modes.as_bytes().get(1) != Some(&b'w') {
        return None;
    }
    let first = *sharing.entry((device.to_owned(), inode.parse().ok()?)).or_insert(pid);
    (first != pid).then_some(Reason::SharedMemory { with: first })
}

/// Selected lines of /proc/PID/status.
struct Status {
    tracer: i32,
    uids: [u32; 3],
    filters: u32,
}

impl Status {
    fn read(pid: i32) -> io::Result<Self> {
        let text = String::from_utf8_lossy(&read_bounded(&format!("/proc/{pid}/status"))?).into_owned();
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("");
        let first = |name: &str| field(name).split_ascii_whitespace().next().and_then(|v| v.parse().ok());
        let mut uids = field("Uid:")
            .split_ascii_whitespace()
            .map(|u| u.parse().unwrap_or(u32::MAX));
        let mut uid = || uids.next().unwrap_or(u32::MAX);
        Ok(Self {
            tracer: first("TracerPid:").unwrap_or(0),
            uids: [uid(), uid(), uid()],
            // Kernels before 5.9 say only whether there is any.
            filters: first("Seccomp_filters:")
                .or_else(|| first("Seccomp:"))
                .unwrap_or(0)
                .try_into()
                .unwrap_or(0),
        })
    }
}

/// How many filters `pid` has.
pub fn filters_of(pid: i32) -> u32 {
    Status::read(pid).map_or(0, |s| s.filters)
}

fn read_bounded(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The program's ELF class, as far as the file can be read.
fn is_32_bit(pid: i32) -> bool {
    let mut head = [0; 20];
    let read = std::fs::File::open(format!("/proc/{pid}/exe")).and_then(|mut f| f.read_exact(&mut head));
    read.is_ok() && head.starts_with(b"\x7fELF") && head[4] == 1
}

/// Where the stub's code lies.
const STUB: std::ops::RangeInclusive<u64> = WINDOW..=WINDOW + TEXT_ROOM;

/// Whether a thread of `pid` is inside vfork, or clone with CLONE_VFORK.
fn in_vfork(pid: i32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    tasks.flatten().take(64).any(|task| {
        let Ok(text) = std::fs::read_to_string(task.path().join("syscall")) else {
            return false;
        };
        let mut words = text.split_ascii_whitespace();
        let hex = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
        // A deputy's thread that makes another one stands there for a moment, and so does the new one.
        if words
            .clone()
            .next_back()
            .and_then(hex)
            .is_some_and(|ip| STUB.contains(&ip))
        {
            return false;
        }
        let nr = words.next().and_then(|w| w.parse::<i64>().ok());
        let flags = words.next().and_then(hex).unwrap_or(0);
        match nr {
            Some(libc::SYS_vfork) => true,
            Some(libc::SYS_clone) => flags & libc::CLONE_VFORK as u64 != 0,
            // Its flags are in memory. A number shows only for a thread that waits, and clone3 waits for nothing else.
            Some(libc::SYS_clone3) => true,
            _ => false,
        }
    })
}

/// kernel.yama.ptrace_scope, where the module is there.
fn yama() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
        .ok()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_names_the_other_process() {
        let mut sharing = Sharing::new();
        let line = "7f0000000000-7f0000001000 rw-s 00000000 00:01 4242       /dev/zero (deleted)";
        assert_eq!(mapping(line, 10, &mut sharing), None);
        assert_eq!(mapping(line, 10, &mut sharing), None);
        assert_eq!(mapping(line, 11, &mut sharing), Some(Reason::SharedMemory { with: 10 }));
        let private = "7f0000000000-7f0000001000 rw-p 00000000 00:01 4242       /x";
        assert_eq!(mapping(private, 12, &mut sharing), None);
        let device = "7f0000000000-7f0000001000 r--s 00000000 00:06 12       /dev/dri/card0";
        assert_eq!(
            mapping(device, 12, &mut sharing).map(|r| r.why().code),
            Some("device".into())
        );
    }

    #[test]
    fn a_stopped_child_is_movable_until_somebody_traces_it() {
        let mut child = std::process::Command::new("sleep").arg("20").spawn().unwrap();
        let pid = child.id().cast_signed();
        let mine = filters_of(std::process::id().cast_signed());
        let why = |tracer| why_not(pid, mine, tracer, &mut Sharing::new());
        // The exec may still be on its way, which shows as vfork or as our own program.
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(why(0), None);
        nix::sys::ptrace::seize(nix::unistd::Pid::from_raw(pid), nix::sys::ptrace::Options::empty()).unwrap();
        // The kernel names the tracing thread; a supervisor traces on its main thread.
        let me = nix::unistd::gettid().as_raw();
        assert!(matches!(why(0), Some(Reason::Traced { .. })));
        assert_eq!(why(me), None);
        child.kill().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(why(me), Some(Reason::Zombie));
        child.wait().unwrap();
    }
}
