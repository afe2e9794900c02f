//! Lays out the buffer of one forwarded call.
//!
//! Input parts come first and travel; output parts follow and start as zeros at home. Where a part ends up is known only
//! when all inputs are, so parts are named by [`Spot`] and resolved at the end.

use super::scatter::{Piece, Scatter};
use mosix_wire::call::{Call, Extent, Output, Place};
use mosix_wire::ids::{Epoch, Pid, Seq, Tid};
use mosix_wire::limits;

/// Who calls: the names of a [`Call`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ids {
    /// The process.
    pub pid: Pid,
    /// The calling thread.
    pub tid: Tid,
    /// The body's epoch.
    pub epoch: Epoch,
    /// Number of the call in its thread.
    pub seq: Seq,
}

/// A place in the buffer that is being laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spot {
    /// Offset in the input part.
    In(u32),
    /// Offset in the output part.
    Out(u32),
}

impl Spot {
    /// The place `by` bytes further.
    pub fn plus(self, by: u32) -> Self {
        match self {
            Spot::In(at) => Spot::In(at + by),
            Spot::Out(at) => Spot::Out(at + by),
        }
    }
}

/// Where a pointer to a part is written.
#[derive(Clone, Copy, Debug)]
enum Pointer {
    Arg(u8),
    At(u32),
}

/// How an output's extent is found; offsets are resolved with the layout.
#[derive(Clone, Copy, Debug)]
pub enum Span {
    /// As [`Extent::Success`].
    Success,
    /// As [`Extent::Always`].
    Always,
    /// As [`Extent::Result`].
    Result,
    /// As [`Extent::Elements`].
    Elements(u32),
    /// As [`Extent::LengthAt`].
    LengthAt(Spot),
    /// As [`Extent::LongLengthAt`].
    LongLengthAt(Spot),
}

/// The buffer would be larger than a call may carry; the process comes home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooLarge;

/// A call being gathered.
pub struct Builder {
    /// The arguments as they will be sent; pointers are filled in by [`Builder::point_arg`].
    pub args: [u64; 6],
    input: Vec<u8>,
    room: u64,
    room_align: u64,
    pointers: Vec<(Pointer, Spot)>,
    /// Rows of pointers to input parts, ascending.
    vectors: Vec<Place>,
    outputs: Vec<(Spot, u32, Span)>,
    pieces: Vec<Piece>,
}

impl Builder {
    /// Begins a call with these register arguments.
    pub fn new(args: [u64; 6]) -> Self {
        Self {
            args,
            input: Vec::new(),
            room: 0,
            room_align: 8,
            pointers: Vec::new(),
            vectors: Vec::new(),
            outputs: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// Bytes that may still be added, in or out.
    pub fn left(&self) -> u64 {
        (limits::FRAME_PAYLOAD as u64).saturating_sub(self.input.len() as u64 + self.room + 2 * 4096)
    }

    /// Adds an input part.
    pub fn input(&mut self, bytes: &[u8], align: u64) -> Result<Spot, TooLarge> {
        if bytes.len() as u64 + align > self.left() {
            return Err(TooLarge);
        }
        let at = self.input.len().next_multiple_of(align as usize);
        self.input.resize(at, 0);
        self.input.extend_from_slice(bytes);
        Ok(Spot::In(at as u32))
    }

    /// Overwrites four bytes of an input part.
    pub fn set_u32(&mut self, at: Spot, value: u32) {
        self.overwrite(at, &value.to_le_bytes());
    }

    /// Overwrites eight bytes of an input part.
    pub fn set_u64(&mut self, at: Spot, value: u64) {
        self.overwrite(at, &value.to_le_bytes());
    }

    fn overwrite(&mut self, at: Spot, bytes: &[u8]) {
        if let Spot::In(at) = at
            && let Some(place) = self.input.get_mut(at as usize..at as usize + bytes.len())
        {
            place.copy_from_slice(bytes);
        }
    }

    /// Adds room for an output that starts as zeros.
    pub fn room(&mut self, bytes: u64, align: u64) -> Result<Spot, TooLarge> {
        if bytes + align > self.left() {
            return Err(TooLarge);
        }
        self.room_align = self.room_align.max(align);
        let at = self.room.next_multiple_of(align);
        self.room = at + bytes;
        Ok(Spot::Out(at as u32))
    }

    /// Makes argument `arg` the address of `to`.
    pub fn point_arg(&mut self, arg: u8, to: Spot) {
        self.pointers.push((Pointer::Arg(arg), to));
    }

    /// Makes the eight bytes at the input place `at` the address of `to`.
    pub fn point_at(&mut self, at: Spot, to: Spot) {
        if let Spot::In(at) = at {
            self.pointers.push((Pointer::At(at), to));
        }
    }

    /// Adds a row of pointers to input parts, and behind them these words as they are.
    pub fn vector(&mut self, parts: &[Spot], rest: &[u64]) -> Result<Spot, TooLarge> {
        let mut row = Vec::with_capacity((parts.len() + rest.len()) * 8);
        for part in parts {
            let Spot::In(at) = part else { return Err(TooLarge) };
            row.extend(u64::from(*at).to_le_bytes());
        }
        for word in rest {
            row.extend(word.to_le_bytes());
        }
        let spot = self.input(&row, 8)?;
        if let (Spot::In(at), count @ 1..) = (spot, parts.len() as u32) {
            self.vectors.push(Place::Vector { at, count });
        }
        Ok(spot)
    }

    /// Lets `bytes` at `from` come back and go to the guest as `piece` says.
    pub fn output(&mut self, from: Spot, bytes: u32, span: Span, piece: Piece) {
        self.outputs.push((from, bytes, span));
        self.pieces.push(piece);
    }

    /// Resolves all places.
    pub fn finish(mut self, ids: Ids, nr: u32) -> Result<(Call, Vec<u8>, Scatter), TooLarge> {
        if self.pointers.len() > limits::CALL_PARTS || self.outputs.len() > limits::CALL_PARTS {
            return Err(TooLarge);
        }
        let base = (self.input.len() as u64).next_multiple_of(self.room_align);
        let size = if self.room == 0 {
            self.input.len() as u64
        } else {
            base + self.room
        };
        let size = u32::try_from(size).map_err(|_| TooLarge)?;
        let resolve = |spot| match spot {
            Spot::In(at) => at,
            Spot::Out(at) => base as u32 + at,
        };
        let mut relocs = Vec::with_capacity(self.pointers.len());
        for (pointer, to) in std::mem::take(&mut self.pointers) {
            let to = resolve(to);
            match pointer {
                Pointer::Arg(arg) => {
                    self.args[usize::from(arg)] = u64::from(to);
                    relocs.push(Place::Arg(arg));
                }
                Pointer::At(at) => {
                    self.overwrite(Spot::In(at), &u64::from(to).to_le_bytes());
                    relocs.push(Place::At(at));
                }
            }
        }
        relocs.append(&mut self.vectors);
        let outputs = self
            .outputs
            .iter()
            .map(|&(from, room, span)| {
                let extent = match span {
                    Span::Success => Extent::Success,
                    Span::Always => Extent::Always,
                    Span::Result => Extent::Result,
                    Span::Elements(size) => Extent::Elements(size),
                    Span::LengthAt(spot) => Extent::LengthAt(resolve(spot)),
                    Span::LongLengthAt(spot) => Extent::LongLengthAt(resolve(spot)),
                };
                Output {
                    offset: resolve(from),
                    room,
                    extent,
                }
            })
            .collect();
        let call = Call {
            pid: ids.pid,
            tid: ids.tid,
            epoch: ids.epoch,
            seq: ids.seq,
            nr,
            args: self.args,
            relocs,
            size,
            outputs,
            exec: None,
        };
        let scatter = Scatter {
            ids,
            outputs: call.outputs.clone(),
            pieces: self.pieces,
            part: None,
        };
        Ok((call, self.input, scatter))
    }
}
