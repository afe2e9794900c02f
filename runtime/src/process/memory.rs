//! Moving pages in and out of a process in large runs.

use super::layout::Run;
use mosix_sys::procmem::ProcMem;
use mosix_wire::limits::PAGE_RUN;
use std::io;

const PAGE: usize = 4096;

/// Reads all pages of the runs and hands them on in runs of at most [`PAGE_RUN`] bytes. Pages that cannot be read (beyond a file's end,
/// guard regions) are holes. Zero pages are left out where the other side
/// begins with zeros. Returns the bytes handed on.
pub fn read(memory: &ProcMem, runs: &[Run], mut each: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut buffer = vec![0u8; PAGE_RUN];
    let mut total = 0;
    for Run { range, zeros } in runs {
        let mut at = range.start;
        while at < range.end {
            let want = ((range.end - at) as usize).min(PAGE_RUN);
            match memory.read_some(at, &mut buffer[..want]) {
                Ok(count) if count >= PAGE => {
                    let count = count & !(PAGE - 1);
                    if *zeros {
                        each(at, &buffer[..count])?;
                        total += count as u64;
                    } else {
                        total += nonzero(at, &buffer[..count], &mut each)?;
                    }
                    at += count as u64;
                }
                // This page is a hole; the next may be readable again.
                Ok(_) => at += PAGE as u64,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EFAULT | libc::EIO)) => at += PAGE as u64,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(total)
}

/// Hands on the parts of a run that are not zero.
fn nonzero(start: u64, run: &[u8], each: &mut impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<u64> {
    let (mut sent, mut from) = (0, None);
    for (index, page) in run.chunks(PAGE).enumerate() {
        let at = index * PAGE;
        match (is_zero(page), from) {
            (false, None) => from = Some(at),
            (true, Some(begin)) => {
                each(start + begin as u64, &run[begin..at])?;
                sent += (at - begin) as u64;
                from = None;
            }
            _ => {}
        }
    }
    if let Some(begin) = from {
        each(start + begin as u64, &run[begin..])?;
        sent += (run.len() - begin) as u64;
    }
    Ok(sent)
}

fn is_zero(page: &[u8]) -> bool {
    // Most pages differ from zero in their first words: look there before scanning all of it.
    page[..64.min(page.len())].iter().all(|byte| *byte == 0) && page.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_runs_are_left_out() {
        let mut run = vec![0u8; 5 * PAGE];
        run[PAGE + 100] = 1;
        run[4 * PAGE] = 2;
        let mut seen = Vec::new();
        let sent = nonzero(0x10000, &run, &mut |at, bytes| {
            seen.push((at, bytes.len()));
            Ok(())
        });
        assert_eq!(sent.expect("sent"), 2 * PAGE as u64);
        assert_eq!(seen, vec![(0x11000, PAGE), (0x14000, PAGE)]);
    }
}
