//! RLIMIT_CPU of a process that came home: its kernel does not count what bodies used on hosts, so somebody must.

use crate::process::stat::cpu_ns;
use mosix_sys::process::kill;
use mosix_wire::spent::CpuTime;

const SECOND: u64 = 1_000_000_000;

/// Does once what the kernel does at each second beyond the limit, for a process at home that used `elsewhere` on hosts. False when there is
/// no reason to look at it again.
pub fn enforce_cpu(pid: i32, elsewhere: CpuTime) -> bool {
    let (Some((soft, hard)), Some(here)) = (limits(pid), cpu_ns(pid)) else {
        return false;
    };
    if elsewhere == CpuTime::default() || (soft, hard) == (u64::MAX, u64::MAX) {
        return false;
    }
    if let Some(signal) = due(here.saturating_add(elsewhere.total()), soft, hard) {
        tracing::debug!(pid, signal, "its CPU time on all nodes is at its limit");
        // One that has just ended needs none.
        let _ = kill(pid, signal);
    }
    true
}

/// The signal for a process that has used so many nanoseconds, with limits in seconds.
fn due(used: u64, soft: u64, hard: u64) -> Option<i32> {
    let over = |limit: u64| used >= limit.saturating_mul(SECOND);
    if over(hard) {
        Some(libc::SIGKILL)
    } else {
        over(soft).then_some(libc::SIGXCPU)
    }
}

/// Soft and hard limit in seconds; `u64::MAX` is none.
fn limits(pid: i32) -> Option<(u64, u64)> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

fn parse(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max cpu time"))?;
    let mut values = line.split_whitespace().map(|value| match value {
        "unlimited" => Some(u64::MAX),
        value => value.parse().ok(),
    });
    Some((values.next()??, values.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_text_is_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max cpu time              2                    unlimited            seconds   \n";
        assert_eq!(parse(text), Some((2, u64::MAX)));
        assert_eq!(limits(std::process::id().cast_signed()), Some((u64::MAX, u64::MAX)));
        assert_eq!(parse("Max cpu time"), None);
    }

    #[test]
    fn hard_limits_kill_and_soft_ones_warn() {
        assert_eq!(due(SECOND - 1, 1, 2), None);
        assert_eq!(due(SECOND, 1, 2), Some(libc::SIGXCPU));
        assert_eq!(due(2 * SECOND, 1, 2), Some(libc::SIGKILL));
        assert_eq!(due(u64::MAX - 1, u64::MAX, u64::MAX), None);
    }
}
