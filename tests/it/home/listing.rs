//! `mosix ps`, `mosix migrate` and `mosix kill`: what they show and what they refuse.

use super::stand::{NOBODY, Stand, err, eventually, out};
use std::process::Stdio;
use std::time::Duration;

#[test]
fn a_job_and_all_its_processes_are_listed() {
    for stand in Stand::each() {
        let mut child = stand
            .verb(&[
                "run",
                "--job",
                "listed",
                "sh",
                "-c",
                "(setsid sleep 30 &) ; sleep 30 | cat; :",
            ])
            .spawn()
            .unwrap();
        let processes = eventually(|| {
            let ps = stand.ps();
            Some(ps["processes"].as_array()?.clone()).filter(|p| p.iter().filter(|p| p["program"] != "sh").count() == 3)
        });
        for p in &processes {
            assert_eq!(
                (p["job"].as_str(), p["where"].as_str(), p["moves"].as_i64()),
                (Some("listed"), Some("home"), Some(0))
            );
            assert!(p["memory"].as_u64().unwrap() > 100_000 && p["threads"] == 1, "{p}");
        }
        let table = out(&stand.verb(&["ps"]).output().unwrap());
        assert!(
            table.contains("listed") && table.lines().next().unwrap().contains("CANNOT MOVE"),
            "{table}"
        );
        assert!(stand.verb(&["kill", "--job", "listed"]).status().unwrap().success());
        child.wait().unwrap();
        stand.until_empty();
    }
}

#[test]
fn reasons_are_named() {
    let stand = Stand::ordinary();
    let own_filter = "import ctypes, struct, time\n\
                      libc = ctypes.CDLL(None)\n\
                      code = struct.pack('HBBI', 6, 0, 0, 0x7fff0000)\n\
                      buf = ctypes.create_string_buffer(code)\n\
                      prog = struct.pack('HxxxxxxQ', 1, ctypes.addressof(buf))\n\
                      libc.prctl(38, 1, 0, 0, 0)\n\
                      assert libc.prctl(22, 2, ctypes.c_char_p(prog), 0, 0) == 0\n\
                      time.sleep(60)\n";
    let protected = "import ctypes, time; ctypes.CDLL(None).prctl(4, 0); time.sleep(60)";
    let shared = "import mmap, os, time; m = mmap.mmap(-1, 4096); os.fork(); m[0] = 1; time.sleep(60)";
    for (job, code, reason) in [
        ("filter", own_filter, "own-seccomp-filter"),
        ("protected", protected, "not-dumpable"),
        ("shared", shared, "shared-memory"),
    ] {
        let mut child = stand
            .verb(&["run", "--job", job, "/usr/bin/python3", "-c", code])
            .spawn()
            .unwrap();
        let found = stand.ps_until(|p| p["cannot_move"]["code"] == reason);
        let pid = found["pid"].to_string();
        let refused = stand.verb(&["migrate", &pid, "n2"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(5), "{job}: {refused:?}");
        assert!(
            err(&refused).contains(found["cannot_move"]["text"].as_str().unwrap()),
            "{refused:?}"
        );
        assert!(
            stand
                .verb(&["kill", "--signal", "KILL", "--job", job])
                .status()
                .unwrap()
                .success()
        );
        child.wait().unwrap();
    }
    stand.until_empty();
}

/// Without the filter, which would take the rights away.
#[test]
fn a_set_uid_program_is_named() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: only root can make a set-uid program of another user");
    }
    let stand = Stand::ordinary();
    let program = stand.path().join("other-rights");
    let installed = std::process::Command::new("install")
        .args(["-o", "root", "-m", "4755", "/bin/sleep"])
        .arg(&program)
        .status();
    assert!(installed.unwrap().success());
    let program = program.to_str().unwrap();
    let mut child = stand
        .verb(&["run", "--no-filter", "--job", "rights", program, "60"])
        .spawn()
        .unwrap();
    let found = stand.ps_until(|p| p["program"] == "other-rights");
    assert_eq!(found["cannot_move"]["code"], "set-uid", "{found:#}");
    let refused = stand
        .verb(&["migrate", &found["pid"].to_string(), "n2"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    assert!(err(&refused).contains("start the job as that user"), "{refused:?}");
    assert!(
        stand
            .verb(&["kill", "--signal", "KILL", "--job", "rights"])
            .status()
            .unwrap()
            .success()
    );
    child.wait().unwrap();
    stand.until_empty();
}

#[test]
fn what_cannot_be_asked_is_refused_with_its_exit_code() {
    let stand = Stand::ordinary();
    let cases = [
        (&["migrate", "999999999", "n2"][..], 3, "there is no process 999999999"),
        (&["migrate", "1", "n2"], 7, "process 1 belongs to another user"),
        (
            &["migrate", "--job", "nobody-named-it", "n2"],
            3,
            "there is no job 'nobody-named-it'",
        ),
        (&["migrate", "zero", "n2"], 2, "'zero' is no process id"),
        (&["migrate", "0", "n2"], 2, "'0' is no process id"),
        (&["migrate", "1", "no/node"], 2, "is no name of a node"),
        (&["migrate", "1"], 2, "say which process and where to"),
        (&["migrate", "--job", "a", "1", "n2"], 2, "say only where to"),
    ];
    for (args, code, text) in cases {
        let output = stand.verb(args).output().unwrap();
        assert!(err(&output).contains(text), "{args:?}: {output:?}");
        // As root without another user to be, process 1 is one's own.
        assert!(output.status.code() == Some(code), "{args:?}: {output:?}");
    }
}

#[test]
fn a_runtime_folder_of_somebody_else_is_refused_and_the_program_still_runs() {
    let stand = Stand::ordinary();
    let run = stand.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::os::unix::fs::chown(&run, Some(NOBODY), None).unwrap();
    std::fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let output = stand.sh("echo runs");
    assert_eq!(out(&output), "runs\n");
    assert!(
        err(&output).contains("is open to others (mode 777, wanted 700)"),
        "{output:?}"
    );
}

#[test]
fn a_long_path_of_the_runtime_folder_works() {
    let stand = Stand::own();
    let long = stand.path().join("a".repeat(120));
    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
        .create(&long)
        .unwrap();
    let mut child = stand
        .run(&["sleep", "30"])
        .env("MOSIX_RUNTIME_DIR", &long)
        .spawn()
        .unwrap();
    eventually(|| {
        let ps = stand.verb(&["ps"]).env("MOSIX_RUNTIME_DIR", &long).output().unwrap();
        out(&ps).contains("sleep").then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn garbage_on_the_socket_harms_nobody() {
    use std::io::{Read, Write};
    let stand = Stand::own();
    let mut child = stand.run(&["sleep", "30"]).spawn().unwrap();
    let folder = stand.path().join("run/jobs");
    let socket = eventually(|| std::fs::read_dir(&folder).ok()?.flatten().next()).path();
    for garbage in [&[0xff; 64][..], &[4, 0, 0, 0, 9, 9, 9, 9], &[1, 0, 0], &[0, 0, 0, 0]] {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    // More connections than it serves, silent ones.
    let idle: Vec<_> = (0..64)
        .filter_map(|_| std::os::unix::net::UnixStream::connect(&socket).ok())
        .collect();
    drop(idle);
    eventually(|| (stand.ps()["processes"].as_array().unwrap().len() == 1).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    stand.until_empty();
}

#[test]
fn another_user_sees_and_moves_nothing() {
    let root = Stand::own();
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut child = root.run(&["sleep", "30"]).spawn().unwrap();
    let pid = eventually(|| root.ps()["processes"][0]["pid"].as_i64()).to_string();
    let other = Stand::ordinary();
    let output = other.verb(&["migrate", &pid, "n2"]).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert!(err(&output).contains("belongs to another user"), "{output:?}");
    assert_eq!(
        other
            .verb(&["ps", "--all"])
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .code(),
        Some(7)
    );
    child.kill().unwrap();
    child.wait().unwrap();
    root.until_empty();
}
