//! Where in a vDSO image our code goes.
//!
//! Once every exported function begins with a jump, the rest of each body is dead and serves as room for fallbacks and adapters. The
//! layout follows from the image alone, not from the node: a thread frozen in a fallback on one node finds the same bytes at the same
//! address on the next.

use super::VdsoError;
use super::code;
use super::image::VdsoImage;
use std::ops::Range;

/// One exported function with all its names, and the places of our code for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// All names at this address, without `__vdso_` where they have it; sorted, no doubles.
    pub names: Vec<String>,
    /// First byte in the image.
    pub entry: usize,
    /// Place of the fallback, which needs nothing of the node.
    pub fallback: Range<usize>,
    /// Place of the adapter, for functions whose answer may need a correction.
    pub adapter: Option<Range<usize>>,
    /// Place of the long jump when the function itself has room for a short one only.
    pub trampoline: Option<usize>,
}

impl Slot {
    /// The name that decides what the function means: one that has a system call, else the first.
    #[must_use]
    pub fn meaning(&self) -> &str {
        self.names
            .iter()
            .find(|name| code::syscall_of(name).is_some())
            .or(self.names.first())
            .map_or("", String::as_str)
    }
}

/// The name without the prefix that all vDSO functions share; `clock_gettime` and `__vdso_clock_gettime` are one function.
#[must_use]
pub fn plain(name: &str) -> &str {
    name.strip_prefix("__vdso_").unwrap_or(name)
}

/// Plans all code for an image.
///
/// # Errors
/// When a function is too short for a jump, or the bodies together are too small.
pub fn layout(image: &VdsoImage) -> Result<Vec<Slot>, VdsoError> {
    let mut entries: Vec<usize> = image.exports.iter().map(|export| export.offset).collect();
    entries.sort_unstable();
    entries.dedup();

    let mut slots = Vec::with_capacity(entries.len());
    let mut bodies: Vec<Range<usize>> = Vec::with_capacity(entries.len());
    for (index, &entry) in entries.iter().enumerate() {
        let aliases = || image.exports.iter().filter(|export| export.offset == entry);
        let mut names: Vec<String> = aliases().map(|export| plain(&export.name).to_owned()).collect();
        names.sort_unstable();
        names.dedup();
        let text_end = image
            .text
            .iter()
            .find(|range| range.contains(&entry))
            .map_or(entry, |range| range.end);
        let limit = entries.get(index + 1).map_or(text_end, |next| text_end.min(*next));
        // A symbol without a size reaches to the next one.
        let size = aliases()
            .map(|export| export.size)
            .max()
            .filter(|size| *size > 0)
            .unwrap_or(usize::MAX);
        let end = entry.saturating_add(size).min(limit);
        let room = end - entry;
        let name = names.first().cloned().unwrap_or_default();
        if room < code::SHORT_JUMP {
            return Err(VdsoError::TooShort { name, size: room });
        }
        let head = if room >= code::JUMP {
            code::JUMP
        } else {
            code::SHORT_JUMP
        };
        bodies.push(entry + head..end);
        // The place of a trampoline is found below; until then 0 says that one is needed.
        let trampoline = (room < code::JUMP).then_some(0);
        slots.push(Slot {
            names,
            entry,
            fallback: 0..0,
            adapter: None,
            trampoline,
        });
    }

    for (index, slot) in slots.iter_mut().enumerate() {
        let name = slot.meaning().to_owned();
        slot.fallback = take(&mut bodies, index, &name, code::fallback(&name, 1).len())?;
        if slot.trampoline.is_some() {
            slot.trampoline = Some(take(&mut bodies, index, &name, code::JUMP)?.start);
        }
        let adapter = match name.as_str() {
            "time" => code::time_adapter(0, 0),
            other => code::adapter(other, 0, 1, 0),
        };
        if let Some(adapter) = adapter {
            slot.adapter = Some(take(&mut bodies, index, &name, adapter.len())?);
        }
    }
    Ok(slots)
}

/// Takes `size` bytes from the function's own body if they fit, else from the first body with room.
fn take(bodies: &mut [Range<usize>], own: usize, name: &str, size: usize) -> Result<Range<usize>, VdsoError> {
    let fits = |body: &Range<usize>| body.len() >= size;
    let chosen = if bodies.get(own).is_some_and(fits) {
        Some(own)
    } else {
        bodies.iter().position(fits)
    };
    let body = chosen.and_then(|index| bodies.get_mut(index));
    let body = body.ok_or_else(|| VdsoError::NoRoom {
        name: name.to_owned(),
        size,
    })?;
    let taken = body.start..body.start + size;
    body.start = taken.end;
    Ok(taken)
}
