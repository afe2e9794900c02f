//! The window of one process, from outside: slots, scripts, completions.
//!
//! What is read back from here was written by a guest, or could have been: values are hints that are checked, never trusted.

use super::stat::{is_dead, state};
use mosix_loader::script::Op;
use mosix_loader::script::abi::*;
use mosix_sys::shared::{OutOfRange, Shared, memfd};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Operations that one long script may have: they lie at the arena's start. Only the tracer thread posts long scripts, one at a time.
const LONG_SCRIPT_OPS: usize = 65_536;
/// Where buffers of calls begin in the arena.
pub const BUFFERS: u64 = ARENA + (16 << 20);

/// The shared part of one process's window.
#[derive(Debug)]
pub struct Window {
    shared: Arc<Shared>,
    /// The process that runs its scripts, once known: nobody waits for a dead one.
    owner: Option<i32>,
}

/// Why a script gave no results.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The thread did not finish in time.
    #[error("slot {slot} did not finish its script within {waited:?}")]
    Timeout {
        /// The slot.
        slot: u32,
        /// How long it had.
        waited: Duration,
    },
    /// One operation failed and ended the script.
    #[error("slot {slot}, operation {index} (system call {nr}): {error}")]
    Failed {
        /// The slot.
        slot: u32,
        /// Index of the operation.
        index: usize,
        /// Its system call.
        nr: u32,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The process is dead.
    #[error("process {0} has ended")]
    Dead(i32),
    /// The slot is not waiting for a script.
    #[error("slot {0} is busy")]
    Busy(u32),
    /// The thread could not be prepared.
    #[error("a thread could not be stopped: {0}")]
    Os(io::Error),
    /// An access outside of the window, or a script too long for the slot.
    #[error(transparent)]
    Range(#[from] OutOfRange),
}

/// Offset of a slot in the shared part.
pub fn slot_offset(slot: u32) -> u64 {
    SLOTS + u64::from(slot) * SLOT_SIZE
}

/// Address of a slot in the guest.
pub fn slot_address(slot: u32) -> u64 {
    SHARED + slot_offset(slot)
}

impl Window {
    /// Makes the shared part of a new window, with the memfd to be mapped at [`SHARED`] in the process.
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let fd = memfd("mosix-window", SHARED_SIZE)?;
        Ok((Self::adopt(&fd)?, fd))
    }

    /// Maps the shared part of a window whose memfd exists.
    pub fn adopt(fd: impl AsFd) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared::map(fd, SHARED_SIZE)?),
            owner: None,
        })
    }

    /// The same window, known as that of process `pid`.
    #[must_use]
    pub fn of(mut self, pid: i32) -> Self {
        self.owner = Some(pid);
        self
    }

    /// The same window for another process, which has the memory of this one's.
    #[must_use]
    pub fn lend(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            owner: None,
        }
    }

    /// The raw shared memory.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Gives a slot a script and wakes its thread. Of long scripts only one may be posted at a time.
    pub fn post(&self, slot: u32, ops: &[Op]) -> Result<(), ScriptError> {
        self.place(slot, ops)?;
        Ok(self.wake(slot)?)
    }

    /// Wakes the thread of a slot that was given a script by [`Self::place`].
    pub fn wake(&self, slot: u32) -> Result<(), OutOfRange> {
        self.shared.wake(slot_offset(slot) + SLOT_STATE, 1)
    }

    /// Wakes the thread of a slot, and nobody when it ends its script before this returns: the caller then takes completions off the ring
    /// itself, and nudges who else may wait.
    pub fn wake_and_look(&self, slot: u32) -> Result<(), OutOfRange> {
        self.shared.add(CONTROL + CONTROL_LOOKING, 1)?;
        let woken = self.wake(slot);
        self.shared.add(CONTROL + CONTROL_LOOKING, 1u32.wrapping_neg())?;
        woken
    }

    /// Gives a slot a script; its thread may begin at once, and begins at [`Self::wake`] when it sleeps.
    pub fn place(&self, slot: u32, ops: &[Op]) -> Result<(), ScriptError> {
        let base = slot_offset(slot);
        let state = self.shared.load(base + SLOT_STATE)?;
        if state == STATE_POSTED || state == STATE_RUNNING {
            return Err(ScriptError::Busy(slot));
        }
        let script = self.script_offset(slot, ops.len())?;
        for (index, op) in ops.iter().enumerate() {
            self.shared.write(script + index as u64 * OP_SIZE, &op.to_bytes())?;
        }
        self.shared
            .write(base + SLOT_SCRIPT, &(SHARED + script).to_le_bytes())?;
        self.shared.store(base + SLOT_COUNT_OPS, ops.len() as u32)?;
        self.shared.store(base + SLOT_DONE, 0)?;
        self.shared.store(base + SLOT_STATE, STATE_POSTED)?;
        Ok(())
    }

    fn script_offset(&self, slot: u32, count: usize) -> Result<u64, ScriptError> {
        if count <= SLOT_INLINE_OPS {
            return Ok(slot_offset(slot) + SLOT_INLINE);
        }
        if count <= LONG_SCRIPT_OPS {
            return Ok(ARENA);
        }
        Err(OutOfRange {
            offset: slot_offset(slot),
            length: count,
        }
        .into())
    }

    /// Whether the slot's script has ended.
    pub fn done(&self, slot: u32) -> Result<bool, OutOfRange> {
        Ok(self.shared.load(slot_offset(slot) + SLOT_STATE)? == STATE_DONE)
    }

    /// The slot's state word.
    pub fn state(&self, slot: u32) -> Result<u32, OutOfRange> {
        self.shared.load(slot_offset(slot) + SLOT_STATE)
    }

    /// Reads the result of operation `index` of a script of `count` operations.
    pub fn result(&self, slot: u32, count: usize, index: usize) -> Result<i64, ScriptError> {
        let mut bytes = [0; 8];
        self.shared.read(
            self.script_offset(slot, count)? + index as u64 * OP_SIZE + 56,
            &mut bytes,
        )?;
        Ok(i64::from_le_bytes(bytes))
    }

    /// Waits for the end of a posted script and returns its results.
    pub fn finish(&self, slot: u32, ops: &[Op], deadline: Instant) -> Result<Vec<i64>, ScriptError> {
        self.finish_by(slot, None, ops, deadline)
    }

    /// The same, for the slot of a thread that may end alone.
    fn finish_by(&self, slot: u32, tid: Option<i32>, ops: &[Op], deadline: Instant) -> Result<Vec<i64>, ScriptError> {
        let is_gone = |pid: &i32| match tid {
            Some(tid) => state(*pid, tid).is_none_or(is_dead),
            None => super::freeze::gone(*pid),
        };
        let begun = Instant::now();
        loop {
            let bell = self.shared.load(CONTROL + CONTROL_DOORBELL)?;
            if self.done(slot)? {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ScriptError::Timeout {
                    slot,
                    waited: begun.elapsed(),
                });
            }
            let nap = Duration::from_millis(100);
            self.sleep(bell, left.min(nap))?;
            let silent = self.shared.load(CONTROL + CONTROL_DOORBELL)? == bell;
            if let Some(pid) = self.owner.filter(|pid| silent && is_gone(pid)) {
                return Err(ScriptError::Dead(pid));
            }
        }
        let base = slot_offset(slot);
        let done = (self.shared.load(base + SLOT_DONE)? as usize).min(ops.len());
        let script = self.script_offset(slot, ops.len())?;
        let mut results = Vec::with_capacity(done);
        for index in 0..done {
            let mut bytes = [0; 8];
            self.shared.read(script + index as u64 * OP_SIZE + 56, &mut bytes)?;
            results.push(i64::from_le_bytes(bytes));
        }
        self.shared.store(base + SLOT_STATE, STATE_IDLE)?;
        for (index, (op, ret)) in ops.iter().zip(&results).enumerate() {
            if op.flags & OP_STOP_ON_ERROR != 0 && (-4095..0).contains(ret) {
                let error = io::Error::from_raw_os_error(-*ret as i32);
                return Err(ScriptError::Failed {
                    slot,
                    index,
                    nr: op.nr,
                    error,
                });
            }
        }
        Ok(results)
    }

    /// Waits, for many slots at once, until the scripts of all have ended or the deadline has come. Asleep: each bell would wake this thread
    /// in the way of those that still work.
    pub fn settle(&self, slots: &[u32], deadline: Instant) -> Result<(), OutOfRange> {
        const FEW: usize = 8;
        const NAP: Duration = Duration::from_micros(100);
        let mut left = slots;
        while left.len() > FEW {
            match left.split_last() {
                Some((slot, rest)) if self.done(*slot)? => left = rest,
                _ if Instant::now() >= deadline => break,
                _ => std::thread::sleep(NAP),
            }
        }
        Ok(())
    }

    /// Posts a script to the slot of this thread and waits for its results, at most `limit`.
    pub fn run_by(&self, slot: u32, tid: i32, ops: &[Op], limit: Duration) -> Result<Vec<i64>, ScriptError> {
        let mut results = Vec::with_capacity(ops.len());
        for part in ops.chunks(LONG_SCRIPT_OPS) {
            self.post(slot, part)?;
            results.extend(self.finish_by(slot, Some(tid), part, Instant::now() + limit)?);
        }
        Ok(results)
    }

    /// Posts a script and waits for its results, at most `limit`.
    pub fn run(&self, slot: u32, ops: &[Op], limit: Duration) -> Result<Vec<i64>, ScriptError> {
        let mut results = Vec::with_capacity(ops.len());
        for part in ops.chunks(LONG_SCRIPT_OPS) {
            self.post(slot, part)?;
            results.extend(self.finish(slot, part, Instant::now() + limit)?);
        }
        Ok(results)
    }

    /// Address of the slot's buffer in the guest, and its size.
    pub fn buffer(slot: u32) -> (u64, usize) {
        (slot_address(slot) + SLOT_BUFFER, SLOT_BUFFER_SIZE as usize)
    }

    /// Writes into the slot's buffer.
    pub fn write_buffer(&self, slot: u32, at: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        check_buffer(at, bytes.len())?;
        self.shared.write(slot_offset(slot) + SLOT_BUFFER + at as u64, bytes)
    }

    /// Reads from the slot's buffer.
    pub fn read_buffer(&self, slot: u32, at: usize, length: usize) -> Result<Vec<u8>, OutOfRange> {
        check_buffer(at, length)?;
        let mut bytes = vec![0; length];
        self.shared
            .read(slot_offset(slot) + SLOT_BUFFER + at as u64, &mut bytes)?;
        Ok(bytes)
    }

    /// Waits until the doorbell differs from `seen`; returns its value.
    pub fn wait_bell(&self, seen: u32, limit: Duration) -> Result<u32, OutOfRange> {
        let now = self.shared.load(CONTROL + CONTROL_DOORBELL)?;
        if now != seen {
            return Ok(now);
        }
        self.sleep(seen, limit)?;
        self.shared.load(CONTROL + CONTROL_DOORBELL)
    }

    /// Sleeps until the doorbell differs from `seen`, or something else happens.
    fn sleep(&self, seen: u32, limit: Duration) -> Result<(), OutOfRange> {
        let waiters = CONTROL + CONTROL_WAITERS;
        self.shared.add(waiters, 1)?;
        // The kernel compares once more: what rang before the stub could see this waiter is not slept through.
        let slept = self.shared.wait(CONTROL + CONTROL_DOORBELL, seen, Some(limit));
        self.shared.add(waiters, 1u32.wrapping_neg())?;
        slept
    }

    /// Wakes whoever waits for the doorbell, so that it looks at its own state.
    pub fn nudge(&self) -> Result<(), OutOfRange> {
        self.shared.add(CONTROL + CONTROL_DOORBELL, 1)?;
        self.shared.wake(CONTROL + CONTROL_DOORBELL, 64)
    }

    /// Takes entry `position` of the completion ring, when it was written: a slot index.
    pub fn take_completion(&self, position: u32) -> Result<Option<u32>, OutOfRange> {
        let entry = CONTROL + CONTROL_RING + 4 * (u64::from(position) % SLOT_COUNT);
        match self.shared.load(entry)? {
            0 => Ok(None),
            slot => {
                self.shared.store(entry, 0)?;
                Ok(Some((slot - 1).min(SLOT_COUNT as u32 - 1)))
            }
        }
    }

    /// Marks a slot's ended script as taken.
    pub fn release(&self, slot: u32) -> Result<(), OutOfRange> {
        self.shared.store(slot_offset(slot) + SLOT_STATE, STATE_IDLE)
    }

    /// Prepares a slot for a thread that enters the stub.
    pub fn reset(&self, slot: u32) -> Result<(), OutOfRange> {
        self.shared.store(slot_offset(slot) + SLOT_STATE, STATE_IDLE)
    }
}

fn check_buffer(at: usize, length: usize) -> Result<(), OutOfRange> {
    match at.checked_add(length) {
        Some(end) if end <= SLOT_BUFFER_SIZE as usize => Ok(()),
        _ => Err(OutOfRange {
            offset: at as u64,
            length,
        }),
    }
}
