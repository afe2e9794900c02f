//! `mosix lab` itself: namespaces, cables, exec, crashes, and that nothing is left.

use mosix_tests::cluster::{ended, text};
use mosix_tests::{Lab, binary, require};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const BARE: &[&str] = &["--no-daemons"];

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, text(output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn nodes_see_each_other_and_nothing_else() {
    require!(require::program("ip"));
    require!(require::program("python3"));
    let lab = Lab::with(3, BARE);
    let server = "import socket\ns=socket.create_server(('10.77.0.2',7000))\nprint('up',flush=True)\n\
                  c,a=s.accept()\nprint(a[0],c.recv(9).decode())";
    let mut child = lab
        .node(2)
        .command(["python3", "-c", server])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let client = "import socket,time\n\
                  for i in range(100):\n  try: s=socket.create_connection(('10.77.0.2',7000),2); break\n\
                  \x20 except OSError: time.sleep(.05)\ns.send(b'hello')";
    let output = lab.node(3).command(["python3", "-c", client]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut said).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(said, "up\n10.77.0.3 hello\n");
    let links = stdout(&lab.node(1).command(["ip", "-o", "link"]).output().unwrap());
    assert_eq!(links.lines().count(), 2, "a node has lo and its cable alone: {links}");
    lab.down();
}

#[test]
fn exec_is_as_if_started_directly() {
    require!(require::program("ip"));
    let lab = Lab::with(2, BARE);
    let run = |argv: &[&str]| lab.node(1).command(argv).output().unwrap();
    assert_eq!(run(&["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(run(&["sh", "-c", "kill -9 $$"]).status.signal(), Some(9));
    assert_eq!(run(&["sh", "-c", "kill -TERM $$"]).status.signal(), Some(15));
    assert_eq!(run(&["/nonexistent/program"]).status.code(), Some(127));
    assert_eq!(run(&["/dev"]).status.code(), Some(126));
    let mut child = lab
        .node(1)
        .command(["sh", "-c", "cat; echo $$"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let child = child.as_mut().unwrap();
    child.stdin.take().unwrap().write_all(b"through stdin\n").unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    child.wait().unwrap();
    assert_eq!(
        said,
        format!("through stdin\n{}\n", child.id()),
        "exec becomes the program, with its pid"
    );
    let files = stdout(&run(&[
        "sh",
        "-c",
        "echo $MOSIX_STATE_DIR; echo $MOSIX_RUNTIME_DIR; echo $MOSIX_CONFIG; command -v mosix",
    ]));
    let folder = lab.folder();
    let wanted: Vec<String> = ["n1/state", "n1/run", "n1/config.toml", "bin/mosix"]
        .map(|name| folder.join(name).display().to_string())
        .into();
    assert_eq!(files.lines().collect::<Vec<_>>(), wanted);
    let unknown = lab.verb(&["exec", "n3", "--", "true"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(125));
    assert!(
        text(&unknown).contains("has no node \"n3\": it has n1, n2, switch"),
        "{}",
        text(&unknown)
    );
}

#[test]
fn rate_bounds_a_cable() {
    require!(require::program("tc"));
    require!(require::program("python3"));
    let lab = Lab::with(2, &["--no-daemons", "--rate", "80mbit"]);
    let server = "import socket,time\ns=socket.create_server(('10.77.0.1',7000))\nc,_=s.accept()\nn=0\nt=time.time()\n\
                  while True:\n  b=c.recv(1<<20)\n  if not b: break\n  n+=len(b)\nprint(n*8/(time.time()-t)/1e6)";
    let child = lab
        .node(1)
        .command(["python3", "-c", server])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let client = "import socket,time\n\
                  for i in range(100):\n  try: s=socket.create_connection(('10.77.0.1',7000),2); break\n\
                  \x20 except OSError: time.sleep(.05)\ns.sendall(bytes(10_000_000))";
    assert!(
        lab.node(2)
            .command(["python3", "-c", client])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    let rate: f64 = stdout(&output).parse().unwrap();
    // 5 % are headers; a busy machine may be slower, never faster.
    assert!((30.0..=85.0).contains(&rate), "{rate} Mbit/s");
}

#[test]
fn a_second_up_says_what_is_there() {
    require!(require::program("ip"));
    let lab = Lab::with(2, &["--no-daemons", "--extra-node", "v1=10.77.0.101"]);
    let again = lab.verb(&["up"]).output().unwrap();
    assert!(
        stdout(&again).contains("already up: 2 nodes and v1=10.77.0.101 without mosixd"),
        "{}",
        text(&again)
    );
    let other = lab.verb(&["up", "--nodes", "3"]).output().unwrap();
    assert!(
        !other.status.success() && text(&other).contains("mosix lab down"),
        "{}",
        text(&other)
    );
    let status = lab.status();
    assert_eq!(status["up"], true);
    assert_eq!(status["switch"]["bridge"], "br0");
    assert_eq!(status["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(status["extra"][0]["name"], "v1");
    let netns = status["switch"]["netns"].as_str().unwrap();
    assert!(fs::metadata(netns).is_ok(), "{netns}");
}

#[test]
fn down_ends_what_runs_in_it_and_nothing_else() {
    require!(require::program("ip"));
    let lab = Lab::with(2, BARE);
    let mut outside = Command::new("sleep").arg("300").spawn().unwrap();
    // One that left its session and parent, one that ignores SIGTERM.
    let script = "(setsid sleep 301 >/dev/null 2>&1 & echo $!); trap '' TERM; echo $$; exec >/dev/null; while :; do sleep 1; done";
    let mut inside = lab
        .node(1)
        .command(["sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pids = Vec::new();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(inside.stdout.take().unwrap()));
    for _ in 0..2 {
        pids.push(lines.next().unwrap().unwrap().parse::<i64>().unwrap());
    }
    lab.down();
    assert_eq!(inside.wait().unwrap().signal(), Some(9));
    for pid in pids {
        assert!(ended(pid), "{pid} still runs");
    }
    assert!(outside.try_wait().unwrap().is_none(), "a process outside was ended");
    outside.kill().unwrap();
    outside.wait().unwrap();
}

#[test]
fn up_after_a_crash_cleans_up() {
    require!(require::program("ip"));
    let lab = Lab::with(2, BARE);
    let mut sleeper = lab.node(2).command(["sleep", "300"]).spawn().unwrap();
    // Wait until it is in its namespace: exec'd into sleep.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !fs::read_to_string(format!("/proc/{}/comm", sleeper.id()))
        .unwrap()
        .starts_with("sleep")
    {
        assert!(Instant::now() < deadline, "sleep was not started");
        std::thread::sleep(Duration::from_millis(5));
    }
    let keeper = lab.status()["switch"]["pid"].as_i64().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(keeper.try_into().unwrap()),
        nix::sys::signal::SIGKILL,
    )
    .unwrap();
    assert!(ended(keeper));
    assert_eq!(lab.status()["up"], false);
    let exec = lab.node(1).command(["true"]).output().unwrap();
    assert!(
        exec.status.code() == Some(125) && text(&exec).contains("crashed"),
        "{}",
        text(&exec)
    );
    let up = lab.verb(&["up", "--nodes", "2", "--no-daemons"]).output().unwrap();
    assert!(stdout(&up).contains("removed what a crashed lab"), "{}", text(&up));
    assert!(
        sleeper.wait().unwrap().signal().is_some(),
        "the program of the crashed lab was not ended"
    );
    assert_eq!(lab.status()["up"], true);
    lab.down();
}

#[test]
fn a_lab_goes_with_its_owner() {
    require!(require::program("ip"));
    let runtime = tempfile::Builder::new().prefix("mxl").tempdir_in("/tmp").unwrap();
    let mut owner = Command::new("sleep").arg("300").spawn().unwrap();
    let mosix = |args: &[&str]| {
        let mut command = Command::new(binary::mosix());
        command
            .args(args)
            .env("MOSIX_RUNTIME_DIR", runtime.path())
            .env_remove("MOSIX_LAB")
            .output()
            .unwrap()
    };
    let pid = owner.id().to_string();
    stdout(&mosix(&[
        "lab",
        "up",
        "--nodes",
        "1",
        "--no-daemons",
        "--name",
        "owned",
        "--owner",
        &pid,
    ]));
    let folder = runtime.path().join("lab/owned");
    assert!(folder.exists());
    owner.kill().unwrap();
    owner.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while folder.exists() {
        assert!(Instant::now() < deadline, "the lab outlived its owner");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An ordinary user with a `mosix` and a runtime folder of their own.
struct Ordinary {
    runtime: tempfile::TempDir,
}

impl Ordinary {
    const USER: u32 = 64123;

    /// What the machine lacks, if it does not let an ordinary user have a lab.
    fn new() -> Result<Self, String> {
        require::root()?;
        require::program("ip")?;
        let runtime = tempfile::Builder::new().prefix("mxl").tempdir_in("/tmp").unwrap();
        std::os::unix::fs::chown(runtime.path(), Some(Self::USER), Some(Self::USER)).unwrap();
        // The build's folder may be closed to others.
        mosix_tests::executable(
            &runtime.path().join("mosix"),
            &fs::read(binary::mosix()).unwrap(),
            0o755,
        );
        let user = Self { runtime };
        match user.command("unshare").args(["-Urn", "true"]).output() {
            Ok(output) if output.status.success() => Ok(user),
            _ => Err("user namespaces are not allowed here".to_owned()),
        }
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("MOSIX_RUNTIME_DIR", self.runtime.path().join("run"))
            .env_remove("MOSIX_LAB")
            .current_dir("/")
            .uid(Self::USER)
            .gid(Self::USER);
        command
    }

    fn mosix(&self, args: &[&str]) -> Command {
        let mut command = self.command(self.runtime.path().join("mosix"));
        command.args(args);
        command
    }

    fn said(&self, args: &[&str]) -> String {
        stdout(&self.mosix(args).output().unwrap())
    }
}

#[test]
fn an_ordinary_user_can_have_one() {
    let user = Ordinary::new();
    require!(user.as_ref().map(drop).map_err(Clone::clone));
    let user = user.unwrap();
    let mosix = |args: &[&str]| user.mosix(args).output().unwrap();
    let up = mosix(&["lab", "up", "--nodes", "2", "--no-daemons", "--rate", "1gbit"]);
    let id = mosix(&[
        "lab",
        "exec",
        "n1",
        "--",
        "sh",
        "-c",
        "id -u; ip -br addr; grep CapEff /proc/self/status",
    ]);
    let plug = mosix(&["lab", "exec", "switch", "--", "ip", "link", "set", "p1", "down"]);
    let down = mosix(&["lab", "down"]);
    stdout(&up);
    let id = stdout(&id);
    assert!(
        id.starts_with("64123\n") && id.contains("10.77.0.1/24") && id.contains("CapEff:\t0000000000000000"),
        "{id}"
    );
    stdout(&plug);
    assert!(stdout(&down).contains("is down"));
    assert!(!user.runtime.path().join("run/lab/lab").exists());
}

/// Daemons, agents and programs without any privilege.
#[test]
fn an_ordinary_users_program_moves() {
    let user = Ordinary::new();
    require!(user.as_ref().map(drop).map_err(Clone::clone));
    require!(require::program("/usr/bin/python3"));
    let user = user.unwrap();
    user.said(&["lab", "up", "--nodes", "3"]);
    let script = "
import sys, threading
def count(k):
    for i in range(k): found[k] = i
found = {}
for line in sys.stdin:
    threads = [threading.Thread(target=count, args=(k,)) for k in (20000, 30000)]
    [t.start() for t in threads]; [t.join() for t in threads]
    print(line.strip(), found, flush=True)
";
    let mut words = vec!["lab", "exec", "n1", "--", "mosix", "run", "--job", "own", "--"];
    words.extend(["/usr/bin/python3", "-c", script]);
    let mut child = user
        .mosix(&words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for (round, node) in ["home", "n2", "n3", "home", "n3", "n2"].iter().enumerate() {
        if round > 0 {
            user.said(&["lab", "exec", "n1", "--", "mosix", "migrate", "--job", "own", node]);
        }
        writeln!(stdin, "{node}").unwrap();
        assert_eq!(
            lines.next().unwrap().unwrap(),
            format!("{node} {{20000: 19999, 30000: 29999}}")
        );
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert!(user.said(&["lab", "down"]).contains("is down"));
}

#[test]
fn daemons_answer_and_start_again() {
    require!(require::program("ip"));
    let lab = Lab::new(2);
    let status = lab.status();
    for node in status["nodes"].as_array().unwrap() {
        assert_eq!(node["answers"], true, "{status:#}");
    }
    let old = lab.node(1).daemon().unwrap();
    stdout(&lab.verb(&["stop", "n1"]).output().unwrap());
    assert!(ended(old));
    let again = lab.verb(&["up", "--nodes", "2"]).output().unwrap();
    assert!(
        stdout(&again).contains("mosixd of n1 had ended and was started again"),
        "{}",
        text(&again)
    );
    assert_ne!(lab.node(1).daemon(), Some(old));
    lab.down();
}

#[test]
fn bad_parameters_are_named() {
    let mosix = |args: &[&str]| Command::new(binary::mosix()).args(args).output().unwrap();
    for (args, said) in [
        (&["lab", "up", "--nodes", "0"][..], "1 to 99"),
        (&["lab", "up", "--nodes", "1", "--rate", "fast"], "1gbit"),
        (&["lab", "up", "--extra-node", "v1=10.77.0.1"], "10.77.0.100"),
        (&["lab", "up", "--name", "../x"], "not usable"),
        (&["lab", "exec", "n1"], "CMD"),
    ] {
        let output = mosix(args);
        assert!(
            !output.status.success() && text(&output).contains(said),
            "{args:?}: {}",
            text(&output)
        );
    }
}
