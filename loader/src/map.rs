//! A finished program as work for the stub: raw system calls in order, then bytes to be written from outside.
//!
//! The process is blank: nothing mapped but the stub's window. The stub makes the calls; the supervisor or agent then writes what no
//! call can: the stack's bytes and the zeroed rest of a page that .data and .bss share.

use crate::elf::{PAGE, PROT_EXEC, PROT_READ, PROT_WRITE, page_end};
use crate::error::LoadError;
use crate::plan::{Content, Plan, TASK_SIZE, Which};
use crate::script::Op;
use crate::script::abi::{WINDOW, WINDOW_END};
use crate::stack::Stack;

const SYS_MMAP: i64 = 9;
const SYS_PRCTL: i64 = 157;
const MAP_PRIVATE: u64 = 0x2;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const NO_FILE: u64 = u64::MAX;
const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;

/// Descriptors, in the blank process, of the files to map. They are closed before the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Files {
    /// The program.
    pub program: i32,
    /// Its interpreter; unused without.
    pub interpreter: i32,
}

/// Work for the stub and for whoever drives it.
#[derive(Debug, Clone, Default)]
pub struct Work {
    /// System calls in order, each of which must succeed.
    pub ops: Vec<Op>,
    /// Bytes to write once they have: address, bytes. Through the target's memory, whatever the protection.
    pub writes: Vec<(u64, Vec<u8>)>,
}

/// Turns a plan, a stack and a vDSO (address and image, empty for none) into work.
///
/// # Errors
/// When stack or vDSO meet a mapping or the window.
pub fn work(plan: &Plan, stack: &Stack, vdso: (u64, &[u8]), files: Files) -> Result<Work, LoadError> {
    let vdso_end = page_end(vdso.1.len() as u64)
        .and_then(|length| vdso.0.checked_add(length))
        .unwrap_or(u64::MAX);
    free(plan, "stack", stack.start, stack.end)?;
    if !vdso.1.is_empty() {
        free(plan, "vDSO", vdso.0, vdso_end)?;
        if stack.start < vdso_end && vdso.0 < stack.end {
            return Err(LoadError::Collision {
                what: "vDSO",
                start: vdso.0,
                end: vdso_end,
            });
        }
    }
    let mut work = Work::default();
    for mapping in &plan.mappings {
        let (flags, file, offset) = match mapping.content {
            Content::File {
                which: Which::Program,
                offset,
            } => (0, descriptor(files.program), offset),
            Content::File {
                which: Which::Interpreter,
                offset,
            } => (0, descriptor(files.interpreter), offset),
            Content::Zero => (MAP_ANONYMOUS, NO_FILE, 0),
        };
        work.ops
            .push(map(mapping.start, mapping.end, mapping.prot, flags, file, offset));
        if let Some(from) = mapping.zero_from {
            // Less than a page: the plan cuts at the page that the file's bytes end in.
            let length = usize::try_from(mapping.end.saturating_sub(from).min(PAGE)).unwrap_or(0);
            work.writes.push((from, vec![0; length]));
        }
    }
    if !vdso.1.is_empty() {
        work.ops
            .push(map(vdso.0, vdso_end, PROT_READ | PROT_EXEC, MAP_ANONYMOUS, NO_FILE, 0));
        work.writes.push((vdso.0, vdso.1.to_vec()));
    }
    let executable = if plan.executable_stack { PROT_EXEC } else { 0 };
    let flags = MAP_ANONYMOUS | MAP_GROWSDOWN;
    work.ops.push(map(
        stack.start,
        stack.end,
        PROT_READ | PROT_WRITE | executable,
        flags,
        NO_FILE,
        0,
    ));
    work.writes.push((stack.sp, stack.bytes.clone()));
    Ok(work)
}

/// `prctl(PR_SET_MM, PR_SET_MM_MAP)` with the fields of a new program: `at` is where the caller has put [`mm_map`]'s bytes.
#[must_use]
pub fn set_mm(at: u64, length: u64) -> Op {
    Op::must(SYS_PRCTL, [PR_SET_MM, PR_SET_MM_MAP, at, length, 0, 0])
}

/// `struct prctl_mm_map`, then the vector it points to, for memory at `at`; and the length of the structure alone.
#[must_use]
pub fn mm_map(plan: &Plan, stack: &Stack, at: u64) -> (Vec<u8>, u64) {
    const LENGTH: u64 = 104;
    let auxv = stack.auxv.to_bytes();
    let mut bytes = Vec::new();
    let fields = mm_fields(plan, stack);
    fields
        .iter()
        .chain(&[at + LENGTH])
        .for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
    bytes.extend_from_slice(&u32::try_from(auxv.len()).unwrap_or(0).to_le_bytes());
    // exe_fd: unchanged.
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    bytes.extend_from_slice(&auxv);
    (bytes, LENGTH)
}

/// start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start, env_end of mm_struct.
#[must_use]
pub fn mm_fields(plan: &Plan, stack: &Stack) -> [u64; 11] {
    let ((code, code_end), (data, data_end)) = (plan.code, plan.data);
    let ((args, args_end), (env, env_end)) = (stack.args, stack.env);
    [
        code, code_end, data, data_end, plan.brk, plan.brk, stack.sp, args, args_end, env, env_end,
    ]
}

fn map(start: u64, end: u64, prot: u8, flags: u64, file: u64, offset: u64) -> Op {
    let flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE | flags;
    Op::must(
        SYS_MMAP,
        [start, end.saturating_sub(start), prot.into(), flags, file, offset],
    )
}

fn descriptor(number: i32) -> u64 {
    i64::from(number).cast_unsigned()
}

fn free(plan: &Plan, what: &'static str, start: u64, end: u64) -> Result<(), LoadError> {
    let meets = |from: u64, to: u64| from < end && start < to;
    if start >= end || end > TASK_SIZE || plan.mappings.iter().any(|mapping| meets(mapping.start, mapping.end)) {
        return Err(LoadError::Collision { what, start, end });
    }
    if meets(WINDOW, WINDOW_END) {
        return Err(LoadError::Window { start, end });
    }
    Ok(())
}
