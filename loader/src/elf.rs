//! Reads an ELF program as the kernel does: the header and the program headers, nothing else.
//!
//! Sections, symbols and notes are never looked at; a stripped, packed or hostile file is as good as another. goblin decodes the
//! structures; nothing of its whole-file parser is used. Every size is checked before bytes are read or memory is allocated: at most
//! 64 KiB of program headers and 4 KiB of interpreter path, whatever the file says.

use crate::error::LoadError;
use goblin::container::{Container, Ctx, Endian};
use goblin::elf::header::{EM_X86_64, ET_DYN, ET_EXEC, Header, SIZEOF_IDENT};
use goblin::elf::program_header::{PF_R, PF_W, PF_X, PT_GNU_STACK, PT_INTERP, PT_LOAD, ProgramHeader};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of the ELF header.
const HEADER: usize = 64;
/// Bytes of one program header.
const PROGRAM_HEADER: usize = 56;
/// Most bytes of program headers, as in the kernel.
const MAX_PROGRAM_HEADERS: usize = 65536;
/// PATH_MAX.
const MAX_PATH: u64 = 4096;

/// A program file that can be read at any offset.
pub trait ProgramFile {
    /// Reads up to `out.len()` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// As the file system says.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize>;

    /// Its length in bytes.
    ///
    /// # Errors
    /// As the file system says.
    fn size(&self) -> io::Result<u64>;
}

impl ProgramFile for [u8] {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|at| self.get(at..))
            .unwrap_or(&[]);
        let count = rest.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ProgramFile for File {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(self, rest, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// Bytes that execve looks at to tell what a file is.
pub const HEAD: usize = 256;

/// The first [`HEAD`] bytes of a file, filled up with zeros.
///
/// # Errors
/// As the file system says.
pub fn head<F: ProgramFile + ?Sized>(file: &F) -> Result<[u8; HEAD], LoadError> {
    let mut head = [0; HEAD];
    file.read_at(0, &mut head)?;
    Ok(head)
}

/// Where a program wants to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ET_EXEC: at the addresses it names.
    Fixed,
    /// ET_DYN: anywhere.
    Relocatable,
}

/// What PT_GNU_STACK says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackKind {
    /// No PT_GNU_STACK: not executable on x86-64.
    Default,
    /// Executable.
    Executable,
    /// Not executable.
    Data,
}

/// One PT_LOAD as the file has it; not yet checked against an address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its number among the program headers, for messages.
    pub index: usize,
    /// PROT_READ | PROT_WRITE | PROT_EXEC.
    pub prot: u8,
    /// Offset in the file.
    pub offset: u64,
    /// Address before relocation.
    pub vaddr: u64,
    /// Bytes from the file.
    pub filesz: u64,
    /// Bytes in memory.
    pub memsz: u64,
    /// Alignment wanted.
    pub align: u64,
}

/// PROT_READ.
pub const PROT_READ: u8 = 1;
/// PROT_WRITE.
pub const PROT_WRITE: u8 = 2;
/// PROT_EXEC.
pub const PROT_EXEC: u8 = 4;

/// The headers of a program or of a program's interpreter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElfFile {
    /// Fixed or relocatable.
    pub kind: Kind,
    /// Entry point before relocation.
    pub entry: u64,
    /// Offset of the program headers in the file.
    pub phoff: u64,
    /// Number of program headers.
    pub phnum: u16,
    /// PT_LOAD segments in the file's order.
    pub segments: Vec<Segment>,
    /// Path in PT_INTERP, without its final 0.
    pub interpreter: Option<Vec<u8>>,
    /// What the stack may do.
    pub stack: StackKind,
    /// Length of the file in bytes.
    pub size: u64,
}

impl ElfFile {
    /// Reads the headers of a program.
    ///
    /// Stricter than the kernel in one point: the kernel never looks at the class and byte order in the identification.
    ///
    /// # Errors
    /// With the errno of execve: see [`LoadError::errno`]. Segments are checked when the address space is planned.
    pub fn read<F: ProgramFile + ?Sized>(file: &F) -> Result<Self, LoadError> {
        Self::read_headers(file, true)
    }

    fn read_headers<F: ProgramFile + ?Sized>(file: &F, with_interpreter: bool) -> Result<Self, LoadError> {
        let size = file.size()?;
        let mut bytes = [0; HEADER];
        // A short file is padded with zeros, as in execve, and then fails one of the checks.
        file.read_at(0, &mut bytes)?;
        if bytes[..4] != *b"\x7fELF" {
            return Err(LoadError::NotExecutable);
        }
        let machine = u16::from_le_bytes([bytes[18], bytes[19]]);
        let wrong = LoadError::WrongMachine {
            class: bytes[4],
            machine,
        };
        if machine != EM_X86_64 || bytes[4] != 2 || bytes[5] != 1 {
            return Err(wrong);
        }
        let header = goblin::elf::Elf::parse_header(&bytes).map_err(|_| LoadError::NotExecutable)?;
        let kind = match header.e_type {
            ET_EXEC => Kind::Fixed,
            ET_DYN => Kind::Relocatable,
            kind => return Err(LoadError::WrongType { kind }),
        };
        let headers = program_headers(file, &header)?;

        let mut found = Self {
            kind,
            entry: header.e_entry,
            phoff: header.e_phoff,
            phnum: header.e_phnum,
            segments: Vec::new(),
            interpreter: None,
            stack: StackKind::Default,
            size,
        };
        for (index, header) in headers.iter().enumerate() {
            match header.p_type {
                PT_LOAD => found.segments.push(segment(index, header)),
                PT_GNU_STACK if header.p_flags & PF_X != 0 => found.stack = StackKind::Executable,
                PT_GNU_STACK => found.stack = StackKind::Data,
                // The kernel takes the first and does not look at others.
                PT_INTERP if with_interpreter && found.interpreter.is_none() => {
                    found.interpreter = Some(interpreter(file, header)?)
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Reads the headers of the interpreter that a program names. An interpreter's own PT_INTERP is not looked at.
    ///
    /// # Errors
    /// As [`Self::read`], wrapped in [`LoadError::Interpreter`].
    pub fn read_interpreter<F: ProgramFile + ?Sized>(file: &F) -> Result<Self, LoadError> {
        let wrap = |error| LoadError::Interpreter(Box::new(error));
        if file.size().map_err(|error| wrap(error.into()))? < HEADER as u64 {
            return Err(wrap(LoadError::Truncated));
        }
        Self::read_headers(file, false).map_err(wrap)
    }

    /// Bytes from the first segment's page to the end of the last segment. 0 without segments; `None` when the sum overflows.
    #[must_use]
    pub fn span(&self) -> Option<u64> {
        let low = self.segments.iter().map(|segment| page_start(segment.vaddr)).min();
        let mut high = 0;
        for segment in &self.segments {
            high = high.max(segment.vaddr.checked_add(segment.memsz)?);
        }
        low.map_or(Some(0), |low| high.checked_sub(low))
    }

    /// The strictest alignment that a segment asks for, at least a page; what is no power of two does not count.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        let wanted = self
            .segments
            .iter()
            .map(|segment| segment.align)
            .filter(|align| align.is_power_of_two());
        wanted.max().unwrap_or(0).max(PAGE)
    }
}

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// The start of the page that holds `address`.
#[must_use]
pub fn page_start(address: u64) -> u64 {
    address & !(PAGE - 1)
}

/// `address` rounded up to a page. `None` at the end of the address space.
#[must_use]
pub fn page_end(address: u64) -> Option<u64> {
    address.checked_next_multiple_of(PAGE)
}

fn program_headers<F: ProgramFile + ?Sized>(file: &F, header: &Header) -> Result<Vec<ProgramHeader>, LoadError> {
    const _: () = assert!(SIZEOF_IDENT == 16);
    let count = usize::from(header.e_phnum);
    if usize::from(header.e_phentsize) != PROGRAM_HEADER {
        return Err(LoadError::Headers("their size is not 56 bytes"));
    }
    let length = count * PROGRAM_HEADER;
    if length == 0 || length > MAX_PROGRAM_HEADERS {
        return Err(LoadError::Headers("none, or more than 1170"));
    }
    let mut bytes = vec![0; length];
    // The kernel's file offsets are signed.
    if i64::try_from(header.e_phoff).is_err() || file.read_at(header.e_phoff, &mut bytes)? < length {
        return Err(LoadError::Headers("the file ends before them"));
    }
    ProgramHeader::parse(&bytes, 0, count, Ctx::new(Container::Big, Endian::Little))
        .map_err(|_| LoadError::Headers("the file ends before them"))
}

fn segment(index: usize, header: &ProgramHeader) -> Segment {
    let prot = [(PF_R, PROT_READ), (PF_W, PROT_WRITE), (PF_X, PROT_EXEC)]
        .iter()
        .filter(|(flag, _)| header.p_flags & flag != 0)
        .fold(0, |prot, (_, bit)| prot | bit);
    Segment {
        index,
        prot,
        offset: header.p_offset,
        vaddr: header.p_vaddr,
        filesz: header.p_filesz,
        memsz: header.p_memsz,
        align: header.p_align,
    }
}

fn interpreter<F: ProgramFile + ?Sized>(file: &F, header: &ProgramHeader) -> Result<Vec<u8>, LoadError> {
    let length = usize::try_from(header.p_filesz)
        .ok()
        .filter(|_| (2..=MAX_PATH).contains(&header.p_filesz));
    let length = length.ok_or(LoadError::InterpreterPath("its length is below 2 or above 4096"))?;
    let mut path = vec![0; length];
    if file.read_at(header.p_offset, &mut path)? < length {
        return Err(LoadError::Truncated);
    }
    if path.pop() != Some(0) {
        return Err(LoadError::InterpreterPath("it does not end with 0"));
    }
    // open() sees a C string.
    if let Some(end) = path.iter().position(|byte| *byte == 0) {
        path.truncate(end);
    }
    if path.is_empty() {
        return Err(LoadError::EmptyPath);
    }
    Ok(path)
}
