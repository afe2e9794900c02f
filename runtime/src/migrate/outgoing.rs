//! The worker thread of a departure from home: connects, sends files, then the image and its pages.

use super::Message;
use super::hosts::Hosts;
use crate::fault;
use crate::link::Stream;
use crate::process::layout::{self, Run};
use crate::process::memory::Feed;
use crate::process::{capture, maps};
use crate::supervisor::engine::{Handle, Reply};
use crate::transfer::{self, Failure, Way};
use mosix_sys::procmem::ProcMem;
use mosix_wire::ids::{Epoch, NodeName, Pid, Tid};
use mosix_wire::image::{FileRef, ProcessImage};
use mosix_wire::job::{Answer, Progress};
use mosix_wire::link::{ToHome, ToHost};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// A frozen and captured process, to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// The image.
    pub image: Box<ProcessImage>,
    /// Pages to send.
    pub runs: Vec<Run>,
    /// Where they are read.
    pub memory: ProcMem,
    /// Paths of the image's files at home, in its order.
    pub paths: Vec<String>,
}

/// What a worker is told.
#[derive(Debug, Clone)]
pub struct Errand {
    /// The process.
    pub pid: i32,
    /// Epoch of the image.
    pub attempt: Epoch,
    /// Where to.
    pub to: NodeName,
    /// Who asked, for progress.
    pub reply: Option<Reply>,
    /// About how much memory it has.
    pub bytes: u64,
}

impl Errand {
    /// Tells whoever asked how far the move is.
    pub fn progress(&self, phase: &str, done: u64, total: u64) {
        if let Some(reply) = &self.reply {
            reply.send(Answer::Progress(Progress {
                pid: Pid(self.pid),
                phase: phase.to_owned(),
                done,
                total,
            }));
        }
    }

    /// Tells it of memory, now and then: all streams of the move call what this returns.
    pub fn of_memory(&self, total: u64) -> impl Fn(u64) + Sync {
        let told = AtomicU64::new(0);
        move |done| {
            let part = done >> 24;
            if told.fetch_max(part, Ordering::Relaxed) < part {
                self.progress("memory", done, total);
            }
        }
    }
}

/// Starts the worker; the returned sender takes the captured process once.
///
/// # Errors
/// When no thread can be created.
pub fn start(hosts: Arc<Hosts>, handle: Handle<Message>, errand: Errand) -> std::io::Result<Sender<Outgoing>> {
    let (tx, rx) = channel();
    std::thread::Builder::new()
        .name(format!("out-{}", errand.pid))
        .spawn(move || {
            let (pid, attempt) = (errand.pid, errand.attempt);
            match run(&hosts, &handle, &errand, &rx) {
                Ok(Some(bytes)) => handle.message(Message::Sent { pid, attempt, bytes }),
                // The engine gave up first.
                Ok(None) => {}
                Err(why) => handle.message(Message::Failed {
                    pid,
                    attempt,
                    why: why.to_string(),
                }),
            }
        })?;
    Ok(tx)
}

/// How long a host may take to say why it has ended a stream.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn run(
    hosts: &Arc<Hosts>,
    handle: &Handle<Message>,
    errand: &Errand,
    captured: &Receiver<Outgoing>,
) -> Result<Option<u64>, Failure> {
    errand.progress("connecting", 0, 0);
    hosts.get(&errand.to)?;
    let mut stream = hosts.pages(&errand.to, |what| errand.progress(what, 0, 0))?;
    transfer(&mut stream, hosts, handle, errand, captured).map_err(|error| refusal(&mut stream).unwrap_or(error))
}

/// What the host says to explain why it takes no more.
fn refusal(stream: &mut Stream) -> Option<Failure> {
    stream.socket().set_timeout(Some(LAST_WORDS), None).ok()?;
    match stream.recv().ok()?.message::<ToHome>().ok()? {
        ToHome::Refused { reason, .. } => Some(reason.into()),
        _ => None,
    }
}

fn transfer(
    stream: &mut Stream,
    hosts: &Hosts,
    handle: &Handle<Message>,
    errand: &Errand,
    captured: &Receiver<Outgoing>,
) -> Result<Option<u64>, Failure> {
    fault::at("home.connected");
    let mut known = HashSet::new();
    let mappings = maps::read(errand.pid)?;
    if let Ok(layout) = layout::of_home(errand.pid, &mappings, || None) {
        send_files(stream, &layout.files, &layout.paths, &mut known, errand)?;
        let ahead = ToHost::Prepare {
            pid: Pid(errand.pid),
            epoch: errand.attempt,
            files: layout.files,
            threads: crate::process::freeze::threads(errand.pid)?
                .into_iter()
                .map(Tid)
                .collect(),
            clocks: capture::clocks(),
        };
        send(stream, &ahead, &[])?;
    }
    let host = Pid(errand.pid);
    let lanes = transfer::open_lanes(transfer::lanes_for(errand.bytes), (host, errand.attempt), false, || {
        Ok(hosts.pages(&errand.to, |what| errand.progress(what, 0, 0))?)
    })?;
    handle.message(Message::Prepared {
        pid: errand.pid,
        attempt: errand.attempt,
    });
    let Ok(outgoing) = captured.recv() else { return Ok(None) };
    send_files(stream, &outgoing.image.files, &outgoing.paths, &mut known, errand)?;
    let pid = outgoing.image.pid;
    send(stream, &ToHost::Arrive(outgoing.image), &[])?;
    fault::at("home.sending");
    let feed = Feed::new(&outgoing.memory, &outgoing.runs);
    let lanes: Vec<_> = lanes.into_iter().map(|lane| lane.split().0).collect();
    let count = lanes.len() as u8;
    let progress = errand.of_memory(feed.total());
    let pages = transfer::send((pid, Way::ToHost), &feed, stream.sender(), lanes, &progress)?;
    fault::at("home.sent");
    stream.send(&Way::ToHost.end(pid, pages, count)?, &[])?;
    Ok(Some(feed.sent()))
}

fn send(stream: &mut Stream, message: &ToHost, payload: &[&[u8]]) -> Result<(), Failure> {
    stream.send(&postcard::to_stdvec(message)?, payload)?;
    Ok(())
}

/// Offers files and sends those that the host lacks.
fn send_files(
    stream: &mut Stream,
    files: &[FileRef],
    paths: &[String],
    known: &mut HashSet<FileRef>,
    errand: &Errand,
) -> Result<(), Failure> {
    let fresh: Vec<(&FileRef, &String)> = files
        .iter()
        .zip(paths)
        .filter(|(file, _)| !known.contains(*file))
        .collect();
    if fresh.is_empty() {
        return Ok(());
    }
    send(
        stream,
        &ToHost::Files {
            pid: Pid(errand.pid),
            epoch: errand.attempt,
            files: fresh.iter().map(|(file, _)| (*file).clone()).collect(),
        },
        &[],
    )?;
    let lacks = match stream.recv()?.message::<ToHome>()? {
        ToHome::Lacks(lacks) => lacks,
        ToHome::Refused { reason, .. } => return Err(reason.into()),
        _ => return Err("the host answered something else than which files it lacks".into()),
    };
    let total: u64 = lacks.iter().map(|file| file.size).sum();
    let mut done = 0;
    for file in lacks {
        let path = fresh
            .iter()
            .find(|(offered, _)| **offered == file)
            .map(|(_, path)| path);
        let path = path.ok_or("the host asked for a file that was not offered")?;
        let source = std::fs::File::open(path.as_str()).map_err(|error| format!("{}: {error}", file.path))?;
        transfer::send_file(&file, &source, |head, bytes| {
            done += bytes.len() as u64;
            send(stream, head, &[bytes])
        })?;
        errand.progress("files", done, total);
    }
    known.extend(files.iter().cloned());
    Ok(())
}
