//! What a lab consists of, as asked for on the command line and stored in `lab.json`.

use super::LabError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Most nodes of a lab: their last address byte stays below those of extra nodes and of the switch.
pub const MAX_NODES: u32 = 99;

/// TCP port of every mosixd of a lab; each has an address of its own.
pub const PORT: u16 = crate::node::config::PORT;

/// Name of the bridge in the switch's namespace.
pub const BRIDGE: &str = "br0";

/// Reserved name: the switch as a place to run commands in.
pub const SWITCH: &str = "switch";

/// Address of the switch's bridge, for tools run there.
pub const SWITCH_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// A lab.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LabSpec {
    /// Its name, a folder name.
    pub name: String,
    /// Random hexadecimal number of this life of the lab; each of its processes has it in MOSIX_LAB_ID.
    pub id: String,
    /// The nodes in namespaces, n1 first.
    pub nodes: Vec<LabNode>,
    /// Nodes that run elsewhere (VMs) and join the bridge; they have names and keys here.
    pub extra: Vec<LabNode>,
    /// Speed of each node's cable, in each direction; none is as fast as the machine.
    pub rate: Option<Rate>,
    /// Whether each node runs a mosixd.
    pub daemons: bool,
}

/// A node of a lab.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LabNode {
    /// Its name.
    pub name: String,
    /// Its address on the lab's network 10.77.0.0/24.
    pub address: Ipv4Addr,
}

impl LabSpec {
    /// Builds a checked description of `count` nodes and these extra ones.
    pub fn new(name: &str, count: u32, rate: Option<Rate>, extra: Vec<LabNode>) -> Result<Self, LabError> {
        check_name(name)?;
        if !(1..=MAX_NODES).contains(&count) {
            return Err(LabError::BadCount(count));
        }
        let nodes: Vec<LabNode> = (1..=count)
            .map(|i| LabNode {
                name: format!("n{i}"),
                address: Ipv4Addr::new(10, 77, 0, u8::try_from(i).unwrap_or(u8::MAX)),
            })
            .collect();
        for (i, node) in extra.iter().enumerate() {
            let others = nodes.iter().chain(extra.iter().take(i));
            if others
                .into_iter()
                .any(|other| other.name == node.name || other.address == node.address)
            {
                return Err(LabError::BadExtra {
                    text: node.to_string(),
                    reason: "name or address is taken",
                });
            }
        }
        let id = format!("{:016x}", random()?);
        Ok(Self {
            name: name.to_owned(),
            id,
            nodes,
            extra,
            rate,
            daemons: true,
        })
    }

    /// Whether `other` asks for the same lab (the id differs with each life).
    pub fn same_shape(&self, other: &Self) -> bool {
        Self {
            id: String::new(),
            ..self.clone()
        } == Self {
            id: String::new(),
            ..other.clone()
        }
    }

    /// One line for people.
    pub fn shape(&self) -> String {
        let mut text = format!(
            "{} node{}",
            self.nodes.len(),
            if self.nodes.len() == 1 { "" } else { "s" }
        );
        if !self.extra.is_empty() {
            let names: Vec<String> = self.extra.iter().map(ToString::to_string).collect();
            text += &format!(" and {}", names.join(", "));
        }
        if let Some(rate) = self.rate {
            text += &format!(" at {rate}");
        }
        if !self.daemons {
            text += " without mosixd";
        }
        text
    }

    /// The node of this name, or an error that lists those there are.
    pub fn node(&self, name: &str) -> Result<&LabNode, LabError> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .ok_or_else(|| LabError::NoNode {
                lab: self.name.clone(),
                node: name.to_owned(),
                known: self
                    .nodes
                    .iter()
                    .map(|n| n.name.as_str())
                    .chain([SWITCH])
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}

/// Refuses names that are no plain folder name.
pub fn check_name(name: &str) -> Result<(), LabError> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 32 || !name.chars().all(fine) {
        return Err(LabError::BadName(name.to_owned()));
    }
    Ok(())
}

fn random() -> Result<u64, LabError> {
    let mut bytes = [0; 8];
    let source = std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    source.map_err(LabError::io("cannot read /dev/urandom"))?;
    Ok(u64::from_ne_bytes(bytes))
}

impl fmt::Display for LabNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.address)
    }
}

/// `v1=10.77.0.101`: an extra node.
impl FromStr for LabNode {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let bad = |reason| LabError::BadExtra {
            text: text.to_owned(),
            reason,
        };
        let (name, address) = text.split_once('=').ok_or_else(|| bad("expected NAME=ADDRESS"))?;
        // A folder's name and a node's name.
        check_name(name).map_err(|_| bad("the name has 1 to 32 of a-z, 0-9 and '-'"))?;
        crate::node::config::check_name(name).map_err(bad)?;
        if name == SWITCH {
            return Err(bad("this name is reserved"));
        }
        let address: Ipv4Addr = address.parse().map_err(|_| bad("the address is not IPv4"))?;
        match address.octets() {
            [10, 77, 0, 100..=253] => Ok(Self {
                name: name.to_owned(),
                address,
            }),
            _ => Err(bad("the address lies in 10.77.0.100 to 10.77.0.253")),
        }
    }
}

/// Bits per second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rate(pub u64);

impl Rate {
    /// Size of tbf's bucket in bytes: a millisecond's worth, and never less than one large segment.
    pub fn burst(self) -> u64 {
        (self.0 / 8 / 1000).max(64 << 10)
    }
}

impl FromStr for Rate {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let bad = || LabError::BadRate(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = text.split_at(digits);
        let factor = match unit {
            "kbit" => 1_000,
            "mbit" => 1_000_000,
            "gbit" => 1_000_000_000,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        match number.checked_mul(factor) {
            Some(rate @ 64_000..=1_000_000_000_000) => Ok(Self(rate)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            r if r % 1_000_000_000 == 0 => write!(f, "{}gbit", r / 1_000_000_000),
            r if r % 1_000_000 == 0 => write!(f, "{}mbit", r / 1_000_000),
            r => write!(f, "{}kbit", r / 1_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_printed() {
        for text in ["1gbit", "100mbit", "64kbit", "25gbit"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "gbit",
            "1",
            "1 gbit",
            "0gbit",
            "99999999999999999999gbit",
            "18446744073709551615gbit",
            "1GiB",
        ] {
            assert!(text.parse::<Rate>().is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn nodes_are_numbered_and_extras_checked() {
        let extra = vec!["v1=10.77.0.101".parse().unwrap()];
        let spec = LabSpec::new("lab", 3, None, extra).unwrap();
        assert_eq!(
            spec.nodes[2],
            LabNode {
                name: "n3".into(),
                address: Ipv4Addr::new(10, 77, 0, 3)
            }
        );
        assert!(matches!(
            LabSpec::new("lab", 0, None, vec![]),
            Err(LabError::BadCount(0))
        ));
        assert!(LabSpec::new("../up", 1, None, vec![]).is_err());
        for text in [
            "v1",
            "v1=10.77.0.3",
            "v1=10.78.0.101",
            "switch=10.77.0.101",
            "V=10.77.0.101",
            "v1=10.77.0.254",
        ] {
            assert!(text.parse::<LabNode>().is_err(), "{text} was accepted");
        }
        let clash = vec!["n1=10.77.0.101".parse().unwrap()];
        assert!(LabSpec::new("lab", 1, None, clash).is_err());
    }

    #[test]
    fn the_same_shape_has_another_id() {
        let a = LabSpec::new("lab", 2, None, vec![]).unwrap();
        let b = LabSpec::new("lab", 2, None, vec![]).unwrap();
        assert!(a.same_shape(&b) && a.id != b.id);
    }
}
