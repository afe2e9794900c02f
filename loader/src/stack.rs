//! The first stack of a program as bytes, laid out as the kernel does (fs/exec.c, create_elf_tables in fs/binfmt_elf.c).
//!
//! ```text
//!   top - 8   0
//!             path given to execve
//!             environment strings, the last one highest
//!             argument strings, the last one highest        ◄── arg_start
//!             up to 8 KiB left free, then down to 16 bytes
//!             "x86_64"
//!             16 random bytes
//!             auxiliary vector
//!             0, pointers to environment strings
//!             0, pointers to arguments
//!   sp        argc, on 16 bytes
//! ```

use crate::auxv::{Auxv, Machine, kind};
use crate::elf::{PAGE, page_start};
use crate::error::LoadError;
use crate::plan::Plan;

/// Longest argument or environment string with its final 0, in bytes.
pub const MAX_STRING: usize = 32 * 4096;
/// What arguments and environment may always take (ARG_MAX).
const ALWAYS: u64 = 128 * 1024;
/// What they may take at most: 3/4 of the usual stack limit.
const AT_MOST: u64 = (8 << 20) / 4 * 3;
/// Bytes of stack mapped below the stack pointer at the start.
const INITIAL: u64 = 128 * 1024;
const PLATFORM: &[u8] = b"x86_64\0";
/// sizeof(struct elf_phdr).
const PHENT: u64 = 56;
/// USER_HZ.
const CLKTCK: u64 = 100;

/// What the stack of a new program is made of.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    /// Path given to execve.
    pub filename: &'a [u8],
    /// Arguments, after scripts were resolved.
    pub argv: &'a [Vec<u8>],
    /// Environment strings.
    pub envp: &'a [Vec<u8>],
    /// One past the stack's last byte, whole pages.
    pub top: u64,
    /// Bytes left free below the strings, 0 to 8191.
    pub shift: u64,
    /// For AT_RANDOM: stack protectors and heap hardening rest on it.
    pub random: [u8; 16],
    /// Soft RLIMIT_STACK in bytes.
    pub stack_limit: u64,
}

/// A finished stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// First stack pointer; argc lies there.
    pub sp: u64,
    /// Bytes from `sp` to the top.
    pub bytes: Vec<u8>,
    /// First byte of the mapping, whole pages: room to start with; it grows by itself.
    pub start: u64,
    /// One past the mapping's last byte.
    pub end: u64,
    /// Argument strings.
    pub args: (u64, u64),
    /// Environment strings.
    pub env: (u64, u64),
    /// The auxiliary vector, as PR_SET_MM_MAP and /proc/PID/auxv want it.
    pub auxv: Auxv,
}

/// Lays out the stack of a program.
///
/// # Errors
/// E2BIG as in execve, before anything is allocated; EINVAL for a string with a 0 byte inside.
pub fn build(start: &Start<'_>, plan: &Plan, machine: &Machine) -> Result<Stack, LoadError> {
    check(start)?;
    let mut image = Image {
        top: start.top,
        low: start.top,
        pieces: Vec::new(),
    };
    image.push(vec![0; 8]);
    let filename = image.push_string(start.filename);
    let env_end = image.low;
    let env = image.push_strings(start.envp);
    let args_end = image.low;
    let args = image.push_strings(start.argv);
    let args_start = image.low;

    image.low = image.low.saturating_sub(start.shift) & !15;
    let platform = image.push(PLATFORM.to_vec());
    let random = image.push(start.random.to_vec());
    let auxv = vector(
        plan,
        machine,
        &Pointers {
            filename,
            platform,
            random,
        },
    );

    let mut tables = (args.len() as u64).to_le_bytes().to_vec();
    for pointer in args.iter().chain(&[0]).chain(&env).chain(&[0]) {
        tables.extend_from_slice(&pointer.to_le_bytes());
    }
    tables.extend_from_slice(&auxv.to_bytes());
    let sp = image.low.saturating_sub(tables.len() as u64) & !15;
    image.low = sp + tables.len() as u64;
    image.push(tables);

    let limit = page_start(start.stack_limit);
    let strings = page_start(args_start);
    let first = if (start.top - strings).saturating_add(INITIAL) > limit {
        start.top.saturating_sub(limit)
    } else {
        strings.saturating_sub(INITIAL)
    };
    Ok(Stack {
        sp,
        bytes: image.finish(),
        start: first.min(page_start(sp)),
        end: start.top,
        args: (args_start, args_end),
        env: (args_end, env_end),
        auxv,
    })
}

/// The limits of execve, and what the bytes of a remote caller could hold beyond them.
fn check(start: &Start<'_>) -> Result<(), LoadError> {
    let lists = [("argument", start.argv), ("environment string", start.envp)];
    let mut total = start.filename.len() as u64 + 1;
    for (what, list) in lists {
        for (index, text) in list.iter().enumerate() {
            let length = text.len() + 1;
            if length > MAX_STRING {
                return Err(LoadError::StringTooLong {
                    what,
                    index,
                    length,
                    limit: MAX_STRING,
                });
            }
            if text.contains(&0) {
                return Err(LoadError::InnerNul { what, index });
            }
            total = total.saturating_add(length as u64);
        }
    }
    let pointers = (start.argv.len().max(1) as u64)
        .saturating_add(start.envp.len() as u64)
        .saturating_mul(8);
    let limit = AT_MOST.min(start.stack_limit / 4).max(ALWAYS);
    if total.saturating_add(pointers) > limit || pointers == limit {
        return Err(LoadError::ArgumentsTooLong { limit });
    }
    Ok(())
}

/// Addresses within the stack that the auxiliary vector names.
struct Pointers {
    filename: u64,
    platform: u64,
    random: u64,
}

/// The vector in the kernel's order.
fn vector(plan: &Plan, machine: &Machine, pointers: &Pointers) -> Auxv {
    let [uid, euid, gid, egid] = machine.ids.map(u64::from);
    let mut entries: Vec<(u64, u64)> = machine
        .vdso
        .map(|vdso| (kind::SYSINFO_EHDR, vdso))
        .into_iter()
        .collect();
    entries.extend([
        (kind::MINSIGSTKSZ, machine.min_signal_stack),
        (kind::HWCAP, machine.hwcap),
        (kind::PAGESZ, PAGE),
        (kind::CLKTCK, CLKTCK),
        (kind::PHDR, plan.phdr),
        (kind::PHENT, PHENT),
        (kind::PHNUM, plan.phnum.into()),
        (kind::BASE, plan.base),
        (kind::FLAGS, 0),
        (kind::ENTRY, plan.entry),
        (kind::UID, uid),
        (kind::EUID, euid),
        (kind::GID, gid),
        (kind::EGID, egid),
        (kind::SECURE, machine.secure.into()),
        (kind::RANDOM, pointers.random),
        (kind::HWCAP2, machine.hwcap2),
        (kind::EXECFN, pointers.filename),
        (kind::PLATFORM, pointers.platform),
    ]);
    if let Some((size, align)) = machine.rseq {
        entries.extend([(kind::RSEQ_FEATURE_SIZE, size), (kind::RSEQ_ALIGN, align)]);
    }
    Auxv(entries)
}

/// A stack filled from the top down.
struct Image {
    top: u64,
    /// Lowest byte used.
    low: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Image {
    fn push(&mut self, bytes: Vec<u8>) -> u64 {
        self.low = self.low.saturating_sub(bytes.len() as u64);
        self.pieces.push((self.low, bytes));
        self.low
    }

    fn push_string(&mut self, text: &[u8]) -> u64 {
        let mut bytes = text.to_vec();
        bytes.push(0);
        self.push(bytes)
    }

    /// Pushes the last string first, so that the first lies lowest; pointers come back in the strings' order.
    fn push_strings(&mut self, texts: &[Vec<u8>]) -> Vec<u64> {
        let mut pointers: Vec<u64> = texts.iter().rev().map(|text| self.push_string(text)).collect();
        pointers.reverse();
        pointers
    }

    /// All bytes from the lowest to the top; what no piece covers is zero.
    fn finish(self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.top - self.low).unwrap_or(0)];
        for (address, piece) in self.pieces {
            let at = usize::try_from(address - self.low).unwrap_or(usize::MAX);
            if let Some(place) = bytes.get_mut(at..at.saturating_add(piece.len())) {
                place.copy_from_slice(&piece);
            }
        }
        bytes
    }
}
