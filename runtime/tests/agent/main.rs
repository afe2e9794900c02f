//! A real program on a real agent: it moves there, calls home, gets signals, is fetched and thawed, moves, and ends, with a home that
//! answers the few calls of the guest by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use mosix_runtime::agent::run::run;
use mosix_runtime::link::{Security, Session, SessionOptions, Stream};
use mosix_runtime::node::agent_start::AgentStart;
use mosix_runtime::node::config::Transport;
use mosix_runtime::node::{message, paths};
use mosix_runtime::process::capture::{self, capture};
use mosix_runtime::process::freeze::freeze;
use mosix_runtime::process::inject::inject;
use mosix_runtime::process::layout::{Run, of_home, runs, vdso};
use mosix_runtime::process::maps;
use mosix_runtime::process::memory::Feed;
use mosix_runtime::transfer::{self, Way};
use mosix_sys::process::{Fork, Wait, exit_now, fork, wait_for};
use mosix_sys::procmem::ProcMem;
use mosix_wire::call::{Call, Reply};
use mosix_wire::control::{AgentAnswer, AgentMessage, Fingerprint, Purpose, StreamHello};
use mosix_wire::frame::encode_body;
use mosix_wire::ids::{Epoch, JobId, NodeName, Nonce, Pid, Tid};
use mosix_wire::image::{ProcessImage, SigInfo};
use mosix_wire::limits;
use mosix_wire::link::{Destination, Exit, PageRun, ToHome, ToHost};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const JOB: JobId = JobId(77);
const HOME: Nonce = Nonce(0xabc);
/// What home says to calls it does not know.
const ANSWER: i64 = 4242;
const PATIENCE: Duration = Duration::from_secs(20);

const GUEST: &str = r#"
import os, signal, threading, time, sys
log = []
def on(sig, frame): log.append(sig)
signal.signal(signal.SIGUSR1, on)
signal.signal(signal.SIGALRM, on)
total = 0
def work():
    global total
    n = 0
    for i in range(1000000): n = (n * 31 + i) % 1000003
    total += n
ts = [threading.Thread(target=work) for _ in range(3)]
[t.start() for t in ts]
os.write(1, b"R")
[t.join() for t in ts]
os.write(1, b"sum %d\n" % total)
os.write(1, b"parent %d\n" % os.getppid())
begin = time.monotonic()
time.sleep(0.2)
took = time.monotonic() - begin
os.write(1, b"slept %d\n" % (0.19 < took < 2))
while len(log) < 2: time.sleep(0.05)
os.write(1, b"signals %s\n" % repr(log).encode())
r, w = 0, 0
x = signal.sigtimedwait([signal.SIGUSR2], 30) if signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]) is not None else None
os.write(1, b"waited %d from %d\n" % (x.si_signo, x.si_pid))
while os.getppid() != 1: time.sleep(0.02)
os.write(1, b"end\n")
os._exit(43)
"#;

mod escape;

fn main() {
    agent_for("a_program_lives_on_an_agent", there_and_back);
    agent_for("a_guest_reaches_nothing_of_its_host", escape::run);
}

/// Runs a case with an agent of its own, which must end well and leave nothing.
fn agent_for(name: &str, case: fn(&Path)) {
    let dir = tempfile::tempdir().expect("folder");
    let start = AgentStart {
        job: JOB,
        node: NodeName("n2".into()),
        home_node: NodeName("n1".into()),
        home: HOME,
        supervisor: Fingerprint([0; 32]).to_string(),
        uid: rustix::process::geteuid().as_raw(),
        outside: rustix::process::geteuid().is_root().then_some(1_900_000_077),
        memory: Some(256 << 20),
        state_dir: dir.path().to_owned(),
        runtime_dir: None,
        transport: Transport::Plain,
    };
    let agent = match fork().expect("one thread") {
        Fork::Child => {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .with_max_level(tracing::Level::DEBUG)
                .init();
            exit_now(match run(&start) {
                Ok(why) => {
                    eprintln!("agent: {why}");
                    0
                }
                Err(error) => {
                    eprintln!("agent: {error:#}");
                    1
                }
            })
        }
        Fork::Parent(pid) => pid,
    };
    let socket = paths::agent_socket(dir.path(), JOB);
    let begin = Instant::now();
    while !socket.exists() {
        assert!(begin.elapsed() < PATIENCE, "the agent does not listen");
        std::thread::sleep(Duration::from_millis(2));
    }
    case(&socket);
    let status = loop {
        if let Wait::Some(waited) = wait_for(agent, true)
            && waited.status.is_end()
        {
            break waited.status;
        }
    };
    assert_eq!(status.code(), Some(0), "the agent ends well");
    // The daemon removes the socket of an agent with a user of its own.
    assert!(start.outside.is_some() || !socket.exists(), "its socket is gone");
    println!("test {name} ... ok");
}

/// Gives the agent one end of a connection, as its node's daemon does.
fn connect(socket: &Path, purpose: Purpose) -> Stream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    let daemon = UnixStream::connect(socket).unwrap();
    let hello = StreamHello {
        job: JOB,
        purpose,
        from: NodeName("n1".into()),
    };
    message::send(
        &daemon,
        &AgentMessage::Stream(hello),
        limits::STREAM_HELLO,
        &[theirs.as_fd()],
    )
    .unwrap();
    let (answer, _) = message::recv::<AgentAnswer>(&daemon, limits::STREAM_HELLO).unwrap();
    assert_eq!(answer, AgentAnswer::Taken);
    Stream::dial(OwnedFd::from(ours), &Security::Plain).unwrap()
}

/// Home's half of the few calls that the guest makes.
struct Home {
    session: Session,
    written: Mutex<Vec<u8>>,
    parent: Mutex<i64>,
    /// The open sleep: call and when it ends.
    sleeping: Mutex<Option<(Call, Instant)>>,
    /// Numbers of other calls, all answered with [`ANSWER`].
    others: Mutex<Vec<u32>>,
}

impl Home {
    /// Opens the session.
    fn new(socket: &Path) -> (Arc<Self>, Receiver<ToHome>) {
        let socket = socket.to_owned();
        let opener = move || Ok(connect(&socket, Purpose::Session));
        let session = Session::dial(opener, SessionOptions::default()).unwrap();
        let home = Arc::new(Self {
            session,
            written: Mutex::default(),
            parent: Mutex::new(7777),
            sleeping: Mutex::default(),
            others: Mutex::default(),
        });
        let (tx, from) = channel();
        let reader = Arc::clone(&home);
        std::thread::spawn(move || reader.read(tx));
        home.tell(&ToHost::Hello {
            job: JOB,
            home: HOME,
            lease_s: 60,
            clocks: capture::clocks(),
        });
        expect(&from, |m| matches!(m, ToHome::Welcome { .. }));
        (home, from)
    }

    fn tell(&self, message: &ToHost) {
        self.session.send(&encode_body(message).unwrap(), &[]).unwrap();
    }

    fn answer(&self, call: &Call, result: i64) {
        let reply = Reply {
            pid: call.pid,
            tid: call.tid,
            seq: call.seq,
            result,
            lengths: vec![],
        };
        // Outputs of the guest's calls are not needed, but must fit.
        let lengths = call.outputs.iter().map(|_| 0).collect();
        self.tell(&ToHost::Reply(Reply { lengths, ..reply }));
    }

    fn call(self: &Arc<Self>, call: Call, payload: &[u8]) {
        match i64::from(call.nr) {
            libc::SYS_write => {
                let (at, length) = (call.args[1] as usize, call.args[2] as usize);
                self.written
                    .lock()
                    .unwrap()
                    .extend_from_slice(&payload[at..at + length]);
                self.answer(&call, length as i64);
            }
            libc::SYS_getppid => self.answer(&call, *self.parent.lock().unwrap()),
            libc::SYS_clock_nanosleep => {
                let at = call.args[2] as usize;
                let word = |at: usize| u64::from_le_bytes(payload[at..at + 8].try_into().unwrap());
                let time = Duration::new(word(at), word(at + 8) as u32);
                // Python sleeps to an absolute monotonic time, which is this machine's in this test.
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
                let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
                let left = if call.args[1] & 1 != 0 {
                    time.saturating_sub(now)
                } else {
                    time
                };
                let seq = call.seq;
                *self.sleeping.lock().unwrap() = Some((call, Instant::now() + left));
                let home = Arc::clone(self);
                std::thread::spawn(move || {
                    std::thread::sleep(left);
                    let done = home.sleeping.lock().unwrap().take_if(|(call, _)| call.seq == seq);
                    if let Some((call, _)) = done {
                        home.answer(&call, 0);
                    }
                });
            }
            _ => {
                self.others.lock().unwrap().push(call.nr);
                self.answer(&call, ANSWER);
            }
        }
    }

    fn read(self: Arc<Self>, to: std::sync::mpsc::Sender<ToHome>) {
        while let Ok(frame) = self.session.recv() {
            match frame.message::<ToHome>().unwrap() {
                ToHome::Call(call) => self.call(call, &frame.payload),
                ToHome::Cancel { seq, .. } => {
                    let cancelled = self.sleeping.lock().unwrap().take_if(|(call, _)| call.seq == seq);
                    if let Some((call, _)) = cancelled {
                        self.answer(&call, -514);
                    }
                }
                other => to.send(other).unwrap(),
            }
        }
    }

    fn wait_for_text(&self, text: &str) {
        let begin = Instant::now();
        while !String::from_utf8_lossy(&self.written.lock().unwrap()).contains(text) {
            assert!(
                begin.elapsed() < PATIENCE,
                "no {text:?} in {:?}",
                String::from_utf8_lossy(&self.written.lock().unwrap())
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn expect(from: &Receiver<ToHome>, what: impl Fn(&ToHome) -> bool) -> ToHome {
    let begin = Instant::now();
    loop {
        match from.recv_timeout(PATIENCE.saturating_sub(begin.elapsed())) {
            Ok(message) if what(&message) => return message,
            Ok(ToHome::Refused { reason, .. } | ToHome::CannotDepart { reason, .. }) => panic!("{reason}"),
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// A program taken apart.
struct Taken {
    child: std::process::Child,
    image: ProcessImage,
    paths: Vec<PathBuf>,
    runs: Vec<Run>,
}

/// Starts a guest, and takes it apart where it stands after its first byte.
fn take(mut command: Command, epoch: Epoch) -> Taken {
    command
        .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("the guest starts");
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).expect("ready");
    let pid = child.id() as i32;
    let frozen = freeze(pid, &[], Duration::from_secs(2)).expect("freezes");
    let before = maps::read(pid).expect("maps");
    let window = inject((frozen.pid, frozen.threads[0].tid), &before).expect("injects");
    let captured = capture(
        &frozen,
        &window,
        &(0..frozen.threads.len() as u32).collect::<Vec<_>>(),
        |tid| tid,
    )
    .expect("captures");
    let layout = of_home(pid, &before, || None).expect("can move");
    let image = ProcessImage {
        pid: Pid(pid),
        epoch,
        home: HOME,
        uid: rustix::process::geteuid().as_raw(),
        exe: "/usr/bin/python3".into(),
        threads: captured.threads,
        vmas: layout.vmas.clone(),
        files: layout.files.clone(),
        mm: capture::mm(pid, captured.brk).expect("mm"),
        actions: captured.actions,
        pending: vec![],
        signals: 0,
        spent: Default::default(),
        home_cpu_ns: 0,
        clocks: capture::clocks(),
        vdso: vdso(&ProcMem::force(pid).expect("mem"), &before),
        cpu: mosix_runtime::cpu::record(),
        attributes: captured.attributes,
    };
    let runs = runs(pid, &layout.vmas, &layout.pages).expect("runs");
    Taken {
        child,
        image,
        paths: layout.paths.into_iter().map(PathBuf::from).collect(),
        runs,
    }
}

impl Taken {
    /// Sends files, image and pages, and has the body released.
    fn arrive(&self, socket: &Path, home: &Home, from: &Receiver<ToHome>) {
        let (image, pid, epoch) = (&self.image, self.image.pid, self.image.epoch);
        let mut stream = connect(socket, Purpose::Pages);
        let files = image.files.clone();
        send(&mut stream, &ToHost::Files { pid, epoch, files }, &[]);
        let ToHome::Lacks(lacks) = stream.recv().unwrap().message().unwrap() else {
            panic!("no Lacks")
        };
        for (file, path) in image
            .files
            .iter()
            .zip(&self.paths)
            .filter(|(file, _)| lacks.contains(file))
        {
            let bytes = std::fs::read(path).unwrap();
            for (index, part) in bytes.chunks(1 << 20).enumerate() {
                let offset = (index << 20) as u64;
                let last = offset + part.len() as u64 == bytes.len() as u64;
                send(
                    &mut stream,
                    &ToHost::FileBytes {
                        file: file.clone(),
                        offset,
                        last,
                    },
                    part,
                );
            }
        }
        send(&mut stream, &ToHost::Arrive(Box::new(image.clone())), &[]);
        let deputy = ProcMem::force(pid.0).unwrap();
        // The pages flow on the stream itself and on two lanes.
        let lane = || -> Result<Stream, transfer::Failure> { Ok(connect(socket, Purpose::Pages)) };
        let lanes = transfer::open_lanes(2, (pid, epoch), false, lane).unwrap();
        let lanes: Vec<_> = lanes.into_iter().map(|lane| lane.split().0).collect();
        let feed = Feed::new(&deputy, &self.runs);
        let (mut stream, _) = stream.split();
        let pages = transfer::send((pid, Way::ToHost), &feed, &mut stream, lanes, &|_| {}).unwrap();
        stream.send(&Way::ToHost.end(pid, pages, 2).unwrap(), &[]).unwrap();
        expect(from, |m| matches!(m, ToHome::Complete { epoch: e, .. } if *e == epoch));
        home.tell(&ToHost::Run { pid, epoch });
        expect(from, |m| matches!(m, ToHome::Running { epoch: e, .. } if *e == epoch));
    }

    /// Ends the original.
    fn end(mut self) {
        self.child.kill().unwrap();
        let tids: Vec<i32> = self.image.threads.iter().map(|thread| thread.tid.0).collect();
        mosix_runtime::agent::birth::end_threads(self.image.pid.0, &tids);
    }
}

fn send(stream: &mut Stream, message: &ToHost, payload: &[u8]) {
    stream.send(&encode_body(message).unwrap(), &[payload]).unwrap();
}

fn siginfo(signal: i32, pid: i32) -> SigInfo {
    let mut info = [0u8; 128];
    info[..4].copy_from_slice(&signal.to_le_bytes());
    info[16..20].copy_from_slice(&pid.to_le_bytes());
    SigInfo(info.to_vec())
}

fn there_and_back(socket: &Path) {
    let (home, from) = Home::new(socket);

    // There.
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-S", "-c", GUEST]);
    let taken = take(command, Epoch(1));
    let pid = taken.image.pid;
    let begin = Instant::now();
    taken.arrive(socket, &home, &from);
    println!("arrival took {:?}", begin.elapsed());
    home.wait_for_text("slept 1\n");
    let text = String::from_utf8_lossy(&home.written.lock().unwrap()).into_owned();
    let sum = { (0..1_000_000u64).fold(0, |n, i| (n * 31 + i) % 1_000_003) * 3 };
    assert!(text.starts_with(&format!("sum {sum}\nparent 7777\n")), "{text}");

    // Signals: one handled in a sleep, one by number of another process; then one that is waited for, with its true sender.
    home.tell(&ToHost::Signal {
        number: 1,
        pid,
        tid: None,
        info: siginfo(libc::SIGUSR1, 1),
    });
    std::thread::sleep(Duration::from_millis(100));
    home.tell(&ToHost::Signal {
        number: 2,
        pid,
        tid: Some(Tid(pid.0)),
        info: siginfo(libc::SIGALRM, 2),
    });
    home.wait_for_text("signals [10, 14]\n");

    // Fetched while it waits, and thawed.
    std::thread::sleep(Duration::from_millis(50));
    fetch(socket, &home, &from, pid, Epoch(2));
    home.tell(&ToHost::Thaw {
        pid,
        attempt: Epoch(2),
        epoch: Epoch(1),
    });
    home.tell(&ToHost::Signal {
        number: 3,
        pid,
        tid: None,
        info: siginfo(libc::SIGUSR2, 4321),
    });
    home.wait_for_text("waited 12 from 4321\n");

    // Stopped and continued; computing on, it asks for its parent until it is 1.
    home.tell(&ToHost::Stop { pid, stop: true });
    std::thread::sleep(Duration::from_millis(100));
    *home.parent.lock().unwrap() = 1;
    std::thread::sleep(Duration::from_millis(200));
    assert!(
        !String::from_utf8_lossy(&home.written.lock().unwrap()).contains("end"),
        "it is stopped"
    );
    home.tell(&ToHost::Stop { pid, stop: false });
    home.wait_for_text("end\n");
    let end = expect(&from, |m| matches!(m, ToHome::Exited { .. }));
    assert_eq!(
        end,
        ToHome::Exited {
            pid,
            epoch: Epoch(1),
            how: Exit::Code(43)
        }
    );
    hostile(socket, &home, &from, &taken.image);
    taken.end();
    home.tell(&ToHost::Bye);
}

/// Fetches the image of a body on a page stream and compares it with what a body must keep.
fn fetch(socket: &Path, home: &Home, from: &Receiver<ToHome>, pid: Pid, epoch: Epoch) {
    let _ = home;
    let begin = Instant::now();
    let open = || -> Result<Stream, transfer::Failure> { Ok(connect(socket, Purpose::Pages)) };
    let mut lanes = transfer::open_lanes(1, (pid, epoch), true, open).unwrap();
    let mut stream = connect(socket, Purpose::Pages);
    send(
        &mut stream,
        &ToHost::Depart {
            pid,
            epoch,
            to: Destination::Home,
            known_files: vec![],
            lanes: 1,
        },
        &[],
    );
    let ToHome::Departing(image) = stream.recv().unwrap().message().unwrap() else {
        panic!("no image")
    };
    println!("freeze and capture took {:?}", begin.elapsed());
    assert_eq!((image.pid, image.epoch), (pid, epoch));
    assert_eq!(
        image.threads[0].regs[15] as i64,
        libc::SYS_rt_sigtimedwait,
        "it waits for a signal"
    );
    assert!(image.vdso.is_some() && image.vmas.len() > 10 && !image.files.is_empty());
    let mut pages = 0;
    // A lane ends by itself, the stream itself only after all lanes.
    for (stream, announced) in [(&mut lanes[0], 0), (&mut stream, 1)] {
        let mut here = 0;
        loop {
            let frame = stream.recv().unwrap();
            match frame.message::<ToHome>().unwrap() {
                ToHome::Pages { runs, .. } => {
                    assert_eq!(
                        runs.iter().map(|run| u64::from(run.pages)).sum::<u64>() * 4096,
                        frame.payload.len() as u64
                    );
                    here += frame.payload.len() as u64 / 4096;
                }
                ToHome::ImageEnd { pages: sent, lanes, .. } => {
                    assert_eq!((here, announced), (sent, lanes));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        pages += here;
    }
    expect(from, |m| matches!(m, ToHome::Frozen { epoch: e, .. } if *e == epoch));
    println!("fetched {pages} pages in {:?}", begin.elapsed());
}

/// Images and streams that no honest home sends: each is refused with a reason, and the agent lives on.
fn hostile(socket: &Path, home: &Home, from: &Receiver<ToHome>, good: &ProcessImage) {
    let damages: [fn(&mut ProcessImage); 6] = [
        |i| i.vmas[0].start = 0x7e80_0000_0000,
        |i| i.threads.clear(),
        |i| i.pid = Pid(1),
        |i| i.cpu.flags.push("warp-drive".into()),
        |i| i.files[0].inode = 0x5ec2e7,
        |i| i.threads[0].xsave.truncate(600),
    ];
    for (index, damage) in damages.into_iter().enumerate() {
        let mut image = good.clone();
        image.epoch = Epoch(100 + index as u64);
        damage(&mut image);
        let mut stream = connect(socket, Purpose::Pages);
        send(&mut stream, &ToHost::Arrive(Box::new(image.clone())), &[]);
        let refused = loop {
            match from.recv_timeout(PATIENCE).expect("an answer") {
                ToHome::Refused { epoch, reason, .. } if epoch == image.epoch => break reason,
                ToHome::Complete { .. } => panic!("damage {index} was built"),
                _ => {}
            }
        };
        println!("damage {index}: {refused}");
    }
    // Pages where none may be, over a good beginning.
    let mut image = good.clone();
    image.epoch = Epoch(200);
    let mut stream = connect(socket, Purpose::Pages);
    send(&mut stream, &ToHost::Arrive(Box::new(image)), &[]);
    send(
        &mut stream,
        &ToHost::Pages {
            pid: good.pid,
            runs: vec![PageRun {
                address: 0x7e80_0000_0000,
                pages: 1,
            }],
        },
        &[0x90; 4096],
    );
    expect_refused(from, Epoch(200));
    let _ = home;
}

fn expect_refused(from: &Receiver<ToHome>, wanted: Epoch) {
    loop {
        match from.recv_timeout(PATIENCE).expect("an answer") {
            ToHome::Refused { epoch, .. } if epoch == wanted => return,
            _ => {}
        }
    }
}
