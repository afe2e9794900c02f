//! What `mosix run` says and returns when there is nothing to run: bash's exit codes, one line of its own.

use super::stand::{Stand, err};
use mosix_tests::executable;
use std::path::Path;
use std::process::Command;

/// Fills the folder with everything that cannot be run.
fn prepare(folder: &Path) {
    let elf = std::fs::read("/bin/true").unwrap();
    executable(&folder.join("noexec"), &elf, 0o644);
    executable(&folder.join("truncated"), &elf[..100], 0o755);
    executable(&folder.join("corrupt"), b"\x7fELF garbage \0\x01\x02", 0o755);
    executable(&folder.join("data"), b"\0\x01\x02\x03", 0o755);
    let mut other = elf.clone();
    other[18..20].copy_from_slice(&183u16.to_le_bytes());
    executable(&folder.join("aarch64"), &other, 0o755);
    let mut lost = elf;
    let name = b"/lib64/ld-linux";
    let at = lost
        .windows(name.len())
        .position(|w| w == name)
        .expect("an interpreter");
    lost[at..at + name.len()].copy_from_slice(b"/lib64/zz-linux");
    executable(&folder.join("no-loader"), &lost, 0o755);
    executable(&folder.join("no-interpreter"), b"#!/no/such/thing -x\n", 0o755);
    executable(&folder.join("dos"), b"#!/bin/sh\r\necho\r\n", 0o755);
    executable(&folder.join("plain-script"), b"echo script $0 $1; exit 9\n", 0o755);
    executable(&folder.join("empty"), b"", 0o755);
    std::fs::create_dir(folder.join("folder")).unwrap();
}

#[test]
fn exit_codes_are_those_of_bash_and_the_line_says_why() {
    let cases = [
        ("./missing", 127, "'./missing': no such file"),
        ("missing-from-path", 127, "'missing-from-path': not found in PATH"),
        ("./folder", 126, "'./folder': it is a directory"),
        ("./noexec", 126, "'./noexec': it is not executable"),
        ("./noexec/below", 126, "'./noexec/below': Not a directory"),
        (
            "./truncated",
            126,
            "'./truncated': its ELF headers are corrupt or truncated",
        ),
        ("./corrupt", 126, "'./corrupt': its ELF header is corrupt or truncated"),
        ("./data", 126, "'./data': it is neither a program nor a script"),
        (
            "./aarch64",
            126,
            "'./aarch64': it is for another kind of machine (ELF machine 183)",
        ),
        (
            "./no-loader",
            127,
            "'./no-loader': its program interpreter '/lib64/zz-linux",
        ),
        (
            "./no-interpreter",
            127,
            "'./no-interpreter': its interpreter '/no/such/thing' does not exist",
        ),
        ("./dos", 127, "ends in a carriage return"),
    ];
    for stand in Stand::each() {
        prepare(stand.path());
        for (program, code, line) in cases {
            let output = stand.run(&[program, "argument"]).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{program}: {output:?}");
            let said = err(&output);
            assert!(
                said.starts_with("mosix: cannot run ") && said.contains(line),
                "{program}: {said}"
            );
            assert_eq!(said.lines().count(), 1, "{program}: {said}");
            let mut bash = Command::new("bash");
            bash.current_dir(stand.path())
                .args(["-c", &format!("{program} argument; exit $?")]);
            assert_eq!(bash.output().unwrap().status.code(), Some(code), "bash on {program}");
        }
        stand.until_empty();
    }
}

#[test]
fn scripts_without_interpreter_go_to_the_shell() {
    let stand = Stand::own();
    prepare(stand.path());
    let output = stand.run(&["./plain-script", "argument"]).output().unwrap();
    assert_eq!(
        (output.status.code(), super::stand::out(&output).trim()),
        (Some(9), "script ./plain-script argument")
    );
    assert_eq!(stand.run(&["./empty"]).output().unwrap().status.code(), Some(0));
}

#[test]
fn too_many_arguments_are_named() {
    let stand = Stand::own();
    let long = "x".repeat(200_000);
    let output = stand.run(&["true", &long]).output();
    // The kernel refuses a single argument of that length already when mosix itself is started.
    assert!(output.is_err());
    let limited = stand
        .command("sh")
        .args(["-c", "ulimit -s 200; exec \"$0\" run true $(seq 30000)"])
        .arg(stand.mosix())
        .output();
    let limited = limited.unwrap();
    assert_eq!(limited.status.code(), Some(126), "{limited:?}");
}

#[test]
fn usage_errors_of_run_are_125_and_of_others_2() {
    let stand = Stand::own();
    for args in [
        &["run", "--nonsense", "true"][..],
        &["run"],
        &["run", "--on", "no such node!", "true"],
        &["run", "--job", "", "true"],
    ] {
        let output = stand.verb(args).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{args:?}: {output:?}");
    }
    let output = stand.verb(&["pss"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("'ps'"), "no hint: {output:?}");
}

#[test]
fn a_32_bit_program_runs() {
    let stand = Stand::own();
    let source = stand.path().join("small.c");
    // No C library: gcc -m32 works without 32-bit packages this way.
    let text = "void _start(void) { __asm__ volatile (\"int $0x80\" :: \"a\"(1), \"b\"(42)); for (;;) ; }\n";
    std::fs::write(&source, text).unwrap();
    let built = Command::new("gcc")
        .args(["-m32", "-nostdlib", "-static", "-ffreestanding", "-fno-pic", "-o"])
        .arg(stand.path().join("small"))
        .arg(&source)
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    let plain = stand.command("./small").status();
    // A kernel without 32-bit support refuses it in the same way with and without mosix.
    let want = plain.map_or(126, |s| s.code().unwrap());
    assert_eq!(stand.run(&["./small"]).status().unwrap().code(), Some(want));
}
