//! Job control in a real bash on a pseudo-terminal. Every test runs plainly first: what it expects is what a shell does.

use super::stand::{Stand, ended, eventually, state};
use mosix_tests::binary::mosix;
use rexpect::session::{PtySession, spawn_command};
use std::process::Command;

const PROMPT: &str = "@ready@ ";

/// A terminal with an interactive bash in which $M starts a program.
struct Terminal {
    pty: PtySession,
    stand: Stand,
    /// The shell, and its session.
    shell: String,
}

impl Terminal {
    /// With `mosix`, $M is `mosix run`; without, it is nothing.
    fn new(mosix_run: bool) -> Self {
        let stand = Stand::own();
        let mut bash: Command = stand.command("bash");
        bash.args(["--norc", "--noprofile", "-i"])
            .env("PS1", PROMPT)
            .env("TERM", "dumb")
            .env_remove("PROMPT_COMMAND");
        let run = if mosix_run {
            format!("{} run", mosix().display())
        } else {
            String::new()
        };
        bash.env("M", run);
        let pty = spawn_command(bash, Some(20_000)).unwrap();
        let mut terminal = Self {
            pty,
            stand,
            shell: String::new(),
        };
        terminal.pty.exp_string(PROMPT).unwrap();
        // Without echo, only answers come back.
        terminal.type_line("stty -echo; bind 'set enable-bracketed-paste off' 2> /dev/null");
        terminal.type_line("echo shell=$$");
        terminal.see("shell=");
        terminal.shell = terminal.see("\r\n");
        terminal.see(PROMPT);
        terminal
    }

    fn type_line(&mut self, line: &str) {
        self.pty.send_line(line).unwrap();
    }

    fn see(&mut self, text: &str) -> String {
        self.pty.exp_string(text).unwrap_or_else(|e| panic!("no '{text}': {e}"))
    }

    /// Types a command and gives what it prints.
    fn ask(&mut self, line: &str) -> String {
        self.type_line(line);
        self.see(PROMPT)
    }

    fn press(&mut self, key: char) {
        self.pty.send_control(key).unwrap();
    }

    /// Waits for the only process whose command line is `words`, and gives its pid.
    fn process(&self, words: &[&str]) -> i64 {
        eventually(|| {
            std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
                let pid: i64 = entry.file_name().to_str()?.parse().ok()?;
                let line = std::fs::read(entry.path().join("cmdline")).ok()?;
                let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
                let of = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(3)?;
                (of == self.shell && line == (words.join("\0") + "\0").into_bytes()).then_some(pid)
            })
        })
    }

    #[track_caller]
    fn until_state(&self, pid: i64, wanted: char) {
        eventually(|| (state(pid) == Some(wanted)).then_some(()));
    }
}

/// Runs a test plainly and under mosix.
fn both(test: impl Fn(&mut Terminal)) {
    for mosix_run in [false, true] {
        eprintln!("under mosix: {mosix_run}");
        let mut terminal = Terminal::new(mosix_run);
        test(&mut terminal);
        terminal.type_line("exit");
        terminal.pty.exp_eof().unwrap();
        terminal.stand.until_empty();
    }
}

#[test]
fn interrupt_and_quit_end_the_program() {
    both(|t| {
        for (key, code) in [('c', "130"), ('\\', "131")] {
            t.type_line("$M sleep 1000");
            let pid = t.process(&["sleep", "1000"]);
            t.until_state(pid, 'S');
            t.press(key);
            t.see(PROMPT);
            assert_eq!(
                t.ask("echo code $?").trim_end_matches(PROMPT).trim(),
                format!("code {code}")
            );
            eventually(|| ended(pid).then_some(()));
        }
    });
}

#[test]
fn a_handler_sees_one_interrupt_for_each_key() {
    both(|t| {
        let code = "import signal, time; n = [0]\n\
                    def h(s, f): n[0] += 1; print('interrupt', n[0], flush=True)\n\
                    signal.signal(signal.SIGINT, h); print('up', flush=True)\n\
                    while n[0] < 3: time.sleep(0.05)\n\
                    time.sleep(0.3); print('total', n[0])\n";
        std::fs::write(t.stand.path().join("h.py"), code).unwrap();
        t.type_line("$M /usr/bin/python3 h.py");
        t.see("up\r\n");
        for n in 1..=3 {
            t.press('c');
            t.see(&format!("interrupt {n}\r\n"));
        }
        t.see("total 3\r\n");
        t.see(PROMPT);
    });
}

#[test]
fn stop_background_foreground() {
    both(|t| {
        t.type_line("$M sleep 1001");
        let pid = t.process(&["sleep", "1001"]);
        t.until_state(pid, 'S');
        t.press('z');
        assert!(t.see(PROMPT).contains("Stopped"));
        t.until_state(pid, 'T');
        assert!(t.ask("jobs -s").contains("Stopped"));
        t.ask("bg");
        t.until_state(pid, 'S');
        assert!(t.ask("jobs -r").contains("Running"));
        t.type_line("fg");
        t.see("sleep 1001");
        std::thread::sleep(std::time::Duration::from_millis(100));
        t.press('z');
        assert!(t.see(PROMPT).contains("Stopped"));
        t.until_state(pid, 'T');
        t.type_line("fg");
        t.until_state(pid, 'S');
        t.press('c');
        t.see(PROMPT);
        eventually(|| ended(pid).then_some(()));
        assert_eq!(t.ask("jobs"), "");
    });
}

#[test]
fn stop_and_go_many_times() {
    both(|t| {
        t.type_line("$M sleep 1002");
        let pid = t.process(&["sleep", "1002"]);
        t.until_state(pid, 'S');
        for _ in 0..20 {
            t.press('z');
            t.see(PROMPT);
            t.until_state(pid, 'T');
            t.type_line("fg");
            t.see("sleep 1002\r\n");
            t.until_state(pid, 'S');
        }
        t.press('c');
        t.see(PROMPT);
    });
}

#[test]
fn the_program_reads_the_terminal() {
    both(|t| {
        t.type_line("$M cat");
        t.process(&["cat"]);
        t.type_line("one line");
        t.see("one line\r\n");
        t.press('d');
        t.see(PROMPT);
        assert!(t.ask("echo code $?").contains("code 0"));
    });
}

#[test]
fn a_background_reader_stops_until_it_is_in_the_foreground() {
    both(|t| {
        t.ask("$M cat &");
        let pid = t.process(&["cat"]);
        t.until_state(pid, 'T');
        eventually(|| t.ask("jobs").contains("Stopped").then_some(()));
        t.type_line("fg");
        t.until_state(pid, 'S');
        t.type_line("now mine");
        t.see("now mine\r\n");
        t.press('d');
        t.see(PROMPT);
    });
}

#[test]
fn kill_of_a_job_reaches_the_program_once() {
    both(|t| {
        let code = "import signal, time; n = [0]\n\
                    def h(s, f): n[0] += 1\n\
                    signal.signal(signal.SIGTERM, h); signal.signal(signal.SIGUSR1, h); open('up', 'w')\n\
                    while n[0] < 1: time.sleep(0.05)\n\
                    time.sleep(0.3); open('count', 'w').write(str(n[0]))\n";
        std::fs::write(t.stand.path().join("k.py"), code).unwrap();
        // By the shell to the group, and to the process that the shell started.
        for kill in ["kill %1", "kill $!", "kill -USR1 %1", "kill -USR1 $!"] {
            t.ask("$M /usr/bin/python3 k.py &");
            eventually(|| t.stand.path().join("up").exists().then_some(()));
            t.ask(kill);
            t.ask("wait");
            assert_eq!(
                std::fs::read_to_string(t.stand.path().join("count")).unwrap(),
                "1",
                "{kill}"
            );
            std::fs::remove_file(t.stand.path().join("up")).unwrap();
            t.ask("jobs");
        }
    });
}

#[test]
fn a_program_that_stops_itself_is_mirrored() {
    both(|t| {
        // As editors do: put the terminal right, then stop for real.
        let code = "import signal, os, time\n\
                    def h(s, f): print('tidy', flush=True); signal.signal(signal.SIGTSTP, signal.SIG_DFL); os.kill(0, signal.SIGTSTP)\n\
                    signal.signal(signal.SIGTSTP, h)\n\
                    signal.signal(signal.SIGCONT, lambda s, f: print('back', flush=True))\n\
                    print('up', flush=True)\n\
                    while True: time.sleep(0.05)\n";
        std::fs::write(t.stand.path().join("e.py"), code).unwrap();
        t.type_line("$M /usr/bin/python3 e.py");
        t.see("up\r\n");
        t.press('z');
        t.see("tidy\r\n");
        assert!(t.see(PROMPT).contains("Stopped"));
        t.type_line("fg");
        t.see("back\r\n");
        t.press('c');
        t.see(PROMPT);
    });
}

#[test]
fn stop_and_continue_by_kill_from_elsewhere() {
    both(|t| {
        t.type_line("$M sleep 1003");
        let pid = t.process(&["sleep", "1003"]);
        t.until_state(pid, 'S');
        let raw = nix::unistd::Pid::from_raw(pid as i32);
        // Quickly one after the other: the launcher must not stay stopped.
        for _ in 0..50 {
            nix::sys::signal::kill(raw, nix::sys::signal::Signal::SIGSTOP).unwrap();
            nix::sys::signal::kill(raw, nix::sys::signal::Signal::SIGCONT).unwrap();
        }
        t.until_state(pid, 'S');
        std::thread::sleep(std::time::Duration::from_millis(500));
        t.press('c');
        // The shell may have noticed a stop in between, and taken the terminal back.
        t.type_line("fg > /dev/null 2>&1; echo over");
        t.press('c');
        t.see(PROMPT);
        t.ask("kill -9 %1 2> /dev/null; true");
        let _ = nix::sys::signal::kill(raw, nix::sys::signal::Signal::SIGKILL);
        eventually(|| ended(pid).then_some(()));
    });
}

#[test]
fn a_shell_inside_has_job_control_of_its_own() {
    both(|t| {
        t.type_line("$M bash --norc --noprofile -i");
        t.see(PROMPT);
        t.type_line("sleep 1004");
        let pid = t.process(&["sleep", "1004"]);
        t.until_state(pid, 'S');
        t.press('z');
        assert!(t.see(PROMPT).contains("Stopped"));
        t.until_state(pid, 'T');
        t.type_line("fg");
        t.until_state(pid, 'S');
        t.press('c');
        t.see(PROMPT);
        // The inner shell stops itself; the outer one continues it.
        t.type_line("suspend");
        assert!(t.see(PROMPT).contains("Stopped"));
        t.type_line("fg");
        t.see("bash --norc");
        t.see(PROMPT);
        t.type_line("exit 5");
        t.see(PROMPT);
        assert!(t.ask("echo code $?").contains("code 5"));
    });
}

#[test]
fn the_terminal_belongs_to_the_program() {
    both(|t| {
        let code =
            "import os; print('mine' if os.tcgetpgrp(0) == os.getpgrp() else 'not mine', os.isatty(0), os.isatty(1))";
        std::fs::write(t.stand.path().join("o.py"), code).unwrap();
        assert!(t.ask("$M /usr/bin/python3 o.py").contains("mine True True"));
    });
}

#[test]
fn hanging_up_ends_the_program() {
    for mosix_run in [false, true] {
        let mut t = Terminal::new(mosix_run);
        t.type_line("$M sleep 1005");
        let pid = t.process(&["sleep", "1005"]);
        t.until_state(pid, 'S');
        let Terminal { pty, stand, .. } = t;
        drop(pty);
        eventually(|| ended(pid).then_some(()));
        stand.until_empty();
    }
}
