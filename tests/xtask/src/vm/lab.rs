//! A lab (`mosix lab`) seen from outside: what `mosix lab status --json` says, and how a guest joins its switch.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::net::Place;

/// The fields of a lab's status that guests need.
#[derive(Debug, Deserialize)]
pub struct Lab {
    /// Its name.
    pub name: String,
    folder: PathBuf,
    up: bool,
    switch: Option<Switch>,
    extra: Vec<Extra>,
}

#[derive(Debug, Deserialize)]
struct Switch {
    bridge: String,
}

/// A node that the lab has keys and an address for, but does not run: a guest's.
#[derive(Debug, Clone, Deserialize)]
pub struct Extra {
    /// Its name, which is the guest's.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Port of its mosixd.
    pub port: u16,
    /// Its files: keys and configuration. They lie at the same path in the guest, because the configuration names it.
    pub folder: PathBuf,
    /// MOSIX_CONFIG.
    pub config: PathBuf,
    /// MOSIX_STATE_DIR.
    pub state_dir: PathBuf,
    /// MOSIX_RUNTIME_DIR.
    pub runtime_dir: PathBuf,
}

impl Lab {
    /// Asks `mosix` about the lab `name`, which must be up; `runtime` is its MOSIX_RUNTIME_DIR, if not the usual one.
    pub fn find(name: &str, runtime: Option<&Path>, mosix: &Path) -> Result<Self> {
        let mut command = Command::new(mosix);
        if let Some(runtime) = runtime {
            command.env("MOSIX_RUNTIME_DIR", runtime);
        }
        let output = command
            .args(["lab", "status", "--json", "--name", name])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", mosix.display()))?;
        if !output.status.success() {
            bail!(
                "lab {name}: {}",
                String::from_utf8_lossy(&output.stderr)
                    .trim()
                    .trim_start_matches("mosix: ")
            );
        }
        let lab: Self = serde_json::from_slice(&output.stdout).context("mosix lab status --json")?;
        if !lab.up {
            bail!("lab {name} has crashed; `mosix lab up --name {name}` starts it anew");
        }
        Ok(lab)
    }

    /// The switch's bridge.
    pub fn bridge(&self) -> Result<&str> {
        Ok(&self
            .switch
            .as_ref()
            .with_context(|| format!("lab {} has no switch", self.name))?
            .bridge)
    }

    /// The switch's network namespace.
    pub fn switch(&self, mosix: &Path) -> Result<Place> {
        let mosix = mosix
            .to_str()
            .with_context(|| format!("{}: not UTF-8", mosix.display()))?;
        // The lab is found by this variable, and `vm down` may run under another one: <runtime dir>/lab/<name>.
        let runtime = self.folder.ancestors().nth(2).and_then(Path::to_str);
        let runtime = runtime.with_context(|| format!("{} is no lab's folder", self.folder.display()))?;
        let runtime = format!("MOSIX_RUNTIME_DIR={runtime}");
        let words = [
            "env", &runtime, mosix, "lab", "exec", "--name", &self.name, "switch", "--",
        ];
        Ok(Place(words.map(str::to_owned).to_vec()))
    }

    /// The node that the lab has for guest `name`.
    pub fn extra(&self, name: &str) -> Result<&Extra> {
        self.extra.iter().find(|extra| extra.name == name).with_context(|| {
            format!(
                "lab {} has no keys for a node {name}: bring it up with `mosix lab up --name {} --extra-node \
                 {name}=10.77.0.101`",
                self.name, self.name
            )
        })
    }
}
