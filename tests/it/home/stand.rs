//! Helpers of these tests: a runtime folder of one's own, and the user to run as.

use mosix_tests::binary::mosix;
use serde_json::Value;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// An ordinary user's number, for when the tests run as root.
pub const NOBODY: u32 = 65534;

/// A place for jobs of one test, and who runs them.
#[derive(Debug)]
pub struct Stand {
    folder: tempfile::TempDir,
    uid: Option<u32>,
}

impl Stand {
    /// As the user of the tests.
    pub fn own() -> Self {
        Self {
            folder: tempfile::Builder::new().prefix("mxh").tempdir_in("/tmp").unwrap(),
            uid: None,
        }
    }

    /// As an ordinary user.
    pub fn ordinary() -> Self {
        let mut stand = Self::own();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(stand.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            stand.uid = Some(NOBODY);
            // The build may lie where only root can look: the ordinary user gets a copy. Made by another program, because a
            // descriptor open for writing here could be inherited by another test's child, and the copy then be "busy".
            let copied = Command::new("install")
                .args(["-m", "755"])
                .arg(mosix())
                .arg(stand.mosix())
                .status();
            assert!(copied.unwrap().success());
        }
        stand
    }

    /// Both, one after the other.
    pub fn each() -> [Self; 2] {
        [Self::own(), Self::ordinary()]
    }

    /// A folder that the user owns.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The `mosix` that the user can execute.
    pub fn mosix(&self) -> std::path::PathBuf {
        if self.uid.is_some() {
            self.path().join("mosix")
        } else {
            mosix().to_owned()
        }
    }

    /// A command of the user, in the folder.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.path())
            .env("MOSIX_RUNTIME_DIR", self.path().join("run"));
        if let Some(uid) = self.uid {
            // Which drops the supplementary groups too.
            command.uid(uid).gid(uid);
        }
        command
    }

    /// `mosix ARGS…`.
    pub fn verb(&self, args: &[&str]) -> Command {
        let mut command = self.command(self.mosix());
        command.args(args);
        command
    }

    /// `mosix run -- WORDS…`.
    pub fn run(&self, words: &[&str]) -> Command {
        let mut command = self.verb(&["run", "--"]);
        command.args(words);
        command
    }

    /// `mosix run -- sh -c SCRIPT`, to its end.
    pub fn sh(&self, script: &str) -> Output {
        self.run(&["sh", "-c", script]).output().unwrap()
    }

    /// `mosix ps --json`.
    pub fn ps(&self) -> Value {
        let output = self.verb(&["ps", "--json"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until `mosix ps` lists a process for which `wanted` holds, and gives it.
    pub fn ps_until(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(|| {
            self.ps()["processes"]
                .as_array()
                .unwrap()
                .iter()
                .find(|p| wanted(p))
                .cloned()
        })
    }

    /// Waits until no job is left in `mosix ps` and in the folder.
    pub fn until_empty(&self) {
        eventually(|| {
            let jobs = std::fs::read_dir(self.path().join("run/jobs"));
            (jobs.map_or(0, Iterator::count) == 0).then_some(())
        });
    }
}

/// Asks again and again, for a while.
#[track_caller]
pub fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not happen within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// State letter of a process; `None` when it is gone.
pub fn state(pid: i64) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Whether a process has ended; zombies have.
pub fn ended(pid: i64) -> bool {
    matches!(state(pid), None | Some('Z' | 'X'))
}

/// stdout as text.
pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// stderr as text.
pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
