//! Turns a home's vDSO into one that works on this node.

use super::VdsoError;
use super::code;
use super::image::VdsoImage;
use super::layout::{Slot, layout, plain};
use std::collections::BTreeMap;
use std::ops::Range;

/// What the program was told of its home's CPUs and clock, and must go on seeing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presented {
    /// CPUs that home shows: getcpu answers below it, always NUMA node 0. At least 1.
    pub cpus: u32,
    /// Home's realtime clock minus the node's, in nanoseconds. 0: the clocks are taken as equal. Only the
    /// vDSO is corrected: system calls that read the clock are the supervisor's to correct.
    pub realtime_offset_ns: i64,
}

/// What [`patch`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patched {
    /// Functions that now run in the node's vDSO, by name without `__vdso_`.
    pub redirected: Vec<String>,
    /// Functions that now make a system call or answer ENOSYS.
    pub fallbacks: Vec<String>,
    /// Ranges of the image whose bytes are the same on every node for this image and this [`Presented`]: a thread may be frozen
    /// with its instruction pointer there, for example in the system call of a fallback.
    pub stable: Vec<Range<usize>>,
}

impl Patched {
    /// True when a thread may be frozen with its instruction pointer at this offset of the image.
    #[must_use]
    pub fn is_stable(&self, offset: usize) -> bool {
        self.stable.iter().any(|range| range.contains(&offset))
    }
}

/// Overwrites every exported function of `image`, the unpatched bytes of a home's vDSO, so that it works on this node. `node` lists
/// names (with or without `__vdso_`) and absolute addresses of the functions of the node's own vDSO as the body sees it; an address of
/// 0 means absent. The patched bytes work at any address.
///
/// getrandom never jumps to the node: its state is of another kernel and possibly a copy, which would repeat random numbers.
///
/// # Errors
/// When the image cannot be read, or has no room for a function; it is then unchanged.
pub fn patch<S: AsRef<str>>(image: &mut [u8], node: &[(S, u64)], presented: Presented) -> Result<Patched, VdsoError> {
    let slots = layout(&VdsoImage::parse(image)?)?;
    let mut node_functions: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, address) in node.iter().filter(|(_, address)| *address != 0) {
        node_functions.entry(plain(name.as_ref())).or_insert(*address);
    }
    let local = |slot: &Slot| {
        let movable = !slot.names.iter().any(|name| name == "getrandom");
        slot.names
            .iter()
            .filter(|_| movable)
            .find_map(|name| node_functions.get(name.as_str()))
            .copied()
    };
    let clock = slots.iter().find(|slot| slot.meaning() == "clock_gettime");
    let clock = clock
        .filter(|slot| local(slot).is_some())
        .and_then(|slot| slot.adapter.as_ref());

    let mut writes: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut done = Patched::default();
    for slot in &slots {
        let name = slot.meaning();
        writes.push((slot.fallback.start, code::fallback(name, presented.cpus)));
        done.stable.push(slot.fallback.clone());
        let adapter = match (local(slot), &slot.adapter) {
            (Some(_), Some(place)) if name == "time" && presented.realtime_offset_ns != 0 => clock
                .and_then(|clock| code::time_adapter(place.start, clock.start))
                .map(|code| (place.start, code)),
            (Some(address), Some(place))
                if matches!(name, "getcpu" | "clock_gettime") || presented.realtime_offset_ns != 0 =>
            {
                code::adapter(name, address, presented.cpus, presented.realtime_offset_ns)
                    .map(|code| (place.start, code))
            }
            _ => None,
        };
        // Without an adapter for a clock that must be corrected, the system call is the honest answer.
        let corrected = matches!(name, "clock_gettime" | "gettimeofday" | "time") && presented.realtime_offset_ns != 0;
        let target = match (adapter, local(slot)) {
            (Some((start, code)), _) => {
                writes.push((start, code));
                Target::Within(start)
            }
            (None, Some(address)) if !corrected => Target::Node(address),
            _ => Target::Within(slot.fallback.start),
        };
        let named = || slot.names.iter().cloned();
        if target == Target::Within(slot.fallback.start) {
            done.fallbacks.extend(named());
        } else {
            done.redirected.extend(named());
        }
        writes.extend(entry(slot, target)?);
    }
    // Nothing is written before everything is known to fit.
    let inside = |(at, bytes): &(usize, Vec<u8>)| at.checked_add(bytes.len()).is_some_and(|end| end <= image.len());
    if let Some((at, _)) = writes.iter().find(|write| !inside(write)) {
        return Err(VdsoError::Malformed(format!("code at {at:#x} ends behind the image")));
    }
    for (at, bytes) in &writes {
        if let Some(place) = image.get_mut(*at..*at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    Ok(done)
}

/// Where a function's entry leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// An offset of the image.
    Within(usize),
    /// An address of the node's vDSO.
    Node(u64),
}

fn entry(slot: &Slot, target: Target) -> Result<Vec<(usize, Vec<u8>)>, VdsoError> {
    let near = |to: usize| {
        let far = || VdsoError::Malformed(format!("no jump from {:#x} to {to:#x}", slot.entry));
        code::jump_within(slot.entry, to).ok_or_else(far)
    };
    Ok(match (target, slot.trampoline) {
        (Target::Within(to), _) => vec![(slot.entry, near(to)?)],
        (Target::Node(address), None) => vec![(slot.entry, code::jump(address))],
        (Target::Node(address), Some(through)) => vec![(through, code::jump(address)), (slot.entry, near(through)?)],
    })
}
