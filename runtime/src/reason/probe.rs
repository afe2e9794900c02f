//! Why a process cannot move, as far as /proc shows it: nothing of the process is touched, so `mosix ps` may ask at any time.

use super::Reason;
use super::sharing::Groups;
use crate::process::stat::{self, Stat};
use crate::process::status::Status;
use mosix_loader::script::abi::{SHARED, TEXT_ROOM, WINDOW, WINDOW_END};
use mosix_wire::job::Why;
use std::io::{self, Read};
use std::time::Duration;

/// Largest /proc file read by the probe: maps of a process with as many mappings as can move.
const LARGEST: u64 = 32 << 20;

/// Most descriptors that are looked at.
const DESCRIPTORS: usize = 4096;

/// Looks why `pid` cannot move. `own_filters` is how many filters the job itself gave it; `tracer` the supervisor, whose tracing does not
/// count; `groups` those of the job.
pub fn why_not(pid: i32, own_filters: u32, tracer: i32, groups: &Groups) -> Option<Why> {
    let stat = Stat::read(pid).ok()?;
    let status = Status::read(pid).ok()?;
    let by: i32 = status.number("TracerPid").unwrap_or(0);
    let away = by != 0 && by == tracer;
    if stat.state == 'Z' {
        let others = stat.threads > 1 && !away;
        return Some(if others { Reason::LeaderExited } else { Reason::Zombie }.why());
    }
    if by != 0 && !away {
        return Some(Reason::Traced.because(format!("process {by} traces it")));
    }
    if stat.state == 'T' && !away {
        return Some(Reason::Stopped.why());
    }
    if filters(&status) > own_filters {
        return Some(Reason::OwnFilter.why());
    }
    if usize::try_from(stat.threads).unwrap_or(usize::MAX) > mosix_wire::limits::THREADS {
        return Some(too_many_threads(stat.threads as usize));
    }
    let root = nix::unistd::geteuid().is_root();
    if !root && is_of_two(&status) {
        return Some(Reason::SetUid.why());
    }
    if let Some(scope) = yama()
        && (scope == 3 || scope == 2 && !root)
    {
        return Some(Reason::Yama.because(format!("kernel.yama.ptrace_scope is {scope}")));
    }
    let maps = match read_bounded(&format!("/proc/{pid}/maps")) {
        Ok(maps) => maps,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Some(Reason::NotDumpable.why()),
        Err(_) => return None,
    };
    if is_32_bit(pid) {
        return Some(Reason::ThirtyTwoBit.why());
    }
    if in_vfork(pid) {
        return Some(Reason::Vfork.why());
    }
    if let Some(twin) = groups.twin(pid) {
        let text = format!("it uses all memory of process {twin}: a child of vfork, or clone with CLONE_VM");
        return Some(Reason::SharesMemory.because(text));
    }
    let maps = String::from_utf8_lossy(&maps);
    if maps.lines().count() > mosix_wire::limits::VMAS {
        return Some(too_many_mappings(maps.lines().count()));
    }
    if let Some(found) = maps.lines().find_map(mapping) {
        return Some(found);
    }
    if holds(pid, "anon_inode:[userfaultfd]") {
        return Some(Reason::FaultHandler.why());
    }
    memory(pid, groups).or_else(|| waits(pid, &stat))
}

/// Memory that the others of the job see as well, or may.
pub fn memory(pid: i32, groups: &Groups) -> Option<Why> {
    if let Some(name) = groups.shared(pid) {
        let others = groups.others(pid);
        let named: Vec<String> = others.iter().take(8).map(i32::to_string).collect();
        let more = if others.len() > named.len() { " and others" } else { "" };
        let process = if others.len() > 1 { "processes" } else { "process" };
        let text = format!("it shares memory ({name}) with {process} {}{more}", named.join(", "));
        return Some(Reason::SharedMemory.because(text));
    }
    if let Some(name) = groups.twice(pid) {
        return Some(Reason::MappedTwice.because(format!("it maps {name} at two places")));
    }
    let name = groups.open(pid)?;
    Some(Reason::SharedMemory.because(format!("it maps {name}, which other processes may map at any time")))
}

/// The reason for a process with so many threads.
pub fn too_many_threads(count: usize) -> Why {
    let most = mosix_wire::limits::THREADS;
    Reason::Threads.because(format!("it has {count} threads, more than the {most} that can move"))
}

/// The reason for a process with so many mappings.
pub fn too_many_mappings(count: usize) -> Why {
    let most = mosix_wire::limits::VMAS;
    Reason::Mappings.because(format!("it has {count} mappings, more than the {most} that can move"))
}

/// Judges one line of maps.
fn mapping(line: &str) -> Option<Why> {
    let mut fields = line.split_ascii_whitespace();
    let (range, modes) = (fields.next()?, fields.next()?);
    let name = fields.skip(3).collect::<Vec<_>>().join(" ");
    if let Some(found) = behind(&name, modes.ends_with('s')) {
        return Some(found);
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let ours = start == WINDOW && end == WINDOW + TEXT_ROOM || start == SHARED && modes.ends_with('s');
    let taken = start < WINDOW_END && end > WINDOW && !ours;
    taken.then(|| Reason::Window.because(format!("memory is mapped at {start:#x}, where the window belongs")))
}

/// Judges what lies behind a mapping by its name.
pub fn behind(name: &str, shared: bool) -> Option<Why> {
    if name.starts_with("/secretmem") {
        return Some(Reason::SecretMemory.why());
    }
    if name.starts_with("anon_inode:[io_uring]") || name.starts_with("/[aio]") {
        return Some(Reason::KernelQueue.why());
    }
    let memory = ["/dev/zero", "/dev/shm/", "/dev/hugepages/"]
        .iter()
        .any(|memory| name.starts_with(memory));
    let device = name.starts_with("/dev/") && !memory && shared;
    let other =
        name.starts_with("anon_inode:") && !name.starts_with("anon_inode:[io_uring]") || name.starts_with("socket:");
    (device || other).then(|| Reason::Device.because(format!("it maps the device {name}")))
}

/// Whether the process has a descriptor of this name.
fn holds(pid: i32, name: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let mut links = entries
        .flatten()
        .take(DESCRIPTORS)
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.any(|link| link.as_os_str() == name)
}

/// How long a thread that cannot be interrupted is watched: reading a page from a disk takes less.
const WATCHED: Duration = Duration::from_millis(30);

/// Whether a thread sleeps in the kernel and is not to be woken. Most such waits are a moment's: it counts when nothing has changed a
/// little later.
fn waits(pid: i32, stat: &Stat) -> Option<Why> {
    let blocked = |tid: i32| stat::state(pid, tid) == Some('D');
    let switches = |tid: i32| Status::read(tid).ok()?.number::<u64>("voluntary_ctxt_switches");
    let tids: Vec<i32> = if stat.threads == 1 {
        vec![pid]
    } else {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let names = tasks.flatten().take(mosix_wire::limits::THREADS);
        names
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    };
    let tid = tids.into_iter().find(|tid| blocked(*tid))?;
    let before = switches(tid)?;
    std::thread::sleep(WATCHED);
    (blocked(tid) && switches(tid)? == before).then(|| {
        let text = format!("thread {tid} of it waits in the kernel and cannot be interrupted (state D)");
        Reason::Uninterruptible.because(text)
    })
}

/// How many filters `pid` has.
pub fn filters_of(pid: i32) -> u32 {
    Status::read(pid).map_or(0, |status| filters(&status))
}

/// How many filters a process has. Kernels before 5.9 say only whether there is any.
fn filters(status: &Status) -> u32 {
    let counted = status.number("Seccomp_filters");
    counted.or_else(|| status.number("Seccomp")).unwrap_or(0)
}

/// Whether a process runs with the rights of more than one user.
fn is_of_two(status: &Status) -> bool {
    // Real, effective and saved.
    let mut uids = status.words("Uid").take(3);
    let first = uids.next();
    uids.any(|uid| Some(uid) != first)
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
pub fn in_vfork(pid: i32) -> bool {
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
    fn mappings_are_judged_by_what_is_behind_them() {
        let code = |modes: &str, name: &str| {
            mapping(&format!(
                "7f0000000000-7f0000001000 {modes} 00000000 00:01 4242       {name}"
            ))
            .map(|why| why.code)
        };
        for (modes, name, expected) in [
            ("rw-s", "/dev/zero (deleted)", None),
            ("rw-p", "/x", None),
            ("rw-p", "/dev/zero", None),
            ("r--s", "/dev/dri/card0", Some("device")),
            ("rw-s", "anon_inode:[perf_event]", Some("device")),
            ("rw-s", "socket:[7]", Some("device")),
            ("rw-s", "anon_inode:[io_uring]", Some("kernel-queue")),
            ("rw-s", "/[aio] (deleted)", Some("kernel-queue")),
            ("rw-s", "/secretmem (deleted)", Some("secret-memory")),
        ] {
            assert_eq!(code(modes, name).as_deref(), expected, "{modes} {name}");
        }
        let inside = "7e8010000000-7e8010001000 rw-p 00000000 00:00 0";
        assert_eq!(mapping(inside).map(|why| why.code).as_deref(), Some("window"));
    }

    #[test]
    fn a_child_is_movable_until_somebody_traces_it() {
        let mut child = std::process::Command::new("sleep").arg("20").spawn().unwrap();
        let pid = child.id().cast_signed();
        let mine = filters_of(std::process::id().cast_signed());
        let why = |tracer| why_not(pid, mine, tracer, &Groups::of(&[pid])).map(|why| why.code);
        // The exec may still be on its way, which shows as vfork or as our own program.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(why(0), None);
        nix::sys::ptrace::seize(nix::unistd::Pid::from_raw(pid), nix::sys::ptrace::Options::empty()).unwrap();
        // The kernel names the tracing thread; a supervisor traces on its main thread.
        let me = nix::unistd::gettid().as_raw();
        assert_eq!(why(0).as_deref(), Some("traced"));
        assert_eq!(why(me), None);
        child.kill().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(why(me).as_deref(), Some("zombie"));
        child.wait().unwrap();
    }
}
