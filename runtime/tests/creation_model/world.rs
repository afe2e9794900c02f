//! One simulated process: its program's threads, the host's kernel, the agent's book of calls, the session, home.

use super::random::Random;
use mosix_runtime::agent::calls::{Calls, Going, NewThread, Replied, Step};
use mosix_runtime::syscall::marshal::{Ids, Scatter};
use mosix_sys::notif::Notification;
use mosix_wire::call::Reply;
use mosix_wire::ids::{Epoch, Pid, Seq, Tid};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const IP: u64 = 0x1000;
const EAGAIN: i64 = -11;
const MOST: usize = 7;

/// What a thread of the program does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Doing {
    /// Runs its program.
    Running,
    /// Stands before the call's instruction, which it makes (again) when it runs.
    AtCall,
    /// Waits for the answer of this notification.
    InCall(u64),
}

#[derive(Debug)]
struct Body {
    tid: i32,
    doing: Doing,
    /// A signal waits for the end of its call.
    due: bool,
}

/// Home's record of a thread.
#[derive(Clone, Copy, Default, Debug)]
struct Record {
    seq: u64,
    answer: Option<i64>,
    /// The thread is being made: its answer is not sent yet.
    open: bool,
}

#[derive(Debug)]
enum ToHome {
    Call { tid: i32, seq: u64, epoch: u64 },
    Ended { tid: i32, epoch: u64 },
}

#[derive(Debug)]
pub struct World {
    random: Random,
    bodies: BTreeMap<i32, Body>,
    /// None at home.
    calls: Option<Calls>,
    epoch: u64,
    frozen: bool,
    to_home: VecDeque<ToHome>,
    to_host: VecDeque<(u64, i32, u64, i64)>,
    /// Commands of the tracer: creator, notification, number.
    commands: VecDeque<(i32, u64, i32)>,
    records: BTreeMap<i32, Record>,
    deputies: BTreeSet<i32>,
    next_tid: i32,
    next_host: i32,
    next_id: u64,
    /// Threads that calls made, as the program sees it.
    told: BTreeSet<i32>,
    pub made: u64,
    pub moved: u64,
    pub failed: u64,
    pub undone: u64,
}

fn new_thread(host: i32, tid: i32, seq: u64, open: bool) -> NewThread {
    NewThread {
        host,
        tid: Tid(tid),
        seq,
        open: open.then_some((libc::SYS_clone as i32, IP)),
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let body = Body {
            tid: 100,
            doing: Doing::Running,
            due: false,
        };
        Self {
            random: Random::new(seed),
            bodies: BTreeMap::from([(5000, body)]),
            calls: Some(Calls::new(&[new_thread(5000, 100, 0, false)])),
            epoch: 1,
            frozen: false,
            to_home: VecDeque::new(),
            to_host: VecDeque::new(),
            commands: VecDeque::new(),
            records: BTreeMap::from([(100, Record::default())]),
            deputies: BTreeSet::from([100]),
            next_tid: 101,
            next_host: 5001,
            next_id: 1,
            told: BTreeSet::new(),
            made: 0,
            moved: 0,
            failed: 0,
            undone: 0,
        }
    }

    pub fn step(&mut self) {
        match self.random.below(14) {
            0..=2 => self.run(),
            3 | 4 => self.home(),
            5 => self.home_ends(),
            6 | 7 => self.reply(),
            8 | 9 => self.tracer(),
            10 => self.signal(),
            11 => self.exit(),
            12 => self.freeze(),
            _ => self.unfreeze(),
        }
    }

    fn any(&mut self, which: impl Fn(&Body) -> bool) -> Option<i32> {
        let hosts: Vec<i32> = self
            .bodies
            .iter()
            .filter(|(_, body)| which(body))
            .map(|(host, _)| *host)
            .collect();
        (!hosts.is_empty()).then(|| hosts[self.random.below(hosts.len())])
    }

    /// A thread makes the call, for the first time or again.
    fn run(&mut self) {
        let full = self.bodies.len() >= MOST;
        let Some(host) = self.any(|body| body.doing == Doing::AtCall || (body.doing == Doing::Running && !full)) else {
            return;
        };
        if self.frozen {
            return;
        }
        let Some(calls) = &self.calls else {
            return self.natively(host);
        };
        let id = self.next_id;
        self.next_id += 1;
        let n = Notification {
            id,
            tid: host,
            nr: libc::SYS_clone as i32,
            arch: 0,
            instruction_pointer: IP,
            args: [0x3d_0f00, 0, 0, 0, 0, 0],
        };
        let body = self.bodies.get_mut(&host).expect("the thread");
        match calls.received(&n, false) {
            Step::Gather(tid, seq) => {
                assert_eq!(tid.0, body.tid);
                body.doing = Doing::InCall(id);
                let ids = Ids {
                    pid: Pid(100),
                    tid,
                    epoch: Epoch(self.epoch),
                    seq,
                };
                let going = calls.sent(host, id, seq, Scatter::none(ids), None);
                assert_eq!(going, Going::Yes, "nobody ends the creation of a thread half-way");
                let (tid, seq, epoch) = (tid.0, seq.0, self.epoch);
                self.to_home.push_back(ToHome::Call { tid, seq, epoch });
            }
            other => panic!("{other:?} of a thread that runs"),
        }
    }

    /// At home the kernel does it all.
    fn natively(&mut self, host: i32) {
        let tid = self.next_tid;
        self.next_tid += 1;
        self.deputies.insert(tid);
        self.records.insert(tid, Record::default());
        self.body(tid);
        self.over(host, i64::from(tid));
    }

    fn body(&mut self, tid: i32) -> i32 {
        let host = self.next_host;
        self.next_host += 1;
        let body = Body {
            tid,
            doing: Doing::Running,
            due: false,
        };
        self.bodies.insert(host, body);
        host
    }

    /// The program sees what its call gave.
    fn over(&mut self, host: i32, result: i64) {
        let body = self.bodies.get_mut(&host).expect("the creator");
        body.doing = Doing::Running;
        // Signals go on behind the call.
        body.due = false;
        if result > 0 {
            let tid = i32::try_from(result).expect("a number");
            assert!(self.told.insert(tid), "two calls made thread {tid}");
            assert!(
                self.bodies.values().any(|body| body.tid == tid),
                "thread {tid} is not there"
            );
            self.made += 1;
        } else {
            self.failed += 1;
        }
    }

    /// Home takes the next word of the host.
    fn home(&mut self) {
        match self.to_home.pop_front() {
            Some(ToHome::Call { tid, seq, epoch }) if epoch == self.epoch && self.calls.is_some() => {
                let record = self.records.get_mut(&tid).expect("a call of a thread that home has");
                if seq < record.seq {
                    return;
                }
                if seq == record.seq && (record.open || record.answer.is_some()) {
                    if let Some(answer) = record.answer {
                        self.to_host.push_back((self.epoch, tid, seq, answer));
                    }
                    return;
                }
                *record = Record {
                    seq,
                    answer: None,
                    open: true,
                };
            }
            Some(ToHome::Ended { tid, epoch }) if epoch == self.epoch && self.calls.is_some() => self.home_loses(tid),
            // A frame of an old epoch.
            _ => {}
        }
    }

    fn home_loses(&mut self, tid: i32) {
        self.deputies.remove(&tid);
        self.records.remove(&tid);
    }

    /// A deputy thread's clone3 returns.
    fn home_ends(&mut self) {
        let open: Vec<i32> = self
            .records
            .iter()
            .filter(|(_, record)| record.open)
            .map(|(tid, _)| *tid)
            .collect();
        if open.is_empty() {
            return;
        }
        let creator = open[self.random.below(open.len())];
        let answer = if self.random.below(8) == 0 {
            EAGAIN
        } else {
            let tid = self.next_tid;
            self.next_tid += 1;
            assert!(self.deputies.insert(tid));
            self.records.insert(tid, Record::default());
            i64::from(tid)
        };
        let record = self.records.get_mut(&creator).expect("the creator's record");
        record.open = false;
        record.answer = Some(answer);
        let seq = record.seq;
        if self.calls.is_some() {
            self.to_host.push_back((self.epoch, creator, seq, answer));
        }
    }

    /// The agent takes the next word of home.
    fn reply(&mut self) {
        let (Some((epoch, tid, seq, result)), Some(calls)) = (self.to_host.pop_front(), &self.calls) else {
            return;
        };
        if epoch != self.epoch {
            // It went to another host.
            return;
        }
        let reply = Reply {
            pid: Pid(100),
            tid: Tid(tid),
            seq: Seq(seq),
            result,
            lengths: Vec::new(),
        };
        match calls.replied(&reply, &[]) {
            Replied::Made { host, id, number } => self.commands.push_back((host, id, number.0)),
            Replied::Answer { host, .. } => self.over(host, result),
            Replied::Due { host, .. } => {
                assert!(calls.take_due(host).is_some());
                self.over(host, result);
            }
            Replied::Kept | Replied::Stale => {}
            other => panic!("{other:?}"),
        }
    }

    /// The tracer makes a body.
    fn tracer(&mut self) {
        let (Some((host, id, number)), Some(calls)) = (self.commands.pop_front(), &self.calls) else {
            return;
        };
        if calls.begin_creation(host, id).is_none() {
            return;
        }
        let result = if self.random.below(8) == 0 {
            let epoch = self.epoch;
            self.to_home.push_back(ToHome::Ended { tid: number, epoch });
            EAGAIN
        } else {
            let child = self.body(number);
            let calls = self.calls.as_ref().expect("the book");
            calls.add(new_thread(child, number, 0, false));
            i64::from(number)
        };
        self.calls.as_ref().expect("the book").end_creation(host);
        self.over(host, result);
    }

    /// A signal for a thread: behind its call.
    fn signal(&mut self) {
        let Some(host) = self.any(|_| true) else { return };
        let (Some(calls), false) = (&self.calls, self.frozen) else {
            return;
        };
        let body = self.bodies.get_mut(&host).expect("the thread");
        match calls.wait_for_call(host) {
            Some(cancel) => {
                assert_eq!(cancel, None, "nobody ends the creation of a thread half-way");
                body.due = true;
            }
            // The handler runs now: a thread that has home's half of a creation must not be here.
            None => {
                let record = self.records.get(&body.tid);
                let half = body.doing == Doing::AtCall && record.is_some_and(|record| record.open);
                assert!(!half, "a handler runs between the halves of a creation");
            }
        }
    }

    fn exit(&mut self) {
        let Some(host) = self.any(|body| body.doing == Doing::Running && body.tid != 100) else {
            return;
        };
        if self.frozen {
            return;
        }
        let tid = self.bodies.remove(&host).expect("the thread").tid;
        match &self.calls {
            Some(calls) => {
                calls.ended(host);
                let epoch = self.epoch;
                self.to_home.push_back(ToHome::Ended { tid, epoch });
            }
            None => self.home_loses(tid),
        }
    }

    fn freeze(&mut self) {
        let (Some(calls), false) = (&self.calls, self.frozen) else {
            return;
        };
        self.frozen = true;
        calls.close();
        let answered: BTreeSet<u64> = calls.stop().into_iter().collect();
        for body in self.bodies.values_mut() {
            if let Doing::InCall(id) = body.doing {
                assert!(answered.contains(&id), "a call is not taken back");
                body.doing = Doing::AtCall;
            }
        }
    }

    /// A freeze ends: undone, in a move to another host, or home. At home, the process leaves again.
    fn unfreeze(&mut self) {
        match (self.frozen, self.random.below(3)) {
            (true, 0) => {
                self.frozen = false;
                self.calls.as_ref().expect("the book").open();
            }
            (true, 1) => {
                let book = self.leaving();
                self.renumber(&book);
            }
            (true, _) => {
                let book = self.leaving();
                self.come_home(&book);
            }
            (false, _) if self.calls.is_none() => {
                // A departure from home begins every thread's numbers anew.
                for record in self.records.values_mut() {
                    *record = Record::default();
                }
                let book: Vec<(i32, u64, bool)> = self.bodies.keys().map(|host| (*host, 0, false)).collect();
                self.renumber(&book);
            }
            _ => {}
        }
    }

    /// What each thread takes along.
    fn leaving(&self) -> Vec<(i32, u64, bool)> {
        let calls = self.calls.as_ref().expect("the book");
        let of = |host: &i32| {
            let leaving = calls.leaving(*host);
            assert!(leaving.over.is_none(), "half a creation is no result");
            (*host, leaving.seq, leaving.in_flight)
        };
        self.bodies.keys().map(of).collect()
    }

    /// The body is built on another host.
    fn renumber(&mut self, book: &[(i32, u64, bool)]) {
        // What the old host said before is heard before the commit, what home said to it is not the new one's.
        while !self.to_home.is_empty() && self.calls.is_some() {
            self.home();
        }
        self.to_host.clear();
        self.commands.clear();
        self.frozen = false;
        self.epoch += 1;
        self.moved += 1;
        let mut new = Vec::new();
        let mut bodies = BTreeMap::new();
        for (host, seq, open) in book {
            let body = self.bodies.remove(host).expect("the thread");
            let there = self.next_host;
            self.next_host += 1;
            new.push(new_thread(there, body.tid, *seq, *open));
            bodies.insert(there, body);
        }
        self.bodies = bodies;
        self.calls = Some(Calls::new(&new));
    }

    /// The deputy becomes the process again: creations that have begun end, deputy threads without a body go.
    fn come_home(&mut self, book: &[(i32, u64, bool)]) {
        // Words that are slower than the image may be lost, but those that have begun are not.
        if self.random.below(2) == 0 {
            while !self.to_home.is_empty() {
                self.home();
            }
        }
        while self.records.values().any(|record| record.open) {
            self.home_ends();
        }
        let _ = book;
        let bodies: BTreeSet<i32> = self.bodies.values().map(|body| body.tid).collect();
        for tid in self.deputies.clone().difference(&bodies) {
            self.undone += 1;
            self.home_loses(*tid);
        }
        self.calls = None;
        self.to_home.clear();
        self.to_host.clear();
        self.commands.clear();
        self.frozen = false;
        self.epoch += 1;
        self.moved += 1;
    }

    /// Everything on its way arrives, and everybody who is in a call gets to its end.
    pub fn rest(&mut self) {
        if self.frozen {
            self.frozen = false;
            self.calls.as_ref().expect("the book").open();
        }
        for _ in 0..10_000 {
            let waits = |body: &Body| body.doing == Doing::AtCall;
            if self.bodies.values().any(waits) {
                // Only those that are in the middle of something go on.
                let host = self.any(waits).expect("one");
                let others: Vec<i32> = self.bodies.keys().copied().filter(|other| *other != host).collect();
                let kept: Vec<(i32, Body)> = others
                    .into_iter()
                    .filter_map(|host| Some((host, self.bodies.remove(&host)?)))
                    .collect();
                self.run();
                self.bodies.extend(kept);
            }
            while !self.to_home.is_empty() && self.calls.is_some() {
                self.home();
            }
            while self.records.values().any(|record| record.open) {
                self.home_ends();
            }
            while !self.to_host.is_empty() && self.calls.is_some() {
                self.reply();
            }
            while !self.commands.is_empty() && self.calls.is_some() {
                self.tracer();
            }
            if self.bodies.values().all(|body| body.doing == Doing::Running) && self.to_home.is_empty() {
                return;
            }
        }
        panic!("somebody waits for ever: {self:#?}");
    }

    pub fn check(&self) {
        let mut seen = BTreeSet::new();
        for body in self.bodies.values() {
            assert!(seen.insert(body.tid), "two bodies are thread {}", body.tid);
            assert!(self.deputies.contains(&body.tid), "thread {} is not at home", body.tid);
        }
        if let Some(calls) = &self.calls {
            assert_eq!(
                calls.count(),
                self.bodies.len(),
                "the book has other threads than the process"
            );
            for (host, body) in &self.bodies {
                assert_eq!(calls.home_tid(*host), Some(Tid(body.tid)));
            }
        }
    }

    pub fn check_rest(&self) {
        let bodies: BTreeSet<i32> = self.bodies.values().map(|body| body.tid).collect();
        assert_eq!(bodies, self.deputies, "a thread is on one side only");
    }
}
