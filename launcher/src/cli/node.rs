//! `mosix node`: this machine as a node of a cluster.

use crate::exit::Exit;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use comfy_table::{ContentArrangement, Table, presets};
use mosix_runtime::node::{self, Authority, Config, Control, paths};
use mosix_wire::control::{Peer, Status};
use serde_json::json;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Make this machine a node, run its daemon, and show its links.
#[derive(Args, Debug)]
pub struct NodeArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Make the node's keys: of a new cluster, or signed by the CA of an existing one.
    Init(Init),
    /// Run the node's daemon, mosixd, in the foreground.
    Run(Run),
    /// Show the daemon, its links to the peers, and its agents.
    Status(Show),
    /// Stop the daemon; guests go on, and the next daemon finds them.
    Stop,
}

#[derive(Args, Debug)]
struct Init {
    /// The node's name: up to 63 of a-z, 0-9 and '-'.
    #[arg(long)]
    name: String,
    /// `new` for a new cluster, or the folder with the cluster's ca.pem and ca.key (`keys` in the state folder of the
    /// node that began it).
    #[arg(long, value_name = "new|DIR", required_unless_present = "ca_cert")]
    ca: Option<PathBuf>,
    /// The cluster's certificate, when it is not in a folder with its key.
    #[arg(long, value_name = "FILE", requires = "ca_key", conflicts_with = "ca")]
    ca_cert: Option<PathBuf>,
    /// The key of the cluster's certificate.
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// Where the node keeps its state [default: /var/lib/mosix for root, else ~/.local/state/mosix].
    #[arg(long, value_name = "DIR", env = "MOSIX_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Run {
    /// The configuration [default: /etc/mosix/mosixd.toml for root, else ~/.config/mosix/mosixd.toml].
    #[arg(long, value_name = "FILE", env = "MOSIX_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Show {
    /// Print JSON: `node` and `peers`, with stable names.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: NodeArgs) -> anyhow::Result<ExitCode> {
    match args.verb {
        Verb::Init(args) => init(args),
        Verb::Run(args) => daemon(args),
        Verb::Status(args) => status(&args),
        Verb::Stop => {
            Control::local()?.stop()?;
            println!("mosixd stops; guests on this node go on");
            Ok(Exit::Done.into())
        }
    }
}

fn init(args: Init) -> anyhow::Result<ExitCode> {
    let state = args.state_dir.map_or_else(paths::state_dir, Ok)?;
    let authority = match (args.ca, args.ca_cert, args.ca_key) {
        (Some(ca), ..) if ca.as_os_str() == "new" => Authority::New,
        (Some(ca), ..) => Authority::folder(&ca),
        (None, Some(certificate), Some(key)) => Authority::Files { certificate, key },
        (None, ..) => anyhow::bail!("give --ca new, --ca DIR, or --ca-cert and --ca-key"),
    };
    let cluster = node::init(&state, &args.name, &authority)?;
    let keys = paths::keys_dir(&state);
    println!("node {} of cluster {cluster}: keys in {}", args.name, keys.display());
    if matches!(authority, Authority::New) {
        println!(
            "{} makes further nodes: keep it here, give it to nobody; other nodes need only their own folder `keys`",
            keys.join("ca.key").display()
        );
    }
    Ok(Exit::Done.into())
}

fn default_config() -> anyhow::Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/etc/mosix/mosixd.toml".into());
    }
    let home = std::env::var_os("HOME").context("no configuration: give --config, or set MOSIX_CONFIG or HOME")?;
    Ok(PathBuf::from(home).join(".config/mosix/mosixd.toml"))
}

fn daemon(args: Run) -> anyhow::Result<ExitCode> {
    let path = args.config.map_or_else(default_config, Ok)?;
    let filter = EnvFilter::try_from_env("MOSIX_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    // Under systemd the journal has the time.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.with_ansi(false).without_time().init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).init();
    }
    node::run(Config::read(&path)?)?;
    Ok(Exit::Done.into())
}

fn status(args: &Show) -> anyhow::Result<ExitCode> {
    let control = Control::local()?;
    let (own, peers) = (control.status()?, control.nodes()?);
    if args.json {
        println!(
            "{}",
            json!({ "node": own_as_json(&own), "peers": peers.iter().map(as_json).collect::<Vec<_>>() })
        );
    } else {
        show(&own, &peers);
    }
    Ok(Exit::Done.into())
}

fn own_as_json(own: &Status) -> serde_json::Value {
    let agents = own.agents.iter().map(|agent| {
        json!({
            "job": agent.job.to_string(),
            "home": agent.home,
            "pid": agent.pid,
            "uid": agent.uid,
            "adopted": agent.adopted,
        })
    });
    json!({
        "name": own.node,
        "version": own.version,
        "kernel": own.kernel,
        "pid": own.pid,
        "listen": own.listen,
        "transport": own.transport,
        "cluster": own.cluster.map(|cluster| cluster.to_string()),
        "uptime_s": own.uptime_s,
        "agents": agents.collect::<Vec<_>>(),
    })
}

fn as_json(peer: &Peer) -> serde_json::Value {
    json!({
        "name": peer.name,
        "address": peer.address,
        "local": peer.local,
        "up": peer.up,
        "since_s": peer.since_s,
        "kernel": peer.kernel,
        "version": peer.version,
        "rtt_us": peer.rtt_us,
        "error": peer.last_error,
    })
}

fn show(own: &Status, peers: &[Peer]) {
    let cluster = own.cluster.map_or_else(String::new, |cluster| {
        let id = cluster.to_string();
        format!(", cluster {}", id.get(..12).unwrap_or(&id))
    });
    let up = std::time::Duration::from_secs(own.uptime_s);
    println!(
        "{}: mosixd {} (pid {}), up {}, on {} ({}){cluster}, {} agents",
        own.node,
        own.version,
        own.pid,
        humantime::format_duration(up),
        own.listen,
        own.transport,
        own.agents.len()
    );
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["NODE", "ADDRESS", "LINK", "FOR", "RTT", "KERNEL", "MOSIX", "WHY"]);
    for peer in peers {
        let link = if peer.local {
            "here"
        } else if peer.up {
            "up"
        } else {
            "down"
        };
        let since = humantime::format_duration(std::time::Duration::from_secs(peer.since_s)).to_string();
        let rtt = peer
            .rtt_us
            .filter(|_| peer.up)
            .map_or_else(|| "-".to_owned(), |us| format!("{:.2} ms", us as f64 / 1000.0));
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        table.add_row([
            peer.name.to_string(),
            peer.address.clone(),
            link.to_owned(),
            since,
            rtt,
            or_dash(&peer.kernel),
            or_dash(&peer.version),
            peer.last_error.clone().unwrap_or_default(),
        ]);
    }
    println!("{}", table.trim_fmt());
}
