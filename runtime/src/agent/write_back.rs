//! Memory that a body shares with a file at home: what the body writes there goes back.
//!
//! ```text
//!  arrival      the pages are the body's own; of each a sum is kept
//!  msync, munmap, mmap over it, exit, a freeze:
//!               pages whose sums differ ── WriteBack ─▶ home writes them through the deputy's own mapping
//! ```
//! Messages and calls go in one order: who hears of the file after the call at home finds the bytes there. Pages that the body has not changed
//! never go back, so what others wrote to them stays.
//!
//! The filter of such a body reports the calls by which the kernel here could drop the memory unseen ([`filter::DROPPING`]).
//!
//! [`filter::DROPPING`]: crate::syscall::filter::DROPPING

use super::shared::{BodyCalls, Shared, lock};
use mosix_sys::procmem::ProcMem;
use mosix_wire::image::{Backing, Vma, VmaFlags};
use mosix_wire::link::ToHome;
use std::hash::Hasher as _;
use std::io;
use std::ops::Range;

const PAGE: u64 = 4096;
/// Bytes that are looked at and sent at once.
const CHUNK: u64 = 1 << 20;

/// Whether what is written to this memory belongs to an object at home.
pub fn is_watched(vma: &Vma) -> bool {
    vma.flags & VmaFlags::WAS_SHARED != 0 && vma.backing == Backing::Anonymous
}

/// A range of such memory, with the sum of each page as home has it.
#[derive(Debug)]
struct Piece {
    start: u64,
    sums: Vec<u64>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.start + self.sums.len() as u64 * PAGE
    }

    fn common(&self, range: &Range<u64>) -> Range<u64> {
        range.start.max(self.start)..range.end.min(self.end())
    }
}

/// The memory of one body that belongs to objects at home.
#[derive(Debug, Default)]
pub struct Watched(Vec<Piece>);

/// What a call does to such memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing: it is decided as ever.
    Usual,
    /// What was written goes back first; then as ever. The range is the body's own from then on, if told so.
    PushThenUsual {
        /// It is gone.
        forget: bool,
    },
    /// What was written goes back first, then the call goes home.
    PushThenHome,
    /// The host's kernel executes it: it concerns memory of the body alone.
    Native,
    /// It is answered so.
    Answer(i64),
    /// It is executed at home.
    Return(&'static str),
}

fn sum(page: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(page);
    hasher.finish()
}

/// The pages of a range of memory that a call names. One that wraps reaches to the end.
fn pages(address: u64, length: u64) -> Range<u64> {
    let end = address.saturating_add(length).saturating_add(PAGE - 1);
    address & !(PAGE - 1)..end & !(PAGE - 1)
}

impl Watched {
    /// Looks at the memory of a body that has just arrived.
    ///
    /// # Errors
    /// Its memory cannot be read.
    pub fn of(vmas: &[Vma], memory: &ProcMem) -> io::Result<Self> {
        let mut pieces = Vec::new();
        for vma in vmas.iter().filter(|vma| is_watched(vma)) {
            let mut sums = Vec::with_capacity(((vma.end - vma.start) / PAGE) as usize);
            let mut buffer = vec![0; CHUNK.min(vma.end - vma.start) as usize];
            let mut at = vma.start;
            while at < vma.end {
                let bytes = &mut buffer[..CHUNK.min(vma.end - at) as usize];
                memory.read(at, bytes)?;
                sums.extend(bytes.chunks(PAGE as usize).map(sum));
                at += bytes.len() as u64;
            }
            pieces.push(Piece { start: vma.start, sums });
        }
        Ok(Self(pieces))
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether some of the range is such memory.
    pub fn overlaps(&self, range: &Range<u64>) -> bool {
        self.0.iter().any(|piece| !piece.common(range).is_empty())
    }

    /// Whether all of the range is.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        let common = self
            .0
            .iter()
            .map(|piece| piece.common(range))
            .filter(|common| !common.is_empty());
        common.map(|common| common.end - common.start).sum::<u64>() == range.end.saturating_sub(range.start)
    }

    /// Says what a call means.
    pub fn judge(&self, nr: i32, args: &[u64; 6]) -> Step {
        let &[address, length, third, flags, new, _] = args;
        let range = pages(address, length);
        let here = self.overlaps(&range);
        match i64::from(nr) {
            libc::SYS_msync if !here => Step::Native,
            libc::SYS_msync if self.covers(&range) => Step::PushThenHome,
            libc::SYS_msync => Step::Return("msync of more than shared memory"),
            _ if self.is_empty() => Step::Usual,
            libc::SYS_munmap if here => Step::PushThenUsual { forget: true },
            libc::SYS_mmap if here && flags & libc::MAP_FIXED as u64 != 0 => Step::PushThenUsual { forget: true },
            libc::SYS_mremap if here || (flags & 2 != 0 && self.overlaps(&pages(new, third))) => {
                Step::Return("moves shared memory")
            }
            // Of shared memory the object keeps the contents; here they would be lost.
            libc::SYS_madvise if here => match third as i32 {
                libc::MADV_DONTNEED | 24 if self.covers(&range) => Step::Answer(0),
                libc::MADV_FREE => Step::Answer(-i64::from(libc::EINVAL)),
                libc::MADV_DONTNEED | 24 => Step::Return("drops more than shared memory"),
                _ => Step::Usual,
            },
            // A child, or another program, has the object itself.
            libc::SYS_fork | libc::SYS_vfork => Step::Return("its child shares memory with it"),
            libc::SYS_clone if address & libc::CLONE_THREAD as u64 == 0 => {
                Step::Return("its child shares memory with it")
            }
            libc::SYS_exit_group | libc::SYS_exit | libc::SYS_execve | libc::SYS_execveat => {
                Step::PushThenUsual { forget: false }
            }
            _ => Step::Usual,
        }
    }

    /// Gives the changed pages of a range, in runs, and takes them for known.
    ///
    /// # Errors
    /// The memory cannot be read.
    fn changed(&mut self, memory: &ProcMem, range: &Range<u64>, mut give: impl FnMut(u64, &[u8])) -> io::Result<()> {
        let mut buffer = Vec::new();
        for piece in &mut self.0 {
            let common = piece.common(range);
            let mut at = common.start;
            while at < common.end {
                buffer.resize(CHUNK.min(common.end - at) as usize, 0);
                memory.read(at, &mut buffer)?;
                let first = ((at - piece.start) / PAGE) as usize;
                let mut run: Option<usize> = None;
                for (index, page) in buffer.chunks(PAGE as usize).enumerate() {
                    let new = sum(page);
                    let Some(known) = piece.sums.get_mut(first + index) else {
                        break;
                    };
                    if *known != new {
                        *known = new;
                        run.get_or_insert(index);
                    } else if let Some(begin) = run.take() {
                        give(
                            at + begin as u64 * PAGE,
                            &buffer[begin * PAGE as usize..index * PAGE as usize],
                        );
                    }
                }
                if let Some(begin) = run {
                    give(at + begin as u64 * PAGE, &buffer[begin * PAGE as usize..]);
                }
                at += buffer.len() as u64;
            }
        }
        Ok(())
    }

    /// The range is the body's own memory from now on.
    fn forget(&mut self, range: &Range<u64>) {
        let mut kept = Vec::new();
        for piece in self.0.drain(..) {
            let gone = piece.common(range);
            if gone.is_empty() {
                kept.push(piece);
                continue;
            }
            let at = |address: u64| ((address - piece.start) / PAGE) as usize;
            if gone.start > piece.start {
                kept.push(Piece {
                    start: piece.start,
                    sums: piece.sums[..at(gone.start)].to_vec(),
                });
            }
            if gone.end < piece.end() {
                kept.push(Piece {
                    start: gone.end,
                    sums: piece.sums[at(gone.end)..].to_vec(),
                });
            }
        }
        self.0 = kept;
    }

    /// The ranges.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        self.0.iter().map(|piece| piece.start..piece.end()).collect()
    }
}

/// Sends home what the body has written to a range of such memory; false when its memory cannot be read any more.
pub fn push(shared: &Shared, body: &BodyCalls, range: &Range<u64>, forget: bool) -> bool {
    let mut watched = lock(&body.watched);
    if !watched.overlaps(range) {
        return true;
    }
    let (pid, epoch) = (body.pid, body.epoch());
    let pushed = ProcMem::force(body.host).and_then(|memory| {
        watched.changed(&memory, range, |address, bytes| {
            shared.tell(&ToHome::WriteBack { pid, epoch, address }, &[bytes]);
        })
    });
    if forget {
        watched.forget(range);
    }
    pushed
        .inspect_err(|error| tracing::warn!(%pid, %error, "shared memory that cannot go home"))
        .is_ok()
}

/// Sends home all that the body has written to such memory.
pub fn push_all(shared: &Shared, body: &BodyCalls) -> bool {
    push(shared, body, &(0..u64::MAX), false)
}

/// The range of memory that a call names.
pub fn range_of(nr: i32, args: &[u64; 6]) -> Range<u64> {
    match i64::from(nr) {
        libc::SYS_msync | libc::SYS_munmap | libc::SYS_mmap => pages(args[0], args[1]),
        _ => 0..u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(range: Range<u64>) -> Watched {
        Watched(vec![Piece {
            start: range.start,
            sums: vec![0; ((range.end - range.start) / PAGE) as usize],
        }])
    }

    #[test]
    fn calls_are_judged_by_what_they_touch() {
        let shared = watched(0x10000..0x20000);
        let judge = |nr: i64, args: [u64; 6]| shared.judge(nr as i32, &args);
        let push = |forget| Step::PushThenUsual { forget };
        assert_eq!(judge(libc::SYS_munmap, [0x1f000, 0x2000, 0, 0, 0, 0]), push(true));
        assert_eq!(judge(libc::SYS_munmap, [0x20000, 0x2000, 0, 0, 0, 0]), Step::Usual);
        assert_eq!(judge(libc::SYS_munmap, [0, u64::MAX, 0, 0, 0, 0]), push(true));
        assert_eq!(judge(libc::SYS_mmap, [0x10000, 1, 3, 0x32, 0, 0]), push(true));
        assert_eq!(judge(libc::SYS_mmap, [0x10000, 1, 3, 0x22, 0, 0]), Step::Usual);
        assert_eq!(
            judge(libc::SYS_msync, [0x10000, 0x10000, 4, 0, 0, 0]),
            Step::PushThenHome
        );
        assert_eq!(judge(libc::SYS_msync, [0x30000, 0x1000, 4, 0, 0, 0]), Step::Native);
        assert!(matches!(
            judge(libc::SYS_msync, [0xf000, 0x2000, 4, 0, 0, 0]),
            Step::Return(_)
        ));
        assert!(matches!(
            judge(libc::SYS_mremap, [0x5000, 1, 0x1000, 3, 0x1f000, 0]),
            Step::Return(_)
        ));
        assert_eq!(judge(libc::SYS_madvise, [0x11000, 0x1000, 4, 0, 0, 0]), Step::Answer(0));
        assert_eq!(judge(libc::SYS_exit_group, [0; 6]), push(false));
        assert!(matches!(judge(libc::SYS_fork, [0; 6]), Step::Return(_)));
        assert_eq!(judge(libc::SYS_clone, [0x3d0f00, 0, 0, 0, 0, 0]), Step::Usual);
        let none = Watched::default();
        assert_eq!(none.judge(libc::SYS_munmap as i32, &[0, 1, 0, 0, 0, 0]), Step::Usual);
        assert_eq!(none.judge(libc::SYS_msync as i32, &[0, 1, 0, 0, 0, 0]), Step::Native);
    }

    #[test]
    fn what_is_unmapped_leaves_its_neighbours() {
        let mut shared = watched(0x10000..0x20000);
        shared.forget(&(0x12000..0x14000));
        assert_eq!(shared.ranges(), [0x10000..0x12000, 0x14000..0x20000]);
        assert!(!shared.overlaps(&(0x12000..0x14000)) && !shared.covers(&(0x11000..0x15000)));
        shared.forget(&(0..u64::MAX));
        assert!(shared.is_empty());
    }

    /// On this process's own memory.
    #[test]
    fn only_changed_pages_go_back_and_only_once() {
        let mut block = vec![0u8; 8 * PAGE as usize];
        let start = (block.as_ptr() as u64).next_multiple_of(PAGE);
        let at = (start - block.as_ptr() as u64) as usize;
        let vma = Vma {
            start,
            end: start + 6 * PAGE,
            prot: 3,
            flags: VmaFlags::WAS_SHARED,
            backing: Backing::Anonymous,
        };
        let memory = ProcMem::force(std::process::id().cast_signed()).unwrap();
        let mut shared = Watched::of(&[vma], &memory).unwrap();
        for page in [1, 2, 5] {
            block[at + page * PAGE as usize] = 7;
        }
        let all = 0..u64::MAX;
        let mut runs = Vec::new();
        let mut given = |address: u64, bytes: &[u8]| runs.push(((address - start) / PAGE, bytes.len() / PAGE as usize));
        shared.changed(&memory, &all, &mut given).unwrap();
        shared.changed(&memory, &all, &mut given).unwrap();
        assert_eq!(runs, [(1, 2), (5, 1)]);
        assert_eq!(block[at], 0);
    }
}
