//! `mosix run` at home, without any daemon: as if mosix were not there.

use mosix_tests::cluster::text;
use mosix_tests::run::job_name;
use mosix_tests::{Lab, executable, require};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

fn run(argv: &[&str]) -> Output {
    Lab::home()
        .command(["mosix", "run", "--"].iter().chain(argv))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn written(path: &Path, content: &[u8], mode: u32) -> String {
    executable(path, content, mode);
    path.to_str().unwrap().to_owned()
}

#[test]
fn ends_as_the_program_does() {
    for code in [0, 1, 2, 42, 125, 126, 127, 128, 255] {
        assert_eq!(run(&["sh", "-c", &format!("exit {code}")]).status.code(), Some(code));
    }
    for signal in [1, 2, 3, 9, 13, 14, 15] {
        // With their default actions, whatever the test program was started with.
        let code = "import os,signal,sys\ns=int(sys.argv[1])\n\
                    if s!=9: signal.signal(s,signal.SIG_DFL)\nos.kill(os.getpid(),s)";
        assert_eq!(
            run(&["/usr/bin/python3", "-c", code, &signal.to_string()])
                .status
                .signal(),
            Some(signal)
        );
    }
}

#[test]
fn what_cannot_be_run_is_named_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let sh = fs::read("/bin/sh").unwrap();
    let mut machine = sh.clone();
    machine[18] = 3; // e_machine: a 32-bit x86, whose loader cannot take the rest.
    machine[4] = 1;
    let cases = [
        ("/nonexistent/program".to_owned(), &[127][..]),
        ("no-such-program-anywhere".to_owned(), &[127]),
        ("/dev".to_owned(), &[126]),
        (written(&dir.path().join("plain"), b"text", 0o644), &[126]),
        (written(&dir.path().join("short"), &sh[..100], 0o755), &[126]),
        (written(&dir.path().join("machine"), &machine, 0o755), &[126]),
        (
            written(&dir.path().join("script"), b"#!/nonexistent/interpreter\n", 0o755),
            &[126, 127],
        ),
    ];
    for (program, codes) in cases {
        let output = run(&[&program]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code().is_some_and(|code| codes.contains(&code)),
            "{program}: {} {said}",
            output.status
        );
        assert!(
            said.lines().count() == 1 && said.contains(&program),
            "{program}: {said:?}"
        );
        assert!(output.stdout.is_empty());
    }
    // Own failures have their own code.
    let output = Lab::home().mosix(&["run", "--no-such-option", "true"]);
    assert_eq!(output.status.code(), Some(125), "{}", text(&output));
}

#[test]
fn arguments_environment_folder_and_pipes_are_the_programs() {
    let mut command = Lab::home().command([
        "mosix",
        "run",
        "--",
        "sh",
        "-c",
        "cat; pwd; echo \"$A|$0|$1|$#\"; echo err >&2",
    ]);
    command
        .args(["zero", "an argument\nwith a line", ""])
        .env("A", "b c")
        .current_dir("/usr/lib");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"from the pipe\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "from the pipe\n/usr/lib\nb c|zero|an argument\nwith a line|2\n"
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
}

#[test]
fn a_child_in_the_background_lives_on_and_can_exec() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("listing");
    let script = format!(
        "(sleep 1; /bin/ls / > {0}.new; mv {0}.new {0}) > /dev/null 2>&1 &",
        file.display()
    );
    let begin = Instant::now();
    let output = run(&["sh", "-c", &script]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        begin.elapsed() < Duration::from_millis(900),
        "the launcher waited for the child in the background"
    );
    let deadline = Instant::now() + Duration::from_secs(10);
    while !file.exists() {
        assert!(
            Instant::now() < deadline,
            "the child in the background could not run /bin/ls and mv"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(fs::read_to_string(file).unwrap().contains("usr"));
}

#[test]
fn a_job_in_a_job() {
    let output = run(&["mosix", "run", "--", "sh", "-c", "echo inside; exit 9"]);
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(9), &b"inside\n"[..]),
        "{}",
        text(&output)
    );
}

#[test]
fn signals_to_the_launcher_reach_the_program() {
    let script = "trap 'echo term; exit 3' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.05; done";
    let mut command = Lab::home().command(["mosix", "run", "--", "sh", "-c", script]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    nix::sys::signal::kill(pid, nix::sys::signal::SIGUSR1).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "usr1");
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "term");
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn ps_shows_it() {
    let node = Lab::home();
    let mut child = node
        .command(["mosix", "run", "--job", "shown", "--", "sleep", "60"])
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let row = loop {
        let all = node.ps();
        let rows = all["processes"].as_array().unwrap();
        if let Some(row) = rows
            .iter()
            .find(|row| row["job"] == "shown" && row["program"] == "sleep")
        {
            break row.clone();
        }
        assert!(Instant::now() < deadline, "ps does not show the job: {all:#}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(
        (&row["where"], &row["moves"], &row["threads"]),
        (&"home".into(), &0.into(), &1.into()),
        "{row:#}"
    );
    let pid = i32::try_from(row["pid"].as_i64().unwrap()).unwrap();
    mosix_tests::cluster::kill(pid);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(node.process(pid).is_none(), "ps shows a process that has ended");
}

/// One command moves a whole job: its processes arrive at once, and bring the same libraries to an agent that has none yet.
#[test]
fn a_job_moves_as_a_whole() {
    let node = Lab::shared().node(1);
    for round in 0..5 {
        let job = job_name();
        let script = "sleep 300 | sleep 300 | sleep 300 | sleep 300";
        let mut child = node
            .command(["mosix", "run", "--job", &job, "--", "dash", "-c", script])
            .spawn()
            .unwrap();
        let pids = |place: &str| -> Vec<i64> {
            let all = node.ps();
            let rows = all["processes"].as_array().unwrap().iter();
            rows.filter(|row| row["job"] == job.as_str() && row["program"] == "sleep" && row["where"] == place)
                .map(|row| row["pid"].as_i64().unwrap())
                .collect()
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while pids("home").len() < 4 {
            assert!(Instant::now() < deadline, "round {round}: {:#}", node.ps());
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = node.mosix(&["migrate", "--json", "--job", &job, "n2"]);
        assert!(output.status.success(), "round {round}: {}", text(&output));
        let moved: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(moved["moved"].as_array().unwrap().len(), 5, "round {round}: {moved:#}");
        assert_eq!(pids("n2").len(), 4, "round {round}");
        node.mosix_ok(&["kill", "--job", &job, "-s", "KILL"]);
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}

/// The same number of processes, descriptors and threads as before: nothing stays behind.
#[test]
fn nothing_is_left_after_many_runs() {
    require!(require::program("ip"));
    let lab = Lab::with(1, &["--no-daemons"]);
    for i in 0..20 {
        let output = lab
            .node(1)
            .command(["mosix", "run", "--", "sh", "-c", "sh -c 'sh -c true' | cat; exit 4"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(4), "run {i}: {}", text(&output));
    }
    lab.assert_quiet();
    let jobs = lab.folder().join("n1/run/jobs");
    let sockets = fs::read_dir(&jobs).map(|all| all.count()).unwrap_or(0);
    assert_eq!(sockets, 0, "sockets are left in {}", jobs.display());
    lab.down();
}

/// `--on NODE`: it moves there as soon as it can, maps libraries there, and stays; an unknown node is no reason not to run.
#[test]
fn a_program_starts_on_the_node_that_is_named() {
    require!(require::program("/usr/bin/python3"));
    let node = Lab::shared().node(1);
    let script = "import json, decimal, sys; print(decimal.Decimal(2) ** 10, flush=True); input(); import _ssl, _sqlite3; print(json.dumps([1]), flush=True); sys.stdin.read()";
    let mut child = node
        .command([
            "mosix",
            "run",
            "--on",
            "n2",
            "--job",
            "named",
            "/usr/bin/python3",
            "-c",
            script,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "1024");
    // It begins at once, and moves when the node is ready.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let ps = node.ps();
        let process = ps["processes"].as_array().unwrap().iter().find(|p| p["job"] == "named");
        if process.is_some_and(|p| p["where"] == "n2" && p["moves"] == 1) {
            break;
        }
        assert!(Instant::now() < deadline, "{ps}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "[1]");
    let ps = node.ps();
    let there = |p: &&serde_json::Value| p["job"] == "named" && p["where"] == "n2" && p["moves"] == 1;
    assert!(ps["processes"].as_array().unwrap().iter().any(|p| there(&p)), "{ps}");
    drop(stdin);
    assert!(child.wait().unwrap().success());

    let output = node.mosix(&["run", "--on", "n99", "sleep", "0.5"]);
    let said = text(&output);
    assert!(
        output.status.success() && said.contains("n99") && said.contains("runs at home"),
        "{said}"
    );
}
