//! What there is of a lab, for people and (stable names) for programs.

use super::folder::LabFolder;
use super::keeper::Namespaces;
use super::spec::{BRIDGE, PORT, SWITCH_ADDRESS};
use super::{LabError, nodes};
use serde::Serialize;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// A lab as `mosix lab status --json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct LabStatus {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Whether its keeper, and with it its namespaces, exist.
    pub up: bool,
    /// Whether its namespaces belong to a user namespace (made without privilege).
    pub user_namespace: bool,
    /// Speed of each node's cable, as given to `--rate`.
    pub rate: Option<String>,
    /// Where cables meet; absent after a crash.
    pub switch: Option<SwitchStatus>,
    /// Nodes in namespaces.
    pub nodes: Vec<NodeStatus>,
    /// Nodes that run elsewhere.
    pub extra: Vec<NodeStatus>,
}

/// The switch, which VM taps join: see `mosix lab exec switch`.
#[derive(Clone, Debug, Serialize)]
pub struct SwitchStatus {
    /// A process in its namespace: the keeper.
    pub pid: i32,
    /// Path of its network namespace.
    pub netns: String,
    /// Its bridge.
    pub bridge: &'static str,
    /// The bridge's address.
    pub address: Ipv4Addr,
}

/// A node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// mosixd's port.
    pub port: u16,
    /// mosixd's pid while it runs here.
    pub pid: Option<i32>,
    /// Whether mosixd answers on its control socket.
    pub answers: bool,
    /// Path of its network namespace, when it is here.
    pub netns: Option<String>,
    /// Its files.
    pub folder: PathBuf,
    /// Its configuration (MOSIX_CONFIG).
    pub config: PathBuf,
    /// MOSIX_STATE_DIR.
    pub state_dir: PathBuf,
    /// MOSIX_RUNTIME_DIR.
    pub runtime_dir: PathBuf,
    /// mosixd's log.
    pub log: PathBuf,
}

/// Looks at a lab.
pub fn status(folder: &LabFolder) -> Result<LabStatus, LabError> {
    let spec = folder.read_spec()?;
    let namespaces = Namespaces::read(folder);
    let node = |node: &super::LabNode| {
        let files = folder.node(&node.name);
        NodeStatus {
            name: node.name.clone(),
            address: node.address,
            port: PORT,
            pid: nodes::daemon(folder, &node.name).map(|record| record.pid),
            answers: nodes::answers(&files),
            netns: namespaces.as_ref().and_then(|all| all.node_path(&node.name)),
            folder: files.root,
            config: files.config,
            state_dir: files.state,
            runtime_dir: files.run,
            log: files.log,
        }
    };
    Ok(LabStatus {
        name: spec.name.clone(),
        folder: folder.root().to_owned(),
        up: namespaces.is_some(),
        user_namespace: namespaces.as_ref().is_some_and(|all| all.user),
        rate: spec.rate.map(|rate| rate.to_string()),
        switch: namespaces.as_ref().map(|all| SwitchStatus {
            pid: all.keeper.pid,
            netns: all.switch_path(),
            bridge: BRIDGE,
            address: SWITCH_ADDRESS,
        }),
        nodes: spec.nodes.iter().map(node).collect(),
        extra: spec.extra.iter().map(node).collect(),
    })
}
