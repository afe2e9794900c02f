//! Where the parts of a program go: the kernel's address-space layout for x86-64 (arch/x86/mm/mmap.c, fs/binfmt_elf.c).
//!
//! ```text
//!   0x10000    fixed programs                        their heap behind them
//!   0x5555…    relocatable programs + up to 1 TiB    their heap behind them
//!   0x7e80…    the window of mosix, 1 TiB            nothing
//!   mmap top   vDSO, interpreter, later mmaps below
//!   0x7fff…    stack
//! ```

use crate::elf::{ElfFile, Kind, PAGE, page_end, page_start};
use crate::error::{EINVAL, ENOMEM, LoadError};
use crate::plan::{PROGRAM_BASE, Placement, TASK_SIZE};
use crate::script::abi::WINDOW_END;

/// Random numbers for one exec, from a good source: what the kernel draws itself. All zeros gives the layout without randomisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dice {
    /// For a relocatable program.
    pub program: u64,
    /// For the top of the mmap area.
    pub mmap: u64,
    /// For the top of the stack.
    pub stack: u64,
    /// For the stack pointer within its page.
    pub stack_pointer: u64,
    /// For the heap.
    pub brk: u64,
}

/// All places of one exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// For [`crate::plan::plan`].
    pub placement: Placement,
    /// One past the stack's last byte, whole pages.
    pub stack_top: u64,
    /// Bytes to leave between strings and the rest of the stack image: 0 to 8191.
    pub stack_shift: u64,
    /// First byte of the vDSO.
    pub vdso: u64,
    /// One past the highest address for mmap.
    pub mmap_top: u64,
}

/// Random bits of an address of a mapping (vm.mmap_rnd_bits).
const RANDOM_PAGES: u64 = 1 << 28;
/// Random pages above the stack (STACK_RND_MASK).
const STACK_RANDOM_PAGES: u64 = 1 << 22;
/// Pages kept free below the stack (stack_guard_gap).
const GUARD_PAGES: u64 = 256;
/// Room for mmaps that every layout has above the window.
const RESERVE: u64 = 64 << 30;
/// Least room kept for the stack's growth.
const MIN_GAP: u64 = 128 << 20;
/// The heap starts within this many bytes of its natural place.
const BRK_RANGE: u64 = 1 << 30;

/// Chooses places for a program and its interpreter as the kernel does. `vdso` is the length of the vDSO in bytes, `stack_limit` the
/// soft RLIMIT_STACK (`u64::MAX`: none).
///
/// # Errors
/// When there is no room: an image larger than the mmap area.
pub fn draw(
    program: &ElfFile,
    interpreter: Option<&ElfFile>,
    vdso: u64,
    stack_limit: u64,
    dice: &Dice,
) -> Result<Layout, LoadError> {
    let stack_top = page_start(TASK_SIZE - dice.stack % STACK_RANDOM_PAGES * PAGE);
    // The kernel lets the gap for the stack grow to 5/6 of all memory, and turns the layout around for an unlimited stack. Here the
    // mmap area always lies above the window.
    let lowest = WINDOW_END + RESERVE;
    let wanted = stack_limit.saturating_add((STACK_RANDOM_PAGES + GUARD_PAGES) * PAGE);
    let gap = wanted.clamp(MIN_GAP, (TASK_SIZE - lowest) / 2);
    let range = ((TASK_SIZE - gap - lowest) / PAGE).min(RANDOM_PAGES);
    let mmap_top = page_start(TASK_SIZE - gap - dice.mmap % range * PAGE);

    let mut below = mmap_top;
    let mut take = |bytes: u64, align: u64, what: &'static str, index: usize| {
        let refuse = || LoadError::Segment {
            index,
            what,
            errno: ENOMEM,
        };
        let start = page_end(bytes)
            .and_then(|bytes| below.checked_sub(bytes))
            .map(|start| start & !(align - 1));
        below = start.filter(|start| *start >= WINDOW_END).ok_or_else(refuse)?;
        Ok::<u64, LoadError>(below)
    };
    let vdso = take(vdso, PAGE, "no room for the vDSO", 0)?;
    let mut place = |file: &ElfFile, align: u64| {
        let index = file.segments.first().map_or(0, |segment| segment.index);
        let refuse = |what, errno| LoadError::Segment { index, what, errno };
        let span = file
            .span()
            .ok_or_else(|| refuse("the program is larger than an address space", ENOMEM))?;
        if span == 0 {
            return Err(if file.segments.is_empty() {
                LoadError::NoSegments
            } else {
                refuse("the program is empty", EINVAL)
            });
        }
        take(span, align, "no room for the program", index)
    };
    let program_at = match (program.kind, interpreter) {
        (Kind::Fixed, _) => 0,
        (Kind::Relocatable, None) if program.segments.is_empty() => 0,
        (Kind::Relocatable, Some(_)) => {
            (PROGRAM_BASE + dice.program % RANDOM_PAGES * PAGE) & !(program.alignment() - 1)
        }
        (Kind::Relocatable, None) => place(program, program.alignment())?,
    };
    let interpreter_at = match interpreter {
        // The interpreter's alignment beyond a page is not honoured by the kernel either.
        Some(file) if file.kind == Kind::Relocatable => {
            place(file, PAGE).map_err(|error| LoadError::Interpreter(Box::new(error)))?
        }
        _ => 0,
    };
    let brk_offset = (dice.brk != 0).then_some(page_start(dice.brk % BRK_RANGE));
    Ok(Layout {
        placement: Placement {
            program: program_at,
            interpreter: interpreter_at,
            brk_offset,
        },
        stack_top,
        stack_shift: dice.stack_pointer % 8192,
        vdso,
        mmap_top,
    })
}
