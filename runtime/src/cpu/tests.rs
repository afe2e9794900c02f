//! Admission and conversion on real and simulated CPUs.

use super::xsave::{AREA_HEADER_END, XsaveError, convert};
use super::*;
use mosix_sys::{process, ptrace};
use proptest::prelude::*;
use std::process::{Command, Stdio};

/// The CPU that QEMU calls qemu64: SSE3, no XSAVE.
fn qemu64() -> CpuImage {
    let names = "fpu tsc cx8 cmov clflush mmx fxsr sse sse2 pni cx16 syscall lahf_lm lm";
    CpuImage {
        flags: names.split(' ').map(str::to_owned).collect(),
        xcr0: 0,
        xsave: Vec::new(),
        cpus: 1,
    }
}

fn places(list: &[(u8, u32, u32)]) -> Vec<XsaveComponent> {
    list.iter()
        .map(|&(number, offset, size)| XsaveComponent { number, offset, size })
        .collect()
}

/// An Intel server with AVX-512 and protection keys.
fn intel() -> (CpuImage, usize) {
    let xsave = places(&[
        (2, 576, 256),
        (5, 1088, 64),
        (6, 1152, 512),
        (7, 1664, 1024),
        (9, 2688, 8),
    ]);
    (
        CpuImage {
            flags: Vec::new(),
            xcr0: 0x2e7,
            xsave,
            cpus: 8,
        },
        2696,
    )
}

/// An AMD machine with AVX2 and protection keys.
fn amd() -> (CpuImage, usize) {
    (
        CpuImage {
            flags: Vec::new(),
            xcr0: 0x207,
            xsave: places(&[(2, 576, 256), (9, 832, 8)]),
            cpus: 8,
        },
        840,
    )
}

/// An area of the given size with MXCSR and FCW as after start, these components in use, and byte 0x5a in each.
fn area(size: usize, cpu: &CpuImage, in_use: &[u8]) -> Vec<u8> {
    let mut area = vec![0; size];
    area[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    area[160..176].fill(0x77);
    let mut bits = 3_u64;
    for number in in_use {
        bits |= 1 << number;
        let place = cpu.xsave.iter().find(|place| place.number == *number).unwrap();
        area[place.offset as usize..(place.offset + place.size) as usize].fill(0x5a);
    }
    area[512..520].copy_from_slice(&bits.to_le_bytes());
    area
}

#[test]
fn recorded_flags_are_those_of_the_kernel() {
    let here = record();
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let line = info.lines().find(|line| line.starts_with("flags")).unwrap();
    let known: Vec<&str> = line.split_once(':').unwrap().1.split_whitespace().collect();
    for flag in &here.flags {
        assert!(known.contains(&flag.as_str()), "{flag} is not in /proc/cpuinfo");
    }
    for always in ["fpu", "sse2", "syscall", "lm", "cx8"] {
        assert!(here.flags.iter().any(|flag| flag == always), "{always}");
    }
    for common in ["avx2", "popcnt", "xsave", "avx512f", "bmi2"] {
        assert_eq!(
            here.flags.iter().any(|flag| flag == common),
            known.contains(&common),
            "{common}"
        );
    }
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert!(here.cpus as usize >= cpus);
    assert_eq!(admit(&here, &here), Ok(()));
}

#[test]
fn features_without_their_state_are_not_recorded() {
    // AVX2 in CPUID, but the kernel has not enabled the registers: no program can use it.
    let all = |leaf: u32, _| if leaf == 7 { [1, u32::MAX, 0, 0] } else { [u32::MAX; 4] };
    assert!(!features::present(3, all).contains(&"avx2".to_owned()));
    assert!(!features::present(0, all).contains(&"xsave".to_owned()));
    assert!(features::present(7, all).contains(&"avx2".to_owned()));
    assert!(!features::present(7, all).contains(&"avx512f".to_owned()));
    assert!(features::present(0xe7, all).contains(&"avx512f".to_owned()));
    // Leaf 7 has one subleaf only: what a CPU answers beyond is not its.
    let one = |leaf: u32, _| {
        if leaf == 7 {
            [0, u32::MAX, 0, u32::MAX]
        } else {
            [u32::MAX; 4]
        }
    };
    assert!(!features::present(7, one).contains(&"avx_vnni".to_owned()));
}

#[test]
fn a_poorer_node_is_refused_by_name() {
    let mut image = qemu64();
    assert_eq!(admit(&image, &qemu64()), Ok(()));
    image.flags.extend(["avx2".to_owned(), "popcnt".to_owned()]);
    image.xcr0 = 0x207;
    let missing = admit(&image, &qemu64()).unwrap_err();
    assert_eq!(missing.flags, ["avx2", "popcnt"]);
    assert_eq!(
        missing.xcr0, 4,
        "x87 and SSE exist without XSAVE; protection keys are optional"
    );
    let message = missing.to_string();
    assert!(
        message.contains("lacks avx2, popcnt and the register state AVX;"),
        "{message}"
    );
    assert_eq!(admit(&qemu64(), &image), Ok(()), "a richer node is fine");
}

#[test]
fn narrowing_fits_a_smaller_node() {
    let mut image = qemu64();
    image
        .flags
        .extend(["popcnt", "sse4_2", "avx2", "avx512f", "sha_ni", "xsave"].map(str::to_owned));
    image.xcr0 = 0xe7;
    let mut v2 = image.clone();
    narrow(&mut v2, Level::V2);
    assert_eq!(v2.xcr0, 3);
    assert!(v2.flags.contains(&"popcnt".into()) && v2.flags.contains(&"xsave".into()));
    assert!(!v2.flags.iter().any(|flag| flag == "avx2" || flag == "sha_ni"));
    narrow(&mut image, Level::V3);
    assert_eq!(image.xcr0, 7);
    assert!(image.flags.contains(&"avx2".into()) && !image.flags.contains(&"avx512f".into()));
}

#[test]
fn components_move_to_the_nodes_places() {
    let ((intel, intel_size), (amd, amd_size)) = (intel(), amd());
    let source = area(intel_size, &intel, &[2, 9]);
    let there = convert(&source, &intel, &amd, amd_size).unwrap();
    assert_eq!(there.len(), amd_size);
    assert_eq!(there[576..832], [0x5a; 256]);
    assert_eq!(there[832..840], [0x5a; 8]);
    assert_eq!(there[512..520], 0x207_u64.to_le_bytes());
    let back = convert(&there, &amd, &intel, intel_size).unwrap();
    assert_eq!(back[512..], source[512..]);
    assert_eq!(back[..416], source[..416]);
}

#[test]
fn registers_in_use_are_refused_by_name_and_initial_ones_dropped() {
    let ((intel, intel_size), (amd, amd_size)) = (intel(), amd());
    let mut source = area(intel_size, &intel, &[2, 6, 7]);
    let error = convert(&source, &intel, &amd, amd_size).unwrap_err();
    assert_eq!(
        error,
        XsaveError::InUse(vec!["AVX-512 upper halves".into(), "AVX-512 registers 16-31".into()])
    );
    assert!(
        error
            .to_string()
            .contains("AVX-512 upper halves, AVX-512 registers 16-31")
    );
    // The bits stay set after the registers were cleared; that is no use.
    source[1152..2688].fill(0);
    let there = convert(&source, &intel, &amd, amd_size).unwrap();
    // The first node has no value for protection keys in use: all keys allowed, as its header says.
    assert_eq!(there[512..520], 0x7_u64.to_le_bytes());
}

#[test]
fn fxsave_only_in_both_directions() {
    let (intel, intel_size) = intel();
    let error = convert(&area(intel_size, &intel, &[2]), &intel, &qemu64(), 512).unwrap_err();
    assert_eq!(error, XsaveError::InUse(vec!["AVX".into()]));

    // PKRU as Linux sets it for every thread is no use of it.
    let mut source = area(intel_size, &intel, &[9]);
    source[2688..2696].copy_from_slice(&0x5555_5554_u64.to_le_bytes());
    // x87 unused: the values in its place are not to be believed.
    source[512] &= !1;
    source[32..48].fill(0xee);
    let there = convert(&source, &intel, &qemu64(), 512).unwrap();
    assert_eq!(there.len(), 512);
    assert_eq!(
        (&there[0..2], &there[24..28]),
        (&[0x7f, 0x03][..], &[0x80, 0x1f, 0, 0][..])
    );
    assert_eq!((&there[32..48], &there[160..176]), (&[0; 16][..], &[0x77; 16][..]));

    let back = convert(&there, &qemu64(), &intel, intel_size).unwrap();
    assert_eq!(back[512..520], (3_u64 | 1 << 9).to_le_bytes());
    assert_eq!(
        back[2688..2696],
        0x5555_5554_u64.to_le_bytes(),
        "every thread of Linux starts with keys denied"
    );
    assert_eq!(back[160..176], [0x77; 16]);
}

#[test]
fn damaged_areas_are_errors() {
    let (intel, size) = intel();
    let good = area(size, &intel, &[2]);
    let spoil = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        convert(&bad, &intel, &intel, size)
    };
    assert!(
        spoil(527, 0x80).unwrap_err().to_string().contains("standard format"),
        "compacted"
    );
    assert!(spoil(540, 1).is_err(), "reserved header bytes");
    assert!(spoil(26, 1).unwrap_err().to_string().contains("MXCSR"));
    assert!(spoil(514, 8).unwrap_err().to_string().contains("its CPU has not"));
    for cut in [0, 511, 513, 575, 580, 831] {
        assert!(convert(&good[..cut], &intel, &intel, size).is_err(), "cut at {cut}");
    }
    let mut liar = intel.clone();
    liar.xsave[0].offset = u32::MAX - 4;
    assert!(convert(&good, &liar, &intel, size).is_err());
    assert!(convert(&good, &intel, &intel, usize::MAX).is_err());
}

/// The kernel takes back what it gave, through two foreign layouts.
#[test]
fn a_real_thread_keeps_its_registers() {
    // spawn's own fork is fine here: the tracing thread is this one.
    let mut child = Command::new("sleep").arg("30").stdout(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    ptrace::seize(pid, 0).unwrap();
    ptrace::interrupt(pid).unwrap();
    ptrace::wait(Some(pid), true).unwrap();
    let here = record();
    let source = ptrace::xstate(pid).unwrap();
    // As much of it as is in use.
    assert!(
        (AREA_HEADER_END..=area_size()).contains(&source.len()),
        "{}",
        source.len()
    );
    let same = convert(&source, &here, &here, area_size()).unwrap();
    ptrace::set_xstate(pid, &same).unwrap();
    assert_eq!(ptrace::xstate(pid).unwrap(), source);

    // A layout with every component elsewhere, as on another maker's CPU.
    let mut other = here.clone();
    let mut at = 4096;
    for place in other.xsave.iter_mut().rev() {
        place.offset = at;
        at += place.size.next_multiple_of(64);
    }
    let there = convert(&source, &here, &other, at as usize).unwrap();
    let back = convert(&there, &other, &here, area_size()).unwrap();
    ptrace::set_xstate(pid, &back).unwrap();
    assert_eq!(ptrace::xstate(pid).unwrap(), source);
    process::kill(pid, 9).unwrap();
    child.wait().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_areas_never_panic(
        length in prop_oneof![Just(512_usize), Just(2696), 0_usize..6000],
        fill in any::<u8>(),
        bits in any::<u64>(),
        components in prop::collection::vec((any::<u8>(), any::<u32>(), any::<u32>()), 0..8),
        to_size in 0_usize..6000,
    ) {
        let mut area = vec![fill; length];
        if length >= AREA_HEADER_END {
            area[512..576].fill(0);
            area[512..520].copy_from_slice(&bits.to_le_bytes());
            area[24..28].fill(0);
        }
        let from = CpuImage { xsave: places(&components), ..CpuImage::default() };
        let (to, _) = intel();
        if let Ok(out) = convert(&area, &from, &to, to_size) {
            prop_assert_eq!(out.len(), to_size.max(512));
        }
    }
}
