//! The plan against the kernel: a real execve is stopped before its first instruction, and everything that it made (mappings, memory,
//! registers, mm fields, stack) must be what the loader would have made of the same file with the same random choices.

use mosix_loader::auxv::{Auxv, kind};
use mosix_loader::elf::{ElfFile, Kind, PAGE};
use mosix_loader::map::mm_fields;
use mosix_loader::place::{Dice, draw};
use mosix_loader::plan::{Content, Placement, Plan, Which, plan};
use mosix_loader::stack::{Stack, Start, build};
use mosix_sys::ptrace;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

mod common;
use common::Stopped;

fn open(path: &Path) -> (File, u64) {
    use std::os::unix::fs::MetadataExt;
    let file = File::open(path).unwrap();
    let inode = file.metadata().unwrap().ino();
    (file, inode)
}

/// Checks one program, with and without randomisation.
fn check(program: &Path, args: &[&str]) {
    for randomised in [false, true] {
        check_one(&Stopped::exec(program, args, randomised), randomised);
    }
}

fn check_one(real: &Stopped, randomised: bool) {
    let auxv = real.auxv();
    let (file, inode) = open(&real.program);
    let elf = ElfFile::read(&file).unwrap();
    let path = elf
        .interpreter
        .clone()
        .map(|path| PathBuf::from(String::from_utf8(path).unwrap()));
    let interpreter = path.as_ref().map(|path| open(path));
    let interpreter_elf = interpreter
        .as_ref()
        .map(|(file, _)| ElfFile::read_interpreter(file).unwrap());

    // The kernel's random choices, from what it says of them.
    let first = |elf: &ElfFile| elf.segments[0].vaddr & !(PAGE - 1);
    let bias = if elf.kind == Kind::Fixed {
        0
    } else {
        auxv.get(kind::ENTRY).unwrap().wrapping_sub(elf.entry)
    };
    let place = Placement {
        program: first(&elf).wrapping_add(bias),
        interpreter: auxv.get(kind::BASE).unwrap() + interpreter_elf.as_ref().map_or(0, first),
        brk_offset: None,
    };
    let natural = plan(&elf, interpreter_elf.as_ref(), &place).unwrap().brk;
    let brk = real.stat(47);
    let brk_offset = randomised.then(|| {
        let gap = if elf.kind == Kind::Relocatable && interpreter_elf.is_none() {
            0
        } else {
            PAGE
        };
        let offset = brk - natural - gap;
        assert!(offset < 1 << 30, "heap {offset:#x} from its natural place");
        offset
    });
    let made = plan(&elf, interpreter_elf.as_ref(), &Placement { brk_offset, ..place }).unwrap();
    assert_eq!(made.brk, brk);
    if !randomised {
        // Without randomisation the places follow from the rules alone.
        let layout = draw(&elf, interpreter_elf.as_ref(), 0, 8 << 20, &Dice::default()).unwrap();
        if elf.kind == Kind::Relocatable && interpreter_elf.is_some() {
            assert_eq!(layout.placement.program, place.program);
        }
    }

    let inodes = (inode, interpreter.as_ref().map_or(0, |(_, inode)| *inode));
    let stack = stack_of(real, &made, &auxv);
    compare_maps(real, &made, &stack, inodes);
    compare_memory(real, &made, &file, interpreter.as_ref().map(|(file, _)| file));

    let regs = ptrace::regs(real.pid).unwrap();
    assert_eq!((regs.0[16], regs.0[19]), (made.start, stack.sp), "rip and rsp");
    assert_eq!(real.read(stack.sp, stack.bytes.len() as u64), stack.bytes, "stack");
    assert_eq!(stack.auxv, auxv);
    let fields = [26, 27, 45, 46, 47, 47, 28, 48, 49, 50, 51].map(|field| real.stat(field));
    assert_eq!(mm_fields(&made, &stack), fields);
}

fn stack_of(real: &Stopped, made: &Plan, auxv: &Auxv) -> Stack {
    let (_, top, ..) = real.maps().into_iter().find(|map| map.5 == "[stack]").unwrap();
    let random = real.read(auxv.get(kind::RANDOM).unwrap(), 16).try_into().unwrap();
    let name = real.program.to_str().unwrap().as_bytes();
    // The kernel's random shift, from where its platform string ended up.
    let platform_end = auxv.get(kind::PLATFORM).unwrap() + 7;
    let shift = real.stat(48) - platform_end;
    let start = Start {
        filename: name,
        argv: &real.argv,
        envp: &real.envp,
        top,
        shift,
        random,
        stack_limit: 8 << 20,
    };
    assert!(shift < 8192 + 16, "{shift}");
    build(&start, made, &auxv.machine()).unwrap()
}

/// Both sides as (start, end, prot, inode, offset), neighbours that continue each other joined.
fn compare_maps(real: &Stopped, made: &Plan, stack: &Stack, (program, interpreter): (u64, u64)) {
    let join = |list: Vec<(u64, u64, u8, u64, u64)>| {
        let mut joined: Vec<(u64, u64, u8, u64, u64)> = Vec::new();
        for next in list {
            match joined.last_mut() {
                Some(last)
                    if last.1 == next.0
                        && (last.2, last.3) == (next.2, next.3)
                        && (next.3 == 0 || last.4 + (last.1 - last.0) == next.4) =>
                {
                    last.1 = next.1;
                }
                _ => joined.push(next),
            }
        }
        joined
    };
    let ours = made.mappings.iter().map(|mapping| {
        let (inode, offset) = match mapping.content {
            Content::File {
                which: Which::Program,
                offset,
            } => (program, offset),
            Content::File {
                which: Which::Interpreter,
                offset,
            } => (interpreter, offset),
            Content::Zero => (0, 0),
        };
        (mapping.start, mapping.end, mapping.prot, inode, offset)
    });
    let executable = if made.executable_stack { 4 } else { 0 };
    let mut ours: Vec<_> = ours.chain([(stack.start, stack.end, 3 | executable, 0, 0)]).collect();
    ours.sort_unstable();
    let kernels = real.maps().into_iter().filter(|map| !map.5.starts_with("[v"));
    let kernels = kernels
        .map(|(start, end, prot, offset, inode, _)| (start, end, prot, inode, if inode == 0 { 0 } else { offset }));
    assert_eq!(join(ours), join(kernels.collect()), "{:?}", real.program);
}

/// Every mapped byte is the file's, or zero where the plan says so.
fn compare_memory(real: &Stopped, made: &Plan, program: &File, interpreter: Option<&File>) {
    for mapping in &made.mappings {
        let length = (mapping.end - mapping.start).min(4 << 20);
        let mut expected = vec![0; usize::try_from(length).unwrap()];
        if let Content::File { which, offset } = mapping.content {
            let file = if which == Which::Program {
                program
            } else {
                interpreter.unwrap()
            };
            mosix_loader::elf::ProgramFile::read_at(file, offset, &mut expected).unwrap();
        }
        if let Some(from) = mapping.zero_from.filter(|from| *from < mapping.start + length) {
            expected[usize::try_from(from - mapping.start).unwrap()..].fill(0);
        }
        assert!(real.read(mapping.start, length) == expected, "bytes of {mapping:x?}");
    }
}

/// Compiles a program with these options.
fn compile(folder: &Path, name: &str, options: &[&str]) -> PathBuf {
    let source = folder.join("program.c");
    std::fs::write(
        &source,
        "static char zeros[300000]; static int value = 7; static const char text[70000] = {1};\n\
         int main(int argc, char **argv) { return zeros[argc] + value + text[argc]; }\n",
    )
    .unwrap();
    let program = folder.join(name);
    assert!(
        Command::new("cc")
            .arg("-O0")
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
fn programs_compiled_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let forms: [(&str, &[&str]); 9] = [
        ("dynamic", &["-pie", "-fPIE"]),
        ("fixed", &["-no-pie"]),
        ("static", &["-static", "-no-pie"]),
        ("static-pie", &["-static-pie", "-fPIE"]),
        ("execstack", &["-pie", "-fPIE", "-z", "execstack"]),
        ("aligned", &["-pie", "-fPIE", "-Wl,-z,max-page-size=0x200000"]),
        (
            "aligned-static-pie",
            &["-static-pie", "-fPIE", "-Wl,-z,max-page-size=0x200000"],
        ),
        ("joined", &["-static", "-no-pie", "-Wl,-z,noseparate-code"]),
        (
            "one-segment",
            &["-static", "-no-pie", "-nostdlib", "-Wl,-N", "-Wl,-e,main"],
        ),
    ];
    for (name, options) in forms {
        check(
            &compile(folder.path(), name, options),
            &["one", "", "three with blanks"],
        );
    }
}

#[test]
fn programs_of_the_distribution() {
    for path in [
        "/bin/true",
        "/bin/sh",
        "/usr/bin/perl",
        "/lib64/ld-linux-x86-64.so.2",
        "/usr/bin/python3",
    ] {
        let path =
            std::fs::canonicalize(path).unwrap_or_else(|_| panic!("{path} is part of every Debian this runs on"));
        if head_is_elf(&path) {
            check(&path, &["--version"]);
        }
    }
}

fn head_is_elf(path: &Path) -> bool {
    mosix_loader::elf::head(&File::open(path).unwrap())
        .unwrap()
        .starts_with(b"\x7fELF")
}

#[test]
fn a_static_rust_program() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("program.rs");
    std::fs::write(&source, "fn main() { println!(\"{}\", std::env::args().count()); }").unwrap();
    let program = folder.path().join("program");
    let built = Command::new("rustc")
        .args(["-C", "target-feature=+crt-static", "-o"])
        .arg(&program)
        .arg(&source)
        .status()
        .unwrap();
    assert!(built.success());
    check(&program, &["x"]);
}

#[test]
fn many_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "program", &["-pie", "-fPIE"]);
    let text = "y".repeat(100);
    check(&program, &vec![text.as_str(); 3000]);
}
