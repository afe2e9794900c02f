//! The memory map of a body on a host, as it travels on: what the guest made of the map it arrived with.
//!
//! The guest has mapped and unmapped since. Files are known by the inodes of the memfds that hold them here; home's vDSO and the
//! reserved pages beside it are ordinary memory that may have merged with neighbours, so they are cut out again.

use super::build::Built;
use crate::process::layout::{Pages, carried_flags};
use crate::process::maps::Mapping;
use mosix_loader::script::abi::{WINDOW, WINDOW_END};
use mosix_wire::image::{Backing, FileRef, Vma, VmaFlags};
use std::collections::HashMap;
use std::ops::Range;

/// Memory of a body that no rule knows: the body stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("memory at {0:#x} ({1}) that this host cannot describe")]
pub struct Strange(u64, String);

/// Finds the file that has an inode on this node.
pub type FileOf<'a> = &'a dyn Fn(u64) -> Option<FileRef>;

/// Files that are mapped.
pub fn files(present: &[Mapping], file_of: FileOf<'_>) -> Vec<FileRef> {
    let mut inodes: Vec<u64> = present
        .iter()
        .map(|mapping| mapping.inode)
        .filter(|inode| *inode != 0)
        .collect();
    inodes.sort_unstable();
    inodes.dedup();
    inodes.into_iter().filter_map(file_of).collect()
}

/// Mappings that travel, with the pages to be sent of each, and the files behind them. When a list of files is `offered`, the
/// destination has these, and the bytes of others travel as memory. `watched` is memory that belongs to objects at home.
///
/// # Errors
/// A mapping that is none of the body's own kinds.
pub fn of_body(
    built: &Built,
    present: &[Mapping],
    file_of: FileOf<'_>,
    offered: Option<&[FileRef]>,
    watched: &[Range<u64>],
) -> Result<(Vec<Vma>, Vec<Pages>, Vec<FileRef>), Strange> {
    let mut files: Vec<FileRef> = Vec::new();
    let mut numbers: HashMap<u64, Option<u32>> = HashMap::new();
    let arrived = &built.image.vmas;
    let fixed: Vec<(Range<u64>, Backing)> = arrived
        .iter()
        .filter(|vma| matches!(vma.backing, Backing::Vdso | Backing::Reserved))
        .map(|vma| (vma.start..vma.end, vma.backing))
        .collect();
    let (mut vmas, mut pages) = (Vec::with_capacity(present.len()), Vec::with_capacity(present.len()));
    let borders: Vec<(Range<u64>, Backing)> = fixed
        .iter()
        .cloned()
        .chain(watched.iter().map(|range| (range.clone(), Backing::Anonymous)))
        .collect();
    let shares = |piece: &Range<u64>| {
        watched
            .iter()
            .any(|range| range.start <= piece.start && piece.end <= range.end)
    };
    for mapping in present {
        if (mapping.start >= WINDOW && mapping.end <= WINDOW_END) || mapping.special() {
            continue;
        }
        let strange = || Strange(mapping.start, mapping.name.clone());
        // Read-only, of a file of home's: as private as its copy here.
        if mapping.shared && (mapping.inode == 0 || file_of(mapping.inode).is_none()) {
            return Err(strange());
        }
        // `Some(None)`: a file that the destination does not have.
        let file = match (mapping.inode, numbers.get(&mapping.inode)) {
            (0, _) => None,
            (_, Some(known)) => Some(*known),
            (inode, None) => {
                let file = file_of(inode).ok_or_else(strange)?;
                let number = offered.is_none_or(|offered| offered.contains(&file)).then(|| {
                    files.push(file);
                    files.len() as u32 - 1
                });
                numbers.insert(inode, number);
                Some(number)
            }
        };
        for piece in cut(mapping.start..mapping.end, &borders) {
            let special = fixed
                .iter()
                .find(|(range, _)| range.start <= piece.start && piece.end <= range.end);
            let (backing, which) = match (file, special) {
                (Some(None), _) => (Backing::Anonymous, Pages::All),
                (Some(Some(file)), _) => {
                    let offset = mapping.offset + (piece.start - mapping.start);
                    (Backing::File { file, offset }, Pages::Changed)
                }
                (None, Some((range, Backing::Vdso))) if *range == piece => (Backing::Vdso, Pages::None),
                (None, Some((_, Backing::Reserved))) if mapping.prot == 0 => (Backing::Reserved, Pages::None),
                // Home has what was written there; another host gets it as memory.
                (None, _) if offered.is_none() && shares(&piece) => (Backing::Anonymous, Pages::None),
                (None, _) => (Backing::Anonymous, Pages::Touched),
            };
            let mut flags = carried_flags(mapping);
            if file.is_none() && shares(&piece) {
                flags |= VmaFlags::WAS_SHARED;
            }
            vmas.push(Vma {
                start: piece.start,
                end: piece.end,
                prot: mapping.prot,
                flags,
                backing,
            });
            pages.push(which);
        }
    }
    Ok((vmas, pages, files))
}

/// Cuts a range at the borders of the fixed ones.
fn cut(range: Range<u64>, fixed: &[(Range<u64>, Backing)]) -> Vec<Range<u64>> {
    let inside = |at: &u64| range.start < *at && *at < range.end;
    let mut borders: Vec<u64> = fixed
        .iter()
        .flat_map(|(fixed, _)| [fixed.start, fixed.end])
        .filter(inside)
        .collect();
    borders.push(range.end);
    borders.sort_unstable();
    borders.dedup();
    let mut start = range.start;
    borders
        .into_iter()
        .map(|end| std::mem::replace(&mut start, end)..end)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_mappings_are_cut_at_the_fixed_ones() {
        let fixed = [(10..20, Backing::Vdso), (20..24, Backing::Reserved)];
        assert_eq!(cut(0..30, &fixed), vec![0..10, 10..20, 20..24, 24..30]);
        assert_eq!(cut(12..18, &fixed), vec![12..18]);
        assert_eq!(cut(10..20, &fixed), vec![10..20]);
        assert_eq!(cut(30..40, &fixed), vec![30..40]);
    }
}
