//! The small programs that are measured: C from `tests/benches`, and the bare stream of the runtime's example `bulk`.

use crate::workspace::{cargo, root, run, target};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Where they are.
#[derive(Debug)]
pub struct Programs {
    folder: PathBuf,
    bulk: PathBuf,
}

impl Programs {
    /// Path of a C program.
    pub fn c(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Path of `bulk`.
    pub fn bulk(&self) -> String {
        self.bulk.display().to_string()
    }
}

/// Compiles them.
pub fn build() -> Result<Programs> {
    let folder = target()?.join("benches");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for name in ["calls", "pingpong", "path", "memory", "wall"] {
        let source = root()?.join("tests/benches").join(name).with_extension("c");
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-Wall", "-Wextra", "-pthread", "-o"]);
        run(cc.arg(folder.join(name)).arg(source))?;
    }
    let bulk = target()?.join("release/examples/bulk");
    // Who brings a build wants no other: cargo would build the runtime anew for this little program alone.
    if std::env::var_os("MOSIX_BIN").is_none() || !bulk.exists() {
        run(cargo()?.args(["build", "--release", "--package", "mosix-runtime", "--example", "bulk"]))?;
    }
    Ok(Programs { folder, bulk })
}
