//! `mosixd.toml`: what a node is told by its owner.
//!
//! ```toml
//! name = "n1"
//! listen = "0.0.0.0:7711"          # default: all addresses, port 7711
//! advertise = "192.168.1.1:7711"   # default: what the peers are configured with
//! state_dir = "/var/lib/mosix"     # default: as `mosix` finds it
//! transport = "tls"                # or "plain": no secrecy, no identity; for isolated test networks
//! peers = [{ name = "n2", address = "192.168.1.2:7711" }]
//!
//! [agents]
//! uids = "1900000000-1900065535"   # users for the bodies of jobs, one each, when the daemon is root; "" for none
//!
//! [limits]
//! agents = 64
//! memory = 16384                   # MiB for the bodies of one job; default: three quarters of the machine's
//! ```
//!
//! Every error names the file, the line and the key.

use super::paths;
use mosix_wire::ids::NodeName;
use mosix_wire::limits;
use serde::Deserialize;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use toml::Spanned;

/// The TCP port of mosixd when none is given.
pub const PORT: u16 = 7711;

/// A node's configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub name: NodeName,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What others should dial, when it says so itself.
    pub advertise: Option<Address>,
    /// The nodes it has links to.
    pub peers: Vec<PeerConfig>,
    /// Where it keeps keys and sockets.
    pub state_dir: PathBuf,
    /// The runtime folder that agents of this node use; theirs to find when absent.
    pub runtime_dir: Option<PathBuf>,
    /// How links are protected.
    pub transport: Transport,
    /// TCP's congestion control of links, where the machine has it; the machine's own when empty.
    pub congestion_control: String,
    /// Bounds.
    pub limits: Limits,
    /// Users for the bodies of jobs, one each.
    pub uids: Option<RangeInclusive<u32>>,
    /// The program that is started as agent, with the verb `agent`; this very program when absent. Not in the file.
    pub agent_program: Option<PathBuf>,
}

/// A peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerConfig {
    /// Its name.
    pub name: NodeName,
    /// Its address.
    pub address: Address,
}

/// A host (name or IP address) and a port.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    /// The host.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "is not HOST, HOST:PORT or [IPv6]:PORT";
        let port = |text: &str| {
            text.parse::<u16>()
                .ok()
                .filter(|port| *port != 0)
                .ok_or("has no port between 1 and 65535")
        };
        let (host, port) = if let Ok(address) = text.parse::<IpAddr>() {
            (address.to_string(), PORT)
        } else if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or(SHAPE)?;
            let host = host.parse::<std::net::Ipv6Addr>().map_err(|_| SHAPE)?;
            match rest.strip_prefix(':') {
                Some(digits) => (host.to_string(), port(digits)?),
                None if rest.is_empty() => (host.to_string(), PORT),
                None => return Err(SHAPE),
            }
        } else {
            match text.split_once(':') {
                Some((host, digits)) => (host.to_owned(), port(digits)?),
                None => (text.to_owned(), PORT),
            }
        };
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || host.len() > 253 || !host.chars().all(fine) {
            return Err(SHAPE);
        }
        Ok(Self { host, port })
    }
}

impl Address {
    /// Whether it can only mean the machine that dials it.
    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// How links between nodes and of jobs are protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TLS 1.3, both sides authenticated.
    #[default]
    Tls,
    /// Nothing.
    Plain,
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tls => "tls",
            Self::Plain => "plain",
        })
    }
}

/// Bounds on what others may use of this node.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Agents at once.
    pub agents: usize,
    /// Connections at once, of one source address, that have not said who they are.
    pub unknown_per_source: usize,
    /// Such connections at once, of all sources.
    pub unknown: usize,
    /// MiB of memory for the bodies of one job.
    pub memory: Option<NonZeroU32>,
}

impl Limits {
    /// Bytes of memory for the bodies of one job: what was configured, else three quarters of the machine's.
    pub fn memory(&self) -> u64 {
        match self.memory {
            Some(mib) => u64::from(mib.get()) << 20,
            None => {
                let pages = nix::unistd::sysconf(nix::unistd::SysconfVar::_PHYS_PAGES);
                let pages = u64::try_from(pages.ok().flatten().unwrap_or(0)).unwrap_or(0);
                // A machine that does not tell has at least this much.
                (pages * rustix::param::page_size() as u64 / 4 * 3).max(1 << 28)
            }
        }
    }
}

/// What the users of bodies are taken from unless configured: numbers that no distribution uses
/// ([UIDs and GIDs](https://systemd.io/UIDS-GIDS/)).
const UIDS: RangeInclusive<u32> = 1_900_000_000..=1_900_065_535;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawAgents {
    uids: Option<Spanned<String>>,
}

/// Reads "FIRST-LAST", or nothing for none. Numbers of people and services are not given to strangers.
fn uid_range(text: &str) -> Result<Option<RangeInclusive<u32>>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    let shape = "is not FIRST-LAST, two user numbers";
    let (first, last) = text.split_once('-').ok_or(shape)?;
    let number = |text: &str| text.trim().parse::<u32>().map_err(|_| shape);
    let (first, last) = (number(first)?, number(last)?);
    match (first, last) {
        (..100_000, _) => Err("begins below 100000, where people and services have their numbers"),
        (_, u32::MAX) => Err("ends with 4294967295, which is no user"),
        _ if last < first => Err("ends before it begins"),
        _ => Ok(Some(first..=last)),
    }
}

/// The kernel's own default, which some machines replace by one that paces.
const CONGESTION_CONTROL: &str = "cubic";

/// A name of tcp_congestion_control, or nothing.
fn congestion(text: &str) -> Result<String, &'static str> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if text.len() < 16 && text.chars().all(fine) {
        return Ok(text.to_owned());
    }
    Err("is no name of a congestion control")
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            agents: 64,
            unknown_per_source: 64,
            unknown: 512,
            memory: None,
        }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line of it is wrong.
    #[error("{path}:{line}: {what}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The key and what is wrong with it.
        what: String,
    },
    /// No folder for state.
    #[error("{path}: state_dir")]
    StateDir {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Spanned<String>,
    listen: Option<Spanned<String>>,
    advertise: Option<Spanned<String>>,
    #[serde(default)]
    peers: Vec<RawPeer>,
    state_dir: Option<Spanned<PathBuf>>,
    runtime_dir: Option<Spanned<PathBuf>>,
    #[serde(default)]
    transport: Transport,
    congestion_control: Option<Spanned<String>>,
    #[serde(default)]
    allow_loopback: bool,
    #[serde(default)]
    agents: RawAgents,
    #[serde(default)]
    limits: Limits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    name: Spanned<String>,
    address: Spanned<String>,
}

/// Checks that a name can be a node's: it is a DNS label, as certificates want it.
pub fn check_name(name: &str) -> Result<NodeName, &'static str> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty()
        || name.len() > limits::NODE_NAME
        || !name.chars().all(fine)
        || name.starts_with('-')
        || name.ends_with('-')
    {
        return Err("is no node name: up to 63 of a-z, 0-9 and '-', not at the ends");
    }
    if name == "home" {
        return Err("is no node name: \"home\" means the node where a process was started");
    }
    Ok(NodeName(name.to_owned()))
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a file; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let wrong = |span: Range<usize>, what: String| {
            let before = text.get(..span.start).unwrap_or(text);
            ConfigError::Line {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                what,
            }
        };
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let what = error.message().lines().collect::<Vec<_>>().join("; ");
            wrong(error.span().unwrap_or(0..0), what)
        })?;
        let name = |key: &str, value: &Spanned<String>| {
            check_name(value.get_ref())
                .map_err(|why| wrong(value.span(), format!("{key}: {:?} {why}", value.get_ref())))
        };
        let address = |key: &str, value: &Spanned<String>| {
            let parsed: Result<Address, _> = value.get_ref().parse();
            parsed.map_err(|why| wrong(value.span(), format!("{key}: {:?} {why}", value.get_ref())))
        };
        let remote = |key: &str, value: &Spanned<String>| {
            let address = address(key, value)?;
            if address.is_loopback() && !raw.allow_loopback {
                let what = format!(
                    "{key}: {:?} means this very machine wherever it is read: give an address of the network, \
                     or set allow_loopback = true for nodes on one machine",
                    value.get_ref()
                );
                return Err(wrong(value.span(), what));
            }
            Ok(address)
        };

        let own = name("name", &raw.name)?;
        let listen = match &raw.listen {
            None => SocketAddr::from(([0, 0, 0, 0], PORT)),
            Some(value) => {
                let text = value.get_ref();
                let parsed = text
                    .parse()
                    .ok()
                    .or_else(|| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT)));
                parsed.ok_or_else(|| {
                    wrong(
                        value.span(),
                        format!("listen: {text:?} is not an IP address with a port"),
                    )
                })?
            }
        };
        let advertise = raw
            .advertise
            .as_ref()
            .map(|value| remote("advertise", value))
            .transpose()?;
        let mut peers: Vec<PeerConfig> = Vec::with_capacity(raw.peers.len());
        let mut lines = HashMap::new();
        for peer in &raw.peers {
            let key = name("peers.name", &peer.name)?;
            if let Some(first) = lines.insert(key.clone(), peer.name.span()) {
                let ConfigError::Line { line, .. } = wrong(first, String::new()) else {
                    continue;
                };
                return Err(wrong(
                    peer.name.span(),
                    format!("peers.name: {:?} is there twice, first in line {line}", key.0),
                ));
            }
            let address = remote("peers.address", &peer.address)?;
            if key == own {
                // The same list may be given to all nodes.
                continue;
            }
            if let Some(other) = peers.iter().find(|other| other.address == address) {
                let what = format!("peers.address: {address} is the address of {} as well", other.name);
                return Err(wrong(peer.address.span(), what));
            }
            peers.push(PeerConfig { name: key, address });
        }
        let uids = match &raw.agents.uids {
            None => Some(UIDS),
            Some(value) => uid_range(value.get_ref())
                .map_err(|why| wrong(value.span(), format!("agents.uids: {:?} {why}", value.get_ref())))?,
        };
        let congestion_control = match &raw.congestion_control {
            None => CONGESTION_CONTROL.to_owned(),
            Some(value) => congestion(value.get_ref())
                .map_err(|why| wrong(value.span(), format!("congestion_control: {:?} {why}", value.get_ref())))?,
        };
        let folder = |key: &str, value: &Option<Spanned<PathBuf>>| match value {
            Some(dir) if !dir.get_ref().is_absolute() => Err(wrong(
                dir.span(),
                format!("{key}: {:?} is not an absolute path", dir.get_ref()),
            )),
            other => Ok(other.as_ref().map(|dir| dir.get_ref().clone())),
        };
        let state_dir = match folder("state_dir", &raw.state_dir)? {
            Some(dir) => dir,
            None => paths::state_dir().map_err(|source| ConfigError::StateDir {
                path: path.to_owned(),
                source,
            })?,
        };
        if let Some(dir) = &raw.state_dir
            && let Err(error) = paths::check_socket_path(&paths::agents_dir(&state_dir).join("0123456789abcdef.sock"))
        {
            return Err(wrong(dir.span(), format!("state_dir: {error}")));
        }
        Ok(Self {
            name: own,
            listen,
            advertise,
            peers,
            state_dir,
            runtime_dir: folder("runtime_dir", &raw.runtime_dir)?,
            transport: raw.transport,
            congestion_control,
            limits: raw.limits,
            uids,
            agent_program: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("mosixd.toml"), text).map_err(|error| error.to_string())
    }

    fn fails(text: &str, wanted: &[&str]) {
        let said = parse(text).unwrap_err();
        for part in wanted {
            assert!(said.contains(part), "{said:?} lacks {part:?}");
        }
        assert!(!said.contains('\n'), "{said:?}");
    }

    #[test]
    fn a_full_file_is_understood() {
        let config = parse(
            "name = \"n1\"\nlisten = \"10.0.0.1:7000\"\nadvertise = \"node1.lan\"\nstate_dir = \"/s\"\ntransport = \"plain\"\n\
             peers = [{ name = \"n1\", address = \"10.0.0.1\" }, { name = \"n2\", address = \"10.0.0.2:7\" }]\n[limits]\nagents = 3\n",
        )
        .unwrap();
        assert_eq!(
            (config.name.0.as_str(), config.listen.port(), config.transport),
            ("n1", 7000, Transport::Plain)
        );
        assert_eq!(config.advertise.unwrap().to_string(), "node1.lan:7711");
        assert_eq!(config.peers.len(), 1);
        assert_eq!(config.peers[0].address.to_string(), "10.0.0.2:7");
        assert_eq!((config.limits.agents, config.limits.unknown), (3, 512));
        let small = parse("name = \"a\"\nstate_dir = \"/s\"").unwrap();
        assert_eq!(small.uids, Some(UIDS));
        let none = parse("name = \"a\"\nstate_dir = \"/s\"\n[agents]\nuids = \"\"\n[limits]\nmemory = 5\n").unwrap();
        assert_eq!((none.uids, none.limits.memory()), (None, 5 << 20));
        assert_eq!((small.listen.port(), small.transport), (PORT, Transport::Tls));
        assert_eq!(small.congestion_control, CONGESTION_CONTROL);
        let own = parse("name = \"a\"\nstate_dir = \"/s\"\ncongestion_control = \"\"\n").unwrap();
        assert_eq!(own.congestion_control, "");
        let list =
            parse("name = \"a\"\nstate_dir = \"/s\"\n[[peers]]\nname = \"b\"\naddress = \"[fe80::1]:9\"\n").unwrap();
        assert_eq!(list.peers[0].address.to_string(), "[fe80::1]:9");
    }

    #[test]
    fn errors_name_file_line_and_key() {
        fails("state_dir = \"/s\"\n", &["mosixd.toml:1", "name"]);
        fails("name = \"n1\"\n\nlisten = 7\n", &["mosixd.toml:3", "string"]);
        fails(
            "name = \"n1\"\nlissten = \"x\"\n",
            &["mosixd.toml:2", "lissten", "listen"],
        );
        fails("name = \"n1\"\nlisten = \"x\"\n", &["mosixd.toml:2", "listen", "\"x\""]);
        fails("name = \"N 1\"\n", &["mosixd.toml:1", "name", "a-z"]);
        fails("name = \"home\"\n", &["mosixd.toml:1", "home"]);
        fails("name = \"n1\"\n[limits]\nagent = 1\n", &["mosixd.toml:3", "agent"]);
        fails(
            "name = \"n1\"\ntransport = \"none\"\n",
            &["mosixd.toml:2", "none", "plain"],
        );
        fails(
            "name = \"n1\"\nstate_dir = \"s\"\n",
            &["mosixd.toml:2", "state_dir", "absolute"],
        );
        fails(
            &format!("name = \"n1\"\nstate_dir = \"/{}\"\n", "x".repeat(100)),
            &["mosixd.toml:2", "state_dir", "shorter"],
        );
        fails("name = \"n1\n", &["mosixd.toml:1"]);
        for (uids, why) in [
            ("0-9", "100000"),
            ("200000", "FIRST-LAST"),
            ("300000-200000", "before"),
            ("x-y", "FIRST-LAST"),
        ] {
            fails(
                &format!("name = \"n1\"\n[agents]\nuids = \"{uids}\"\n"),
                &["mosixd.toml:3", "agents.uids", why],
            );
        }
        fails(
            "name = \"n1\"\ncongestion_control = \"b b\"\n",
            &["mosixd.toml:2", "congestion_control", "b b"],
        );
        fails("name = \"n1\"\n[limits]\nmemory = 0\n", &["mosixd.toml:3", "zero"]);
        let peers = |more: &str| format!("name = \"n1\"\nstate_dir = \"/s\"\npeers = [\n{more}\n]\n");
        fails(
            &peers("{ name = \"n2\", address = \"10.0.0.2\" },\n{ name = \"n2\", address = \"10.0.0.3\" }"),
            &["mosixd.toml:5", "peers.name", "n2", "line 4"],
        );
        fails(
            &peers("{ name = \"n2\", address = \"10.0.0.2\" },\n{ name = \"n3\", address = \"10.0.0.2\" }"),
            &["mosixd.toml:5", "peers.address", "n2"],
        );
        fails(
            &peers("{ name = \"n2\", address = \"10.0.0.2:0\" }"),
            &["mosixd.toml:4", "peers.address", "65535"],
        );
        fails(
            &peers("{ name = \"n2\", address = \"a b\" }"),
            &["mosixd.toml:4", "peers.address"],
        );
        fails(
            &peers("{ name = \"n2\", address = \"127.0.1.1\" }"),
            &["mosixd.toml:4", "allow_loopback"],
        );
        fails(
            "name = \"n1\"\nadvertise = \"localhost\"\n",
            &["mosixd.toml:2", "advertise", "allow_loopback"],
        );
        parse("name = \"n1\"\nstate_dir = \"/s\"\nallow_loopback = true\nadvertise = \"[::1]\"\n").unwrap();
    }
}
