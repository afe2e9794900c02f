//! The host programs that the guests need: looked up once, unpacked privately where the machine lacks them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::debs::{Apt, Tool};
use super::manifest::Manifest;

/// Programs by name.
#[derive(Debug)]
pub struct Tools {
    found: BTreeMap<String, Tool>,
    busybox: PathBuf,
}

impl Tools {
    /// Finds every program of the manifest, fetching those that are missing.
    pub fn find(manifest: &Manifest, apt: &Apt, cache: &Path) -> Result<Self> {
        let folder = cache.join("tools");
        let mut found = BTreeMap::new();
        for (program, package) in &manifest.tools {
            found.insert(program.clone(), apt.tool(program, package, &folder)?);
        }
        // Always Debian's own: it must be the static one, with all its applets.
        let busybox = folder.join("busybox-static");
        apt.unpack("busybox-static", &busybox, false)?;
        let busybox = ["bin/busybox", "usr/bin/busybox"]
            .map(|path| busybox.join(path))
            .into_iter()
            .find(|path| path.is_file())
            .context("package busybox-static has no busybox")?;
        Ok(Self { found, busybox })
    }

    /// The program called `name`.
    pub fn get(&self, name: &str) -> Result<&Tool> {
        self.found
            .get(name)
            .with_context(|| format!("vm-images/manifest.toml names no package for {name}"))
    }

    /// The static busybox.
    pub fn busybox(&self) -> &Path {
        &self.busybox
    }
}
