//! Programs that tests write.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Writes a file to execute. A child writes it: a descriptor of this process, open for writing, could be inherited by a fork of another
/// test thread, and the execve would fail with ETXTBSY.
pub fn executable(path: &Path, bytes: &[u8], mode: u32) {
    let mut child = Command::new("install")
        .args(["-m", &format!("{mode:o}"), "/dev/stdin"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    assert!(child.wait().unwrap().success(), "install {}", path.display());
}
