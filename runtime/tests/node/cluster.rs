//! Nodes of a test: folders, configurations, processes.

use mosix_runtime::link::{Identity, Pins, Security, Session, SessionOptions, Stream};
use mosix_runtime::node::{self, Authority, Config, Control};
use mosix_wire::control::{Fingerprint, OpenAgent, Peer, Purpose};
use mosix_wire::ids::{JobId, NodeName, Nonce};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The daemon, as a process.
pub fn daemon(config: &Path) -> ExitCode {
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(io::stderr)
        .with_env_filter("mosix_runtime=debug")
        .init();
    let outcome = Config::read(config).map_err(Into::into).and_then(node::run);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut source: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = source {
                eprintln!("mosixd: {error}");
                source = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

pub struct TestNode {
    pub name: String,
    pub port: u16,
    pub folder: PathBuf,
    process: Option<Child>,
}

pub struct Cluster {
    pub nodes: Vec<TestNode>,
    _folder: tempfile::TempDir,
}

fn free_ports(count: usize) -> Vec<u16> {
    let sockets: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    sockets
        .iter()
        .map(|socket| socket.local_addr().unwrap().port())
        .collect()
}

impl Cluster {
    /// A cluster n1…, not started.
    pub fn new(count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nodes: Vec<_> = free_ports(count)
            .into_iter()
            .enumerate()
            .map(|(at, port)| {
                let name = format!("n{}", at + 1);
                TestNode {
                    folder: folder.path().join(&name),
                    name,
                    port,
                    process: None,
                }
            })
            .collect();
        let mut authority = Authority::New;
        for node in &nodes {
            node::init(&node.state(), &node.name, &authority).unwrap();
            authority = Authority::folder(&nodes[0].state().join("keys"));
        }
        let cluster = Self { nodes, _folder: folder };
        let peers: Vec<_> = cluster
            .nodes
            .iter()
            .map(|node| (node.name.clone(), node.port))
            .collect();
        cluster.nodes.iter().for_each(|node| node.configure(&peers, ""));
        cluster
    }

    /// A cluster whose daemons run and whose links stand.
    pub fn up(count: usize) -> Self {
        let mut cluster = Self::new(count);
        cluster.nodes.iter_mut().for_each(TestNode::start);
        cluster
            .nodes
            .iter()
            .for_each(|node| node.wait("all links", |peers| peers.iter().all(|peer| peer.up)));
        cluster
    }
}

impl TestNode {
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub fn configure(&self, peers: &[(String, u16)], more: &str) {
        let peers: String = peers
            .iter()
            .map(|(name, port)| format!("  {{ name = \"{name}\", address = \"127.0.0.1:{port}\" }},\n"))
            .collect();
        let text = format!(
            "name = \"{}\"\nlisten = \"127.0.0.1:{}\"\nallow_loopback = true\nstate_dir = \"{}\"\n{more}\npeers = [\n{peers}]\n",
            self.name,
            self.port,
            self.state().display()
        );
        std::fs::write(self.folder.join("mosixd.toml"), text).unwrap();
    }

    pub fn command(&self) -> Command {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .arg("daemon")
            .arg(self.folder.join("mosixd.toml"))
            .stdin(Stdio::null())
            .stderr(log);
        command
    }

    pub fn start(&mut self) {
        self.process = Some(self.command().spawn().unwrap());
        let begun = Instant::now();
        while self.control().status().is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{} does not start:\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the daemon without warning.
    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Ends the daemon as a service manager does.
    pub fn stop(&mut self) -> bool {
        let mut process = self.process.take().unwrap();
        let pid = rustix::process::Pid::from_child(&process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        process.wait().unwrap().success()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Waits for a line of the log.
    pub fn wait_log(&self, part: &str) {
        let begun = Instant::now();
        while !self.log().contains(part) {
            assert!(
                begun.elapsed() < Duration::from_secs(15),
                "{:?} is not in the log of {}:\n{}",
                part,
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn control(&self) -> Control {
        Control::at(self.state())
    }

    /// Waits for a state of the peers.
    pub fn wait(&self, what: &str, good: impl Fn(&[Peer]) -> bool) {
        let begun = Instant::now();
        loop {
            let peers = self.control().nodes().unwrap_or_default();
            if !peers.is_empty() && good(&peers) {
                return;
            }
            if begun.elapsed() > Duration::from_secs(20) {
                panic!("{what}: {} has {peers:#?}\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn peer(&self, name: &str) -> Peer {
        self.control()
            .nodes()
            .unwrap()
            .into_iter()
            .find(|peer| peer.name.0 == name)
            .unwrap()
    }

    /// The sockets, logs and other files of agents.
    pub fn agent_files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.state().join("agents")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let agents = node.control().status().map(|status| status.agents).unwrap_or_default();
            for agent in agents {
                if let Some(pid) = rustix::process::Pid::from_raw(agent.pid.cast_signed()) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            if let Some(mut process) = node.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
            if std::thread::panicking() {
                println!("--- log of {}\n{}", node.name, node.log());
            }
        }
    }
}

/// What a supervisor has.
pub struct Supervisor {
    pub identity: Identity,
    pub job: JobId,
    pub home: Nonce,
    state: PathBuf,
    plain: bool,
}

impl Supervisor {
    pub fn at(node: &TestNode, job: u64) -> Self {
        Self {
            identity: Identity::generate().unwrap(),
            job: JobId(job),
            home: Nonce(job + 1),
            state: node.state(),
            plain: false,
        }
    }

    pub fn wants(&self, node: &str) -> OpenAgent {
        OpenAgent {
            node: NodeName(node.to_owned()),
            job: self.job,
            home: self.home,
            supervisor: self.identity.fingerprint(),
            uid: rustix::process::geteuid().as_raw(),
        }
    }

    pub fn control(&self) -> Control {
        Control::at(&self.state)
    }

    pub fn security(&self, agent: Fingerprint) -> Security {
        if self.plain {
            Security::Plain
        } else {
            Security::tls(&self.identity, &Pins::one(agent)).unwrap()
        }
    }

    pub fn stream(&self, node: &str, agent: Fingerprint, purpose: Purpose) -> io::Result<Stream> {
        let fd = self
            .control()
            .open_stream(&NodeName(node.to_owned()), self.job, purpose)?;
        Stream::dial(fd, &self.security(agent)).map_err(io::Error::other)
    }

    /// A session with the job's agent on a node.
    pub fn session(&self, node: &str, agent: Fingerprint) -> Session {
        let (control, security) = (self.control(), self.security(agent));
        let (node, job) = (NodeName(node.to_owned()), self.job);
        let opener = move || {
            let fd = control.open_stream(&node, job, Purpose::Session)?;
            Stream::dial(fd, &security).map_err(io::Error::other)
        };
        Session::dial(opener, SessionOptions::default()).unwrap()
    }

    pub fn plain(mut self) -> Self {
        self.plain = true;
        self
    }
}

/// A supervisor, as a process that waits to be killed.
pub fn supervisor(state: &Path) -> ! {
    let supervisor = Supervisor {
        identity: Identity::generate().unwrap(),
        job: JobId(0x11),
        home: Nonce(5),
        state: state.to_owned(),
        plain: false,
    };
    let agent = supervisor.control().open_agent(&supervisor.wants("n2")).unwrap();
    let session = supervisor.session("n2", agent);
    echo(&session, 0..10);
    println!("ready");
    loop {
        std::thread::park();
    }
}

/// Sends and gets back numbers.
pub fn echo(session: &Session, numbers: std::ops::Range<u64>) {
    for number in numbers.clone() {
        session.send(&number.to_le_bytes(), &[&[number as u8; 100]]).unwrap();
    }
    for number in numbers {
        let frame = session.recv().unwrap();
        assert_eq!((frame.body, frame.payload.len()), (number.to_le_bytes().to_vec(), 100));
    }
}

/// Waits until something holds.
pub fn eventually(what: &str, mut good: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !good() {
        assert!(begun.elapsed() < Duration::from_secs(15), "{what}: not within 15 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}
