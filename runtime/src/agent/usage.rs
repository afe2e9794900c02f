//! What a body uses of its host.

use mosix_wire::ids::Pid;
use mosix_wire::link::ToHome;

/// CPU time in nanoseconds of a process, or of one thread of it, as the scheduler counts it.
pub fn cpu_ns(host: i32, thread: Option<i32>) -> Option<u64> {
    let of = |tid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{host}/task/{tid}/schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    match thread {
        Some(tid) => of(tid),
        None => {
            let tids = crate::process::freeze::threads(host).ok()?;
            Some(tids.into_iter().filter_map(of).sum())
        }
    }
}

/// Whether a thread of a process runs or is ready to run.
fn runs(host: i32) -> bool {
    let ready = |tid: &i32| crate::process::stat::state(host, *tid) == Some('R');
    crate::process::freeze::threads(host).is_ok_and(|tids| tids.iter().any(ready))
}

/// What home is told of a body.
pub fn of(pid: Pid, host: i32) -> Option<ToHome> {
    let status = std::fs::read_to_string(format!("/proc/{host}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(ToHome::Usage {
        pid,
        cpu_ns: cpu_ns(host, None).unwrap_or(0),
        resident: field("VmRSS:").unwrap_or(0) << 10,
        threads: field("Threads:").unwrap_or(0) as u32,
        running: runs(host),
    })
}
