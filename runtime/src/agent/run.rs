//! Start and end of an agent.

use super::nest::{Nest, confine};
use super::shared::{Config, Shared};
use super::tracer::Tracer;
use super::{home, streams};
use crate::link::{Identity, Session, SessionOptions};
use crate::node::AgentSocket;
use crate::node::agent_start::{AgentReady, AgentStart};
use crate::node::client::Control;
use crate::node::config::Transport;
use mosix_wire::ids::Nonce;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::process::ExitCode;
use std::sync::Arc;

/// Runs an agent: the hidden verb `mosix agent`, started by a node's daemon, which tells the rest on standard input
/// ([`AgentStart`]). Must be called by the process's only thread.
pub fn main() -> ExitCode {
    let start = match AgentStart::read(std::io::stdin()) {
        Ok(start) => start,
        Err(error) => return failed(&format!("the daemon's line on standard input: {error}")),
    };
    let job = start.job;
    // A thread that is missing would leave bodies without answers: home is to see the end of this agent instead.
    std::panic::set_hook(Box::new(|info| {
        let line = crate::supervisor::last_words::panic_line(info);
        tracing::error!("{line}");
        mosix_sys::process::exit_now(101);
    }));
    match run(&start) {
        Ok(why) => {
            tracing::info!(%job, why, "the agent ends");
            ExitCode::SUCCESS
        }
        Err(error) => failed(&format!("{error:#}")),
    }
}

fn failed(why: &str) -> ExitCode {
    // Nobody may listen any more; the log is written in any case.
    let _ = AgentReady::Error(why.to_owned()).write(std::io::stdout());
    eprintln!("mosix agent: {why}");
    ExitCode::FAILURE
}

/// Makes the place, listens, and serves the job to its end; why it ended.
///
/// # Errors
/// What could not be set up.
pub fn run(start: &AgentStart) -> anyhow::Result<String> {
    let folder = rustix::fs::open(
        &start.state_dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let config = Config {
        job: start.job,
        home_node: start.home_node.clone(),
        home: start.home,
        supervisor: start.supervisor()?,
        uid: start.uid,
        memory: start.memory,
        state_dir: start.state_dir.clone(),
        control: Arc::new(Control::in_folder(folder)),
        plain: start.transport == Transport::Plain,
    };
    crate::fault::prepare();
    super::tally::prepare();
    mosix_sys::process::block_all_signals()?;
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    let _ = setrlimit(Resource::Nofile, files);
    // The folder is the daemon's: with a user of its own the agent could not bind there later.
    let listener = AgentSocket::listen(&config.state_dir, config.job)?;
    let nest = Nest::make(config.uid, start.outside)?;
    // Keys exist only from here on: process 1 was forked before and knows none.
    let identity = Identity::generate()?;
    let fingerprint = identity.fingerprint();
    let socket = AgentSocket::new(listener, &config.state_dir, start.identity(fingerprint)?);
    let mut life = [0; 8];
    aws_lc_rs::rand::fill(&mut life).map_err(|_| anyhow::anyhow!("no random numbers from the kernel"))?;
    let folder = crate::node::paths::agents_dir(&config.state_dir);
    if !confine::files(&folder)? {
        tracing::warn!("this kernel has no Landlock: file permissions alone keep the agent from the node's files");
    }
    // All threads but this one, the tracer, descend from one that is confined first.
    let life = Nonce(u64::from_le_bytes(life));
    let first = std::thread::Builder::new().name("first".to_owned()).spawn(move || {
        confine::threads()?;
        let session = Session::accept(SessionOptions::default())?;
        let (shared, commands) = Shared::new(config, identity, session, life)?;
        serve(&shared, socket)?;
        anyhow::Ok((shared, commands))
    })?;
    let started = first
        .join()
        .map_err(|_| anyhow::anyhow!("the agent's first thread panicked"))?;
    let (shared, commands) = started?;
    AgentReady::Fingerprint(fingerprint.to_string()).write(std::io::stdout())?;
    nest.enter()?;
    let why = Tracer::new(Arc::clone(&shared), nest, commands)?.run()?;
    shared.session.close();
    // The socket's owner waits in accept(2) and ends with the process, without its destructor. An agent with a user of its own may not
    // remove it: the daemon does.
    let _ = std::fs::remove_file(crate::node::paths::agent_socket(&start.state_dir, start.job));
    Ok(why)
}

/// Starts the listening threads.
fn serve(shared: &Arc<Shared>, mut socket: AgentSocket) -> std::io::Result<()> {
    let path = crate::node::paths::agent_socket(&shared.config.state_dir, shared.config.job);
    let hearing = Arc::clone(shared);
    std::thread::Builder::new()
        .name("home".to_owned())
        .spawn(move || home::run(&hearing))?;
    if let Some(bytes) = shared.config.memory {
        let watching = Arc::clone(shared);
        std::thread::Builder::new()
            .name("memory".to_owned())
            .spawn(move || super::memory::watch(&watching, bytes))?;
    }
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
