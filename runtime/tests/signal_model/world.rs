//! A process away from home, in its two halves, with everything between them delayed at random.

use crate::native::{Instance, Native};
use crate::random::Random;
use mosix_runtime::contract::owner::{Inbox, Outbox};
use mosix_runtime::contract::signals::{
    Answer, Disposition, Next, Open, Placement, RESTART_BLOCK, RESTART_NOHAND, RESTART_NOINTR, RESTART_SYS, Taker,
    Thread as View, answer, cancelled, deputy_stopped, due_at_home, place, resumed,
};
use mosix_runtime::syscall::table::Restart;
use std::collections::{BTreeMap, VecDeque};

const THREADS: usize = 2;
const SIGNALS: [i32; 4] = [34, 35, libc::SIGWINCH, libc::SIGTSTP];
/// Bytes of a blocking write.
const WHOLE: u64 = 3;

/// A deliberately wrong rule, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The product's rules.
    None,
    /// The host queues a signal although the thread sits in a received call.
    NeverCancel,
    /// Home reports an interrupted call at every signal.
    ReportAlways,
    /// Home reports a cut write at every signal.
    ShortWrite,
    /// An interrupted call with a time-out starts with its whole time again.
    WholeTimeAgain,
    /// A call with a restart block is simply issued again.
    BlockAgain,
    /// The agent gives restart codes as results.
    CodeAsResult,
    /// The agent lets the body's kernel take a stop signal with the default action.
    StopInTheBody,
    /// Home forgets a signal as soon as it has sent it.
    ForgetSent,
    /// The host takes every signal that comes, whatever its number.
    TakeAgain,
    /// The host says that it has a signal which came when the body stood captured.
    TookWhileFrozen,
    /// The number of the last signal stays behind when the body moves.
    NumberLeftBehind,
    /// Home executes a call again that comes a second time.
    ExecuteTwice,
}

/// What a thread calls.
#[derive(Clone, Copy, Debug)]
struct Request {
    seq: u64,
    class: Restart,
    /// Bytes to write.
    wanted: Option<u64>,
    /// Relative time-out, and for the judge the deadline that the program's own call had.
    timeout: Option<(u64, u64)>,
}

/// Home to host.
#[derive(Clone, Debug)]
enum Down {
    Signal(u64, Instance),
    Reply { thread: usize, seq: u64, raw: i64 },
    Depart,
}

/// Host to home.
#[derive(Clone, Debug)]
enum Up {
    Call(usize, Request),
    Cancel {
        thread: usize,
        seq: u64,
    },
    Action {
        signal: i32,
        now: Disposition,
    },
    /// A stop that the host leaves to home.
    Stop(Instance),
    /// The body has the signals up to this number.
    Took(u64),
    Frozen,
}

/// A call in a deputy.
#[derive(Clone, Debug)]
struct Exec {
    request: Request,
    deadline: Option<u64>,
    /// Bytes of earlier runs, and of this one.
    done: u64,
    run: u64,
    /// Finished in the kernel, not seen by the supervisor yet.
    over: Option<i64>,
}

#[derive(Clone, Debug, Default)]
struct Deputy {
    exec: Option<Exec>,
    last: Option<(u64, i64)>,
}

/// A thread of the body.
#[derive(Clone, Debug)]
enum At {
    User,
    Call(Request),
}

#[derive(Clone, Debug)]
struct Thread {
    at: At,
    seq: u64,
    mask: BTreeMap<i32, bool>,
    pending: VecDeque<Instance>,
    /// Kept by the agent until the call is cancelled.
    kept: VecDeque<Instance>,
    asked: bool,
}

/// Everything.
pub struct World {
    pub native: Native,
    random: Random,
    mutant: Mutant,
    now: u64,
    next_instance: u64,
    // Home.
    deputies: Vec<Deputy>,
    known: BTreeMap<i32, Disposition>,
    at_home: VecDeque<Instance>,
    moving: bool,
    outbox: Outbox<Instance>,
    // The wires.
    down: VecDeque<Down>,
    up: VecDeque<Up>,
    // The host.
    threads: Vec<Thread>,
    dispositions: BTreeMap<i32, Disposition>,
    pending: VecDeque<Instance>,
    frozen: bool,
    inbox: Inbox,
}

impl World {
    pub fn new(random: Random, mutant: Mutant) -> Self {
        let dispositions = SIGNALS
            .into_iter()
            .map(|signal| {
                (
                    signal,
                    if signal < 34 {
                        Disposition::Default
                    } else {
                        Disposition::Ignore
                    },
                )
            })
            .collect::<BTreeMap<_, _>>();
        let thread = Thread {
            at: At::User,
            seq: 0,
            mask: SIGNALS.into_iter().map(|signal| (signal, false)).collect(),
            pending: VecDeque::new(),
            kept: VecDeque::new(),
            asked: false,
        };
        Self {
            native: Native::default(),
            random,
            mutant,
            now: 0,
            next_instance: 0,
            deputies: vec![Deputy::default(); THREADS],
            known: dispositions.clone(),
            at_home: VecDeque::new(),
            moving: false,
            outbox: Outbox::default(),
            down: VecDeque::new(),
            up: VecDeque::new(),
            threads: vec![thread; THREADS],
            dispositions,
            pending: VecDeque::new(),
            frozen: false,
            inbox: Inbox::default(),
        }
    }

    /// One random step of anybody.
    pub fn step(&mut self) {
        match self.random.below(12) {
            0 | 1 => self.program(),
            2 => self.generate(),
            3 => self.signal_stop(),
            4 => self.kernel_at_home(),
            5 => self.reap_call(),
            6 | 7 => self.deliver_down(),
            8 | 9 => self.deliver_up(),
            10 => self.depart(),
            _ => self.tick(),
        }
        self.look();
    }

    /// Lets everything arrive, without anything new, and asks the judge.
    pub fn settle(&mut self) {
        for _ in 0..1_000 {
            self.signal_stop();
            self.reap_call();
            self.deliver_down();
            self.deliver_up();
            self.look();
        }
        let (threads, home) = (&self.threads, self.at_home.len());
        let blocked = |instance: Instance| match instance.to {
            Some(thread) => threads[thread].mask[&instance.signal],
            None => threads.iter().all(|thread| thread.mask[&instance.signal]),
        };
        self.native.quiet(|instance| home == 0 && blocked(instance));
    }

    fn look(&mut self) {
        let threads = &self.threads;
        self.native
            .look(&self.dispositions, |thread, signal| threads[thread].mask[&signal]);
    }

    // ---- the program -------------------------------------------------------------------------------------------------

    fn program(&mut self) {
        let thread = self.random.below(THREADS);
        if self.frozen || !matches!(self.threads[thread].at, At::User) {
            return;
        }
        match self.random.below(5) {
            0 | 1 => self.call(thread),
            2 => {
                let signal = self.random.of(&SIGNALS);
                let blocks = self.random.below(2) == 0;
                self.threads[thread].mask.insert(signal, blocks);
                self.native.note(format!("thread {thread}: blocks {signal}: {blocks}"));
                self.deliver();
            }
            _ => self.sigaction(),
        }
    }

    fn call(&mut self, thread: usize) {
        let class = self.random.of(&[
            Restart::Sys,
            Restart::Sys,
            Restart::NoHand,
            Restart::NoInt,
            Restart::Eintr,
            Restart::Timed,
        ]);
        let wanted = (class == Restart::Sys && self.random.below(2) == 0).then_some(WHOLE);
        let timeout = matches!(class, Restart::Eintr | Restart::Timed).then(|| {
            let ticks = 1 + self.random.below(3) as u64;
            (ticks, self.now + ticks)
        });
        self.native.started(thread, class);
        self.issue(
            thread,
            Request {
                seq: 0,
                class,
                wanted,
                timeout,
            },
        );
    }

    /// Sends a call home under a new number.
    fn issue(&mut self, thread: usize, mut request: Request) {
        self.threads[thread].seq += 1;
        self.threads[thread].asked = false;
        request.seq = self.threads[thread].seq;
        self.threads[thread].at = At::Call(request);
        self.up.push_back(Up::Call(thread, request));
    }

    fn sigaction(&mut self) {
        let signal = self.random.of(&SIGNALS);
        let handler = Disposition::Handler {
            restart: self.random.below(2) == 0,
        };
        // Real-time signals have a fatal default, which this model does not have.
        let other = if signal < 34 {
            Disposition::Default
        } else {
            Disposition::Ignore
        };
        let now = self.random.of(&[handler, handler, other, Disposition::Ignore]);
        self.native.note(format!("{signal} is now {now:?}"));
        self.dispositions.insert(signal, now);
        self.up.push_back(Up::Action { signal, now });
        self.deliver();
    }

    // ---- home --------------------------------------------------------------------------------------------------------

    fn generate(&mut self) {
        let to = (self.random.below(2) == 0).then(|| self.random.below(THREADS));
        self.next_instance += 1;
        let instance = Instance {
            id: self.next_instance,
            signal: self.random.of(&SIGNALS),
            to,
        };
        self.native.generated(instance);
        self.at_home.push_back(instance);
    }

    /// A deputy stops for a signal: its mask is empty, so the addressee, or else the leader.
    fn signal_stop(&mut self) {
        let Some(instance) = self.at_home.pop_front() else {
            return;
        };
        self.stop_at(instance, self.known[&instance.signal]);
    }

    fn stop_at(&mut self, instance: Instance, known: Disposition) {
        let index = instance.to.unwrap_or(0);
        let open = self.stop(index);
        let (taker, next) = deputy_stopped(instance.signal, known, open);
        match taker {
            Taker::Body => {
                let number = self.outbox.take(instance);
                if !self.moving {
                    self.down.push_back(Down::Signal(number, instance));
                    self.sent(number);
                }
            }
            Taker::Deputy => {
                self.native.stopped(instance);
                // The other threads stop with it.
                for other in (0..THREADS).filter(|other| *other != index) {
                    let open = self.stop(other);
                    if let (_, Some(next)) = deputy_stopped(instance.signal, known, open) {
                        self.go_on(other, next);
                    }
                }
            }
        }
        if let (Some(next), Some(open)) = (next, open) {
            let next = match self.mutant {
                Mutant::ReportAlways if open.wanted.is_none() => cancelled(open),
                Mutant::ShortWrite if open.wanted.is_some() => cancelled(open),
                Mutant::WholeTimeAgain if next == Next::AgainWithTimeLeft => Next::Again,
                Mutant::BlockAgain if next == Next::RestartBlock => Next::Again,
                _ => next,
            };
            self.go_on(index, next);
        }
    }

    fn sent(&mut self, number: u64) {
        if self.mutant == Mutant::ForgetSent {
            self.outbox.taken(number);
        }
    }

    /// What rax shows when the thread is made to stop now.
    fn stop(&self, index: usize) -> Option<Open> {
        let exec = self.deputies[index].exec.as_ref()?;
        let raw = match (exec.over, exec.request.class) {
            (Some(raw), _) => raw,
            (None, Restart::Sys) if exec.run > 0 => i64::try_from(exec.run).expect("small"),
            (None, Restart::Sys | Restart::None) => RESTART_SYS,
            (None, Restart::NoInt) => RESTART_NOINTR,
            (None, Restart::NoHand) => RESTART_NOHAND,
            (None, Restart::Eintr) => -4,
            (None, Restart::Timed) => RESTART_BLOCK,
        };
        Some(Open {
            raw,
            class: exec.request.class,
            done: exec.done,
            wanted: exec.request.wanted,
        })
    }

    fn go_on(&mut self, index: usize, next: Next) {
        let now = self.now;
        let Some(exec) = self.deputies[index].exec.as_mut() else {
            return;
        };
        match next {
            Next::Post(raw) => self.post(index, raw),
            // The program's own time-out is what it gave; what it was in the message may be less.
            Next::Again => exec.deadline = exec.request.timeout.map(|(ticks, _)| now + ticks),
            // The kernel's own deadline, or what is left of it, which comes to the same.
            Next::AgainWithTimeLeft | Next::RestartBlock | Next::Kernel => {}
            Next::Rest(done) => {
                if exec.over.is_none() {
                    self.native.seen.whole_writes_cut += 1;
                }
                (exec.done, exec.run, exec.over) = (done, 0, None);
            }
        }
    }

    fn post(&mut self, index: usize, raw: i64) {
        let Some(exec) = self.deputies[index].exec.take() else {
            return;
        };
        let seq = exec.request.seq;
        self.deputies[index].last = Some((seq, raw));
        self.down.push_back(Down::Reply {
            thread: index,
            seq,
            raw,
        });
    }

    /// What a call waits for happens.
    fn kernel_at_home(&mut self) {
        let index = self.random.below(THREADS);
        let now = self.now;
        let lucky = self.random.below(3) == 0;
        let Some(exec) = self.deputies[index].exec.as_mut().filter(|exec| exec.over.is_none()) else {
            return;
        };
        match (exec.request.wanted, exec.deadline) {
            (Some(wanted), _) => {
                exec.run += 1;
                if exec.done + exec.run == wanted {
                    exec.over = Some(i64::try_from(exec.run).expect("small"));
                }
                self.native.byte(index);
            }
            (None, Some(deadline)) if now >= deadline => {
                exec.over = Some(0);
                let original = exec.request.timeout.map_or(deadline, |(_, original)| original);
                self.native.timed_out(index, deadline, original);
            }
            (None, None) if lucky => exec.over = Some(1),
            _ => {}
        }
    }

    /// The supervisor sees a finished call.
    fn reap_call(&mut self) {
        for index in 0..THREADS {
            let over = self.deputies[index]
                .exec
                .as_ref()
                .is_some_and(|exec| exec.over.is_some());
            if let (true, Some(open)) = (over, self.stop(index)) {
                self.go_on(index, resumed(open));
            }
        }
    }

    fn deliver_up(&mut self) {
        match self.up.pop_front() {
            Some(Up::Call(thread, request)) => self.home_call(thread, request),
            Some(Up::Cancel { thread, seq }) => {
                let open = self.deputies[thread]
                    .exec
                    .as_ref()
                    .is_some_and(|exec| exec.request.seq == seq);
                if let (true, Some(open)) = (open, self.stop(thread)) {
                    self.go_on(thread, cancelled(open));
                }
            }
            Some(Up::Action { signal, now }) => {
                self.known.insert(signal, now);
            }
            Some(Up::Stop(instance)) => self.stop_at(instance, Disposition::Default),
            Some(Up::Took(number)) => self.outbox.taken(number),
            Some(Up::Frozen) => self.commit(),
            None => {}
        }
    }

    /// At most once: an open call is bound, an answered one is answered again.
    fn home_call(&mut self, thread: usize, request: Request) {
        let deputy = &mut self.deputies[thread];
        if self.mutant != Mutant::ExecuteTwice {
            if deputy.exec.as_ref().is_some_and(|exec| exec.request.seq == request.seq) {
                return;
            }
            if let Some((seq, raw)) = deputy.last.filter(|(seq, _)| *seq == request.seq) {
                self.down.push_back(Down::Reply { thread, seq, raw });
                return;
            }
        }
        // Nothing left: the deadline has passed already, whenever it was.
        let deadline = request
            .timeout
            .map(|(ticks, original)| if ticks == 0 { original } else { self.now + ticks });
        deputy.exec = Some(Exec {
            request,
            deadline,
            done: 0,
            run: 0,
            over: None,
        });
    }

    // ---- a move from host to host ------------------------------------------------------------------------------------

    fn depart(&mut self) {
        if !self.moving && self.random.below(4) == 0 {
            self.moving = true;
            if self.random.below(2) == 0 {
                self.down.push_back(Down::Depart);
            } else {
                // On a stream of its own: it overtakes what the session still has.
                self.freeze();
            }
        }
    }

    /// The new body runs: a new session, and open calls are issued again under their numbers.
    fn commit(&mut self) {
        self.native.note("moved".into());
        self.native.seen.moves += 1;
        (self.moving, self.frozen) = (false, false);
        self.down.clear();
        let mut open = false;
        for thread in 0..THREADS {
            self.threads[thread].asked = false;
            match self.threads[thread].at.clone() {
                At::Call(request) => {
                    open = true;
                    self.up.push_back(Up::Call(thread, request));
                }
                At::User => {}
            }
        }
        self.native.seen.moves_with_open_calls += u64::from(open);
        // What the source had kept travelled with the image, and is placed anew.
        for thread in 0..THREADS {
            for instance in std::mem::take(&mut self.threads[thread].kept) {
                self.place(instance);
            }
        }
        if self.mutant == Mutant::NumberLeftBehind {
            self.inbox = Inbox::default();
        }
        let kept: Vec<_> = self
            .outbox
            .kept()
            .map(|(number, instance)| (number, *instance))
            .collect();
        for (number, instance) in kept {
            self.down.push_back(Down::Signal(number, instance));
            self.sent(number);
        }
        self.deliver();
    }

    // ---- the host ----------------------------------------------------------------------------------------------------

    fn deliver_down(&mut self) {
        let Some(message) = self.down.pop_front() else { return };
        if self.frozen {
            // The old agent has nothing to do with it any more.
            if let (Down::Signal(number, _), Mutant::TookWhileFrozen) = (message, self.mutant) {
                self.up.push_front(Up::Took(number));
            }
            return;
        }
        match message {
            Down::Signal(number, instance) => {
                if self.inbox.admit(number) || self.mutant == Mutant::TakeAgain {
                    self.place(instance);
                    if self.random.below(2) == 0 {
                        self.up.push_back(Up::Took(number));
                    }
                } else {
                    self.native.seen.repeated += 1;
                }
            }
            Down::Reply { thread, seq, raw } => self.reply(thread, seq, raw),
            Down::Depart => self.freeze(),
        }
        self.deliver();
    }

    fn freeze(&mut self) {
        self.frozen = true;
        self.up.push_back(Up::Frozen);
    }

    fn place(&mut self, instance: Instance) {
        let now = self.dispositions[&instance.signal];
        let views: Vec<View> = self
            .threads
            .iter()
            .map(|thread| {
                let blocks = thread.mask[&instance.signal];
                match thread.at {
                    At::User => View::Reachable { blocks },
                    At::Call(_) => View::InCall { blocks },
                }
            })
            .collect();
        match place(instance.signal, instance.to, now, &views) {
            Placement::Discard => self.native.discarded(instance, now),
            Placement::Home => self.up.push_back(Up::Stop(instance)),
            Placement::Queue(None) => self.pending.push_back(instance),
            Placement::Queue(Some(thread)) => self.threads[thread].pending.push_back(instance),
            Placement::AfterCancel(thread) if self.mutant == Mutant::NeverCancel => {
                self.threads[thread].pending.push_back(instance);
            }
            Placement::AfterCancel(thread) => {
                self.threads[thread].kept.push_back(instance);
                let seq = self.threads[thread].seq;
                if !std::mem::replace(&mut self.threads[thread].asked, true) {
                    self.up.push_back(Up::Cancel { thread, seq });
                }
            }
        }
    }

    fn reply(&mut self, thread: usize, seq: u64, raw: i64) {
        let At::Call(request) = self.threads[thread].at else {
            return;
        };
        if request.seq != seq {
            return;
        }
        let kept = std::mem::take(&mut self.threads[thread].kept);
        let mut dispositions = kept.iter().map(|instance| self.dispositions[&instance.signal]);
        let due = dispositions.find(|now| matches!(now, Disposition::Handler { .. }));
        let decided = match answer(raw, due) {
            Answer::Code(code) if self.mutant == Mutant::CodeAsResult => Answer::Result(code),
            other => other,
        };
        self.threads[thread].pending.extend(kept);
        match decided {
            Answer::Result(raw) => self.exit_call(thread, request, raw, false),
            Answer::Code(code) => self.exit_call(thread, request, code, true),
            Answer::Continue => {
                self.threads[thread].at = At::User;
                let handled = self.deliver_to(thread);
                assert!(!handled, "a signal that was not due ran a handler");
                self.native.restarted(thread);
                let left = request
                    .timeout
                    .map(|(_, original)| (original.saturating_sub(self.now), original));
                self.issue(
                    thread,
                    Request {
                        timeout: left,
                        ..request
                    },
                );
            }
        }
    }

    /// The body's kernel on its way back to user code, arch_do_signal_or_restart().
    fn exit_call(&mut self, thread: usize, request: Request, raw: i64, code: bool) {
        self.threads[thread].at = At::User;
        let first = self.first_handler(thread);
        let handled = self.deliver_to(thread);
        let result = match (code, raw, first) {
            (false, raw, _) => Some(raw),
            (true, RESTART_SYS, Some(false)) | (true, RESTART_NOHAND, Some(_)) => Some(-4),
            (true, ..) => None,
        };
        let _ = handled;
        match result {
            Some(raw) => self.native.returned(thread, raw, request.wanted),
            None => {
                self.native.restarted(thread);
                self.issue(thread, request);
            }
        }
    }

    /// SA_RESTART of the first handler that is due for the thread.
    fn first_handler(&self, thread: usize) -> Option<bool> {
        let mask = &self.threads[thread].mask;
        let queues = self.threads[thread].pending.iter().chain(&self.pending);
        queues
            .filter(|instance| !mask[&instance.signal])
            .find_map(|i| match self.dispositions[&i.signal] {
                Disposition::Handler { restart } => Some(restart),
                _ => None,
            })
    }

    /// Delivers everything that can be delivered, to all threads.
    fn deliver(&mut self) {
        if self.frozen {
            return;
        }
        for thread in 0..THREADS {
            self.deliver_to(thread);
        }
    }

    /// Delivers to one thread, when it is in user code; true when a handler ran.
    fn deliver_to(&mut self, thread: usize) -> bool {
        if !matches!(self.threads[thread].at, At::User) {
            return false;
        }
        let mut handled = false;
        let mask = self.threads[thread].mask.clone();
        let take = |queue: &mut VecDeque<Instance>| {
            let (due, rest) = std::mem::take(queue)
                .into_iter()
                .partition(|i: &Instance| !mask[&i.signal]);
            *queue = rest;
            let due: VecDeque<Instance> = due;
            due
        };
        let mut due = take(&mut self.threads[thread].pending);
        due.extend(take(&mut self.pending));
        for instance in due {
            let now = self.dispositions[&instance.signal];
            match now {
                Disposition::Handler { .. } => {
                    handled = true;
                    self.native.handler(thread, instance, now, mask[&instance.signal]);
                }
                _ if due_at_home(instance.signal, now) && self.mutant != Mutant::StopInTheBody => {
                    self.up.push_back(Up::Stop(instance));
                }
                _ => self.native.discarded(instance, now),
            }
        }
        handled
    }

    /// Time passes only while nothing is on the wires: then a deadline is the same seen from both ends.
    fn tick(&mut self) {
        if self.down.is_empty() && self.up.is_empty() && !self.moving {
            self.now += 1;
        }
    }
}
