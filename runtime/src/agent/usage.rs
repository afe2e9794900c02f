//! What a body uses of its host, on top of what its process used on earlier hosts.
//!
//! The kernel tells of another process its CPU time to the nanosecond, and how it divides into user and system time by clock ticks. What
//! building the body cost is counted too; home's part of an answer comes from home.

use super::guest::Guest;
use super::limits;
use super::shared::{BodyCalls, lock};
use crate::process::stat::Stat;
use crate::process::status::Status;
use crate::syscall::emulate::CpuClock;
use crate::syscall::memory::GuestMemory;
use crate::syscall::rusage::{self, Part};
use mosix_wire::ids::Tid;
use mosix_wire::image::ProcessImage;
use mosix_wire::link::ToHome;
use mosix_wire::spent::{CpuTime, Spent};
use std::borrow::Cow;
use std::collections::HashMap;

/// CPU time of one body, or of one thread of it.
#[derive(Debug, Clone, Copy, Default)]
struct Track {
    /// On earlier hosts.
    before: CpuTime,
    /// Here, as was last told.
    here: CpuTime,
}

/// What home has used of a clock, as was last told, and after how many messages about calls.
#[derive(Debug, Clone, Copy)]
struct Told {
    ns: u64,
    traffic: u64,
}

/// What one body has used, by this node's numbers.
#[derive(Debug, Default)]
pub struct Meter {
    before: Spent,
    here: CpuTime,
    threads: HashMap<i32, Track>,
    /// Home's part of CPU clocks: of the process, of threads.
    told: HashMap<Option<i32>, Told>,
    /// CPU time at home before the departure.
    home_ns: u64,
    /// The process's limit of CPU time, soft and hard in seconds.
    limit: Option<(u64, u64)>,
}

impl Meter {
    /// For the threads of an arriving image.
    pub fn new(image: &ProcessImage, tids: &[i32]) -> Self {
        let track = |before| Track {
            before,
            ..Track::default()
        };
        let threads = tids.iter().zip(&image.threads);
        Self {
            before: image.spent,
            home_ns: image.home_cpu_ns,
            limit: image.attributes.cpu_limit,
            threads: threads.map(|(tid, thread)| (*tid, track(thread.cpu))).collect(),
            ..Self::default()
        }
    }

    /// For a child that the process has just made: it has used nothing, and has the same limit.
    pub fn child(&self, host: i32) -> Self {
        let mut child = Self {
            limit: self.limit,
            ..Self::default()
        };
        child.limit_cpu(host, None);
        child
    }

    /// A new thread has this number.
    pub fn born(&mut self, tid: i32) {
        self.threads.insert(tid, Track::default());
        self.told.remove(&Some(tid));
    }

    /// All that the process has used on hosts.
    pub fn process(&mut self, host: i32) -> Spent {
        let stat = Stat::read(host).ok();
        let of = |field: fn(&Stat) -> u64| stat.as_ref().map_or(0, field);
        let (user, system) = (of(|stat| stat.user), of(|stat| stat.system));
        self.here = self.here.advance(cpu_ns(host, None).unwrap_or(0), user, system);
        let peak = Status::read(host).ok().and_then(|status| status.number::<u64>("VmHWM"));
        self.before.plus(Spent {
            cpu: self.here,
            minor_faults: of(|stat| stat.minor_faults),
            major_faults: of(|stat| stat.major_faults),
            peak: peak.unwrap_or(0) << 10,
        })
    }

    /// CPU time of a thread on hosts.
    pub fn thread(&mut self, host: i32, tid: i32) -> CpuTime {
        let times = Stat::of_thread(host, tid).map_or((0, 0), |stat| (stat.user, stat.system));
        self.thread_as(host, tid, times)
    }

    /// The same, with its time here divided as that of the process: for whoever asks for all threads while the program stands still.
    pub fn thread_alike(&mut self, host: i32, tid: i32) -> CpuTime {
        self.thread_as(host, tid, (self.here.user_ns, self.here.system_ns))
    }

    fn thread_as(&mut self, host: i32, tid: i32, (user, system): (u64, u64)) -> CpuTime {
        let track = self.threads.entry(tid).or_default();
        track.here = track.here.advance(cpu_ns(host, Some(tid)).unwrap_or(0), user, system);
        track.before.plus(track.here)
    }

    /// The process's limit of CPU time.
    pub fn cpu_limit(&self) -> Option<(u64, u64)> {
        self.limit
    }

    /// Limits the body's CPU time to what is left of the process's limit, or of a new one.
    pub fn limit_cpu(&mut self, host: i32, new: Option<(u64, u64)>) {
        self.limit = new.or(self.limit);
        let elsewhere = self.home_ns.saturating_add(self.before.cpu.total());
        if let Some(limit) = self.limit
            && let Err(error) = limits::cpu(host, limit, elsewhere)
        {
            tracing::warn!(host, %error, "the limit of CPU time is not the body's");
        }
    }

    /// A CPU clock without home's part: of the process, or of a thread.
    fn clock(&self, host: i32, thread: Option<i32>) -> u64 {
        let before = match thread {
            None => self.before.cpu,
            Some(tid) => self.threads.get(&tid).copied().unwrap_or_default().before,
        };
        before.total().saturating_add(cpu_ns(host, thread).unwrap_or(0))
    }
}

/// CPU time here in nanoseconds of a process, or of one thread of it.
fn cpu_ns(host: i32, thread: Option<i32>) -> Option<u64> {
    match thread {
        Some(tid) => {
            let text = std::fs::read_to_string(format!("/proc/{host}/task/{tid}/schedstat")).ok()?;
            text.split_whitespace().next()?.parse().ok()
        }
        // With that of ended threads.
        None => crate::process::stat::cpu_ns(host),
    }
}

/// Whether a thread of a process runs or is ready to run.
fn runs(host: i32) -> bool {
    let ready = |tid: &i32| crate::process::stat::state(host, *tid) == Some('R');
    crate::process::freeze::threads(host).is_ok_and(|tids| tids.iter().any(ready))
}

/// What home is told of a body; nothing when it is gone.
pub fn report(body: &BodyCalls) -> Option<ToHome> {
    let host = body.host;
    let status = Status::read(host).ok()?;
    Some(ToHome::Usage {
        pid: body.pid,
        spent: lock(&body.usage).process(host),
        resident: status.number::<u64>("VmRSS").unwrap_or(0) << 10,
        threads: status.number("Threads")?,
        running: runs(host),
    })
}

/// The process or thread, by this node's number, whose clock it is, when it is one of the body's own.
fn owner(body: &BodyCalls, caller: i32, clock: CpuClock) -> Option<Option<i32>> {
    match clock {
        CpuClock::Process => Some(None),
        CpuClock::Thread => Some(Some(caller)),
        CpuClock::Other(tid, false) => body.calls.host_tid(Tid(tid)).map(Some),
        CpuClock::Other(_, true) => None,
    }
}

/// A CPU clock of the body's own, when nothing was done at home since home last told of its part.
pub fn clock(body: &BodyCalls, caller: i32, clock: CpuClock) -> Option<u64> {
    let owner = owner(body, caller, clock)?;
    let meter = lock(&body.usage);
    let told = meter.told.get(&owner)?;
    let fresh = told.traffic == body.calls.traffic();
    fresh.then(|| meter.clock(body.host, owner).saturating_add(told.ns))
}

/// Adds the body's part to the outputs of a call that home has answered.
pub fn add<'a>(body: &BodyCalls, caller: i32, part: Option<Part>, result: i64, outputs: &'a [u8]) -> Cow<'a, [u8]> {
    let Some(part) = part.filter(|_| result >= 0) else {
        return Cow::Borrowed(outputs);
    };
    let mut outputs = outputs.to_vec();
    let mut meter = lock(&body.usage);
    match part {
        Part::Clock(clock) => {
            if let Some(owner) = owner(body, caller, clock) {
                let told = Told {
                    ns: rusage::timespec_ns(&outputs),
                    traffic: body.calls.traffic(),
                };
                meter.told.insert(owner, told);
                rusage::add_to_timespec(&mut outputs, meter.clock(body.host, owner));
            }
        }
        Part::CpuLimit(soft, hard) => meter.limit_cpu(body.host, Some((soft, hard))),
        Part::Thread => {
            let cpu = meter.thread(body.host, caller);
            rusage::add(part, &mut outputs, &Spent::default(), cpu);
        }
        Part::Process | Part::Times => {
            let spent = meter.process(body.host);
            rusage::add(part, &mut outputs, &spent, CpuTime::default());
        }
    }
    Cow::Owned(outputs)
}

/// Writes a clock's time where a call wants it; the call's result.
pub fn tell(caller: i32, at: u64, ns: u64) -> i64 {
    let mut bytes = [0; 16];
    rusage::add_to_timespec(&mut bytes, ns);
    match Guest::of(caller).write(at, &bytes) {
        Ok(()) => 0,
        Err(_) => -i64::from(libc::EFAULT),
    }
}
