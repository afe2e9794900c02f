//! From program headers to a list of mappings: the rules of fs/binfmt_elf.c as a pure function.
//!
//! ```text
//!   headers of program and interpreter ─┐
//!   where to put them (Placement) ──────┴─► Plan: mappings, entry, phdr address, brk, code and data ranges
//! ```
//! Segments are mapped in the file's order and a later one replaces what it overlaps, as MAP_FIXED does in the kernel; the plan lists
//! what is left, in ascending order. No mapping touches the window of mosix.

use crate::elf::{ElfFile, Kind, PAGE, PROT_EXEC, PROT_READ, PROT_WRITE, Segment, StackKind, page_end, page_start};
use crate::error::{EFAULT, EINVAL, ENOMEM, EPERM, LoadError};
use crate::script::abi::{WINDOW, WINDOW_END};

/// One past the last address of a program (TASK_SIZE with four page-table levels, which is what programs get unless they ask for more).
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// Lowest address an ordinary user may map (vm.mmap_min_addr as distributions set it).
pub const MIN_ADDRESS: u64 = 0x1_0000;
/// Where position-independent programs start without randomisation (ELF_ET_DYN_BASE).
pub const PROGRAM_BASE: u64 = TASK_SIZE / 3 * 2;

/// Which file a mapping shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The program.
    Program,
    /// Its ELF interpreter.
    Interpreter,
}

/// What lies behind a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Private mapping of a file; `offset` belongs to the mapping's start.
    File {
        /// The file.
        which: Which,
        /// Offset in bytes, whole pages.
        offset: u64,
    },
    /// Private anonymous memory.
    Zero,
}

/// One mapping of whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// PROT_READ | PROT_WRITE | PROT_EXEC.
    pub prot: u8,
    /// What lies behind it.
    pub content: Content,
    /// The last page is zeroed from here on: the beginning of .bss shares it with the end of .data.
    pub zero_from: Option<u64>,
}

/// Where the parts go. [`crate::place::draw`] makes one as the kernel does; a test copies a real one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Page of a relocatable program's first segment; ignored for a fixed one.
    pub program: u64,
    /// Page of a relocatable interpreter's first segment; ignored for a fixed one or without.
    pub interpreter: u64,
    /// Distance of the brk from where it would start without randomisation, in bytes; `None`: not randomised, not even the gap page.
    pub brk_offset: Option<u64>,
}

/// An address space for one program, without its stack and vDSO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Mappings in ascending order, not overlapping.
    pub mappings: Vec<Mapping>,
    /// Where the first thread starts: the interpreter's entry, or the program's.
    pub start: u64,
    /// The program's entry: AT_ENTRY.
    pub entry: u64,
    /// Address of the program headers: AT_PHDR.
    pub phdr: u64,
    /// Number of program headers: AT_PHNUM.
    pub phnum: u16,
    /// Load address of the interpreter, 0 without: AT_BASE.
    pub base: u64,
    /// Start of the heap, whole pages.
    pub brk: u64,
    /// Code: start_code and end_code of mm_struct.
    pub code: (u64, u64),
    /// Data: start_data and end_data of mm_struct.
    pub data: (u64, u64),
    /// True when the stack is executable.
    pub executable_stack: bool,
}

/// Plans an address space.
///
/// # Errors
/// Only such that the kernel finds behind its point of no return: see [`LoadError::is_fatal`].
pub fn plan(program: &ElfFile, interpreter: Option<&ElfFile>, place: &Placement) -> Result<Plan, LoadError> {
    let mut space = Space(Vec::new());
    let load = Load::new(program, Which::Program, place.program)?;
    load.map_into(&mut space)?;
    let low = space.0.clone();

    let (mut start, mut base) = (relocated(program.entry, load.bias), 0);
    if let Some(interpreter) = interpreter {
        let wrap = |error| LoadError::Interpreter(Box::new(error));
        let load = Load::new(interpreter, Which::Interpreter, place.interpreter).map_err(wrap)?;
        let before = Space(low);
        let mut own = Space(Vec::new());
        load.map_into(&mut own).map_err(wrap)?;
        // A relocatable interpreter goes where there is room; a fixed one replaces what it meets, which no program survives.
        if let Some(hit) = own.0.iter().find(|mapping| before.overlaps(mapping.start, mapping.end)) {
            return Err(wrap(LoadError::Collision {
                what: "interpreter",
                start: hit.start,
                end: hit.end,
            }));
        }
        space.0.append(&mut own.0);
        base = load.bias;
        start = relocated(interpreter.entry, load.bias);
    }
    space.0.sort_unstable_by_key(|mapping| mapping.start);
    if start >= TASK_SIZE {
        return Err(LoadError::Entry(start));
    }

    let first = |found: Option<u64>| relocated(found.unwrap_or(u64::MAX), load.bias);
    let last = |found: Option<u64>| relocated(found.unwrap_or(0), load.bias);
    let code = || program.segments.iter().filter(|segment| segment.prot & PROT_EXEC != 0);
    let file_end = |segment: &Segment| segment.vaddr.wrapping_add(segment.filesz);
    Ok(Plan {
        mappings: space.0,
        start,
        entry: relocated(program.entry, load.bias),
        phdr: phdr_address(program, load.bias),
        phnum: program.phnum,
        base,
        brk: brk(program, interpreter.is_some(), load.bias, place.brk_offset),
        code: (
            first(code().map(|segment| segment.vaddr).min()),
            last(code().map(file_end).max()),
        ),
        // Not a mistake: the kernel takes the *highest* start of all segments for start_data.
        data: (
            last(program.segments.iter().map(|segment| segment.vaddr).max()),
            last(program.segments.iter().map(file_end).max()),
        ),
        executable_stack: program.stack == StackKind::Executable,
    })
}

/// Addresses wrap around as the kernel's unsigned longs do: a bias may be "negative".
fn relocated(address: u64, bias: u64) -> u64 {
    address.wrapping_add(bias)
}

fn phdr_address(program: &ElfFile, bias: u64) -> u64 {
    let holds = |segment: &&Segment| {
        segment.offset <= program.phoff && program.phoff < segment.offset.saturating_add(segment.filesz)
    };
    let last = program.segments.iter().rfind(holds);
    let vaddr = last.map_or(0, |segment| {
        (program.phoff - segment.offset).wrapping_add(segment.vaddr)
    });
    relocated(vaddr, bias)
}

fn brk(program: &ElfFile, interpreted: bool, bias: u64, offset: Option<u64>) -> u64 {
    let end = program
        .segments
        .iter()
        .map(|segment| segment.vaddr.wrapping_add(segment.memsz))
        .max()
        .unwrap_or(0);
    // A relocatable file without interpreter is usually the dynamic linker itself, started by hand: it lies among the mmaps, and its
    // heap must not.
    let moved = program.kind == Kind::Relocatable && !interpreted;
    let natural = if moved { PROGRAM_BASE } else { relocated(end, bias) };
    let gap = if moved || offset.is_none() { 0 } else { PAGE };
    // A program that ends at the end of the address space runs; it just has no heap.
    let start = page_end(natural)
        .unwrap_or(TASK_SIZE)
        .saturating_add(gap)
        .saturating_add(page_start(offset.unwrap_or(0)));
    start.min(TASK_SIZE)
}

/// One file to be loaded at a bias.
struct Load<'a> {
    file: &'a ElfFile,
    which: Which,
    /// Added to every address of the file.
    bias: u64,
}

impl<'a> Load<'a> {
    fn new(file: &'a ElfFile, which: Which, at: u64) -> Result<Self, LoadError> {
        let bias = match (file.kind, file.segments.first()) {
            // The kernel starts a program without segments all the same; it ends at its first instruction.
            (_, None) if which == Which::Program => 0,
            (_, None) => return Err(LoadError::NoSegments),
            (Kind::Fixed, Some(_)) => 0,
            (Kind::Relocatable, Some(first)) => {
                let refuse = |what, errno| LoadError::Segment {
                    index: first.index,
                    what,
                    errno,
                };
                match file.span() {
                    Some(0) => return Err(refuse("the program is empty", EINVAL)),
                    None => return Err(refuse("the program is larger than an address space", ENOMEM)),
                    // The kernel finds a place for a file without interpreter by mapping its first segment; without bytes to map it
                    // ends up at address 0.
                    Some(_) if first.filesz == 0 && (file.interpreter.is_none() || which == Which::Interpreter) => {
                        return Err(refuse("the first segment has no bytes in the file", EINVAL));
                    }
                    Some(_) => page_start(at).wrapping_sub(page_start(first.vaddr)),
                }
            }
        };
        Ok(Self { file, which, bias })
    }

    fn map_into(&self, space: &mut Space) -> Result<(), LoadError> {
        self.file
            .segments
            .iter()
            .try_for_each(|segment| self.map_segment(segment, space))
    }

    fn map_segment(&self, segment: &Segment, space: &mut Space) -> Result<(), LoadError> {
        let refuse = |what, errno| LoadError::Segment {
            index: segment.index,
            what,
            errno,
        };
        let vaddr = relocated(segment.vaddr, self.bias);
        if segment.filesz > segment.memsz {
            return Err(refuse("it has more bytes in the file than in memory", EINVAL));
        }
        if segment.memsz > TASK_SIZE || vaddr > TASK_SIZE - segment.memsz {
            return Err(refuse("it reaches beyond the address space", ENOMEM));
        }
        let in_page = vaddr & (PAGE - 1);
        let start = page_start(vaddr);
        if segment.memsz == 0 {
            return Ok(());
        }
        // Below TASK_SIZE, as checked: these sums cannot overflow.
        let file_end = vaddr + segment.filesz;
        let memory_end =
            page_end(vaddr + segment.memsz).ok_or_else(|| refuse("it reaches beyond the address space", ENOMEM))?;
        if memory_end > TASK_SIZE {
            return Err(refuse("it reaches beyond the address space", ENOMEM));
        }
        if start < MIN_ADDRESS {
            return Err(refuse("it lies below the lowest address that may be mapped", EPERM));
        }
        let mut zero_start = start;
        if segment.filesz > 0 {
            if segment.offset & (PAGE - 1) != in_page || segment.offset < in_page {
                return Err(refuse("its offset and address differ within the page", EINVAL));
            }
            let offset = segment.offset - in_page;
            let end = page_end(file_end).ok_or_else(|| refuse("it reaches beyond the address space", ENOMEM))?;
            if offset
                .checked_add(end - start)
                .is_none_or(|end| i64::try_from(end).is_err())
            {
                return Err(refuse("it lies beyond the largest file", EINVAL));
            }
            // Zeroing fails silently where the page is read-only: the file's bytes show there, as after a real exec.
            let tail = segment.memsz > segment.filesz && segment.prot & PROT_WRITE != 0 && file_end < end;
            let zero_from = tail.then_some(file_end);
            if tail && offset + (page_start(file_end) - start) >= self.file.size {
                return Err(refuse("the file ends before its data", EFAULT));
            }
            let content = Content::File {
                which: self.which,
                offset,
            };
            space.map(Mapping {
                start,
                end,
                prot: segment.prot,
                content,
                zero_from,
            })?;
            zero_start = end;
        }
        if segment.memsz > segment.filesz && zero_start < memory_end {
            // The kernel makes .bss writable whatever the segment says.
            let prot = PROT_READ | PROT_WRITE | (segment.prot & PROT_EXEC);
            space.map(Mapping {
                start: zero_start,
                end: memory_end,
                prot,
                content: Content::Zero,
                zero_from: None,
            })?;
        }
        Ok(())
    }
}

/// Mappings so far, ascending.
struct Space(Vec<Mapping>);

impl Space {
    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.0.iter().any(|mapping| mapping.start < end && start < mapping.end)
    }

    /// Adds a mapping and cuts away what it covers.
    fn map(&mut self, new: Mapping) -> Result<(), LoadError> {
        if new.start < WINDOW_END && WINDOW < new.end {
            return Err(LoadError::Window {
                start: new.start,
                end: new.end,
            });
        }
        if self.overlaps(new.start, new.end) {
            let old = std::mem::take(&mut self.0);
            for mapping in old {
                self.0.extend(cut(mapping, mapping.start, new.start.min(mapping.end)));
                self.0.extend(cut(mapping, new.end.max(mapping.start), mapping.end));
            }
        }
        let at = self.0.partition_point(|mapping| mapping.start < new.start);
        self.0.insert(at, new);
        Ok(())
    }
}

/// The part of a mapping between two addresses, if any.
fn cut(mapping: Mapping, start: u64, end: u64) -> Option<Mapping> {
    if start >= end {
        return None;
    }
    let content = match mapping.content {
        Content::File { which, offset } => Content::File {
            which,
            offset: offset + (start - mapping.start),
        },
        Content::Zero => Content::Zero,
    };
    // The zeroed bytes are in the last page only.
    let zero_from = mapping.zero_from.filter(|_| end == mapping.end);
    Some(Mapping {
        start,
        end,
        content,
        zero_from,
        ..mapping
    })
}
