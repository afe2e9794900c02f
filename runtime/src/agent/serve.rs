//! The thread that serves the system calls of one body: receive, decide, gather, send home.
//!
//! Nothing else happens on it, because each call of the body waits for it: no wait, no lock that is held across I/O, one message
//! per call. The answer comes back on the session's receiving thread and goes from there to the body.

use super::calls::{Calls, Going, Over, Replied, Step};
use super::family::Family;
use super::guest::Guest;
use super::mapping;
use super::shared::{BodyCalls, Command, Shared, lock};
use super::signals;
use super::tally::{self, How};
use super::usage;
use super::write_back::{self, Step as Sharing};
use crate::deputy::creation;
use crate::process::restart::ERESTARTNOINTR;
use crate::syscall::decide::{Decision, decide};
use crate::syscall::marshal::{Forward, Gathered, Ids, Scatter, gather};
use crate::syscall::memory::GuestMemory;
use crate::syscall::{emulate, table};
use mosix_loader::script::abi::{TEXT_ROOM, WINDOW};
use mosix_sys::notif::{Answer, Notification};
use mosix_wire::call::Reply;
use mosix_wire::ids::{Pid, Seq, Tid};
use mosix_wire::image::SigAction;
use mosix_wire::link::{Exit, ToHome};
use nix::errno::Errno;
use std::sync::Arc;

/// Most calls that are gathered before they are written.
const BATCH: usize = 64;

/// Serves the calls of a family of bodies, of which `pid` came first, until none has a thread left.
pub fn run(shared: &Arc<Shared>, pid: Pid, family: &Family) {
    loop {
        match family.listener.recv(None) {
            Ok(Some(n)) => {
                serve(shared, family, n);
                // The calls of other threads that came meanwhile go home in the same write.
                let mut left = family.count().min(BATCH);
                while left > 1 && family.listener.is_pending() {
                    // Waits when a signal took that call back just now. Then the tracer, which sees the signal, flushes.
                    let Ok(n) = family.listener.recv_now() else { break };
                    serve(shared, family, n);
                    left -= 1;
                }
                shared.session.flush();
            }
            Ok(None) => break,
            Err(error) => {
                tracing::error!(%pid, %error, "the listener of a body failed");
                break;
            }
        }
    }
    shared.command(Command::HungUp(pid));
}

/// Serves one call; what it has to say to home is in the session, in order, when the lock is free again.
fn serve(shared: &Arc<Shared>, family: &Family, n: Notification) {
    let Some(body) = &family.body_of(n.tid) else {
        // Of a body that is being ended; or a thread that nobody announced, of which a family has none.
        let _ = family.listener.send(n.id, Answer::Result(-i64::from(libc::ENOSYS)));
        return;
    };
    let _sending = lock(&body.sending);
    Server { shared, body, n }.serve();
}

/// Whether the call was made by the stub's code.
fn from_stub(n: &Notification) -> bool {
    (WINDOW..=WINDOW + TEXT_ROOM).contains(&n.instruction_pointer)
}

struct Server<'a> {
    shared: &'a Arc<Shared>,
    body: &'a Arc<BodyCalls>,
    n: Notification,
}

impl Server<'_> {
    fn calls(&self) -> &Calls {
        &self.body.calls
    }

    fn serve(&self) {
        match self.calls().received(&self.n, from_stub(&self.n)) {
            Step::Gather(tid, seq) => self.decide(tid, seq),
            Step::Held => {}
            Step::Again(Some((tid, seq))) => self.cancel(tid, seq),
            Step::Again(None) => self.look_under_mask(),
            Step::Answered(over) => match *over {
                Over::Reply(sent, reply, payload) => {
                    finish(self.body, self.n.tid, self.n.id, &sent.scatter, &reply, &payload);
                }
                Over::Result(result) => self.send(Answer::Result(result)),
            },
            Step::Due(over) => match *over {
                Over::Reply(sent, reply, payload) => {
                    due(self.shared, self.body, self.n.tid, &sent.scatter, &reply, &payload);
                }
                Over::Result(result) => self.shared.command(Command::Due(self.body.pid, self.n.tid, result)),
            },
            Step::Rewind => self.send(Answer::Result(ERESTARTNOINTR)),
            Step::Own => self.send(Answer::Continue),
            // A thread that nobody announced: a body has none.
            Step::Unknown => self.send(Answer::Result(-i64::from(libc::ENOSYS))),
        }
    }

    /// Answers without having waited for home.
    fn answer(&self, answer: Answer) {
        settle(self.shared, self.body, self.n.tid, self.n.id, answer);
    }

    fn send(&self, answer: Answer) {
        send(self.body, self.n.tid, self.n.id, answer);
    }

    fn decide(&self, tid: Tid, seq: Seq) {
        let row = table::row(self.n.nr as u32);
        let step = lock(&self.body.watched).judge(self.n.nr, &self.n.args);
        match step {
            Sharing::Usual => {}
            Sharing::PushThenUsual { forget } => {
                // A thread that ends leaves the memory to the others.
                if i64::from(self.n.nr) != libc::SYS_exit || self.calls().count() <= 1 {
                    self.push(forget);
                }
            }
            Sharing::PushThenHome => {
                self.push(false);
                return self.forward(row, tid, seq);
            }
            Sharing::Native => return self.answer(Answer::Continue),
            Sharing::Answer(result) => return self.answer(Answer::Result(result)),
            Sharing::Return(why) => return self.come_home(why),
        }
        match decide(row, &self.n.args) {
            Decision::Native => self.answer(Answer::Continue),
            Decision::Answer(result) => self.answer(Answer::Result(result)),
            Decision::Home | Decision::Both => match self.known(tid) {
                Some(result) => {
                    tally::served(self.body.pid, row, How::Here);
                    self.answer(Answer::Result(result));
                }
                None => self.forward(row, tid, seq),
            },
            Decision::Special => {
                tally::served(self.body.pid, row, How::Here);
                self.special(tid, seq);
            }
            Decision::MapFile => mapping::ask(self.shared, self.body, tid, &self.n),
            Decision::Return(why) => self.come_home(why),
        }
    }

    /// What the body has written to the memory that its call names goes home before the call.
    fn push(&self, forget: bool) {
        let range = write_back::range_of(self.n.nr, &self.n.args);
        write_back::push(self.shared, self.body, &range, forget);
    }

    /// The result of a call that home would have nothing to add to: a CPU clock of the body's own, while its deputy does nothing.
    fn known(&self, tid: Tid) -> Option<i64> {
        let [id, at, ..] = self.n.args;
        let asks = i64::from(self.n.nr) == libc::SYS_clock_gettime;
        let clock = emulate::cpu_clock(id, self.body.pid.0, tid.0).filter(|_| asks)?;
        let ns = usage::clock(self.body, self.n.tid, clock)?;
        Some(usage::tell(self.n.tid, at, ns))
    }

    fn forward(&self, row: &table::Row, tid: Tid, seq: Seq) {
        let ids = Ids {
            pid: self.body.pid,
            tid,
            epoch: self.body.epoch(),
            seq,
        };
        match gather(row, self.n.args, &Guest::of(self.n.tid), ids) {
            Gathered::Errno(errno) => self.answer(Answer::Result(-i64::from(errno))),
            Gathered::ComeHome(why) => self.come_home(why),
            Gathered::Forward(forward) => {
                let Forward {
                    call,
                    payload,
                    scatter,
                    temp_mask,
                } = *forward;
                // What was read may be another thread's by now, if the caller died meanwhile.
                if call.size > 0 && !self.body.listener().is_valid(self.n.id) {
                    return;
                }
                let masked = temp_mask.is_some();
                let going = self.calls().sent(self.n.tid, self.n.id, seq, scatter, temp_mask);
                if going != Going::No {
                    tally::served(self.body.pid, row, How::Home);
                    self.shared.tell_later(&ToHome::Call(call), &[&payload]);
                }
                match going {
                    Going::Cancel => self.cancel(tid, seq),
                    Going::Yes if masked => self.look_under_mask(),
                    Going::Yes | Going::No => {}
                }
            }
        }
    }

    /// A signal that the thread blocks may wait for it already: when the mask that its call brought lets it in, it ends the call. The mask is
    /// in the book by now, so one that comes from here on is seen by whoever places it.
    fn look_under_mask(&self) {
        signals::end_if_let_in(self.shared, self.body, self.n.tid);
    }

    fn cancel(&self, tid: Tid, seq: Seq) {
        let (pid, epoch) = (self.body.pid, self.body.epoch());
        self.shared.tell(&ToHome::Cancel { pid, tid, epoch, seq }, &[]);
    }

    /// The notification stays open: its thread waits until the process has left.
    fn come_home(&self, why: &'static str) {
        tracing::debug!(pid = %self.body.pid, nr = self.n.nr, why, "the process comes home");
        tally::served(self.body.pid, table::row(self.n.nr as u32), How::Return);
        self.shared.command(Command::WantHome(self.body.pid, self.n.nr as u32));
    }

    fn special(&self, tid: Tid, seq: Seq) {
        match i64::from(self.n.nr) {
            libc::SYS_exit_group => {
                let code = self.n.args[0] as i32 & 0xff;
                self.shared.command(Command::Exit(self.body.pid, Exit::Code(code)));
            }
            libc::SYS_exit => self.exit(tid),
            libc::SYS_clone | libc::SYS_fork | libc::SYS_vfork => self.create(tid, seq),
            libc::SYS_execve | libc::SYS_execveat => self.exec(tid, seq),
            libc::SYS_clone3 => self.clone3(),
            libc::SYS_rt_sigaction => self.action(tid),
            _ => self.come_home("not written yet"),
        }
    }

    /// The thread ends here and at home.
    fn exit(&self, tid: Tid) {
        let status = self.n.args[0] as i32;
        if self.calls().count() <= 1 {
            self.shared
                .command(Command::Exit(self.body.pid, Exit::Code(status & 0xff)));
            return;
        }
        if self.calls().settled(self.n.tid, self.n.id).is_some() {
            self.shared.thread_ended(self.body, tid, status);
            self.calls().ended(self.n.tid);
            self.send(Answer::Continue);
        }
    }

    /// A new thread, or a child: home's half first. Whatever else clone makes is made at home.
    fn create(&self, tid: Tid, seq: Seq) {
        let flags = creation::flags(self.n.nr.into(), &self.n.args).unwrap_or(0);
        if creation::kind(flags).is_none() || !self.shared.makes_threads() {
            return self.come_home("such a process is made at home");
        }
        let call = super::creation::call(self.body, flags, tid, seq);
        let (pid, epoch) = (call.pid, call.epoch);
        let none = Scatter::none(Ids { pid, tid, epoch, seq });
        if self.calls().sent(self.n.tid, self.n.id, seq, none, None) != Going::No {
            self.shared.tell_later(&ToHome::Call(call), &[]);
        }
    }

    /// A program: the tracer sends it home, with what only it can see.
    fn exec(&self, tid: Tid, seq: Seq) {
        let ids = Ids {
            pid: self.body.pid,
            tid,
            epoch: self.body.epoch(),
            seq,
        };
        match gather(table::row(self.n.nr as u32), self.n.args, &Guest::of(self.n.tid), ids) {
            Gathered::Errno(errno) => self.answer(Answer::Result(-i64::from(errno))),
            Gathered::ComeHome(why) => self.come_home(why),
            Gathered::Forward(forward) => {
                // What was read may be another thread's by now, if the caller died meanwhile.
                if self.body.listener().is_valid(self.n.id) {
                    let command = Command::Exec(self.body.pid, self.n.tid, self.n.id, forward);
                    self.shared.command(command);
                }
            }
        }
    }

    /// Its flags lie in memory, where another thread may change them after any look at them: who wants what clone can make is told to use
    /// that, as on a kernel without clone3. Nothing else depends on the look.
    fn clone3(&self) {
        let mut words = [0; 40];
        let seen = Guest::of(self.n.tid).read(self.n.args[0], &mut words).is_ok();
        // clone(2) has the signal at the end among its flags.
        let (flags, signal) = (word(&words, 0), word(&words, 4));
        let known = flags & !u64::from(u32::MAX) == 0 && flags & 0xff == 0 && signal <= 64;
        let made = creation::kind(flags | signal).filter(|_| seen && known);
        if made.is_some() && self.shared.makes_threads() {
            return self.answer(Answer::Result(-i64::from(libc::ENOSYS)));
        }
        self.come_home("such a process is made at home");
    }

    /// The body's kernel keeps the handler; home learns of it before any later call.
    fn action(&self, tid: Tid) {
        let [signal, new, ..] = self.n.args;
        if new != 0 {
            let mut bytes = [0; 32];
            if Guest::of(self.n.tid).read(new, &mut bytes).is_err() {
                return self.answer(Answer::Result(-i64::from(libc::EFAULT)));
            }
            let action = SigAction {
                handler: word(&bytes, 0),
                flags: word(&bytes, 1),
                restorer: word(&bytes, 2),
                mask: word(&bytes, 3),
            };
            if let (Ok(signal @ 1..=64), true) = (u8::try_from(signal), self.body.listener().is_valid(self.n.id)) {
                let (pid, epoch) = (self.body.pid, self.body.epoch());
                self.shared.tell(
                    &ToHome::Action {
                        pid,
                        tid,
                        epoch,
                        signal,
                        action,
                    },
                    &[],
                );
            }
        }
        // Another thread could change the structure between the two reads; then the body's kernel is right about the handler, and
        // home about what it was told.
        self.answer(Answer::Continue);
    }
}

/// A 64-bit word of a structure, by its index.
fn word(bytes: &[u8], index: usize) -> u64 {
    let word = bytes.chunks_exact(8).nth(index).and_then(|word| word.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}

/// Answers a notification that home has no part in, when it still waits. Signals that waited for its end are placed then.
pub fn settle(shared: &Shared, body: &BodyCalls, host: i32, id: u64, answer: Answer) {
    if let Some(due) = body.calls.settled(host, id) {
        send(body, host, id, answer);
        if due {
            shared.command(Command::Late(body.pid));
        }
    }
}

/// Answers a notification. That its thread is gone is nobody's error.
pub fn send(body: &BodyCalls, host: i32, id: u64, answer: Answer) {
    match body.listener().send(id, answer) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => tracing::error!(pid = %body.pid, tid = host, %error, "a system call could not be answered"),
    }
}

/// Writes the outputs of a call and answers it.
pub fn finish(body: &BodyCalls, host: i32, id: u64, scatter: &Scatter, reply: &Reply, payload: &[u8]) {
    let result = outputs(body, host, scatter, reply, payload);
    send(body, host, id, Answer::Result(result));
}

/// Signals wait for the end of a call: what it leaves behind (data, the rest of a sleep) is written as home's kernel wrote it, and the
/// tracer ends it.
fn due(shared: &Shared, body: &BodyCalls, host: i32, scatter: &Scatter, reply: &Reply, payload: &[u8]) {
    let result = outputs(body, host, scatter, reply, payload);
    shared.command(Command::Due(body.pid, host, result));
}

/// Writes what home's kernel gave for a call, with what this one adds; the call's result.
fn outputs(body: &BodyCalls, host: i32, scatter: &Scatter, reply: &Reply, payload: &[u8]) -> i64 {
    let payload = usage::add(body, host, scatter.part, reply.result, payload);
    match scatter.apply(&Guest::of(host), reply, &payload) {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(pid = %body.pid, tid = host, %error, "home's reply");
            -i64::from(libc::EIO)
        }
    }
}

/// A reply from home: on the session's receiving thread, or the tracer's when signals go before it.
pub fn replied(shared: &Shared, reply: &Reply, payload: &[u8]) {
    let Some(body) = shared.body(reply.pid) else { return };
    let executed = reply.result < 0 && body.calls.executes();
    match body.calls.replied(reply, payload) {
        Replied::Answer { host, id, scatter } => finish(&body, host, id, &scatter, reply, payload),
        Replied::Made { host, id, number } => shared.command(Command::Made(body.pid, host, id, number)),
        Replied::Due { host, scatter } => due(shared, &body, host, &scatter, reply, payload),
        Replied::NeedsHome { nr } => {
            tracing::debug!(pid = %reply.pid, nr, "home wants the process back for a call");
            shared.command(Command::WantHome(body.pid, nr as u32));
        }
        Replied::Kept => {}
        Replied::Stale => {
            tracing::debug!(pid = %reply.pid, tid = %reply.tid, seq = reply.seq.0, "a reply nobody waits for")
        }
    }
    if executed {
        super::exec::over(shared, &body);
    }
}
