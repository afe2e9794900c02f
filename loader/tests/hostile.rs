//! Damaged and hostile programs: the loader against the kernel's execve on the same file, and never a panic.

use mosix_loader::auxv::kind;
use mosix_loader::elf::{ElfFile, HEAD, Kind, PAGE, head};
use mosix_loader::interp::{Form, Invocation, form};
use mosix_loader::map::{Files, work};
use mosix_loader::place::{Dice, draw};
use mosix_loader::plan::{Content, Placement, Plan, plan};
use mosix_loader::script::abi::{WINDOW, WINDOW_END};
use mosix_loader::stack::{Start, build};
use mosix_loader::{LoadError, auxv::Auxv};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

mod common;
use common::Stopped;

/// What an exec comes to.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Outcome {
    /// execve returned this errno.
    Errno(i32),
    /// The process was killed on the way.
    Killed,
    /// It runs.
    Runs,
}

/// All stages of the loader on a static program.
fn load(bytes: &[u8], place: Option<&Placement>) -> Result<(ElfFile, Plan), LoadError> {
    match form(&head(bytes)?)? {
        Form::Elf => {}
        Form::Script(_) => return Err(LoadError::NotExecutable),
    }
    let elf = ElfFile::read(bytes)?;
    let place = match place {
        Some(place) => *place,
        None => {
            draw(
                &elf,
                None,
                PAGE,
                8 << 20,
                &Dice {
                    program: 5,
                    mmap: 7,
                    stack: 9,
                    stack_pointer: 11,
                    brk: 13,
                },
            )?
            .placement
        }
    };
    let plan = plan(&elf, None, &place)?;
    Ok((elf, plan))
}

fn ours(bytes: &[u8]) -> Outcome {
    match load(bytes, None) {
        Ok(_) => Outcome::Runs,
        Err(error) if error.is_fatal() => Outcome::Killed,
        Err(error) => Outcome::Errno(error.errno()),
    }
}

/// Writes a file to execute. A child writes it: a descriptor of this process, open for writing, could be inherited by a fork of another
/// test thread, and the execve would fail with ETXTBSY.
fn executable(path: &Path, bytes: &[u8], mode: u32) {
    let mut child = Command::new("install")
        .args(["-m", &format!("{mode:o}"), "/dev/stdin"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    assert!(child.wait().unwrap().success(), "install {}", path.display());
}

fn write(path: &Path, bytes: &[u8]) {
    executable(path, bytes, 0o755);
}

/// The kernel's verdict, and the process if it runs.
fn kernels(path: &Path) -> (Outcome, Option<Stopped>) {
    match Command::new(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
    {
        Err(error) => return (Outcome::Errno(error.raw_os_error().unwrap()), None),
        Ok(mut child) => drop(child.wait().unwrap()),
    }
    match Stopped::try_exec(path, &[], false) {
        Some(stopped) => (Outcome::Runs, Some(stopped)),
        None => (Outcome::Killed, None),
    }
}

/// A tiny static program of several segments that ends at once, as bytes.
fn tiny(folder: &Path, options: &[&str]) -> Vec<u8> {
    let source = folder.join("tiny.c");
    fs::write(
        &source,
        "static int zeros[3000]; int value = 3; const int constant = 5;\n\
         void begin(void) { __asm__ volatile(\"mov $60, %%eax\\n xor %%edi, %%edi\\n syscall\" : : \"r\"(zeros), \"r\"(value)); }",
    )
    .unwrap();
    let program = folder.join("tiny");
    let common = [
        "-O1",
        "-nostdlib",
        "-fno-stack-protector",
        "-Wl,-e,begin",
        "-Wl,--build-id=none",
    ];
    assert!(
        Command::new("cc")
            .args(common)
            .args(options)
            .arg("-o")
            .arg(&program)
            .arg(source)
            .status()
            .unwrap()
            .success()
    );
    let bytes = fs::read(&program).unwrap();
    fs::remove_file(program).unwrap();
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: u64, width: usize) {
    bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
}

/// Offset of a field of a program header: type, flags, offset, vaddr, paddr, filesz, memsz, align.
fn header_field(index: usize, field: usize) -> (usize, usize) {
    let (at, width) = [(0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8)][field];
    (64 + 56 * index + at, width)
}

/// Compares one file; when both run it, their mappings too.
fn compare(path: &Path, bytes: &[u8]) {
    write(path, bytes);
    // A .bss beyond what the machine grants is refused when it is mapped, not when it is planned.
    if load(bytes, None).is_ok_and(|(elf, _)| elf.segments.iter().any(|segment| segment.memsz > 1 << 30)) {
        return;
    }
    // Without bytes in its first segment, the kernel maps a relocatable program at 0 or kills it, by accident of its address.
    let headless = |elf: ElfFile| elf.segments.first().is_some_and(|segment| segment.filesz == 0);
    if ElfFile::read(bytes).is_ok_and(|elf| elf.kind == Kind::Relocatable && headless(elf)) {
        return;
    }
    // Root may map the lowest pages, and the kernel knows no window.
    if matches!(
        load(bytes, None),
        Err(LoadError::Segment { errno: 1, .. } | LoadError::Window { .. })
    ) {
        return;
    }
    // Where the kernel's own stack and vDSO lie: a collision depends on the draw.
    let high = |plan: &Plan| plan.mappings.iter().any(|mapping| mapping.end > 0x7e00_0000_0000);
    if load(bytes, None).is_ok_and(|(elf, plan)| elf.kind == Kind::Fixed && high(&plan)) {
        return;
    }
    let (kernel, stopped) = kernels(path);
    let verdict = ours(bytes);
    assert_eq!(verdict, kernel, "{:?}", load(bytes, None).err());
    let Some(real) = stopped else { return };
    let elf = ElfFile::read(bytes).unwrap();
    let bias = if elf.kind == Kind::Fixed {
        0
    } else {
        real.auxv().get(kind::ENTRY).unwrap().wrapping_sub(elf.entry)
    };
    let first = elf.segments.first().map_or(0, |segment| segment.vaddr & !(PAGE - 1));
    let place = Placement {
        program: first.wrapping_add(bias),
        interpreter: 0,
        brk_offset: None,
    };
    let (_, plan) = load(bytes, Some(&place)).unwrap();
    let pages = |list: Vec<(u64, u64, u8, u64)>| -> Vec<(u64, u8, u64)> {
        list.iter()
            .flat_map(|(start, end, prot, offset)| {
                let file = *offset != u64::MAX;
                (*start..*end)
                    .step_by(4096)
                    .map(move |page| (page, *prot, if file { offset + page - start } else { u64::MAX }))
            })
            .collect()
    };
    let made = plan.mappings.iter().map(|mapping| {
        let offset = if let Content::File { offset, .. } = mapping.content {
            offset
        } else {
            u64::MAX
        };
        (mapping.start, mapping.end, mapping.prot, offset)
    });
    let kernels = real.maps().into_iter().filter(|map| !map.5.starts_with('['));
    let kernels = kernels
        .map(|(start, end, prot, offset, inode, _)| (start, end, prot, if inode == 0 { u64::MAX } else { offset }));
    assert_eq!(pages(made.collect()), pages(kernels.collect()));
}

/// Values that tip over something.
fn edges() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0_u64..9).prop_map(|value| value * 0x1000),
        0_u64..0x3000,
        Just(0x40_0000_u64),
        Just(0x40_1ff0),
        Just(0x7fff_ffff_e000),
        Just(0x7fff_ffff_f000),
        Just(u64::MAX),
        Just(u64::MAX - 0xfff),
        Just(i64::MAX as u64),
        any::<u64>(),
    ]
}

#[test]
fn verdicts_are_the_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let bases = [
        tiny(folder.path(), &["-static", "-no-pie"]),
        tiny(folder.path(), &["-static-pie", "-fPIE"]),
    ];
    let path = folder.path().join("program");
    let config = ProptestConfig {
        cases: cases(250),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let changes = prop::collection::vec((0_usize..6, 0_usize..8, edges()), 1..3);
    let header = prop::option::weighted(
        0.2,
        (
            prop::sample::select(vec![4_usize, 5, 16, 18, 24, 32, 52, 54, 56]),
            any::<u8>(),
        ),
    );
    let cut = prop::option::weighted(0.1, 0_usize..14000);
    let strategy = (0_usize..2, changes, header, cut);
    runner
        .run(&strategy, |(base, changes, header, cut)| {
            let mut bytes = bases[base].clone();
            for (index, field, value) in changes {
                // PT_INTERP has its own test; here it would name files at random.
                let value = if field == 0 {
                    [1, 0, 7, 0x6474_e551][usize::try_from(value % 4).unwrap()]
                } else {
                    value
                };
                let (at, width) = header_field(index, field);
                put(&mut bytes, at, value, width);
            }
            if let Some((at, value)) = header {
                bytes[at] = value;
                // The kernel does not look at class and byte order; the loader does, and says so.
                if matches!(at, 4 | 5) && !matches!((at, value), (4, 2) | (5, 1)) {
                    prop_assert_eq!(ours(&bytes), Outcome::Errno(8));
                    return Ok(());
                }
            }
            bytes.truncate(cut.unwrap_or(usize::MAX));
            compare(&path, &bytes);
            Ok(())
        })
        .unwrap();
}

fn cases(standard: u32) -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(standard)
}

#[test]
fn each_defect_has_its_errno() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program");
    let base = tiny(folder.path(), &["-static", "-no-pie"]);
    let spoil = |at: usize, value: u64, width: usize| {
        let mut bytes = base.clone();
        put(&mut bytes, at, value, width);
        bytes
    };
    let load_count = ElfFile::read(&base[..]).unwrap().phnum;
    let mut no_load = base.clone();
    (0..load_count.into()).for_each(|index| put(&mut no_load, header_field(index, 0).0, 4, 4));
    let cases: [(&str, Vec<u8>, Outcome); 12] = [
        ("empty", Vec::new(), Outcome::Errno(8)),
        ("text", b"hello world\n".to_vec(), Outcome::Errno(8)),
        ("cut in the header", base[..40].to_vec(), Outcome::Errno(8)),
        ("cut in the program headers", base[..100].to_vec(), Outcome::Errno(8)),
        ("other machine", spoil(18, 183, 2), Outcome::Errno(8)),
        ("object file", spoil(16, 1, 2), Outcome::Errno(8)),
        ("no program headers", spoil(56, 0, 2), Outcome::Errno(8)),
        ("too many program headers", spoil(56, 0xffff, 2), Outcome::Errno(8)),
        ("strange header size", spoil(54, 57, 2), Outcome::Errno(8)),
        ("headers beyond the file", spoil(32, 1 << 40, 8), Outcome::Errno(8)),
        // A fixed program without segments is started, at an address where nothing is.
        ("no PT_LOAD", no_load, Outcome::Runs),
        ("huge memory", spoil(header_field(0, 6).0, 1 << 62, 8), Outcome::Killed),
    ];
    for (name, bytes, expected) in cases {
        write(&path, &bytes);
        let kernel = kernels(&path).0;
        assert_eq!((ours(&bytes), kernel), (expected, expected), "{name}");
    }
    // A 32-bit program: this kernel may run it, mosix does not.
    let mut small = base.clone();
    small[4] = 1;
    put(&mut small, 18, 3, 2);
    assert!(matches!(
        load(&small, None),
        Err(LoadError::WrongMachine { class: 1, machine: 3 })
    ));
}

#[test]
fn interpreters_are_checked_as_execve_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program");
    let other = folder.path().join("interpreter");
    let base = tiny(folder.path(), &["-static", "-no-pie"]);
    let name = other.to_str().unwrap();
    // Turns the last program header into PT_INTERP, its path at the end of the file.
    let with = |text: &[u8], length: u64| {
        let mut bytes = base.clone();
        let index = usize::from(ElfFile::read(&base[..]).unwrap().phnum) - 1;
        let at = bytes.len() as u64;
        put(&mut bytes, header_field(index, 0).0, 3, 4);
        put(&mut bytes, header_field(index, 2).0, at, 8);
        put(&mut bytes, header_field(index, 5).0, length, 8);
        bytes.extend_from_slice(text);
        bytes
    };
    let named = [name.as_bytes(), b"\0"].concat();
    let full = named.len() as u64;
    for (text, length) in [
        (&named[..], 1),
        (&named[..], 5000),
        (&named[..], full - 1),
        (&named[..], full + 10),
        (b"ab\0\0", 4),
        (b"\0\0", 2),
    ] {
        let bytes = with(text, length);
        write(&path, &bytes);
        let kernel = kernels(&path).0;
        match ElfFile::read(&bytes[..]) {
            Ok(elf) => {
                assert_eq!(elf.interpreter.as_deref(), Some(&b"ab"[..]));
                assert_eq!(kernel, Outcome::Errno(2), "ENOENT: the path ends at its first 0");
            }
            Err(error) => assert_eq!(Outcome::Errno(error.errno()), kernel, "{error}"),
        }
    }
    let program = with(&named, full);
    write(&path, &program);
    let mut wrong = base.clone();
    wrong[18] = 183;
    for bytes in [b"short".to_vec(), vec![b'x'; 200], wrong, base[..100].to_vec()] {
        write(&other, &bytes);
        let error = ElfFile::read_interpreter(&bytes[..]).unwrap_err();
        assert_eq!(
            (Outcome::Errno(error.errno()), error.is_fatal()),
            (kernels(&path).0, false),
            "{error}"
        );
    }
}

/// Runs a chain of scripts for real and through [`Invocation`]; the last program prints its arguments.
#[test]
fn scripts_get_the_arguments_that_the_kernel_gives_them() {
    let folder = tempfile::tempdir().unwrap();
    let printer = folder.path().join("print");
    let source = folder.path().join("print.c");
    fs::write(
        &source,
        "#include <stdio.h>\n#include <sys/auxv.h>\nint main(int c, char **v) { for (int i = 0; i < c; i++) printf(\"%s%c\", v[i], 0);\n\
         printf(\"execfn=%s%c\", (char *)getauxval(AT_EXECFN), 0); }",
    )
    .unwrap();
    assert!(
        Command::new("cc")
            .arg("-o")
            .arg(&printer)
            .arg(source)
            .status()
            .unwrap()
            .success()
    );
    let print = printer.to_str().unwrap().to_owned();
    let long = "a".repeat(250 - print.len());
    let lines = [
        format!("#!{print}\n"),
        format!("#! \t {print}   one  two\t \nrest"),
        format!("#!{print}"),
        format!("#!{print} "),
        format!("#!{print} {long}bcdefghij"),
        format!("#!{print} {long}bcdefghij\n"),
        format!("#!{print}\0 hidden\n"),
        format!("#!{print} arg\0hidden\n"),
        "#!\n".into(),
        "#!   \n".into(),
        "#!".into(),
        format!("#!{}\n", "b".repeat(400)),
        format!("#!{}", " ".repeat(400)),
        "#!/nonexistent/interpreter -x\n".into(),
        "#!relative-nonexistent\n".into(),
        "#\n".into(),
    ];
    let script = folder.path().join("script");
    for line in lines {
        write(&script, line.as_bytes());
        check_script(&script, &line);
    }
    // Scripts that interpret scripts, up to and beyond the limit.
    let mut last = print;
    for depth in 1..8 {
        let next = folder.path().join(format!("script{depth}"));
        write(&next, format!("#!{last} {depth}\n").as_bytes());
        check_script(&next, &format!("depth {depth}"));
        last = next.to_str().unwrap().to_owned();
    }
}

fn check_script(script: &Path, what: &str) {
    let real = Command::new(script)
        .args(["x", "", "y z"])
        .stdin(Stdio::null())
        .output();
    let name = script.to_str().unwrap();
    let argv = [name, "x", "", "y z"].map(|text| text.as_bytes().to_vec()).to_vec();
    let mut invocation = Invocation::new(name.as_bytes(), argv);
    let ours = loop {
        let path = PathBuf::from(std::ffi::OsStr::new(std::str::from_utf8(&invocation.program).unwrap()));
        let step = fs::File::open(path)
            .map_err(LoadError::from)
            .and_then(|file| head(&file));
        match step.and_then(|head| invocation.step(&head)) {
            Ok(true) => break Ok(()),
            Ok(false) => {}
            Err(error) => break Err(error),
        }
    };
    match (real, ours) {
        (Ok(output), Ok(())) => {
            let mut parts: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
            parts.pop();
            let execfn = parts.pop().unwrap();
            assert_eq!(parts, invocation.argv, "{what}");
            assert_eq!(execfn, [b"execfn=", &invocation.filename[..]].concat(), "{what}");
        }
        (Err(kernel), Err(error)) => assert_eq!(kernel.raw_os_error(), Some(error.errno()), "{what}: {error}"),
        (kernel, ours) => panic!("{what}: kernel {kernel:?}, ours {ours:?}"),
    }
}

#[test]
fn argument_limits_are_the_kernels() {
    let elf = tiny(tempfile::tempdir().unwrap().path(), &["-static", "-no-pie"]);
    let (_, plan) = load(&elf, None).unwrap();
    let verdict = |argv: &[Vec<u8>]| {
        let start = Start {
            filename: b"/bin/true",
            argv,
            envp: &[],
            top: 0x7fff_0000_0000,
            shift: 0,
            random: [0; 16],
            stack_limit: 8 << 20,
        };
        build(&start, &plan, &Auxv::default().machine()).map_or_else(|error| error.errno(), |_| 0)
    };
    let real = |argv: &[Vec<u8>]| {
        use std::os::unix::ffi::OsStrExt;
        let mut command = Command::new("/bin/true");
        command
            .env_clear()
            .args(argv[1..].iter().map(|text| std::ffi::OsStr::from_bytes(text)));
        match command.status() {
            Ok(_) => 0,
            Err(error) => error.raw_os_error().unwrap(),
        }
    };
    let text = |length: usize| vec![b'a'; length];
    let name = b"/bin/true".to_vec();
    // One string: 128 KiB with its 0. All together: 2 MiB, a quarter of the usual stack limit.
    let many = |count: usize, last: usize| {
        let mut argv = vec![text(100_000); count];
        argv[0].clone_from(&name);
        argv.push(text(last));
        argv
    };
    // Strings, the filename twice, pointers: what must stay below 2 MiB.
    let rest = (2 << 20) - 20 * 100_001 - 2 * 10 - 22 * 8 - 1;
    for argv in [
        vec![name.clone(), text(131_071)],
        vec![name.clone(), text(131_072)],
        many(21, rest),
        many(21, rest + 1),
        vec![vec![b'/'; 1]; 1]
            .into_iter()
            .chain(vec![Vec::new(); 250_000])
            .collect(),
    ] {
        assert_eq!(verdict(&argv), real(&argv), "{} strings", argv.len());
    }
    assert_eq!(verdict(&[b"a\0b".to_vec()]), 22);
}

#[test]
fn the_window_is_never_mapped() {
    let base = tiny(tempfile::tempdir().unwrap().path(), &["-static", "-no-pie"]);
    let index = ElfFile::read(&base[..]).unwrap().segments.last().unwrap().index;
    for address in [WINDOW, WINDOW + (5 << 30), WINDOW_END - PAGE] {
        let mut bytes = base.clone();
        let segment = *ElfFile::read(&base[..]).unwrap().segments.last().unwrap();
        put(&mut bytes, header_field(index, 3).0, address + segment.vaddr % PAGE, 8);
        assert!(
            matches!(load(&bytes, None), Err(LoadError::Window { .. })),
            "{address:#x}"
        );
    }
    // Nor by a .bss that reaches over it.
    let mut bytes = base.clone();
    put(&mut bytes, header_field(index, 6).0, 0x7f00_0000_0000, 8);
    assert!(matches!(load(&bytes, None), Err(LoadError::Window { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// Real programs with a few bytes of their headers changed: an error or a plan, never a panic; a plan is sorted, without overlap,
    /// within the address space and outside the window.
    #[test]
    fn mutated_programs_never_panic(
        which in 0_usize..4,
        edits in prop::collection::vec((0_usize..1024, any::<u8>()), 0..12),
        words in prop::collection::vec((0_usize..128, edges()), 0..4),
        cut in prop::option::weighted(0.1, 0_usize..5000),
        dice in any::<[u64; 5]>(),
        limit in any::<u64>(),
    ) {
        let mut bytes = REAL.with(|all| all[which].clone());
        for (at, value) in words {
            put(&mut bytes, at * 8, value, 8);
        }
        for (at, value) in edits {
            bytes[at] = value;
        }
        bytes.truncate(cut.unwrap_or(usize::MAX));
        let interpreter = REAL.with(|all| all[3].clone());
        let interpreter = ElfFile::read_interpreter(&interpreter[..]).unwrap();
        let _ = ElfFile::read_interpreter(&bytes[..]);
        let Ok(elf) = ElfFile::read(&bytes[..]) else { return Ok(()) };
        let interpreter = elf.interpreter.is_some().then_some(&interpreter);
        let dice = Dice { program: dice[0], mmap: dice[1], stack: dice[2], stack_pointer: dice[3], brk: dice[4] };
        let Ok(layout) = draw(&elf, interpreter, PAGE, limit, &dice) else { return Ok(()) };
        let Ok(plan) = plan(&elf, interpreter, &layout.placement) else { return Ok(()) };
        let mut last = 0;
        for mapping in &plan.mappings {
            prop_assert!(last <= mapping.start && mapping.start < mapping.end && mapping.end <= 0x7fff_ffff_f000);
            prop_assert!(mapping.end <= WINDOW || mapping.start >= WINDOW_END);
            prop_assert!(mapping.start % PAGE == 0 && mapping.end % PAGE == 0);
            prop_assert!(mapping.zero_from.is_none_or(|from| mapping.end - PAGE < from && from < mapping.end));
            last = mapping.end;
        }
        let start = Start {
            filename: b"/x",
            argv: &[b"x".to_vec()],
            envp: &[],
            top: layout.stack_top,
            shift: layout.stack_shift,
            random: [1; 16],
            stack_limit: limit,
        };
        if let Ok(stack) = build(&start, &plan, &Auxv::default().machine()) {
            let _ = work(&plan, &stack, (layout.vdso, &[0; 4096]), Files { program: 3, interpreter: 4 });
        }
    }

    #[test]
    fn any_head_is_an_answer(bytes in prop::collection::vec(prop_oneof![Just(b' '), Just(0), Just(b'\n'), any::<u8>()], 0..300)) {
        let mut head = [0; HEAD];
        for (place, byte) in head.iter_mut().zip([b"#!", &bytes[..]].concat()) {
            *place = byte;
        }
        if let Ok(Form::Script(script)) = form(&head) {
            prop_assert!(!script.interpreter.contains(&0) && script.interpreter.len() < HEAD);
        }
        let _ = Auxv::parse(&bytes);
    }
}

thread_local! {
    /// The heads of real programs: enough for their headers, with the true length forgotten.
    static REAL: Vec<Vec<u8>> = ["/bin/true", "/usr/bin/perl", "/bin/sh", "/lib64/ld-linux-x86-64.so.2"]
        .iter()
        .map(|path| fs::read(path).unwrap())
        .collect();
}
