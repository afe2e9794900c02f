//! Calls of a deputy that go on with what is left of their time-outs.
//!
//! A call whose time-out is an argument is issued again with the rest in its place. A time-out that a socket keeps cannot be changed for one
//! call: the deputy waits for the socket by ppoll(2) with the rest, whose time the kernel itself keeps over stops, and makes the call when
//! that wait succeeds.

use crate::process::rest::{self, Timeout};
use mosix_loader::script::Op;
use mosix_wire::ids::Seq;
use std::time::{Duration, Instant};

/// How a call that was interrupted at departure goes on at its first forwarding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// restart_syscall(2): the task still holds the deadline of a sleep.
    Block {
        /// The interrupted call.
        nr: u32,
        /// When it was interrupted: the rest that the program may be shown is of that moment.
        at: Instant,
    },
    /// With the rest of its time-out.
    Rest {
        /// The interrupted call.
        nr: u32,
        /// When the time-out began.
        since: Instant,
        /// The time-out of the call's socket.
        socket: Option<Duration>,
    },
    /// So many bytes of a write were written before the departure.
    Short {
        /// The interrupted call.
        nr: u32,
        /// Bytes written.
        written: u64,
    },
}

/// The number under which a call that a departure interrupted is made again.
pub const RESUMED: Seq = Seq(1);

/// Bytes of the structures for [`socket_wait`].
pub const SOCKET_WAIT: usize = 32;

/// Sixteen bytes at an offset.
pub fn at(bytes: &[u8], offset: u64) -> Option<[u8; 16]> {
    let offset = usize::try_from(offset).ok()?;
    bytes.get(offset..offset.checked_add(16)?)?.try_into().ok()
}

/// The relative time-out in the arguments of a call.
pub fn whole(nr: u32, args: &[u64; 6], read: impl FnOnce(u64) -> Option<[u8; 16]>) -> Option<Duration> {
    rest::shown(rest::timeout(nr.into(), args)?, args, read)
}

/// The arguments of a call that was interrupted after so long, and what is to be written at which address. A time-out that the kernel
/// keeps up to date itself needs nothing after the first time, which finds it as it was.
#[allow(clippy::type_complexity)]
pub fn rest(
    nr: u32,
    mut args: [u64; 6],
    whole: Duration,
    passed: Duration,
) -> Option<([u64; 6], Option<(u64, [u8; 16])>)> {
    let timeout = rest::timeout(nr.into(), &args)?;
    let left = whole.saturating_sub(passed);
    match timeout {
        Timeout::Millis(arg) => {
            args[arg] = rest::millis(left);
            Some((args, None))
        }
        Timeout::Spec(arg) | Timeout::Val(arg) => Some((args, Some((args[arg], rest::encode(left, timeout))))),
        Timeout::Socket { .. } => None,
    }
}

/// Puts what [`rest`] gave into the buffer at address `base`.
pub fn put(bytes: &mut [u8], time: Option<(u64, [u8; 16])>, base: u64) {
    let Some((address, time)) = time else { return };
    let offset = address
        .checked_sub(base)
        .and_then(|offset| usize::try_from(offset).ok());
    if let Some(room) = offset.and_then(|offset| bytes.get_mut(offset..offset.checked_add(16)?)) {
        room.copy_from_slice(&time);
    }
}

/// The descriptor of a call whose time-out lies in its socket, and whether it sends.
pub fn socket(nr: u32, args: &[u64; 6]) -> Option<(i32, bool)> {
    match rest::timeout(nr.into(), args)? {
        Timeout::Socket { sends } => Some((args[0] as i32, sends)),
        _ => None,
    }
}

/// A wait for the socket of a call, at most so long; the structures for `address`.
pub fn socket_wait(nr: u32, fd: u64, left: Duration, address: u64) -> ([u8; SOCKET_WAIT], Op) {
    let sends = socket(nr, &[fd, 0, 0, 0, 0, 0]).is_some_and(|(_, sends)| sends);
    let events = if sends { libc::POLLOUT } else { libc::POLLIN };
    let mut bytes = [0; SOCKET_WAIT];
    bytes[..4].copy_from_slice(&(fd as u32).to_le_bytes());
    bytes[4..6].copy_from_slice(&events.to_le_bytes());
    bytes[16..].copy_from_slice(&rest::encode(left, Timeout::Spec(2)));
    (bytes, Op::may(libc::SYS_ppoll, [address, 1, address + 16, 0, 8, 0]))
}

/// What a call answers whose socket's time-out is over.
pub fn socket_timed_out(nr: u32) -> i64 {
    let errno = if i64::from(nr) == libc::SYS_connect {
        libc::EINPROGRESS
    } else {
        libc::EAGAIN
    };
    -i64::from(errno)
}

/// Brings the rest of an interrupted sleep, written when the sleep was interrupted the first time, up to date.
pub fn show_rest(bytes: &mut [u8], nr: u32, args: &[u64; 6], base: u64, passed: Duration) {
    let address = if i64::from(nr) == libc::SYS_nanosleep {
        args[1]
    } else {
        args[3]
    };
    let Some(offset) = address.checked_sub(base) else {
        return;
    };
    let timeout = Timeout::Spec(0);
    if let Some(left) = at(bytes, offset).and_then(|shown| rest::decode(shown, timeout)) {
        let left = rest::encode(left.saturating_sub(passed), timeout);
        put(bytes, Some((address, left)), base);
    }
}
