//! `vm up`: prepare what the guests boot from, join their networks, start them side by side, wait for all.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::debs::Apt;
use super::lab::{Extra, Lab};
use super::manifest::Manifest;
use super::net::{Joined, Place};
use super::state::{Guest, Store};
use super::tools::Tools;
use super::{initramfs, kernel, qemu};

/// Options of `cargo xtask vm up`.
#[derive(Debug, clap::Args)]
pub struct Up {
    /// Kernels, as vm-images/manifest.toml calls them; several are dealt out in turn.
    #[arg(long, value_name = "VERSION", value_delimiter = ',', default_value = "6.12")]
    kernel: Vec<String>,
    /// QEMU's CPU models, dealt out in turn: `max` has AVX2 and XSAVE, `qemu64` has neither.
    #[arg(long, value_name = "MODEL", value_delimiter = ',', default_value = "max")]
    cpu: Vec<String>,
    /// How many guests: v1 to vN.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "name")]
    nodes: u32,
    /// Names of the guests instead.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    name: Vec<String>,
    /// Memory of each guest in MiB.
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// Virtual CPUs of each guest.
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Join this bridge (with a tap device) instead of a multicast group of the guests alone.
    #[arg(long, value_name = "BRIDGE")]
    bridge: Option<String>,
    /// Network namespace of the bridge: a name under /run/netns, a path, or a pid.
    #[arg(long, value_name = "NETNS", requires = "bridge")]
    netns: Option<String>,
    /// Join the switch of this lab as one of its nodes, `mosixd` included; the lab must have the guest as an extra
    /// node: `mosix lab up --extra-node v1=10.77.0.101`.
    #[arg(
        long,
        value_name = "LAB",
        num_args = 0..=1,
        default_missing_value = "lab",
        conflicts_with_all = ["bridge", "netns"]
    )]
    attach_lab: Option<String>,
    /// MOSIX_RUNTIME_DIR under which the lab was made, if not this environment's.
    #[arg(long, value_name = "DIR", hide = true)]
    lab_runtime: Option<PathBuf>,
    /// Copy a file or folder into the guests before they boot.
    #[arg(long, value_name = "FROM=TO")]
    inject: Vec<String>,
    /// Seconds that a guest may take to answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    patience: u64,
}

impl Up {
    /// The options for guests of these names, one per kernel, with the multicast network.
    pub fn of(name: Vec<String>, kernel: Vec<String>, memory: u32) -> Self {
        Self {
            kernel,
            cpu: vec!["max".into()],
            nodes: 1,
            name,
            memory: Some(memory),
            cpus: None,
            bridge: None,
            netns: None,
            attach_lab: None,
            lab_runtime: None,
            inject: Vec::new(),
            patience: 180,
        }
    }

    /// The options for guests that are nodes of `lab`, whose MOSIX_RUNTIME_DIR is `runtime`.
    pub fn in_lab(name: Vec<String>, kernel: Vec<String>, cpu: Vec<String>, lab: &str, runtime: &Path) -> Self {
        let (attach_lab, lab_runtime) = (Some(lab.to_owned()), Some(runtime.to_owned()));
        Self {
            cpu,
            attach_lab,
            lab_runtime,
            memory: None,
            ..Self::of(name, kernel, 0)
        }
    }
}

/// Gets everything of the manifest that comes from a package archive.
pub fn fetch(cache: &Path) -> Result<()> {
    let manifest = Manifest::load()?;
    let apt = Apt::new(cache);
    let tools = Tools::find(&manifest, &apt, cache)?;
    for name in manifest.kernel_names() {
        kernel::prepare(manifest.kernel(&name)?, &manifest, &tools, &apt, cache)?;
    }
    Ok(())
}

/// Starts the guests that do not run yet.
pub fn run(args: &Up, store: &Store, cache: &Path) -> Result<()> {
    let manifest = Manifest::load()?;
    let names: Vec<String> = if args.name.is_empty() {
        (1..=args.nodes).map(|number| format!("v{number}")).collect()
    } else {
        args.name.clone()
    };
    for name in &names {
        check_name(name)?;
    }
    let _lock = store.lock()?;
    let known = store.guests()?;
    let mut wanted = Vec::new();
    for (index, name) in names.iter().enumerate() {
        match known.iter().find(|guest| guest.name == *name) {
            Some(guest) if guest.runs() => {
                println!(
                    "{name} is up already: {} with -cpu {}, {}",
                    guest.release, guest.cpu, guest.address
                );
            }
            Some(guest) => {
                println!("{name} had ended; what it left is removed");
                store.remove(guest)?;
                wanted.push((index, name));
            }
            None => wanted.push((index, name)),
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }

    let apt = Apt::new(cache);
    let tools = Tools::find(&manifest, &apt, cache)?;
    let base = initramfs::base(&manifest, &tools, cache)?;
    let built = initramfs::build(cache)?;
    let lab = args
        .attach_lab
        .as_deref()
        .map(|lab| Lab::find(lab, args.lab_runtime.as_deref(), &built.mosix))
        .transpose()?;
    let mut started = Vec::new();
    for (index, name) in wanted {
        let kernel = manifest.kernel(&args.kernel[index % args.kernel.len()])?;
        let image = kernel::prepare(kernel, &manifest, &tools, &apt, cache)?;
        let taken: Vec<String> = store.guests()?.into_iter().map(|guest| guest.address).collect();
        let extra = lab.as_ref().map(|lab| lab.extra(name)).transpose()?;
        let mut guest = Guest {
            name: name.clone(),
            kernel: kernel.name.clone(),
            release: image.release.clone(),
            cpu: args.cpu[index % args.cpu.len()].clone(),
            memory: args.memory.unwrap_or(manifest.guest.memory),
            cpus: args.cpus.unwrap_or(manifest.guest.cpus),
            address: extra.map_or_else(|| address(name, &taken), |extra| Ok(extra.address.to_string()))?,
            place: Place::default(),
            joined: Joined::multicast(cache),
            env: extra.map(variables).transpose()?.unwrap_or_default(),
            process: None,
        };
        let mut own = own_files(&args.inject)?;
        if let Some(extra) = extra {
            let to = text(&extra.folder)?;
            own.copy(&extra.folder, to, &|_| true)
                .with_context(|| format!("files of the lab's node {name}"))?;
        }
        join(&mut guest, args, lab.as_ref().zip(extra), &built.mosix, store, cache)?;
        let boot = qemu::Boot {
            vmlinux: &image.vmlinux,
            archives: &[&image.modules, &base, &built.archive],
            own,
        };
        let begun = Instant::now();
        match qemu::start(&guest, boot, tools.get("qemu-system-x86_64")?, store) {
            Ok(process) => guest.process = Some(process),
            Err(error) => {
                store.remove(&guest)?;
                return Err(error);
            }
        }
        store.save(&guest)?;
        started.push((guest, begun));
    }
    for (guest, begun) in &started {
        qemu::wait(guest, store, Duration::from_secs(args.patience))?;
        println!(
            "{} is up after {:.1} s: {} with -cpu {}, {}",
            guest.name,
            begun.elapsed().as_secs_f64(),
            guest.release,
            guest.cpu,
            guest.address
        );
    }
    println!("try: cargo xtask vm exec {} -- uname -a", names[0]);
    Ok(())
}

/// Connects the guest's card, and puts the guest on record *before* each attempt, so that `vm down` finds all of it
/// after a crash.
fn join(
    guest: &mut Guest,
    args: &Up,
    lab: Option<(&Lab, &Extra)>,
    mosix: &Path,
    store: &Store,
    cache: &Path,
) -> Result<()> {
    let mut choices = Vec::new();
    if let Some((lab, extra)) = lab {
        guest.place = lab.switch(mosix)?;
        let bridge = lab.bridge()?;
        choices.push(Joined::tap(&guest.name, bridge, cache));
        // Where the tap device is closed to us (an ordinary user's lab), QEMU's own network stack stands in.
        choices.push(Joined::Forward {
            bridge: bridge.to_owned(),
            address: extra.address.to_string(),
            ports: vec![extra.port],
        });
    } else if let Some(bridge) = &args.bridge {
        guest.place = args.netns.as_deref().map(Place::netns).transpose()?.unwrap_or_default();
        choices.push(Joined::tap(&guest.name, bridge, cache));
    } else {
        choices.push(Joined::multicast(cache));
    }
    let mut refused = Vec::new();
    for choice in choices {
        guest.joined = choice;
        store.save(guest)?;
        match guest.joined.join(&guest.place) {
            Ok(()) => return Ok(()),
            Err(error) => {
                guest.joined.leave(&guest.place);
                eprintln!("vm: {}: {error:#}", guest.name);
                refused.push(format!("{error:#}"));
            }
        }
    }
    store.remove(guest)?;
    bail!("guest {} cannot be connected: {}", guest.name, refused.join("; "))
}

/// The environment that makes `mosix` in the guest find its node's files.
fn variables(extra: &Extra) -> Result<Vec<(String, String)>> {
    let all = [
        ("MOSIX_CONFIG", &extra.config),
        ("MOSIX_STATE_DIR", &extra.state_dir),
        ("MOSIX_RUNTIME_DIR", &extra.runtime_dir),
    ];
    all.into_iter()
        .map(|(name, path)| Ok((name.to_owned(), text(path)?.to_owned())))
        .collect()
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{}: not UTF-8", path.display()))
}

fn check_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty()
        || name.len() > 20
        || !name.chars().all(fine)
        || !name.starts_with(|c: char| c.is_ascii_lowercase())
    {
        bail!("{name:?} is no name for a guest: 1 to 20 of a-z, 0-9 and '-', a letter first");
    }
    Ok(())
}

/// `v7` gets 10.77.0.107; another name the first free address from .200 on.
fn address(name: &str, taken: &[String]) -> Result<String> {
    let number = name
        .strip_prefix('v')
        .and_then(|digits| digits.parse::<u8>().ok())
        .filter(|n| (1..100).contains(n));
    let candidates = number.map(|number| 100 + number).into_iter().chain(200..254);
    candidates
        .map(|byte| format!("10.77.0.{byte}"))
        .find(|address| !taken.contains(address))
        .context("no address is left in 10.77.0.0/24")
}

/// The files of `--inject`.
fn own_files(inject: &[String]) -> Result<Archive> {
    let mut archive = Archive::default();
    for pair in inject {
        let (from, to) = pair
            .split_once('=')
            .with_context(|| format!("--inject {pair}: expected FROM=TO"))?;
        archive
            .copy(&PathBuf::from(from), to, &|_| true)
            .with_context(|| format!("--inject {pair}"))?;
    }
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_the_names_and_stay_apart() {
        assert_eq!(address("v7", &[]).unwrap(), "10.77.0.107");
        assert_eq!(address("v7", &["10.77.0.107".into()]).unwrap(), "10.77.0.200");
        assert_eq!(address("old", &["10.77.0.200".into()]).unwrap(), "10.77.0.201");
        assert_eq!(address("v300", &[]).unwrap(), "10.77.0.200");
    }

    #[test]
    fn names_that_are_no_folder_are_refused() {
        for bad in ["", "..", "a/b", "V1", "1", "x,y"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        check_name("v1").unwrap();
    }
}
