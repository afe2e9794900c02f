//! A program under `mosix run` finds everything as without: descriptors, signals, limits, environment; and ends as without.

use super::stand::{Stand, out};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Sets up an unusual process, then executes its arguments.
const SETUP: &str = r#"
import os, resource, signal, sys
os.closerange(3, 700)
signal.signal(signal.SIGPIPE, signal.SIG_DFL if 'pipe' in sys.argv[1] else signal.SIG_IGN)
for s in (signal.SIGHUP, signal.SIGCHLD, signal.SIGTTOU, 40, 64):
    signal.signal(s, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR1, signal.SIGCHLD, signal.SIGINT, 35])
os.umask(0o027)
os.nice(5)
resource.setrlimit(resource.RLIMIT_NOFILE, (777, 888))
resource.setrlimit(resource.RLIMIT_STACK, (4 << 20, 1 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 4096))
open('/proc/self/oom_score_adj', 'w').write('123')
open('/proc/self/coredump_filter', 'w').write('0x13')
os.sched_setaffinity(0, {0})
fd = os.open('/etc/passwd', os.O_RDONLY)
os.dup2(fd, 17, inheritable=True)
if fd != 17: os.close(fd)
for n in range(3):
    if str(n) in sys.argv[1]: os.close(n)
os.execvp(sys.argv[2], sys.argv[2:])
"#;

/// Writes all that a process can see of what it inherited.
const SHOW: &str = r#"
import os, json, sys
seen = {}
for line in open('/proc/self/status'):
    key, value = line.split(':', 1)
    if key.startswith(('Sig', 'Shd', 'Umask', 'Uid', 'Gid', 'Groups', 'Cap', 'Cpus_allowed', 'Mems')):
        seen[key] = value.strip()
for f in sorted(os.listdir('/proc/self/fd'), key=int):
    try: seen['fd ' + f] = os.readlink('/proc/self/fd/' + f) + ' ' + open('/proc/self/fdinfo/' + f).read().split('flags:')[1].split()[0]
    except OSError: pass
for name in ('limits', 'oom_score_adj', 'environ', 'timerslack_ns', 'coredump_filter', 'personality', 'cgroup'):
    seen[name] = open('/proc/self/' + name).read()
seen['nice'] = os.nice(0)
seen['cwd'] = os.getcwd()
seen['session'] = os.getsid(0)
seen['status owner'] = os.stat('/proc/self/status').st_uid
seen['argv'] = sys.argv
print(json.dumps(seen, indent=1), file=open(sys.argv[1], 'w'))
"#;

#[test]
fn a_process_inherits_the_same() {
    for stand in Stand::each() {
        std::fs::write(stand.path().join("setup.py"), SETUP).unwrap();
        std::fs::write(stand.path().join("show.py"), SHOW).unwrap();
        for how in ["", "pipe", "0", "12", "012pipe"] {
            let seen = |mosix: bool| {
                let result = stand.path().join("seen.json");
                let mut command = stand.command("/usr/bin/python3");
                command.args(["setup.py", how]);
                if mosix {
                    command.arg(stand.mosix()).args(["run", "--"]);
                } else {
                    // What mosix adds to the environment, in the same place.
                    command.args(["/usr/bin/env", "GLIBC_TUNABLES=glibc.pthread.rseq=0"]);
                }
                command.args(["/usr/bin/python3", "show.py", "seen.json", "-x"]);
                command
                    .env_remove("GLIBC_TUNABLES")
                    .env("EMPTY", "")
                    .stdin(Stdio::null());
                command.stdout(Stdio::piped()).stderr(Stdio::inherit());
                let mut child = command.spawn().unwrap();
                assert!(child.wait().unwrap().success());
                let text = std::fs::read_to_string(&result).unwrap();
                std::fs::remove_file(result).unwrap();
                // Two pipes have two names.
                let pipe = text
                    .split("pipe:[")
                    .nth(1)
                    .and_then(|t| t.split(']').next())
                    .map(str::to_owned);
                pipe.map_or(text.clone(), |p| text.replace(&p, "N"))
            };
            let (plain, under) = (seen(false), seen(true));
            for (a, b) in plain.lines().zip(under.lines()) {
                // The queue of pending signals is the user's, shared with everything else that runs.
                assert!(
                    a == b || a.contains("SigQ"),
                    "closed/pipe '{how}': plain {a}, under mosix {b}"
                );
            }
            assert_eq!(plain.lines().count(), under.lines().count());
        }
    }
}

#[test]
fn tunables_are_merged_and_rseq_is_off() {
    let stand = Stand::own();
    let output = stand
        .run(&["printenv", "GLIBC_TUNABLES"])
        .env("GLIBC_TUNABLES", "glibc.malloc.check=0")
        .output()
        .unwrap();
    assert_eq!(out(&output).trim(), "glibc.malloc.check=0:glibc.pthread.rseq=0");
    let mut v2 = stand.verb(&["run", "--cpu", "v2", "printenv", "GLIBC_TUNABLES"]);
    let output = v2.env_remove("GLIBC_TUNABLES").output().unwrap();
    assert!(out(&output).contains(":glibc.cpu.hwcaps=-AVX,-AVX2,"), "{output:?}");
}

#[test]
fn the_end_is_the_programs() {
    for stand in Stand::each() {
        for code in [0, 1, 2, 42, 125, 255] {
            assert_eq!(stand.sh(&format!("exit {code}")).status.code(), Some(code));
        }
        for signal in [1, 2, 3, 6, 8, 9, 11, 13, 14, 15, 34, 64] {
            let code = format!("import os; os.kill(os.getpid(), {signal})");
            let words = ["/usr/bin/python3", "-c", &code];
            let status = stand.run(&words).stderr(Stdio::null()).status().unwrap();
            // Python ignores SIGPIPE and handles SIGINT, with and without mosix.
            let plain = stand
                .command(words[0])
                .args(&words[1..])
                .stderr(Stdio::null())
                .status()
                .unwrap();
            assert_eq!(
                (status.signal(), status.code()),
                (plain.signal(), plain.code()),
                "signal {signal}"
            );
        }
        stand.until_empty();
    }
}

#[test]
fn pipes_and_their_ends_pass_through() {
    let stand = Stand::own();
    let mut child = stand
        .run(&["cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7) as u8).collect();
    let copy = data.clone();
    let writer = std::thread::spawn(move || input.write_all(&copy).unwrap());
    let mut back = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(data == back);
    // A writer learns that its reader is gone.
    let output = stand
        .command("bash")
        .args(["-c", "\"$0\" run yes | head -1; echo ${PIPESTATUS[0]}"])
        .arg(stand.mosix())
        .output();
    assert_eq!(out(&output.unwrap()), "y\n141\n");
}

#[test]
fn a_pipe_ends_when_the_program_closes_it() {
    let stand = Stand::own();
    let start = Instant::now();
    let script = "exec >&-; sleep 5";
    let mut child = stand.run(&["sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut rest = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
    // Neither launcher, supervisor nor guardian may hold the other end.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    child.kill().unwrap();
    child.wait().unwrap();
    stand.until_empty();
}

#[test]
fn background_children_go_on_after_the_program() {
    for stand in Stand::each() {
        let mark = stand.path().join("mark");
        let start = Instant::now();
        let output = stand.sh("(sleep 1; /bin/ls / > mark) > /dev/null 2>&1 & echo program ends");
        assert!(
            output.status.success() && start.elapsed() < Duration::from_millis(900),
            "{output:?}"
        );
        assert!(!mark.exists());
        assert_eq!(stand.ps()["jobs"].as_array().unwrap().len(), 1);
        super::stand::eventually(|| std::fs::read_to_string(&mark).ok().filter(|t| t.contains("usr\n")));
        stand.until_empty();
    }
}

#[test]
fn a_daemon_can_execute_programs_for_ever() {
    let stand = Stand::own();
    let script = "setsid sh -c 'for i in 1 2 3 4 5; do sleep 0.2; /bin/echo $i; done > log' > /dev/null 2>&1 &";
    assert!(stand.sh(script).status.success());
    let done = || {
        std::fs::read_to_string(stand.path().join("log"))
            .ok()
            .filter(|t| t == "1\n2\n3\n4\n5\n")
    };
    super::stand::eventually(done);
    stand.until_empty();
}

#[test]
fn the_shells_time_counts_the_program() {
    let stand = Stand::own();
    let burn = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
    let script = format!("TIMEFORMAT=%U; time \"$0\" run sh -c '{burn}'");
    let output = stand
        .command("bash")
        .args(["-c", &script])
        .arg(stand.mosix())
        .output()
        .unwrap();
    let seconds: f64 = super::stand::err(&output).trim().parse().unwrap();
    assert!(seconds > 0.05, "{seconds}");
}
