//! Socket addresses, options and messages.

use super::vectors::{u32_at, u64_at};
use super::{Gather, Piece, Span, Spot, Stop, bad_pointer};
use crate::syscall::memory::GuestMemory;

/// sizeof(struct sockaddr_storage): the longest address.
pub const NAME: u64 = 128;
/// sizeof(struct msghdr) and struct mmsghdr.
pub const MSGHDR: usize = 56;
/// See [`MSGHDR`].
pub const MMSGHDR: usize = 64;
/// Most messages of one forwarded sendmmsg or recvmmsg; both may move fewer than asked.
pub const MESSAGES: u64 = 64;
/// Most bytes of control messages; the kernel's own bound (optmem_max) is 20 to 128 KiB.
pub const CONTROL: u64 = 1 << 20;
/// What most options read of their value at most: a struct timeval.
const OPTION_READ: usize = 16;
/// Most bytes of an option's value.
pub const OPTION: u64 = 1 << 20;

/// Options whose value holds pointers or makes the kernel keep pages of the caller.
fn unportable(level: u32, name: u32, set: bool) -> bool {
    match (level, name) {
        // SO_ATTACH_FILTER (SO_GET_FILTER), SO_ATTACH_REUSEPORT_CBPF, SO_ZEROCOPY; SO_GET_FILTER writes plain memory,
        // but its length counts instructions.
        (1, 26 | 51) => true,
        (1, 60) => set,
        // Tables of iptables, arptables, ebtables.
        (0, 64..=69 | 96..=99 | 128..=131) => true,
        (41, 64 | 65 | 68 | 69) => true,
        // TCP_ZEROCOPY_RECEIVE; SCTP's and XDP's structures; PACKET_*_RING memory is mapped at home.
        (6, 35) => true,
        (132 | 283, _) => true,
        _ => false,
    }
}

/// Whether home would refuse to execute this option for a moved process; shared with the audit.
pub fn option_is_unportable(level: u64, name: u64, set: bool) -> bool {
    unportable(level as u32, name as u32, set)
}

impl<M: GuestMemory> Gather<'_, M> {
    pub(super) fn name_in(&mut self, i: u8, len: u8) -> Result<(), Stop> {
        // Outside these bounds the kernel says EINVAL before it reads the address.
        match self.value(len) as i32 {
            n @ 0..=128 => self.region(i, n as u64, None),
            _ => {
                self.bad(i);
                Ok(())
            }
        }
    }

    /// Reads the in-out length behind argument `len`: its place and value, or `None` when it is not accessible.
    fn length_behind(&mut self, len: u8, most: u64) -> Result<Option<(Spot, u64)>, Stop> {
        let addr = self.value(len);
        let mut raw = [0; 4];
        if addr == 0 || self.mem.read(addr, &mut raw).is_err() {
            if addr != 0 {
                self.bad(len);
            }
            return Ok(None);
        }
        let value = i32::from_le_bytes(raw);
        let room = u64::try_from(value).unwrap_or(0).min(most);
        let sent = if value < 0 { value } else { room as i32 };
        let at = self.b.input(&sent.to_le_bytes(), 8)?;
        self.b.point_arg(len, at);
        self.b.output(at, 4, Span::Success, Piece::one(addr, 4));
        Ok(Some((at, room)))
    }

    pub(super) fn name_out(&mut self, i: u8, len: u8) -> Result<(), Stop> {
        let addr = self.value(i);
        let Some((length, room)) = self.length_behind(len, NAME)? else {
            self.bad(i);
            return Ok(());
        };
        // The true name may be shorter than the room: only what is written can fault.
        if self.usable(addr, room.min(1), true) == 0 {
            self.bad(i);
            return Ok(());
        }
        let at = self.b.room(room, 8)?;
        self.b.point_arg(i, at);
        self.b
            .output(at, room as u32, Span::LengthAt(length), Piece::one(addr, room));
        Ok(())
    }

    /// A length whose address argument was null: the argument before did not take it.
    pub(super) fn name_len(&mut self, i: u8) -> Result<(), Stop> {
        let without_name = self.b.args[usize::from(i) - 1] == 0;
        if without_name
            && !matches!(
                i64::from(self.nr),
                libc::SYS_getsockname | libc::SYS_getpeername | libc::SYS_getsockopt
            )
        {
            // accept and recvfrom do not look at it.
            self.b.args[usize::from(i)] = 0;
            return Ok(());
        }
        if without_name {
            self.length_behind(i, NAME).map(|_| ())
        } else {
            Ok(())
        }
    }

    pub(super) fn opt_in(&mut self, i: u8) -> Result<(), Stop> {
        if unportable(self.value(1) as u32, self.value(2) as u32, true) {
            return Err(Stop::ComeHome("socket option with pointers"));
        }
        match self.value(4) as i32 {
            n if n > 0 && n as u64 <= OPTION => {
                // The kernel reads as much as the option has; a program may claim more than it owns.
                let mut copy = vec![0; n as usize];
                if self.mem.read_some(self.value(i), &mut copy) < copy.len().min(OPTION_READ) {
                    self.bad_range(i, n as u64);
                    return Ok(());
                }
                let at = self.b.input(&copy, 8)?;
                self.b.point_arg(i, at);
                Ok(())
            }
            n if n > 0 => Err(Stop::ComeHome("socket option longer than a call may carry")),
            _ => {
                self.bad(i);
                Ok(())
            }
        }
    }

    pub(super) fn opt_out(&mut self, i: u8) -> Result<(), Stop> {
        if unportable(self.value(1) as u32, self.value(2) as u32, false) {
            return Err(Stop::ComeHome("socket option with pointers"));
        }
        let addr = self.value(i);
        let Some((length, room)) = self.length_behind(4, OPTION)? else {
            self.bad(i);
            return Ok(());
        };
        // Some options read their value before they write it; none needs all of the room.
        let mut copy = vec![0; room as usize];
        if self.mem.read_some(addr, &mut copy) == 0 {
            self.bad_range(i, room);
            return Ok(());
        }
        let at = self.b.input(&copy, 8)?;
        self.b.point_arg(i, at);
        self.b
            .output(at, room as u32, Span::LengthAt(length), Piece::one(addr, room));
        Ok(())
    }

    pub(super) fn msg(&mut self, i: u8, receive: bool) -> Result<(), Stop> {
        let addr = self.value(i);
        let mut header = [0; MSGHDR];
        if self.mem.read(addr, &mut header).is_err() {
            self.bad(i);
            return Ok(());
        }
        let at = self.b.input(&header, 8)?;
        self.b.point_arg(i, at);
        self.message(at, &header, addr, receive, None)
    }

    pub(super) fn mmsg(&mut self, i: u8, count: u8, receive: bool) -> Result<(), Stop> {
        let addr = self.value(i);
        let n = u64::from(self.value(count) as u32).min(MESSAGES);
        let mut raw = vec![0; n as usize * MMSGHDR];
        if n == 0 || self.mem.read(addr, &mut raw).is_err() {
            self.bad(i);
            return Ok(());
        }
        let at = self.b.input(&raw, 8)?;
        self.b.point_arg(i, at);
        self.b.args[usize::from(count)] = n;
        for (k, header) in raw.chunks_exact(MMSGHDR).enumerate() {
            let skip = (k * MMSGHDR) as u32;
            let guest = addr + u64::from(skip);
            self.message(at.plus(skip), &header[..MSGHDR], guest, receive, Some(k as u32))?;
            // msg_len, written for each message that was moved. It starts as zero, so that messages not received have
            // no data to send back.
            let length = at.plus(skip + MSGHDR as u32);
            self.b.set_u32(length, 0);
            let to = vec![(guest + MSGHDR as u64, 4)];
            self.b.output(
                length,
                4,
                Span::Success,
                Piece {
                    to,
                    above: Some(k as u32),
                },
            );
        }
        Ok(())
    }

    /// Fills in the copy at `at` of the msghdr `header`, which is at `guest` in the guest. `index`: its place in an array.
    fn message(&mut self, at: Spot, header: &[u8], guest: u64, receive: bool, index: Option<u32>) -> Result<(), Stop> {
        let piece = |addr, len| Piece {
            to: vec![(addr, len)],
            above: index,
        };
        let (name, name_len) = (u64_at(header, 0), u32_at(header, 8) as i32);
        let (iov, iov_len) = (u64_at(header, 16), u64_at(header, 24));
        let (control, control_len) = (u64_at(header, 32), u64_at(header, 40));

        // Name. The kernel ignores the length without a name and shortens it to sockaddr_storage.
        let name_len = if name == 0 { 0 } else { name_len.min(NAME as i32) };
        self.b.set_u64(at, if name == 0 { 0 } else { bad_pointer(name, 1) });
        self.b.set_u32(at.plus(8), name_len as u32);
        if name != 0 && name_len > 0 {
            let len = name_len as u64;
            if receive {
                if self.usable(name, 1, true) > 0 {
                    let part = self.b.room(len, 8)?;
                    self.b.point_at(at, part);
                    self.b
                        .output(part, len as u32, Span::LengthAt(at.plus(8)), piece(name, len));
                }
            } else {
                let mut copy = vec![0; len as usize];
                if self.mem.read(name, &mut copy).is_ok() {
                    let part = self.b.input(&copy, 8)?;
                    self.b.point_at(at, part);
                }
            }
        }

        // Data.
        let sent = self.vector_entries(iov, iov_len, receive)?;
        self.b.set_u64(at.plus(16), bad_pointer(iov, 16));
        if let Some(entries) = sent.entries {
            self.b.point_at(at.plus(16), entries);
        }
        self.b.set_u64(at.plus(24), sent.count);
        if let Some((part, ranges, total)) = sent.data
            && receive
        {
            let span = match index {
                // recvmmsg: the message's own msg_len, which follows its header.
                Some(_) => Span::LengthAt(at.plus(MSGHDR as u32)),
                None => Span::Result,
            };
            self.b.output(
                part,
                total as u32,
                span,
                Piece {
                    to: ranges,
                    above: index,
                },
            );
        }

        // Control messages: descriptors in them are home's own numbers.
        self.b
            .set_u64(at.plus(32), if control == 0 { 0 } else { bad_pointer(control, 1) });
        self.b.set_u64(at.plus(40), control_len);
        if control != 0 && control_len > 0 {
            if receive {
                let room = self.usable(control, control_len.min(CONTROL), true);
                self.b.set_u64(at.plus(40), room);
                if room > 0 {
                    let part = self.b.room(room, 8)?;
                    self.b.point_at(at.plus(32), part);
                    self.b
                        .output(part, room as u32, Span::LongLengthAt(at.plus(40)), piece(control, room));
                }
            } else if control_len > CONTROL {
                return Err(Stop::Errno(libc::ENOBUFS));
            } else {
                let mut copy = vec![0; control_len as usize];
                if self.mem.read(control, &mut copy).is_ok() {
                    let part = self.b.input(&copy, 8)?;
                    self.b.point_at(at.plus(32), part);
                }
            }
        }

        if receive {
            // The kernel writes the lengths and the flags, never the pointers.
            if name != 0 {
                self.b.output(at.plus(8), 4, Span::Success, piece(guest + 8, 4));
            }
            self.b.output(at.plus(40), 8, Span::Success, piece(guest + 40, 8));
            self.b.output(at.plus(48), 4, Span::Success, piece(guest + 48, 4));
        }
        Ok(())
    }
}
