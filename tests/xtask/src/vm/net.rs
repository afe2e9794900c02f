//! How a guest's card reaches the other nodes.
//!
//! | mode | needs | reaches |
//! |---|---|---|
//! | tap on a bridge | right to make a tap in the bridge's network namespace | everything on that bridge |
//! | forward | right to add an address to the bridge | the same, one TCP port inwards; no tap device needed |
//! | multicast | nothing | the other guests of this workspace |
//!
//! The bridge is usually the switch of a lab (`--attach-lab`): QEMU then runs inside the switch's network namespace,
//! entered by `mosix lab exec switch`, so both a lab made by root and one made by an ordinary user are joined alike.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// The network namespace that QEMU runs in, as the words that put a command there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place(pub Vec<String>);

impl Place {
    /// The namespace of `netns`: a name under /run/netns, a path, or a pid.
    pub fn netns(netns: &str) -> Result<Self> {
        let path = if netns.contains('/') {
            netns.to_owned()
        } else if netns.bytes().all(|byte| byte.is_ascii_digit()) {
            format!("/proc/{netns}/ns/net")
        } else {
            format!("/run/netns/{netns}")
        };
        if !Path::new(&path).exists() {
            bail!("no network namespace {netns}: {path} does not exist");
        }
        Ok(Self(vec!["nsenter".into(), format!("--net={path}"), "--".into()]))
    }

    /// A command run there. Folders of system programs are in its PATH, which an ordinary user's often lacks.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = match self.0.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        command
    }

    fn ip(&self, words: &[&str]) -> Result<()> {
        let output = self
            .command("ip")
            .args(words)
            .stdin(Stdio::null())
            .output()
            .context("cannot start ip")?;
        if !output.status.success() {
            bail!(
                "ip {}: {}",
                words.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}

/// A card's connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum Joined {
    /// A tap device on a bridge.
    Tap {
        /// The device.
        device: String,
        /// The bridge.
        bridge: String,
    },
    /// QEMU's user-mode network; the guest's address is one more of the bridge, with ports forwarded.
    Forward {
        /// The bridge.
        bridge: String,
        /// The added address.
        address: String,
        /// Forwarded TCP ports.
        ports: Vec<u16>,
    },
    /// A multicast group on the loopback device.
    Multicast {
        /// UDP port of the group.
        port: u16,
    },
}

impl Joined {
    /// The multicast group of this workspace, by its cache folder.
    pub fn multicast(cache: &Path) -> Self {
        let mut hasher = DefaultHasher::new();
        cache.hash(&mut hasher);
        let offset = u16::try_from(hasher.finish() % 20_000).unwrap_or(0);
        Self::Multicast { port: 20_000 + offset }
    }

    /// A tap for guest `name` on `bridge`. The name of the device holds the workspace's mark: several may share a bridge.
    pub fn tap(name: &str, bridge: &str, cache: &Path) -> Self {
        let mut hasher = DefaultHasher::new();
        (cache, name).hash(&mut hasher);
        // At most 15 bytes.
        Self::Tap {
            device: format!("vm{:08x}", hasher.finish() & 0xffff_ffff),
            bridge: bridge.to_owned(),
        }
    }

    /// Makes the devices and addresses.
    pub fn join(&self, place: &Place) -> Result<()> {
        match self {
            Self::Tap { device, bridge } => {
                place.ip(&["tuntap", "add", "dev", device, "mode", "tap"])?;
                place.ip(&["link", "set", device, "master", bridge, "up"])
            }
            Self::Forward { bridge, address, .. } => {
                place.ip(&["addr", "add", &format!("{address}/32"), "dev", bridge])
            }
            Self::Multicast { .. } => Ok(()),
        }
    }

    /// Removes them again; says so if that fails, unless they, or their whole namespace, are gone.
    pub fn leave(&self, place: &Place) {
        let left = match self {
            Self::Tap { device, .. } => place
                .ip(&["link", "show", "dev", device])
                .map_or(Ok(()), |()| place.ip(&["link", "del", "dev", device])),
            Self::Forward { bridge, address, .. } => {
                let _gone_with_its_namespace = place.ip(&["addr", "del", &format!("{address}/32"), "dev", bridge]);
                Ok(())
            }
            Self::Multicast { .. } => Ok(()),
        };
        if let Err(error) = left {
            eprintln!("vm: {error:#}");
        }
    }

    /// QEMU's `-netdev` for it, with id `n0`.
    pub fn netdev(&self) -> String {
        match self {
            Self::Tap { device, .. } => format!("tap,id=n0,ifname={device},script=no,downscript=no"),
            Self::Forward { address, ports, .. } => {
                let forwards: String = ports
                    .iter()
                    .map(|port| format!(",hostfwd=tcp:{address}:{port}-{address}:{port}"))
                    .collect();
                format!("user,id=n0{forwards}")
            }
            Self::Multicast { port } => format!("socket,id=n0,mcast=230.0.0.1:{port},localaddr=127.0.0.1"),
        }
    }

    /// What the guest sets, if its node address is `address`.
    pub fn guest_address<'a>(&self, address: &'a str) -> GuestAddress<'a> {
        match self {
            // On the card every guest has the same address, behind QEMU's router. Its node address is one more, which the
            // router hands the forwarded connections to: mosixd listens there.
            Self::Forward { .. } => GuestAddress {
                card: "10.0.2.15",
                gateway: "10.0.2.2",
                also: address,
            },
            Self::Tap { .. } | Self::Multicast { .. } => GuestAddress {
                card: address,
                gateway: "",
                also: "",
            },
        }
    }
}

/// Addresses that a guest sets; empty is none.
#[derive(Debug)]
pub struct GuestAddress<'a> {
    /// Of its card, in a network of 24 bits.
    pub card: &'a str,
    /// Its default router.
    pub gateway: &'a str,
    /// One more.
    pub also: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tap_names_fit_and_differ() {
        let name = |guest, cache| match Joined::tap(guest, "br0", Path::new(cache)) {
            Joined::Tap { device, .. } => device,
            other => panic!("{other:?}"),
        };
        assert!(name("v1", "/a").len() <= 15);
        assert_ne!(name("v1", "/a"), name("v2", "/a"));
        assert_ne!(name("v1", "/a"), name("v1", "/b"));
    }

    #[test]
    fn a_namespace_that_is_not_there_is_named() {
        let error = Place::netns("no-such-namespace").unwrap_err().to_string();
        assert!(error.contains("no-such-namespace"), "{error}");
    }
}
