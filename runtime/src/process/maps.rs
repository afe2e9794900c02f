//! Mappings of a process as /proc/PID/maps tells them, with the flags of /proc/PID/smaps where they matter.
//!
//! Paths keep their exact bytes as far as UTF-8 allows; a path is only shown or compared, never trusted.

use std::collections::HashMap;
use std::io;

/// One line of /proc/PID/maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// PROT_* bits.
    pub prot: u8,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset in the file in bytes.
    pub offset: u64,
    /// `st_dev` of the file, 0 for anonymous memory.
    pub device: u64,
    /// Inode of the file, 0 for anonymous memory.
    pub inode: u64,
    /// Path or `[name]`, empty for plain anonymous memory.
    pub name: String,
    /// Two-letter VmFlags that smaps showed; empty when not asked for.
    pub flags: Vec<[u8; 2]>,
}

impl Mapping {
    /// Bytes mapped; no mapping is empty.
    #[allow(clippy::len_without_is_empty, reason = "no mapping is empty")]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether smaps showed this VmFlag.
    pub fn has(&self, flag: &[u8; 2]) -> bool {
        self.flags.contains(flag)
    }

    /// Whether this is a kernel-provided special mapping of the node: vDSO, its data pages, vsyscall, uprobes.
    pub fn special(&self) -> bool {
        matches!(self.name.as_str(), "[vdso]" | "[vsyscall]" | "[uprobes]") || self.name.starts_with("[vvar")
    }
}

/// Reads the mappings of a process through a live thread of it.
pub fn read(tid: i32) -> io::Result<Vec<Mapping>> {
    parse(&String::from_utf8_lossy(&std::fs::read(format!("/proc/{tid}/maps"))?))
}

/// Stands among the VmFlags of memory that has a protection key other than 0.
pub const HAS_KEY: &[u8; 2] = b"\0k";

/// Reads VmFlags by start address from smaps. Slow (12 ms per GiB of small pages): never while frozen.
pub fn flags(tid: i32) -> io::Result<HashMap<u64, Vec<[u8; 2]>>> {
    let bytes = std::fs::read(format!("/proc/{tid}/smaps"))?;
    let (mut start, mut key) = (0, false);
    let mut all = HashMap::new();
    for line in String::from_utf8_lossy(&bytes).lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let flags = flags
                .split_whitespace()
                .filter_map(|flag| <[u8; 2]>::try_from(flag.as_bytes()).ok());
            let mut flags: Vec<[u8; 2]> = flags.collect();
            if key {
                flags.push(*HAS_KEY);
            }
            all.insert(start, flags);
        } else if let Some(number) = line.strip_prefix("ProtectionKey:") {
            key = number.trim() != "0";
        } else if let Some((range, _)) = line.split_once(' ')
            && let Some((low, _)) = range.split_once('-')
            && let Ok(low) = u64::from_str_radix(low, 16)
        {
            (start, key) = (low, false);
        }
    }
    Ok(all)
}

/// Adds flags read earlier to mappings read now; a mapping that changed in between keeps none.
pub fn attach(mappings: &mut [Mapping], flags: &HashMap<u64, Vec<[u8; 2]>>) {
    for mapping in mappings {
        if let Some(flags) = flags.get(&mapping.start) {
            mapping.flags.clone_from(flags);
        }
    }
}

fn parse(text: &str) -> io::Result<Vec<Mapping>> {
    text.lines()
        .map(|line| line_of(line).ok_or_else(|| io::Error::other(format!("unreadable maps line: {line}"))))
        .collect()
}

fn line_of(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let modes = fields.next()?.as_bytes();
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode = fields.next()?.parse().ok()?;
    let name = fields.next().unwrap_or("").trim_start().to_owned();
    let prot = [(b'r', 1u8), (b'w', 2), (b'x', 4)];
    let bits = prot
        .iter()
        .zip(modes)
        .filter(|((letter, _), mode)| letter == *mode)
        .map(|((_, bit), _)| bit)
        .sum();
    let device = rustix::fs::makedev(
        u32::from_str_radix(major, 16).ok()?,
        u32::from_str_radix(minor, 16).ok()?,
    );
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        prot: bits,
        shared: *modes.get(3)? == b's',
        offset,
        device,
        inode,
        name,
        flags: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines() {
        let text = "7f0-800 rw-p 00000000 00:00 0 \n55000-56000 r-xs 00002000 fe:01 77   /a b (deleted)\n";
        let maps = parse(text).expect("parses");
        assert_eq!((maps[0].prot, maps[0].shared, maps[0].name.as_str()), (3, false, ""));
        assert_eq!(
            (maps[1].prot, maps[1].shared, maps[1].name.as_str()),
            (5, true, "/a b (deleted)")
        );
        assert_eq!((maps[1].offset, maps[1].inode), (0x2000, 77));
    }

    #[test]
    fn reads_own() {
        let maps = read(std::process::id() as i32).expect("own maps");
        assert!(maps.iter().any(|mapping| mapping.name == "[vdso]"));
        let flags = flags(std::process::id() as i32).expect("own smaps");
        assert!(maps.iter().filter(|mapping| flags.contains_key(&mapping.start)).count() > 5);
    }
}
