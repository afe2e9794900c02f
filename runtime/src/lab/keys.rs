//! Keys and configurations of a lab's nodes, by one certificate authority per lab.
//!
//! The authority stays in the lab's folder, apart from every node's state folder: no node can make nodes.

use super::spec::PORT;
use super::{LabError, LabFolder, LabNode, LabSpec};
use crate::node::keys::{self, Authority, KeyError};
use std::error::Error as _;
use std::fs;

/// Writes the authority, and for each node (extra ones too) its keys and `config.toml`.
pub fn write(folder: &LabFolder, spec: &LabSpec) -> Result<(), LabError> {
    keys::create_authority(&folder.ca()).map_err(|e| failed("the authority", &e))?;
    let authority = Authority::folder(&folder.ca());
    for node in spec.nodes.iter().chain(&spec.extra) {
        let files = folder.node(&node.name);
        keys::init(&files.state, &node.name, &authority).map_err(|e| failed(&node.name, &e))?;
        let text = config(folder, spec, node);
        let what = format!("cannot write {}", files.config.display());
        fs::write(&files.config, text).map_err(LabError::io(what))?;
    }
    Ok(())
}

fn failed(node: &str, error: &KeyError) -> LabError {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    LabError::Prepare {
        node: node.to_owned(),
        reason: format!("{error}{cause}"),
    }
}

/// The `config.toml` of a node: it listens on its own address and knows all others.
fn config(folder: &LabFolder, spec: &LabSpec, node: &LabNode) -> String {
    let files = folder.node(&node.name);
    let mut root = toml::Table::new();
    let mut put = |key: &str, value: toml::Value| root.insert(key.to_owned(), value);
    put("name", node.name.clone().into());
    put("listen", format!("{}:{PORT}", node.address).into());
    put("state_dir", files.state.display().to_string().into());
    put("runtime_dir", files.run.display().to_string().into());
    let peers = spec.nodes.iter().chain(&spec.extra).map(|peer| {
        let address = format!("{}:{PORT}", peer.address);
        toml::Value::Table(
            [
                ("name".to_owned(), peer.name.clone().into()),
                ("address".to_owned(), address.into()),
            ]
            .into_iter()
            .collect(),
        )
    });
    put("peers", toml::Value::Array(peers.collect()));
    format!("# Written by `mosix lab up` for lab {:?}.\n{root}", spec.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Config;

    #[test]
    fn configurations_are_understood_by_the_daemon() {
        let extra = vec!["v1=10.77.0.101".parse().unwrap()];
        let spec = LabSpec::new("lab", 3, None, extra).unwrap();
        let folder = LabFolder::of("lab").unwrap();
        for node in spec.nodes.iter().chain(&spec.extra) {
            let files = folder.node(&node.name);
            let config = Config::parse(&files.config, &config(&folder, &spec, node)).unwrap();
            assert_eq!(config.name.0, node.name);
            assert_eq!(config.listen, (node.address, PORT).into());
            assert_eq!((config.state_dir, config.runtime_dir), (files.state, Some(files.run)));
            assert_eq!(config.peers.len(), 3, "all but itself");
        }
    }
}
