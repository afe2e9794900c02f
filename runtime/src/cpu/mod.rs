//! What a program may use of a CPU, and which node may run it.
//!
//! A program looks at the CPU once, at start: libc picks its `memcpy`, the dynamic linker sizes the area it saves registers in. So what
//! counts is the CPU of its *birth*: every node it visits must have all of that. [`record`] writes it down, [`admit`] compares, and
//! [`xsave`] carries the registers between CPUs that keep them in different places.
//!
//! Left out of the comparison, on purpose:
//! - what changes speed only (`erms`, `fsrm`, `cldemote`, hardware lock elision),
//! - protection keys, MPX and AMX: a program must ask the kernel before it can use them, and [`xsave::convert`] refuses their state
//!   by name when it is in use and the node has no place for it.

pub mod features;
pub mod xsave;

use mosix_loader::auxv::{Auxv, kind};
use mosix_sys::cpuid::{cpuid, xcr0};
use mosix_wire::image::{CpuImage, ProcessImage, ThreadImage, XsaveComponent};
use std::fmt;
use xsave::{AREA_FXSAVE, OPTIONAL, XsaveError, component_name};

/// Reads this node's CPU: what a program born now may use, and where this node keeps extended state.
#[must_use]
pub fn record() -> CpuImage {
    let enabled = xcr0().unwrap_or(0);
    CpuImage {
        flags: features::present(enabled, cpuid),
        xcr0: enabled,
        xsave: components(enabled),
        cpus: cpus_shown(),
    }
}

/// The record to travel with a body captured here: what it may use is as at its birth, where its registers lie is as here. Without this
/// a body that moves on from a host would be read with its home's layout.
#[must_use]
pub fn captured_here(birth: &CpuImage) -> CpuImage {
    CpuImage {
        xsave: components(xcr0().unwrap_or(0)),
        ..birth.clone()
    }
}

/// Makes the registers of an image that came from another node fit this one. To be done once, on arrival at a host or back home, before
/// anything else looks at them.
///
/// # Errors
/// When a thread uses registers that this node lacks, or its area is damaged.
pub fn settle(image: &mut ProcessImage) -> Result<(), XsaveError> {
    let (here, size) = (captured_here(&image.cpu), area_size());
    let node = CpuImage {
        xcr0: xcr0().unwrap_or(0),
        ..here.clone()
    };
    for thread in &mut image.threads {
        thread.xsave = xsave::convert(&thread.xsave, &image.cpu, &node, size)?;
    }
    image.cpu = here;
    Ok(())
}

/// Bytes of the area in which this node's kernel hands out a thread's extended registers.
#[must_use]
pub fn area_size() -> usize {
    if xcr0().is_none() {
        return AREA_FXSAVE;
    }
    usize::try_from(cpuid(0xd, 0)[1])
        .unwrap_or(0)
        .max(xsave::AREA_HEADER_END)
}

fn components(enabled: u64) -> Vec<XsaveComponent> {
    (2..63_u8)
        .filter(|number| enabled >> number & 1 != 0)
        .filter_map(|number| {
            let [size, offset, flags, _] = cpuid(0xd, number.into());
            // Bit 0 of ecx: supervisor state, which is in no user's area.
            (size != 0 && flags & 1 == 0).then_some(XsaveComponent { number, offset, size })
        })
        .collect()
}

/// One more than the highest CPU number that programs see here.
fn cpus_shown() -> u32 {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    highest_in_list(&list).map_or_else(
        || std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        |highest| highest.saturating_add(1),
    )
}

/// The largest number in a kernel CPU list such as `0-3,8`.
fn highest_in_list(list: &str) -> Option<u32> {
    list.trim()
        .split(',')
        .filter_map(|range| range.rsplit('-').next()?.parse().ok())
        .max()
}

/// What a program was born with and a node has not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Missing {
    /// Instructions, named as in /proc/cpuinfo.
    pub flags: Vec<String>,
    /// Register state, as bits of XCR0.
    pub xcr0: u64,
}

impl fmt::Display for Missing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let states: Vec<String> = (0..64_u8)
            .filter(|bit| self.xcr0 >> bit & 1 != 0)
            .map(component_name)
            .collect();
        out.write_str("the node's CPU lacks ")?;
        out.write_str(&self.flags.join(", "))?;
        if !states.is_empty() {
            let joint = if self.flags.is_empty() { "" } else { " and " };
            write!(out, "{joint}the register state {}", states.join(", "))?;
        }
        out.write_str(
            "; the program may use it since its start (choose another node, or start it with `mosix run --cpu`)",
        )
    }
}

/// Says whether a program with this image may run on a node with the CPU `local`.
///
/// # Errors
/// What is missing, by name.
pub fn admit(image: &CpuImage, local: &CpuImage) -> Result<(), Missing> {
    // A flag that this version does not know is asked for all the same: unknown is not harmless.
    let flags: Vec<String> = image
        .flags
        .iter()
        .filter(|flag| !local.flags.contains(flag))
        .cloned()
        .collect();
    // x87 and SSE state exists on every x86-64 CPU, with XSAVE or without.
    let xcr0 = image.xcr0 & !local.xcr0 & !OPTIONAL & !xsave::LEGACY;
    if flags.is_empty() && xcr0 == 0 {
        Ok(())
    } else {
        Err(Missing { flags, xcr0 })
    }
}

/// A thread's alternate signal stack that this node's larger register state would overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signal stack of thread {tid} has {size} bytes; a signal on this node's CPU takes {needed}")]
pub struct SmallStack {
    /// The thread's tid at home.
    pub tid: i32,
    /// Bytes of its stack.
    pub size: u64,
    /// Bytes of a signal frame here.
    pub needed: u64,
}

/// Says whether the alternate signal stacks of a body hold a signal frame of a node where a frame takes `needed` bytes (AT_MINSIGSTKSZ).
/// A frame holds the whole register state, so it grows with the CPU. A stack that was too small at home already is the program's own
/// affair.
///
/// # Errors
/// The first thread whose stack is too small.
pub fn admit_signal_stacks(image: &ProcessImage, needed: u64) -> Result<(), SmallStack> {
    const SS_DISABLE: i32 = 2;
    let at_birth = Auxv::parse(&image.mm.auxv)
        .and_then(|auxv| auxv.get(kind::MINSIGSTKSZ))
        .unwrap_or(0);
    let small = |thread: &&ThreadImage| {
        let (_, flags, size) = thread.altstack;
        flags & SS_DISABLE == 0 && size >= at_birth && size < needed
    };
    match image.threads.iter().find(small) {
        Some(thread) => Err(SmallStack {
            tid: thread.tid.0,
            size: thread.altstack.2,
            needed,
        }),
        None => Ok(()),
    }
}

/// Bytes of a signal frame on this node: AT_MINSIGSTKSZ; 0 where the kernel does not say (before 5.14).
#[must_use]
pub fn signal_frame() -> u64 {
    let auxv = std::fs::read("/proc/self/auxv").unwrap_or_default();
    Auxv::parse(&auxv)
        .and_then(|auxv| auxv.get(kind::MINSIGSTKSZ))
        .unwrap_or(0)
}

/// A level of the x86-64 psABI, for `mosix run --cpu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// SSE4.2, POPCNT: practically every machine.
    V2,
    /// AVX2, BMI, FMA.
    V3,
    /// AVX-512 F, BW, CD, DQ, VL.
    V4,
}

/// Narrows a birth record to a level. Right only when the program's libraries were told as well not to use more; instructions that a
/// program finds by asking the CPU itself are not hidden from it.
pub fn narrow(image: &mut CpuImage, level: Level) {
    image
        .flags
        .retain(|flag| features::level(flag).is_some_and(|needed| needed <= Some(level)));
    image.xcr0 &= match level {
        Level::V2 => xsave::LEGACY,
        Level::V3 => xsave::LEGACY | xsave::AVX,
        Level::V4 => xsave::LEGACY | xsave::AVX | xsave::AVX512,
    };
}

#[cfg(test)]
mod tests;
