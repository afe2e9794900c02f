//! Connections that the node's daemon hands over: home's session, images that arrive, images that home fetches.
//!
//! Whoever dialled is a stranger until the handshake: the supervisor shows the certificate that this agent was started with, another
//! agent the one that home announced.

use super::check;
use super::shared::{Command, Shared, lock};
use crate::link::{Frame, LinkError, Receiver, Sender, Stream};
use crate::node::Incoming;
use mosix_sys::procmem::ProcMem;
use mosix_wire::control::{Purpose, reason};
use mosix_wire::frame::encode_body;
use mosix_wire::ids::{Epoch, NodeName, Pid};
use mosix_wire::image::{ProcessImage, Vma};
use mosix_wire::link::{Destination, ToHome, ToHost};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver as Queue, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Connections at once: more than any job moves processes at a time.
const MOST: usize = 256;
/// How long a stream of another agent may be here before home's word about it.
const ANNOUNCED: Duration = Duration::from_secs(10);
/// Page runs between the receiving and the writing thread.
const QUEUE: usize = 8;
const PAGE: u64 = 4096;
/// How long a stream that was refused is still read.
const LAST_WORDS: Duration = Duration::from_secs(5);

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Serves a connection on a thread of its own.
pub fn serve(shared: &Arc<Shared>, incoming: Incoming) {
    if OPEN.fetch_add(1, Ordering::AcqRel) >= MOST {
        OPEN.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!(from = %incoming.hello.from, "too many connections");
        return;
    }
    let counting = Some(&incoming.hello.from).filter(|from| **from != shared.config.home_node);
    let counting = counting.cloned();
    if let Some(node) = &counting {
        shared.count_stream(node, 1);
    }
    let (serving, counted) = (Arc::clone(shared), counting.clone());
    let started = std::thread::Builder::new().name("stream".to_owned()).spawn(move || {
        let from = incoming.hello.from.clone();
        if let Err(error) = connection(&serving, incoming) {
            tracing::warn!(%from, error, "a connection ended");
        }
        if let Some(node) = counted {
            serving.count_stream(&node, -1);
        }
        OPEN.fetch_sub(1, Ordering::AcqRel);
    });
    if let Err(error) = started {
        OPEN.fetch_sub(1, Ordering::AcqRel);
        if let Some(node) = counting {
            shared.count_stream(&node, -1);
        }
        tracing::warn!(%error, "no thread for a connection");
    }
}

fn connection(shared: &Arc<Shared>, incoming: Incoming) -> Result<(), String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let from_home = incoming.hello.from == shared.config.home_node;
    let peer = if from_home {
        shared.config.supervisor
    } else {
        let announced = shared.expected(&incoming.hello.from, ANNOUNCED);
        announced.ok_or_else(|| "home has not announced it".to_owned())?
    };
    let security = shared.security(peer).map_err(|e| words(&e))?;
    let stream = Stream::accept(incoming.fd, &security).map_err(|e| words(&e))?;
    match incoming.hello.purpose {
        Purpose::Session if from_home => shared.session.attach(stream).map_err(|e| words(&e)),
        Purpose::Session => Err("only home has a session".to_owned()),
        Purpose::Pages => {
            let (tx, rx) = stream.split();
            let node = (!from_home).then_some(incoming.hello.from);
            Pages {
                shared,
                node,
                tx: Some(Box::new(tx)),
                rx,
                arrival: None,
                image: (Pid(0), Epoch(0)),
            }
            .run()
        }
    }
}

/// A page stream.
struct Pages<'a> {
    shared: &'a Arc<Shared>,
    /// The other agent's node, when it is not home.
    node: Option<NodeName>,
    tx: Option<Box<Sender>>,
    rx: Receiver,
    arrival: Option<Arrival>,
    /// The image that it is about, once known.
    image: (Pid, Epoch),
}

/// An image that is being received.
struct Arrival {
    pid: Pid,
    epoch: Epoch,
    vmas: Vec<Vma>,
    pages: u64,
    runs: SyncSender<(u64, Vec<u8>)>,
    writer: std::thread::JoinHandle<Result<(), String>>,
}

impl Pages<'_> {
    fn run(mut self) -> Result<(), String> {
        let done = self.receive();
        if let Err(why) = &done {
            if let Some(arrival) = self.arrival.take() {
                self.shared
                    .command(Command::Broken(arrival.pid, arrival.epoch, why.clone()));
            }
            self.refuse(why);
        }
        done
    }

    /// Says why this stream ends. What is still under way on it is taken for a while, else a reset by the kernel would overtake the reason.
    fn refuse(&mut self, why: &str) {
        let Some(tx) = &mut self.tx else { return };
        let (pid, epoch) = self.image;
        let reason = reason(why);
        let said = encode_body(&ToHome::Refused { pid, epoch, reason })
            .map_err(LinkError::from)
            .and_then(|body| tx.send(&body, &[]))
            .and_then(|()| tx.finish());
        let deadline = Instant::now() + LAST_WORDS;
        let mut frame = Frame::default();
        let _ = self.rx.socket().set_timeout(Some(LAST_WORDS), None);
        while said.is_ok() && Instant::now() < deadline && self.rx.recv_into(&mut frame).is_ok() {}
    }

    fn receive(&mut self) -> Result<(), String> {
        loop {
            let mut frame = self.rx.recv().map_err(|error| error.to_string())?;
            let message = frame.message::<ToHost>().map_err(|error| error.to_string())?;
            match message {
                ToHost::Files(files) => {
                    let lacks = lock(&self.shared.files)
                        .lacks(&files)
                        .map_err(|error| error.to_string())?;
                    let body = encode_body(&ToHome::Lacks(lacks)).map_err(|error| error.to_string())?;
                    let tx = self.tx.as_mut().ok_or("the stream is used")?;
                    tx.send(&body, &[]).map_err(|error| error.to_string())?;
                }
                ToHost::FileBytes { file, offset, last } => {
                    let mut files = lock(&self.shared.files);
                    files
                        .take(&file, offset, &frame.payload, last)
                        .map_err(|error| error.to_string())?;
                }
                ToHost::Arrive(image) => self.begin(image)?,
                ToHost::Pages { pid, address } => self.pages(pid, address, std::mem::take(&mut frame.payload))?,
                ToHost::ImageEnd { pid, pages } => return self.end(pid, pages),
                ToHost::Depart {
                    pid,
                    epoch,
                    to: Destination::Home,
                    ..
                } if self.node.is_none() => {
                    let stream = self.tx.take().ok_or("the stream is used")?;
                    self.shared.command(Command::DepartHome { pid, epoch, stream });
                    // Nothing more comes; the end of the stream is the sender's business.
                    return Ok(());
                }
                _ => return Err("a message that does not belong on a page stream".to_owned()),
            }
        }
    }

    fn begin(&mut self, image: Box<ProcessImage>) -> Result<(), String> {
        if self.arrival.is_some() {
            return Err("a second image on one stream".to_owned());
        }
        let (pid, epoch) = (image.pid, image.epoch);
        self.image = (pid, epoch);
        if image.home != self.shared.config.home || image.uid != self.shared.config.uid {
            return Err("an image of another home".to_owned());
        }
        let vmas = image.vmas.clone();
        let (answer, place) = sync_channel(1);
        self.shared.command(Command::Arrive {
            image,
            from: self.node.clone(),
            answer,
        });
        let memory = place.recv().map_err(|_| "the agent ends".to_owned())??;
        let (runs, queue) = sync_channel(QUEUE);
        let writer = std::thread::Builder::new().name(format!("pages {pid}"));
        let writer = writer
            .spawn(move || write(&memory, &queue))
            .map_err(|error| error.to_string())?;
        self.arrival = Some(Arrival {
            pid,
            epoch,
            vmas,
            pages: 0,
            runs,
            writer,
        });
        Ok(())
    }

    fn pages(&mut self, pid: Pid, address: u64, bytes: Vec<u8>) -> Result<(), String> {
        let arrival = self
            .arrival
            .as_mut()
            .filter(|arrival| arrival.pid == pid)
            .ok_or("pages of no image")?;
        let length = bytes.len() as u64;
        let whole = address.is_multiple_of(PAGE) && length.is_multiple_of(PAGE);
        if !whole || !check::covered(&arrival.vmas, address, length) {
            return Err(format!("pages at {address:#x} that belong to no mapping"));
        }
        arrival.pages += length / PAGE;
        // The writer's own error is the better one; it is asked for at the end.
        arrival
            .runs
            .send((address, bytes))
            .map_err(|_| "the pages could not be written".to_owned())
    }

    fn end(&mut self, pid: Pid, pages: u64) -> Result<(), String> {
        let arrival = self
            .arrival
            .take_if(|arrival| arrival.pid == pid)
            .ok_or("the end of no image")?;
        let broken = |why: String| {
            self.shared
                .command(Command::Broken(arrival.pid, arrival.epoch, why.clone()));
            Err(why)
        };
        drop(arrival.runs);
        match arrival.writer.join() {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return broken(why),
            Err(_) => return broken("the writing thread failed".to_owned()),
        }
        if arrival.pages != pages {
            return broken(format!("{} pages came of {pages}", arrival.pages));
        }
        self.shared
            .command(Command::Filled(arrival.pid, arrival.epoch, pages.saturating_mul(4096)));
        Ok(())
    }
}

fn write(memory: &ProcMem, queue: &Queue<(u64, Vec<u8>)>) -> Result<(), String> {
    for (address, bytes) in queue {
        memory
            .write(address, &bytes)
            .map_err(|error| format!("writing pages at {address:#x}: {error}"))?;
    }
    Ok(())
}
