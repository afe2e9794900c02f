//! The exec server of a guest: serves `cargo xtask vm exec` on the virtio-serial ports named `mosix.exec.N`.
//!
//! A static program of its own and not a shell protocol: output is binary, exit codes are exact, and several commands
//! run at a time, each on its own port. A client that goes away takes its command with it (SIGHUP, then SIGKILL to the
//! command's process group); what a finished command left in the background lives on.
#![forbid(unsafe_code)]

#[path = "../protocol.rs"]
#[allow(dead_code, reason = "each side uses its half")]
mod protocol;
mod session;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use protocol::{Frame, PORTS, port_name, read_frame, write_frame};
use session::Session;

/// Pause between two looks at a port that no client has open. The kernel offers no blocking wait for that.
const IDLE: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let servers: Vec<_> = (0..PORTS).map(|index| thread::spawn(move || serve(index))).collect();
    for server in servers {
        if let Ok(Err(error)) = server.join() {
            eprintln!("vm-guest: {error}");
        }
    }
    ExitCode::FAILURE
}

/// The write side of a port, shared by the threads of one session.
#[derive(Clone)]
pub struct Port(Arc<Mutex<File>>);

impl Port {
    /// Sends one frame, after those that other threads are sending.
    pub fn send(&self, frame: &Frame) -> io::Result<()> {
        write_frame(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), frame)
    }
}

/// The read side of a port: an absent client is waited for, and told to `on_close` once.
struct Input<'a> {
    file: File,
    buffer: Vec<u8>,
    at: usize,
    session: &'a Mutex<Option<Session>>,
}

impl Read for Input<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.buffer.len() {
            self.buffer.resize(4096, 0);
            match self.file.read(&mut self.buffer) {
                // No client: what it had started ends.
                Ok(0) => {
                    self.buffer.clear();
                    end(self.session);
                    thread::sleep(IDLE);
                }
                Ok(count) => self.buffer.truncate(count),
                Err(error) => {
                    self.buffer.clear();
                    return Err(error);
                }
            }
            self.at = 0;
        }
        let count = into.len().min(self.buffer.len() - self.at);
        into[..count].copy_from_slice(&self.buffer[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

fn end(session: &Mutex<Option<Session>>) {
    if let Some(session) = session.lock().unwrap_or_else(PoisonError::into_inner).take() {
        session.end();
    }
}

fn serve(index: usize) -> io::Result<()> {
    let path = find_port(&port_name(index))?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let port = Port(Arc::new(Mutex::new(file.try_clone()?)));
    let session = Mutex::new(None);
    let mut input = Input {
        file,
        buffer: Vec::new(),
        at: 0,
        session: &session,
    };
    loop {
        match read_frame(&mut input) {
            Ok(Frame::Hello(nonce)) => {
                end(&session);
                port.send(&Frame::Hello(nonce))?;
            }
            Ok(Frame::Exec(request)) => {
                end(&session);
                match Session::start(&request, port.clone()) {
                    Ok(started) => *session.lock().unwrap_or_else(PoisonError::into_inner) = Some(started),
                    Err(error) => {
                        port.send(&Frame::Failed(error.raw_os_error().unwrap_or(0), error.to_string()))?;
                    }
                }
            }
            Ok(Frame::Stdin(bytes)) => {
                if let Some(session) = &*session.lock().unwrap_or_else(PoisonError::into_inner) {
                    session.stdin(Some(bytes));
                }
            }
            Ok(Frame::StdinEnd) => {
                if let Some(session) = &*session.lock().unwrap_or_else(PoisonError::into_inner) {
                    session.stdin(None);
                }
            }
            // Left over from a client that was cut off: the next Hello puts it right.
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Device of the port called `name`. Waits a little: the driver names the ports one by one.
fn find_port(name: &str) -> io::Result<PathBuf> {
    for _ in 0..500 {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            if fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim() == name) {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        thread::sleep(IDLE);
    }
    io::stderr().flush()?;
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("no virtio-serial port named {name}"),
    ))
}
