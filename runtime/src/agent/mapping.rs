//! Mappings of files that a body makes while away: private ones, and shared ones that only read.
//!
//! ```text
//!  body: mmap(fd) ─▶ ask ── MapFile ──▶ home: which file is that?
//!                    answered ◀─ File ──┘   bytes not here: WantFile ──▶ FileBytes … on the session
//!  the memfd that holds the file takes the number `fd` in the body, and the kernel executes the call as it was made
//! ```
//! All arguments are in registers, so nothing can change between the question and the call. The number stays taken by a read-only
//! copy of a file that home gave to this body anyway: calls that name descriptors are home's, none reaches it.
//!
//! Whatever goes wrong on the way brings the process home, where the call is made again.

use super::birth::room_for;
use super::files::Files;
use super::serve::settle;
use super::shared::{BodyCalls, Command, Shared, lock};
use mosix_sys::notif::{Answer, Notification};
use mosix_wire::ids::{Pid, Tid};
use mosix_wire::image::FileRef;
use mosix_wire::link::{MapAnswer, ToHome};
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::{Arc, OnceLock};

/// Threads that wait for one file, at most; each is a thread of a body.
const WAITING: usize = 4096;

/// Files of this size are always taken.
const ALWAYS: u64 = 64 << 20;
/// Which part of the free memory a single file may have.
const SHARE: u64 = 4;

/// A thread that waits: its process and its number at home.
type Who = (Pid, Tid);

/// Files that home is sending for mappings.
#[derive(Debug, Default)]
pub struct Fetches {
    /// They are kept apart from those that come with images: two transfers of one file must not meet.
    pub files: Files,
    waiting: HashMap<FileRef, Vec<Who>>,
}

/// A thread wants to map a file: home is asked what the descriptor means.
pub fn ask(shared: &Shared, body: &BodyCalls, tid: Tid, n: &Notification) {
    let (pid, epoch, fd) = (body.pid, body.epoch(), n.args[4] as i32);
    let exec = n.args[2] & libc::PROT_EXEC as u64 != 0;
    let shared_to_read = n.args[3] & libc::MAP_SHARED as u64 != 0;
    if shared_to_read && !maps_sealed_shared() {
        return come_home(shared, (pid, tid));
    }
    shared.tell(
        &ToHome::MapFile {
            pid,
            tid,
            epoch,
            fd,
            exec,
            shared: shared_to_read,
        },
        &[],
    );
}

/// Home's answer.
pub fn answered(shared: &Shared, (pid, tid): Who, answer: MapAnswer) {
    match answer {
        MapAnswer::Errno(errno) => {
            if let Some((body, host, id, _)) = waits(shared, (pid, tid)) {
                settle(
                    shared,
                    &body,
                    host,
                    id,
                    Answer::Result(-i64::from(errno.clamp(1, 4095))),
                );
            }
        }
        MapAnswer::AtHome => come_home(shared, (pid, tid)),
        MapAnswer::File(file) => {
            if !map(shared, (pid, tid), &file) {
                fetch(shared, (pid, tid), file);
            }
        }
    }
}

/// Bytes of a file on the session.
///
/// # Errors
/// When nobody asked for them, or they do not continue what is here: home is not what it should be.
pub fn bytes(shared: &Shared, file: &FileRef, offset: u64, bytes: &[u8], last: bool) -> Result<(), String> {
    let waiting = {
        let mut fetches = lock(&shared.fetches);
        let taken = fetches.files.take(file, offset, bytes, last);
        taken.map_err(|error| error.to_string())?;
        if !last {
            return Ok(());
        }
        // Where images find it. It stays here when an image is just bringing the same file.
        lock(&shared.files).adopt(&mut fetches.files, file);
        fetches.waiting.remove(file)
    };
    for who in waiting.into_iter().flatten() {
        if !map(shared, who, file) {
            come_home(shared, who);
        }
    }
    Ok(())
}

/// Home cannot send a file.
pub fn lost(shared: &Shared, file: &FileRef) {
    let waiting = lock(&shared.fetches).waiting.remove(file);
    for who in waiting.into_iter().flatten() {
        come_home(shared, who);
    }
}

/// The notification of a thread that waits in mmap: its body, its number here, the notification, the descriptor.
fn waits(shared: &Shared, (pid, tid): Who) -> Option<(Arc<BodyCalls>, i32, u64, i32)> {
    let body = shared.body(pid)?;
    let (host, id, fd) = body.calls.mapping(tid)?;
    Some((body, host, id, fd))
}

fn come_home(shared: &Shared, who: Who) {
    if waits(shared, who).is_some() {
        shared.command(Command::WantHome(who.0, libc::SYS_mmap as u32));
    }
}

/// Lets a waiting thread map the file. False when its bytes are not here. A thread that waits no more makes the call again elsewhere.
fn map(shared: &Shared, who: Who, file: &FileRef) -> bool {
    let kept = lock(&shared.fetches).files.copy(file);
    let Some(memfd) = kept.or_else(|| lock(&shared.files).copy(file)) else {
        return false;
    };
    let Some((body, host, id, fd)) = waits(shared, who) else {
        return true;
    };
    let added = room_for(body.host, fd, || {
        body.listener().add_fd(id, memfd.as_fd(), Some(fd), true)
    });
    match added.unwrap_or(Err(Errno::EMFILE)) {
        Ok(_) => settle(shared, &body, host, id, Answer::Continue),
        Err(Errno::ENOENT) => {}
        Err(error) => {
            tracing::debug!(pid = %who.0, fd, %error, "a file for a mapping");
            come_home(shared, who);
        }
    }
    true
}

/// Whether the kernel maps a sealed memory file shared, and then never lets the mapping be written: since Linux 6.7. Older ones refuse it.
fn maps_sealed_shared() -> bool {
    static DOES: OnceLock<bool> = OnceLock::new();
    *DOES.get_or_init(|| mosix_sys::kernel::is_at_least(6, 7))
}

/// The file that has this inode on this node.
pub fn file_of(shared: &Shared, inode: u64) -> Option<FileRef> {
    let kept = lock(&shared.fetches).files.by_inode(inode).cloned();
    kept.or_else(|| lock(&shared.files).by_inode(inode).cloned())
}

/// The largest file that this node can take into its memory for a mapping: a part of what is free.
fn room() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = free.and_then(|free| free.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(ALWAYS, |kib| (kib << 10) / SHARE).max(ALWAYS)
}

/// Asks home for a file's bytes, once.
fn fetch(shared: &Shared, who: Who, file: FileRef) {
    let mut fetches = lock(&shared.fetches);
    if let Some(waiting) = fetches.waiting.get_mut(&file) {
        if waiting.len() < WAITING {
            waiting.push(who);
            return;
        }
        drop(fetches);
        return come_home(shared, who);
    }
    if file.size > room() {
        drop(fetches);
        return come_home(shared, who);
    }
    let expected = fetches.files.lacks(std::slice::from_ref(&file));
    if expected.is_ok() {
        fetches.waiting.insert(file.clone(), vec![who]);
    }
    drop(fetches);
    match expected {
        Ok(_) => {
            // On the receiving thread: it must not wait for room, because acknowledgements arrive on it.
            let (pid, path) = (who.0, file.path.clone());
            if !shared.tell_at_once(&ToHome::WantFile {
                pid,
                file: file.clone(),
            }) {
                tracing::warn!(%pid, path, "a file cannot be asked for");
                lost(shared, &file);
            }
        }
        Err(error) => {
            tracing::debug!(pid = %who.0, %error, "a file for a mapping");
            come_home(shared, who);
        }
    }
}
