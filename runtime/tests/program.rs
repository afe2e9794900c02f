//! Real programs started by the loader instead of execve: image, blank process, materialiser, and they must do their work.

use mosix_loader::auxv::Auxv;
use mosix_loader::elf::{ElfFile, head};
use mosix_loader::interp::Invocation;
use mosix_loader::place::Dice;
use mosix_loader::script::abi::SHARED;
use mosix_loader::script::{Op, STUB_ELF};
use mosix_loader::vdso::{Presented, VdsoImage, patch};
use mosix_runtime::cpu;
use mosix_runtime::process::materialise::Body;
use mosix_runtime::process::program::{Exec, load};
use mosix_runtime::process::window::Window;
use mosix_sys::procmem::ProcMem;
use mosix_sys::ptrace::{self, Event};
use mosix_wire::ids::{Epoch, Nonce, Pid};
use mosix_wire::image::{Attributes, Clocks, CpuImage, FileRef};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Runs a program by the loader, in a process of its own, and gives its exit code. It has no descriptors.
fn run(path: &Path, args: &[&str]) -> i32 {
    let mut call = Invocation::new(
        path.as_os_str().as_encoded_bytes(),
        std::iter::once(path.to_str().unwrap())
            .chain(args.iter().copied())
            .map(|arg| arg.as_bytes().to_vec())
            .collect(),
    );
    let open = |path: &[u8]| File::open(std::str::from_utf8(path).unwrap()).unwrap();
    while !call.step(&head(&open(&call.program)).unwrap()).unwrap() {}
    let file = open(&call.program);
    let elf = ElfFile::read(&file).unwrap();
    let interpreter = elf.interpreter.clone().map(|path| {
        let elf = ElfFile::read_interpreter(&open(&path)).unwrap();
        (path, elf)
    });
    let reference = |path: &[u8]| FileRef {
        device: 0,
        inode: 0,
        size: 0,
        mtime_ns: 0,
        path: String::from_utf8(path.to_vec()).unwrap(),
    };
    let own = Auxv::parse(&fs::read("/proc/self/auxv").unwrap()).unwrap();
    let here = cpu::record();
    let random = || {
        u64::from_le_bytes(
            fs::read("/proc/sys/kernel/random/uuid").unwrap()[..8]
                .try_into()
                .unwrap(),
        )
    };
    let loaded = load(Exec {
        pid: Pid(1),
        epoch: Epoch(1),
        home: Nonce(1),
        filename: &call.filename,
        program: (&elf, reference(&call.program)),
        interpreter: interpreter.as_ref().map(|(path, elf)| (elf, reference(path))),
        argv: &call.argv,
        envp: &[b"PATH=/usr/bin:/bin".to_vec(), b"LC_ALL=C".to_vec()],
        machine: &own.machine(),
        cpu: here.clone(),
        node: (&here, cpu::area_size()),
        clocks: Clocks::default(),
        attributes: Attributes {
            stack_limit: 8 << 20,
            ..Attributes::default()
        },
        mask: 0,
        ignored: 1 << 12,
        dice: Dice {
            program: random(),
            mmap: random(),
            stack: random(),
            stack_pointer: random(),
            brk: random(),
        },
        random: *b"0123456789abcdef",
    })
    .unwrap();

    let program = mosix_sys::shared::memfd("stub", 0).unwrap();
    File::from(program.try_clone().unwrap()).write_all(STUB_ELF).unwrap();
    let (window, fd) = Window::create().unwrap();
    let pid = mosix_sys::spawn::blank(0, program.as_fd(), fd.as_fd()).unwrap();
    ptrace::seize(pid, 0).unwrap();
    // The test's process may open files itself; on a host they are handed to it.
    let mut opens = Vec::new();
    for (index, file) in loaded.image.files.iter().enumerate() {
        let at = index as u64 * 512;
        let (buffer, _) = Window::buffer(0);
        window
            .write_buffer(0, at as usize, &[file.path.as_bytes(), b"\0"].concat())
            .unwrap();
        assert!(buffer > SHARED);
        opens.push(Op::must(2, [buffer + at, 0, 0, 0, 0, 0]));
    }
    let numbers = window.run(0, &opens, Duration::from_secs(5)).unwrap();
    let mut body = Body::new(pid, window);
    body.map(&loaded.image, |file| numbers[file as usize] as i32).unwrap();
    let memory = body.memory().unwrap();
    for (address, bytes) in &loaded.writes {
        memory.write(*address, bytes).unwrap();
    }
    let vdso = loaded.image.vdso.as_ref().unwrap();
    let mut text = vdso.text.clone();
    let node = body.node.iter().find(|mapping| mapping.name == "[vdso]").unwrap();
    let mut nodes_text = vec![0; node.len() as usize];
    ProcMem::force(pid).unwrap().read(node.start, &mut nodes_text).unwrap();
    let functions = VdsoImage::parse(&nodes_text).unwrap().addresses(node.start);
    // An offset that no system call shows: what the guest sees of it went through this vDSO.
    let presented = Presented {
        cpus: here.cpus,
        realtime_offset_ns: 3_600_000_000_000,
    };
    let done = patch(&mut text, &functions, presented).unwrap();
    assert_eq!(done.fallbacks, Vec::<String>::new());
    memory.write(vdso.base, &text).unwrap();
    body.dress(&loaded.image, &[]).unwrap();
    body.set_registers(&loaded.image).unwrap();
    body.release(&[]).unwrap();
    loop {
        match ptrace::wait(Some(pid), true).unwrap().unwrap().1 {
            Event::Exited(code) => return code,
            Event::Killed(signal, _) => panic!("{} killed by {signal}", path.display()),
            Event::Signal(signal) => {
                assert_ne!(signal, 11, "{} at {:x?}", path.display(), ptrace::regs(pid).unwrap());
                ptrace::cont(pid, signal).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_signal_stack_must_hold_this_nodes_frame() {
    let elf = ElfFile::read(&File::open("/bin/true").unwrap()).unwrap();
    let own = Auxv::parse(&fs::read("/proc/self/auxv").unwrap()).unwrap();
    let here = cpu::record();
    let file = FileRef {
        device: 0,
        inode: 0,
        size: 0,
        mtime_ns: 0,
        path: String::new(),
    };
    let mut image = load(Exec {
        pid: Pid(7),
        epoch: Epoch(1),
        home: Nonce(1),
        filename: b"/bin/true",
        program: (&elf, file),
        interpreter: None,
        argv: &[b"true".to_vec()],
        envp: &[],
        machine: &own.machine(),
        cpu: here.clone(),
        node: (&here, cpu::area_size()),
        clocks: Clocks::default(),
        attributes: Attributes::default(),
        mask: 0,
        ignored: 0,
        dice: Dice::default(),
        random: [0; 16],
    })
    .unwrap()
    .image;
    let birth = cpu::signal_frame();
    assert!(birth >= 1024, "{birth}");
    let bigger = birth + 2048;
    for (flags, size, fits) in [
        (2, birth, true),
        (0, birth, false),
        (0, bigger - 1, false),
        (0, bigger, true),
        (0, birth - 1, true),
    ] {
        image.threads[0].altstack = (0x1000, flags, size);
        assert_eq!(cpu::admit_signal_stacks(&image, bigger).is_ok(), fits, "{flags} {size}");
    }
    assert_eq!(cpu::admit_signal_stacks(&image, cpu::signal_frame()), Ok(()));
    // Registers that come from a CPU without XSAVE fit this one after arrival, and a second time changes nothing.
    image.threads[0].xsave.truncate(512);
    image.cpu = CpuImage {
        xsave: Vec::new(),
        xcr0: 0,
        ..image.cpu
    };
    cpu::settle(&mut image).unwrap();
    assert_eq!(image.threads[0].xsave.len(), cpu::area_size());
    assert_eq!(
        (image.cpu.xcr0, &image.cpu.xsave),
        (0, &here.xsave),
        "its birth stays, its layout is this node's"
    );
    let once = image.clone();
    cpu::settle(&mut image).unwrap();
    assert_eq!(image, once);
    image.threads[0].altstack = (0x1000, 0, birth);
    let text = cpu::admit_signal_stacks(&image, bigger).unwrap_err().to_string();
    assert!(
        text.contains("thread 7") && text.contains(&bigger.to_string()),
        "{text}"
    );
}

/// Says what a program finds at its start, as an exit code: 42 when all is right.
const GUEST: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static char zeros[100000]; static int value = 7; static __thread int tls = 9;
int main(int argc, char **argv) {
    struct timespec a, b; struct sigaction action;
    for (unsigned i = 0; i < sizeof zeros; i++) if (zeros[i]) return 1;
    if (value != 7 || tls != 9) return 2;
    if (argc != 3 || strcmp(argv[1], "one") || strcmp(argv[2], "")) return 3;
    if (!getenv("LC_ALL") || strcmp(getenv("LC_ALL"), "C")) return 4;
    if (memcmp((void *)getauxval(AT_RANDOM), "0123456789abcdef", 16)) return 5;
    if (clock_gettime(CLOCK_MONOTONIC, &a) || syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &b)) return 6;
    if (b.tv_sec - a.tv_sec > 1 || a.tv_sec > b.tv_sec) return 7;
    if (sigaction(SIGPIPE, 0, &action) || action.sa_handler != SIG_IGN) return 8;
    if (sigaction(SIGINT, 0, &action) || action.sa_handler != SIG_DFL) return 9;
    char *heap = malloc(5000000); if (!heap) return 10; memset(heap, 1, 5000000);
    volatile double x = argc / 2.0; if (x != 1.5) return 11;
    FILE *f = fopen("/proc/self/cmdline", "r"); char line[100] = {0};
    if (!f || fread(line, 1, 99, f) < 3 || strcmp(line, argv[0])) return 12;
    char deep[3000000]; deep[0] = 1; deep[2999999] = deep[0]; if (deep[2999999] != 1) return 13;
    /* libc found the vDSO and reads the clock by it: an hour ahead of the system call. */
    if (clock_gettime(CLOCK_REALTIME, &a) || syscall(SYS_clock_gettime, CLOCK_REALTIME, &b)) return 14;
    if (a.tv_sec - b.tv_sec < 3599 || a.tv_sec - b.tv_sec > 3600) return 15;
    exit(42);
}
"#;

fn compile(folder: &Path, name: &str, options: &[&str]) -> PathBuf {
    let source = folder.join("guest.c");
    fs::write(&source, GUEST).unwrap();
    let program = folder.join(name);
    assert!(
        Command::new("cc")
            .args(options)
            .arg("-o")
            .arg(&program)
            .arg(source)
            .status()
            .unwrap()
            .success()
    );
    program
}

#[test]
fn every_form_of_program_runs() {
    let folder = tempfile::tempdir().unwrap();
    let forms: [(&str, &[&str]); 5] = [
        ("dynamic", &["-pie", "-fPIE"]),
        ("fixed", &["-no-pie"]),
        ("static", &["-static", "-no-pie"]),
        ("static-pie", &["-static-pie", "-fPIE"]),
        ("aligned", &["-pie", "-fPIE", "-Wl,-z,max-page-size=0x200000"]),
    ];
    for (name, options) in forms {
        let program = compile(folder.path(), name, options);
        assert_eq!(run(&program, &["one", ""]), 42, "{name}");
    }
}

#[test]
fn programs_of_the_distribution_run() {
    assert_eq!(run(Path::new("/bin/true"), &[]), 0);
    assert_eq!(run(Path::new("/bin/false"), &[]), 1);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let script = format!(
        "import time,hashlib; t=time.time(); open('{}','w').write(hashlib.sha256(b'x'*10**6).hexdigest())",
        out.display()
    );
    assert_eq!(run(Path::new("/usr/bin/python3"), &["-c", &script]), 0);
    let plain = Command::new("/usr/bin/python3")
        .args([
            "-c",
            "import hashlib; print(hashlib.sha256(b'x'*10**6).hexdigest(), end='')",
        ])
        .output()
        .unwrap();
    assert_eq!(fs::read(&out).unwrap(), plain.stdout);
}

#[test]
fn a_script_runs_by_its_interpreter() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    let out = folder.path().join("out");
    // A child writes it: a descriptor of this process may be inherited by another test's fork, and execve fail with ETXTBSY.
    let text = format!("#!/bin/sh -e\necho \"$# $1 $0\" > {}\nexit 17\n", out.display());
    let write = format!("cat >'{0}' <<\\EOF\n{text}EOF\nchmod 755 '{0}'", script.display());
    assert!(Command::new("sh").args(["-c", &write]).status().unwrap().success());
    assert_eq!(run(&script, &["a b", "c"]), 17);
    assert_eq!(
        fs::read_to_string(&out).unwrap(),
        format!("2 a b {}\n", script.display())
    );
}
