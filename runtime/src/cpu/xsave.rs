//! Carries a thread's extended registers between CPUs that keep them in different places.
//!
//! The NT_X86_XSTATE register set is an XSAVE area in the standard format: 512 bytes of FXSAVE, a header whose first word (XSTATE_BV)
//! says which components hold anything, and the components at places that CPUID tells and that differ between makers (protection keys:
//! 2688 on Intel, 832 on AMD without AVX-512). A CPU without XSAVE has the 512 bytes alone. The kernel takes an area only in its own
//! size and with components it knows, so an area is taken apart here and put together for the node.

use mosix_wire::image::{CpuImage, XsaveComponent};

/// Bytes of an FXSAVE area.
pub const AREA_FXSAVE: usize = 512;
/// End of the XSAVE header.
pub const AREA_HEADER_END: usize = 576;
/// Largest area accepted, in bytes; AMX makes 11 KiB.
pub const AREA_MAX: usize = 64 * 1024;

/// x87 and SSE.
pub const LEGACY: u64 = 0b11;
/// Upper halves of the AVX registers.
pub const AVX: u64 = 1 << 2;
/// Mask registers and the two parts of AVX-512.
pub const AVX512: u64 = 0b111 << 5;
/// Protection keys.
const PKRU: u8 = 9;
/// Components that a program must ask for before it can use them: MPX, protection keys, AMX.
pub const OPTIONAL: u64 = 0b11 << 3 | 1 << PKRU | 0b11 << 17;
/// What Linux puts into PKRU for every thread: all keys but 0 denied.
const PKRU_DEFAULT: u32 = 0x5555_5554;
/// MXCSR bits that exist on every x86-64 CPU; the kernel refuses others.
const MXCSR_KNOWN: u32 = 0xffff;
/// MXCSR after reset.
const MXCSR_INIT: u32 = 0x1f80;

/// Place of MXCSR in the FXSAVE part.
const AT_MXCSR: usize = 24;
/// Place of the XMM registers.
const AT_XMM: usize = 160;
/// End of the registers in the FXSAVE part; the rest is for software.
const AT_LEGACY_END: usize = 416;
/// Where the kernel repeats XCR0 for debuggers.
const AT_SOFTWARE_XCR0: usize = 464;

/// Why registers cannot be carried to a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XsaveError {
    /// The thread uses registers that the node's CPU has not.
    #[error("the thread uses the registers {}, which the node's CPU has not", .0.join(", "))]
    InUse(Vec<String>),
    /// The area is damaged.
    #[error("XSAVE area of {length} bytes is damaged: {what}")]
    Damaged {
        /// Its bytes.
        length: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// Name of a state component, by its bit in XCR0.
#[must_use]
pub fn component_name(number: u8) -> String {
    match number {
        0 => "x87",
        1 => "SSE",
        2 => "AVX",
        3 => "MPX bounds",
        4 => "MPX configuration",
        5 => "AVX-512 masks",
        6 => "AVX-512 upper halves",
        7 => "AVX-512 registers 16-31",
        8 => "processor trace",
        PKRU => "protection keys",
        17 => "AMX configuration",
        18 => "AMX tiles",
        19 => "APX",
        _ => return format!("component {number}"),
    }
    .to_owned()
}

/// Rebuilds `area`, captured on a CPU that `from` describes, for a node described by `to` whose kernel hands out areas of `to_size`
/// bytes ([`super::area_size`]). Components in their initial state are dropped where the node has no place for them.
///
/// # Errors
/// When the area is damaged, or holds registers in use that the node lacks: by name.
pub fn convert(area: &[u8], from: &CpuImage, to: &CpuImage, to_size: usize) -> Result<Vec<u8>, XsaveError> {
    let damaged = |what| XsaveError::Damaged {
        length: area.len(),
        what,
    };
    if area.len() > AREA_MAX || to_size > AREA_MAX {
        return Err(damaged("it is longer than any CPU's"));
    }
    let legacy = area
        .get(..AREA_FXSAVE)
        .ok_or_else(|| damaged("it is shorter than FXSAVE's"))?;
    let in_use = match area.len() {
        AREA_FXSAVE => LEGACY,
        _ => {
            let header = area
                .get(AREA_FXSAVE..AREA_HEADER_END)
                .ok_or_else(|| damaged("it ends within its header"))?;
            if header.iter().skip(8).any(|byte| *byte != 0) {
                return Err(damaged("it is not in the standard format"));
            }
            word(header, 0)
        }
    };
    let mxcsr = u32::try_from(word(legacy, AT_MXCSR) & 0xffff_ffff).unwrap_or(0);
    if mxcsr & !MXCSR_KNOWN != 0 {
        return Err(damaged("MXCSR has reserved bits set"));
    }

    let mut out = vec![0; to_size.max(AREA_FXSAVE)];
    put(&mut out, 0, legacy.get(..AT_LEGACY_END).unwrap_or(&[]));
    // The initial state is spelt out for a node that has no header to say so.
    if in_use & 1 == 0 {
        put(&mut out, 0, &[0; AT_MXCSR]);
        put(&mut out, 0, &0x37f_u16.to_le_bytes());
        put(&mut out, 32, &[0; AT_XMM - 32]);
    }
    if in_use & 2 == 0 {
        put(&mut out, AT_XMM, &[0; AT_LEGACY_END - AT_XMM]);
    }
    if in_use & (2 | AVX) == 0 {
        put(&mut out, AT_MXCSR, &MXCSR_INIT.to_le_bytes());
    }

    let has_header = out.len() >= AREA_HEADER_END;
    let mut kept = in_use & LEGACY;
    let mut lacking = Vec::new();
    for number in (2..64_u8).filter(|number| in_use >> number & 1 != 0) {
        let place = find(&from.xsave, number).ok_or_else(|| damaged("it has a component that its CPU has not"))?;
        let bytes = range(place)
            .and_then(|range| area.get(range))
            .ok_or_else(|| damaged("a component ends behind it"))?;
        match find(&to.xsave, number)
            .filter(|here| has_header && here.size == place.size)
            .and_then(range)
        {
            Some(here) if here.end <= out.len() => {
                put(&mut out, here.start, bytes);
                kept |= 1 << number;
            }
            _ if is_initial(number, bytes) => {}
            _ => lacking.push(component_name(number)),
        }
    }
    if !lacking.is_empty() {
        return Err(XsaveError::InUse(lacking));
    }
    // A thread that comes from a CPU without protection keys gets what Linux gives every thread.
    let here = find(&to.xsave, PKRU)
        .filter(|_| has_header && find(&from.xsave, PKRU).is_none())
        .and_then(range);
    if let Some(here) = here.filter(|here| here.end <= out.len()) {
        put(&mut out, here.start, &PKRU_DEFAULT.to_le_bytes());
        kept |= 1 << PKRU;
    }
    if has_header {
        put(&mut out, AREA_FXSAVE, &kept.to_le_bytes());
        put(&mut out, AT_SOFTWARE_XCR0, &to.xcr0.to_le_bytes());
    }
    Ok(out)
}

/// The registers of a thread that starts a program, for a node described by `to`.
#[must_use]
pub fn fresh(to: &CpuImage, to_size: usize) -> Vec<u8> {
    let mut area = vec![0; AREA_FXSAVE];
    put(&mut area, 0, &0x37f_u16.to_le_bytes());
    put(&mut area, AT_MXCSR, &MXCSR_INIT.to_le_bytes());
    convert(&area, &CpuImage::default(), to, to_size).unwrap_or(area)
}

/// True when a component holds nothing that a thread did not find there at its start.
fn is_initial(number: u8, bytes: &[u8]) -> bool {
    let zero = bytes.iter().all(|byte| *byte == 0);
    zero || (number == PKRU && u32::try_from(word(bytes, 0)).is_ok_and(|value| value == PKRU_DEFAULT))
}

fn find(components: &[XsaveComponent], number: u8) -> Option<&XsaveComponent> {
    components.iter().find(|component| component.number == number)
}

/// Bytes of a component; `None` where it would overlap the header or overflow.
fn range(component: &XsaveComponent) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(component.offset)
        .ok()
        .filter(|start| *start >= AREA_HEADER_END)?;
    let size = usize::try_from(component.size).ok().filter(|size| *size > 0)?;
    Some(start..start.checked_add(size)?)
}

/// The little-endian u64 at `at`; bytes beyond the end count as 0.
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes
        .iter()
        .skip(at)
        .take(8)
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at.saturating_add(bytes.len())) {
        place.copy_from_slice(bytes);
    }
}
