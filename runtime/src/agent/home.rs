//! The thread that listens to home: replies go straight on to the bodies, orders to the tracer.

use super::shared::{Command, Shared};
use super::{mapping, proc_text, serve};
use crate::link::Frame;
use mosix_wire::link::{ToHome, ToHost};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Serves the session until it is over.
pub fn run(shared: &Arc<Shared>) {
    let mut frame = Frame::default();
    let why = loop {
        if let Err(closed) = shared.session.recv_into(&mut frame) {
            break closed.to_string();
        }
        match frame.message::<ToHost>() {
            Ok(message) => {
                if let Err(why) = take(shared, message, &frame.payload) {
                    break why;
                }
            }
            // Whoever sends such things is not the home that this agent knows.
            Err(error) => break format!("home sends what this agent cannot read: {error}"),
        }
    };
    shared.command(Command::HomeGone(why));
}

fn take(shared: &Arc<Shared>, message: ToHost, payload: &[u8]) -> Result<(), String> {
    match message {
        // A signal that left home before an answer is in the body before it: a program that signals itself counts on that.
        ToHost::Reply(reply) if shared.signals.load(Ordering::Acquire) > 0 => {
            shared.command(Command::Reply(reply, payload.to_vec()));
        }
        ToHost::Reply(reply) => serve::replied(shared, &reply, payload),
        ToHost::Signal { .. } => {
            shared.signals.fetch_add(1, Ordering::AcqRel);
            shared.command(Command::Home(message));
        }
        ToHost::Hello { job, home, .. } if job != shared.config.job || home != shared.config.home => {
            return Err("home has begun another life".to_owned());
        }
        ToHost::Hello { ref clocks, .. } => {
            if let Ok(now) = super::nest::now() {
                shared.observe(clocks, &now);
            }
            let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
            let agent = shared.life;
            if !shared.tell_at_once(&ToHome::Welcome { agent, kernel }) {
                tracing::warn!(job = %shared.config.job, "an answer to home was not sent");
            }
            shared.command(Command::Home(message));
        }
        ToHost::Clocks(ref clocks) => {
            if let Ok(now) = super::nest::now() {
                shared.observe(clocks, &now);
            }
        }
        ToHost::AskProc { number, pid, tid, file } => proc_text::answer(shared, number, pid, tid, file),
        ToHost::MapFile { pid, tid, answer } => mapping::answered(shared, (pid, tid), answer),
        ToHost::FileBytes { file, offset, last } => mapping::bytes(shared, &file, offset, payload, last)?,
        ToHost::NoFile(file) => mapping::lost(shared, &file),
        ToHost::Expect {
            ref from, fingerprint, ..
        } => {
            shared.expect(from.clone(), mosix_wire::control::Fingerprint(fingerprint));
            shared.command(Command::Home(message));
        }
        message => shared.command(Command::Home(message)),
    }
    Ok(())
}
