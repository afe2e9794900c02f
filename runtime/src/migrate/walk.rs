//! Walking a path as a process of the job would, to see where it ends.
//!
//! The kernel walks, from the process's own root, cwd or descriptor; only links of /proc are not followed, since those of the walker
//! are not those of the process. What is found is compared with the forbidden things by device and inode, so that it does not
//! matter by which name (a bind mount, a renamed parent) it was reached.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat, openat2, readlinkat, statat};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// Longest chain of links at the end of a path, as in the kernel.
const LINKS: usize = 40;

/// Walks paths.
#[derive(Debug)]
pub struct Walker {
    /// Forbidden things that exist: device, inode, name.
    known: Vec<(u64, u64, Vec<u8>)>,
}

impl Walker {
    /// Learns what these paths are.
    pub fn new(forbidden: &[Vec<u8>]) -> Self {
        let known = forbidden.iter().filter_map(|path| {
            let stat = statat(CWD, path.as_slice(), AtFlags::empty()).ok()?;
            Some((stat.st_dev, stat.st_ino, path.clone()))
        });
        Self { known: known.collect() }
    }

    /// Where a path ends: an absolute name without links, below the name of a forbidden thing when it is below that thing. `None` when
    /// it cannot be told.
    pub fn walk(&self, thread: i32, dirfd: i32, path: &[u8]) -> Option<Vec<u8>> {
        let base = |what: &str| {
            let name = format!("/proc/{thread}/{what}");
            openat(CWD, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()
        };
        let (root, start) = (
            base("root")?,
            match (path.first(), dirfd) {
                (Some(b'/'), _) => base("root")?,
                (_, libc::AT_FDCWD) => base("cwd")?,
                (_, fd) => base(&format!("fd/{fd}"))?,
            },
        );
        let (end, missing) = find(root, start, path)?;
        let mut name = readlinkat(CWD, format!("/proc/self/fd/{}", end.as_raw_fd()), Vec::new())
            .ok()?
            .into_bytes();
        // A folder outside the walker's root or one that was removed has no name here.
        if !name.starts_with(b"/") {
            return None;
        }
        for part in missing {
            name.push(b'/');
            name.extend_from_slice(&part);
        }
        Some(self.below_known(name))
    }

    /// Gives a name that lies below a forbidden thing, whatever that is called now, the thing's own name.
    fn below_known(&self, name: Vec<u8>) -> Vec<u8> {
        let ends = name
            .iter()
            .enumerate()
            .skip(1)
            .filter_map(|(at, byte)| (*byte == b'/').then_some(at))
            .chain([name.len()]);
        for end in ends {
            let Ok(stat) = statat(CWD, &name[..end], AtFlags::SYMLINK_NOFOLLOW) else {
                break;
            };
            let known = |(device, inode, _): &&(u64, u64, Vec<u8>)| (*device, *inode) == (stat.st_dev, stat.st_ino);
            if let Some((.., known)) = self.known.iter().find(known) {
                return [known.as_slice(), &name[end..]].concat();
            }
        }
        name
    }
}

/// Opens the last thing on a path that exists; the parts behind it do not, and would be made there.
fn find(root: OwnedFd, start: OwnedFd, path: &[u8]) -> Option<(OwnedFd, Vec<Vec<u8>>)> {
    let mut at = start;
    let mut path = path.to_vec();
    let mut missing: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    loop {
        let absolute = path.starts_with(b"/");
        let from = if absolute { &root } else { &at };
        let how = ResolveFlags::NO_MAGICLINKS
            | if absolute {
                ResolveFlags::IN_ROOT
            } else {
                ResolveFlags::empty()
            };
        let walked = if path.is_empty() { b".".as_slice() } else { &path };
        match openat2(from, walked, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how) {
            Ok(found) => {
                missing.reverse();
                return Some((found, missing));
            }
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            // Loops, links of /proc, no permission: whoever asked must find another way.
            Err(_) => return None,
        }
        while path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        let cut = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let part = path.split_off(cut);
        if part.is_empty() || part == b".." {
            return None;
        }
        // The last part may be a link to what does not exist.
        let folder = if path.is_empty() { b".".as_slice() } else { &path };
        let folder = openat2(from, folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how);
        if missing.is_empty()
            && let Ok(folder) = folder
            && let Ok(text) = readlinkat(&folder, part.as_slice(), Vec::new())
        {
            links += 1;
            if links > LINKS {
                return None;
            }
            (at, path) = (folder, text.into_bytes());
            continue;
        }
        missing.push(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_end_where_the_kernel_ends_them() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(dir.join("state/mosix/keys")).unwrap();
        std::fs::create_dir(dir.join("desk")).unwrap();
        symlink("../state", dir.join("desk/up")).unwrap();
        symlink(dir.join("state/mosix/new"), dir.join("desk/dangling")).unwrap();
        symlink("loop", dir.join("desk/loop")).unwrap();
        symlink("/proc/self/cwd", dir.join("desk/cwd")).unwrap();
        let secret = dir.join("state/mosix").as_os_str().as_bytes().to_vec();
        let walker = Walker::new(std::slice::from_ref(&secret));
        let me = std::process::id() as i32;
        let walk = |path: &str| {
            let full = dir.join(path).as_os_str().as_bytes().to_vec();
            let end = walker.walk(me, libc::AT_FDCWD, &full)?;
            Some(String::from_utf8(end).unwrap())
        };
        let whole = |path: &str| Some(dir.join(path).to_str().unwrap().to_owned());
        assert_eq!(walk("desk/up/mosix/keys"), whole("state/mosix/keys"));
        assert_eq!(walk("desk/../desk/up/mosix/x/y"), whole("state/mosix/x/y"));
        assert_eq!(walk("desk/dangling"), whole("state/mosix/new"));
        assert_eq!(walk("desk/other"), whole("desk/other"));
        assert_eq!(walk("desk/loop"), None);
        assert_eq!(walk("desk/cwd/x"), None);
        // Relative to a descriptor.
        let open = std::fs::File::open(dir.join("desk")).unwrap();
        let end = walker.walk(me, open.as_raw_fd(), b"up/mosix").unwrap();
        assert_eq!(end, secret);
        assert_eq!(walker.walk(me, 1_000_000, b"x"), None);
        // The parent has another name now.
        std::fs::rename(dir.join("state"), dir.join("moved")).unwrap();
        assert_eq!(walk("moved/mosix/keys"), whole("state/mosix/keys"));
    }
}
