//! The client side of `vm exec`: finds a free port of the guest, runs one command there, carries its streams.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use super::protocol::{BODY_MAX, Frame, PORTS, Request, STDIN_WINDOW, preamble, read_frame, write_frame};

/// A port that is ours until the value is dropped.
struct Port {
    stream: UnixStream,
    _lock: File,
}

/// Takes a free port, waiting until `deadline` for one.
fn take(folder: &Path, deadline: Instant) -> Result<Port> {
    loop {
        for port in 0..PORTS {
            let path = folder.join(format!("exec.{port}.lock"));
            let lock = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
            match lock.try_lock() {
                Ok(()) => {
                    return Ok(Port {
                        stream: connect(folder, port)?,
                        _lock: lock,
                    });
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
        if Instant::now() > deadline {
            bail!("all {PORTS} exec ports are busy: so many commands run in this guest");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Connects by a short name of the folder: a socket address holds 107 bytes.
fn connect(folder: &Path, port: usize) -> Result<UnixStream> {
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_PATH | nix::libc::O_DIRECTORY)
        .open(folder);
    let dir = open.with_context(|| format!("cannot open {}", folder.display()))?;
    let path = format!("/proc/self/fd/{}/exec.{port}", dir.as_raw_fd());
    UnixStream::connect(path).with_context(|| format!("cannot connect to {}/exec.{port}", folder.display()))
}

/// Makes the port's stream ours: everything before the answer belonged to an earlier client.
fn greet(stream: &mut UnixStream, deadline: Instant, alive: &dyn Fn() -> bool) -> Result<()> {
    let clock = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let nonce = (u64::from(clock.subsec_nanos()) << 32) ^ clock.as_secs() ^ u64::from(std::process::id());
    stream.write_all(&preamble())?;
    write_frame(stream, &Frame::Hello(nonce))?;
    let mut patient = Patient {
        stream,
        deadline,
        alive,
    };
    loop {
        match read_frame(&mut patient) {
            Ok(Frame::Hello(answer)) if answer == nonce => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) => return Err(error).context("the guest's exec server does not answer"),
        }
    }
    stream.set_read_timeout(None)?;
    Ok(())
}

/// Reads with a deadline and an eye on QEMU.
struct Patient<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
    alive: &'a dyn Fn() -> bool,
}

impl Read for Patient<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        loop {
            match (&mut &*self.stream).read(into) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                other => return other,
            }
            if Instant::now() > self.deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
            }
            if !(self.alive)() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "QEMU has ended"));
            }
        }
    }
}

/// Waits until the guest of `folder` answers.
pub fn hello(folder: &Path, deadline: Instant, alive: &dyn Fn() -> bool) -> Result<()> {
    let mut port = take(folder, deadline)?;
    greet(&mut port.stream, deadline, alive)
}

/// Where a command's streams go.
pub struct Streams<'a> {
    /// Its stdin; none is empty. Read by a thread that may outlive the command, hence owned.
    pub stdin: Option<Box<dyn Read + Send>>,
    /// Its stdout.
    pub out: &'a mut dyn Write,
    /// Its stderr.
    pub err: &'a mut dyn Write,
}

/// Runs `request` in the guest of `folder`. Returns the exit code; 127 or 126 if the program could not be started.
pub fn run(folder: &Path, request: &Request, streams: Streams<'_>) -> Result<u8> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut port = take(folder, deadline)?;
    greet(&mut port.stream, deadline, &|| true)?;
    write_frame(&mut port.stream, &Frame::Exec(request.clone())).context("sending the command")?;
    let window = Arc::new((Mutex::new(0_usize), Condvar::new()));
    match streams.stdin {
        None => write_frame(&mut port.stream, &Frame::StdinEnd)?,
        Some(from) => {
            let (to, window) = (port.stream.try_clone()?, window.clone());
            thread::spawn(move || feed(from, to, &window));
        }
    }
    let mut from = io::BufReader::with_capacity(64 * 1024, port.stream.try_clone()?);
    loop {
        match read_frame(&mut from).context("the guest is gone")? {
            Frame::Out(bytes) => {
                streams
                    .out
                    .write_all(&bytes)
                    .and_then(|()| streams.out.flush())
                    .context("writing to stdout")?;
            }
            Frame::Err(bytes) => {
                streams
                    .err
                    .write_all(&bytes)
                    .and_then(|()| streams.err.flush())
                    .context("writing to stderr")?;
            }
            Frame::Taken(count) => {
                let mut sent = window.0.lock().unwrap_or_else(PoisonError::into_inner);
                *sent = sent.saturating_sub(count as usize);
                window.1.notify_one();
            }
            Frame::Exit(code) => return Ok(code),
            Frame::Failed(errno, text) => {
                let program = request
                    .argv
                    .first()
                    .map(|name| String::from_utf8_lossy(name))
                    .unwrap_or_default();
                writeln!(streams.err, "vm exec: cannot run {program}: {text}")?;
                return Ok(if errno == nix::libc::ENOENT { 127 } else { 126 });
            }
            other => bail!("unexpected frame from the guest: {other:?}"),
        }
    }
}

/// Runs a shell script in the guest of `folder`. Returns its code and what it said.
pub fn shell(folder: &Path, script: &str, stdin: Option<File>) -> Result<(u8, String)> {
    let request = Request {
        argv: ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec(),
        env: Vec::new(),
        cwd: None,
        to_end: false,
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let stdin = stdin.map(|file| Box::new(file) as Box<dyn Read + Send>);
    let code = run(
        folder,
        &request,
        Streams {
            stdin,
            out: &mut out,
            err: &mut err,
        },
    )?;
    out.extend(err);
    Ok((code, String::from_utf8_lossy(&out).into_owned()))
}

/// Sends stdin, at most a window ahead of what the command has taken.
fn feed(mut from: Box<dyn Read + Send>, mut to: UnixStream, window: &(Mutex<usize>, Condvar)) {
    let mut buffer = vec![0; BODY_MAX];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        let frame = if count == 0 {
            Frame::StdinEnd
        } else {
            Frame::Stdin(buffer[..count].to_vec())
        };
        let sent = window.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |sent: &mut usize| *sent + count > STDIN_WINDOW;
        *window.1.wait_while(sent, full).unwrap_or_else(PoisonError::into_inner) += count;
        // An error is seen by the thread that reads answers.
        if write_frame(&mut to, &frame).is_err() || count == 0 {
            return;
        }
    }
}
