//! Gathers a guest's arguments into a relocatable call, as the table describes them, and scatters its results.
//!
//! The values are hostile: counts are bounded before anything is allocated, every guest address is read once. Where an
//! address or a count is bad the call is forwarded with an equally bad one ([`BAD_POINTER`]) and home's kernel finds the
//! error, in its own order of checks; only what cannot be sent that way is answered here.

mod builder;
mod scatter;
mod sockets;
mod strings;
mod vectors;

pub use builder::{Builder, Ids, Span, Spot, TooLarge};
pub use scatter::{BadReply, Piece, Scatter};
pub use sockets::option_is_unportable;
pub use strings::{ARG_LENGTH, ARG_TOTAL};

use super::emulate;
use super::memory::{GuestMemory, TASK_END};
use super::rusage;
use super::table::{Arg, Request, Row, Size};
use super::{BAD_ADDRESS, BAD_POINTER};
use mosix_wire::call::Call;
use mosix_wire::limits;

/// Most bytes that one read or write moves (MAX_RW_COUNT); the kernel shortens longer ones.
pub const MAX_RW: u64 = 0x7fff_f000;

/// Most room of a [`Arg::Whole`] output: POSIX queues allow 16 MiB messages, everything else is smaller.
pub const WHOLE: u64 = 16 << 20;

/// Most pollfds, and descriptors in an fd_set: the largest RLIMIT_NOFILE a kernel allows by default.
pub const NFDS: u64 = 1 << 20;

/// A gathered call.
#[derive(Debug)]
pub enum Gathered {
    /// To be sent home.
    Forward(Box<Forward>),
    /// Fails with this errno; nothing is sent.
    Errno(i32),
    /// The process comes home and runs the call there; why.
    ComeHome(&'static str),
}

/// A call ready to be sent.
#[derive(Debug)]
pub struct Forward {
    /// The call.
    pub call: Call,
    /// The input part of its buffer.
    pub payload: Vec<u8>,
    /// What to do with the reply.
    pub scatter: Scatter,
    /// The signal mask that the body has while the call lasts (ppoll, pselect6, epoll_pwait); home's call has none.
    pub temp_mask: Option<u64>,
}

/// Why gathering ended early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    Errno(i32),
    ComeHome(&'static str),
}

impl From<TooLarge> for Stop {
    fn from(_: TooLarge) -> Self {
        Stop::ComeHome("its buffers are larger than one forwarded call may carry")
    }
}

/// Gathers the arguments of a call that the table forwards.
///
/// `args` are the register arguments as the notification shows them.
pub fn gather(row: &Row, args: [u64; 6], mem: &impl GuestMemory, ids: Ids) -> Gathered {
    let mut gather = Gather {
        nr: row.nr,
        mem,
        ids,
        b: Builder::new(args),
        temp_mask: None,
    };
    for (index, &arg) in row.args.iter().enumerate().take(6) {
        match gather.argument(index as u8, arg) {
            Ok(()) => {}
            Err(Stop::Errno(errno)) => return Gathered::Errno(errno),
            Err(Stop::ComeHome(why)) => return Gathered::ComeHome(why),
        }
    }
    let temp_mask = gather.temp_mask;
    match gather.b.finish(ids, gather.nr) {
        Ok((call, payload, mut scatter)) => {
            let part = rusage::part(row.nr, &args, ids.pid.0, ids.tid.0);
            scatter.part = part.or_else(|| rusage::limit(&call, &payload));
            Gathered::Forward(Box::new(Forward {
                call,
                payload,
                scatter,
                temp_mask,
            }))
        }
        Err(TooLarge) => Gathered::ComeHome("it has more buffers than one forwarded call may carry"),
    }
}

/// Finds the request that the low 32 bits of `value` select.
pub(super) fn request(list: &'static [Request], value: u64) -> Option<&'static Request> {
    list.iter().find(|request| request.value == value as u32)
}

/// Bytes of a structure or array, or `None` when the product overflows.
pub(super) fn bytes(size: Size, args: &[u64; 6]) -> Option<u64> {
    match size {
        Size::Fixed(n) => Some(u64::from(n)),
        Size::Bytes(arg) => Some(args[usize::from(arg)]),
        // Counts are `int` or `unsigned int` in the calls that have such arrays.
        Size::Times(arg, each) => (args[usize::from(arg)] & 0xffff_ffff).checked_mul(u64::from(each)),
    }
}

/// Alignment of a data part: O_DIRECT wants the guest's own alignment, everything else nothing.
pub(super) fn data_align(addr: u64, len: u64) -> u64 {
    if len >= 512 && len.is_multiple_of(512) && addr.is_multiple_of(512) {
        (1 << addr.trailing_zeros().min(12)).max(8)
    } else {
        8
    }
}

/// Bytes of an fd_set for `nfds` descriptors.
pub(super) fn fd_set_bytes(nfds: u64) -> Option<u64> {
    let n = nfds as i32;
    if n <= 0 {
        None
    } else {
        Some((n as u64).min(NFDS).div_ceil(64) * 8)
    }
}

/// The bad address that stands for one with `len` bytes.
pub(super) fn bad_pointer(addr: u64, len: u64) -> u64 {
    if is_user(addr, len) { BAD_POINTER } else { BAD_ADDRESS }
}

/// Whether the kernel takes the range for a user's (access_ok), mapped or not.
pub(super) fn is_user(addr: u64, len: u64) -> bool {
    addr <= TASK_END && len <= TASK_END - addr
}

struct Gather<'a, M> {
    /// The call that is sent.
    nr: u32,
    mem: &'a M,
    ids: Ids,
    b: Builder,
    temp_mask: Option<u64>,
}

impl<M: GuestMemory> Gather<'_, M> {
    fn value(&self, arg: u8) -> u64 {
        self.b.args[usize::from(arg)]
    }

    fn bad(&mut self, arg: u8) {
        self.bad_range(arg, 1);
    }

    /// Replaces a pointer to `len` bytes by one that is bad in the same way.
    fn bad_range(&mut self, arg: u8, len: u64) {
        self.b.args[usize::from(arg)] = bad_pointer(self.value(arg), len);
    }

    fn argument(&mut self, i: u8, arg: Arg) -> Result<(), Stop> {
        let addr = self.value(i);
        match arg {
            Arg::Int | Arg::Fd => Ok(()),
            // Not followed by home's kernel, or only for calls that are not forwarded.
            Arg::Addr => {
                if addr != 0 {
                    self.bad(i);
                }
                Ok(())
            }
            Arg::Only(values) => {
                if values.contains(&(addr as u32)) {
                    Ok(())
                } else {
                    Err(Stop::ComeHome("unusual form of the call"))
                }
            }
            Arg::Clock => match emulate::cpu_clock(addr, self.ids.pid.0, self.ids.tid.0) {
                Some(_) => Err(Stop::ComeHome("sleeps or times by a CPU clock")),
                None => Ok(()),
            },
            Arg::SendFlags => {
                if addr & libc::MSG_ZEROCOPY as u64 == 0 {
                    Ok(())
                } else {
                    Err(Stop::ComeHome("sends without copying"))
                }
            }
            _ if addr == 0 && !matches!(arg, Arg::By { .. }) => Ok(()),
            Arg::Path => self.path(i),
            Arg::Str(room, errno) => self.string(i, room as usize, errno),
            Arg::Text(room) => self.text(i, room as usize),
            Arg::Strings => self.strings(i),
            Arg::In(size) => self.fixed(i, size, None),
            Arg::InOut(size) => self.fixed(i, size, Some(Span::Success)),
            Arg::InOutAlways(size) => self.fixed(i, size, Some(Span::Always)),
            Arg::Out(size) => self.out(i, size),
            Arg::Data(count) => self.data(i, count),
            Arg::Room(count) => self.result_room(i, count),
            Arg::Whole(count) => self.whole(i, count),
            Arg::Items(count, each) => self.items(i, count, each),
            Arg::IovIn(count) => self.iov(i, count, false),
            Arg::IovOut(count) => self.iov(i, count, true),
            Arg::MsgIn => self.msg(i, false),
            Arg::MsgOut => self.msg(i, true),
            Arg::MmsgIn(count) => self.mmsg(i, count, false),
            Arg::MmsgOut(count) => self.mmsg(i, count, true),
            Arg::NameIn(len) => self.name_in(i, len),
            Arg::NameOut(len) => self.name_out(i, len),
            // Filled in by the argument before it.
            Arg::NameLen => self.name_len(i),
            Arg::OptIn => self.opt_in(i),
            Arg::OptOut => self.opt_out(i),
            Arg::PollFds(count) => {
                if self.value(count) as u32 as u64 > NFDS {
                    return Err(Stop::Errno(libc::EINVAL));
                }
                self.fixed(i, Size::Times(count, 8), Some(Span::Success))
            }
            Arg::FdSet(nfds) => match fd_set_bytes(self.value(nfds)) {
                Some(bytes) => {
                    // The kernel shortens the number likewise, to the size of the descriptor table.
                    if self.value(nfds) as i32 as u64 > NFDS {
                        self.b.args[usize::from(nfds)] = NFDS;
                    }
                    self.region(i, bytes, Some(Span::Success))
                }
                None => {
                    self.bad(i);
                    Ok(())
                }
            },
            Arg::TempMask(size) => {
                if self.value(size) != 8 {
                    return Err(Stop::Errno(libc::EINVAL));
                }
                self.mask(i, addr)
            }
            Arg::TempMaskPair => {
                let mut pair = [0; 16];
                self.mem.read(addr, &mut pair).map_err(|_| Stop::Errno(libc::EFAULT))?;
                let (mask, size) = (vectors::u64_at(&pair, 0), vectors::u64_at(&pair, 8));
                if mask == 0 {
                    self.b.args[usize::from(i)] = 0;
                    return Ok(());
                }
                if size != 8 {
                    return Err(Stop::Errno(libc::EINVAL));
                }
                self.mask(i, mask)
            }
            Arg::MsgBufIn(size) => self.msgbuf_in(i, size),
            Arg::MsgBufOut(size) => self.msgbuf_out(i, size),
            Arg::By { selector, list } => match request(list, self.value(selector)) {
                // One level only: a request's own argument is never another selector.
                Some(Request {
                    arg: Arg::By { .. }, ..
                })
                | None => Err(Stop::ComeHome("unknown request")),
                Some(request) => self.argument(i, request.arg),
            },
        }
    }

    fn path(&mut self, i: u8) -> Result<(), Stop> {
        match self.mem.read_cstr(self.value(i), libc::PATH_MAX as usize) {
            Err(_) => self.bad(i),
            Ok(None) => return Err(Stop::Errno(libc::ENAMETOOLONG)),
            Ok(Some(path)) => {
                if emulate::own_memory_path(&path, self.ids.pid.0, self.ids.tid.0) {
                    return Err(Stop::ComeHome("looks at its own memory in /proc"));
                }
                self.c_string(i, path)?;
            }
        }
        Ok(())
    }

    fn string(&mut self, i: u8, room: usize, errno: i32) -> Result<(), Stop> {
        match self.mem.read_cstr(self.value(i), room) {
            Err(_) => self.bad(i),
            Ok(None) => return Err(Stop::Errno(errno)),
            Ok(Some(text)) => self.c_string(i, text)?,
        }
        Ok(())
    }

    fn text(&mut self, i: u8, room: usize) -> Result<(), Stop> {
        match self.mem.read_cstr(self.value(i), room) {
            Err(_) => self.bad(i),
            Ok(Some(text)) => self.c_string(i, text)?,
            Ok(None) => {
                let mut text = vec![0; room - 1];
                match self.mem.read(self.value(i), &mut text) {
                    Ok(()) => self.c_string(i, text)?,
                    Err(_) => self.bad(i),
                }
            }
        }
        Ok(())
    }

    fn c_string(&mut self, i: u8, mut text: Vec<u8>) -> Result<(), Stop> {
        text.push(0);
        let at = self.b.input(&text, 8)?;
        self.b.point_arg(i, at);
        Ok(())
    }

    /// An input structure or array; with `back` it also comes back.
    fn fixed(&mut self, i: u8, size: Size, back: Option<Span>) -> Result<(), Stop> {
        match bytes(size, &self.b.args) {
            Some(len) => self.region(i, len, back),
            None => {
                self.bad(i);
                Ok(())
            }
        }
    }

    fn region(&mut self, i: u8, len: u64, back: Option<Span>) -> Result<(), Stop> {
        let addr = self.value(i);
        if len > limits::CALL_BUFFER as u64 {
            // A length that no user address range has fails at home as it would have failed here.
            if !is_user(addr, len) {
                self.bad_range(i, len);
                return Ok(());
            }
            return Err(TooLarge.into());
        }
        if len == 0 {
            self.bad_range(i, 0);
            return Ok(());
        }
        let mut copy = vec![0; len as usize];
        if self.mem.read(addr, &mut copy).is_err() {
            self.bad(i);
            return Ok(());
        }
        let at = self.b.input(&copy, 8)?;
        self.b.point_arg(i, at);
        if let Some(span) = back {
            self.b.output(at, len as u32, span, Piece::one(addr, len));
        }
        Ok(())
    }

    fn out(&mut self, i: u8, size: Size) -> Result<(), Stop> {
        let addr = self.value(i);
        let Some(len) = bytes(size, &self.b.args).filter(|&len| len > 0 && self.mem.accessible(addr, len, true) == len)
        else {
            self.bad(i);
            return Ok(());
        };
        let at = self.b.room(len, 8)?;
        self.b.point_arg(i, at);
        self.b.output(at, len as u32, Span::Success, Piece::one(addr, len));
        Ok(())
    }

    /// How much of `[addr, addr + len)` the call can use: what the kernel would move before it finds a fault.
    fn usable(&self, addr: u64, len: u64, write: bool) -> u64 {
        // The kernel checks the whole range against the end of user addresses first.
        if !is_user(addr, len) {
            return 0;
        }
        self.mem.accessible(addr, len.min(MAX_RW), write)
    }

    fn data(&mut self, i: u8, count: u8) -> Result<(), Stop> {
        let (addr, len) = (self.value(i), self.value(count));
        let usable = self.usable(addr, len, false);
        if usable == 0 {
            self.bad_range(i, len);
            return Ok(());
        }
        if usable > limits::CALL_BUFFER as u64 {
            return Err(TooLarge.into());
        }
        let mut copy = vec![0; usable as usize];
        let done = self.mem.read_some(addr, &mut copy);
        copy.truncate(done);
        if copy.is_empty() {
            self.bad_range(i, len);
            return Ok(());
        }
        let usable = copy.len() as u64;
        let at = self.b.input(&copy, data_align(addr, usable))?;
        self.cut(i, count, at, usable, len)
    }

    fn result_room(&mut self, i: u8, count: u8) -> Result<(), Stop> {
        let (addr, mut len) = (self.value(i), self.value(count));
        if matches!(i64::from(self.nr), libc::SYS_getdents | libc::SYS_getdents64) {
            // An `unsigned int` that the kernel keeps in an `int`: no room when it is negative.
            len = u64::try_from(len as i32).unwrap_or(0);
        }
        if i64::from(self.nr) == libc::SYS_recvfrom {
            // Shortened before the range is checked, unlike read.
            len = len.min(MAX_RW);
        }
        let usable = self.usable(addr, len, true);
        if usable == 0 {
            self.bad_range(i, len);
            return Ok(());
        }
        if usable > limits::CALL_BUFFER as u64 {
            return Err(TooLarge.into());
        }
        let at = self.b.room(usable, data_align(addr, usable))?;
        self.b.output(at, usable as u32, Span::Result, Piece::one(addr, usable));
        self.cut(i, count, at, usable, len)
    }

    /// Makes argument `i` point to the `usable` bytes of `len` at `at`. What the call does when it reaches the fault is up
    /// to the file (a pipe moves less, a datagram fails), so reads and writes are sent with a vector that faults there.
    fn cut(&mut self, i: u8, count: u8, at: Spot, usable: u64, len: u64) -> Result<(), Stop> {
        let vector = match i64::from(self.nr) {
            libc::SYS_read => libc::SYS_readv,
            libc::SYS_write => libc::SYS_writev,
            libc::SYS_pread64 => libc::SYS_preadv,
            libc::SYS_pwrite64 => libc::SYS_pwritev,
            _ => 0,
        };
        let len = len.min(MAX_RW);
        if usable == len || vector == 0 {
            self.b.point_arg(i, at);
            self.b.args[usize::from(count)] = usable;
            return Ok(());
        }
        let entries = self.entries(&[(Ok(at), usable), (Err(BAD_POINTER), len - usable)])?;
        self.b.point_arg(i, entries);
        self.b.args[usize::from(count)] = 2;
        // preadv and pwritev: the position is one argument on this architecture, the next is not looked at.
        self.b.args[4] = 0;
        self.nr = vector as u32;
        Ok(())
    }

    /// An output whose room must not be cut: the call judges its size. A fault shows when the result is written.
    fn whole(&mut self, i: u8, count: u8) -> Result<(), Stop> {
        let (addr, len) = (self.value(i), self.value(count));
        if len == 0 || self.usable(addr, len.min(8), true) == 0 {
            self.bad_range(i, len);
            return Ok(());
        }
        // More than the largest result of any such call (xattr, path, message): the rest of the room is never used.
        let room = len.min(WHOLE);
        let at = self.b.room(room, 8)?;
        self.b.point_arg(i, at);
        self.b.output(at, room as u32, Span::Result, Piece::one(addr, room));
        self.b.args[usize::from(count)] = room;
        Ok(())
    }

    fn items(&mut self, i: u8, count: u8, each: u32) -> Result<(), Stop> {
        let addr = self.value(i);
        let wanted = self.value(count) as i32;
        if wanted <= 0 {
            self.bad(i);
            return Ok(());
        }
        // Fewer elements than asked for is a legal answer, so a huge array is served with less room.
        let most = (limits::CALL_BUFFER as u64 / u64::from(each)).min(wanted as u64);
        let usable = self.usable(addr, most * u64::from(each), true) / u64::from(each);
        if usable == 0 {
            self.bad(i);
            return Ok(());
        }
        let room = usable * u64::from(each);
        let at = self.b.room(room, 8)?;
        self.b.point_arg(i, at);
        self.b
            .output(at, room as u32, Span::Elements(each), Piece::one(addr, room));
        self.b.args[usize::from(count)] = usable;
        Ok(())
    }

    fn mask(&mut self, i: u8, addr: u64) -> Result<(), Stop> {
        let mut mask = [0; 8];
        self.mem.read(addr, &mut mask).map_err(|_| Stop::Errno(libc::EFAULT))?;
        self.temp_mask = Some(u64::from_le_bytes(mask));
        self.b.args[usize::from(i)] = 0;
        Ok(())
    }

    fn msgbuf_in(&mut self, i: u8, size: u8) -> Result<(), Stop> {
        let len = self.value(size);
        if len <= limits::CALL_BUFFER as u64 {
            self.region(i, 8 + len, None)
        } else {
            // Longer than any message: only the type is read before the kernel says so.
            self.b.args[usize::from(size)] = u64::MAX;
            self.region(i, 8, None)
        }
    }

    fn msgbuf_out(&mut self, i: u8, size: u8) -> Result<(), Stop> {
        let (addr, len) = (self.value(i), self.value(size));
        if (len as i64) < 0 {
            self.bad(i);
            return Ok(());
        }
        // MSGMAX bounds a message; a program may offer more room than can ever be used.
        let len = len.min(limits::CALL_BUFFER as u64);
        let usable = self.usable(addr, 8 + len, true);
        if usable < 8 {
            self.bad(i);
            return Ok(());
        }
        let text = usable - 8;
        let at = self.b.room(usable, 8)?;
        self.b.point_arg(i, at);
        self.b.output(at, 8, Span::Success, Piece::one(addr, 8));
        self.b
            .output(at.plus(8), text as u32, Span::Result, Piece::one(addr + 8, text));
        self.b.args[usize::from(size)] = text;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
