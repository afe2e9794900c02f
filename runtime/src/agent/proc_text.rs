//! What this node's kernel says about a body in /proc, in home's terms.
//!
//! Memory maps name files as home knows them, and leave the window out. Numbers of processes are home's to fill in.

use super::mapping::file_of;
use super::shared::{BodyCalls, Shared};
use crate::deputy::procfile::LARGEST;
use mosix_loader::script::abi::{WINDOW, WINDOW_END};
use mosix_wire::ids::{Pid, Tid};
use mosix_wire::image::FileRef;
use mosix_wire::link::{ProcFile, ToHome};
use std::fmt::Write as _;
use std::io::{self, Read};
use std::sync::Arc;

/// Column of the name in a line of maps.
const NAME_COLUMN: usize = 73;

/// Answers home from a thread of its own: smaps of a large process take their time.
pub fn answer(shared: &Arc<Shared>, number: u64, pid: Pid, tid: Option<Tid>, file: ProcFile) {
    let answering = Arc::clone(shared);
    let started = std::thread::Builder::new().name("proc".to_owned()).spawn(move || {
        let text = answering
            .body(pid)
            .and_then(|body| text(&answering, &body, tid, file).ok());
        // Without a text home gets an empty one, and need not wait.
        answering.tell(&ToHome::ProcText { number }, &[text.unwrap_or_default().as_bytes()]);
    });
    if let Err(error) = started {
        tracing::warn!(%pid, %error, "no thread to read /proc");
    }
}

fn text(shared: &Shared, body: &BodyCalls, tid: Option<Tid>, file: ProcFile) -> io::Result<String> {
    let folder = match tid.filter(|tid| tid.0 != body.pid.0) {
        Some(tid) => {
            let host = body.calls.host_tid(tid).ok_or(io::ErrorKind::NotFound)?;
            format!("/proc/{}/task/{host}", body.host)
        }
        // Of the leader too, the files differ from those of the process.
        None if tid.is_some() => format!("/proc/{0}/task/{0}", body.host),
        None => format!("/proc/{}", body.host),
    };
    let name = match file {
        ProcFile::Maps => "maps",
        ProcFile::Smaps => "smaps",
        ProcFile::SmapsRollup => "smaps_rollup",
        ProcFile::Status => "status",
        ProcFile::Stat => "stat",
        ProcFile::Statm => "statm",
    };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(format!("{folder}/{name}"))?;
    opened.take(LARGEST as u64).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(match file {
        ProcFile::Maps | ProcFile::Smaps => mappings(&text, &|inode| file_of(shared, inode)),
        _ => text.into_owned(),
    })
}

/// Words maps or smaps in home's terms. Of smaps, the lines below a mapping go with it.
fn mappings(text: &str, file_of: &dyn Fn(u64) -> Option<FileRef>) -> String {
    let mut told = String::with_capacity(text.len());
    let mut kept = true;
    for line in text.lines() {
        if let Some((start, end)) = range(line) {
            kept = end <= WINDOW || start >= WINDOW_END;
            if kept {
                told.push_str(&renamed(line, file_of).unwrap_or_else(|| line.to_owned()));
                told.push('\n');
            }
        } else if kept {
            told.push_str(line);
            told.push('\n');
        }
    }
    told
}

/// The addresses at the start of a mapping's line. Other lines of smaps begin with a word and a colon.
fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// The line of a mapping of one of home's files, as home's kernel would word it.
fn renamed(line: &str, file_of: &dyn Fn(u64) -> Option<FileRef>) -> Option<String> {
    let mut fields = line.split_ascii_whitespace();
    let (range, modes, offset, _, inode) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    let file = file_of(inode.parse().ok().filter(|inode| *inode != 0)?)?;
    let (major, minor) = (rustix::fs::major(file.device), rustix::fs::minor(file.device));
    let mut words = format!("{range} {modes} {offset} {major:02x}:{minor:02x} {} ", file.inode);
    while words.len() < NAME_COLUMN {
        words.push(' ');
    }
    // Writing to a String does not fail. The kernel escapes what would end the line.
    let _ = write!(words, "{}", file.path.replace('\n', "\\012"));
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_home_s_names_and_the_window_is_not_there() {
        let text = "00400000-00401000 r-xp 00001000 00:01 77                                 /memfd:mosix-file (deleted)\n\
                    Size:                  4 kB\n\
                    7e8000000000-7e8000010000 r-xp 00000000 00:00 0 \n\
                    Size:                 64 kB\n\
                    7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]\n";
        let file = FileRef {
            device: rustix::fs::makedev(8, 1),
            inode: 4711,
            size: 1,
            mtime_ns: 0,
            path: "/usr/bin/x\ny".into(),
        };
        let told = mappings(text, &|inode| (inode == 77).then(|| file.clone()));
        let expected = format!(
            "{:<73}{}\nSize:                  4 kB\n{}\n",
            "00400000-00401000 r-xp 00001000 08:01 4711 ",
            "/usr/bin/x\\012y",
            "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]"
        );
        assert_eq!(told, expected);
    }
}
