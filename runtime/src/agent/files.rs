//! Files behind the private mappings of bodies, as home sent them.
//!
//! A host never opens a path that a peer names: bytes come from home, into sealed memfds that are kept for the agent's life and mapped
//! by every body that needs them. The total is bounded.
//!
//! Whoever receives files does so into a store of its own, from which the agent's adopts what is complete: processes that arrive at once
//! bring the same libraries.

use mosix_sys::shared;
use mosix_wire::image::FileRef;
use rustix::fs::{SealFlags, fcntl_add_seals};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// Most bytes of files that an agent keeps: page cache of this node, charged to the job.
const TOTAL: u64 = 16 << 30;
/// Most files, each of which costs a descriptor.
const COUNT: usize = 4096;

/// A file of home in memory here.
#[derive(Debug)]
struct File {
    memfd: OwnedFd,
    inode: u64,
    /// Bytes received from the start on.
    have: u64,
    complete: bool,
}

/// The files of a job on this host.
#[derive(Debug, Default)]
pub struct Files {
    known: HashMap<FileRef, File>,
    bytes: u64,
}

/// Why a file's bytes were refused.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It was not asked for, or is complete.
    #[error("bytes of {0}, which were not asked for")]
    Unwanted(String),
    /// Bytes out of order or beyond the end.
    #[error("bytes of {path} at {offset:#x} where {have:#x} was expected")]
    Order {
        /// The file at home.
        path: String,
        /// Where the bytes belong.
        offset: u64,
        /// How many are there.
        have: u64,
    },
    /// The agent's memory for files is used up.
    #[error("the files of this job are too many or too large for this host")]
    Full,
    /// The node's memory, or descriptors.
    #[error("keeping a file in memory: {0}")]
    Os(#[from] io::Error),
}

impl Files {
    /// Those of `wanted` that are not here.
    pub fn missing(&self, wanted: &[FileRef]) -> Vec<FileRef> {
        let complete = |file: &&FileRef| self.get(file).is_none();
        wanted.iter().filter(complete).cloned().collect()
    }

    /// Says which of `wanted` are not here, and expects their bytes.
    ///
    /// # Errors
    /// [`FileError::Full`] when they would not fit.
    pub fn lacks(&mut self, wanted: &[FileRef]) -> Result<Vec<FileRef>, FileError> {
        let mut lacking = Vec::new();
        for file in wanted {
            if self.known.get(file).is_some_and(|known| known.complete) {
                continue;
            }
            if let Some(partial) = self.known.remove(file) {
                self.bytes -= file.size;
                drop(partial);
            }
            if self.known.len() >= COUNT || self.bytes.saturating_add(file.size) > TOTAL {
                return Err(FileError::Full);
            }
            let memfd = shared::memfd("mosix-file", file.size)?;
            let inode = std::fs::File::from(memfd.try_clone()?).metadata()?.ino();
            self.bytes += file.size;
            let empty = File {
                memfd,
                inode,
                have: 0,
                complete: false,
            };
            self.known.insert(file.clone(), empty);
            lacking.push(file.clone());
        }
        Ok(lacking)
    }

    /// Takes bytes of a file; `last` ends it.
    ///
    /// # Errors
    /// When they do not continue what is there, or the node refuses memory.
    pub fn take(&mut self, file: &FileRef, offset: u64, bytes: &[u8], last: bool) -> Result<(), FileError> {
        let known = match self.known.get_mut(file) {
            Some(known) if !known.complete => known,
            _ => return Err(FileError::Unwanted(file.path.clone())),
        };
        let end = offset.checked_add(bytes.len() as u64);
        if offset != known.have || end.is_none_or(|end| end > file.size) {
            return Err(FileError::Order {
                path: file.path.clone(),
                offset,
                have: known.have,
            });
        }
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            done += rustix::io::pwrite(&known.memfd, rest, offset + done as u64).map_err(io::Error::from)?;
        }
        known.have += bytes.len() as u64;
        if last {
            // A file that shrank while home read it ends in zeros.
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
            fcntl_add_seals(&known.memfd, seals).map_err(io::Error::from)?;
            known.complete = true;
        }
        Ok(())
    }

    /// Another descriptor of the complete file.
    pub fn copy(&self, file: &FileRef) -> Option<OwnedFd> {
        self.get(file).and_then(|(fd, _)| fd.try_clone_to_owned().ok())
    }

    /// Takes over a complete file of another store. False when this one has it, is receiving it, or has no room.
    pub fn adopt(&mut self, from: &mut Self, file: &FileRef) -> bool {
        if self.known.contains_key(file)
            || self.known.len() >= COUNT
            || self.bytes.saturating_add(file.size) > TOTAL
            || !from.known.get(file).is_some_and(|f| f.complete)
        {
            return false;
        }
        if let Some(found) = from.known.remove(file) {
            from.bytes -= file.size;
            self.bytes += file.size;
            self.known.insert(file.clone(), found);
        }
        true
    }

    /// The complete file that has this inode on this node.
    pub fn by_inode(&self, inode: u64) -> Option<&FileRef> {
        let known = self
            .known
            .iter()
            .find(|(_, known)| known.complete && known.inode == inode);
        known.map(|(file, _)| file)
    }

    /// The complete file, and its inode on this node.
    pub fn get(&self, file: &FileRef) -> Option<(BorrowedFd<'_>, u64)> {
        let known = self.known.get(file).filter(|known| known.complete)?;
        Some((known.memfd.as_fd(), known.inode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64, size: u64) -> FileRef {
        FileRef {
            device: 1,
            inode,
            size,
            mtime_ns: 0,
            path: "/f".into(),
        }
    }

    #[test]
    fn bytes_come_in_order_and_seal_the_file() {
        let mut files = Files::default();
        let a = file(1, 10);
        assert_eq!(files.lacks(std::slice::from_ref(&a)).unwrap(), vec![a.clone()]);
        files.take(&a, 0, b"01234", false).unwrap();
        assert!(matches!(
            files.take(&a, 6, b"x", false),
            Err(FileError::Order { have: 5, .. })
        ));
        assert!(matches!(
            files.take(&a, 5, b"567890", true),
            Err(FileError::Order { .. })
        ));
        assert!(files.get(&a).is_none());
        files.take(&a, 5, b"56789", true).unwrap();
        assert!(matches!(files.take(&a, 10, b"", true), Err(FileError::Unwanted(_))));
        let (fd, _) = files.get(&a).unwrap();
        let mut bytes = [0; 10];
        rustix::io::pread(fd, &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"0123456789");
        assert!(rustix::io::pwrite(fd, b"x", 0).is_err(), "sealed");
        assert!(files.lacks(&[a]).unwrap().is_empty());
    }

    /// As two page streams bring one library.
    #[test]
    fn a_file_that_arrives_twice_at_once_is_kept_once() {
        let (mut kept, mut one, mut other) = (Files::default(), Files::default(), Files::default());
        let a = file(1, 2);
        for store in [&mut one, &mut other] {
            assert_eq!(store.lacks(&kept.missing(std::slice::from_ref(&a))).unwrap().len(), 1);
            store.take(&a, 0, b"x", false).unwrap();
        }
        for store in [&mut one, &mut other] {
            store.take(&a, 1, b"y", true).unwrap();
        }
        assert!(kept.adopt(&mut one, &a));
        assert!(!kept.adopt(&mut other, &a));
        assert_eq!(kept.bytes, 2);
        assert!(kept.missing(&[a]).is_empty());
    }

    #[test]
    fn more_than_allowed_is_refused_before_anything_is_kept() {
        let mut files = Files::default();
        assert!(matches!(files.lacks(&[file(1, u64::MAX)]), Err(FileError::Full)));
        assert!(matches!(
            files.lacks(&[file(1, TOTAL), file(2, 1)]),
            Err(FileError::Full)
        ));
    }
}
