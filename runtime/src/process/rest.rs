//! Relative time-outs of system calls: where the arguments keep them, and what is left of them.
//!
//! The kernel counts from the moment the call began, and tells nobody. A call that is issued again, elsewhere or after a stop, is issued
//! with the rest. Absolute deadlines need nothing.

use std::time::Duration;

/// Where a call keeps its relative time-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// Milliseconds as `int` in this argument; negative is none.
    Millis(usize),
    /// `struct timespec` behind this argument.
    Spec(usize),
    /// `struct timeval` behind this argument.
    Val(usize),
    /// With the socket of argument 0, if it has one: SO_RCVTIMEO, or SO_SNDTIMEO when the call sends.
    Socket {
        /// Whether the call sends.
        sends: bool,
    },
}

/// FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME.
const FUTEX_FLAGS: u64 = 128 | 256;

/// The relative time-out of a call; `None` for calls without one.
pub fn timeout(nr: u64, args: &[u64; 6]) -> Option<Timeout> {
    let spec = |arg: usize| (args[arg] != 0).then_some(Timeout::Spec(arg));
    let millis = |arg: usize| (args[arg] as i32 >= 0).then_some(Timeout::Millis(arg));
    match nr as i64 {
        libc::SYS_poll => millis(2),
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => millis(3),
        libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => spec(3),
        libc::SYS_select => (args[4] != 0).then_some(Timeout::Val(4)),
        libc::SYS_pselect6 | libc::SYS_io_getevents => spec(4),
        libc::SYS_ppoll | libc::SYS_rt_sigtimedwait => spec(2),
        libc::SYS_futex if args[1] & 0xffff_ffff & !FUTEX_FLAGS == libc::FUTEX_WAIT as u64 => spec(3),
        libc::SYS_nanosleep => spec(0),
        libc::SYS_clock_nanosleep if args[1] & libc::TIMER_ABSTIME as u64 == 0 => spec(2),
        libc::SYS_read
        | libc::SYS_readv
        | libc::SYS_recvfrom
        | libc::SYS_recvmsg
        | libc::SYS_recvmmsg
        | libc::SYS_accept
        | libc::SYS_accept4 => Some(Timeout::Socket { sends: false }),
        libc::SYS_write
        | libc::SYS_writev
        | libc::SYS_sendto
        | libc::SYS_sendmsg
        | libc::SYS_sendmmsg
        | libc::SYS_connect => Some(Timeout::Socket { sends: true }),
        _ => None,
    }
}

/// Whether an interrupted call leaves the rest of its time-out where the time-out was.
pub fn writes_rest(nr: u64) -> bool {
    matches!(nr as i64, libc::SYS_select | libc::SYS_pselect6 | libc::SYS_ppoll)
}

/// Reads a `timespec` or `timeval`; `None` for one that the kernel refuses.
pub fn decode(bytes: [u8; 16], timeout: Timeout) -> Option<Duration> {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        i64::from_le_bytes(word)
    };
    let (seconds, part) = (u64::try_from(word(0)).ok()?, u64::try_from(word(8)).ok()?);
    match timeout {
        // select takes more than a second's microseconds.
        Timeout::Val(_) => Duration::from_secs(seconds).checked_add(Duration::from_micros(part)),
        _ if part >= 1_000_000_000 => None,
        _ => Some(Duration::new(seconds, part as u32)),
    }
}

/// The reverse of [`decode`].
pub fn encode(time: Duration, timeout: Timeout) -> [u8; 16] {
    let part = match timeout {
        Timeout::Val(_) => time.subsec_nanos().div_ceil(1000).min(999_999),
        _ => time.subsec_nanos(),
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&time.as_secs().to_le_bytes());
    bytes[8..].copy_from_slice(&u64::from(part).to_le_bytes());
    bytes
}

/// The time-out that the arguments show; `read` gives what lies at an address. `None` when there is none, or with a socket.
pub fn shown(timeout: Timeout, args: &[u64; 6], read: impl FnOnce(u64) -> Option<[u8; 16]>) -> Option<Duration> {
    match timeout {
        Timeout::Millis(arg) => Some(Duration::from_millis(u64::from(args[arg] as u32))),
        Timeout::Spec(arg) | Timeout::Val(arg) => decode(read(args[arg])?, timeout),
        Timeout::Socket { .. } => None,
    }
}

/// Milliseconds for an `int` argument, never less than the time.
pub fn millis(time: Duration) -> u64 {
    time.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_relative_timeouts_count() {
        let at = |nr: i64, args: [u64; 6]| timeout(nr as u64, &args);
        assert_eq!(at(libc::SYS_poll, [0, 0, 5, 0, 0, 0]), Some(Timeout::Millis(2)));
        assert_eq!(at(libc::SYS_poll, [0, 0, u64::from(u32::MAX), 0, 0, 0]), None);
        assert_eq!(at(libc::SYS_futex, [1, 128, 0, 7, 0, 0]), Some(Timeout::Spec(3)));
        assert_eq!(at(libc::SYS_futex, [1, 128, 0, 0, 0, 0]), None);
        let bitset = libc::FUTEX_WAIT_BITSET as u64;
        assert_eq!(at(libc::SYS_futex, [1, bitset, 0, 7, 0, 0]), None);
        assert_eq!(at(libc::SYS_clock_nanosleep, [1, 1, 9, 0, 0, 0]), None);
        assert_eq!(at(libc::SYS_mq_timedreceive, [1, 1, 9, 1, 1, 0]), None);
    }

    #[test]
    fn times_survive_encoding() {
        let time = Duration::new(3, 999_999_999);
        assert_eq!(decode(encode(time, Timeout::Spec(0)), Timeout::Spec(0)), Some(time));
        let micro = decode(encode(time, Timeout::Val(0)), Timeout::Val(0));
        assert_eq!(micro, Some(Duration::new(3, 999_999_000)));
        assert_eq!(decode([0xff; 16], Timeout::Spec(0)), None);
        assert_eq!(millis(Duration::from_micros(1)), 1);
    }
}
