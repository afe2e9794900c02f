//! Killed launchers, supervisors and guardians: nothing is left behind, and no process of a job ends in a state without execve.

use super::stand::{Stand, ended, err, eventually, out, state};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};

fn send(pid: i64, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Children of a process with this name.
fn children(parent: i64, name: &str) -> Vec<i64> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i64>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let (head, rest) = stat.rsplit_once(')').unwrap();
        let of: i64 = rest.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
        if of == parent && head.ends_with(&format!("({name}")) {
            found.push(pid);
        }
    }
    found
}

/// A job whose program runs programs for ever and counts them in a file.
struct Busy {
    launcher: Child,
    supervisor: i64,
    program: i64,
    guardian: i64,
}

const LOOP: &str = "trap 'echo over >> log; exit 7' TERM; while :; do /bin/echo x >> log; /bin/sleep 0.01; done";

fn busy(stand: &Stand) -> Busy {
    let launcher = stand.run(&["sh", "-c", LOOP]).stderr(Stdio::piped()).spawn().unwrap();
    let job = eventually(|| stand.ps()["jobs"].as_array().unwrap().first().cloned());
    // The supervisor waits for no guardian.
    let guardian = eventually(|| children(i64::from(launcher.id()), "mosix-guardian").first().copied());
    let busy = Busy {
        supervisor: job["supervisor"].as_i64().unwrap(),
        program: job["first"].as_i64().unwrap(),
        launcher,
        guardian,
    };
    goes_on(stand.path());
    busy
}

/// The program still executes programs.
fn goes_on(folder: &Path) {
    let size = || std::fs::metadata(folder.join("log")).map_or(0, |m| m.len());
    let before = size();
    eventually(|| (size() > before + 10).then_some(()));
}

#[test]
fn a_killed_supervisor_leaves_a_running_program_and_a_faithful_launcher() {
    for stand in Stand::each() {
        // Often, to hit the moment between receiving a notification and answering it.
        for _ in 0..20 {
            let mut busy = busy(&stand);
            send(busy.supervisor, Signal::SIGKILL);
            goes_on(stand.path());
            // Still in the launcher's hands: it relays, and ends as the program does.
            send(i64::from(busy.launcher.id()), Signal::SIGTERM);
            let status = busy.launcher.wait().unwrap();
            let said = std::io::read_to_string(busy.launcher.stderr.take().unwrap()).unwrap();
            assert_eq!(status.code(), Some(7), "{said}");
            assert!(said.contains("the supervisor was killed"), "{said}");
            for pid in [busy.supervisor, busy.program, busy.guardian] {
                eventually(|| ended(pid).then_some(()));
            }
            stand.until_empty();
        }
    }
}

#[test]
fn orphans_of_a_killed_supervisor_can_execute_programs() {
    let stand = Stand::own();
    let script =
        "setsid sh -c 'echo $$ > pid; while :; do /bin/echo x >> log; /bin/sleep 0.01; done' > /dev/null 2>&1 &";
    assert!(stand.sh(script).status.success());
    let job = stand.ps()["jobs"][0].clone();
    goes_on(stand.path());
    send(job["supervisor"].as_i64().unwrap(), Signal::SIGKILL);
    goes_on(stand.path());
    stand.until_empty();
    let pid: i64 = std::fs::read_to_string(stand.path().join("pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    send(pid, Signal::SIGKILL);
    eventually(|| ended(pid).then_some(()));
}

#[test]
fn a_killed_launcher_takes_its_program_along() {
    for stand in Stand::each() {
        let mut busy = busy(&stand);
        busy.launcher.kill().unwrap();
        assert_eq!(busy.launcher.wait().unwrap().signal(), Some(9));
        for pid in [busy.program, busy.supervisor, busy.guardian] {
            eventually(|| ended(pid).then_some(()));
        }
        stand.until_empty();
    }
}

#[test]
fn a_killed_launcher_leaves_background_children_alone() {
    let stand = Stand::own();
    let script = "sleep 1006 & echo $! > pid; sleep 1007";
    let mut launcher = stand.run(&["sh", "-c", script]).spawn().unwrap();
    let pid = eventually(|| {
        std::fs::read_to_string(stand.path().join("pid"))
            .ok()?
            .trim()
            .parse::<i64>()
            .ok()
    });
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    // As without mosix: SIGKILL ends one process.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(state(pid), Some('S'));
    let left: Vec<i64> = stand.ps()["processes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["pid"].as_i64().unwrap())
        .collect();
    assert!(left.contains(&pid), "{left:?}");
    assert!(
        stand
            .verb(&["kill", "--signal", "KILL", &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
    for other in left {
        let _ = kill(Pid::from_raw(other as i32), Signal::SIGKILL);
    }
    stand.until_empty();
}

#[test]
fn a_killed_guardian_changes_nothing() {
    let stand = Stand::own();
    let mut busy = busy(&stand);
    send(busy.guardian, Signal::SIGKILL);
    goes_on(stand.path());
    send(i64::from(busy.launcher.id()), Signal::SIGTERM);
    assert_eq!(busy.launcher.wait().unwrap().code(), Some(7));
    stand.until_empty();
}

#[test]
fn signals_to_the_supervisor_end_nothing() {
    let stand = Stand::own();
    let mut busy = busy(&stand);
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGPIPE,
    ] {
        send(busy.supervisor, signal);
    }
    goes_on(stand.path());
    assert_eq!(stand.ps()["jobs"].as_array().unwrap().len(), 1);
    send(busy.program, Signal::SIGTERM);
    assert_eq!(busy.launcher.wait().unwrap().code(), Some(7));
    stand.until_empty();
}

#[test]
fn signals_to_the_launcher_reach_the_program() {
    let stand = Stand::own();
    let code = "import signal, time, sys\n\
                def h(s, f): print(s, flush=True)\n\
                for s in (1, 2, 3, 10, 12, 15, 28, 34, 40, 64): signal.signal(s, h)\n\
                print('up', flush=True)\n\
                while True:\n  i = signal.sigwaitinfo([35]) if False else time.sleep(60)\n";
    let mut child = stand
        .run(&["/usr/bin/python3", "-c", code])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    for number in [1, 2, 3, 10, 12, 15, 28, 34, 40, 64] {
        // `kill` of the shell knows real-time signals, nix does not.
        let sent = stand
            .command("sh")
            .args(["-c", &format!("kill -{number} {}", child.id())])
            .status()
            .unwrap();
        assert!(sent.success());
        assert_eq!(lines.next().unwrap().unwrap(), number.to_string());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    stand.until_empty();
}

#[test]
fn no_runtime_descriptor_and_no_helper_is_in_the_job() {
    let stand = Stand::own();
    let output = stand.sh("ls -l /proc/self/fd; ls /proc/$$/fd");
    assert!(
        !out(&output).contains("seccomp") && !out(&output).contains("socket:"),
        "{}",
        out(&output)
    );
    let script = "echo $PPID; sleep 0.2";
    let mut child = stand.run(&["sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let listed = eventually(|| Some(stand.ps()["processes"].as_array().unwrap().clone()).filter(|p| p.len() == 2));
    assert!(
        listed.iter().all(|p| !p["program"].as_str().unwrap().contains("mosix")),
        "{listed:?}"
    );
    child.wait().unwrap();
    stand.until_empty();
}

#[test]
fn supervisor_memory_is_out_of_reach_of_the_job() {
    // Only an ordinary user's processes are held off by the dumpable flag; root may do anything.
    let stand = Stand::ordinary();
    let script = "head -c 1 /proc/$PPID/mem; ls /proc/$PPID/fd; cat /proc/$PPID/environ";
    let output = stand.sh(script);
    assert!(output.stdout.is_empty(), "{}", out(&output));
    assert_eq!(err(&output).matches("ermission denied").count(), 3, "{}", err(&output));
}
