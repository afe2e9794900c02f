//! `vm-images/manifest.toml`: which kernels, programs and modules the guests have.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::workspace;

/// The manifest.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Kernels to choose from; the first is the default.
    kernel: Vec<Kernel>,
    /// What every guest has.
    pub guest: Guest,
    /// What of the workspace's tests runs in guests.
    pub tests: Tests,
    /// Program name to the Debian package that has it.
    pub tools: BTreeMap<String, String>,
}

/// One kernel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// What `--kernel` says.
    pub name: String,
    /// Pattern over package names (`*` stands for anything), for when the pinned package is gone.
    pub package: String,
    /// `PACKAGE=VERSION` that was last seen to work.
    pub pinned: String,
}

/// What every guest has.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// MiB.
    pub memory: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Modules loaded at boot.
    pub modules: Vec<String>,
    /// Programs copied from this machine.
    pub programs: Vec<String>,
    /// The same, if this machine has them.
    pub optional: Vec<String>,
    /// Folders of Python's library left out.
    pub python_without: Vec<String>,
}

/// What of the workspace's tests runs in guests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tests {
    /// Packages.
    pub packages: Vec<String>,
    /// Test programs, each with the parts of names that its tests have.
    pub run: BTreeMap<String, Vec<String>>,
    /// Parts of names of tests left out, and why.
    pub skip: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads the workspace's manifest.
    pub fn load() -> Result<Self> {
        let path = workspace::root()?.join("vm-images/manifest.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }

    /// The names of all kernels.
    pub fn kernel_names(&self) -> Vec<String> {
        self.kernel.iter().map(|kernel| kernel.name.clone()).collect()
    }

    /// The kernel called `name`.
    pub fn kernel(&self, name: &str) -> Result<&Kernel> {
        match self.kernel.iter().find(|kernel| kernel.name == name) {
            Some(kernel) => Ok(kernel),
            None => bail!(
                "no kernel {name} in vm-images/manifest.toml; it has {}",
                self.kernel_names().join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_in_the_tree_is_readable() {
        let manifest = Manifest::load().unwrap();
        assert_eq!(manifest.kernel("6.1").unwrap().name, "6.1");
        let error = manifest.kernel("9.9").unwrap_err().to_string();
        assert!(error.contains("9.9") && error.contains("6.12, 6.1"), "{error}");
    }
}
