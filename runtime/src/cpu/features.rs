//! The CPU features that a program can find and use without asking the kernel, by CPUID bit.
//!
//! The bits are read from the CPU, not from /proc/cpuinfo: an old kernel does not name the newer ones, but a program finds them all the
//! same. Names are those of /proc/cpuinfo.

use super::Level;
use super::xsave::{AVX, AVX512, LEGACY};
use std::cell::RefCell;

/// Register of a CPUID result.
#[derive(Clone, Copy)]
enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Reg::{Eax, Ebx, Ecx, Edx};

/// One feature: name, leaf, subleaf, register, bit, the state that must be enabled for it to be usable.
struct Feature(&'static str, u32, u32, Reg, u8, u64);

/// No state beyond what every CPU has.
const NONE: u64 = 0;
/// AVX registers.
const YMM: u64 = LEGACY | AVX;
/// AVX-512 registers.
const ZMM: u64 = LEGACY | AVX | AVX512;
/// XSAVE itself.
const SAVE: u64 = LEGACY;

#[rustfmt::skip]
const FEATURES: &[Feature] = &[
    Feature("fpu", 1, 0, Edx, 0, NONE), Feature("tsc", 1, 0, Edx, 4, NONE), Feature("cx8", 1, 0, Edx, 8, NONE),
    Feature("cmov", 1, 0, Edx, 15, NONE), Feature("clflush", 1, 0, Edx, 19, NONE), Feature("mmx", 1, 0, Edx, 23, NONE),
    Feature("fxsr", 1, 0, Edx, 24, NONE), Feature("sse", 1, 0, Edx, 25, NONE), Feature("sse2", 1, 0, Edx, 26, NONE),
    Feature("pni", 1, 0, Ecx, 0, NONE), Feature("pclmulqdq", 1, 0, Ecx, 1, NONE), Feature("ssse3", 1, 0, Ecx, 9, NONE),
    Feature("fma", 1, 0, Ecx, 12, YMM), Feature("cx16", 1, 0, Ecx, 13, NONE), Feature("sse4_1", 1, 0, Ecx, 19, NONE),
    Feature("sse4_2", 1, 0, Ecx, 20, NONE), Feature("movbe", 1, 0, Ecx, 22, NONE), Feature("popcnt", 1, 0, Ecx, 23, NONE),
    Feature("aes", 1, 0, Ecx, 25, NONE), Feature("xsave", 1, 0, Ecx, 26, SAVE), Feature("avx", 1, 0, Ecx, 28, YMM),
    Feature("f16c", 1, 0, Ecx, 29, YMM), Feature("rdrand", 1, 0, Ecx, 30, NONE),
    Feature("fsgsbase", 7, 0, Ebx, 0, NONE), Feature("bmi1", 7, 0, Ebx, 3, NONE), Feature("avx2", 7, 0, Ebx, 5, YMM),
    Feature("bmi2", 7, 0, Ebx, 8, NONE), Feature("rtm", 7, 0, Ebx, 11, NONE), Feature("avx512f", 7, 0, Ebx, 16, ZMM),
    Feature("avx512dq", 7, 0, Ebx, 17, ZMM), Feature("rdseed", 7, 0, Ebx, 18, NONE), Feature("adx", 7, 0, Ebx, 19, NONE),
    Feature("avx512ifma", 7, 0, Ebx, 21, ZMM), Feature("clflushopt", 7, 0, Ebx, 23, NONE), Feature("clwb", 7, 0, Ebx, 24, NONE),
    Feature("avx512pf", 7, 0, Ebx, 26, ZMM), Feature("avx512er", 7, 0, Ebx, 27, ZMM), Feature("avx512cd", 7, 0, Ebx, 28, ZMM),
    Feature("sha_ni", 7, 0, Ebx, 29, NONE), Feature("avx512bw", 7, 0, Ebx, 30, ZMM), Feature("avx512vl", 7, 0, Ebx, 31, ZMM),
    Feature("avx512vbmi", 7, 0, Ecx, 1, ZMM), Feature("waitpkg", 7, 0, Ecx, 5, NONE), Feature("avx512_vbmi2", 7, 0, Ecx, 6, ZMM),
    Feature("gfni", 7, 0, Ecx, 8, NONE), Feature("vaes", 7, 0, Ecx, 9, YMM), Feature("vpclmulqdq", 7, 0, Ecx, 10, YMM),
    Feature("avx512_vnni", 7, 0, Ecx, 11, ZMM), Feature("avx512_bitalg", 7, 0, Ecx, 12, ZMM),
    Feature("avx512_vpopcntdq", 7, 0, Ecx, 14, ZMM), Feature("rdpid", 7, 0, Ecx, 22, NONE), Feature("movdiri", 7, 0, Ecx, 27, NONE),
    Feature("movdir64b", 7, 0, Ecx, 28, NONE), Feature("avx512_4vnniw", 7, 0, Edx, 2, ZMM), Feature("avx512_4fmaps", 7, 0, Edx, 3, ZMM),
    Feature("avx512_vp2intersect", 7, 0, Edx, 8, ZMM), Feature("serialize", 7, 0, Edx, 14, NONE), Feature("tsxldtrk", 7, 0, Edx, 16, NONE),
    Feature("avx512_fp16", 7, 0, Edx, 23, ZMM),
    Feature("sha512", 7, 1, Eax, 0, YMM), Feature("sm3", 7, 1, Eax, 1, YMM), Feature("sm4", 7, 1, Eax, 2, YMM),
    Feature("avx_vnni", 7, 1, Eax, 4, YMM), Feature("avx512_bf16", 7, 1, Eax, 5, ZMM), Feature("cmpccxadd", 7, 1, Eax, 7, NONE),
    Feature("avx_ifma", 7, 1, Eax, 23, YMM), Feature("avx_vnni_int8", 7, 1, Edx, 4, YMM), Feature("avx_ne_convert", 7, 1, Edx, 5, YMM),
    Feature("avx_vnni_int16", 7, 1, Edx, 10, YMM), Feature("avx10", 7, 1, Edx, 19, YMM), Feature("apx", 7, 1, Edx, 21, 1 << 19),
    Feature("xsaveopt", 0xd, 1, Eax, 0, SAVE), Feature("xsavec", 0xd, 1, Eax, 1, SAVE), Feature("xgetbv1", 0xd, 1, Eax, 2, SAVE),
    Feature("lahf_lm", 0x8000_0001, 0, Ecx, 0, NONE), Feature("abm", 0x8000_0001, 0, Ecx, 5, NONE),
    Feature("sse4a", 0x8000_0001, 0, Ecx, 6, NONE), Feature("misalignsse", 0x8000_0001, 0, Ecx, 7, NONE),
    Feature("xop", 0x8000_0001, 0, Ecx, 11, YMM), Feature("fma4", 0x8000_0001, 0, Ecx, 16, YMM),
    Feature("tbm", 0x8000_0001, 0, Ecx, 21, NONE), Feature("mwaitx", 0x8000_0001, 0, Ecx, 29, NONE),
    Feature("syscall", 0x8000_0001, 0, Edx, 11, NONE), Feature("mmxext", 0x8000_0001, 0, Edx, 22, NONE),
    Feature("rdtscp", 0x8000_0001, 0, Edx, 27, NONE), Feature("lm", 0x8000_0001, 0, Edx, 29, NONE),
    Feature("3dnowext", 0x8000_0001, 0, Edx, 30, NONE), Feature("3dnow", 0x8000_0001, 0, Edx, 31, NONE),
    Feature("clzero", 0x8000_0008, 0, Ebx, 0, NONE), Feature("rdpru", 0x8000_0008, 0, Ebx, 4, NONE),
];

/// Names of the features that `cpuid(leaf, subleaf)` shows and XCR0 `enabled` (0: no XSAVE) makes usable.
pub fn present(enabled: u64, cpuid: impl Fn(u32, u32) -> [u32; 4]) -> Vec<String> {
    // eax of leaf 7 is the number of its subleaves; a CPU answers a subleaf that it lacks with the last basic leaf or zeros.
    let subleaves = cpuid(7, 0)[0];
    // Virtual machines trap the instruction, some at 20 us and more: each leaf is asked for once.
    let asked = RefCell::new(Vec::<((u32, u32), [u32; 4])>::new());
    let cpuid = |leaf, subleaf| {
        let known = asked
            .borrow()
            .iter()
            .find(|(of, _)| *of == (leaf, subleaf))
            .map(|(_, words)| *words);
        known.unwrap_or_else(|| {
            let words = cpuid(leaf, subleaf);
            asked.borrow_mut().push(((leaf, subleaf), words));
            words
        })
    };
    FEATURES
        .iter()
        .filter(|Feature(_, leaf, subleaf, register, bit, state)| {
            (*leaf != 7 || *subleaf <= subleaves)
                && cpuid(*leaf, *subleaf)[*register as usize] >> bit & 1 != 0
                && state & !enabled == 0
        })
        .map(|Feature(name, ..)| (*name).to_owned())
        .collect()
}

/// The psABI level that brings a feature: `Some(None)` for what every x86-64 CPU has, `None` for a feature of no level.
///
/// XSAVE counts as given: the dynamic linker uses it at every level. XSAVEC it uses only unless told otherwise.
#[must_use]
pub fn level(name: &str) -> Option<Option<Level>> {
    Some(match name {
        "fpu" | "tsc" | "cx8" | "cmov" | "clflush" | "mmx" | "fxsr" | "sse" | "sse2" | "syscall" | "lm" | "xsave" => {
            None
        }
        "cx16" | "lahf_lm" | "popcnt" | "pni" | "sse4_1" | "sse4_2" | "ssse3" => Some(Level::V2),
        "avx" | "avx2" | "bmi1" | "bmi2" | "f16c" | "fma" | "abm" | "movbe" => Some(Level::V3),
        // Not of the psABI's v4, but every such CPU has it; those of v3 may not, and glibc obeys a mask.
        "xsavec" | "avx512f" | "avx512bw" | "avx512cd" | "avx512dq" | "avx512vl" => Some(Level::V4),
        _ => return None,
    })
}
