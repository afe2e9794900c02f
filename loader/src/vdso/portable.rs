//! The vDSO of a program born on a host: a shared object of one page, built here byte by byte.
//!
//! It exports what libc, Go and others look for, with the same names and the version `LINUX_2.6` as the kernel's. As built, every
//! function makes its system call, so it is right on any node; [`super::patch`] then turns its functions into jumps, as it does with a
//! home's text, and does so again on every later node.

use super::code;
use super::layout::plain;
use super::patch::{Presented, patch};
use super::{VdsoError, syscall_instruction};

/// Bytes of the image: one page.
pub const SIZE: usize = 4096;
/// Bytes for each function: room for its entry, fallback and adapter.
const BODY: usize = 256;
/// The functions, in the order of their bodies.
const FUNCTIONS: [&str; 5] = [
    "__vdso_gettimeofday",
    "__vdso_time",
    "__vdso_clock_gettime",
    "__vdso_clock_getres",
    "__vdso_getcpu",
];
const SONAME: &str = "linux-vdso.so.1";
const VERSION: &str = "LINUX_2.6";
/// Program headers: PT_LOAD, PT_DYNAMIC, PT_GNU_STACK.
const SEGMENTS: usize = 3;

/// Builds the image. Position-independent; map it read-only and executable, one page.
///
/// # Errors
/// Never in practice; the image passes through the same checked code as any other.
pub fn portable(presented: Presented) -> Result<Vec<u8>, VdsoError> {
    let mut image = skeleton();
    patch::<&str>(&mut image, &[], presented)?;
    debug_assert!(syscall_instruction(&image).is_some());
    Ok(image)
}

/// Tables and empty bodies.
fn skeleton() -> Vec<u8> {
    // Symbol 0 is the null symbol; each function is global under its own name and weak under the plain one, as in the kernel's.
    let mut strings = vec![0_u8];
    let mut string = |text: &str| {
        let at = u32::try_from(strings.len()).unwrap_or(0);
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        at
    };
    let soname = string(SONAME);
    let version = string(VERSION);
    let names: Vec<(u32, &str, u8, usize)> = FUNCTIONS
        .iter()
        .enumerate()
        .flat_map(|(index, name)| [(*name, 1_u8, index), (plain(name), 2_u8, index)])
        .map(|(name, binding, index)| (string(name), name, binding, index))
        .collect();
    let symbols = names.len() + 1;

    let mut image = vec![0_u8; 64 + 56 * SEGMENTS];
    let text = SIZE - BODY * FUNCTIONS.len();
    let dynsym = image.len();
    image.extend_from_slice(&[0; 24]);
    for (name, _, binding, index) in &names {
        // st_name, st_info (binding << 4 | STT_FUNC), st_other, st_shndx (anything defined), st_value, st_size
        put32(&mut image, *name);
        image.extend_from_slice(&[binding << 4 | 2, 0, 1, 0]);
        put64(&mut image, text + BODY * index);
        put64(&mut image, BODY);
    }
    // DT_HASH with one bucket: a chain through all symbols. Ten names need no better one.
    let hash = image.len();
    put32(&mut image, 1);
    put32(&mut image, u32::try_from(symbols).unwrap_or(0));
    put32(&mut image, 1);
    for index in 0..symbols {
        let next = if index == 0 || index + 1 == symbols {
            0
        } else {
            index + 1
        };
        put32(&mut image, u32::try_from(next).unwrap_or(0));
    }
    let versym = image.len();
    image.extend_from_slice(&[0, 0]);
    for _ in &names {
        image.extend_from_slice(&[2, 0]);
    }
    pad(&mut image, 8);
    let verdef = image.len();
    for (flags, number, name, text, next) in [(1_u16, 1_u16, soname, SONAME, 28_u32), (0, 2, version, VERSION, 0)] {
        for half in [1, flags, number, 1] {
            image.extend_from_slice(&half.to_le_bytes());
        }
        put32(&mut image, sysv_hash(text));
        put32(&mut image, 20);
        put32(&mut image, next);
        put32(&mut image, name);
        put32(&mut image, 0);
    }
    pad(&mut image, 8);
    let dynamic = image.len();
    let dynstr = dynamic + 16 * 10;
    let entries: [(u64, usize); 10] = [
        (14, soname as usize), // DT_SONAME
        (4, hash),             // DT_HASH
        (5, dynstr),           // DT_STRTAB
        (6, dynsym),           // DT_SYMTAB
        (10, strings.len()),   // DT_STRSZ
        (11, 24),              // DT_SYMENT
        (0x6fff_fffc, verdef), // DT_VERDEF
        (0x6fff_fffd, 2),      // DT_VERDEFNUM
        (0x6fff_fff0, versym), // DT_VERSYM
        (0, 0),                // DT_NULL
    ];
    for (tag, value) in entries {
        image.extend_from_slice(&tag.to_le_bytes());
        put64(&mut image, value);
    }
    image.extend_from_slice(&strings);
    debug_assert!(image.len() <= text);
    image.resize(text, 0);
    // int3: nothing runs here before patch() has written every entry.
    image.resize(SIZE, 0xcc);

    let mut head = Vec::with_capacity(64 + 56 * SEGMENTS);
    head.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    head.extend_from_slice(&[3, 0, 62, 0, 1, 0, 0, 0]); // ET_DYN, EM_X86_64, EV_CURRENT
    put64(&mut head, 0); // e_entry
    put64(&mut head, 64); // e_phoff
    put64(&mut head, 0); // e_shoff
    put32(&mut head, 0); // e_flags
    for half in [64_u16, 56, 3, 64, 0, 0] {
        head.extend_from_slice(&half.to_le_bytes());
    }
    let gnu_stack = (0x6474_e551, 6, 0, 0, 16);
    for (kind, flags, start, size, align) in [(1, 5, 0, SIZE, 4096), (2, 4, dynamic, 160, 8), gnu_stack] {
        put32(&mut head, kind);
        put32(&mut head, flags);
        for value in [start, start, start, size, size, align] {
            put64(&mut head, value);
        }
    }
    image.splice(..head.len(), head);
    image
}

/// The hash of DT_HASH and of version names, from the ELF specification.
fn sysv_hash(name: &str) -> u32 {
    name.bytes().fold(0_u32, |hash, byte| {
        let hash = (hash << 4).wrapping_add(u32::from(byte));
        let high = hash & 0xf000_0000;
        (hash ^ (high >> 24)) & !high
    })
}

fn put32(image: &mut Vec<u8>, value: u32) {
    image.extend_from_slice(&value.to_le_bytes());
}

fn put64(image: &mut Vec<u8>, value: usize) {
    image.extend_from_slice(&(value as u64).to_le_bytes());
}

fn pad(image: &mut Vec<u8>, align: usize) {
    image.resize(image.len().next_multiple_of(align), 0);
}

const _: () = assert!(
    BODY > code::JUMP * 10,
    "a body has room for entry, fallback and adapter"
);
