//! The notify thread: answers every trapped execve with CONTINUE, and tells another thread what was executed.
//!
//! It does nothing else, on purpose. A signal that reaches the caller *before* its notification is received makes execve fail with
//! EINTR, which no program expects, so the time between trap and receive must stay short: no lock that others hold, no file
//! access, no ptrace. Every failure on the way ends in CONTINUE.
//!
//! The id of the notification in hand is written to a file shared with the guardian: if the supervisor is killed between
//! receive and answer, the guardian answers it (a received notification is never handed out again).

use mosix_sys::notif::{Answer, Listener, Notification};
use mosix_sys::sched::be_prompt;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::Sender;

/// A program that a thread of the job is about to become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Execed {
    /// The thread.
    pub tid: i32,
    /// The path as the program wrote it.
    pub path: Vec<u8>,
    /// Descriptor of the folder that a relative path starts from, when it is not the current one.
    pub folder: Option<i32>,
}

/// PATH_MAX.
const LONGEST_PATH: usize = 4096;
const PAGE: usize = 4096;

/// Serves `listener` until no task is under its filter. `in_hand` is the file shared with the guardian.
///
/// # Errors
/// Those of the listener: the guardian then serves alone.
pub fn serve(listener: &Listener, in_hand: &File, execed: &Sender<Execed>) -> io::Result<()> {
    be_prompt();
    while let Some(n) = listener.recv(None)? {
        // Without it the guardian only guesses; the call itself must go on.
        let _ = in_hand.write_all_at(&n.id.to_ne_bytes(), 0);
        let program = read_program(&n).filter(|_| listener.is_valid(n.id));
        // Fails when the caller died: nothing waits then.
        let _ = listener.send(n.id, Answer::Continue);
        if let Some(program) = program {
            let _ = execed.send(program);
        }
    }
    Ok(())
}

/// Answers what a killed supervisor had in hand, for the guardian.
pub fn answer_left_over(listener: &Listener, in_hand: &File) {
    let mut bytes = [0; 8];
    if in_hand.read_exact_at(&mut bytes, 0).is_err() {
        return;
    }
    let last = u64::from_ne_bytes(bytes);
    // Ids count up. One more may have been received and not yet written; ids that wait for nobody answer ENOENT, and those that
    // nobody has received yet EINPROGRESS, both without effect.
    for id in last..=last.saturating_add(2) {
        let _ = listener.send(id, Answer::Continue);
    }
}

/// Reads the path that the caller passes, while it waits.
fn read_program(n: &Notification) -> Option<Execed> {
    let (path, folder) = match i64::from(n.nr) {
        libc::SYS_execve => (n.args[0], None),
        libc::SYS_execveat => {
            let fd = n.args[0] as i32;
            (n.args[1], (fd != libc::AT_FDCWD).then_some(fd))
        }
        // Numbers of the other ABIs.
        _ => return None,
    };
    Some(Execed {
        tid: n.tid,
        path: read_string(n.tid, path)?,
        folder,
    })
}

/// Reads a C string of another process, page by page.
fn read_string(tid: i32, address: u64) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let mut at = usize::try_from(address).ok()?;
    while text.len() < LONGEST_PATH {
        let mut chunk = [0; PAGE];
        let len = PAGE - at % PAGE;
        let remote = [RemoteIoVec { base: at, len }];
        let got = process_vm_readv(Pid::from_raw(tid), &mut [IoSliceMut::new(&mut chunk[..len])], &remote).ok()?;
        match chunk[..got].iter().position(|&b| b == 0) {
            Some(end) => {
                text.extend_from_slice(&chunk[..end]);
                return Some(text);
            }
            None if got < len => return None,
            None => text.extend_from_slice(&chunk[..got]),
        }
        at = at.checked_add(len)?;
    }
    None
}
