//! Freezing, capturing and rebuilding real processes on one node, without agents or links.

use mosix_loader::script::STUB_ELF;
use mosix_runtime::process::capture::{self, capture};
use mosix_runtime::process::freeze::{Frozen, freeze, put_back};
use mosix_runtime::process::inject::{has_window, inject};
use mosix_runtime::process::landing::Landing;
use mosix_runtime::process::layout::{Pages, of_home, runs, vdso};
use mosix_runtime::process::maps;
use mosix_runtime::process::materialise::{Body, stop_all};
use mosix_runtime::process::memory::{Batch, Feed};
use mosix_runtime::process::window::Window;
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace::{self, Event};
use mosix_wire::ids::{Epoch, Nonce, Pid};
use mosix_wire::image::{Backing, CpuImage, ProcessImage};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn start(program: &str, args: &[&str]) -> Child {
    let mut command = Command::new(program);
    command
        .args(args)
        .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("program starts");
    let mut byte = [0];
    child
        .stdout
        .as_mut()
        .expect("piped")
        .read_exact(&mut byte)
        .expect("program says it is ready");
    child
}

/// Freezes, injects, captures; everything but the way home or away.
fn take(pid: i32) -> (ProcessImage, Window, Frozen) {
    let frozen = freeze(pid, &[], Duration::from_secs(2)).expect("freezes");
    let before = maps::read(pid).expect("maps");
    let window = inject((frozen.pid, frozen.threads[0].tid), &before).expect("injects");
    assert!(has_window(&mosix_runtime::process::maps::read(pid).expect("maps")));
    let slots: Vec<u32> = (0..frozen.threads.len() as u32).collect();
    let captured = capture(&frozen, &window, &slots, |tid| tid).expect("captures");
    let layout = of_home(pid, &before, || None).expect("can move");
    let image = ProcessImage {
        pid: Pid(pid),
        epoch: Epoch(1),
        home: Nonce(1),
        uid: 0,
        exe: String::new(),
        threads: captured.threads,
        vmas: layout.vmas,
        files: layout.files,
        mm: capture::mm(pid, captured.brk).expect("mm"),
        actions: captured.actions,
        pending: captured.pending,
        signals: 0,
        spent: Default::default(),
        home_cpu_ns: 0,
        clocks: capture::clocks(),
        vdso: vdso(&ProcMem::force(pid).expect("mem"), &before),
        cpu: CpuImage::default(),
        attributes: captured.attributes,
    };
    (image, window, frozen)
}

const THREADS: &str = r#"
import threading, sys, os
def work():
    n = 0
    for i in range(3000000): n += i
    return n
ts = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in ts]
os.write(1, b"R")
[t.join() for t in ts]
os._exit(42)
"#;

#[test]
fn captured_process_runs_on() {
    let mut child = start("/usr/bin/python3", &["-c", THREADS]);
    let pid = child.id() as i32;
    let (image, _window, frozen) = take(pid);
    assert!(image.threads.len() > 1, "threads are alive");
    let tids: Vec<i32> = frozen.threads.iter().map(|thread| thread.tid).collect();
    stop_all(&tids).expect("stop in the stub");
    for (thread, image) in frozen.threads.iter().zip(&image.threads) {
        ptrace::set_xstate(thread.tid, &image.xsave).expect("xstate");
        put_back(thread).expect("registers");
        ptrace::set_sigmask(thread.tid, image.mask).expect("mask");
        ptrace::detach(thread.tid, 0).expect("detach");
    }
    assert_eq!(child.wait().expect("wait").code(), Some(42));
}

#[test]
fn body_is_built_again() {
    let script = "import os\nos.write(1,b'R')\nn=0\nfor i in range(3000000): n=(n*31+i)%1000003\nos._exit(n%200+3)";
    let expected = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .output()
        .expect("runs")
        .status
        .code();
    let mut child = start("/usr/bin/python3", &["-c", script]);
    let pid = child.id() as i32;
    let (image, _window, _frozen) = take(pid);

    // Everything travels as anonymous memory: there is no file cache here.
    let mut plain = image.clone();
    let mut pages = Vec::new();
    for vma in &mut plain.vmas {
        pages.push(match vma.backing {
            Backing::File { .. } => Pages::All,
            Backing::Anonymous => Pages::Touched,
            _ => Pages::None,
        });
        if matches!(vma.backing, Backing::File { .. }) {
            vma.backing = Backing::Anonymous;
        }
    }
    let runs = runs(pid, &plain.vmas, &pages).expect("runs");
    let program = mosix_sys::shared::memfd("stub", 0).expect("memfd");
    std::fs::File::from(program.try_clone().expect("dup"))
        .write_all(STUB_ELF)
        .expect("stub");
    let (window, fd) = Window::create().expect("window");
    let tid = mosix_sys::spawn::blank(0, program.as_fd(), fd.as_fd()).expect("blank");
    ptrace::seize(tid, 0).expect("seize");
    let mut body = Body::new(tid, window);
    body.map(&plain, |_| -1).expect("maps");
    let to = body.memory().expect("memory");
    let from = ProcMem::force(pid).expect("mem");
    let (feed, mut batch) = (Feed::new(&from, &runs), Batch::default());
    let landing = Landing::new(to, image.vmas.clone());
    while feed.next(&mut batch).expect("pages") {
        landing.take(&batch.runs, &batch.payload().concat()).expect("written");
    }
    let vdso = image.vdso.as_ref().expect("vdso");
    body.memory()
        .expect("memory")
        .write(vdso.base, &vdso.text)
        .expect("vdso text");
    body.dress(&plain, &[]).expect("dresses");
    body.set_registers(&plain).expect("registers");
    body.release(&[]).expect("release");
    child.kill().expect("kill the original");
    let ended = match ptrace::wait(Some(tid), true).expect("wait") {
        Some((_, Event::Exited(code))) => code,
        Some((_, Event::Killed(signal, _))) => panic!("killed by {signal}"),
        Some((_, Event::Signal(signal))) => panic!("signal {signal} at {:x?}", ptrace::regs(tid)),
        other => panic!("{other:?}"),
    };
    child.wait().expect("reap");
    assert_eq!(Some(ended), expected);
}

/// The end of a process that a freeze runs into belongs to whoever waits for everybody: else nobody learns how it ended.
#[test]
fn a_freeze_leaves_the_end_of_the_process_to_be_waited_for() {
    for code in 0..40 {
        let script = format!("echo; exit {code}");
        let mut child = start("sh", &["-c", &script]);
        let pid = child.id() as i32;
        // Now, or in a moment; the process is seized first, or not.
        while freeze(pid, &[], Duration::from_secs(2))
            .map(|frozen| mosix_runtime::process::freeze::release(&frozen))
            .is_ok()
        {}
        assert_eq!(child.wait().expect("its end is there").code(), Some(code));
    }
}
