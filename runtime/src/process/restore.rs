//! Giving a deputy its body back: the memory map of the body that returns, on top of what the deputy still has.
//!
//! The deputy kept every mapping it had at departure (the only references to deleted files, seals, locks). What the body changed while
//! away becomes the smallest set of munmap, mmap and mprotect; contents follow as pages.

use super::maps::Mapping;
use mosix_loader::script::Op;
use mosix_loader::script::abi::{WINDOW, WINDOW_END};
use mosix_wire::image::{Backing, FileRef, MmImage, Vma, VmaFlags};
use std::ops::Range;

/// What to do before the pages of the body are written.
#[derive(Debug, Default)]
pub struct Repair {
    /// System calls for the deputy.
    pub ops: Vec<Op>,
    /// Ranges to be filled from files of home: (address, bytes, file of the image, offset).
    pub fills: Vec<(u64, u64, FileRef, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Nothing,
    Unmap,
    Map(u64, u32),
    Protect(u64),
}

/// A file as two images can name it: tables of images number files differently.
fn behind(vma: &Vma, files: &[FileRef], at: u64) -> Option<(u64, u64, u64)> {
    match vma.backing {
        Backing::File { file, offset } => files
            .get(file as usize)
            .map(|file| (file.device, file.inode, offset + (at - vma.start))),
        _ => None,
    }
}

/// Compares the deputy's mappings with those of the returning body. `sent` is what left home.
pub fn repair(
    current: &[Mapping],
    (sent, sent_files): (&[Vma], &[FileRef]),
    (image, files): (&[Vma], &[FileRef]),
) -> Repair {
    let usable = |mapping: &&Mapping| !mapping.special() && (mapping.end <= WINDOW || mapping.start >= WINDOW_END);
    let current: Vec<&Mapping> = current.iter().filter(usable).collect();
    let image: Vec<&Vma> = image
        .iter()
        .filter(|vma| !matches!(vma.backing, Backing::Vdso | Backing::Reserved))
        .collect();
    let mut points: Vec<u64> = Vec::new();
    points.extend(current.iter().flat_map(|mapping| [mapping.start, mapping.end]));
    points.extend(image.iter().flat_map(|vma| [vma.start, vma.end]));
    points.extend(sent.iter().flat_map(|vma| [vma.start, vma.end]));
    points.sort_unstable();
    points.dedup();
    let (mut here, mut wanted, mut left) = (Cursor::default(), Cursor::default(), Cursor::default());
    let mut repair = Repair::default();
    let mut pending: Option<(u64, u64, Action)> = None;
    for pair in points.windows(2) {
        let (start, end) = (pair[0], pair[1]);
        let here = here
            .at(&current, start, |mapping| (mapping.start, mapping.end))
            .copied();
        let wanted = wanted.at(&image, start, |vma| (vma.start, vma.end)).copied();
        let left = left.at(sent, start, |vma| (vma.start, vma.end));
        let action = decide(here, wanted, left, (sent_files, files), start, end, &mut repair);
        match &mut pending {
            Some((_, stop, last)) if *stop == start && *last == action => *stop = end,
            _ => {
                flush(pending.take(), &mut repair.ops);
                pending = Some((start, end, action));
            }
        }
    }
    flush(pending, &mut repair.ops);
    repair
}

fn decide(
    here: Option<&Mapping>,
    wanted: Option<&Vma>,
    left: Option<&Vma>,
    (sent_files, files): (&[FileRef], &[FileRef]),
    start: u64,
    end: u64,
    repair: &mut Repair,
) -> Action {
    let Some(vma) = wanted else {
        return if here.is_some() { Action::Unmap } else { Action::Nothing };
    };
    let prot = u64::from(vma.prot);
    let source = behind(vma, files, start);
    let kept = match (here, left) {
        // The program has unmapped the object, and has memory of its own there.
        (Some(mapping), _) if mapping.shared && source.is_none() && vma.flags & VmaFlags::WAS_SHARED == 0 => false,
        (Some(_), Some(sent)) => source == behind(sent, sent_files, start),
        (Some(mapping), None) => mapping.inode == 0 && source.is_none(),
        (None, _) => false,
    };
    if !kept {
        if let Some((device, inode, offset)) = source
            && let Some(file) = files.iter().find(|file| (file.device, file.inode) == (device, inode))
        {
            repair.fills.push((start, end - start, file.clone(), offset));
        }
        return Action::Map(prot, vma.flags);
    }
    match here {
        // The file behind it did not travel: its bytes are in the pages, and zeros among them were left out. What a body wrote to a shared one
        // has come home before.
        Some(mapping) if mapping.inode != 0 && source.is_none() && !mapping.shared => Action::Map(prot, vma.flags),
        Some(mapping) if u64::from(mapping.prot) != prot => Action::Protect(prot),
        _ => Action::Nothing,
    }
}

fn flush(pending: Option<(u64, u64, Action)>, ops: &mut Vec<Op>) {
    let Some((start, end, action)) = pending else { return };
    let length = end - start;
    match action {
        Action::Nothing => {}
        Action::Unmap => ops.push(Op::must(libc::SYS_munmap, [start, length, 0, 0, 0, 0])),
        Action::Protect(prot) => ops.push(Op::must(libc::SYS_mprotect, [start, length, prot, 0, 0, 0])),
        Action::Map(prot, bits) => {
            let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            if bits & VmaFlags::GROWS_DOWN != 0 {
                flags |= libc::MAP_GROWSDOWN;
            }
            if bits & VmaFlags::NO_RESERVE != 0 {
                flags |= libc::MAP_NORESERVE;
            }
            ops.push(Op::must(
                libc::SYS_mmap,
                [start, length, prot, flags as u64, u64::MAX, 0],
            ));
        }
    }
}

/// Walks a sorted list once while addresses ascend.
#[derive(Default)]
struct Cursor(usize);

impl Cursor {
    fn at<'a, T>(&mut self, list: &'a [T], address: u64, range: impl Fn(&T) -> (u64, u64)) -> Option<&'a T> {
        while list.get(self.0).is_some_and(|item| range(item).1 <= address) {
            self.0 += 1;
        }
        list.get(self.0).filter(|item| range(item).0 <= address)
    }
}

/// Calls that drop the memory of a deputy whose body runs elsewhere. Mappings stay; sealed and shared ones keep their contents. What lies in
/// `kept` stays too.
pub fn drop_memory(mappings: &[Mapping], kept: &Range<u64>) -> Vec<Op> {
    const DONTNEED_LOCKED: u64 = 24;
    let dropped = mappings.iter().filter(|mapping| {
        !mapping.shared
            && !mapping.special()
            && !mapping.has(b"sl")
            && (mapping.end <= WINDOW || mapping.start >= WINDOW_END)
    });
    let mut ops = Vec::new();
    for mapping in dropped {
        let advice = if mapping.has(b"lo") {
            DONTNEED_LOCKED
        } else {
            libc::MADV_DONTNEED as u64
        };
        let pieces = [
            mapping.start..mapping.end.min(kept.start),
            mapping.start.max(kept.end)..mapping.end,
        ];
        let whole = kept.is_empty() || mapping.end <= kept.start || mapping.start >= kept.end;
        let pieces = if whole {
            [mapping.start..mapping.end, 0..0]
        } else {
            pieces
        };
        ops.extend(pieces.into_iter().filter(|piece| piece.start < piece.end).map(|piece| {
            let length = piece.end - piece.start;
            Op::may(libc::SYS_madvise, [piece.start, length, advice, 0, 0, 0])
        }));
    }
    ops
}

/// The pages of a process's arguments and environment, which `ps` and others read at home.
pub fn words(mm: &MmImage) -> Range<u64> {
    let (start, end) = (mm.fields[7] & !0xfff, mm.fields[10].saturating_add(0xfff) & !0xfff);
    let sane = start > 0 && start < end && end - start <= WORDS;
    if sane { start..end } else { 0..0 }
}

/// Most bytes of arguments and environment that stay at home: the kernel accepts no more.
const WORDS: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, prot: u8) -> Mapping {
        Mapping {
            start,
            end,
            prot,
            shared: false,
            offset: 0,
            device: 0,
            inode: 0,
            name: String::new(),
            flags: Vec::new(),
        }
    }

    fn vma(start: u64, end: u64, prot: u8) -> Vma {
        Vma {
            start,
            end,
            prot,
            flags: 0,
            backing: Backing::Anonymous,
        }
    }

    #[test]
    fn nothing_changed_needs_nothing() {
        let sent = [vma(0x1000, 0x3000, 3)];
        let repair = repair(&[mapping(0x1000, 0x3000, 3)], (&sent, &[]), (&sent, &[]));
        assert!(repair.ops.is_empty() && repair.fills.is_empty());
    }

    #[test]
    fn changes_become_the_fewest_calls() {
        let sent = [vma(0x1000, 0x5000, 3), vma(0x8000, 0x9000, 3)];
        let here = [mapping(0x1000, 0x5000, 3), mapping(0x8000, 0x9000, 3)];
        // The body unmapped the second page, protected the last and mapped two pages elsewhere, in two steps.
        let image = [
            vma(0x1000, 0x2000, 3),
            vma(0x3000, 0x5000, 3),
            vma(0x8000, 0x9000, 1),
            vma(0xa000, 0xb000, 3),
            vma(0xb000, 0xc000, 3),
        ];
        let calls: Vec<(u32, u64, u64)> = repair(&here, (&sent, &[]), (&image, &[]))
            .ops
            .iter()
            .map(|op| (op.nr, op.args[0], op.args[1]))
            .collect();
        assert_eq!(
            calls,
            vec![
                (libc::SYS_munmap as u32, 0x2000, 0x1000),
                (libc::SYS_mprotect as u32, 0x8000, 0x1000),
                (libc::SYS_mmap as u32, 0xa000, 0x2000),
            ]
        );
    }

    #[test]
    fn arguments_and_environment_stay() {
        let stack = mapping(0x10_0000, 0x20_0000, 3);
        let dropped = |kept: Range<u64>| -> Vec<(u64, u64)> {
            let ops = drop_memory(std::slice::from_ref(&stack), &kept);
            ops.iter().map(|op| (op.args[0], op.args[0] + op.args[1])).collect()
        };
        assert_eq!(dropped(0x1f_e000..0x20_0000), [(0x10_0000, 0x1f_e000)]);
        assert_eq!(
            dropped(0x12_0000..0x12_1000),
            [(0x10_0000, 0x12_0000), (0x12_1000, 0x20_0000)]
        );
        for elsewhere in [0..0, 0x20_0000..0x21_0000, 0x1000..0x10_0000] {
            assert_eq!(dropped(elsewhere), [(0x10_0000, 0x20_0000)]);
        }
        let mut mm = MmImage {
            fields: [0; 11],
            auxv: Vec::new(),
        };
        (mm.fields[7], mm.fields[10]) = (0x7ffc_0000_1234, 0x7ffc_0000_2ff8);
        assert_eq!(words(&mm), 0x7ffc_0000_1000..0x7ffc_0000_3000);
        mm.fields[10] = u64::MAX;
        assert_eq!(words(&mm), 0..0);
    }
}
