//! The programs under test: `mosix` of this build, and where built things go.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests lies in the workspace")
}

/// Folder of this build (`target/debug`), found from the test program's own place in it.
pub fn build_dir() -> PathBuf {
    let own = std::env::current_exe().expect("path of the test program");
    let mut dir = own.parent().expect("folder of the test program").to_owned();
    if dir.ends_with("deps") {
        dir.pop();
    }
    dir
}

/// A folder for what the tests build.
pub fn work_dir(name: &str) -> PathBuf {
    let dir = build_dir().join("mosix-tests").join(name);
    std::fs::create_dir_all(&dir).expect("create a folder in target");
    dir
}

/// The `mosix` to test: $MOSIX_BIN, or the one of this workspace, built now.
pub fn mosix() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| match std::env::var_os("MOSIX_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let dir = build_dir();
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(workspace())
        .args(["build", "--quiet", "--package", "mosix", "--bin", "mosix"]);
    if dir.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().expect("run cargo");
    assert!(status.success(), "cargo build of mosix: {status}");
    dir.join("mosix")
}
