//! Answers about used CPU time and memory that home's kernel knows one part of: what it wrote, and what is to be added.
//!
//! | answer | its deputy's kernel has | the agent adds | home adds |
//! |---|---|---|---|
//! | getrusage(RUSAGE_SELF), times: own | what the process used at home, and its deputy | what its bodies used on hosts | |
//! | getrusage(RUSAGE_THREAD) | the same of the thread | CPU time of the thread on hosts | |
//! | clock_gettime of an own CPU clock | the same | the same | |
//! | getrusage(RUSAGE_CHILDREN), times: children; wait4, waitid | what children used at home | | what their bodies used on hosts |
//! | clock_gettime of another process's CPU clock | what that one used at home | | what its bodies used on hosts |

use super::emulate::{CpuClock, cpu_clock};
use mosix_wire::call::{Call, Place};
use mosix_wire::spent::{CpuTime, Spent};

/// `struct rusage`.
const RUSAGE: usize = 144;
/// `struct tms`.
const TMS: usize = 32;
/// `struct timespec`.
const TIMESPEC: usize = 16;
/// `si_pid` of a SIGCHLD siginfo.
const SI_PID: usize = 16;
/// Nanoseconds of a clock tick: USER_HZ is 100 on x86-64.
const TICK_NS: u64 = 10_000_000;

/// What the body's side of a call adds to home's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The process's, to a `struct rusage`.
    Process,
    /// The calling thread's, to a `struct rusage`.
    Thread,
    /// The process's, to a `struct tms`.
    Times,
    /// A clock's, to a `struct timespec`.
    Clock(CpuClock),
    /// Nothing: the body gets this limit of CPU time too, soft and hard in seconds.
    CpuLimit(u64, u64),
}

/// The body's part of a forwarded call.
pub fn part(nr: u32, args: &[u64; 6], pid: i32, tid: i32) -> Option<Part> {
    match i64::from(nr) {
        libc::SYS_getrusage => match args[0] as i32 {
            libc::RUSAGE_SELF => Some(Part::Process),
            libc::RUSAGE_THREAD => Some(Part::Thread),
            _ => None,
        },
        libc::SYS_times => Some(Part::Times),
        libc::SYS_clock_gettime => cpu_clock(args[0], pid, tid).map(Part::Clock),
        _ => None,
    }
}

/// The body's part of a call that limits the caller's CPU time, by the bytes that go home.
pub fn limit(call: &Call, payload: &[u8]) -> Option<Part> {
    let args = &call.args;
    let (resource, new) = match i64::from(call.nr) {
        libc::SYS_setrlimit => (args[0], 1),
        libc::SYS_prlimit64 if args[0] as i32 == 0 || args[0] as i32 == call.pid.0 => (args[1], 2),
        _ => return None,
    };
    if resource as u32 != libc::RLIMIT_CPU || !call.relocs.contains(&Place::Arg(new)) {
        return None;
    }
    let at = usize::try_from(args[usize::from(new)]).ok()?;
    let limit = payload.get(at..at.checked_add(16)?)?;
    Some(Part::CpuLimit(word(limit, 0), word(limit, 8)))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
    word.map_or(0, |word| u64::from_le_bytes(*word))
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    if let Some(place) = bytes.get_mut(at..at + 8) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}

fn add_word(bytes: &mut [u8], at: usize, more: u64) {
    put(bytes, at, word(bytes, at).saturating_add(more));
}

/// Adds nanoseconds to a `struct timeval` or `timespec`, in whose second half `unit` of them are one.
fn add_time(bytes: &mut [u8], at: usize, ns: u64, unit: u64) {
    let per_second = 1_000_000_000 / unit;
    let fraction = word(bytes, at + 8).saturating_add(ns % 1_000_000_000 / unit);
    add_word(bytes, at, (ns / 1_000_000_000).saturating_add(fraction / per_second));
    put(bytes, at + 8, fraction % per_second);
}

/// Adds to a `struct rusage`; bytes that are none stay as they are.
pub fn add_to_rusage(bytes: &mut [u8], spent: &Spent) {
    if bytes.len() < RUSAGE {
        return;
    }
    // ru_utime, ru_stime, ru_maxrss (KiB), three that Linux leaves at zero, ru_minflt, ru_majflt.
    add_time(bytes, 0, spent.cpu.user_ns, 1000);
    add_time(bytes, 16, spent.cpu.system_ns, 1000);
    put(bytes, 32, word(bytes, 32).max(spent.peak >> 10));
    add_word(bytes, 64, spent.minor_faults);
    add_word(bytes, 72, spent.major_faults);
}

/// Adds to a `struct tms`: the process's own times, or those of its children.
pub fn add_to_tms(bytes: &mut [u8], cpu: CpuTime, children: bool) {
    if bytes.len() < TMS {
        return;
    }
    let at = if children { 16 } else { 0 };
    add_word(bytes, at, cpu.user_ns / TICK_NS);
    add_word(bytes, at + 8, cpu.system_ns / TICK_NS);
}

/// Adds to a `struct timespec`.
pub fn add_to_timespec(bytes: &mut [u8], ns: u64) {
    if bytes.len() >= TIMESPEC {
        add_time(bytes, 0, ns, 1);
    }
}

/// A `struct timespec` in nanoseconds.
pub fn timespec_ns(bytes: &[u8]) -> u64 {
    word(bytes, 0)
        .saturating_mul(1_000_000_000)
        .saturating_add(word(bytes, 8))
}

/// Adds the body's part to home's outputs: of the process, or of the calling thread.
pub fn add(part: Part, outputs: &mut [u8], process: &Spent, thread: CpuTime) {
    match part {
        Part::Process => add_to_rusage(outputs, process),
        Part::Thread => {
            let spent = Spent {
                cpu: thread,
                ..Spent::default()
            };
            add_to_rusage(outputs, &spent);
        }
        Part::Times => add_to_tms(outputs, process.cpu, false),
        Part::Clock(CpuClock::Process) => add_to_timespec(outputs, process.cpu.total()),
        Part::Clock(CpuClock::Thread) => add_to_timespec(outputs, thread.total()),
        Part::Clock(CpuClock::Other(..)) | Part::CpuLimit(..) => {}
    }
}

/// What home knows about processes that its kernel does not.
pub trait Elsewhere {
    /// CPU time and memory of a process on hosts.
    fn own(&self, pid: i32) -> Spent;
    /// The same with that of its children that it has waited for: what its parent gets.
    fn with_children(&self, pid: i32) -> Spent;
    /// Of the children of a process that it has waited for.
    fn children(&self, pid: i32) -> Spent;
}

/// Adds home's part to what the deputy's kernel wrote into the buffer of a call. The call is a host's: its places may be anywhere.
pub fn at_home(call: &Call, result: i64, buffer: &mut [u8], elsewhere: &impl Elsewhere) {
    if result < 0 {
        return;
    }
    // Only where the call has a pointer the kernel wrote something.
    let behind = |arg: u8| {
        let pointer = call.relocs.contains(&Place::Arg(arg));
        let at = pointer.then(|| usize::try_from(call.args[usize::from(arg)]).ok());
        at.flatten().filter(|at| *at < buffer.len())
    };
    match i64::from(call.nr) {
        libc::SYS_getrusage if call.args[0] as i32 == libc::RUSAGE_CHILDREN => {
            if let Some(at) = behind(1) {
                add_to_rusage(&mut buffer[at..], &elsewhere.children(call.pid.0));
            }
        }
        libc::SYS_times => {
            if let Some(at) = behind(0) {
                add_to_tms(&mut buffer[at..], elsewhere.children(call.pid.0).cpu, true);
            }
        }
        libc::SYS_wait4 => {
            if let (Some(at), Ok(child @ 1..)) = (behind(3), i32::try_from(result)) {
                add_to_rusage(&mut buffer[at..], &elsewhere.with_children(child));
            }
        }
        libc::SYS_waitid => {
            if let (Some(info), Some(at)) = (behind(2), behind(4)) {
                let child = word(&buffer[info..], SI_PID) as i32;
                if child > 0 {
                    add_to_rusage(&mut buffer[at..], &elsewhere.with_children(child));
                }
            }
        }
        libc::SYS_clock_gettime => {
            let clock = cpu_clock(call.args[0], call.pid.0, call.tid.0);
            if let (Some(at), Some(CpuClock::Other(pid, true))) = (behind(1), clock) {
                add_to_timespec(&mut buffer[at..], elsewhere.own(pid).cpu.total());
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mosix_wire::ids::{Epoch, Pid, Seq, Tid};

    const SECOND: u64 = 1_000_000_000;

    fn spent(user_ns: u64, system_ns: u64) -> Spent {
        Spent {
            cpu: CpuTime { user_ns, system_ns },
            minor_faults: 5,
            major_faults: 1,
            peak: 64 << 20,
        }
    }

    struct Known(Spent);

    impl Elsewhere for Known {
        fn own(&self, _pid: i32) -> Spent {
            self.0
        }
        fn with_children(&self, _pid: i32) -> Spent {
            self.0
        }
        fn children(&self, _pid: i32) -> Spent {
            self.0
        }
    }

    #[test]
    fn fractions_carry_into_seconds() {
        let mut bytes = [0; RUSAGE];
        put(&mut bytes, 0, 1);
        put(&mut bytes, 8, 999_999);
        put(&mut bytes, 32, 100);
        add_to_rusage(&mut bytes, &spent(2 * SECOND + 1_000, SECOND / 2));
        assert_eq!((word(&bytes, 0), word(&bytes, 8)), (4, 0));
        assert_eq!((word(&bytes, 16), word(&bytes, 24)), (0, 500_000));
        assert_eq!((word(&bytes, 32), word(&bytes, 64), word(&bytes, 72)), (64 << 10, 5, 1));
        let mut time = [0; TIMESPEC];
        put(&mut time, 8, 999_999_999);
        add_to_timespec(&mut time, SECOND + 1);
        assert_eq!(timespec_ns(&time), 2 * SECOND);
    }

    #[test]
    fn what_a_host_reports_cannot_overflow() {
        let mut bytes = [0xff; RUSAGE];
        add_to_rusage(&mut bytes, &spent(u64::MAX, u64::MAX));
        assert_eq!(word(&bytes, 0), u64::MAX);
        add_to_tms(&mut bytes, spent(u64::MAX, u64::MAX).cpu, true);
        add_to_timespec(&mut bytes, u64::MAX);
        // What is too short is nobody's.
        for length in 0..TIMESPEC {
            let before = bytes[..length].to_vec();
            add_to_rusage(&mut bytes[..length], &spent(1, 1));
            add_to_timespec(&mut bytes[..length], 1);
            assert_eq!(bytes[..length], before);
        }
    }

    fn call(nr: i64, args: [u64; 6], relocs: &[u8]) -> Call {
        Call {
            pid: Pid(10),
            tid: Tid(10),
            epoch: Epoch(1),
            seq: Seq(1),
            nr: nr as u32,
            args,
            relocs: relocs.iter().map(|arg| Place::Arg(*arg)).collect(),
            size: 0,
            outputs: vec![],
            exec: None,
        }
    }

    #[test]
    fn home_adds_where_the_kernel_wrote() {
        let known = Known(spent(SECOND, 2 * SECOND));
        let mut buffer = vec![0; 16 + RUSAGE];
        at_home(
            &call(libc::SYS_wait4, [0, 0, 0, 16, 0, 0], &[1, 3]),
            77,
            &mut buffer,
            &known,
        );
        assert_eq!((word(&buffer, 16), word(&buffer, 32)), (1, 2));
        // No child, no pointer, a failure: nothing is added.
        for (result, relocs) in [(0, vec![3]), (77, vec![1]), (-10, vec![3])] {
            let mut buffer = vec![0; 16 + RUSAGE];
            at_home(
                &call(libc::SYS_wait4, [0, 0, 0, 16, 0, 0], &relocs),
                result,
                &mut buffer,
                &known,
            );
            assert_eq!(buffer, vec![0; 16 + RUSAGE]);
        }
        let mut buffer = vec![0; 128 + RUSAGE];
        buffer[SI_PID] = 77;
        at_home(
            &call(libc::SYS_waitid, [0, 0, 0, 0, 128, 0], &[2, 4]),
            0,
            &mut buffer,
            &known,
        );
        assert_eq!(word(&buffer, 128), 1);
    }

    #[test]
    fn places_outside_the_buffer_are_no_places() {
        let known = Known(spent(SECOND, SECOND));
        for at in [15, 16, 17, u64::MAX] {
            let mut buffer = vec![0; 16];
            at_home(
                &call(libc::SYS_wait4, [0, 0, 0, at, 0, 0], &[3]),
                5,
                &mut buffer,
                &known,
            );
            at_home(
                &call(libc::SYS_waitid, [0, 0, at, 0, at, 0], &[2, 4]),
                0,
                &mut buffer,
                &known,
            );
            at_home(
                &call(libc::SYS_times, [at, 0, 0, 0, 0, 0], &[0]),
                0,
                &mut buffer,
                &known,
            );
            assert_eq!(buffer, vec![0; 16]);
        }
    }

    #[test]
    fn limits_of_cpu_time_are_seen() {
        let mut payload = vec![0; 16];
        put(&mut payload, 0, 3);
        put(&mut payload, 8, 4);
        let set = call(libc::SYS_setrlimit, [0; 6], &[1]);
        assert_eq!(limit(&set, &payload), Some(Part::CpuLimit(3, 4)));
        for (pid, known) in [(0, true), (10, true), (11, false)] {
            let set = call(libc::SYS_prlimit64, [pid, 0, 0, 0, 0, 0], &[2]);
            assert_eq!(limit(&set, &payload).is_some(), known, "{pid}");
        }
        // Another resource, only asked for, too short, elsewhere.
        assert_eq!(
            limit(&call(libc::SYS_setrlimit, [7, 0, 0, 0, 0, 0], &[1]), &payload),
            None
        );
        assert_eq!(limit(&call(libc::SYS_prlimit64, [0; 6], &[3]), &payload), None);
        assert_eq!(limit(&set, &payload[..15]), None);
        for at in [1, 16, u64::MAX] {
            assert_eq!(
                limit(&call(libc::SYS_setrlimit, [0, at, 0, 0, 0, 0], &[1]), &payload),
                None
            );
        }
    }

    #[test]
    fn the_bodys_part_is_known_by_its_arguments() {
        let of = |nr: i64, arg: i64| part(nr as u32, &[arg as u64, 0, 0, 0, 0, 0], 10, 11);
        assert_eq!(of(libc::SYS_getrusage, 0), Some(Part::Process));
        assert_eq!(of(libc::SYS_getrusage, 1), Some(Part::Thread));
        assert_eq!(of(libc::SYS_getrusage, -1), None);
        assert_eq!(of(libc::SYS_clock_gettime, 2), Some(Part::Clock(CpuClock::Process)));
        assert_eq!(of(libc::SYS_clock_gettime, 1), None);
    }
}
