//! The call that a thread sleeps in, also when restart_syscall(2) continues it.
//!
//! A timed call that a stop signal (^Z) interrupted goes on as restart_syscall(2) in the task that was interrupted, and nowhere else; its own
//! number is nowhere to be read any more. Four calls go on so, which differ by where in the kernel the thread sleeps, and by their arguments.

/// The call in which a thread sleeps, and its arguments.
pub fn call(pid: i32, tid: i32) -> Option<(u64, [u64; 6])> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    // "running" for a thread on a CPU, "-1 …" outside of a call.
    let mut fields = line.split_whitespace();
    let nr = fields.next()?.parse().ok()?;
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = u64::from_str_radix(fields.next()?.trim_start_matches("0x"), 16).ok()?;
    }
    if nr != libc::SYS_restart_syscall as u64 {
        return Some((nr, args));
    }
    let function = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/wchan")).ok()?;
    Some((continued(&function, args[0])?, args))
}

/// The number of the call that sleeps in this function of the kernel and has this first argument.
fn continued(function: &str, first: u64) -> Option<u64> {
    // "0" without ptrace rights or without the kernel's symbols.
    let call = if function.is_empty() || function == "0" {
        return None;
    } else if function.contains("poll") {
        libc::SYS_poll
    } else if function.contains("futex") {
        libc::SYS_futex
    } else if first < 4096 || (first as i32) < 0 && first >> 32 == 0 {
        // A clock, also one of a process, and no address.
        libc::SYS_clock_nanosleep
    } else {
        libc::SYS_nanosleep
    };
    Some(call as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continued_calls_are_told_apart() {
        let nr = |call: i64| Some(call as u64);
        assert_eq!(continued("poll_schedule_timeout.constprop.0", 1), nr(libc::SYS_poll));
        assert_eq!(continued("futex_do_wait", 0x5576_c7de_108c), nr(libc::SYS_futex));
        assert_eq!(continued("do_syscall_64", 1), nr(libc::SYS_clock_nanosleep));
        assert_eq!(
            continued("hrtimer_nanosleep", 0xffff_fffa),
            nr(libc::SYS_clock_nanosleep)
        );
        assert_eq!(continued("do_syscall_64", 0x7ffe_aebf_0360), nr(libc::SYS_nanosleep));
        assert_eq!(continued("0", 1), None);
    }

    #[test]
    fn a_sleep_that_was_stopped_is_still_a_sleep() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().expect("sleep");
        let pid = child.id() as i32;
        let sleeping = || {
            (0..500).find_map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                call(pid, pid)
                    .map(|(nr, _)| nr)
                    .filter(|nr| *nr == libc::SYS_clock_nanosleep as u64)
            })
        };
        let before = sleeping();
        for signal in [libc::SIGSTOP, libc::SIGCONT] {
            mosix_sys::process::kill(pid, signal).expect("its signal");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let after = sleeping();
        child.kill().and_then(|()| child.wait()).expect("ended");
        assert!(before.is_some());
        assert_eq!(before, after);
    }
}
