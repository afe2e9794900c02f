//! Threads that are made away: the process stays where it is, and every thread has its number at home.

use mosix_tests::binary::work_dir;
use mosix_tests::{Guest, How, Lab, require};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const STEP: Duration = Duration::from_secs(120);

/// A program that says READY with its pid, makes threads after a line on stdin, says MADE, and ends after another line.
pub struct Maker {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Maker {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start the program");
        let (sender, lines) = channel();
        let out = child.stdout.take().expect("stdout");
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self {
            stdin: child.stdin.take(),
            child,
            lines,
        }
    }

    pub fn line(&self) -> String {
        self.lines.recv_timeout(STEP).expect("a line of the program")
    }

    pub fn ready(&self) -> i32 {
        let line = self.line();
        let pid = line.strip_prefix("READY pid=").and_then(|pid| pid.parse().ok());
        pid.unwrap_or_else(|| panic!("{line:?} instead of READY"))
    }

    pub fn made(&self) -> String {
        let made = self.line();
        assert!(made.starts_with("MADE "), "{made}");
        made
    }

    pub fn tell(&mut self) {
        self.stdin
            .as_mut()
            .expect("stdin")
            .write_all(b"go\n")
            .expect("tell the program");
    }

    /// Its end: what it said last.
    pub fn end(mut self) -> Vec<String> {
        drop(self.stdin.take());
        let status = self.child.wait().expect("wait for the program");
        assert!(status.success(), "{status}");
        self.lines.iter().collect()
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a program plainly, and on n2, n3 and at home again: it says the same, and it moves only when it is told to.
pub fn stays(argv: &[OsString]) {
    let mut plain = Command::new(&argv[0]);
    plain.args(&argv[1..]);
    let mut plain = Maker::start(plain);
    plain.ready();
    plain.tell();
    let made = plain.made();
    let last = plain.end();
    let node = Lab::shared().node(1);
    let mut command = node.command(
        ["mosix", "run"]
            .map(OsString::from)
            .into_iter()
            .chain(argv.iter().cloned()),
    );
    command.stderr(Stdio::inherit());
    let mut away = Maker::start(command);
    let pid = away.ready();
    for (moves, target) in (1..).zip(["n2", "n3"]) {
        node.mosix_ok(&["migrate", &pid.to_string(), target]);
        away.tell();
        assert_eq!(away.made(), made);
        let row = node.process(pid).expect("the process in `ps`");
        assert_eq!(
            (&row["where"], &row["moves"]),
            (&Value::from(target), &Value::from(moves)),
            "{row}"
        );
    }
    node.mosix_ok(&["migrate", &pid.to_string(), "home"]);
    away.tell();
    assert_eq!(away.made(), made);
    assert_eq!(away.end(), last);
}

#[test]
fn of_a_go_program() {
    require!(require::program("go"));
    let dir = work_dir("go-threads");
    fs::write(dir.join("main.go"), GO).unwrap();
    let program = dir.join("program");
    let status = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg("main.go")
        .current_dir(&dir)
        .envs([("CGO_ENABLED", "0"), ("GOFLAGS", "-mod=mod"), ("GO111MODULE", "off")])
        .env("GOCACHE", dir.join("cache"))
        .status();
    assert!(status.unwrap().success(), "go build");
    stays(&[program.into_os_string()]);
}

#[test]
fn of_a_java_program() {
    require!(require::program("java"));
    require!(require::program("javac"));
    let dir = work_dir("java-threads");
    let source = dir.join("Threads.java");
    fs::write(&source, JAVA).unwrap();
    let status = Command::new("javac").arg("-d").arg(&dir).arg(&source).status();
    assert!(status.unwrap().success(), "javac");
    stays(&["java".into(), "-cp".into(), dir.into_os_string(), "Threads".into()]);
}

#[test]
fn of_a_python_program() {
    require!(require::program("python3"));
    stays(&["/usr/bin/python3".into(), "-u".into(), "-c".into(), PYTHON.into()]);
}

const MAKERS: [&str; 3] = ["thread_create_away", "thread_create_signals", "thread_exit"];

#[test]
fn of_many_at_a_time() {
    require!(require::program("cc"));
    stay_where_told(&MAKERS);
}

#[test]
fn in_the_middle_of_moves() {
    require!(require::program("cc"));
    make_in_moves(&MAKERS);
}

/// Each guest is told to go on where it is, while it makes what it makes, and is not seen anywhere else before its end.
pub fn stay_where_told(guests: &[&str]) {
    for name in guests {
        let lab = Lab::shared();
        let period = Duration::from_millis(50);
        let mut guest = Guest::start(name, &[], How::Moving { lab, period });
        let pid = guest.pid();
        for (moves, target) in (1..).zip(["n2", "n3", "n2"]) {
            guest.migrate(target);
            std::thread::sleep(Duration::from_millis(300));
            let row = lab.node(1).process(pid).expect("the guest in `ps`");
            assert_eq!(
                (&row["where"], &row["moves"]),
                (&Value::from(target), &Value::from(moves)),
                "{name}: {row}"
            );
        }
        guest.pass();
    }
}

/// Moves that come as fast as they can, at every step of what each guest makes.
pub fn make_in_moves(guests: &[&str]) {
    for name in guests {
        let (lab, period) = (Lab::shared(), Duration::from_millis(1));
        let mut guest = Guest::start(name, &[], How::Moving { lab, period });
        guest.go_round(15);
        guest.pass();
    }
}

const GO: &str = r#"package main

import ("bufio"; "fmt"; "os"; "runtime"; "strconv"; "sync"; "syscall")

func main() {
	in := bufio.NewReader(os.Stdin)
	fmt.Printf("READY pid=%d\n", os.Getpid())
	for {
		if _, err := in.ReadString('\n'); err != nil { break }
		total := 0
		for r := 0; r < 8; r++ {
			var all, done sync.WaitGroup
			var mu sync.Mutex
			tids := map[int]bool{}
			all.Add(12); done.Add(12)
			for i := 0; i < 12; i++ {
				go func() {
					// A goroutine that ends locked takes its thread with it.
					runtime.LockOSThread()
					tid := syscall.Gettid()
					if _, err := os.Stat("/proc/self/task/" + strconv.Itoa(tid)); err != nil { panic(err) }
					mu.Lock(); tids[tid] = true; mu.Unlock()
					all.Done(); all.Wait()
					done.Done()
				}()
			}
			done.Wait()
			total += len(tids)
		}
		fmt.Printf("MADE %d\n", total)
	}
	fmt.Println("END")
}
"#;

const JAVA: &str = r#"import java.io.*;
import java.util.*;
import java.util.concurrent.*;

public class Threads {
    public static void main(String[] args) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        System.out.println("READY pid=" + ProcessHandle.current().pid());
        while (in.readLine() != null) {
            long sum = 0;
            for (int round = 0; round < 6; round++) {
                Thread[] threads = new Thread[16];
                long[] sums = new long[threads.length];
                CyclicBarrier all = new CyclicBarrier(threads.length);
                for (int t = 0; t < threads.length; t++) {
                    final int n = t;
                    threads[t] = new Thread(() -> {
                        try { all.await(); } catch (Exception e) { throw new RuntimeException(e); }
                        List<String> garbage = new ArrayList<>();
                        for (int i = 0; i < 3000; i++) { garbage.add("x" + i); sums[n] += garbage.get(i).hashCode(); }
                    });
                    threads[t].start();
                }
                for (int t = 0; t < threads.length; t++) { threads[t].join(); sum += sums[t]; }
                System.gc();
            }
            System.out.println("MADE " + sum);
        }
        System.out.println("END");
    }
}
"#;

const PYTHON: &str = r#"
import os, sys, threading
print(f"READY pid={os.getpid()}")
for line in sys.stdin:
    out, lock = [], threading.Lock()
    for round in range(6):
        barrier = threading.Barrier(16)
        def work(n):
            tid = threading.get_native_id()
            assert os.path.exists(f"/proc/self/task/{tid}"), tid
            barrier.wait()
            with lock: out.append((n, len({tid}), sum(i * n for i in range(2000))))
        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for t in threads: t.start()
        for t in threads: t.join()
    print("MADE", len(out), sum(s for _, _, s in out))
print("END")
"#;
