//! Connections that the node's daemon hands over: home's session, images that arrive, images that home fetches.
//!
//! Whoever dialled is a stranger until the handshake: the supervisor shows the certificate that this agent was started with, another
//! agent the one that home announced.

use super::depart::Streams;
use super::files::Files;
use super::shared::{Command, Shared, lock};
use crate::link::{Frame, LinkError, Receiver, Sender, Stream};
use crate::node::Incoming;
use crate::process::landing::Landing;
use mosix_wire::control::{Purpose, reason};
use mosix_wire::frame::encode_body;
use mosix_wire::ids::{Epoch, NodeName, Pid, Tid};
use mosix_wire::image::{FileRef, ProcessImage};
use mosix_wire::limits;
use mosix_wire::link::{Destination, ToHome, ToHost};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Connections at once: more than any job moves processes at a time.
const MOST: usize = 256;
/// How long a stream of another agent may be here before home's word about it.
const ANNOUNCED: Duration = Duration::from_secs(10);
/// How long a lane may be here before the image whose pages it brings, or before home asks for the body it fetches: as long as the slowest
/// freeze.
const LANE: Duration = Duration::from_secs(60);
/// How long lanes may take beyond the stream with the image.
const LANES_END: Duration = Duration::from_secs(60);
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
                files: Files::default(),
                prepared: None,
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
    /// Files that come on it.
    files: Files,
    /// What was asked to be prepared.
    prepared: Option<(Pid, Epoch)>,
}

/// An image that is being received.
struct Arrival {
    pid: Pid,
    epoch: Epoch,
    /// Pages that came on this stream.
    pages: u64,
    landing: Arc<Landing>,
}

impl Pages<'_> {
    fn run(mut self) -> Result<(), String> {
        let done = self.receive();
        if let Some((pid, epoch)) = self.prepared.take() {
            self.shared.command(Command::Unprepare(pid, epoch));
        }
        let arrival = self.arrival.take();
        if let Some(arrival) = &arrival {
            self.shared.lanes.close((arrival.pid, arrival.epoch));
        }
        if let Err(why) = &done {
            if let Some(arrival) = arrival {
                arrival.landing.fail(why);
                self.shared
                    .command(Command::Broken(arrival.pid, arrival.epoch, why.clone()));
            } else if self.tx.is_some() && self.image.0.0 > 0 {
                // The sender may have sent all of it and look for no answer here.
                let (pid, epoch) = self.image;
                let reason = reason(why);
                self.shared.tell(&ToHome::Refused { pid, epoch, reason }, &[]);
            }
            self.shared.lanes.refuse(self.image);
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
        let mut frame = Frame::default();
        loop {
            self.rx.recv_into(&mut frame).map_err(|error| error.to_string())?;
            let message = frame.message::<ToHost>().map_err(|error| error.to_string())?;
            match message {
                ToHost::Files { pid, epoch, files } => self.offered((pid, epoch), &files)?,
                ToHost::FileBytes { file, offset, last } => {
                    let taken = self.files.take(&file, offset, &frame.payload, last);
                    taken.map_err(|error| error.to_string())?;
                    if last {
                        // Another stream may have brought it meanwhile.
                        lock(&self.shared.files).adopt(&mut self.files, &file);
                    }
                }
                ToHost::Prepare {
                    pid,
                    epoch,
                    files,
                    threads,
                    clocks,
                } => {
                    // Another agent knows home's clocks from home, no better than this one.
                    if self.node.is_none() {
                        let now = super::nest::now().map_err(|error| error.to_string())?;
                        self.shared.observe(&clocks, &now);
                    }
                    self.prepare(pid, epoch, files, threads)?;
                }
                ToHost::Arrive(image) => self.begin(image)?,
                ToHost::Pages { pid, runs } => {
                    let arrival = self.arrival.as_mut().filter(|arrival| arrival.pid == pid);
                    let arrival = arrival.ok_or("pages of no image")?;
                    arrival.pages += arrival.landing.take(&runs, &frame.payload)?;
                }
                ToHost::ImageEnd { pid, pages, lanes } => return self.end(pid, pages, lanes),
                ToHost::Lane { pid, epoch, fetch } => return self.lane(pid, epoch, fetch, frame),
                ToHost::Depart {
                    pid,
                    epoch,
                    to: Destination::Home,
                    lanes,
                    ..
                } if self.node.is_none() => {
                    let image = *self.tx.take().ok_or("the stream is used")?;
                    let lanes = self.shared.lanes.take((pid, epoch), lanes.into(), LANE);
                    let lanes = lanes.ok_or("lanes that home has announced do not come")?;
                    let streams = Box::new(Streams { image, lanes });
                    self.shared.command(Command::DepartHome { pid, epoch, streams });
                    // Nothing more comes; the end of the stream is the sender's business.
                    return Ok(());
                }
                _ => return Err("a message that does not belong on a page stream".to_owned()),
            }
        }
    }

    /// Says which files of an image to come are lacking here.
    fn offered(&mut self, image: (Pid, Epoch), files: &[FileRef]) -> Result<(), String> {
        self.image = image;
        let missing = lock(&self.shared.files).missing(files);
        let lacks = self.files.lacks(&missing).map_err(|error| error.to_string())?;
        let body = encode_body(&ToHome::Lacks(lacks)).map_err(|error| error.to_string())?;
        let tx = self.tx.as_mut().ok_or("the stream is used")?;
        tx.send(&body, &[]).map_err(|error| error.to_string())
    }

    fn prepare(&mut self, pid: Pid, epoch: Epoch, files: Vec<FileRef>, threads: Vec<Tid>) -> Result<(), String> {
        let leader = threads.first().is_some_and(|leader| leader.0 == pid.0 && pid.0 > 1);
        if self.prepared.is_some() || self.arrival.is_some() || !leader || threads.len() > limits::THREADS {
            return Err("a process cannot be prepared like this".to_owned());
        }
        self.prepared = Some((pid, epoch));
        self.shared.command(Command::Prepare(pid, epoch, files, threads));
        Ok(())
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
        let landing = Arc::new(Landing::new(memory, vmas));
        self.shared
            .lanes
            .open((pid, epoch), self.node.clone(), Arc::clone(&landing));
        self.arrival = Some(Arrival {
            pid,
            epoch,
            pages: 0,
            landing,
        });
        Ok(())
    }

    fn end(&mut self, pid: Pid, pages: u64, lanes: u8) -> Result<(), String> {
        let arrival = self.arrival.as_ref().filter(|arrival| arrival.pid == pid);
        let arrival = arrival.ok_or("the end of no image")?;
        if arrival.pages != pages {
            return Err(format!("{} pages came of {pages}", arrival.pages));
        }
        arrival.landing.wait_for_lanes(lanes.into(), LANES_END)?;
        self.shared
            .command(Command::Filled(arrival.pid, arrival.epoch, arrival.landing.bytes()));
        Ok(())
    }

    /// This stream is a lane: pages come here until its end, or it is kept for pages that go.
    fn lane(&mut self, pid: Pid, epoch: Epoch, fetch: bool, mut frame: Frame) -> Result<(), String> {
        if self.arrival.is_some() {
            return Err("a lane on a stream with an image".to_owned());
        }
        let key = (pid, epoch);
        self.image = key;
        if fetch {
            if self.node.is_some() {
                return Err("only home fetches".to_owned());
            }
            let tx = self.tx.take().ok_or("the stream is used")?;
            self.shared.lanes.give(key, *tx);
            return Ok(());
        }
        // What is wrong is said on the stream with the image.
        self.tx = None;
        match self.rx.recv_into(&mut frame) {
            Ok(()) => {}
            // The move was given up before it began.
            Err(LinkError::Closed | LinkError::Cut) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
        let landing = self.shared.lanes.landing(key, &self.node, LANE);
        let landing = landing.ok_or("a lane of no image")?;
        let brought = self.bring(pid, &landing, &mut frame);
        match &brought {
            Ok(()) => landing.lane_ended(),
            Err(why) => {
                landing.fail(why);
                self.shared.command(Command::Broken(pid, epoch, why.clone()));
            }
        }
        brought
    }

    fn bring(&mut self, pid: Pid, landing: &Landing, frame: &mut Frame) -> Result<(), String> {
        let mut count = 0;
        loop {
            match frame.message::<ToHost>().map_err(|error| error.to_string())? {
                ToHost::Pages { pid: of, runs } if of == pid => count += landing.take(&runs, &frame.payload)?,
                ToHost::ImageEnd {
                    pid: of,
                    pages,
                    lanes: 0,
                } if of == pid && pages == count => return Ok(()),
                _ => return Err("something else than pages on a lane, or not all of them".to_owned()),
            }
            self.rx.recv_into(frame).map_err(|error| error.to_string())?;
        }
    }
}
