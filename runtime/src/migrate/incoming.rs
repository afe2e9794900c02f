//! The worker thread of a return: asks the host for the body, receives its image, and writes its pages into the deputy.

use super::Message;
use super::hosts::Hosts;
use super::outgoing::Errand;
use crate::fault;
use crate::process::landing::Landing;
use crate::supervisor::engine::Handle;
use crate::transfer::{self, Failure};
use mosix_sys::procmem::ProcMem;
use mosix_wire::ids::Pid;
use mosix_wire::link::{Destination, ToHome, ToHost};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// The deputy's memory is as the body's: pages may be written.
#[derive(Debug)]
pub struct Ready {
    /// Where pages go.
    pub memory: ProcMem,
    /// Ranges to fill from files of home first: address, bytes, file, offset.
    pub fills: Vec<(u64, u64, Arc<File>, u64)>,
}

/// Starts the worker; the returned sender tells it that the deputy is ready for pages.
///
/// # Errors
/// When no thread can be created.
pub fn start(hosts: Arc<Hosts>, handle: Handle<Message>, errand: Errand) -> std::io::Result<Sender<Ready>> {
    let (tx, rx) = channel();
    std::thread::Builder::new()
        .name(format!("in-{}", errand.pid))
        .spawn(move || {
            let (pid, attempt) = (errand.pid, errand.attempt);
            match run(&hosts, &handle, &errand, &rx) {
                Ok(Some(bytes)) => handle.message(Message::Landed { pid, attempt, bytes }),
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

fn run(
    hosts: &Arc<Hosts>,
    handle: &Handle<Message>,
    errand: &Errand,
    ready: &Receiver<Ready>,
) -> Result<Option<u64>, Failure> {
    let pid = Pid(errand.pid);
    errand.progress("freezing", 0, 0);
    let waiting = |what: &str| errand.progress(what, 0, 0);
    let mut stream = hosts.pages(&errand.to, waiting)?;
    let lanes = transfer::open_lanes(transfer::lanes_for(errand.bytes), (pid, errand.attempt), true, || {
        Ok(hosts.pages(&errand.to, waiting)?)
    })?;
    let ask = ToHost::Depart {
        pid,
        epoch: errand.attempt,
        to: Destination::Home,
        known_files: Vec::new(),
        lanes: lanes.len() as u8,
    };
    stream.send(&postcard::to_stdvec(&ask)?, &[])?;
    let vmas = match stream.recv()?.message::<ToHome>()? {
        ToHome::Departing(image) if image.pid == pid && image.epoch == errand.attempt => {
            fault::at("home.receiving");
            let vmas = image.vmas.clone();
            handle.message(Message::Image {
                pid: errand.pid,
                attempt: errand.attempt,
                image,
            });
            vmas
        }
        ToHome::CannotDepart { reason, .. } => return Err(reason.into()),
        _ => return Err("the host sent something else than the image".into()),
    };
    let Ok(ready) = ready.recv() else { return Ok(None) };
    prepare(&ready)?;
    let landing = Landing::new(ready.memory, vmas);
    let (_, mut stream) = stream.split();
    let lanes = lanes.into_iter().map(|lane| lane.split().1).collect();
    let progress = errand.of_memory(0);
    let bytes = transfer::receive_all(pid, &mut stream, lanes, &landing, &progress)?;
    fault::at("home.landed");
    Ok(Some(bytes))
}

/// Bytes of a file that are read at once.
const FILL: u64 = 1 << 20;

fn prepare(ready: &Ready) -> Result<(), Failure> {
    for (start, length, source, offset) in &ready.fills {
        let mut buffer = vec![0; (*length).min(FILL) as usize];
        let mut done = 0;
        while done < *length {
            let room = (*length - done).min(FILL) as usize;
            match source.read_at(&mut buffer[..room], offset + done)? {
                0 => break,
                count => {
                    ready.memory.write(start + done, &buffer[..count])?;
                    done += count as u64;
                }
            }
        }
    }
    Ok(())
}
