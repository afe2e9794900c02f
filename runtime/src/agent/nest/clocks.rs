//! Clocks of home for the bodies of an arrival: a time namespace each, since offsets freeze once it is inhabited.
//!
//! The tracer thread makes the namespace *for its children* and stays in its own. Monotonic and boot time of a body go on from
//! where the capturing node's stood; CLOCK_REALTIME has no namespace. See
//! [time_namespaces(7)](https://man7.org/linux/man-pages/man7/time_namespaces.7.html).

use mosix_wire::image::Clocks;
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::{self, Write};

/// `CLONE_NEWTIME`, which nix does not name.
const NEW_TIME: CloneFlags = CloneFlags::from_bits_retain(0x80);
const SECOND: i64 = 1_000_000_000;

/// Makes time namespaces for the children of the thread that opened it.
#[derive(Debug)]
pub struct TimeGate {
    /// /proc/PID/timens_offsets of that thread, opened while the process was dumpable and had CAP_SYS_TIME.
    offsets: File,
    /// The thread's own offsets from the node's clocks: monotonic, boottime.
    own: (i64, i64),
}

/// Reads this thread's clocks together.
///
/// # Errors
/// Those of clock_gettime(2), which knows these clocks on every supported kernel.
pub fn now() -> io::Result<Clocks> {
    let read = |clock| -> io::Result<i64> {
        let time = clock_gettime(clock)?;
        Ok(time.tv_sec() * SECOND + time.tv_nsec())
    };
    Ok(Clocks {
        monotonic: read(ClockId::CLOCK_MONOTONIC)?,
        boottime: read(ClockId::CLOCK_BOOTTIME)?,
        realtime: read(ClockId::CLOCK_REALTIME)?,
    })
}

impl TimeGate {
    /// Opens the gate for the calling thread.
    ///
    /// # Errors
    /// `ENOENT` on a kernel without time namespaces.
    pub fn open() -> io::Result<Self> {
        let path = "/proc/self/timens_offsets";
        let text = std::fs::read_to_string(path)?;
        // Only for writing: the kernel takes a write at position 0 alone, which reading would leave.
        let offsets = File::options().write(true).open(path)?;
        let own = (offset_of(&text, "monotonic")?, offset_of(&text, "boottime")?);
        Ok(Self { offsets, own })
    }

    /// Gives the processes that this thread starts from now on clocks that are so many nanoseconds ahead of this thread's: monotonic,
    /// boottime. Distances, not readings: what passes meanwhile must not be lost.
    ///
    /// # Errors
    /// `ERANGE` for readings that no clock can have; those of unshare(2).
    pub fn set_ahead(&self, ahead: (i64, i64)) -> io::Result<()> {
        let here = now()?;
        let offset = |ahead: i64, here: i64, own: i64| {
            let wanted = here.checked_add(ahead);
            let sane = wanted.is_some_and(|wanted| (0..i64::MAX / 4).contains(&wanted));
            sane.then(|| ahead + own)
                .ok_or_else(|| io::Error::from_raw_os_error(libc::ERANGE))
        };
        let monotonic = offset(ahead.0, here.monotonic, self.own.0)?;
        let boottime = offset(ahead.1, here.boottime, self.own.1)?;
        unshare(NEW_TIME)?;
        let line = |name, offset: i64| format!("{name} {} {}\n", offset.div_euclid(SECOND), offset.rem_euclid(SECOND));
        let text = line("monotonic", monotonic) + &line("boottime", boottime);
        (&self.offsets).write_all(text.as_bytes())
    }
}

/// Reads "NAME SECONDS NANOSECONDS".
fn offset_of(text: &str, name: &str) -> io::Result<i64> {
    let fields = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find_map(|fields| match fields[..] {
            [clock, seconds, nanos] if clock == name => Some((seconds.parse::<i64>(), nanos.parse::<i64>())),
            _ => None,
        });
    match fields {
        Some((Ok(seconds), Ok(nanos))) => Ok(seconds.saturating_mul(SECOND).saturating_add(nanos)),
        _ => Err(io::Error::other(format!("no {name} in timens_offsets"))),
    }
}
