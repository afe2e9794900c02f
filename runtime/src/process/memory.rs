//! Pages on their way out of a process: batches of runs, read by as many threads as there are streams.
//!
//! ```text
//! runs ─▶ cut into batches ─▶ taken by whichever stream is free ─▶ read, zeros left out ─▶ one frame
//! ```

use super::layout::Run;
use mosix_sys::procmem::ProcMem;
use mosix_wire::limits::PAGE_RUNS;
use mosix_wire::link::PageRun;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

const PAGE: usize = 4096;
/// Bytes of a batch: many pages per system call, and still in the second level cache when they are encrypted.
const BATCH: usize = 256 << 10;

/// The pages of a process, for several readers.
#[derive(Debug)]
pub struct Feed<'a> {
    memory: &'a ProcMem,
    runs: &'a [Run],
    /// Index of the run and address in it that come next.
    next: Mutex<(usize, u64)>,
    looked_at: AtomicU64,
    handed_on: AtomicU64,
}

/// A reader's buffers, used again for every batch.
#[derive(Debug, Default)]
pub struct Batch {
    /// Runs of the process: address, bytes, whether zeros count.
    parts: Vec<(u64, usize, bool)>,
    bytes: Vec<u8>,
    /// What is sent.
    pub runs: Vec<PageRun>,
    /// Where its bytes are in the buffer: start, end.
    kept: Vec<(usize, usize)>,
}

impl Batch {
    /// The bytes of `runs`, in their order.
    pub fn payload(&self) -> Vec<&[u8]> {
        self.kept
            .iter()
            .filter_map(|(start, end)| self.bytes.get(*start..*end))
            .collect()
    }

    /// Bytes to be sent.
    pub fn len(&self) -> usize {
        self.kept.iter().map(|(start, end)| end - start).sum()
    }

    /// Whether all of it was zeros or holes.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Keeps a run of pages whose bytes begin at `at` in the buffer.
    fn keep(&mut self, address: u64, at: usize, length: usize) {
        let pages = (length / PAGE) as u32;
        match (self.runs.last_mut(), self.kept.last_mut()) {
            (Some(run), Some(kept)) if kept.1 == at => {
                kept.1 += length;
                if run.address + u64::from(run.pages) * PAGE as u64 == address {
                    run.pages += pages;
                    return;
                }
            }
            _ => self.kept.push((at, at + length)),
        }
        self.runs.push(PageRun { address, pages });
    }

    /// Keeps what is not zero of a run.
    fn keep_nonzero(&mut self, address: u64, at: usize, length: usize) {
        let mut from = None;
        for page in (at..at + length).step_by(PAGE) {
            let zero = self.bytes.get(page..page + PAGE).is_none_or(is_zero);
            match (zero, from) {
                (false, None) => from = Some(page),
                (true, Some(begin)) => {
                    self.keep(address + (begin - at) as u64, begin, page - begin);
                    from = None;
                }
                _ => {}
            }
        }
        if let Some(begin) = from {
            self.keep(address + (begin - at) as u64, begin, at + length - begin);
        }
    }
}

impl<'a> Feed<'a> {
    /// All pages of `runs`.
    pub fn new(memory: &'a ProcMem, runs: &'a [Run]) -> Self {
        let first = runs.first().map_or(0, |run| run.range.start);
        Self {
            memory,
            runs,
            next: Mutex::new((0, first)),
            looked_at: AtomicU64::new(0),
            handed_on: AtomicU64::new(0),
        }
    }

    /// Bytes of all runs, zeros and holes included.
    pub fn total(&self) -> u64 {
        self.runs.iter().map(|run| run.range.end - run.range.start).sum()
    }

    /// Bytes looked at so far.
    pub fn done(&self) -> u64 {
        self.looked_at.load(Ordering::Relaxed)
    }

    /// Bytes in all batches that were taken so far.
    pub fn sent(&self) -> u64 {
        self.handed_on.load(Ordering::Acquire)
    }

    /// Takes the next batch of pages; false when there are no more. Pages that cannot be read (beyond a file's end, guard regions) are
    /// holes; zero pages are left out where the other side begins with zeros.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn next(&self, batch: &mut Batch) -> io::Result<bool> {
        loop {
            self.cut(&mut batch.parts);
            if batch.parts.is_empty() {
                return Ok(false);
            }
            self.read(batch)?;
            if !batch.is_empty() {
                self.handed_on.fetch_add(batch.len() as u64, Ordering::AcqRel);
                return Ok(true);
            }
        }
    }

    fn cut(&self, parts: &mut Vec<(u64, usize, bool)>) {
        parts.clear();
        let mut room = BATCH;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        // Zeros between pages make more runs of one: half as many parts as a frame may have runs are always enough room for some.
        while room > 0 && parts.len() < PAGE_RUNS / 2 {
            let Some(run) = self.runs.get(next.0) else { break };
            let take = ((run.range.end - next.1) as usize).min(room);
            if take > 0 {
                parts.push((next.1, take, run.zeros));
            }
            room -= take;
            next.1 += take as u64;
            if next.1 >= run.range.end {
                next.0 += 1;
                next.1 = self.runs.get(next.0).map_or(0, |run| run.range.start);
            }
        }
        self.looked_at.fetch_add((BATCH - room) as u64, Ordering::Relaxed);
    }

    fn read(&self, batch: &mut Batch) -> io::Result<()> {
        batch.runs.clear();
        batch.kept.clear();
        batch.bytes.resize(BATCH, 0);
        let parts = std::mem::take(&mut batch.parts);
        let places: Vec<(u64, usize)> = parts.iter().map(|(address, length, _)| (*address, *length)).collect();
        let wanted: usize = places.iter().map(|(_, length)| length).sum();
        let mut at = 0;
        if self
            .memory
            .read_runs(&places, &mut batch.bytes[..wanted])
            .is_ok_and(|count| count == wanted)
        {
            for (address, length, zeros) in &parts {
                if *zeros {
                    batch.keep(*address, at, *length);
                } else {
                    batch.keep_nonzero(*address, at, *length);
                }
                at += length;
            }
        } else {
            for (address, length, zeros) in &parts {
                self.read_part(batch, (*address, *length, *zeros), at)?;
                at += length;
            }
        }
        batch.parts = parts;
        Ok(())
    }

    /// Reads a part that may have holes, or pages that only a tracer can read.
    fn read_part(&self, batch: &mut Batch, (address, length, zeros): (u64, usize, bool), at: usize) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            match self
                .memory
                .read_some(address + done as u64, &mut batch.bytes[at + done..at + length])
            {
                Ok(count) if count >= PAGE => {
                    let count = count & !(PAGE - 1);
                    if zeros {
                        batch.keep(address + done as u64, at + done, count);
                    } else {
                        batch.keep_nonzero(address + done as u64, at + done, count);
                    }
                    done += count;
                }
                // This page is a hole; the next may be readable again.
                Ok(_) => done += PAGE,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EFAULT | libc::EIO)) => done += PAGE,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn is_zero(page: &[u8]) -> bool {
    // Most pages differ from zero in their first words: look there before scanning all of it.
    page[..64.min(page.len())].iter().all(|byte| *byte == 0) && page.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_pages_are_left_out_and_holes_are_skipped() {
        // Three pages with bytes, zeros between them, in two runs that lie apart; the third run cannot be read.
        let mut memory = vec![0u8; 12 * PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        let base = memory.as_ptr() as u64 + start as u64;
        for page in [1, 4, 8] {
            memory[start + page * PAGE + 100] = page as u8;
        }
        let run = |from: u64, to: u64, zeros| Run {
            range: base + from * PAGE as u64..base + to * PAGE as u64,
            zeros,
        };
        let hole = Run {
            range: PAGE as u64..3 * PAGE as u64,
            zeros: false,
        };
        let runs = [hole, run(0, 5, false), run(7, 9, true)];
        let own = ProcMem::guest(std::process::id() as i32);
        let feed = Feed::new(&own, &runs);
        let (mut batch, mut seen) = (Batch::default(), Vec::new());
        while feed.next(&mut batch).expect("own memory") {
            let payload: Vec<u8> = batch.payload().concat();
            let mut at = 0;
            for run in &batch.runs {
                for page in 0..u64::from(run.pages) {
                    seen.push(((run.address - base) / PAGE as u64 + page, payload[at + 100]));
                    at += PAGE;
                }
            }
            assert_eq!(at, payload.len());
        }
        assert_eq!(seen, vec![(1, 1), (4, 4), (7, 0), (8, 8)]);
        assert_eq!(feed.sent(), 4 * PAGE as u64);
        assert_eq!(feed.done(), feed.total());
    }
}
