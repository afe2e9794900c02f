//! Each reason of the fixed list, provoked by a real program: `mosix migrate` refuses with it, and `mosix ps` shows it.

use mosix_tests::{Guest, How, Lab, require};
use serde_json::Value;
use std::time::{Duration, Instant};

/// What the guest is asked to do: the code, with a variant behind a colon.
const PROVOKED: &[&str] = &[
    "zombie",
    "leader-exited",
    "stopped",
    "traced",
    "vfork",
    "shares-memory",
    "shares-memory:vfork",
    "shared-memory",
    "shared-memory:memfd",
    "shared-memory:posix",
    "shared-memory:sysv",
    "shared-memory:file",
    "mapped-twice",
    "device",
    "kernel-queue",
    "userfaultfd",
    "secret-memory",
    "own-seccomp-filter",
    "syscall-dispatch",
    "ldt",
    "protection-keys",
    "threads",
    "window",
];

/// Provoked elsewhere, or nowhere. `not-dumpable` and `set-uid` do not hold for root, who runs a lab: see the tests of a user at home. `32-bit` has a
/// test below. Nothing provokes `yama` (a setting of the machine), `uninterruptible` (a broken disk), `shadow-stack` (a CPU and a C library that have
/// them) and `mappings` (more than most kernels allow).
const ELSEWHERE: &[&str] = &[
    "not-dumpable",
    "set-uid",
    "yama",
    "32-bit",
    "uninterruptible",
    "shadow-stack",
    "mappings",
];

/// Found by a freeze alone: `mosix ps` knows them after the first try.
const HIDDEN: &[&str] = &["ldt", "syscall-dispatch", "protection-keys"];

fn code_of(word: &str) -> &str {
    word.split(':').next().unwrap()
}

/// The reason beside a process, waited for: what the process does may just begin.
fn shown(lab: &Lab, pid: i32, code: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let row = lab.node(1).process(pid).unwrap_or_default();
        if row["cannot_move"]["code"] == code || Instant::now() > deadline {
            return row;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn provoke(lab: &Lab, guest: &Guest<'_>, word: &str) {
    let (pid, code) = (guest.pid(), code_of(word));
    if pid == 0 {
        eprintln!("SKIPPED {word}: this machine cannot");
        return;
    }
    if !HIDDEN.contains(&code) {
        let row = shown(lab, pid, code);
        assert_eq!(row["cannot_move"]["code"], code, "{word}: mosix ps shows {row:#}");
        let table = mosix_tests::cluster::text(&lab.node(1).mosix(&["ps"]));
        let text = row["cannot_move"]["text"].as_str().unwrap();
        assert!(table.contains(text), "{word}: {text:?} is not in {table}");
        let grouped = code.starts_with("share") || code == "vfork";
        assert_eq!(row["group"].is_number(), grouped, "{word}: {row:#}");
    }
    let output = lab.node(1).mosix(&["migrate", "--json", &pid.to_string(), "n2"]);
    let text = mosix_tests::cluster::text(&output);
    if code == "zombie" {
        // There is nothing left to move.
        assert!(matches!(output.status.code(), Some(3 | 5)), "{word}: {text}");
        return;
    }
    assert_eq!(output.status.code(), Some(5), "{word}: {text}");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let why = &said["errors"][0]["cannot_move"];
    assert_eq!(why["code"], code, "{word}: {said:#}");
    let listed: Value = serde_json::from_str(&lab.node(1).mosix_ok(&["ctl", "reasons", "--json"])).unwrap();
    let listed = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["code"] == code)
        .unwrap();
    assert_eq!(why["remedy"], listed["remedy"], "{word}");
    if HIDDEN.contains(&code) {
        let row = lab.node(1).process(pid).unwrap();
        assert_eq!(
            row["cannot_move"]["code"], code,
            "{word}: mosix ps after the try: {row:#}"
        );
    }
}

#[test]
fn every_reason_has_a_program_that_gives_it() {
    require!(require::program("cc"));
    let lab = Lab::shared();
    let how = How::Moving {
        lab,
        period: Duration::ZERO,
    };
    for word in PROVOKED {
        eprintln!("{word}");
        let guest = Guest::start("unmovable", &[word], how);
        let job = guest.job().to_owned();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| provoke(lab, &guest, word)));
        lab.node(1).mosix(&["kill", "--signal", "KILL", "--job", &job]);
        guest.end();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn every_reason_is_provoked_or_said_to_be_elsewhere() {
    let lab = Lab::shared();
    let listed: Value = serde_json::from_str(&lab.node(1).mosix_ok(&["ctl", "reasons", "--json"])).unwrap();
    for row in listed.as_array().unwrap() {
        let code = row["code"].as_str().unwrap();
        let here = PROVOKED.iter().any(|word| code_of(word) == code);
        assert!(here != ELSEWHERE.contains(&code), "{code}");
    }
}

/// Built without a C library: few machines have one for 32 bits.
#[test]
fn a_32_bit_program() {
    require!(require::program("cc"));
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("p.c"), folder.path().join("p"));
    let code = r#"void _start(void) {
        static const char text[] = "READY pid=1\n";
        int result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(4), "b"(1), "c"(text), "d"(sizeof text - 1) : "memory");
        for (;;) __asm__ volatile("int $0x80" : "=a"(result) : "a"(29) : "memory");
    }"#;
    std::fs::write(&source, code).unwrap();
    let built = std::process::Command::new("cc")
        .args([
            "-m32",
            "-static",
            "-nostdlib",
            "-fno-pie",
            "-no-pie",
            "-fno-stack-protector",
            "-O1",
            "-o",
        ])
        .args([&program, &source])
        .output()
        .unwrap();
    let runs = || {
        std::process::Command::new(&program)
            .stdout(std::process::Stdio::null())
            .spawn()
    };
    if !built.status.success() {
        return eprintln!("SKIPPED: cc builds nothing for 32 bits here");
    }
    match runs() {
        Ok(mut child) => {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        Err(_) => return eprintln!("SKIPPED: this kernel runs no 32-bit programs"),
    }
    let lab = Lab::shared();
    let mut child = lab
        .node(1)
        .command(["mosix", "run", "--job", "thirtytwo", "--"])
        .arg(&program)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let found = loop {
        let ps: Value = serde_json::from_str(&lab.node(1).mosix_ok(&["ps", "--json"])).unwrap();
        let row = ps["processes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["job"] == "thirtytwo")
            .cloned();
        if row.as_ref().is_some_and(|row| row["program"] == "p") || Instant::now() > deadline {
            break row.unwrap_or_default();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    lab.node(1).mosix(&["kill", "--signal", "KILL", "--job", "thirtytwo"]);
    child.wait().unwrap();
    assert_eq!(found["cannot_move"]["code"], "32-bit", "{found:#}");
}
