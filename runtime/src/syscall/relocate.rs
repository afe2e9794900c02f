//! Home's side of a forwarded call: from the frame into the deputy's memory, and its results out of it.
//!
//! Nothing here trusts the frame. [`place`] needs no knowledge of the call; whether the call may be executed at all and
//! whether the kernel stays inside the buffer is for [`audit`](super::audit) and [`policy`](super::policy).

use mosix_wire::call::{Call, Extent, Place};
use mosix_wire::limits;

/// A call that cannot be placed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed call {nr} of thread {tid}: {why}")]
pub struct Malformed {
    /// System call number.
    pub nr: u32,
    /// Thread id.
    pub tid: i32,
    /// What is wrong.
    pub why: &'static str,
}

/// Most bytes of a call's buffer.
pub const BUFFER: usize = limits::FRAME_PAYLOAD;

/// Checks every field of `call` that [`place`] and [`collect`] use.
///
/// # Errors
/// [`Malformed`], naming the field.
pub fn check(call: &Call, payload: &[u8]) -> Result<(), Malformed> {
    let bad = |why| Malformed {
        nr: call.nr,
        tid: call.tid.0,
        why,
    };
    let size = call.size as usize;
    if size > BUFFER {
        return Err(bad("buffer larger than a call may have"));
    }
    if payload.len() > size {
        return Err(bad("payload larger than the buffer"));
    }
    if call.relocs.len() > limits::CALL_PARTS {
        return Err(bad("too many pointers"));
    }
    if call.outputs.len() > limits::CALL_PARTS {
        return Err(bad("too many outputs"));
    }
    let inside = |offset: u32, len: u32| u64::from(offset) + u64::from(len) <= size as u64;
    let (mut seen, mut behind) = (0u8, 0);
    for reloc in &call.relocs {
        match *reloc {
            Place::Arg(n @ 0..=5) => {
                if seen & 1 << n != 0 {
                    return Err(bad("argument named twice"));
                }
                seen |= 1 << n;
                if call.args[usize::from(n)] >= size as u64 {
                    return Err(bad("argument outside the buffer"));
                }
            }
            Place::Arg(_) => return Err(bad("argument number")),
            Place::At(at) if u64::from(at) + 8 > payload.len() as u64 => {
                return Err(bad("pointer place outside the payload"));
            }
            // Pointers of structures are aligned; then two places cannot overlap.
            Place::At(at) if !at.is_multiple_of(8) => return Err(bad("pointer place that is not aligned")),
            Place::At(_) => {}
            Place::Vector { at, count } => {
                let end = u64::from(at) + 8 * u64::from(count);
                if !at.is_multiple_of(8) || count == 0 || u64::from(at) < behind || end > payload.len() as u64 {
                    return Err(bad("row of pointers"));
                }
                behind = end;
            }
        }
    }
    let mut total = 0u64;
    for output in &call.outputs {
        if !inside(output.offset, output.room) {
            return Err(bad("output outside the buffer"));
        }
        // Outputs may overlap only as far as a buffer of full size could hold them.
        total += u64::from(output.room);
        let length_inside = match output.extent {
            Extent::LengthAt(at) => inside(at, 4),
            Extent::LongLengthAt(at) => inside(at, 8),
            _ => true,
        };
        if !length_inside {
            return Err(bad("output's length outside the buffer"));
        }
    }
    if total > BUFFER as u64 {
        return Err(bad("outputs larger than a call may have"));
    }
    Ok(())
}

/// Places the call in `buffer`, which the deputy sees at address `base`, and returns the arguments to execute it with.
///
/// `buffer` must have at least `call.size` bytes; exactly these are written (payload, then zeros). `base` should be
/// aligned to pages, so that data for O_DIRECT keeps the alignment it had in the guest.
///
/// # Errors
/// [`Malformed`]; the buffer may then have been partly written, and the call must not be executed.
pub fn place(call: &Call, payload: &[u8], buffer: &mut [u8], base: u64) -> Result<[u64; 6], Malformed> {
    check(call, payload)?;
    let bad = |why| Malformed {
        nr: call.nr,
        tid: call.tid.0,
        why,
    };
    let size = call.size as usize;
    let buffer = buffer
        .get_mut(..size)
        .ok_or_else(|| bad("buffer smaller than the call"))?;
    let (input, room) = buffer.split_at_mut(payload.len());
    input.copy_from_slice(payload);
    room.fill(0);
    let mut args = call.args;
    for reloc in &call.relocs {
        match *reloc {
            Place::Arg(n) => {
                let arg = args.get_mut(usize::from(n)).ok_or_else(|| bad("argument number"))?;
                *arg = arg.checked_add(base).ok_or_else(|| bad("address overflow"))?;
            }
            Place::At(at) => point(buffer, at as usize, base).map_err(bad)?,
            Place::Vector { at, count } => {
                for index in 0..count as usize {
                    point(buffer, at as usize + 8 * index, base).map_err(bad)?;
                }
            }
        }
    }
    Ok(args)
}

/// Makes the offset at `at` an address.
fn point(buffer: &mut [u8], at: usize, base: u64) -> Result<(), &'static str> {
    let size = buffer.len() as u64;
    let place = buffer
        .get_mut(at..at + 8)
        .and_then(|b| <&mut [u8; 8]>::try_from(b).ok());
    let place = place.ok_or("pointer place outside the buffer")?;
    let offset = u64::from_le_bytes(*place);
    // A place named twice holds an address the second time, which is no offset.
    if offset >= size {
        return Err("pointer outside the buffer");
    }
    *place = base.checked_add(offset).ok_or("address overflow")?.to_le_bytes();
    Ok(())
}

/// What comes back after the call: for each output its number of bytes, and the parts of the buffer (offset, bytes) to
/// send, in the same order.
///
/// `result` is the raw result of the call, `buffer` the memory it worked on. The deputy's memory is as little trusted as
/// the call: lengths found in it are bounded by the outputs' room.
pub fn collect(call: &Call, result: i64, buffer: &[u8]) -> (Vec<u32>, Vec<(u32, u32)>) {
    let number = |at: u32, len: usize| -> u64 {
        let mut raw = [0; 8];
        if let Some(bytes) = buffer.get(at as usize..at as usize + len) {
            raw[..len].copy_from_slice(bytes);
        }
        u64::from_le_bytes(raw)
    };
    let success = result >= 0;
    let mut left = u64::try_from(result).unwrap_or(0);
    let mut lengths = Vec::with_capacity(call.outputs.len());
    let mut parts = Vec::with_capacity(call.outputs.len());
    for output in &call.outputs {
        let room = u64::from(output.room);
        let len = match output.extent {
            Extent::Always => room,
            _ if !success => 0,
            Extent::Success => room,
            Extent::Result => {
                let now = left.min(room);
                left -= now;
                now
            }
            Extent::Elements(each) => (result as u64).saturating_mul(u64::from(each)).min(room),
            Extent::LengthAt(at) => number(at, 4).min(room),
            Extent::LongLengthAt(at) => number(at, 8).min(room),
        };
        let end = u64::from(output.offset) + len;
        let len = if end <= buffer.len() as u64 { len as u32 } else { 0 };
        lengths.push(len);
        if len > 0 {
            parts.push((output.offset, len));
        }
    }
    (lengths, parts)
}
