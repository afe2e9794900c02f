//! Programs that a body executes: home's half is all of it. See the contract "creation", Exec.
//!
//! ```text
//!  calls' thread   execve, arguments gathered ──▶ tracer
//!  tracer          what the body's kernel has for the new program: mask, what is ignored, what is pending ──▶ Call
//!                  ◀── Reply: it failed; the body goes on            ◀── Drop: it is another program, and this body ends
//! ```
//! Signals of home that come while the call is open wait for its end: of a new program they are home's to give. Pending signals can be
//! looked at only in a thread that stands still, so a caller for whom some are makes its call twice.

use super::process::Process;
use super::shared::{Command, Shared, lock};
use super::signals::{masks, settle_body};
use crate::process::freeze::{FrozenThread, put_back};
use crate::syscall::marshal::Forward;
use mosix_sys::ptrace::{self, RawSigInfo};
use mosix_wire::call::Exec;
use mosix_wire::image::SigInfo;
use mosix_wire::limits::EXEC_PENDING;
use mosix_wire::link::ToHome;
use std::io;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

/// Pending signals of a body, as one of its threads saw them before it made its call again.
#[derive(Debug)]
pub struct Seen {
    thread: i32,
    process: Vec<RawSigInfo>,
    own: Vec<RawSigInfo>,
}

/// Sends a gathered execve home, with what the new program inherits from this node's kernel.
pub fn forward(shared: &Shared, process: &mut Process, (host, id): (i32, u64), forward: Forward) {
    let Some(calls) = process.calls.clone() else { return };
    if !calls.calls.waits(host, id) {
        return;
    }
    let mut exec = match inherited(shared, process, host) {
        Ok(Some(exec)) => exec,
        Ok(None) => return,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
            return tracing::debug!(pid = %calls.pid, tid = host, "a thread that executes a program is gone");
        }
        Err(error) => {
            tracing::warn!(pid = %calls.pid, tid = host, %error, "a program is executed at home");
            return shared.command(Command::WantHome(calls.pid, forward.call.nr));
        }
    };
    let Forward {
        mut call,
        payload,
        scatter,
        ..
    } = forward;
    for (to, info) in process.signals.undelivered() {
        let info = SigInfo(info.to_vec());
        match to {
            None => exec.pending.push(info),
            Some(to) if to == call.tid => exec.own.push(info),
            Some(_) => {}
        }
    }
    if exec.pending.len().max(exec.own.len()) > EXEC_PENDING {
        return shared.command(Command::WantHome(calls.pid, call.nr));
    }
    let seq = call.seq;
    call.exec = Some(Box::new(exec));
    let _sending = lock(&calls.sending);
    if calls.calls.sent(host, id, seq, scatter, None) != super::calls::Going::No {
        shared.tell(&ToHome::Call(call), &[&payload]);
    }
}

/// What the body's kernel has for the new program; none when the thread makes its call again first.
fn inherited(shared: &Shared, process: &mut Process, host: i32) -> io::Result<Option<Exec>> {
    let masks = masks(host).ok_or(io::ErrorKind::NotFound)?;
    let seen = process.signals.seen.take().filter(|seen| seen.thread == host);
    if masks.pending != 0 && seen.is_none() {
        look(shared, process, host)?;
        return Ok(None);
    }
    let all = |infos: Vec<RawSigInfo>| infos.into_iter().map(|info| SigInfo(info.to_vec())).collect();
    let (pending, own) = seen.map_or_else(Default::default, |seen| (all(seen.process), all(seen.own)));
    Ok(Some(Exec {
        mask: masks.blocked,
        ignored: masks.ignored,
        signals: process.signals.inbox.0,
        pending,
        own,
    }))
}

/// Stops the thread in front of its call to see what is pending, and lets it make the call again.
fn look(shared: &Shared, process: &mut Process, host: i32) -> io::Result<()> {
    process.stop_thread(shared, host, LIMIT)?;
    let stopped = FrozenThread::take(host, None, |regs| settle_body(process, host, regs))?;
    put_back(&stopped)?;
    process.signals.seen = Some(Seen {
        thread: host,
        process: ptrace::pending(host, true)?,
        own: ptrace::pending(host, false)?,
    });
    process.go_on_alone(stopped)
}

/// A call has ended that may have been the execve for whose end signals waited.
pub fn over(shared: &Shared, body: &super::shared::BodyCalls) {
    if !body.calls.executes() {
        shared.command(Command::Late(body.pid));
    }
}
