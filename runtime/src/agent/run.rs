//! Start and end of an agent.

use super::nest::Nest;
use super::shared::{Config, Shared};
use super::tracer::Tracer;
use super::{home, streams};
use crate::link::{Identity, Session, SessionOptions};
use crate::node::AgentSocket;
use mosix_wire::control::AgentIdentity;
use mosix_wire::ids::Nonce;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Usage of the hidden verb, for whoever starts it by hand.
const USAGE: &str = "mosix agent --state-dir DIR --job ID --home-node NAME --home NONCE --supervisor FINGERPRINT --uid N [--plain]";

/// Runs an agent: the hidden verb `mosix agent`, started by a node's daemon. `args` follow the verb. Must be called by the process's
/// only thread.
pub fn main(args: impl Iterator<Item = String>) -> ExitCode {
    let config = match parse(args) {
        Ok(config) => config,
        Err(why) => {
            eprintln!("mosix agent: {why}\nusage: {USAGE}");
            return ExitCode::from(2);
        }
    };
    let job = config.job;
    match run(config) {
        Ok(why) => {
            tracing::info!(%job, why, "the agent ends");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("mosix agent: job {job}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the command line.
///
/// # Errors
/// What is missing or wrong.
pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Config, String> {
    let (mut state_dir, mut job, mut home_node, mut home, mut supervisor, mut uid) = (None, None, None, None, None, None);
    let mut plain = false;
    while let Some(name) = args.next() {
        if name == "--plain" {
            plain = true;
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let bad = |_| format!("{name}: {value:?} is not valid");
        match name.as_str() {
            "--state-dir" => state_dir = Some(PathBuf::from(&value)),
            "--job" => job = Some(value.parse().map_err(|_| bad(()))?),
            "--home-node" => home_node = Some(mosix_wire::ids::NodeName(value)),
            "--home" => home = Some(Nonce(u64::from_str_radix(&value, 16).map_err(|_| bad(()))?)),
            "--supervisor" => supervisor = Some(value.parse().map_err(|_| bad(()))?),
            "--uid" => uid = Some(value.parse().map_err(|_| bad(()))?),
            _ => return Err(format!("{name} is not an option")),
        }
    }
    let missing = |name: &str| format!("{name} is missing");
    Ok(Config {
        job: job.ok_or_else(|| missing("--job"))?,
        home_node: home_node.ok_or_else(|| missing("--home-node"))?,
        home: home.ok_or_else(|| missing("--home"))?,
        supervisor: supervisor.ok_or_else(|| missing("--supervisor"))?,
        uid: uid.ok_or_else(|| missing("--uid"))?,
        state_dir: state_dir.ok_or_else(|| missing("--state-dir"))?,
        plain,
    })
}

/// Makes the place, listens, and serves the job to its end; why it ended.
///
/// # Errors
/// What could not be set up.
pub fn run(config: Config) -> anyhow::Result<String> {
    mosix_sys::process::block_all_signals()?;
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    let _ = setrlimit(Resource::Nofile, files);
    let nest = Nest::make(config.uid)?;
    // Keys exist only from here on: process 1 was forked before and knows none.
    let identity = Identity::generate()?;
    let socket = AgentSocket::bind(
        &config.state_dir,
        AgentIdentity {
            job: config.job,
            home_node: config.home_node.clone(),
            home: config.home,
            fingerprint: identity.fingerprint(),
            supervisor: config.supervisor,
            uid: config.uid,
        },
    )?;
    let mut life = [0; 8];
    aws_lc_rs::rand::fill(&mut life).map_err(|_| anyhow::anyhow!("no random numbers from the kernel"))?;
    let session = Session::accept(SessionOptions::default())?;
    let (shared, commands) = Shared::new(config, identity, session, Nonce(u64::from_le_bytes(life)))?;
    serve(&shared, socket)?;
    let why = Tracer::new(Arc::clone(&shared), nest, commands)?.run()?;
    shared.session.close();
    Ok(why)
}

/// Starts the listening threads.
fn serve(shared: &Arc<Shared>, mut socket: AgentSocket) -> std::io::Result<()> {
    let path = crate::node::paths::agent_socket(&shared.config.state_dir, shared.config.job);
    let hearing = Arc::clone(shared);
    std::thread::Builder::new().name("home".to_owned()).spawn(move || home::run(&hearing))?;
    let accepting = Arc::clone(shared);
    std::thread::Builder::new().name("accept".to_owned()).spawn(move || {
        loop {
            match socket.accept() {
                Ok(incoming) => streams::serve(&accepting, incoming),
                Err(error) => {
                    // Without its socket nobody finds the agent again.
                    tracing::error!(path = %path.display(), %error, "the agent's socket");
                    accepting.command(super::shared::Command::HomeGone(error.to_string()));
                    return;
                }
            }
        }
    })?;
    Ok(())
}
