//! What a body wrote to memory that it shares with a file, or with another object at home, goes there through the deputy's own mapping.
//!
//! So it happens with the rights of the process, and to what it has mapped: a host can reach nothing else.

use crate::process::maps::{self, Mapping};
use mosix_loader::script::abi::{WINDOW, WINDOW_END};
use mosix_sys::procmem::ProcMem;
use std::io;

/// Writes pages of a body into the deputy's shared mappings.
///
/// # Errors
/// They do not lie in shared memory of the process, or the object has no such pages (any more).
pub fn write(pid: i32, address: u64, bytes: &[u8]) -> io::Result<()> {
    let end = address
        .checked_add(bytes.len() as u64)
        .ok_or(io::ErrorKind::InvalidInput)?;
    if !shared(&maps::read(pid)?, address, end) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the process shares no memory there",
        ));
    }
    // As a debugger would: the program may have protected the memory away.
    ProcMem::force(pid)?.write(address, bytes)
}

/// Whether a range lies in shared memory that is not ours.
fn shared(mappings: &[Mapping], start: u64, end: u64) -> bool {
    let mut at = start;
    for mapping in mappings {
        if mapping.end <= at {
            continue;
        }
        let outside = mapping.end <= WINDOW || mapping.start >= WINDOW_END;
        if mapping.start > at || !mapping.shared || mapping.inode == 0 || !outside {
            return false;
        }
        at = mapping.end;
        if at >= end {
            return start < end;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, shared: bool) -> Mapping {
        Mapping {
            start,
            end,
            prot: 3,
            shared,
            offset: 0,
            device: 1,
            inode: 1,
            name: "/f".into(),
            flags: Vec::new(),
        }
    }

    #[test]
    fn a_host_reaches_shared_memory_alone() {
        let map = [
            mapping(0x1000, 0x3000, true),
            mapping(0x3000, 0x4000, true),
            mapping(0x4000, 0x5000, false),
            mapping(WINDOW, WINDOW + 0x1000, true),
        ];
        assert!(shared(&map, 0x1000, 0x4000));
        assert!(shared(&map, 0x2000, 0x3000));
        for (start, end) in [
            (0x3000, 0x5000),
            (0x4000, 0x4001),
            (0, 0x2000),
            (0x5000, 0x6000),
            (0x1000, 0x1000),
            (WINDOW, WINDOW + 8),
        ] {
            assert!(!shared(&map, start, end), "{start:#x}");
        }
    }

    #[test]
    fn only_what_is_mapped_shared_is_written() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let memory = mosix_sys::shared::Shared::map(&file, 4096).unwrap();
        let own = std::process::id().cast_signed();
        let at = maps::read(own)
            .unwrap()
            .into_iter()
            .find(|m| m.shared && m.len() == 4096 && m.inode != 0)
            .unwrap();
        write(own, at.start, b"hello").unwrap();
        let mut read = [0; 5];
        memory.read(0, &mut read).unwrap();
        assert_eq!(&read, b"hello");
        let private = [0u8; 64];
        assert!(write(own, private.as_ptr() as u64, b"no").is_err());
    }
}
