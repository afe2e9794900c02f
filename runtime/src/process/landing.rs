//! Pages on their way into a process: written by as many threads as there are streams, and by none once the move has failed.

use mosix_sys::procmem::ProcMem;
use mosix_wire::image::Vma;
use mosix_wire::limits::PAGE_RUNS;
use mosix_wire::link::PageRun;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;

/// Where the pages of one image go.
#[derive(Debug)]
pub struct Landing {
    memory: ProcMem,
    vmas: Vec<Vma>,
    /// Why no more pages are written, once that is so. Held for reading by who writes.
    over: RwLock<Option<String>>,
    bytes: AtomicU64,
    /// Lanes that have brought all their pages.
    ended: Mutex<usize>,
    news: Condvar,
}

impl Landing {
    /// A place for pages, which must lie in `vmas`.
    pub fn new(memory: ProcMem, vmas: Vec<Vma>) -> Self {
        Self {
            memory,
            vmas,
            over: RwLock::default(),
            bytes: AtomicU64::new(0),
            ended: Mutex::default(),
            news: Condvar::new(),
        }
    }

    /// Writes the pages of a frame; how many there were.
    ///
    /// # Errors
    /// They belong nowhere, cannot be written, or the move has failed.
    pub fn take(&self, runs: &[PageRun], payload: &[u8]) -> Result<u64, String> {
        if runs.len() > PAGE_RUNS {
            return Err(format!("{} runs of pages in one frame", runs.len()));
        }
        let mut places = Vec::with_capacity(runs.len());
        let mut pages = 0;
        for run in runs {
            let length = u64::from(run.pages) * PAGE;
            if !run.address.is_multiple_of(PAGE) || !covered(&self.vmas, run.address, length) {
                return Err(format!("pages at {:#x} that belong to no mapping", run.address));
            }
            places.push((run.address, length as usize));
            pages += u64::from(run.pages);
        }
        if pages * PAGE != payload.len() as u64 {
            return Err(format!("{} bytes of {pages} pages", payload.len()));
        }
        let over = self.over.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &*over {
            return Err(why.clone());
        }
        self.write(&places, payload)?;
        self.bytes.fetch_add(payload.len() as u64, Ordering::AcqRel);
        Ok(pages)
    }

    fn write(&self, places: &[(u64, usize)], payload: &[u8]) -> Result<(), String> {
        if self
            .memory
            .write_runs(places, payload)
            .is_ok_and(|count| count == payload.len())
        {
            return Ok(());
        }
        // Pages that the process itself may not write.
        let mut rest = payload;
        for (address, length) in places {
            let (bytes, behind) = rest.split_at_checked(*length).ok_or("a frame is too short")?;
            rest = behind;
            self.memory
                .write(*address, bytes)
                .map_err(|error| format!("writing pages at {address:#x}: {error}"))?;
        }
        Ok(())
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// A lane has brought all its pages.
    pub fn lane_ended(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.news.notify_all();
    }

    /// The move has failed: nothing is written any more when this returns.
    pub fn fail(&self, why: &str) {
        self.over
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(|| why.to_owned());
        // Taken, so that who waits is either before its look or asleep.
        drop(self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        self.news.notify_all();
    }

    /// Waits until so many lanes have brought all their pages.
    ///
    /// # Errors
    /// The move has failed, or they do not come.
    pub fn wait_for_lanes(&self, lanes: usize, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(why) = &*self.over.read().unwrap_or_else(PoisonError::into_inner) {
                return Err(why.clone());
            }
            if *ended >= lanes {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("{ended} of {lanes} lanes ended in time"));
            }
            ended = self
                .news
                .wait_timeout(ended, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// Whether `length` bytes at `address` lie within mappings of the image: where pages may be written.
pub fn covered(vmas: &[Vma], address: u64, length: u64) -> bool {
    let Some(end) = address.checked_add(length) else {
        return false;
    };
    let mut at = address;
    let mut index = vmas.partition_point(|vma| vma.end <= address);
    while at < end {
        match vmas.get(index) {
            Some(vma) if vma.start <= at => at = vma.end,
            _ => return false,
        }
        index += 1;
    }
    length > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use mosix_wire::image::Backing;

    fn own(bytes: &mut [u8]) -> (Landing, u64) {
        let base = bytes.as_ptr() as u64 + bytes.as_ptr().align_offset(PAGE as usize) as u64;
        let vmas = vec![Vma {
            start: base,
            end: base + 4 * PAGE,
            prot: 3,
            flags: 0,
            backing: Backing::Anonymous,
        }];
        (Landing::new(ProcMem::guest(std::process::id() as i32), vmas), base)
    }

    #[test]
    fn pages_go_where_they_belong_and_nowhere_else() {
        let mut memory = vec![0u8; 6 * PAGE as usize];
        let (landing, base) = own(&mut memory);
        let run = |page: u64, pages| PageRun {
            address: base + page * PAGE,
            pages,
        };
        let payload: Vec<u8> = [[3u8; PAGE as usize], [1; PAGE as usize]].concat();
        assert_eq!(landing.take(&[run(3, 1), run(1, 1)], &payload), Ok(2));
        let at = |page: u64| memory[(base - memory.as_ptr() as u64 + page * PAGE) as usize];
        assert_eq!([at(0), at(1), at(2), at(3)], [0, 1, 0, 3]);
        assert!(landing.take(&[run(4, 1)], &payload[..PAGE as usize]).is_err());
        assert!(landing.take(&[run(0, 1)], &payload).is_err());
        assert!(
            landing
                .take(
                    &[PageRun {
                        address: base + 1,
                        pages: 1
                    }],
                    &payload[..PAGE as usize]
                )
                .is_err()
        );
        assert!(landing.take(&[run(0, u32::MAX)], &payload).is_err());
        assert_eq!(landing.bytes(), 2 * PAGE);
    }

    #[test]
    fn a_failed_move_writes_nothing_and_waits_for_nobody() {
        let mut memory = vec![0u8; 6 * PAGE as usize];
        let (landing, base) = own(&mut memory);
        landing.lane_ended();
        assert_eq!(landing.wait_for_lanes(1, Duration::ZERO), Ok(()));
        assert!(landing.wait_for_lanes(2, Duration::from_millis(1)).is_err());
        landing.fail("broken");
        assert_eq!(
            landing.wait_for_lanes(1, Duration::from_secs(9)),
            Err("broken".to_owned())
        );
        let page = PageRun {
            address: base,
            pages: 1,
        };
        assert_eq!(landing.take(&[page], &[7; PAGE as usize]), Err("broken".to_owned()));
        assert!(memory.iter().all(|byte| *byte == 0));
    }
}
