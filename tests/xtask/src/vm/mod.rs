//! `cargo xtask vm`: small QEMU guests with other kernels and other CPUs, as nodes.
//!
//! ```text
//! manifest ─▶ tools, kernel, initramfs ─▶ qemu ─▶ guest: /init ─▶ busybox init ─▶ exec server, mosixd
//!             (target/vm, made once)       │ tap, forward or multicast (net)        ▲
//!                                          └ virtio-serial, unix sockets ───────────┘ vm exec
//! ```
//!
//! Plain emulation (TCG), because nothing else can be relied on: inside many virtual machines and containers KVM is
//! absent, or present and unable to run a stock kernel. A guest is up in a few seconds all the same.

mod cpio;
mod debs;
mod exec;
mod exec_checks;
mod initramfs;
mod kernel;
mod lab;
mod manifest;
mod moves;
mod net;
mod protocol;
mod qemu;
mod state;
mod tools;
mod units;
mod up;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::count::Count;
use crate::workspace;
use protocol::Request;
use state::Store;

/// Options of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start guests; says what is there if they run already.
    Up(up::Up),
    /// Run a command in a guest, with its stdin, stdout, stderr and exit code.
    Exec(Exec),
    /// End guests and remove what they had.
    Down {
        /// The guests to end; all, if none is given.
        names: Vec<String>,
    },
    /// Run the tests that depend on the kernel inside guests, then move programs between all kernels.
    Test(units::Test),
    /// List the guests.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Exec {
    /// Give the command an empty stdin.
    #[arg(long, short = 'n')]
    no_stdin: bool,
    /// Wait not only for the command but until nobody holds its stdout and stderr any more.
    #[arg(long)]
    to_end: bool,
    /// Set a variable of the command's environment.
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Folder in the guest to run it in.
    #[arg(long, value_name = "DIR")]
    cwd: Option<OsString>,
    /// The guest.
    name: String,
    /// The command.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

/// Runs the verb.
pub fn run(args: Args) -> Result<ExitCode> {
    let cache = cache()?;
    let store = Store::open(&cache)?;
    match args.verb {
        Verb::Up(args) => up::run(&args, &store, &cache).map(|()| ExitCode::SUCCESS),
        Verb::Exec(args) => run_in_guest(args, &store),
        Verb::Test(args) => units::run(&args, &store, &cache),
        Verb::Down { names } => down(&names, &store).map(|()| ExitCode::SUCCESS),
        Verb::Status { json } => status(json, &store).map(|()| ExitCode::SUCCESS),
    }
}

/// What `cargo xtask test` runs of this: all of `vm test`, or a reason why the machine cannot have guests.
pub fn test() -> Result<Result<Count, String>> {
    let cache = cache()?;
    let store = Store::open(&cache)?;
    if let Err(error) = up::fetch(&cache) {
        return Ok(Err(format!("{error:#}")));
    }
    units::measure(&units::Test::default(), &store, &cache).map(Ok)
}

/// Where everything is kept.
fn cache() -> Result<PathBuf> {
    Ok(workspace::target()?.join("vm"))
}

fn run_in_guest(args: Exec, store: &Store) -> Result<ExitCode> {
    let guest = store.running(&args.name)?;
    let env = args.env.iter().map(|pair| {
        let (name, value) = pair
            .split_once('=')
            .with_context(|| format!("--env {pair}: expected NAME=VALUE"))?;
        Ok((name.as_bytes().to_vec(), value.as_bytes().to_vec()))
    });
    let request = Request {
        argv: args.command.into_iter().map(OsString::into_vec).collect(),
        env: env.collect::<Result<_>>()?,
        cwd: args.cwd.map(OsString::into_vec),
        to_end: args.to_end,
    };
    let streams = exec::Streams {
        stdin: if args.no_stdin {
            None
        } else {
            Some(Box::new(io::stdin()))
        },
        out: &mut io::stdout(),
        err: &mut io::stderr(),
    };
    Ok(ExitCode::from(exec::run(
        &store.folder(&guest.name),
        &request,
        streams,
    )?))
}

fn down(names: &[String], store: &Store) -> Result<()> {
    let _lock = store.lock()?;
    let guests = store.guests()?;
    for name in names {
        if !guests.iter().any(|guest| guest.name == *name) {
            println!("there is no guest {name}");
        }
    }
    for guest in guests
        .iter()
        .filter(|guest| names.is_empty() || names.contains(&guest.name))
    {
        let ran = guest.runs();
        store.remove(guest)?;
        println!(
            "{} {}",
            guest.name,
            if ran {
                "is down"
            } else {
                "had ended; what it left is removed"
            }
        );
    }
    if guests.is_empty() {
        println!("no guest is up");
    }
    Ok(())
}

fn status(json: bool, store: &Store) -> Result<()> {
    let guests = store.guests()?;
    if json {
        let list: Vec<_> = guests
            .iter()
            .map(|guest| serde_json::json!({ "guest": guest, "runs": guest.runs() }))
            .collect();
        println!("{}", serde_json::to_string_pretty(&list)?);
        return Ok(());
    }
    if guests.is_empty() {
        println!("no guest is up; `cargo xtask vm up` starts one");
        return Ok(());
    }
    println!(
        "{:<8} {:<9} {:<32} {:<8} {:<16} {:<10} STATE",
        "GUEST", "PID", "KERNEL", "CPU", "ADDRESS", "NETWORK"
    );
    for guest in &guests {
        let pid = guest
            .process
            .map_or_else(|| "-".to_owned(), |process| process.pid.to_string());
        let network = match guest.joined {
            net::Joined::Tap { .. } => "tap",
            net::Joined::Forward { .. } => "forward",
            net::Joined::Multicast { .. } => "multicast",
        };
        let state = if guest.runs() { "runs" } else { "has ended" };
        println!(
            "{:<8} {pid:<9} {:<32} {:<8} {:<16} {network:<10} {state}",
            guest.name, guest.release, guest.cpu, guest.address
        );
    }
    Ok(())
}
