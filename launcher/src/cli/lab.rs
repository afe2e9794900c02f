//! `mosix lab`: a cluster on one machine.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use mosix_runtime::lab::up::{Raised, up};
use mosix_runtime::lab::{LabError, LabFolder, LabNode, LabSpec, Rate, down, enter, folder, keeper, nodes, status};
use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

/// A cluster on one machine: nodes n1, n2, … in network namespaces, each with its own mosixd.
#[derive(Args, Debug)]
pub struct LabArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Bring a lab up, or say what is there.
    Up(Up),
    /// Run a command as on a node, with its `mosix`.
    ///
    /// The command has the node's network and MOSIX_STATE_DIR, MOSIX_RUNTIME_DIR and MOSIX_CONFIG, and `mosix` in its
    /// PATH; stdin, terminal, exit status and signals are as if it had been started directly. NODE `switch` is where the
    /// nodes' cables meet: a VM joins the lab by a tap there, for example
    /// `mosix lab exec switch -- sh -c 'ip tuntap add t1 mode tap; ip link set t1 master br0 up'`.
    Exec(Exec),
    /// Say what there is of a lab.
    Status(Status),
    /// End a lab: its daemons, the programs in it, its namespaces and its folder.
    Down(Name),
    /// Stop the mosixd of a node as a service manager would; `mosix lab up` starts it again.
    Stop(OnNode),
    /// Start the mosixd of a node again.
    Start(OnNode),
    /// Hold a lab's namespaces (started by `up`).
    #[command(hide = true)]
    Keep(Keep),
    /// Become the mosixd of a node (started by `up`).
    #[command(hide = true)]
    Daemon(OnNode),
}

#[derive(Args, Debug)]
struct Name {
    /// Name of the lab.
    #[arg(long, value_name = "LAB", default_value = "lab", env = "MOSIX_LAB")]
    name: String,
}

#[derive(Args, Debug)]
struct Up {
    #[command(flatten)]
    lab: Name,
    /// How many nodes; 1 to 99 [default: 3, or as many as are up].
    #[arg(long, short, value_name = "N")]
    nodes: Option<u32>,
    /// Speed of each node's cable, for example 1gbit or 100mbit.
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,
    /// A node that runs elsewhere (a VM) and joins the lab's bridge with this address (10.77.0.100 to .253); its key
    /// bundle is written to the lab's folder. May be given several times.
    #[arg(long, value_name = "NAME=ADDRESS")]
    extra_node: Vec<LabNode>,
    /// Make the nodes without starting their mosixd.
    #[arg(long)]
    no_daemons: bool,
    /// Take the lab down when this process ends.
    #[arg(long, value_name = "PID")]
    owner: Option<i32>,
}

#[derive(Args, Debug)]
struct Exec {
    #[command(flatten)]
    lab: Name,
    /// The node: n1, n2, … or switch.
    node: String,
    /// The command and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

#[derive(Args, Debug)]
struct Status {
    #[command(flatten)]
    lab: Name,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct OnNode {
    #[command(flatten)]
    lab: Name,
    /// The node: n1, n2, …
    node: String,
}

#[derive(Args, Debug)]
struct Keep {
    #[command(flatten)]
    lab: Name,
    #[arg(long)]
    owner: Option<i32>,
}

/// Runs the verb. `exec` only returns when the command could not be run.
pub fn run(args: LabArgs) -> anyhow::Result<ExitCode> {
    match args.verb {
        Verb::Up(args) => raise(args),
        Verb::Exec(args) => exec(&args),
        Verb::Status(args) => show(&LabFolder::of(&args.lab.name)?, args.json),
        Verb::Down(args) => lower(&args.name),
        Verb::Stop(args) => stop(&args),
        Verb::Start(args) => start(&args),
        Verb::Keep(args) => {
            keeper::run(&LabFolder::of(&args.lab.name)?, args.owner)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Daemon(args) => {
            let error = nodes::become_daemon(&LabFolder::of(&args.lab.name)?, &args.node)?;
            Err(error).context("cannot run mosixd")
        }
    }
}

fn raise(args: Up) -> anyhow::Result<ExitCode> {
    let folder = LabFolder::of(&args.lab.name)?;
    let there = folder.read_spec().ok();
    // A bare second `up` asks for what is there.
    if let (Some(there), None, None, true) = (&there, args.nodes, args.rate, args.extra_node.is_empty())
        && up_again(&folder, there)?
    {
        return Ok(ExitCode::SUCCESS);
    }
    let mut spec = LabSpec::new(&args.lab.name, args.nodes.unwrap_or(3), args.rate, args.extra_node)?;
    spec.daemons = !args.no_daemons;
    say(&folder, &spec, up(&folder, &spec, args.owner)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Brings up the lab that is there as it is; false when it is not up.
fn up_again(folder: &LabFolder, there: &LabSpec) -> anyhow::Result<bool> {
    if !status::status(folder)?.up {
        return Ok(false);
    }
    say(folder, there, up(folder, there, None)?)?;
    Ok(true)
}

fn say(folder: &LabFolder, spec: &LabSpec, raised: Raised) -> anyhow::Result<()> {
    match raised {
        Raised::New { cleaned } => {
            if cleaned {
                println!("removed what a crashed lab {:?} had left", spec.name);
            }
            println!("lab {:?} is up: {}", spec.name, spec.shape());
        }
        Raised::There { restarted } => {
            println!("lab {:?} is already up: {}", spec.name, spec.shape());
            for node in restarted {
                println!("mosixd of {node} had ended and was started again");
            }
        }
    }
    show(folder, false)?;
    let option = if spec.name == "lab" {
        String::new()
    } else {
        format!(" --name {}", spec.name)
    };
    println!("try: mosix lab exec{option} n1 -- mosix ps");
    Ok(())
}

fn exec(args: &Exec) -> anyhow::Result<ExitCode> {
    let folder = LabFolder::of(&args.lab.name)?;
    let (program, rest) = args.command.split_first().context("no command")?;
    // 125 to 127 as env(1) has them, so that the command's own codes stay apart.
    let (code, error) = match enter::become_program(&folder, &args.node, program, rest) {
        Ok(error) if error.kind() == io::ErrorKind::NotFound => (127, anyhow::Error::from(error)),
        Ok(error) => (126, error.into()),
        Err(error) => {
            eprintln!("mosix lab exec: {:#}", anyhow::Error::from(error));
            return Ok(ExitCode::from(125));
        }
    };
    eprintln!("mosix lab exec: cannot run {}: {error:#}", program.display());
    Ok(ExitCode::from(code))
}

fn show(folder: &LabFolder, json: bool) -> anyhow::Result<ExitCode> {
    let status = match status::status(folder) {
        Err(LabError::NoLab { .. }) if !json => return none(folder),
        other => other?,
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
        return Ok(ExitCode::SUCCESS);
    }
    if !status.up {
        println!(
            "lab {:?} has crashed: `mosix lab up` starts it anew, `mosix lab down` removes what is left",
            status.name
        );
        return Ok(ExitCode::FAILURE);
    }
    println!("{:<8} {:<16} {:>8}  MOSIXD", "NODE", "ADDRESS", "PID");
    for node in &status.nodes {
        let (pid, state) = match (node.pid, node.answers) {
            (Some(pid), true) => (pid.to_string(), "answers"),
            (Some(pid), false) => (pid.to_string(), "does not answer yet"),
            (None, _) => ("-".to_owned(), "not running"),
        };
        println!("{:<8} {:<16} {pid:>8}  {state}", node.name, node.address);
    }
    for node in &status.extra {
        println!(
            "{:<8} {:<16} {:>8}  elsewhere, keys in {}",
            node.name,
            node.address,
            "-",
            node.folder.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn none(folder: &LabFolder) -> anyhow::Result<ExitCode> {
    let others = folder::labs()?;
    println!(
        "there is no lab {:?}; `mosix lab up --nodes 3` makes one",
        folder.name()
    );
    if !others.is_empty() {
        println!("labs here: {}", others.join(", "));
    }
    Ok(ExitCode::FAILURE)
}

fn lower(name: &str) -> anyhow::Result<ExitCode> {
    let ended = down::down(&LabFolder::of(name)?)?;
    if !ended.existed {
        println!("there is no lab {name:?}");
        return Ok(ExitCode::SUCCESS);
    }
    let plural = if ended.processes == 1 { "" } else { "es" };
    print!("lab {name:?} is down: {} process{plural} ended", ended.processes);
    match ended.killed {
        0 => println!(),
        killed => println!(", {killed} of them killed"),
    }
    Ok(ExitCode::SUCCESS)
}

fn stop(args: &OnNode) -> anyhow::Result<ExitCode> {
    let folder = LabFolder::of(&args.lab.name)?;
    folder.read_spec()?.node(&args.node)?;
    if nodes::stop(&folder, &args.node)? {
        println!("mosixd of {} has ended", args.node);
    } else {
        println!("mosixd of {} was not running", args.node);
    }
    Ok(ExitCode::SUCCESS)
}

fn start(args: &OnNode) -> anyhow::Result<ExitCode> {
    let folder = LabFolder::of(&args.lab.name)?;
    folder.read_spec()?.node(&args.node)?;
    if let Some(record) = nodes::daemon(&folder, &args.node) {
        println!("mosixd of {} already runs, pid {}", args.node, record.pid);
    } else {
        nodes::start(&folder, &args.node)?;
        println!("mosixd of {} runs", args.node);
    }
    Ok(ExitCode::SUCCESS)
}
