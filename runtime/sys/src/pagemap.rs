//! Which pages of a process hold something: PAGEMAP_SCAN where the kernel has it (6.7+), else /proc/PID/pagemap.
//!
//! See [ioctl_pagemap_scan(2)](https://man7.org/linux/man-pages/man2/PAGEMAP_SCAN.2const.html) and
//! [proc_pid_pagemap(5)](https://man7.org/linux/man-pages/man5/proc_pid_pagemap.5.html).

use linux_raw_sys::general::{page_region, pm_scan_arg};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
const IS_ZERO: u64 = 1 << 5;
const SCAN: libc::c_ulong = 0xc060_6610;
const _: () = assert!(size_of::<pm_scan_arg>() == 96);

/// An open /proc/PID/pagemap.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    scan: bool,
}

impl Pagemap {
    /// Opens the page map of a process through a live thread.
    pub fn open(tid: i32) -> io::Result<Self> {
        Ok(Self {
            file: File::open(format!("/proc/{tid}/pagemap"))?,
            scan: true,
        })
    }

    /// Finds the pages of `range` that hold data of the process's own: touched anonymous memory and changed pages of private file
    /// mappings; with `file_pages` also pages that still belong to the file. Zero pages never touched are left out.
    pub fn populated(&mut self, range: Range<u64>, file_pages: bool, found: &mut Vec<Range<u64>>) -> io::Result<()> {
        if self.scan {
            match self.scan(range.clone(), file_pages, found) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => self.scan = false,
                done => return done,
            }
        }
        self.walk(range, file_pages, found)
    }

    fn scan(&self, range: Range<u64>, file_pages: bool, found: &mut Vec<Range<u64>>) -> io::Result<()> {
        let mut start = range.start;
        // SAFETY: plain old data; all-zero is valid.
        let mut regions: [page_region; 512] = unsafe { std::mem::zeroed() };
        while start < range.end {
            let excluded = if file_pages { IS_ZERO } else { IS_FILE | IS_ZERO };
            let mut args = pm_scan_arg {
                size: size_of::<pm_scan_arg>() as u64,
                flags: 0,
                start,
                end: range.end,
                walk_end: 0,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                max_pages: 0,
                category_inverted: excluded,
                category_mask: excluded,
                category_anyof_mask: IS_PRESENT | IS_SWAPPED,
                return_mask: IS_PRESENT | IS_SWAPPED,
            };
            // SAFETY: the argument names a live array of `vec_len` regions.
            let count = unsafe { libc::ioctl(self.file.as_raw_fd(), SCAN, &raw mut args) };
            let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
            for region in &regions[..count.min(regions.len())] {
                push(found, region.start..region.end);
            }
            if args.walk_end <= start {
                break;
            }
            start = args.walk_end;
        }
        Ok(())
    }

    fn walk(&self, range: Range<u64>, file_pages: bool, found: &mut Vec<Range<u64>>) -> io::Result<()> {
        let mut buffer = vec![0u8; 64 << 10];
        let mut at = range.start;
        while at < range.end {
            let want = (((range.end - at) / PAGE * 8) as usize).min(buffer.len());
            let count = self.file.read_at(&mut buffer[..want], at / PAGE * 8)?;
            if count < 8 {
                break;
            }
            for entry in buffer[..count].chunks_exact(8) {
                let entry = u64::from_le_bytes([
                    entry[0], entry[1], entry[2], entry[3], entry[4], entry[5], entry[6], entry[7],
                ]);
                let (present, swapped, of_file) = (entry >> 63 & 1 == 1, entry >> 62 & 1 == 1, entry >> 61 & 1 == 1);
                if (present || swapped) && (file_pages || !of_file) {
                    push(found, at..at + PAGE);
                }
                at += PAGE;
            }
        }
        Ok(())
    }
}

fn push(found: &mut Vec<Range<u64>>, range: Range<u64>) {
    match found.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => found.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_agree_on_own_heap() {
        let data = vec![7u8; 1 << 20];
        let start = (data.as_ptr() as u64).next_multiple_of(PAGE);
        let range = start..(start + (1 << 19));
        let mut map = Pagemap::open(std::process::id() as i32).expect("pagemap");
        let (mut scanned, mut walked) = (Vec::new(), Vec::new());
        map.populated(range.clone(), false, &mut scanned).expect("scan");
        map.walk(range.clone(), false, &mut walked).expect("walk");
        assert_eq!(scanned, walked);
        assert_eq!(scanned, vec![range]);
        drop(data);
    }
}
