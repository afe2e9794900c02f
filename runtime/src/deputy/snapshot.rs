//! A descriptor of a deputy becomes a text that was made for it.

use super::calls::Deputy;
use super::procfile;
use crate::process::window::ScriptError;
use crate::syscall::policy::JobView;
use mosix_loader::script::Op;
use mosix_loader::script::abi::SHARED;
use std::io::Read;
use std::time::Duration;

/// How long the calls for it may take: all of them are brief.
const BRIEF: Duration = Duration::from_secs(1);
/// Room for the name in front of the text.
const NAME: usize = 16;

/// What became of a descriptor that was just opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// It is right as it is.
    AsIs,
    /// It shows the process as it is, wherever that is.
    Merged,
    /// It would show the deputy's half alone.
    Half,
}

impl Deputy {
    /// Looks what thread `tid` has just opened as `fd`, which sits in `slot`: when it is a file of /proc about a process whose body is away, the
    /// descriptor gets the text that describes the whole process.
    pub(super) fn show_whole(&self, slot: u32, tid: i32, fd: i32, job: &dyn JobView) -> Shown {
        let name = job.open_name(self.pid, fd).unwrap_or_default();
        let Some((pid, thread, file)) = procfile::parse(&name) else {
            return Shown::AsIs;
        };
        if !is_proc(self.pid, fd) {
            return Shown::AsIs;
        }
        let Some(asked) = job.body_text(pid, thread, file) else {
            return Shown::AsIs;
        };
        let text = asked.and_then(|body| {
            let name = String::from_utf8(name).ok()?;
            let mut home = Vec::new();
            let opened = std::fs::File::open(name).ok()?;
            opened.take(procfile::LARGEST as u64).read_to_end(&mut home).ok()?;
            Some(procfile::merge(file, &home, &body, thread.unwrap_or(pid) == tid))
        });
        let Some(text) = text else { return Shown::Half };
        match self.replace(slot, fd, &text) {
            Ok(true) => Shown::Merged,
            Ok(false) | Err(_) => Shown::Half,
        }
    }

    /// Puts a sealed memory file with this text in the place of a descriptor. False when the process may have no more of something.
    fn replace(&self, slot: u32, fd: i32, text: &[u8]) -> Result<bool, ScriptError> {
        let size = NAME + text.len();
        let Some(room) = self.take_room(size) else {
            return Ok(false);
        };
        let done = self.replace_from(slot, fd, text, room);
        self.give_room(room, size);
        done
    }

    fn replace_from(&self, slot: u32, fd: i32, text: &[u8], room: u64) -> Result<bool, ScriptError> {
        let window = self.window();
        window.shared().write(room, b"proc\0")?;
        window.shared().write(room + NAME as u64, text)?;
        let at = SHARED + room;
        let flags = u64::from(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        let made = window.run(slot, &[Op::may(libc::SYS_memfd_create, [at, flags, 0, 0, 0, 0])], BRIEF)?;
        let Some(file @ 0..) = made.first().copied() else {
            return Ok(false);
        };
        let file = file as u64;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
        let close_on_exec = if closes_on_exec(self.pid, fd) {
            libc::O_CLOEXEC
        } else {
            0
        };
        let script = [
            Op::may(libc::SYS_write, [file, at + NAME as u64, text.len() as u64, 0, 0, 0]),
            Op::may(libc::SYS_lseek, [file, 0, libc::SEEK_SET as u64, 0, 0, 0]),
            Op::may(libc::SYS_fcntl, [file, libc::F_ADD_SEALS as u64, seals as u64, 0, 0, 0]),
            Op::may(libc::SYS_dup3, [file, fd as u64, close_on_exec as u64, 0, 0, 0]),
            Op::may(libc::SYS_close, [file, 0, 0, 0, 0, 0]),
        ];
        let results = window.run(slot, &script, BRIEF)?;
        Ok(results.first() == Some(&(text.len() as i64)) && results.get(3) == Some(&i64::from(fd)))
    }
}

/// Whether a descriptor is open on a file of /proc, and not on one that has such a name.
fn is_proc(pid: i32, fd: i32) -> bool {
    rustix::fs::statfs(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

fn closes_on_exec(pid: i32, fd: i32) -> bool {
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_CLOEXEC != 0)
}
