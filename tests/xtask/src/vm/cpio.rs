//! Writer of the "newc" cpio format that the kernel unpacks as initramfs.
//!
//! Written here because the archive needs device nodes and root's ownership whoever builds it, and because several
//! archives are concatenated: the base of a kernel, the freshly built programs, one guest's configuration. Format:
//! [Documentation/driver-api/early-userspace/buffer-format.rst](https://docs.kernel.org/driver-api/early-userspace/buffer-format.html).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

const DIR: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHAR: u32 = 0o020_000;

/// An archive under construction. Folders above an entry are added by themselves.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    /// Adds the folder `path` (absolute in the guest) and those above it.
    pub fn dir(&mut self, path: &str) -> Result<()> {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            if end > 0 && !self.has(&path[..end]) {
                self.entry(&path[..end], DIR | 0o755, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    /// Adds a regular file.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.above(path)?;
        self.entry(path, FILE | (mode & 0o7777), (0, 0), data)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.above(path)?;
        self.entry(path, LINK | 0o777, (0, 0), to.as_bytes())
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, mode: u32, numbers: (u32, u32)) -> Result<()> {
        self.above(path)?;
        self.entry(path, CHAR | mode, numbers, &[])
    }

    /// Whether `path` is in the archive.
    pub fn has(&self, path: &str) -> bool {
        self.names.contains(path.trim_matches('/'))
    }

    /// Adds the host's file, link or folder `from` as `path`; of a folder what `keep` accepts, down the whole tree.
    pub fn copy(&mut self, from: &Path, path: &str, keep: &dyn Fn(&Path) -> bool) -> Result<()> {
        let meta = fs::symlink_metadata(from).with_context(|| format!("cannot read {}", from.display()))?;
        if meta.is_dir() {
            self.above(path)?;
            if !self.has(path) {
                // With its mode: a node's folders are refused when they are open to others.
                self.entry(path, DIR | (meta.permissions().mode() & 0o7777), (0, 0), &[])?;
            }
            let entries = fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))?;
            let mut entries: Vec<_> = entries.collect::<std::io::Result<_>>()?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries.iter().filter(|entry| keep(&entry.path())) {
                let name = entry.file_name();
                let name = name
                    .to_str()
                    .with_context(|| format!("{}: not UTF-8", entry.path().display()))?;
                self.copy(&entry.path(), &format!("{path}/{name}"), keep)?;
            }
            return Ok(());
        }
        if self.has(path) {
            return Ok(());
        }
        if meta.is_symlink() {
            let to = fs::read_link(from)?;
            let to = to.to_str().with_context(|| format!("{}: not UTF-8", from.display()))?;
            return self.link(path, to);
        }
        if !meta.is_file() {
            bail!("{}: neither file, link nor folder", from.display());
        }
        let data = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(path, meta.permissions().mode(), &data)
    }

    /// The finished archive, padded so that another one may follow.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        let padded = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(padded, 0);
        Ok(self.bytes)
    }

    fn above(&mut self, path: &str) -> Result<()> {
        match path.trim_matches('/').rsplit_once('/') {
            Some((above, _)) => self.dir(above),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> Result<()> {
        let path = path.trim_matches('/');
        if !self.names.insert(path.to_owned()) {
            bail!("/{path} is twice in the archive");
        }
        self.inode += 1;
        let name = Path::new(path).as_os_str().as_bytes();
        let size = u32::try_from(data.len()).with_context(|| format!("/{path}: larger than 4 GiB"))?;
        let name_size = u32::try_from(name.len() + 1).with_context(|| format!("/{path}: name too long"))?;
        self.bytes.extend(b"070701");
        let links = if mode & DIR == DIR { 2 } else { 1 };
        for field in [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ] {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name);
        self.bytes.push(0);
        self.align();
        self.bytes.extend(data);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_folder_keeps_its_mode() {
        let from = tempfile::tempdir().unwrap();
        fs::set_permissions(from.path(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(from.path().join("f"), b"x").unwrap();
        let mut archive = Archive::default();
        archive.copy(from.path(), "/a/b", &|_| true).unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // Name follows the header of 110 bytes, in which the mode is the second of 13 numbers.
        let mode = |name: &str| text[text.find(&format!("{name}\0")).unwrap() - 110 + 14..][..8].to_owned();
        assert_eq!((mode("a").as_str(), mode("a/b").as_str()), ("000041ED", "000041C0"));
    }

    #[test]
    fn folders_come_first_and_once() {
        let mut archive = Archive::default();
        archive.file("/a/b/c", 0o644, b"one").unwrap();
        archive.file("a/b/d", 0o755, b"").unwrap();
        assert!(archive.file("a/b/d", 0o755, b"").is_err());
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap();
        assert!(at("a/b/c") > at("a/b") && at("a/b") > at("a"));
        assert_eq!(text.matches("070701").count(), 5);
    }
}
