//! The pages of one move over its streams: the one with the image, and beside it lanes, so that more than one core encrypts and copies.
//!
//! Every stream has one thread at either end, which does all of a batch: read, encrypt, send; receive, decrypt, write. No queue is between
//! them but the socket's.

use crate::link::{Frame, LinkError, Receiver, Sender, Stream};
use crate::process::landing::Landing;
use crate::process::memory::{Batch, Feed};
use mosix_wire::frame::encode_body;
use mosix_wire::ids::{Epoch, Pid};
use mosix_wire::image::FileRef;
use mosix_wire::limits::PAGE_RUN;
use mosix_wire::link::{ToHome, ToHost};
use rustix::io::{pread, retry_on_intr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

const PAGE: u64 = 4096;
/// A stream more for so many bytes: below, its handshake costs more than it brings.
const LANE_BYTES: u64 = 3 << 20;
/// Streams of one move: more than four keep no link busier.
const STREAMS: u64 = 4;

/// Why a transfer failed.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Which way pages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To a host.
    ToHost,
    /// To home.
    ToHome,
}

impl Way {
    fn pages(self, pid: Pid, batch: &mut Batch) -> Result<Vec<u8>, LinkError> {
        let runs = std::mem::take(&mut batch.runs);
        Ok(match self {
            Self::ToHost => encode_body(&ToHost::Pages { pid, runs })?,
            Self::ToHome => encode_body(&ToHome::Pages { pid, runs })?,
        })
    }

    /// The end of an image, or of a lane.
    ///
    /// # Errors
    /// None that can happen.
    pub fn end(self, pid: Pid, pages: u64, lanes: u8) -> Result<Vec<u8>, LinkError> {
        Ok(match self {
            Self::ToHost => encode_body(&ToHost::ImageEnd { pid, pages, lanes })?,
            Self::ToHome => encode_body(&ToHome::ImageEnd { pid, pages, lanes })?,
        })
    }
}

/// How many lanes a move of about so many bytes gets.
#[must_use]
pub fn lanes_for(bytes: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    (bytes / LANE_BYTES + 1).min(cores).min(STREAMS) as usize - 1
}

/// Resident bytes of a process; 0 when it is gone.
#[must_use]
pub fn resident(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(PAGE)
}

/// Gives a file to `send` in pieces, each with its head; the last says so. A file that is shorter than it was ends early, and its
/// receiver refuses it.
///
/// # Errors
/// It cannot be read, or `send` failed.
pub fn send_file(
    file: &FileRef,
    source: impl AsFd,
    mut send: impl FnMut(&ToHost, &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut offset, mut buffer) = (0, vec![0; PAGE_RUN]);
    loop {
        let want = usize::try_from(file.size - offset).unwrap_or(PAGE_RUN).min(PAGE_RUN);
        let count = retry_on_intr(|| pread(&source, &mut buffer[..want], offset))?;
        let end = offset + count as u64;
        let head = ToHost::FileBytes {
            file: file.clone(),
            offset,
            last: count == 0 || end == file.size,
        };
        send(&head, &buffer[..count])?;
        if count == 0 || end == file.size {
            return Ok(());
        }
        offset = end;
    }
}

/// Opens lanes, all at once, and says on each what it is.
///
/// # Errors
/// The first that fails.
pub fn open_lanes(
    count: usize,
    (pid, epoch): (Pid, Epoch),
    fetch: bool,
    open: impl Fn() -> Result<Stream, Failure> + Sync,
) -> Result<Vec<Stream>, Failure> {
    let hello = encode_body(&ToHost::Lane { pid, epoch, fetch })?;
    let one = || -> Result<Stream, Failure> {
        let mut stream = open()?;
        stream.send(&hello, &[])?;
        Ok(stream)
    };
    std::thread::scope(|scope| {
        let opening: Vec<_> = (0..count).map(|_| scope.spawn(one)).collect();
        opening
            .into_iter()
            .map(|lane| lane.join().unwrap_or_else(|_| Err("a lane could not be opened".into())))
            .collect()
    })
}

/// Sends all pages over the stream and its lanes, and ends the lanes; gives the pages that went over the stream itself, whose end is the
/// caller's to send. `progress` is told the bytes looked at so far.
///
/// # Errors
/// A stream broke or the process is gone; every lane is then closed.
pub fn send(
    (pid, way): (Pid, Way),
    feed: &Feed<'_>,
    stream: &mut Sender,
    lanes: Vec<Sender>,
    progress: &(impl Fn(u64) + Sync),
) -> Result<u64, Failure> {
    let failed = AtomicBool::new(false);
    let pour = |stream: &mut Sender| -> Result<u64, Failure> {
        let (mut batch, mut pages) = (Batch::default(), 0);
        while !failed.load(Ordering::Relaxed) && feed.next(&mut batch)? {
            let head = way.pages(pid, &mut batch)?;
            stream.send(&head, &batch.payload())?;
            pages += batch.len() as u64 / PAGE;
            progress(feed.done());
        }
        Ok(pages)
    };
    let sockets: Vec<_> = lanes.iter().map(|lane| lane.socket().clone()).collect();
    let failing = |done: &Result<u64, Failure>| {
        if done.is_err() {
            failed.store(true, Ordering::Relaxed);
            sockets.iter().for_each(|socket| socket.shutdown());
        }
    };
    let lane = |mut lane: Sender| {
        let done = pour(&mut lane).and_then(|pages| {
            lane.send(&way.end(pid, pages, 0)?, &[])?;
            lane.finish()?;
            Ok(pages)
        });
        failing(&done);
        done
    };
    let lane = &lane;
    std::thread::scope(|scope| {
        let others: Vec<_> = lanes
            .into_iter()
            .map(|sender| scope.spawn(move || lane(sender)))
            .collect();
        // This stream stays open when it fails: the other side may say on it why.
        let mine = pour(stream);
        failing(&mine);
        let mut outcome = Ok(());
        for other in others {
            outcome = outcome.and(
                other
                    .join()
                    .unwrap_or_else(|_| Err("a lane's thread failed".into()))
                    .map(drop),
            );
        }
        let mine = mine?;
        outcome.map(|()| mine)
    })
}

/// Receives pages at home from a stream until the end of what comes on it; the number of its lanes as the peer says.
///
/// # Errors
/// It broke, or something else came than pages that belong somewhere.
pub fn receive(
    pid: Pid,
    stream: &mut Receiver,
    landing: &Landing,
    progress: &(impl Fn(u64) + Sync),
) -> Result<u8, Failure> {
    let (mut frame, mut count) = (Frame::default(), 0);
    loop {
        stream.recv_into(&mut frame)?;
        match frame.message::<ToHome>()? {
            ToHome::Pages { pid: of, runs } if of == pid => {
                count += landing.take(&runs, &frame.payload)?;
                progress(landing.bytes());
            }
            ToHome::ImageEnd { pid: of, pages, lanes } if of == pid && pages == count => return Ok(lanes),
            ToHome::CannotDepart { reason, .. } => return Err(reason.into()),
            _ => return Err("the host sent something else than pages, or not all of them".into()),
        }
    }
}

/// Receives pages at home from a stream and its lanes; how many bytes there were.
///
/// # Errors
/// Any of them broke or brought something else; none writes any more then.
pub fn receive_all(
    pid: Pid,
    stream: &mut Receiver,
    lanes: Vec<Receiver>,
    landing: &Landing,
    progress: &(impl Fn(u64) + Sync),
) -> Result<u64, Failure> {
    let sockets: Vec<_> = lanes
        .iter()
        .map(|lane| lane.socket().clone())
        .chain([stream.socket().clone()])
        .collect();
    let expected = lanes.len();
    let one = |stream: &mut Receiver| {
        let done = receive(pid, stream, landing, progress);
        if let Err(why) = &done {
            landing.fail(&why.to_string());
            sockets.iter().for_each(|socket| socket.shutdown());
        }
        done
    };
    let one = &one;
    let said = std::thread::scope(|scope| {
        let others: Vec<_> = lanes
            .into_iter()
            .map(|mut lane| scope.spawn(move || one(&mut lane).map(|_| landing.lane_ended())))
            .collect();
        let mine = one(stream);
        for other in others {
            // Its words are in the landing.
            let _ = other.join();
        }
        mine
    });
    landing.wait_for_lanes(expected, std::time::Duration::ZERO)?;
    match said {
        Ok(lanes) if usize::from(lanes) == expected => Ok(landing.bytes()),
        Ok(lanes) => Err(format!("the host sent pages on {lanes} lanes of {expected}").into()),
        Err(why) => Err(why),
    }
}
