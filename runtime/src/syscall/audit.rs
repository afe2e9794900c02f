//! Checks at home that a forwarded call says what the table says about it.
//!
//! [`relocate::place`](super::relocate::place) executes whatever it is told. A lying host could name a deputy's own
//! address where a pointer belongs, or a structure that reaches beyond the buffer into another thread's slot. So before a
//! deputy sees a call, every argument is compared with the table: pointers lie in the buffer with all the bytes that the
//! kernel may touch, or are null or [`BAD_POINTER`]; everything else is no pointer; nested pointers alike. Nothing that is judged as a
//! length, a name or a path may be a place that becomes an address when the call is placed: the kernel would see another value.

use super::marshal::{ARG_LENGTH, ARG_TOTAL, NFDS, bytes, fd_set_bytes, option_is_unportable, request};
use super::table::{Arg, Row};
use super::{BAD_ADDRESS, BAD_POINTER};
use mosix_wire::call::{Call, Place};

/// Bytes of struct msghdr and struct mmsghdr.
const MSGHDR: u64 = 56;
const MMSGHDR: u64 = 64;
/// Most iovecs and messages of one call; with more the kernel says so before it reads them.
const UIO_MAX: u64 = 1024;

/// A view of a forwarded call's buffer as the kernel will see it.
pub struct View<'a> {
    call: &'a Call,
    payload: &'a [u8],
    /// Offsets of the eight bytes that become addresses, ascending.
    places: Vec<u32>,
    /// Rows of such bytes, first and end, ascending and apart.
    rows: Vec<(u64, u64)>,
}

/// What a pointer in a call is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Null.
    Null,
    /// [`BAD_POINTER`] or [`BAD_ADDRESS`]: faults at home as it does in the guest.
    Bad,
    /// Offset in the buffer.
    At(u64),
}

type Verdict = Result<(), &'static str>;

impl<'a> View<'a> {
    /// Looks at `call`, whose shape [`relocate::check`](super::relocate::check) has accepted.
    pub fn new(call: &'a Call, payload: &'a [u8]) -> Self {
        let mut places: Vec<u32> = call
            .relocs
            .iter()
            .filter_map(|place| match place {
                Place::At(at) => Some(*at),
                Place::Arg(_) | Place::Vector { .. } => None,
            })
            .collect();
        places.sort_unstable();
        let row = |place: &Place| match *place {
            Place::Vector { at, count } => Some((u64::from(at), u64::from(at) + 8 * u64::from(count))),
            Place::Arg(_) | Place::At(_) => None,
        };
        Self {
            call,
            payload,
            places,
            rows: call.relocs.iter().filter_map(row).collect(),
        }
    }

    /// Whether the bytes stay what they are when the call is placed.
    pub fn stays(&self, at: u64, len: u64) -> bool {
        let end = at.saturating_add(len);
        let first = self.places.partition_point(|place| u64::from(*place) + 8 <= at);
        let row = self.rows.partition_point(|(_, end)| *end <= at);
        self.places.get(first).is_none_or(|place| u64::from(*place) >= end)
            && self.rows.get(row).is_none_or(|(start, _)| *start >= end)
    }

    /// Whether these eight bytes become an address.
    fn is_named(&self, at: u64) -> bool {
        let row = self.rows.partition_point(|(_, end)| *end <= at);
        u32::try_from(at).is_ok_and(|at| self.places.binary_search(&at).is_ok())
            || self
                .rows
                .get(row)
                .is_some_and(|(start, _)| *start <= at && at.is_multiple_of(8))
    }

    /// A length in a structure.
    fn length(&self, at: u64) -> Result<u64, &'static str> {
        if self.stays(at, 8) {
            Ok(self.u64_at(at))
        } else {
            Err("length made an address")
        }
    }

    fn size(&self) -> u64 {
        u64::from(self.call.size)
    }

    /// What argument `i` points to; an error when it is an address that is not the buffer's.
    ///
    /// # Errors
    /// The reason.
    pub fn arg(&self, i: u8) -> Result<Target, &'static str> {
        let value = self.call.args[usize::from(i)];
        self.target(self.call.relocs.contains(&Place::Arg(i)), value)
    }

    /// What the eight bytes at offset `at` point to.
    fn nested(&self, at: u64) -> Result<Target, &'static str> {
        let named = self.is_named(at);
        if !named && !self.stays(at, 8) {
            return Err("pointer that overlaps another");
        }
        self.target(named, self.u64_at(at))
    }

    fn target(&self, named: bool, value: u64) -> Result<Target, &'static str> {
        match (named, value) {
            (true, offset) if offset < self.size() => Ok(Target::At(offset)),
            (true, _) => Err("pointer outside the buffer"),
            (false, 0) => Ok(Target::Null),
            (false, BAD_POINTER | BAD_ADDRESS) => Ok(Target::Bad),
            (false, _) => Err("address that is not the buffer's"),
        }
    }

    /// Bytes of the buffer, zeros behind the payload and behind the buffer.
    pub fn bytes_at(&self, at: u64, out: &mut [u8]) {
        let start = usize::try_from(at).unwrap_or(usize::MAX).min(self.payload.len());
        let now = &self.payload[start..];
        let step = now.len().min(out.len());
        out[..step].copy_from_slice(&now[..step]);
        out[step..].fill(0);
    }

    /// Four bytes at an offset.
    pub fn u32_at(&self, at: u64) -> u32 {
        let mut raw = [0; 4];
        self.bytes_at(at, &mut raw);
        u32::from_le_bytes(raw)
    }

    /// Eight bytes at an offset.
    pub fn u64_at(&self, at: u64) -> u64 {
        let mut raw = [0; 8];
        self.bytes_at(at, &mut raw);
        u64::from_le_bytes(raw)
    }

    /// The C string at an offset, without its NUL; `None` when the buffer ends first.
    pub fn c_string(&self, at: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(at).ok()?;
        let text = self.payload.get(start..).unwrap_or_default();
        match text.iter().position(|&b| b == 0) {
            Some(end) => Some(&text[..end]),
            None if (self.payload.len() as u64) < self.size() && at < self.size() => Some(text),
            None => None,
        }
    }

    fn fits(&self, target: Target, need: Option<u64>) -> Verdict {
        match (target, need) {
            (Target::At(at), Some(need)) if at.checked_add(need).is_some_and(|end| end <= self.size()) => Ok(()),
            (Target::At(_), _) => Err("the kernel would go beyond the buffer"),
            _ => Ok(()),
        }
    }

    fn pointer(&self, i: u8, need: Option<u64>) -> Verdict {
        self.fits(self.arg(i)?, need)
    }

    fn value(&self, i: u8) -> u64 {
        self.call.args[usize::from(i)]
    }

    fn argument(&self, i: u8, arg: Arg) -> Verdict {
        let args = &self.call.args;
        match arg {
            Arg::Int | Arg::Fd | Arg::Clock | Arg::SendFlags => self.plain(i),
            Arg::Only(values) => {
                self.plain(i)?;
                if values.contains(&(self.value(i) as u32)) {
                    Ok(())
                } else {
                    Err("value that is not forwarded")
                }
            }
            Arg::Addr => match self.arg(i)? {
                Target::At(_) => Err("address that is not followed"),
                _ => Ok(()),
            },
            Arg::Path | Arg::Str(..) | Arg::Text(_) => match self.arg(i)? {
                Target::At(at) if self.c_string(at).is_none() => Err("string without an end"),
                _ => Ok(()),
            },
            Arg::Strings => self.strings(self.arg(i)?),
            Arg::In(size) | Arg::InOut(size) | Arg::InOutAlways(size) | Arg::Out(size) => {
                self.pointer(i, bytes(size, args))
            }
            Arg::Data(count) | Arg::Room(count) | Arg::Whole(count) => self.pointer(i, Some(self.value(count))),
            Arg::Items(count, each) => self.pointer(i, Some(u64::from(self.value(count) as u32) * u64::from(each))),
            Arg::IovIn(count) | Arg::IovOut(count) => self.iov(self.arg(i)?, self.value(count)),
            Arg::MsgIn | Arg::MsgOut => self.messages(self.arg(i)?, 1, MSGHDR),
            Arg::MmsgIn(count) | Arg::MmsgOut(count) => {
                self.messages(self.arg(i)?, u64::from(self.value(count) as u32).min(UIO_MAX), MMSGHDR)
            }
            Arg::NameIn(len) => self.pointer(i, Some(name_bytes(self.value(len) as u32))),
            Arg::NameOut(len) => self.pointer(i, Some(name_bytes(self.behind(len)?))),
            Arg::NameLen => self.pointer(i, Some(4)),
            Arg::OptIn => {
                self.option(true)?;
                self.pointer(i, Some(u64::try_from(self.value(4) as i32).unwrap_or(0)))
            }
            Arg::OptOut => {
                self.option(false)?;
                self.pointer(i, Some(u64::try_from(self.behind(4)? as i32).unwrap_or(0)))
            }
            Arg::PollFds(count) => self.pointer(i, Some(u64::from(self.value(count) as u32) * 8)),
            Arg::FdSet(count) => match self.value(count) as i32 {
                n if n > 0 && n as u64 > NFDS => Err("too many descriptors"),
                _ => self.pointer(i, Some(fd_set_bytes(self.value(count)).unwrap_or(0))),
            },
            Arg::TempMask(_) | Arg::TempMaskPair => {
                if self.arg(i)? == Target::Null {
                    Ok(())
                } else {
                    Err("signal mask for a deputy")
                }
            }
            // A negative size is refused by the kernel once it has read the type.
            Arg::MsgBufIn(size) | Arg::MsgBufOut(size) => {
                self.pointer(i, Some(8 + u64::try_from(self.value(size) as i64).unwrap_or(0)))
            }
            Arg::By { selector, list } => match request(list, self.value(selector)) {
                Some(known) if !matches!(known.arg, Arg::By { .. }) => self.argument(i, known.arg),
                _ => Err("unknown request"),
            },
        }
    }

    /// A vector of strings that ends with a null pointer.
    fn strings(&self, target: Target) -> Verdict {
        let Target::At(mut at) = target else { return Ok(()) };
        let mut total = 0;
        loop {
            self.fits(Target::At(at), Some(8))?;
            match self.nested(at)? {
                // At an address that faults the kernel stops as well.
                Target::Null | Target::Bad => return Ok(()),
                Target::At(text) => {
                    let start = usize::try_from(text).unwrap_or(usize::MAX).min(self.payload.len());
                    let rest = &self.payload[start..];
                    let rest = &rest[..rest.len().min(ARG_LENGTH + 2)];
                    let length = rest.iter().position(|&b| b == 0).ok_or("string without an end")?;
                    total += length as u64 + 8;
                }
            }
            // One more than the kernel takes may be there, so that it says so.
            if total > ARG_TOTAL + ARG_LENGTH as u64 + 16 {
                return Err("more arguments than a program can get");
            }
            at += 8;
        }
    }

    /// An argument that is no pointer may have any value, but must not become an address.
    fn plain(&self, i: u8) -> Verdict {
        if self.call.relocs.contains(&Place::Arg(i)) {
            Err("number made an address")
        } else {
            Ok(())
        }
    }

    /// The `socklen_t` behind argument `len`, zero without one.
    fn behind(&self, len: u8) -> Result<u32, &'static str> {
        Ok(match self.arg(len)? {
            Target::At(at) => self.u32_at(at),
            _ => 0,
        })
    }

    fn option(&self, set: bool) -> Verdict {
        if option_is_unportable(self.value(1), self.value(2), set) {
            Err("socket option with pointers")
        } else {
            Ok(())
        }
    }

    fn iov(&self, array: Target, count: u64) -> Verdict {
        let Target::At(at) = array else { return Ok(()) };
        if count > UIO_MAX {
            return Ok(());
        }
        self.fits(array, Some(count * 16))?;
        for k in 0..count {
            let entry = at + k * 16;
            let len = self.length(entry + 8)?;
            // A negative length is refused by the kernel before it touches anything.
            let need = if (len as i64) < 0 { 0 } else { len };
            self.fits(self.nested(entry)?, Some(need))?;
        }
        Ok(())
    }

    fn messages(&self, array: Target, count: u64, stride: u64) -> Verdict {
        let Target::At(at) = array else { return Ok(()) };
        self.fits(array, Some(count * stride))?;
        for k in 0..count {
            let header = at + k * stride;
            let (name, bytes) = (self.nested(header)?, name_bytes(self.length(header + 8)? as u32));
            self.fits(name, Some(bytes))?;
            if let Target::At(at) = name
                && !self.stays(at, bytes)
            {
                return Err("name made an address");
            }
            self.iov(self.nested(header + 16)?, self.length(header + 24)?)?;
            self.fits(self.nested(header + 32)?, Some(self.length(header + 40)?))?;
        }
        Ok(())
    }

    /// Offsets of the names (address, length) that a message call sends to.
    pub fn message_names(&self, row: &Row) -> Vec<(u64, u32)> {
        let mut names = Vec::new();
        for (i, arg) in row.args.iter().enumerate() {
            let i = i as u8;
            let (count, stride) = match *arg {
                Arg::NameIn(len) => {
                    if let Ok(Target::At(at)) = self.arg(i) {
                        names.push((at, self.value(len) as u32));
                    }
                    continue;
                }
                Arg::MsgIn => (1, MSGHDR),
                Arg::MmsgIn(count) => (u64::from(self.value(count) as u32).min(UIO_MAX), MMSGHDR),
                _ => continue,
            };
            let Ok(Target::At(at)) = self.arg(i) else { continue };
            for k in 0..count {
                let header = at + k * stride;
                if let Ok(Target::At(name)) = self.nested(header) {
                    names.push((name, self.u32_at(header + 8)));
                }
            }
        }
        names
    }
}

/// Bytes of a socket address that the kernel may touch: at most a sockaddr_storage, none when the length is negative.
fn name_bytes(len: u32) -> u64 {
    u64::try_from(len as i32).unwrap_or(0).min(128)
}

/// Checks `call` against its row.
///
/// # Errors
/// What is wrong; the call must not be executed.
pub fn audit(row: &Row, call: &Call, payload: &[u8]) -> Result<(), &'static str> {
    let view = View::new(call, payload);
    let structured = |arg: &Arg| {
        matches!(
            arg,
            Arg::IovIn(_) | Arg::IovOut(_) | Arg::MsgIn | Arg::MsgOut | Arg::MmsgIn(_) | Arg::MmsgOut(_)
        )
    };
    if !view.places.is_empty() && !row.args.iter().any(structured) {
        return Err("pointers in a call that has none");
    }
    if view.places.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("pointer named twice");
    }
    for i in 0..6u8 {
        match row.args.get(usize::from(i)) {
            Some(&arg) => view.argument(i, arg)?,
            None => view.plain(i)?,
        }
    }
    Ok(())
}
