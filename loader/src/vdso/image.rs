//! Reads a vDSO image: the bytes of a mapped vDSO, from this kernel or carried by a body.
//!
//! Only the ELF image is read, never the shape of the mappings around it (vvar pages came and went between kernels). The section
//! headers are not relied on; goblin's permissive mode gets by without them. The bytes of a carried image were writable by the guest:
//! every number is checked against the length of the image, and the image against [`MAX_IMAGE`].

use super::VdsoError;
use goblin::elf::program_header::{PF_X, PT_LOAD};
use goblin::elf::sym::{STB_GLOBAL, STB_WEAK, STT_FUNC};
use goblin::elf::{Elf, header};
use goblin::options::ParseOptions;
use std::ops::Range;

/// Longest image read, in bytes. Real ones have one to four pages.
pub const MAX_IMAGE: usize = 256 * 1024;
/// Most symbols looked at. Real ones have about 15.
const MAX_SYMBOLS: usize = 1024;
/// SHN_ABS: a symbol that is a number, not a place.
const SHN_ABS: usize = 0xfff1;
/// SHN_UNDEF.
const SHN_UNDEF: usize = 0;
/// DT_VERSYM.
const DT_VERSYM: u64 = 0x6fff_fff0;
/// DT_VERDEF.
const DT_VERDEF: u64 = 0x6fff_fffc;

/// One exported function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its name, for example `__vdso_clock_gettime`.
    pub name: String,
    /// Its symbol version, for example `LINUX_2.6`.
    pub version: Option<String>,
    /// Its first byte, counted from the start of the image as mapped.
    pub offset: usize,
    /// Its length in bytes as the symbol says; may be 0.
    pub size: usize,
}

/// What a vDSO image holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdsoImage {
    /// All exported functions in the order of the symbol table; aliases of one function are separate entries.
    pub exports: Vec<Export>,
    /// Executable ranges of the image.
    pub text: Vec<Range<usize>>,
}

impl VdsoImage {
    /// Reads an image of whole pages, or the file form of a vDSO.
    ///
    /// # Errors
    /// When it is not an x86-64 ELF image, is too long, or exports no function.
    pub fn parse(image: &[u8]) -> Result<Self, VdsoError> {
        if image.len() > MAX_IMAGE {
            return Err(VdsoError::TooLong {
                size: image.len(),
                limit: MAX_IMAGE,
            });
        }
        let elf = Elf::parse_with_opts(image, &ParseOptions::permissive())
            .map_err(|error| VdsoError::Malformed(error.to_string()))?;
        if !elf.is_64 || !elf.little_endian || elf.header.e_machine != header::EM_X86_64 {
            return Err(VdsoError::WrongMachine);
        }
        let loads = || elf.program_headers.iter().filter(|segment| segment.p_type == PT_LOAD);
        // The image is mapped as one piece from its first PT_LOAD on; old prelinked vDSOs have a link address above 0.
        let link_base = loads()
            .next()
            .and_then(|first| first.p_vaddr.checked_sub(first.p_offset))
            .ok_or_else(|| VdsoError::Malformed("no PT_LOAD".into()))?;
        let text: Vec<Range<usize>> = loads()
            .filter(|segment| segment.p_flags & PF_X != 0)
            .filter_map(|segment| {
                let start = usize::try_from(segment.p_vaddr.checked_sub(link_base)?).ok()?;
                let end = start
                    .checked_add(usize::try_from(segment.p_memsz).ok()?)?
                    .min(image.len());
                (start < end).then_some(start..end)
            })
            .collect();

        let tag = |wanted: u64| {
            let entries = elf.dynamic.as_ref().map_or(&[][..], |dynamic| &dynamic.dyns[..]);
            let value = entries.iter().find(|entry| entry.d_tag == wanted)?.d_val;
            usize::try_from(value.checked_sub(link_base)?).ok()
        };
        let versym = tag(DT_VERSYM);
        let versions = tag(DT_VERDEF)
            .map(|verdef| version_names(image, verdef))
            .unwrap_or_default();
        let name_at = |at: usize| elf.dynstrtab.get_at(at).map(str::to_owned);

        let mut exports = Vec::new();
        for (index, symbol) in elf.dynsyms.iter().take(MAX_SYMBOLS).enumerate() {
            let exported = matches!(symbol.st_bind(), STB_GLOBAL | STB_WEAK) && symbol.st_type() == STT_FUNC;
            if !exported || matches!(symbol.st_shndx, SHN_UNDEF | SHN_ABS) {
                continue;
            }
            let Some(name) = name_at(symbol.st_name).filter(|name| !name.is_empty() && name.len() <= 128) else {
                continue;
            };
            let offset = symbol.st_value.wrapping_sub(link_base);
            let place = usize::try_from(offset)
                .ok()
                .filter(|at| text.iter().any(|range| range.contains(at)));
            let Some(place) = place else {
                return Err(VdsoError::OutsideText { name, offset });
            };
            let version = versym
                .and_then(|table| half(image, table.checked_add(index.checked_mul(2)?)?))
                .and_then(|number| versions.iter().find(|(known, _)| *known == number & 0x7fff))
                .and_then(|(_, at)| name_at(*at));
            let size = usize::try_from(symbol.st_size).unwrap_or(usize::MAX);
            exports.push(Export {
                name,
                version,
                offset: place,
                size,
            });
        }
        if exports.is_empty() {
            return Err(VdsoError::NoFunctions);
        }
        Ok(Self { exports, text })
    }

    /// Names and absolute addresses of all exported functions of an image mapped at `base`: what [`super::patch`] wants of a node.
    #[must_use]
    pub fn addresses(&self, base: u64) -> Vec<(String, u64)> {
        self.exports
            .iter()
            .map(|export| (export.name.clone(), base.wrapping_add(export.offset as u64)))
            .collect()
    }
}

/// Finds the bytes `0f 05` (`syscall`) in the executable part of an image: the place to point a stopped thread's instruction pointer
/// at when a system call must be injected and no stub is mapped yet. The offset counts from the start of the image. The bytes need
/// not be an instruction of the function around them.
#[must_use]
pub fn syscall_instruction(image: &[u8]) -> Option<usize> {
    let parsed = VdsoImage::parse(image).ok()?;
    parsed.text.iter().find_map(|range| {
        let text = image.get(range.clone())?;
        text.windows(2)
            .position(|pair| pair == [0x0f, 0x05])
            .map(|at| range.start + at)
    })
}

/// Number and name offset of each version definition. The list is linked by offsets out of the image: bounded by its length.
fn version_names(image: &[u8], first: usize) -> Vec<(u16, usize)> {
    let mut names = Vec::new();
    let mut at = first;
    for _ in 0..16 {
        // Elfxx_Verdef: vd_version, vd_flags, vd_ndx, vd_cnt (u16), vd_hash, vd_aux, vd_next (u32); Verdaux: vda_name, vda_next.
        let Some((number, aux, next)) = verdef(image, at) else {
            break;
        };
        if let Some(name) = at.checked_add(aux).and_then(|aux| word(image, aux)) {
            names.push((number, name as usize));
        }
        match at.checked_add(next) {
            Some(following) if next != 0 => at = following,
            _ => break,
        }
    }
    names
}

fn verdef(image: &[u8], at: usize) -> Option<(u16, usize, usize)> {
    let number = half(image, at.checked_add(4)?)?;
    let aux = word(image, at.checked_add(12)?)? as usize;
    let next = word(image, at.checked_add(16)?)? as usize;
    Some((number, aux, next))
}

fn half(image: &[u8], at: usize) -> Option<u16> {
    let bytes = image.get(at..at.checked_add(2)?)?;
    bytes.try_into().ok().map(u16::from_le_bytes)
}

fn word(image: &[u8], at: usize) -> Option<u32> {
    let bytes = image.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}
