//! The thread that listens to home: replies go straight on to the bodies, orders to the tracer.

use super::serve;
use super::shared::{Command, Shared, lock};
use crate::link::Frame;
use mosix_wire::frame::encode_body;
use mosix_wire::link::{ToHome, ToHost};
use std::sync::Arc;

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
        ToHost::Reply(reply) => serve::replied(shared, &reply, payload),
        ToHost::Hello { job, home, .. } if job != shared.config.job || home != shared.config.home => {
            return Err("home has begun another life".to_owned());
        }
        ToHost::Hello { ref clocks, .. } => {
            if let Ok(now) = super::nest::now() {
                shared.observe(clocks, &now);
            }
            let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
            answer(
                shared,
                &ToHome::Welcome {
                    agent: shared.life,
                    kernel,
                },
            );
            shared.command(Command::Home(message));
        }
        ToHost::Clocks(ref clocks) => {
            if let Ok(now) = super::nest::now() {
                shared.observe(clocks, &now);
            }
        }
        ToHost::Files(files) => {
            let lacks = lock(&shared.files).lacks(&files).map_err(|error| error.to_string())?;
            answer(shared, &ToHome::Lacks(lacks));
        }
        ToHost::FileBytes { file, offset, last } => {
            lock(&shared.files)
                .take(&file, offset, payload, last)
                .map_err(|error| error.to_string())?;
        }
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

/// Says something from the receiving thread, which must not wait for room: acknowledgements arrive on it.
fn answer(shared: &Shared, message: &ToHome) {
    let sent = encode_body(message).map(|body| shared.session.try_send(&body, &[]));
    if !matches!(sent, Ok(Ok(()))) {
        tracing::warn!(job = %shared.config.job, "an answer to home was not sent");
    }
}
