//! The judge: accepts what a program sees when a native kernel could have shown it.

use mosix_runtime::contract::signals::{DefaultAction, Disposition, default_action, is_internal};
use mosix_runtime::syscall::table::Restart;
use std::collections::BTreeMap;

/// How often the interesting things happened.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub handlers: u64,
    pub handlers_in_calls: u64,
    pub ignored: u64,
    pub stops: u64,
    pub eintr: u64,
    pub restarts: u64,
    pub whole_writes_cut: u64,
    pub short_writes: u64,
    pub timeouts: u64,
    pub moves: u64,
    pub moves_with_open_calls: u64,
    pub repeated: u64,
}

impl Seen {
    pub fn counts(&self) -> [(&'static str, u64); 12] {
        [
            ("handlers", self.handlers),
            ("handlers in calls", self.handlers_in_calls),
            ("ignored signals", self.ignored),
            ("stops", self.stops),
            ("EINTR", self.eintr),
            ("restarts", self.restarts),
            ("cut writes continued", self.whole_writes_cut),
            ("short writes", self.short_writes),
            ("time-outs", self.timeouts),
            ("moves", self.moves),
            ("moves with open calls", self.moves_with_open_calls),
            ("signals sent again", self.repeated),
        ]
    }

    pub fn add(&mut self, other: &Self) {
        self.handlers += other.handlers;
        self.handlers_in_calls += other.handlers_in_calls;
        self.ignored += other.ignored;
        self.stops += other.stops;
        self.eintr += other.eintr;
        self.restarts += other.restarts;
        self.whole_writes_cut += other.whole_writes_cut;
        self.short_writes += other.short_writes;
        self.timeouts += other.timeouts;
        self.moves += other.moves;
        self.moves_with_open_calls += other.moves_with_open_calls;
        self.repeated += other.repeated;
    }
}

/// A signal that was generated and not yet consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: u64,
    pub signal: i32,
    /// The thread, when it is thread-directed.
    pub to: Option<usize>,
}

/// A call as the program made it, over all its restarts.
#[derive(Clone, Debug)]
struct Call {
    class: Restart,
    /// Bytes that the other side got of it.
    bytes: u64,
    /// A handled, unblocked signal was outstanding at some time during the call.
    could_interrupt: bool,
    /// A handler ran in the call that makes it EINTR.
    must_end: bool,
    /// A handler ran in the call.
    handler: bool,
    /// A handler ran in this run of the call: the first decides about the restart.
    decided: bool,
    /// The process really stopped during the call.
    stopped: bool,
}

/// What the judge knows.
#[derive(Clone, Debug, Default)]
pub struct Native {
    pub broken: Option<String>,
    pub history: Vec<String>,
    pub seen: Seen,
    outstanding: Vec<Instance>,
    calls: BTreeMap<usize, Call>,
}

impl Native {
    pub fn note(&mut self, event: String) {
        self.history.push(event);
    }

    fn fail(&mut self, why: String) {
        self.note(format!("!! {why}"));
        self.broken.get_or_insert(why);
    }

    pub fn generated(&mut self, instance: Instance) {
        self.note(format!("generated {instance:?}"));
        self.outstanding.push(instance);
    }

    /// Looks, after every step, which open calls a native kernel might have ended.
    pub fn look(&mut self, dispositions: &BTreeMap<i32, Disposition>, blocks: impl Fn(usize, i32) -> bool) {
        for (thread, call) in &mut self.calls {
            call.could_interrupt |= self.outstanding.iter().any(|instance| {
                matches!(dispositions.get(&instance.signal), Some(Disposition::Handler { .. }))
                    && instance.to.is_none_or(|to| to == *thread)
                    && !blocks(*thread, instance.signal)
            });
        }
    }

    fn consume(&mut self, instance: Instance) {
        let before = self.outstanding.len();
        self.outstanding.retain(|other| *other != instance);
        if self.outstanding.len() == before {
            self.fail(format!("{instance:?} was handled twice, or never generated"));
        }
    }

    pub fn handler(&mut self, thread: usize, instance: Instance, now: Disposition, blocked: bool) {
        self.note(format!("thread {thread}: handler of {instance:?}"));
        self.consume(instance);
        self.seen.handlers += 1;
        let Disposition::Handler { restart } = now else {
            return self.fail(format!("{instance:?} ran a handler that is not there"));
        };
        if blocked || instance.to.is_some_and(|to| to != thread) {
            self.fail(format!(
                "{instance:?} was delivered to thread {thread}, which blocks it or is not meant"
            ));
        }
        if let Some(call) = self.calls.get_mut(&thread) {
            self.seen.handlers_in_calls += 1;
            call.must_end |= match call.class {
                Restart::Sys => !restart && !call.decided,
                Restart::NoInt | Restart::None => false,
                Restart::NoHand | Restart::Eintr | Restart::Timed => true,
            };
            (call.handler, call.decided) = (true, true);
        }
    }

    pub fn discarded(&mut self, instance: Instance, now: Disposition) {
        self.note(format!("discarded {instance:?}"));
        self.consume(instance);
        self.seen.ignored += 1;
        let harmless = match now {
            Disposition::Ignore => true,
            Disposition::Default => default_action(instance.signal) == DefaultAction::Ignore,
            Disposition::Handler { .. } => false,
        };
        if !harmless {
            self.fail(format!("{instance:?} was discarded although it is {now:?}"));
        }
    }

    pub fn stopped(&mut self, instance: Instance) {
        self.note(format!("stopped by {instance:?}"));
        self.consume(instance);
        self.seen.stops += 1;
        for call in self.calls.values_mut() {
            call.stopped = true;
        }
    }

    pub fn started(&mut self, thread: usize, class: Restart) {
        self.note(format!("thread {thread}: call {class:?}"));
        let call = Call {
            class,
            bytes: 0,
            could_interrupt: false,
            must_end: false,
            handler: false,
            decided: false,
            stopped: false,
        };
        self.calls.insert(thread, call);
    }

    pub fn restarted(&mut self, thread: usize) {
        self.note(format!("thread {thread}: call restarted"));
        self.seen.restarts += 1;
        let Some(call) = self.calls.get_mut(&thread) else {
            return;
        };
        call.decided = false;
        if call.must_end {
            self.fail(format!(
                "the call of thread {thread} went on although a handler had to end it"
            ));
        }
    }

    /// The other side got a byte of the thread's write.
    pub fn byte(&mut self, thread: usize) {
        match self.calls.get_mut(&thread) {
            Some(call) => call.bytes += 1,
            None => self.fail(format!("bytes of thread {thread} without a call")),
        }
    }

    pub fn timed_out(&mut self, thread: usize, deadline: u64, original: u64) {
        self.seen.timeouts += 1;
        if deadline != original {
            self.fail(format!(
                "deadline moved from {original} to {deadline} in thread {thread}"
            ));
        }
    }

    pub fn returned(&mut self, thread: usize, raw: i64, wanted: Option<u64>) {
        self.note(format!("thread {thread}: returns {raw}"));
        let Some(call) = self.calls.remove(&thread) else {
            return self.fail(format!("thread {thread} returns from no call"));
        };
        if is_internal(raw) {
            self.fail(format!("internal errno {raw} in thread {thread}"));
        }
        if raw == -4 {
            self.seen.eintr += 1;
            let legal = match call.class {
                Restart::Eintr => call.handler || call.could_interrupt || call.stopped,
                _ => call.must_end,
            };
            if !legal {
                self.fail(format!("EINTR although nothing interrupts {call:?} of thread {thread}"));
            }
        }
        if let Some(wanted) = wanted {
            let got = u64::try_from(raw).unwrap_or(0);
            if got != call.bytes {
                self.fail(format!("{} bytes went out, thread {thread} is told {got}", call.bytes));
            }
            if raw >= 0 && got < wanted {
                self.seen.short_writes += 1;
                if !call.handler && !call.could_interrupt {
                    self.fail(format!(
                        "short count {got} of {wanted} although nothing interrupts thread {thread}"
                    ));
                }
            }
        }
    }

    /// Nothing moves any more: what is outstanding must be blocked.
    pub fn quiet(&mut self, blocked: impl Fn(Instance) -> bool) {
        let left: Vec<_> = self
            .outstanding
            .iter()
            .copied()
            .filter(|instance| !blocked(*instance))
            .collect();
        if let Some(instance) = left.first() {
            self.fail(format!("{instance:?} was never handled"));
        }
    }
}
