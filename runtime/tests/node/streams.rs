//! Agents and streams through the daemons, and daemons that go and come back.

use crate::cluster::{Cluster, Supervisor, echo, eventually};
use mosix_runtime::link::{Closed, State};
use mosix_runtime::node::ClientError;
use mosix_wire::control::Purpose;
use std::time::Duration;

pub fn two_nodes() {
    let cluster = Cluster::up(2);
    let supervisor = Supervisor::at(&cluster.nodes[0], 0x10);
    let agent = supervisor.control().open_agent(&supervisor.wants("n2")).unwrap();
    assert_eq!(supervisor.control().open_agent(&supervisor.wants("n2")).unwrap(), agent);
    let session = supervisor.session("n2", agent);
    echo(&session, 0..1000);
    let mut pages = supervisor.stream("n2", agent, Purpose::Pages).unwrap();
    let payload = vec![3; 1 << 20];
    pages.send(b"", &[&payload]).unwrap();
    assert_eq!(pages.recv().unwrap().body, (3_u64 << 20).to_le_bytes());

    let status = cluster.nodes[1].control().status().unwrap();
    assert_eq!(status.agents.len(), 1);
    assert_eq!(
        (status.agents[0].home.0.as_str(), status.agents[0].adopted),
        ("n1", false)
    );
    let peer = cluster.nodes[0].peer("n2");
    assert!(peer.kernel.is_some() && peer.last_error.is_none(), "{peer:?}");
    eventually("a round trip is measured", || {
        cluster.nodes[0].peer("n2").rtt_us.is_some()
    });

    // An agent of the home node itself works alike.
    let own = supervisor.control().open_agent(&supervisor.wants("n1")).unwrap();
    echo(&supervisor.session("n1", own), 0..10);

    // Nobody without the key gets through, and is told so by both ends.
    let stranger = Supervisor::at(&cluster.nodes[0], 0x10);
    let error = stranger
        .stream("n2", agent, Purpose::Pages)
        .and_then(|mut stream| stream.recv().map_err(std::io::Error::other));
    let said = error.unwrap_err().to_string();
    assert!(said.contains("refused our certificate"), "{said}");
    echo(&session, 0..10);

    // A supervisor that dies without a farewell: its end is certain, and its agent ends at once.
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["supervisor", &cluster.nodes[0].state().display().to_string()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
    let lives = |job: u64| {
        cluster.nodes[1]
            .control()
            .status()
            .unwrap()
            .agents
            .iter()
            .any(|agent| agent.job.0 == job)
    };
    assert!(lives(0x11));
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the dead supervisor's agent ends", || !lives(0x11));
    assert!(lives(0x10));

    // The session's end is the agent's end.
    session.close();
    eventually("the agent ends", || {
        cluster.nodes[1].control().status().unwrap().agents.is_empty()
    });
    eventually("nothing of the agent is left", || {
        cluster.nodes[1].agent_files().is_empty()
    });
    let said = supervisor
        .stream("n2", agent, Purpose::Session)
        .err()
        .unwrap()
        .to_string();
    assert!(said.contains("n2 has no agent of job"), "{said}");
}

pub fn host_is_restarted() {
    let mut cluster = Cluster::up(2);
    let supervisor = Supervisor::at(&cluster.nodes[0], 0x20);
    let agent = supervisor.control().open_agent(&supervisor.wants("n2")).unwrap();
    let session = supervisor.session("n2", agent);
    echo(&session, 0..10);
    let pid = cluster.nodes[1].control().status().unwrap().agents[0].pid;

    cluster.nodes[1].kill();
    cluster.nodes[0].wait("n1 sees that n2 is gone", |peers| peers.iter().any(|peer| !peer.up));
    // What runs goes on without the daemon; what is new does not.
    echo(&session, 10..100);
    let said = supervisor
        .stream("n2", agent, Purpose::Pages)
        .err()
        .unwrap()
        .to_string();
    assert!(said.contains("no stream to n2 at 127.0.0.1"), "{said}");
    let other = Supervisor::at(&cluster.nodes[0], 0x21);
    match other.control().open_agent(&other.wants("n2")) {
        Err(ClientError::Refused(why)) => assert!(why.contains("no link to n2"), "{why}"),
        unexpected => panic!("{unexpected:?}"),
    }

    cluster.nodes[1].start();
    let agents = cluster.nodes[1].control().status().unwrap().agents;
    assert_eq!((agents.len(), agents[0].pid, agents[0].adopted), (1, pid, true));
    cluster.nodes[0].wait("the link is back", |peers| peers.iter().all(|peer| peer.up));
    assert_eq!(supervisor.control().open_agent(&supervisor.wants("n2")).unwrap(), agent);
    session.cut();
    echo(&session, 100..200);

    // The same with a proper stop: the socket goes, the agent does not.
    assert!(cluster.nodes[1].stop());
    assert!(!cluster.nodes[1].state().join("control.sock").exists());
    echo(&session, 200..300);
    cluster.nodes[1].start();
    session.cut();
    echo(&session, 300..400);
    session.close();
    eventually("the adopted agent's end is noticed", || {
        cluster.nodes[1].control().status().unwrap().agents.is_empty()
    });
    eventually("nothing of the agent is left", || {
        cluster.nodes[1].agent_files().is_empty()
    });
}

pub fn home_is_restarted() {
    let mut cluster = Cluster::up(2);
    let supervisor = Supervisor::at(&cluster.nodes[0], 0x30);
    let agent = supervisor.control().open_agent(&supervisor.wants("n2")).unwrap();
    let session = supervisor.session("n2", agent);
    echo(&session, 0..10);
    cluster.nodes[0].kill();
    session.cut();
    // Sent while nothing can carry it: kept.
    session.send(b"late", &[]).unwrap();
    eventually(
        "the session is down and says why",
        || matches!(session.state(), State::Down { why, .. } if why.contains("mosixd")),
    );
    std::thread::sleep(Duration::from_millis(300));
    cluster.nodes[0].start();
    assert_eq!(session.recv().unwrap().body, b"late");
    echo(&session, 0..100);
    assert_eq!(session.state(), State::Up);
    session.close();
}

pub fn three_nodes() {
    let mut cluster = Cluster::up(3);
    let supervisor = Supervisor::at(&cluster.nodes[0], 0x40);
    let mut sessions = Vec::new();
    for node in ["n2", "n3"] {
        let agent = supervisor.control().open_agent(&supervisor.wants(node)).unwrap();
        sessions.push(supervisor.session(node, agent));
    }
    sessions.iter().for_each(|session| echo(session, 0..100));
    // n3's daemon opens a stream to the agent on n2, as a move from host to host needs it.
    let n2 = supervisor.control().open_agent(&supervisor.wants("n2")).unwrap();
    let from_n3 = cluster.nodes[2].control();
    let fd = from_n3
        .open_stream(&mosix_wire::ids::NodeName("n2".into()), supervisor.job, Purpose::Pages)
        .unwrap();
    let mut stream = mosix_runtime::link::Stream::dial(fd, &supervisor.security(n2)).unwrap();
    stream.send(b"", &[&[1; 5000]]).unwrap();
    assert_eq!(stream.recv().unwrap().body, 5000_u64.to_le_bytes());

    // One node is away and back; the others do not care.
    cluster.nodes[2].kill();
    cluster.nodes[0].wait("n3 is down", |peers| {
        peers
            .iter()
            .filter(|peer| !peer.up)
            .map(|peer| &*peer.name.0)
            .eq(["n3"])
    });
    echo(&sessions[0], 0..10);
    cluster.nodes[2].start();
    for node in &cluster.nodes {
        node.wait("all links", |peers| peers.iter().all(|peer| peer.up));
    }
    sessions.iter().for_each(|session| echo(session, 0..10));
    sessions.iter().for_each(|session| session.close());
}

pub fn agents_come_and_go() {
    let mut cluster = Cluster::up(2);
    let peers: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| (node.name.clone(), node.port))
        .collect();
    cluster.nodes[1].stop();
    cluster.nodes[1].configure(&peers, "limits = { agents = 2 }");
    cluster.nodes[1].start();
    cluster.nodes[0].wait("the link is back", |peers| peers.iter().all(|peer| peer.up));

    let first = Supervisor::at(&cluster.nodes[0], 0x50);
    let second = Supervisor::at(&cluster.nodes[0], 0x51);
    let third = Supervisor::at(&cluster.nodes[0], 0x52);
    let control = first.control();
    let agent = control.open_agent(&first.wants("n2")).unwrap();
    control.open_agent(&second.wants("n2")).unwrap();
    let said = control.open_agent(&third.wants("n2")).unwrap_err().to_string();
    assert!(
        said.contains("2 agents already") && said.contains("limits.agents"),
        "{said}"
    );

    // A new life of a job's supervisor replaces its agent.
    let pid = |job: u64| {
        let agents = cluster.nodes[1].control().status().unwrap().agents;
        agents
            .into_iter()
            .find(|agent| agent.job.0 == job)
            .map(|agent| agent.pid)
    };
    let old = pid(0x50).unwrap();
    let mut reborn = Supervisor::at(&cluster.nodes[0], 0x50);
    reborn.home.0 += 1;
    let renewed = control.open_agent(&reborn.wants("n2")).unwrap();
    assert_ne!(renewed, agent);
    assert_ne!(pid(0x50).unwrap(), old);
    echo(&reborn.session("n2", renewed), 0..10);

    // The same number from another home is refused.
    let elsewhere = Supervisor::at(&cluster.nodes[1], 0x51);
    let said = elsewhere
        .control()
        .open_agent(&elsewhere.wants("n2"))
        .unwrap_err()
        .to_string();
    assert!(said.contains("is of n1, not of n2"), "{said}");

    // An agent that is killed is noticed: its session is over, and its place is free again.
    let lost = second.session("n2", control.open_agent(&second.wants("n2")).unwrap());
    echo(&lost, 0..10);
    let victim = rustix::process::Pid::from_raw(pid(0x51).unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(victim, rustix::process::Signal::KILL).unwrap();
    match lost.recv() {
        Err(Closed::Lost(why)) => assert!(why.contains("agent of job 0000000000000051"), "{why}"),
        other => panic!("{other:?}"),
    }
    eventually("its end is noticed", || pid(0x51).is_none());
    eventually("its place is free", || control.open_agent(&third.wants("n2")).is_ok());
    let left = format!("{:016x}", 0x51);
    assert!(
        cluster.nodes[1]
            .agent_files()
            .iter()
            .all(|file| !file.starts_with(&left))
    );

    // Ten at once for one job give one agent.
    let many = Supervisor::at(&cluster.nodes[1], 0x53);
    let prints: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..10)
            .map(|_| scope.spawn(|| many.control().open_agent(&many.wants("n1")).unwrap()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(prints.iter().all(|print| *print == prints[0]));
    assert_eq!(cluster.nodes[0].control().status().unwrap().agents.len(), 1);
}
