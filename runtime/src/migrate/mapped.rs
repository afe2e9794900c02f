//! Files that a body maps while away: home says which file a descriptor means, and sends its bytes to a host that lacks them.
//!
//! The descriptor is the deputy's, so whatever the program opened can be mapped, whoever could open it now. Home keeps it open until the
//! body is back: then the bytes are needed once more, and the path may mean another file.

use super::hosts::Host;
use crate::process::descriptor::fetch;
use crate::process::layout::file_ref;
use crate::transfer::{self, Failure};
use mosix_wire::image::FileRef;
use mosix_wire::link::{MapAnswer, ToHost};
use rustix::fs::{OFlags, StatVfsMountFlags};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

/// Files of one process that are kept open for this.
const MOST: usize = 512;
/// Larger files are not sent for a mapping that may touch little of them: the process comes home. A host takes less where it has no memory.
const LARGEST: u64 = 1 << 30;
/// Nor are larger ones that change just now: each mapping sends such a file anew.
const LARGEST_CHANGING: u64 = 64 << 20;
/// A file that changed this lately may change again under the same time stamp, which is a part of its identity.
const SETTLED: Duration = Duration::from_secs(1);

/// The files that a process has mapped while away.
#[derive(Debug, Clone, Default)]
pub struct Mapped(HashMap<FileRef, Arc<File>>);

/// Files that were changing when they were mapped have an identity of their own: a time stamp that no file has, and no other of the job.
static CHANGING: AtomicI64 = AtomicI64::new(i64::MIN);

impl Mapped {
    /// What descriptor `fd` of the process means for a private mapping, or a `shared` one that reads; `exec` when code is to be mapped.
    pub fn answer(&mut self, pid: i32, fd: i32, (exec, shared): (bool, bool)) -> MapAnswer {
        match self.look(pid, fd, (exec, shared)) {
            Ok(answer) => answer,
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => MapAnswer::Errno(libc::EBADF),
            Err(error) => {
                tracing::debug!(pid, fd, %error, "a descriptor that a body wants to map");
                MapAnswer::AtHome
            }
        }
    }

    fn look(&mut self, pid: i32, fd: i32, (exec, shared): (bool, bool)) -> io::Result<MapAnswer> {
        let file = File::from(fetch(pid, fd)?);
        let access = rustix::fs::fcntl_getfl(&file)?;
        if access.contains(OFlags::PATH) {
            return Ok(MapAnswer::Errno(libc::EBADF));
        }
        if access & OFlags::ACCMODE == OFlags::WRONLY {
            return Ok(MapAnswer::Errno(libc::EACCES));
        }
        let meta = file.metadata()?;
        let barred = || rustix::fs::fstatvfs(&file).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::NOEXEC));
        let changing = meta
            .modified()
            .and_then(|time| SystemTime::now().duration_since(time).map_err(io::Error::other))
            .is_ok_and(|age| age < SETTLED);
        // Through a descriptor that writes, a shared mapping can become writable.
        let writable = shared && access & OFlags::ACCMODE != OFlags::RDONLY;
        let largest = if changing { LARGEST_CHANGING } else { LARGEST };
        // What changes under a shared mapping must be seen there.
        if !meta.is_file() || meta.len() > largest || writable || (shared && changing) || (exec && barred()) {
            return Ok(MapAnswer::AtHome);
        }
        let path = std::fs::read_link(format!("/proc/{pid}/fd/{fd}"))?;
        let mut reference = file_ref(&meta, path.to_string_lossy().into_owned());
        if changing {
            reference.mtime_ns = CHANGING.fetch_add(1, Ordering::Relaxed);
        }
        if self.0.len() >= MOST && !self.0.contains_key(&reference) {
            return Ok(MapAnswer::AtHome);
        }
        self.0.entry(reference.clone()).or_insert_with(|| Arc::new(file));
        Ok(MapAnswer::File(reference))
    }

    /// The open file of an earlier answer.
    pub fn get(&self, file: &FileRef) -> Option<Arc<File>> {
        self.0.get(file).cloned()
    }

    /// The body is home, and its mappings are memory of its own.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Sends a file to a host over its session, from a thread of its own.
pub fn send(host: &Arc<Host>, file: FileRef, source: Option<Arc<File>>) {
    let Some(source) = source else {
        return host.order(&ToHost::NoFile(file));
    };
    let (worker, named) = (Arc::clone(host), file.clone());
    let started = std::thread::Builder::new().name("file".to_owned()).spawn(move || {
        if let Err(error) = stream(&worker, &named, &source) {
            tracing::warn!(node = %worker.node, path = named.path, %error, "a file for a mapping");
            worker.order(&ToHost::NoFile(named));
        }
    });
    if started.is_err() {
        host.order(&ToHost::NoFile(file));
    }
}

fn stream(host: &Host, file: &FileRef, source: &File) -> Result<(), Failure> {
    transfer::send_file(file, source, |head, bytes| {
        Ok(host.session.send(&postcard::to_stdvec(head)?, &[bytes])?)
    })
}
