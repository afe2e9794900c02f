//! Images on their way: the workers that stream them, and what their words lead to.

use super::*;
use crate::reason::probe;
use crate::transfer;

impl HomeEngine {
    pub(super) fn send_here(&mut self, cx: &mut Cx<'_>, pid: i32, to: NodeName, attempt: Epoch) -> Result<(), String> {
        let hosts = self.hosts(cx.handle).map_err(|error| error.to_string())?;
        let Some(process) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        process.deadline = Some(Instant::now() + TRANSFER);
        let errand = process.errand(attempt, to, transfer::resident(pid));
        let sender = outgoing::start(hosts, cx.handle.clone(), errand).map_err(|error| error.to_string())?;
        process.outgoing = Some(sender);
        Ok(())
    }

    pub(super) fn build_here(&mut self, cx: &mut Cx<'_>, pid: i32, attempt: Epoch) -> Result<(), String> {
        let hosts = self.hosts(cx.handle).map_err(|error| error.to_string())?;
        let Some(process) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        let Some((node, _)) = process.state.accepted() else {
            return Err("the body is nowhere".to_owned());
        };
        process.deadline = Some(Instant::now() + TRANSFER);
        let from = node.clone();
        if process.journey.is_none() {
            process.journey = Some(Journey {
                reply: None,
                from: Place::Node(from.clone()),
                to: Place::Home,
                begun: Instant::now(),
                frozen: None,
                thawed: None,
                bytes: 0,
                why: None,
                reason: None,
            });
        }
        let resident = self.shared.placement(pid).usage.resident;
        let errand = process.errand(attempt, from, resident.max(process.carried));
        let sender = incoming::start(hosts, cx.handle.clone(), errand).map_err(|error| error.to_string())?;
        process.incoming = Some(sender);
        Ok(())
    }

    /// A worker is ready to send: freeze and capture.
    pub(super) fn prepared(&mut self, cx: &mut Cx<'_>, pid: i32, attempt: Epoch) {
        let nonce = self.nonce;
        let shared = Arc::clone(&self.shared);
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let Some(sender) = process.outgoing.take() else { return };
        let (spent, accounts) = (self.accounts.own(pid), Arc::clone(&self.accounts));
        let handle = cx.handle.clone();
        let linger = Box::new(move |ended| handle.message(Message::Lingered(pid, ended)));
        let judged = || probe::memory(pid, &processes::groups_of(&shared));
        match process.depart((attempt, nonce), spent, judged, |window| {
            Deputy::new(pid, window, linger, accounts)
        }) {
            Ok(outgoing) => {
                self.shared.place(pid, |placement| placement.stuck = None);
                fault::at("home.frozen");
                // A worker that is gone has said why.
                let _ = sender.send(outgoing);
            }
            Err(error) => {
                let why = error.why();
                // What comes and goes is found again by whoever asks; the rest only a freeze can see.
                let lasting = why.clone().filter(|_| error.hidden());
                self.shared.place(pid, |placement| placement.stuck = lasting);
                if let Some(journey) = self.journey(pid) {
                    journey.reason = why;
                }
                self.fail(pid, &error.to_string());
                self.step(cx, pid, HomeEvent::ImageFailed(attempt));
            }
        }
    }

    /// The image of a returning body is here: prepare the deputy's memory map.
    pub(super) fn image(
        &mut self,
        cx: &mut Cx<'_>,
        pid: i32,
        attempt: Epoch,
        image: Box<mosix_wire::image::ProcessImage>,
    ) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if let Some(journey) = &mut process.journey {
            journey.frozen.get_or_insert_with(Instant::now);
        }
        let mut image = image;
        if let Err(error) = crate::cpu::settle(&mut image) {
            self.fail(pid, &error.to_string());
            return self.step(cx, pid, HomeEvent::ImageFailed(attempt));
        }
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        match home::repair(process, &image) {
            Ok(ready) => {
                process.returning = Some(image);
                process.dropped = false;
                if let Some(sender) = process.incoming.take() {
                    let _ = sender.send(ready);
                }
            }
            Err(error) => {
                self.fail(pid, &error.to_string());
                self.step(cx, pid, HomeEvent::ImageFailed(attempt));
            }
        }
    }

    /// All pages are back: the rest of the process's own state, then the commit.
    pub(super) fn landed(&mut self, cx: &mut Cx<'_>, pid: i32, attempt: Epoch, bytes: u64) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if process.state.accepted().is_some() {
            // Calls that the body made before it froze may still be on their way; what follows counts on having seen them all.
            process.landed = Some((attempt, bytes));
            return;
        }
        process.landed = None;
        if let Some(journey) = &mut process.journey {
            journey.bytes = bytes;
        }
        let Some(mut image) = process.returning.take() else {
            return;
        };
        let dressed = home::dress(process, &mut image);
        self.bury_unmade(pid);
        match dressed {
            Ok(()) => {
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.returning = Some(image);
                }
                self.step(cx, pid, HomeEvent::BuiltHere(attempt));
            }
            Err(error) => {
                self.fail(pid, &error.to_string());
                self.step(cx, pid, HomeEvent::ImageFailed(attempt));
            }
        }
    }
}
