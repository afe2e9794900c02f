//! Judges an image before anything is built from it: every count, order and range, whoever sent it.
//!
//! What passes here can be given to the kernel step by step; what the kernel then refuses ends the arrival, nothing else.

use crate::cpu;
pub use crate::process::landing::covered;
use mosix_loader::script::abi::{SLOT_COUNT, WINDOW, WINDOW_END};
use mosix_wire::image::{Backing, ProcessImage, Vma, VmaFlags};
use mosix_wire::limits;
use std::collections::HashSet;

const PAGE: u64 = 4096;
/// Below are the pages that vm.mmap_min_addr keeps.
const LOWEST: u64 = 0x1_0000;
/// One past the highest user address with 4-level page tables.
const HIGHEST: u64 = 0x7fff_ffff_f000;
/// Files behind mappings: more than any program maps, fewer than a process may hold descriptors.
const FILES: usize = 900;
const PENDING: usize = 4096;
const SIGINFO: usize = 128;
const XSAVE: usize = 64 << 10;
const AUXV: usize = 4096;
const VDSO: usize = 64 << 10;

/// Why an image is not built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadImage {
    /// Something has more parts than allowed, or none.
    #[error("the image has {count} {what}, allowed are {least} to {most}")]
    Count {
        /// What.
        what: &'static str,
        /// How many.
        count: usize,
        /// Lower bound.
        least: usize,
        /// Upper bound.
        most: usize,
    },
    /// A part contradicts another or the machine.
    #[error("the image is wrong: {0}")]
    Wrong(&'static str),
    /// A mapping lies where none may be.
    #[error("the image has a mapping at {0:#x} where none may be")]
    Mapping(u64),
    /// The node's CPU cannot run it.
    #[error(transparent)]
    Cpu(#[from] cpu::Missing),
    /// A signal would overflow a thread's alternate stack here.
    #[error(transparent)]
    SignalStack(#[from] cpu::SmallStack),
}

fn count(what: &'static str, count: usize, least: usize, most: usize) -> Result<(), BadImage> {
    if (least..=most).contains(&count) {
        Ok(())
    } else {
        Err(BadImage::Count {
            what,
            count,
            least,
            most,
        })
    }
}

/// Judges an image.
///
/// # Errors
/// The first thing wrong with it.
pub fn image(image: &ProcessImage) -> Result<(), BadImage> {
    count(
        "threads",
        image.threads.len(),
        1,
        limits::THREADS.min(SLOT_COUNT as usize),
    )?;
    count("mappings", image.vmas.len(), 1, limits::VMAS)?;
    count("files", image.files.len(), 0, FILES)?;
    count("handlers", image.actions.len(), 64, 64)?;
    count("pending signals", image.pending.len(), 0, PENDING)?;
    count("bytes of auxv", image.mm.auxv.len(), 0, AUXV)?;
    threads(image)?;
    mappings(image)?;
    if image.pending.iter().any(|info| info.0.len() != SIGINFO) {
        return Err(BadImage::Wrong("a siginfo has not 128 bytes"));
    }
    if image.cpu.cpus == 0 {
        return Err(BadImage::Wrong("home has no CPU"));
    }
    cpu::admit(&image.cpu, &cpu::record())?;
    Ok(cpu::admit_signal_stacks(image, cpu::signal_frame())?)
}

fn threads(image: &ProcessImage) -> Result<(), BadImage> {
    let mut seen = HashSet::new();
    if image.threads.first().is_some_and(|leader| leader.tid.0 != image.pid.0) {
        return Err(BadImage::Wrong("the first thread is not the leader"));
    }
    for thread in &image.threads {
        if thread.tid.0 < 2 || !seen.insert(thread.tid) {
            return Err(BadImage::Wrong("a thread id is impossible or there twice"));
        }
        // 512: a CPU without XSAVE.
        count("bytes of vector registers", thread.xsave.len(), 512, XSAVE)?;
        count("pending signals of a thread", thread.pending.len(), 0, PENDING)?;
        count("bytes of a thread's name", thread.comm.len(), 0, 64)?;
        if thread.pending.iter().any(|info| info.0.len() != SIGINFO) {
            return Err(BadImage::Wrong("a siginfo has not 128 bytes"));
        }
        if thread.seq > u64::MAX / 2 {
            return Err(BadImage::Wrong("a thread's call number is impossible"));
        }
    }
    Ok(())
}

fn mappings(image: &ProcessImage) -> Result<(), BadImage> {
    let mut end = LOWEST;
    for vma in &image.vmas {
        let aligned = vma.start.is_multiple_of(PAGE) && vma.end.is_multiple_of(PAGE);
        let free = vma.end <= WINDOW || vma.start >= WINDOW_END;
        if !aligned || vma.start < end || vma.start >= vma.end || vma.end > HIGHEST || !free {
            return Err(BadImage::Mapping(vma.start));
        }
        end = vma.end;
        if vma.prot & !7 != 0 {
            return Err(BadImage::Wrong("a mapping has impossible rights"));
        }
        if let Backing::File { file, offset } = vma.backing {
            let fits = (file as usize) < image.files.len() && offset.is_multiple_of(PAGE) && offset < 1 << 62;
            if !fits {
                return Err(BadImage::Wrong("a mapping names no file of the image"));
            }
        }
    }
    let growing = image.vmas.iter().filter(|vma| vma.flags & VmaFlags::GROWS_DOWN != 0);
    let growing: u64 = growing.map(|vma| vma.end - vma.start).sum();
    if growing > super::memory::STACK {
        return Err(BadImage::Wrong("its stacks are larger than a host allows"));
    }
    let Some(vdso) = &image.vdso else { return Ok(()) };
    count("bytes of vDSO", vdso.text.len(), PAGE as usize, VDSO)?;
    let is_it = |vma: &&Vma| vma.backing == Backing::Vdso && vma.start <= vdso.base;
    let place = image.vmas.iter().find(|vma| is_it(vma) && vdso.base < vma.end);
    match place {
        Some(vma) if vma.start == vdso.base && vma.end - vma.start == vdso.text.len() as u64 => Ok(()),
        _ => Err(BadImage::Wrong("home's vDSO does not lie in its mapping")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mosix_wire::ids::{Epoch, Nonce, Pid, Tid};
    use mosix_wire::image::{Attributes, Clocks, MmImage, SigAction, SigInfo, ThreadImage};
    use mosix_wire::spent::{CpuTime, Spent};

    fn vma(start: u64, end: u64) -> Vma {
        Vma {
            start,
            end,
            prot: 3,
            flags: 0,
            backing: Backing::Anonymous,
        }
    }

    fn thread(tid: i32) -> ThreadImage {
        ThreadImage {
            tid: Tid(tid),
            regs: [0; 27],
            xsave: vec![0; 576],
            mask: 0,
            altstack: (0, 2, 0),
            robust: (0, 0),
            clear_child_tid: 0,
            rseq: None,
            pending: vec![],
            timer_slack: 0,
            comm: String::new(),
            seq: 0,
            in_flight: false,
            since: None,
            cpu: CpuTime::default(),
        }
    }

    fn good() -> ProcessImage {
        ProcessImage {
            pid: Pid(100),
            epoch: Epoch(1),
            home: Nonce(1),
            uid: 1,
            exe: "/x".into(),
            threads: vec![thread(100), thread(101)],
            vmas: vec![
                vma(0x40_0000, 0x40_1000),
                vma(0x40_1000, 0x40_3000),
                vma(0x7f00_0000_0000, 0x7f00_0000_1000),
            ],
            files: vec![],
            mm: MmImage::default(),
            actions: vec![SigAction::default(); 64],
            pending: vec![],
            signals: 0,
            spent: Spent::default(),
            home_cpu_ns: 0,
            clocks: Clocks::default(),
            vdso: None,
            cpu: cpu::record(),
            attributes: Attributes::default(),
        }
    }

    #[test]
    fn a_good_image_passes_and_every_damage_is_seen() {
        assert_eq!(image(&good()), Ok(()));
        let damages: [fn(&mut ProcessImage); 17] = [
            |i| i.threads.clear(),
            |i| i.threads[0].tid = Tid(7),
            |i| i.threads[1].tid = Tid(100),
            |i| i.threads[1].tid = Tid(1),
            |i| i.threads[1].xsave.clear(),
            |i| i.threads[1].seq = u64::MAX,
            |i| i.threads[1].pending.push(SigInfo(vec![0; 4])),
            |i| i.vmas.swap(0, 1),
            |i| i.vmas[1].start = 0x40_0000,
            |i| i.vmas[1].end = 0x40_1001,
            |i| i.vmas[0].start = 0,
            |i| i.vmas[2].end = !0xfff,
            |i| i.vmas.push(vma(WINDOW + 0x1000, WINDOW + 0x2000)),
            |i| i.vmas[2] = vma(WINDOW - 0x1000, WINDOW_END + 0x1000),
            |i| i.vmas[0].backing = Backing::File { file: 0, offset: 0 },
            |i| i.actions.truncate(3),
            |i| {
                i.vmas[2].start -= 2 << 30;
                i.vmas[2].flags = VmaFlags::GROWS_DOWN;
            },
        ];
        for (index, damage) in damages.into_iter().enumerate() {
            let mut bad = good();
            damage(&mut bad);
            assert!(image(&bad).is_err(), "damage {index} passes");
        }
    }

    #[test]
    fn pages_stay_in_mappings() {
        let vmas = good().vmas;
        assert!(covered(&vmas, 0x40_0000, 0x3000));
        assert!(!covered(&vmas, 0x40_0000, 0x4000));
        assert!(!covered(&vmas, 0x3f_f000, 0x2000));
        assert!(!covered(&vmas, WINDOW, 0x1000));
        assert!(!covered(&vmas, u64::MAX - 10, 100));
        assert!(!covered(&vmas, 0x40_0000, 0));
    }
}
