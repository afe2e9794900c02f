//! Wrong keys, wrong names, garbage: a clear line on both sides, nothing lost, no crash.

use crate::cluster::{Cluster, Supervisor, echo};
use mosix_runtime::node::{self, Authority, ClientError};
use mosix_wire::control::{OpenAgent, Purpose, Request, StreamHello, encode};
use mosix_wire::ids::{JobId, NodeName};
use mosix_wire::limits;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn start(cluster: &mut Cluster) {
    cluster.nodes.iter_mut().for_each(|node| node.start());
}

pub fn wrong_cluster() {
    let mut cluster = Cluster::new(2);
    let state = cluster.nodes[1].state();
    std::fs::remove_dir_all(state.join("keys")).unwrap();
    node::init(&state, "n2", &Authority::New).unwrap();
    start(&mut cluster);
    for (at, other) in [(0, "n2"), (1, "n1")] {
        cluster.nodes[at].wait("a clear reason", |peers| {
            let peer = peers.iter().find(|peer| peer.name.0 == other).unwrap();
            !peer.up
                && peer
                    .last_error
                    .as_ref()
                    .is_some_and(|why| why.contains("not of our cluster's CA"))
        });
        // The accepting side says it too.
        cluster.nodes[at].wait_log("it refused our certificate, which is not of its cluster's CA");
    }
    let supervisor = Supervisor::at(&cluster.nodes[0], 0x60);
    let said = supervisor
        .control()
        .open_agent(&supervisor.wants("n2"))
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("no link to n2") && said.contains("not of our cluster's CA"),
        "{said}"
    );
}

pub fn wrong_name() {
    let mut cluster = Cluster::new(3);
    // n1 takes n3's address for n2's.
    let (n2, n3) = (cluster.nodes[1].port, cluster.nodes[2].port);
    cluster.nodes[0].configure(&[("n2".into(), n3)], "");
    cluster.nodes[1].configure(&[("n3".into(), n3)], "");
    cluster.nodes[2].configure(&[("n2".into(), n2)], "");
    start(&mut cluster);
    cluster.nodes[0].wait("a clear reason", |peers| {
        let why = peers
            .iter()
            .find(|peer| peer.name.0 == "n2")
            .unwrap()
            .last_error
            .clone()
            .unwrap_or_default();
        why.contains("the node there is n3, not n2")
    });
    cluster.nodes[2].wait_log("refused our certificate");
    // The configuration may also not fit the keys.
    let mut other = Cluster::new(1);
    let config = other.nodes[0].folder.join("mosixd.toml");
    let text = std::fs::read_to_string(&config)
        .unwrap()
        .replacen("name = \"n1\"", "name = \"n9\"", 1);
    std::fs::write(&config, text).unwrap();
    assert!(!other.nodes[0].command().status().unwrap().success());
    let log = other.nodes[0].log();
    assert!(log.contains("certificate of n1") && log.contains("n9"), "{log}");
    other.nodes.clear();
}

pub fn unknown_peer() {
    let mut cluster = Cluster::new(2);
    cluster.nodes[1].configure(&[], "");
    start(&mut cluster);
    cluster.nodes[0].wait("a clear reason", |peers| {
        let why = peers
            .iter()
            .find(|peer| peer.name.0 == "n2")
            .unwrap()
            .last_error
            .clone()
            .unwrap_or_default();
        why.contains("n2 does not list n1 among its peers")
    });
    cluster.nodes[1].wait_log("n2 does not list n1 among its peers");
    let supervisor = Supervisor::at(&cluster.nodes[0], 0x61);
    let said = supervisor
        .control()
        .open_agent(&supervisor.wants("n7"))
        .unwrap_err()
        .to_string();
    assert!(said.contains("unknown node n7") && said.contains("n2"), "{said}");
}

pub fn plain_against_tls() {
    let mut cluster = Cluster::new(3);
    let peers: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| (node.name.clone(), node.port))
        .collect();
    cluster.nodes[0].configure(&peers, "transport = \"plain\"");
    cluster.nodes[1].configure(&peers, "transport = \"plain\"");
    start(&mut cluster);
    cluster.nodes[0].wait_log("it speaks TLS, but the transport here is \"plain\"");
    cluster.nodes[2].wait_log("it speaks plain, but the transport here is \"tls\"");
    cluster.nodes[0].wait("the plain ones meet", |peers| {
        peers.iter().filter(|peer| peer.up).count() == 2
    });
    let supervisor = Supervisor::at(&cluster.nodes[0], 0x62).plain();
    let agent = supervisor.control().open_agent(&supervisor.wants("n2")).unwrap();
    echo(&supervisor.session("n2", agent), 0..100);
}

pub fn garbage_on_the_port() {
    let mut cluster = Cluster::new(2);
    let peers: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| (node.name.clone(), node.port))
        .collect();
    cluster.nodes[1].configure(&peers, "limits = { unknown_per_source = 16 }");
    start(&mut cluster);
    cluster.nodes[0].wait("the link stands", |peers| peers.iter().all(|peer| peer.up));
    let supervisor = Supervisor::at(&cluster.nodes[0], 0x63);
    let agent = supervisor.control().open_agent(&supervisor.wants("n2")).unwrap();
    let session = supervisor.session("n2", agent);
    let dial = || TcpStream::connect(("127.0.0.1", cluster.nodes[1].port)).unwrap();
    let closes = |mut socket: TcpStream| {
        socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        let mut answer = Vec::new();
        match socket.read_to_end(&mut answer) {
            Ok(_) => answer,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => answer,
            Err(error) => panic!("the connection stays open: {error}"),
        }
    };
    let mut random = 0x1234_5678_9abc_def1_u64;
    for round in 0..40 {
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as u8
        })
        .take(2000)
        .collect();
        match round % 4 {
            0 => bytes[0] = 0x16,
            1 => bytes[..4].copy_from_slice(b"mxj1"),
            2 => bytes[..8].copy_from_slice(b"mxj1\x10\0\0\0"),
            _ => {}
        }
        let mut socket = dial();
        // The daemon may close while we still write.
        let _ = socket.write_all(&bytes);
        closes(socket);
    }
    cluster.nodes[1].wait_log("not a node of mosix");
    cluster.nodes[1].wait_log("at most 1024 are allowed");

    // A hello of a job that is not there is answered, one of a job that is cannot pass without its keys.
    for (job, wanted) in [(0x99, &b"has no agent"[..]), (0x63, b"")] {
        let hello = StreamHello {
            job: JobId(job),
            purpose: Purpose::Session,
            from: NodeName("n1".into()),
        };
        let mut socket = dial();
        socket.write_all(b"mxj1").unwrap();
        socket
            .write_all(&encode(&hello, limits::STREAM_HELLO).unwrap())
            .unwrap();
        socket.write_all(&[7; 5000]).unwrap();
        let answer = closes(socket);
        assert!(
            answer
                .windows(wanted.len().max(1))
                .any(|part| part == wanted || wanted.is_empty()),
            "{answer:?}"
        );
    }

    // Silent connections: only so many of one source, and not for long.
    let silent: Vec<_> = (0..40).map(|_| dial()).collect();
    let refused = silent.iter().filter(|socket| {
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        matches!((&**socket).read(&mut [0; 1]), Ok(0) | Err(_)) && {
            socket.set_nonblocking(true).unwrap();
            let now = (&**socket).read(&mut [0; 1]);
            socket.set_nonblocking(false).unwrap();
            !matches!(now, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        }
    });
    let refused = refused.count();
    assert!(
        (20..=30).contains(&refused),
        "{refused} of 40 silent connections were refused at once"
    );
    silent.into_iter().for_each(|socket| {
        closes(socket);
    });
    // All that has hurt nobody.
    echo(&session, 0..100);
    cluster.nodes[0].wait("the link stands", |peers| peers.iter().all(|peer| peer.up));
    let lines = cluster.nodes[1]
        .log()
        .lines()
        .filter(|line| line.contains(" WARN "))
        .count();
    assert!(lines < 40, "{lines} warnings");
    session.close();
}

pub fn garbage_on_the_socket() {
    let cluster = Cluster::up(1);
    let node = &cluster.nodes[0];
    let dial = || {
        let socket = UnixStream::connect(node.state().join("control.sock")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    };
    for bytes in [&[0xff; 100][..], &[4, 0, 0, 0, 9, 9, 9, 9], b"\0\0\0\0"] {
        let mut socket = dial();
        socket.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("not a request"), "{answer:?}");
    }
    // Truncated, with the connection open: others are served meanwhile.
    let mut half = dial();
    half.write_all(&encode(&Request::Status, 100).unwrap()[..3]).unwrap();
    assert_eq!(node.control().status().unwrap().node.0, "n1");
    drop(half);
    // Several requests on one connection.
    let socket = dial();
    for _ in 0..3 {
        node::message::send(&socket, &Request::Nodes, limits::CONTROL_MESSAGE, &[]).unwrap();
        node::message::recv::<mosix_wire::control::Response>(&socket, limits::CONTROL_MESSAGE).unwrap();
    }
    // Nobody speaks for somebody else, except root and the daemon's user.
    if rustix::process::geteuid().is_root() {
        node.control().stop().unwrap();
        crate::cluster::eventually("the daemon stops", || node.control().status().is_err());
        match node.control().status() {
            Err(error @ ClientError::NoDaemon { .. }) => {
                assert!(error.to_string().contains("mosix node run"), "{error}")
            }
            other => panic!("{other:?}"),
        }
    }
}

pub fn two_daemons_on_one_folder() {
    let cluster = Cluster::up(1);
    let node = &cluster.nodes[0];
    let pid = node.control().status().unwrap().pid;
    assert!(!node.command().status().unwrap().success());
    let log = node.log();
    assert!(
        log.contains(&format!(
            "mosixd already runs on {} (pid {pid})",
            node.state().display()
        )),
        "{log}"
    );
    assert_eq!(node.control().status().unwrap().pid, pid);
    // A port that is taken.
    let other = Cluster::new(1);
    let config = other.nodes[0].folder.join("mosixd.toml");
    let text = std::fs::read_to_string(&config)
        .unwrap()
        .replace(&other.nodes[0].port.to_string(), &node.port.to_string());
    std::fs::write(&config, text).unwrap();
    assert!(!other.nodes[0].command().status().unwrap().success());
    let log = other.nodes[0].log();
    assert!(
        log.contains(&format!("cannot listen on 127.0.0.1:{}", node.port)),
        "{log}"
    );
}

pub fn failing_agents() {
    let cluster = Cluster::up(2);
    if !rustix::process::geteuid().is_root() {
        crate::skipped("bad_input::failing_agents", "only root may name other users");
        return;
    }
    for (uid, wanted) in [
        (
            6001,
            &["no agent on n2", "exit status: 3", "this is what the agent wrote"][..],
        ),
        (6002, &["no agent on n2", "no user namespaces here"]),
        (6003, &["no agent on n2", "its answer is none"]),
    ] {
        let supervisor = Supervisor::at(&cluster.nodes[0], u64::from(uid));
        let wants = OpenAgent {
            uid,
            ..supervisor.wants("n2")
        };
        let said = supervisor.control().open_agent(&wants).unwrap_err().to_string();
        for part in wanted {
            assert!(said.contains(part), "{said:?} lacks {part:?}");
        }
    }
    assert!(
        cluster.nodes[1].agent_files().is_empty(),
        "{:?}",
        cluster.nodes[1].agent_files()
    );
    assert!(cluster.nodes[1].control().status().unwrap().agents.is_empty());
}

/// Another user of the machine may look, but not stop the daemon, nor speak for others.
pub fn other_users() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        crate::skipped("bad_input::other_users", "only root can be another user");
        return;
    }
    let cluster = Cluster::up(1);
    let node = &cluster.nodes[0];
    for folder in [node.folder.parent().unwrap(), &node.folder] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    // Root's job, and an agent of it.
    let supervisor = Supervisor::at(node, 0x80);
    let agent = supervisor.control().open_agent(&supervisor.wants("n1")).unwrap();
    let program = node.folder.join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = std::process::Command::new(&program)
        .arg("stranger")
        .arg(node.state())
        .uid(65534)
        .gid(65534)
        .output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    for wanted in [
        "status: n1",
        "stop: user 65534 may not stop this node",
        "agent: user 65534 may not speak for user 0",
        "agent of a job of root: job 0000000000000080 is not of user 65534",
        "stream: job 0000000000000080 is not of user 65534",
        "agent's socket: Permission denied",
        "keys: Permission denied",
        "own agent: ok",
    ] {
        assert!(said.contains(wanted), "{said:?} lacks {wanted:?}");
    }
    echo(&supervisor.session("n1", agent), 0..10);
}

/// What the other user tries; prints one line each.
pub fn stranger(state: &std::path::Path) {
    let control = node::Control::at(state);
    let words = |outcome: Result<(), ClientError>| outcome.map_or_else(|error| error.to_string(), |()| "ok".to_owned());
    println!("status: {}", control.status().unwrap().node);
    println!("stop: {}", words(control.stop()));
    let wants = |job, uid| OpenAgent {
        node: NodeName("n1".to_owned()),
        job: JobId(job),
        home: mosix_wire::ids::Nonce(1),
        supervisor: mosix_wire::control::Fingerprint([0; 32]),
        uid,
    };
    println!("agent: {}", words(control.open_agent(&wants(0x81, 0)).map(drop)));
    println!(
        "agent of a job of root: {}",
        words(control.open_agent(&wants(0x80, 65534)).map(drop))
    );
    let stream = control.open_stream(&NodeName("n1".to_owned()), JobId(0x80), Purpose::Session);
    println!("stream: {}", words(stream.map(drop)));
    println!(
        "own agent: {}",
        words(control.open_agent(&wants(0x82, 65534)).map(drop))
    );
    let socket = UnixStream::connect(node::paths::agent_socket(state, JobId(0x80)));
    println!(
        "agent's socket: {}",
        socket.err().map_or("open".to_owned(), |error| error.to_string())
    );
    let keys = std::fs::read(node::paths::keys_dir(state).join("node.key"));
    println!(
        "keys: {}",
        keys.err().map_or("open".to_owned(), |error| error.to_string())
    );
}
