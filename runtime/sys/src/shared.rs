//! Memory shared with a process that may write anything into it at any time, and futexes in it.
//!
//! The other side is hostile, so no Rust reference into the memory ever exists: bytes are copied in and out, words go through
//! atomics. See [futex(2)](https://man7.org/linux/man-pages/man2/futex.2.html).

use rustix::mm::{MapFlags, ProtFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A shared mapping of a memfd, addressed by offset.
#[derive(Debug)]
pub struct Shared {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping lives as long as the value, and all access is by atomics or byte copies that tolerate races.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// An access outside of the mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("offset {offset:#x} with length {length:#x} lies outside of the shared memory")]
pub struct OutOfRange {
    /// First byte wanted.
    pub offset: u64,
    /// Bytes wanted.
    pub length: usize,
}

impl From<OutOfRange> for io::Error {
    fn from(error: OutOfRange) -> Self {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

/// Creates a memfd of `length` bytes (sparse), close-on-exec, sealed against shrinking.
pub fn memfd(name: &str, length: u64) -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, length)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK)?;
    Ok(fd)
}

impl Shared {
    /// Maps the first `length` bytes of `fd` shared, read-write.
    pub fn map(fd: impl AsFd, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases no Rust object.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                fd,
                0,
            )?
        };
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { base, length })
    }

    fn at(&self, offset: u64, length: usize) -> Result<*mut u8, OutOfRange> {
        let end = usize::try_from(offset)
            .ok()
            .and_then(|offset| offset.checked_add(length));
        match end {
            // SAFETY: the range was just checked to lie inside the mapping.
            Some(end) if end <= self.length => Ok(unsafe { self.base.as_ptr().add(offset as usize) }),
            _ => Err(OutOfRange { offset, length }),
        }
    }

    fn word(&self, offset: u64) -> Result<&AtomicU32, OutOfRange> {
        let at = self.at(offset, 4)?;
        if !offset.is_multiple_of(4) {
            return Err(OutOfRange { offset, length: 4 });
        }
        // SAFETY: in range, aligned, alive as long as self; the other side uses it atomically or races harmlessly.
        Ok(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    /// Reads a word with acquire order.
    pub fn load(&self, offset: u64) -> Result<u32, OutOfRange> {
        Ok(self.word(offset)?.load(Ordering::Acquire))
    }

    /// Writes a word with release order.
    pub fn store(&self, offset: u64, value: u32) -> Result<(), OutOfRange> {
        self.word(offset)?.store(value, Ordering::Release);
        Ok(())
    }

    /// Replaces a word if it is `current`; returns whether it was.
    pub fn exchange(&self, offset: u64, current: u32, new: u32) -> Result<bool, OutOfRange> {
        Ok(self
            .word(offset)?
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
            .is_ok())
    }

    /// Adds to a word, wrapping, in the order of all such operations.
    pub fn add(&self, offset: u64, value: u32) -> Result<(), OutOfRange> {
        self.word(offset)?.fetch_add(value, Ordering::SeqCst);
        Ok(())
    }

    /// Copies bytes out.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), OutOfRange> {
        let at = self.at(offset, out.len())?;
        // SAFETY: source in range, destination a Rust slice elsewhere; a racing writer only makes the bytes unpredictable.
        unsafe { std::ptr::copy_nonoverlapping(at, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// Copies bytes in.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        let at = self.at(offset, bytes.len())?;
        // SAFETY: as in `read`, the other way.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        Ok(())
    }

    /// Fills a range with zeros.
    pub fn zero(&self, offset: u64, length: usize) -> Result<(), OutOfRange> {
        let at = self.at(offset, length)?;
        // SAFETY: in range.
        unsafe { std::ptr::write_bytes(at, 0, length) };
        Ok(())
    }

    /// Gives the memory of whole pages in the range back; they read as zeros afterwards.
    pub fn discard(&self, offset: u64, length: usize) -> io::Result<()> {
        let start = offset.next_multiple_of(4096);
        let end = (offset + length as u64) & !4095;
        if start >= end {
            return Ok(());
        }
        let at = self.at(start, (end - start) as usize)?;
        // SAFETY: in range, page aligned; MADV_REMOVE punches a hole into the memfd.
        unsafe { rustix::mm::madvise(at.cast(), (end - start) as usize, rustix::mm::Advice::LinuxRemove)? };
        Ok(())
    }

    /// Waits while the word is `expected`, at most `timeout`. Returns also on spurious wake-ups and signals.
    pub fn wait(&self, offset: u64, expected: u32, timeout: Option<Duration>) -> Result<(), OutOfRange> {
        let word = self.word(offset)?;
        let time = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos() as libc::c_long,
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the word is mapped, the timespec lives across the call; all outcomes mean "look again".
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, time) };
        Ok(())
    }

    /// Wakes up to `count` waiters of the word.
    pub fn wake(&self, offset: u64, count: u32) -> Result<(), OutOfRange> {
        let word = self.word(offset)?;
        // SAFETY: the word is mapped.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) };
        Ok(())
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is mapped; never true.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no reference into it outlives the value.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
    }
}
