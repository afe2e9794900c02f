//! The memory map of a process as it travels: which mappings, what lies behind each, and which of their pages are sent.
//!
//! Every mapping is either carried, left out knowingly (the window, the node's vsyscall page), or the reason why the process cannot move.

use super::maps::{self, Mapping};
use crate::reason::{Reason, probe};
use mosix_loader::script::abi::{WINDOW, WINDOW_END};
use mosix_wire::image::{Backing, FileRef, VdsoImage, Vma, VmaFlags};
use mosix_wire::job::Why;
use std::collections::HashMap;
use std::fs::Metadata;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

/// Which pages of a mapping are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Touched pages: anonymous memory.
    Touched,
    /// Pages changed since they were read from the file: the host gets the file's bytes otherwise.
    Changed,
    /// Everything that can be read: the file behind it does not travel.
    All,
    /// Nothing.
    None,
}

/// The layout of a process at home, ready to travel.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Mappings in ascending order.
    pub vmas: Vec<Vma>,
    /// Pages to send for each of `vmas`.
    pub pages: Vec<Pages>,
    /// Files named by `vmas`.
    pub files: Vec<FileRef>,
    /// Readable paths of `files`, as this node opens them.
    pub paths: Vec<String>,
}

/// Why a process with this memory map cannot move now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.text)]
pub struct Unmovable(pub Why);

/// Decides about every mapping of a process at home. `judged` tells, when the process maps anything shared, whether others see that memory too.
pub fn of_home(pid: i32, mappings: &[Mapping], judged: impl FnOnce() -> Option<Why>) -> Result<Layout, Unmovable> {
    if mappings.len() > mosix_wire::limits::VMAS {
        return Err(Unmovable(probe::too_many_mappings(mappings.len())));
    }
    let mut judged = Some(judged);
    let mut layout = Layout::default();
    let mut known: HashMap<(u64, u64), Option<u32>> = HashMap::new();
    for mapping in mappings {
        if mapping.start >= WINDOW && mapping.end <= WINDOW_END {
            continue;
        }
        if mapping.start < WINDOW_END && mapping.end > WINDOW {
            return Err(Unmovable(Reason::Window.why()));
        }
        let mut flags = carried_flags(mapping);
        let (backing, pages) = match mapping.name.as_str() {
            "[vsyscall]" => continue,
            "[vdso]" => (Backing::Vdso, Pages::None),
            _ if mapping.special() => (Backing::Reserved, Pages::None),
            _ => {
                obstacle(mapping)?;
                if mapping.shared {
                    flags |= VmaFlags::WAS_SHARED;
                    if let Some(why) = judged.take().and_then(|judged| judged()) {
                        return Err(Unmovable(why));
                    }
                }
                behind(pid, mapping, &mut known, &mut layout)
            }
        };
        layout.vmas.push(Vma {
            start: mapping.start,
            end: mapping.end,
            prot: mapping.prot,
            flags,
            backing,
        });
        layout.pages.push(pages);
    }
    Ok(layout)
}

/// What no host can have.
fn obstacle(mapping: &Mapping) -> Result<(), Unmovable> {
    let found = if mapping.has(b"io") || mapping.has(b"pf") {
        Some(Reason::Device.because(format!("it maps the device {}", mapping.name)))
    } else if mapping.has(b"ss") {
        Some(Reason::ShadowStack.why())
    } else if mapping.has(maps::HAS_KEY) {
        Some(Reason::ProtectionKeys.why())
    } else {
        probe::behind(&mapping.name, mapping.shared)
    };
    found.map_or(Ok(()), |why| Err(Unmovable(why)))
}

fn behind(
    pid: i32,
    mapping: &Mapping,
    known: &mut HashMap<(u64, u64), Option<u32>>,
    layout: &mut Layout,
) -> (Backing, Pages) {
    if mapping.inode == 0 {
        return (Backing::Anonymous, Pages::Touched);
    }
    // "mw": the program may make it writable.
    if mapping.shared && (mapping.prot & 2 != 0 || mapping.has(b"mw")) {
        return (Backing::Anonymous, Pages::All);
    }
    let key = (mapping.device, mapping.inode);
    let index = *known.entry(key).or_insert_with(|| {
        let (file, path) = identify(pid, mapping)?;
        layout.files.push(file);
        layout.paths.push(path);
        Some(layout.files.len() as u32 - 1)
    });
    match index {
        Some(file) => (
            Backing::File {
                file,
                offset: mapping.offset,
            },
            Pages::Changed,
        ),
        None => (Backing::Anonymous, Pages::All),
    }
}

/// The identity of a file that is found under `path`.
pub fn file_ref(meta: &Metadata, path: String) -> FileRef {
    FileRef {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.len(),
        mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
        path,
    }
}

/// The file behind a mapping, when its path still names it and this process may read it.
fn identify(pid: i32, mapping: &Mapping) -> Option<(FileRef, String)> {
    if !mapping.name.starts_with('/') || mapping.name.ends_with(" (deleted)") {
        return None;
    }
    let path = format!("/proc/{pid}/root{}", mapping.name);
    let file = std::fs::File::open(&path).ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || meta.dev() != mapping.device || meta.ino() != mapping.inode {
        return None;
    }
    let reference = file_ref(&meta, mapping.name.clone());
    Some((reference, path))
}

/// VmFlags that a body carries.
pub fn carried_flags(mapping: &Mapping) -> u32 {
    let table: [(&[u8; 2], u32); 8] = [
        (b"gd", VmaFlags::GROWS_DOWN),
        (b"lo", VmaFlags::LOCKED),
        (b"dc", VmaFlags::DONT_FORK),
        (b"wf", VmaFlags::WIPE_ON_FORK),
        (b"dd", VmaFlags::DONT_DUMP),
        (b"hg", VmaFlags::HUGE),
        (b"nh", VmaFlags::NO_HUGE),
        (b"nr", VmaFlags::NO_RESERVE),
    ];
    let mut flags = table
        .iter()
        .filter(|(name, _)| mapping.has(name))
        .map(|(_, bit)| bit)
        .sum();
    if mapping.name == "[stack]" {
        flags |= VmaFlags::GROWS_DOWN;
    }
    flags
}

/// Pages to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Addresses.
    pub range: Range<u64>,
    /// Pages of zeros count too: the other side does not begin with zeros here, but with a file's bytes.
    pub zeros: bool,
}

/// Finds the pages of a layout that have to be sent, in ascending order.
pub fn runs(tid: i32, vmas: &[Vma], pages: &[Pages]) -> std::io::Result<Vec<Run>> {
    let mut map = mosix_sys::pagemap::Pagemap::open(tid)?;
    let (mut all, mut found) = (Vec::new(), Vec::new());
    for (vma, pages) in vmas.iter().zip(pages) {
        match pages {
            Pages::None => {}
            Pages::Touched => map.populated(vma.start..vma.end, true, &mut found)?,
            Pages::Changed => map.populated(vma.start..vma.end, false, &mut found)?,
            Pages::All => found.push(vma.start..vma.end),
        }
        let zeros = *pages == Pages::Changed;
        all.extend(found.drain(..).map(|range| Run { range, zeros }));
    }
    Ok(all)
}

/// Reads home's vDSO out of a process.
pub fn vdso(memory: &mosix_sys::procmem::ProcMem, mappings: &[Mapping]) -> Option<VdsoImage> {
    let mapping = mappings.iter().find(|mapping| mapping.name == "[vdso]")?;
    let mut text = vec![0; mapping.len() as usize];
    memory.read(mapping.start, &mut text).ok()?;
    Some(VdsoImage {
        base: mapping.start,
        text,
    })
}
