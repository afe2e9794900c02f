//! One command of one client: its process, its output, its end.

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::Port;
use crate::protocol::{BODY_MAX, Frame, Request, STDIN_WINDOW};

/// A running command.
pub struct Session {
    group: Pid,
    /// Set when the client is gone or the command has ended: nothing more is sent for it.
    over: Arc<AtomicBool>,
    /// Set once the command was waited for: its pid may be anybody's from then on.
    reaped: Arc<Mutex<bool>>,
    stdin: SyncSender<Option<Vec<u8>>>,
}

impl Session {
    /// Starts the command in a process group of its own, with threads that carry its streams.
    pub fn start(request: &Request, port: Port) -> io::Result<Self> {
        let mut argv = request.argv.iter().cloned().map(OsString::from_vec);
        let program = argv
            .next()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "request without a program"))?;
        let mut command = Command::new(program);
        let env = request
            .env
            .iter()
            .cloned()
            .map(|(key, value)| (OsString::from_vec(key), OsString::from_vec(value)));
        command.args(argv).envs(env).process_group(0);
        if let Some(cwd) = &request.cwd {
            command.current_dir(OsString::from_vec(cwd.clone()));
        }
        let (out, out_writer) = pipe()?;
        let (err, err_writer) = pipe()?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(out_writer)
            .stderr(err_writer)
            .spawn()?;
        // The command holds the write ends; as long as we did, they would never end.
        drop(command);
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        let over = Arc::new(AtomicBool::new(false));
        let reaped = Arc::new(Mutex::new(false));
        let (done, done_writer) = pipe()?;
        // A client may have a window of bytes on the way, in frames of any size; those that are full fit here.
        let (stdin, to_child) = sync_channel::<Option<Vec<u8>>>(STDIN_WINDOW);
        if let Some(pipe) = child.stdin.take() {
            let (port, over) = (port.clone(), over.clone());
            thread::spawn(move || feed(pipe, &to_child, &port, &over));
        }
        let status = Arc::new(Mutex::new(None));
        let waiter = (status.clone(), reaped.clone());
        thread::spawn(move || {
            // First only wait: until the zombie is taken away below, its pid is nobody else's.
            while waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
            let mut reaped = waiter.1.lock().unwrap_or_else(PoisonError::into_inner);
            let ended = child.wait();
            *reaped = true;
            *waiter.0.lock().unwrap_or_else(PoisonError::into_inner) = ended.ok();
            drop::<PipeWriter>(done_writer);
        });
        let to_end = request.to_end;
        let sender = over.clone();
        thread::spawn(move || {
            let sent = carry((out, err), &done, to_end, &port, &sender).and_then(|()| {
                let status = status.lock().unwrap_or_else(PoisonError::into_inner).take();
                send(&port, &sender, &Frame::Exit(status.map_or(255, code)))
            });
            sender.store(true, Ordering::SeqCst);
            if let Err(error) = sent {
                eprintln!("vm-guest: group {group}: output lost: {error}");
            }
        });
        Ok(Self {
            group,
            over,
            reaped,
            stdin,
        })
    }

    /// Passes bytes (or the end) to the command's stdin. Never blocks: a client that ignores its window loses bytes.
    pub fn stdin(&self, bytes: Option<Vec<u8>>) {
        if self.stdin.try_send(bytes).is_err() && !self.over.load(Ordering::SeqCst) {
            eprintln!("vm-guest: group {}: stdin beyond the window, or closed", self.group);
        }
    }

    /// Ends the command if it still runs: its client is gone.
    pub fn end(self) {
        if self.over.swap(true, Ordering::SeqCst) {
            return;
        }
        let Self { group, reaped, .. } = self;
        thread::spawn(move || {
            for (signal, pause) in [(Signal::SIGHUP, 10), (Signal::SIGCONT, 1000), (Signal::SIGKILL, 0)] {
                // Held over the kill: the pid cannot be reaped and given to somebody else in between.
                let reaped = reaped.lock().unwrap_or_else(PoisonError::into_inner);
                if *reaped {
                    return;
                }
                let _gone_already = killpg(group, signal);
                drop(reaped);
                thread::sleep(Duration::from_millis(pause));
            }
        });
    }
}

fn send(port: &Port, over: &AtomicBool, frame: &Frame) -> io::Result<()> {
    if over.load(Ordering::SeqCst) {
        Ok(())
    } else {
        port.send(frame)
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(127));
    u8::try_from(code & 0xff).unwrap_or(255)
}

fn feed(mut pipe: ChildStdin, from: &Receiver<Option<Vec<u8>>>, port: &Port, over: &AtomicBool) {
    let mut open = true;
    while let Ok(Some(bytes)) = from.recv() {
        // A command that reads no more does not stop its client: the bytes go nowhere, as with a closed pipe.
        open = open && pipe.write_all(&bytes).is_ok();
        if send(port, over, &Frame::Taken(u32::try_from(bytes.len()).unwrap_or(0))).is_err() {
            break;
        }
    }
}

/// Sends both streams until they end, or until the command has ended and nothing more is in them: a program left in
/// the background may hold them open for ever. With `to_end` only their end counts.
fn carry(
    (mut out, mut err): (PipeReader, PipeReader),
    done: &PipeReader,
    to_end: bool,
    port: &Port,
    over: &AtomicBool,
) -> io::Result<()> {
    let (mut out_open, mut err_open, mut ended) = (true, true, false);
    let mut buffer = vec![0; BODY_MAX];
    while out_open || err_open {
        // Of an ended stream poll would report the hang-up again and again: it is left out.
        let watched: Vec<(BorrowedFd<'_>, bool)> = vec![
            (out.as_fd(), out_open),
            (err.as_fd(), err_open),
            (done.as_fd(), !to_end && !ended),
        ];
        let mut polled: Vec<PollFd<'_>> = watched
            .iter()
            .filter(|(_, wanted)| *wanted)
            .map(|(fd, _)| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut polled, if ended { PollTimeout::ZERO } else { PollTimeout::NONE }) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
            Ok(0) => return Ok(()),
            Ok(_) => {}
        }
        let mut ready = polled.iter().map(|fd| fd.any().unwrap_or(false));
        let mut next = |wanted: bool| wanted && ready.next().unwrap_or(false);
        let (out_ready, err_ready, done_ready) = (next(out_open), next(err_open), next(!to_end && !ended));
        ended |= done_ready;
        if out_ready {
            let count = out.read(&mut buffer)?;
            out_open = count > 0;
            if out_open {
                send(port, over, &Frame::Out(buffer[..count].to_vec()))?;
            }
        }
        if err_ready {
            let count = err.read(&mut buffer)?;
            err_open = count > 0;
            if err_open {
                send(port, over, &Frame::Err(buffer[..count].to_vec()))?;
            }
        }
    }
    // Both streams closed early: the exit status is still to come.
    let mut end = [0];
    let _end_of_file = (&mut &*done).read(&mut end)?;
    Ok(())
}
