//! The two seccomp programs, made from the table.
//!
//! seccompiler compiles the rules. It knows neither user notification nor more than two actions, so the program is
//! compiled with a sentinel action and patched: every return of the sentinel becomes a jump to one epilogue appended at
//! the end. The epilogue stands behind all rules on purpose: the kernel recognises calls that are always allowed by
//! running the program with a number alone, and an instruction-pointer check in front would defeat that (301 ns instead
//! of 156 per call).
//!
//! Installation belongs to [`mosix_sys::seccomp`].

use super::table::{self, Away, Cond, Home, Op};
use mosix_sys::seccomp::Instruction;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::ops::Range;

/// Bit of x32 numbers.
pub const X32: u32 = 0x4000_0000;

const SENTINEL: u32 = 0x4d58;
const RET: u16 = 0x06;
const JUMP: u16 = 0x05;
const JEQ: u16 = 0x15;
const JSET: u16 = 0x45;
const JGE: u16 = 0x35;
const JGT: u16 = 0x25;
const LOAD: u16 = 0x20;

const NR: u32 = 0;
const ARCH: u32 = 4;
const IP_LOW: u32 = 8;
const IP_HIGH: u32 = 12;

const ARCH_I386: u32 = 0x4000_0003;

/// What the programs return.
pub mod verdict {
    /// The kernel executes the call.
    pub const ALLOW: u32 = 0x7fff_0000;
    /// The call waits for the listener's answer.
    pub const NOTIFY: u32 = 0x7fc0_0000;
    /// The call fails with ENOSYS.
    pub const ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;
}

/// A filter could not be built; only a wrong table can cause it.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// seccompiler refuses the rules.
    #[error("seccomp program for {side} processes")]
    Compile {
        /// `home` or `away`.
        side: &'static str,
        /// Its reason.
        source: seccompiler::BackendError,
    },
    /// The compiled program does not begin with the architecture check that is patched.
    #[error("seccomp program for {side} processes has an unexpected beginning")]
    Shape {
        /// `home` or `away`.
        side: &'static str,
    },
}

/// Returns the program for bodies on a host: native rows run, x32 and int 0x80 fail with ENOSYS, everything else is
/// reported.
///
/// `exempt` are instruction addresses whose calls run unreported: the stub's, only while no guest code can run (arrival).
/// A body that is released must have a program without an exemption, because the guest could jump there.
///
/// # Errors
/// [`FilterError`] when the table cannot be expressed.
pub fn away(exempt: Option<Range<u64>>) -> Result<Vec<Instruction>, FilterError> {
    away_of(exempt, false)
}

/// Calls by which memory can be gone unseen: munmap, mremap, a mapping over it, advice.
pub const DROPPING: [u32; 4] = [
    libc::SYS_munmap as u32,
    libc::SYS_mremap as u32,
    libc::SYS_mmap as u32,
    libc::SYS_madvise as u32,
];

/// As [`away`]; with `watches`, of a body that shares memory with a file at home: [`DROPPING`] calls are all reported.
///
/// # Errors
/// [`FilterError`] when the table cannot be expressed.
pub fn away_of(exempt: Option<Range<u64>>, watches: bool) -> Result<Vec<Instruction>, FilterError> {
    let side = "away";
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for row in table::rows().filter(|row| !watches || !DROPPING.contains(&row.nr)) {
        match row.away {
            Away::Native => {
                rules.insert(i64::from(row.nr), Vec::new());
            }
            Away::NativeIf {
                rules: alternatives, ..
            } => {
                let chain: Result<Vec<_>, _> = alternatives.iter().map(|rule| compile(rule)).collect();
                rules.insert(
                    i64::from(row.nr),
                    chain.map_err(|source| FilterError::Compile { side, source })?,
                );
            }
            _ => {}
        }
    }
    let mut program = build(side, rules, SeccompAction::Trace(SENTINEL), SeccompAction::Allow)?;
    // Third instruction: what another architecture (int 0x80) gets.
    program[2] = ret(verdict::ENOSYS);
    let mut epilogue = vec![load(NR), op(JSET, X32, 0, 1), ret(verdict::ENOSYS)];
    if let Some(stub) = exempt {
        epilogue.extend(in_range(&stub));
    }
    epilogue.push(ret(verdict::NOTIFY));
    patch_sentinel(&mut program);
    program.extend(epilogue);
    Ok(program)
}

/// Returns the program for processes at home: execve and execveat of every architecture are reported, everything else
/// runs.
///
/// # Errors
/// [`FilterError`] when the table cannot be expressed.
pub fn home() -> Result<Vec<Instruction>, FilterError> {
    let side = "home";
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for row in table::rows().filter(|row| row.home == Home::Trap) {
        rules.insert(i64::from(row.nr), Vec::new());
    }
    // x32 shares the architecture and has numbers of its own for calls with pointers in memory.
    for nr in [520, 545] {
        rules.insert(i64::from(X32 | nr), Vec::new());
    }
    let mut program = build(side, rules, SeccompAction::Allow, SeccompAction::Trace(SENTINEL))?;
    // The epilogue is `ret NOTIFY` and, behind it, the numbers of i386.
    let epilogue = program.len();
    program[2] = jump(2, epilogue + 1);
    patch_sentinel(&mut program);
    program.push(ret(verdict::NOTIFY));
    program.extend([
        load(ARCH),
        op(JEQ, ARCH_I386, 0, 3),
        load(NR),
        op(JEQ, 11, 2, 0),
        op(JEQ, 358, 1, 0),
        ret(verdict::ALLOW),
        ret(verdict::NOTIFY),
    ]);
    Ok(program)
}

fn compile(rule: &[Cond]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions: Result<Vec<_>, _> = rule
        .iter()
        .map(|cond| {
            let width = if cond.wide {
                SeccompCmpArgLen::Qword
            } else {
                SeccompCmpArgLen::Dword
            };
            let op = match cond.op {
                Op::Eq => SeccompCmpOp::Eq,
                Op::Lt => SeccompCmpOp::Lt,
                Op::Le => SeccompCmpOp::Le,
                Op::Ge => SeccompCmpOp::Ge,
                Op::Masked(mask) => SeccompCmpOp::MaskedEq(mask),
            };
            SeccompCondition::new(cond.arg, width, op, cond.value)
        })
        .collect();
    SeccompRule::new(conditions?)
}

fn build(
    side: &'static str,
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> Result<Vec<Instruction>, FilterError> {
    let program: BpfProgram = SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)
        .and_then(TryInto::try_into)
        .map_err(|source| FilterError::Compile { side, source })?;
    let program: Vec<Instruction> = program
        .iter()
        .map(|i| Instruction {
            code: i.code,
            jt: i.jt,
            jf: i.jf,
            k: i.k,
        })
        .collect();
    match program.as_slice() {
        [a, b, c, ..] if a.k == ARCH && b.code == JEQ && c.code == RET => Ok(program),
        _ => Err(FilterError::Shape { side }),
    }
}

/// Turns each return of the sentinel into a jump to the end of the program as it is now.
fn patch_sentinel(program: &mut [Instruction]) {
    let end = program.len();
    let sentinel = u32::from(SeccompAction::Trace(SENTINEL));
    for (pc, instruction) in program.iter_mut().enumerate() {
        if instruction.code == RET && instruction.k == sentinel {
            *instruction = jump(pc, end);
        }
    }
}

/// Allows when the instruction pointer lies in `range`, else falls through. The reported pointer is that of the
/// instruction behind `syscall`, so the range's end counts as inside.
fn in_range(range: &Range<u64>) -> Vec<Instruction> {
    let (high, start) = ((range.start >> 32) as u32, range.start as u32);
    let end = range.end as u32;
    if range.end >> 32 != range.start >> 32 {
        // The stub's text lies within 4 GiB; a range that does not is not exempted.
        return Vec::new();
    }
    vec![
        load(IP_HIGH),
        op(JEQ, high, 0, 4),
        load(IP_LOW),
        op(JGE, start, 0, 2),
        op(JGT, end, 1, 0),
        ret(verdict::ALLOW),
    ]
}

const fn ret(k: u32) -> Instruction {
    Instruction {
        code: RET,
        jt: 0,
        jf: 0,
        k,
    }
}

const fn load(k: u32) -> Instruction {
    Instruction {
        code: LOAD,
        jt: 0,
        jf: 0,
        k,
    }
}

const fn op(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

const fn jump(from: usize, to: usize) -> Instruction {
    Instruction {
        code: JUMP,
        jt: 0,
        jf: 0,
        k: (to - from - 1) as u32,
    }
}

#[cfg(test)]
mod tests;
