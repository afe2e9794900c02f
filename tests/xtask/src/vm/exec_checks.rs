//! Checks of `vm exec` itself, in a running guest: what it carries, how it ends, and what a killed client leaves.

use std::io::Cursor;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::exec::{self, Streams, shell};
use super::protocol::{BODY_MAX, PORTS, Request, STDIN_WINDOW};

/// Runs all checks in guest `name`, whose folder is `folder`. Returns how many there are.
pub fn run(name: &str, folder: &Path) -> Result<u64> {
    let checks: [(&str, fn(&str, &Path) -> Result<()>); 5] = [
        ("bytes come back as they went", bytes),
        ("codes and signals", codes),
        ("a background program is not waited for, or is", background),
        ("as many commands as there are ports", side_by_side),
        ("a killed client's command ends, and the port is free again", killed),
    ];
    for (what, check) in &checks {
        check(name, folder).with_context(|| format!("{name}: vm exec: {what}"))?;
    }
    Ok(checks.len() as u64)
}

fn request(words: &[&str]) -> Request {
    Request {
        argv: words.iter().map(|word| word.as_bytes().to_vec()).collect(),
        env: vec![(b"CHECK".to_vec(), b"a b".to_vec())],
        cwd: Some(b"/tmp".to_vec()),
        to_end: false,
    }
}

fn bytes(_: &str, folder: &Path) -> Result<()> {
    // Every byte value, and lengths around those of frames and window.
    for length in [0, 1, BODY_MAX - 1, BODY_MAX + 1, STDIN_WINDOW + 1, 1 << 20] {
        let sent: Vec<u8> = (0..length).map(|at| (at * 31 + at / 251) as u8).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let stdin = Some(Box::new(Cursor::new(sent.clone())) as Box<dyn std::io::Read + Send>);
        let code = exec::run(
            folder,
            &request(&["cat"]),
            Streams {
                stdin,
                out: &mut out,
                err: &mut err,
            },
        )?;
        ensure!(
            code == 0 && err.is_empty(),
            "cat of {length} bytes: {code}, {:?}",
            String::from_utf8_lossy(&err)
        );
        ensure!(out == sent, "{length} bytes came back as {} others", out.len());
    }
    Ok(())
}

fn codes(_: &str, folder: &Path) -> Result<()> {
    let wanted: [(&[&str], u8, &str, &str); 6] = [
        (&["sh", "-c", "printf %s \"$CHECK\"; pwd"], 0, "a b/tmp\n", ""),
        (&["sh", "-c", "echo out; echo err >&2; exit 7"], 7, "out\n", "err\n"),
        (&["sh", "-c", "exit 255"], 255, "", ""),
        (&["sh", "-c", "kill -9 $$"], 137, "", ""),
        (&["/no/such"], 127, "", "cannot run /no/such"),
        (&["/etc/passwd"], 126, "", "cannot run /etc/passwd"),
    ];
    for (words, code, stdout, stderr) in wanted {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let got = exec::run(
            folder,
            &request(words),
            Streams {
                stdin: None,
                out: &mut out,
                err: &mut err,
            },
        )?;
        let (out, err) = (String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
        ensure!(
            got == code && out == stdout && err.contains(stderr),
            "{words:?}: {got}, {out:?}, {err:?}"
        );
    }
    Ok(())
}

fn background(_: &str, folder: &Path) -> Result<()> {
    let mut asked = request(&["sh", "-c", "(sleep 3; echo late) & echo early"]);
    for (to_end, wanted) in [(false, "early\n"), (true, "early\nlate\n")] {
        asked.to_end = to_end;
        let mut out = Vec::new();
        exec::run(
            folder,
            &asked,
            Streams {
                stdin: None,
                out: &mut out,
                err: &mut Vec::new(),
            },
        )?;
        ensure!(
            out == wanted.as_bytes(),
            "to_end {to_end}: {:?}",
            String::from_utf8_lossy(&out)
        );
    }
    Ok(())
}

fn side_by_side(_: &str, folder: &Path) -> Result<()> {
    thread::scope(|scope| {
        let run = |number: usize| move || shell(folder, &format!("sleep 1; echo {number}; exit {number}"), None);
        // One more than there are ports: it waits for one.
        let threads: Vec<_> = (0..=PORTS).map(|number| scope.spawn(run(number))).collect();
        for (number, thread) in threads.into_iter().enumerate() {
            let (code, said) = thread.join().map_err(|_| anyhow::anyhow!("a thread ended early"))??;
            ensure!(
                usize::from(code) == number && said == format!("{number}\n"),
                "command {number}: {code}, {said:?}"
            );
        }
        Ok(())
    })
}

fn killed(name: &str, folder: &Path) -> Result<()> {
    // One that is silent, and one that is cut off in the middle of its output.
    for command in ["sleep 4321", "cat /dev/zero"] {
        let mut client = Command::new(std::env::current_exe()?)
            .args(["vm", "exec", "-n", name, "--"])
            .args(command.split(' '))
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start xtask")?;
        thread::sleep(Duration::from_millis(1500));
        client.kill().context("cannot kill the client")?;
        client.wait()?;
        let deadline = Instant::now() + Duration::from_secs(20);
        let (first, rest) = command.split_at(1);
        while shell(folder, &format!("ps | grep -q '[{first}]{rest}'"), None)?.0 == 0 {
            ensure!(Instant::now() < deadline, "{command:?} still runs");
            thread::sleep(Duration::from_millis(200));
        }
    }
    Ok(())
}
