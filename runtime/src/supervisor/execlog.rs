//! What the programs of a job lose under its filter, told to the user.
//!
//! Without CAP_SYS_ADMIN a filter needs no_new_privs, and under that the kernel silently runs set-user-id, set-group-id and
//! file-capability programs without their privilege: `sudo` fails in ways that nobody understands. So each program that the notify
//! thread reports is looked at, on a thread of its own, and named once.

use super::notify::Execed;
use super::shared::Shared;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// Records every program and, with `no_new_privs`, shows a line for each that loses a privilege. Returns when the notify thread ends.
pub fn watch(execed: &Receiver<Execed>, shared: &Arc<Shared>, no_new_privs: bool, show: impl Fn(String)) {
    for program in execed {
        if no_new_privs && let Some(privilege) = privilege(&program) {
            let path = String::from_utf8_lossy(&program.path);
            let line = format!(
                "'{path}' runs without its {privilege}: programs of this job may gain no privileges; start the job with --no-filter for that"
            );
            if shared.note(line.clone()) {
                show(line);
            }
        }
        shared.executed(program.tid, &program.path);
    }
}

/// The privilege that executing the program would give, as a word.
fn privilege(program: &Execed) -> Option<&'static str> {
    let file = seen_by(program);
    let meta = std::fs::metadata(&file).ok()?;
    if !meta.is_file() || nosuid(&file) {
        return None;
    }
    let caller = std::fs::metadata(format!("/proc/{}", program.tid)).ok();
    let mode = meta.mode();
    if mode & 0o4000 != 0 && caller.is_none_or(|c| c.uid() != meta.uid()) {
        return Some("set-user-id bit");
    }
    if mode & 0o2010 == 0o2010 {
        return Some("set-group-id bit");
    }
    let mut value = [0u8; 64];
    rustix::fs::getxattr(&file, "security.capability", &mut value[..])
        .ok()
        .map(|_| "file capabilities")
}

/// The file as the process names it, through its own root and current folder.
fn seen_by(program: &Execed) -> PathBuf {
    let tid = program.tid;
    let path = OsStr::from_bytes(&program.path);
    match (program.path.strip_prefix(b"/"), program.folder) {
        (Some(rest), _) => PathBuf::from(format!("/proc/{tid}/root")).join(OsStr::from_bytes(rest)),
        (None, Some(fd)) => PathBuf::from(format!("/proc/{tid}/fd/{fd}")).join(path),
        (None, None) => PathBuf::from(format!("/proc/{tid}/cwd")).join(path),
    }
}

/// On such a mount nobody gains anything, with or without mosix.
fn nosuid(file: &PathBuf) -> bool {
    nix::sys::statvfs::statvfs(file).is_ok_and(|s| s.flags().contains(nix::sys::statvfs::FsFlags::ST_NOSUID))
}
