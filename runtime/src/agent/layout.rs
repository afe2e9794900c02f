//! The memory map of a body on a host, as it travels on: what the guest made of the map it arrived with.
//!
//! The guest has mapped and unmapped since. Files are known by the inodes of the memfds that hold them here; home's vDSO and the
//! reserved pages beside it are ordinary memory that may have merged with neighbours, so they are cut out again.

use super::build::Built;
use crate::process::layout::{Pages, carried_flags};
use crate::process::maps::Mapping;
use mosix_loader::script::abi::{WINDOW, WINDOW_END};
use mosix_wire::image::{Backing, Vma};
use std::ops::Range;

/// Memory of a body that no rule knows: the body stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("memory at {0:#x} ({1}) that this host cannot describe")]
pub struct Strange(u64, String);

/// Mappings that travel, with the pages to be sent of each.
///
/// # Errors
/// A mapping that is none of the body's own kinds.
pub fn of_body(built: &Built, present: &[Mapping]) -> Result<(Vec<Vma>, Vec<Pages>), Strange> {
    let arrived = &built.image.vmas;
    let fixed: Vec<(Range<u64>, Backing)> = arrived
        .iter()
        .filter(|vma| matches!(vma.backing, Backing::Vdso | Backing::Reserved))
        .map(|vma| (vma.start..vma.end, vma.backing))
        .collect();
    let (mut vmas, mut pages) = (Vec::with_capacity(present.len()), Vec::with_capacity(present.len()));
    for mapping in present {
        if (mapping.start >= WINDOW && mapping.end <= WINDOW_END) || mapping.special() {
            continue;
        }
        let file = match mapping.inode {
            0 => None,
            inode => match built.inodes.iter().position(|known| *known == inode) {
                Some(index) if !mapping.shared => Some(index as u32),
                _ => return Err(Strange(mapping.start, mapping.name.clone())),
            },
        };
        if mapping.shared {
            return Err(Strange(mapping.start, mapping.name.clone()));
        }
        for piece in cut(mapping.start..mapping.end, &fixed) {
            let special = fixed
                .iter()
                .find(|(range, _)| range.start <= piece.start && piece.end <= range.end);
            let (backing, which) = match (file, special) {
                (Some(file), _) => {
                    let offset = mapping.offset + (piece.start - mapping.start);
                    (Backing::File { file, offset }, Pages::Changed)
                }
                (None, Some((range, Backing::Vdso))) if *range == piece => (Backing::Vdso, Pages::None),
                (None, Some((_, Backing::Reserved))) if mapping.prot == 0 => (Backing::Reserved, Pages::None),
                (None, _) => (Backing::Anonymous, Pages::Touched),
            };
            let flags = carried_flags(mapping);
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
    Ok((vmas, pages))
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
