//! Real execve calls, stopped before the program's first instruction.
#![allow(dead_code, reason = "each test uses its part")]

use mosix_loader::auxv::Auxv;
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace::{self, Event};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A child stopped right after its execve.
pub struct Stopped {
    child: Child,
    pub pid: i32,
    pub program: PathBuf,
    pub argv: Vec<Vec<u8>>,
    pub envp: Vec<Vec<u8>>,
}

/// See ptrace(2).
const PTRACE_O_TRACEEXEC: i32 = 16;
const PTRACE_EVENT_EXEC: i32 = 4;

impl Stopped {
    /// Starts a program and stops it. Panics when the kernel does not load it.
    pub fn exec(program: &Path, args: &[&str], randomised: bool) -> Self {
        Self::try_exec(program, args, randomised).expect("the kernel loads the program")
    }

    /// Starts a program and stops it. `None`: the kernel killed the process while it loaded the program.
    pub fn try_exec(program: &Path, args: &[&str], randomised: bool) -> Option<Self> {
        let name = program.to_str().unwrap();
        let mut command = Command::new("setarch");
        command.arg("x86_64");
        if !randomised {
            command.arg("-R");
        }
        command
            .arg("sh")
            .arg("-c")
            .arg("kill -STOP $$; exec \"$@\"")
            .arg("sh")
            .arg(name)
            .args(args);
        // sh sets PWD and such by itself; OLDPWD and _ do not depend on it.
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("LONG", "x".repeat(5000))
            .env("EMPTY", "");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            match stat.rsplit(')').next().unwrap().trim_start().chars().next() {
                Some('T') => break,
                Some('Z') => panic!("ended early: {:?}", child.wait()),
                _ => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
        }
        ptrace::seize(pid, PTRACE_O_TRACEEXEC).unwrap();
        mosix_sys::process::kill(pid, 18).unwrap();
        loop {
            match ptrace::wait(Some(pid), true).unwrap().unwrap().1 {
                Event::Ptrace(PTRACE_EVENT_EXEC) => break,
                Event::Signal(18) | Event::Stop(_) => ptrace::cont(pid, 0).unwrap(),
                // SIGSEGV or SIGKILL is how execve fails behind its point of no return; the first shows as a stop here.
                Event::Signal(11) => ptrace::cont(pid, 11).unwrap(),
                Event::Killed(11 | 9, _) => return None,
                other => panic!("{other:?}"),
            }
        }
        let list = |file: &str| -> Vec<Vec<u8>> {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
            let mut parts: Vec<Vec<u8>> = bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
            parts.pop();
            parts
        };
        let (argv, envp) = (list("cmdline"), list("environ"));
        Some(Self {
            child,
            pid,
            program: program.to_owned(),
            argv,
            envp,
        })
    }

    pub fn auxv(&self) -> Auxv {
        Auxv::parse(&std::fs::read(format!("/proc/{}/auxv", self.pid)).unwrap()).unwrap()
    }

    /// Fields of /proc/PID/stat by their number in proc(5).
    pub fn stat(&self, field: usize) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        stat.rsplit_once(") ")
            .unwrap()
            .1
            .split(' ')
            .nth(field - 3)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    pub fn read(&self, start: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        ProcMem::force(self.pid).unwrap().read(start, &mut bytes).unwrap();
        bytes
    }

    /// start, end, prot, offset, inode, name
    pub fn maps(&self) -> Vec<(u64, u64, u8, u64, u64, String)> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap();
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
        maps.lines()
            .map(|line| {
                let mut parts = line.split_whitespace();
                let (start, end) = parts.next().unwrap().split_once('-').unwrap();
                let prot = parts
                    .next()
                    .unwrap()
                    .bytes()
                    .zip([1, 2, 4])
                    .filter(|(byte, _)| *byte != b'-');
                let prot = prot.map(|(_, bit)| bit).sum();
                let offset = hex(parts.next().unwrap());
                let inode = parts.nth(1).unwrap().parse().unwrap();
                (
                    hex(start),
                    hex(end),
                    prot,
                    offset,
                    inode,
                    parts.next().unwrap_or("").to_owned(),
                )
            })
            .collect()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = mosix_sys::process::kill(self.pid, 9);
        let _ = self.child.wait();
    }
}
