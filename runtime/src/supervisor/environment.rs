//! The environment that a job's program gets: what the launcher was given, plus two glibc tunables.
//!
//! * `glibc.pthread.rseq=0`: restartable sequences stay off from birth. A registered rseq area makes the kernel write to the
//!   body's memory at every preemption, which a parked deputy without memory does not survive, and its CPU numbers are the
//!   home node's. Programs lose nothing but a faster `sched_getcpu`.
//! * `glibc.cpu.hwcaps=…` for `--cpu`: what glibc's own string functions and library search may use of the CPU. Programs that ask
//!   CPUID themselves (Go, OpenSSL, numpy) do not read it.
//!
//! A value that the user gave for the same tunable wins.

use crate::cpu::{self, Level};
use mosix_wire::image::CpuImage;

/// Which CPU features glibc may pick for the job, as the levels of the x86-64 psABI.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CpuLevel {
    /// SSE4.2 and POPCNT, no AVX.
    V2,
    /// AVX2, BMI, FMA; no AVX-512.
    V3,
    /// AVX-512 F, BW, CD, DQ, VL; nothing newer.
    V4,
    /// Whatever this node has.
    #[default]
    Native,
}

const VARIABLE: &[u8] = b"GLIBC_TUNABLES";
const RSEQ: &[u8] = b"glibc.pthread.rseq";
const HWCAPS: &[u8] = b"glibc.cpu.hwcaps";

/// Masks above each level, in glibc's names (sysdeps/x86/include/cpu-features.h). glibc ignores names that it does not know.
const ABOVE_V4: &str = "-AMX_BF16,-AMX_INT8,-AMX_TILE,-AMX_FP16,-AVX512_4FMAPS,-AVX512_4VNNIW,-AVX512_BF16,-AVX512_BITALG,\
-AVX512_FP16,-AVX512_IFMA,-AVX512_VBMI,-AVX512_VBMI2,-AVX512_VNNI,-AVX512_VP2INTERSECT,-AVX512_VPOPCNTDQ,-GFNI,-VAES,\
-VPCLMULQDQ,-AVX_VNNI,-AVX_IFMA,-AVX_NE_CONVERT,-AVX_VNNI_INT8,-FSRM,-FZLRM,-FSRS,-FSRCS,-RTM,-WAITPKG";
const ABOVE_V3: &str =
    "-AVX512F,-AVX512BW,-AVX512CD,-AVX512DQ,-AVX512VL,-AVX512ER,-AVX512PF,-Prefer_No_AVX512_Probing,-XSAVEC";
const ABOVE_V2: &str = "-AVX,-AVX2,-BMI1,-BMI2,-F16C,-FMA,-FMA4,-LZCNT,-MOVBE,-XSAVE,-ERMS,\
-AVX_Fast_Unaligned_Load";

impl CpuLevel {
    /// What a program born on this node under this level may use of the CPU, with this node's layout of registers.
    #[must_use]
    pub fn birth(self) -> CpuImage {
        let mut image = cpu::record();
        match self {
            Self::V2 => cpu::narrow(&mut image, Level::V2),
            Self::V3 => cpu::narrow(&mut image, Level::V3),
            Self::V4 => cpu::narrow(&mut image, Level::V4),
            Self::Native => {}
        }
        image
    }

    /// The hwcaps mask, or `None` for no mask.
    fn mask(self) -> Option<String> {
        match self {
            Self::Native => None,
            Self::V4 => Some(ABOVE_V4.to_owned()),
            Self::V3 => Some(format!("{ABOVE_V3},{ABOVE_V4}")),
            Self::V2 => Some(format!("{ABOVE_V2},{ABOVE_V3},{ABOVE_V4}")),
        }
    }
}

/// Returns `environment` (one `NAME=value` each, in order, odd entries included) with the tunables merged in at their place.
pub fn with_tunables(mut environment: Vec<Vec<u8>>, cpu: CpuLevel) -> Vec<Vec<u8>> {
    let mut wanted = vec![(RSEQ, b"0".to_vec())];
    if let Some(mask) = cpu.mask() {
        wanted.push((HWCAPS, mask.into_bytes()));
    }
    // glibc obeys the first of several.
    let at = environment.iter().position(|e| value_of(e).is_some());
    let mut value = at.and_then(|i| value_of(&environment[i])).unwrap_or_default().to_vec();
    for (name, setting) in wanted {
        if sets(&value, name) {
            continue;
        }
        if !value.is_empty() {
            value.push(b':');
        }
        value.extend_from_slice(name);
        value.push(b'=');
        value.extend_from_slice(&setting);
    }
    let entry = [VARIABLE, b"=", &value].concat();
    match at {
        Some(i) => environment[i] = entry,
        None => environment.push(entry),
    }
    environment
}

/// The value, when `entry` is the variable.
fn value_of(entry: &[u8]) -> Option<&[u8]> {
    entry.strip_prefix(VARIABLE)?.strip_prefix(b"=")
}

/// Whether a tunables string sets `name`.
fn sets(value: &[u8], name: &[u8]) -> bool {
    value
        .split(|&b| b == b':')
        .any(|t| t.strip_prefix(name).is_some_and(|rest| rest.starts_with(b"=")))
}

/// Reads this process's environment exactly as execve(2) gave it: order, duplicates and entries without `=` included.
///
/// # Errors
/// When /proc is not mounted.
pub fn inherited() -> std::io::Result<Vec<Vec<u8>>> {
    let bytes = std::fs::read("/proc/self/environ")?;
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    Ok(bytes.split(|&b| b == 0).map(<[u8]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(entries: &[&str], cpu: CpuLevel) -> Vec<String> {
        let entries = entries.iter().map(|e| e.as_bytes().to_vec()).collect();
        with_tunables(entries, cpu)
            .into_iter()
            .map(|e| String::from_utf8(e).unwrap())
            .collect()
    }

    #[test]
    fn rseq_is_off_and_order_kept() {
        assert_eq!(
            merged(&["A=1", "odd", "A=2"], CpuLevel::Native),
            ["A=1", "odd", "A=2", "GLIBC_TUNABLES=glibc.pthread.rseq=0"]
        );
    }

    #[test]
    fn other_tunables_stay_and_the_users_choice_wins() {
        assert_eq!(
            merged(&["GLIBC_TUNABLES=glibc.malloc.check=3", "B="], CpuLevel::Native),
            ["GLIBC_TUNABLES=glibc.malloc.check=3:glibc.pthread.rseq=0", "B="]
        );
        let own = "GLIBC_TUNABLES=glibc.pthread.rseq=1:glibc.cpu.hwcaps=-AVX2";
        assert_eq!(merged(&[own], CpuLevel::V2), [own]);
    }

    #[test]
    fn levels_mask_more_the_lower_they_are() {
        let length = |cpu| merged(&[], cpu)[0].len();
        assert!(length(CpuLevel::V2) > length(CpuLevel::V3));
        assert!(length(CpuLevel::V3) > length(CpuLevel::V4));
        assert!(length(CpuLevel::V4) > length(CpuLevel::Native));
        assert!(merged(&[], CpuLevel::V3)[0].contains(":glibc.cpu.hwcaps=-AVX512F,"));
    }
}
