//! One QEMU per guest: its command line, its start, and the wait until the guest answers.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::debs::Tool;
use super::exec;
use super::net::GuestAddress;
use super::protocol::{PORTS, port_name};
use super::state::{Guest, Process, Store};

/// Files that a guest boots from.
#[derive(Debug)]
pub struct Boot<'a> {
    /// Uncompressed kernel.
    pub vmlinux: &'a Path,
    /// Archives of the root, in order.
    pub archives: &'a [&'a Path],
    /// Files of this guest alone, added last.
    pub own: Archive,
}

/// Starts the QEMU of `guest`, whose folder and network exist. Returns its process; the guest boots on.
pub fn start(guest: &Guest, boot: Boot<'_>, qemu: &Tool, store: &Store) -> Result<Process> {
    let folder = store.folder(&guest.name);
    let root = folder.join("root.cpio");
    let mut file = File::create(&root).with_context(|| format!("cannot create {}", root.display()))?;
    for archive in boot.archives {
        io::copy(
            &mut File::open(archive).with_context(|| archive.display().to_string())?,
            &mut file,
        )
        .with_context(|| format!("cannot write {}", root.display()))?;
    }
    let mut own = boot.own;
    own.file("etc/guest", 0o644, settings(guest).as_bytes())?;
    io::Write::write_all(&mut file, &own.finish()?).with_context(|| format!("cannot write {}", root.display()))?;
    drop(file);

    let mut command = guest.place.command("env");
    // Sockets are named relative to the folder: their whole path may be longer than the 107 bytes an address holds.
    command.current_dir(&folder).stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(path) = qemu.library_path() {
        command.arg(format!("LD_LIBRARY_PATH={path}"));
    }
    if let Some(private) = &qemu.root {
        command.arg(format!(
            "QEMU_MODULE_DIR={}",
            private.join("usr/lib/x86_64-linux-gnu/qemu").display()
        ));
    }
    command.arg(&qemu.program);
    if let Some(private) = &qemu.root {
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(private.join(data));
        }
    }
    command
        .args(["-name", &guest.name, "-accel", "tcg,thread=multi", "-cpu", &guest.cpu])
        .args(["-m", &guest.memory.to_string(), "-smp", &guest.cpus.to_string()])
        .args(["-display", "none", "-no-reboot", "-nodefaults", "-no-user-config"])
        .args(["-daemonize", "-pidfile", "pid", "-serial", "file:serial.log"])
        .arg("-kernel")
        .arg(boot.vmlinux)
        .args([
            "-initrd",
            "root.cpio",
            "-append",
            "console=ttyS0 quiet panic=-1 net.ifnames=0 random.trust_cpu=1",
        ])
        .args(["-netdev", &guest.joined.netdev(), "-device"])
        .arg(format!("virtio-net-pci,netdev=n0,romfile=,mac={}", mac(&guest.name)))
        .args([
            "-object",
            "rng-random,id=r0,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,rng=r0",
        ])
        .args(["-device", "virtio-serial-pci,max_ports=16"]);
    for port in 0..PORTS {
        command.args([
            "-chardev",
            &format!("socket,id=c{port},path=exec.{port},server=on,wait=off"),
            "-device",
        ]);
        command.arg(format!(
            "virtserialport,chardev=c{port},nr={},name={}",
            port + 1,
            port_name(port)
        ));
    }
    let output = command.stderr(Stdio::piped()).output().context("cannot start QEMU")?;
    if !output.status.success() {
        bail!(
            "guest {}: QEMU: {}",
            guest.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let pid = fs::read_to_string(folder.join("pid")).with_context(|| format!("guest {}: QEMU's pid", guest.name))?;
    let pid: i32 = pid
        .trim()
        .parse()
        .with_context(|| format!("guest {}: QEMU's pid {pid:?}", guest.name))?;
    Process::of(pid).with_context(|| format!("guest {}: QEMU, pid {pid}, ended at once", guest.name))
}

/// Waits until the guest answers on its first port; what its console said is in the error.
pub fn wait(guest: &Guest, store: &Store, patience: Duration) -> Result<()> {
    let folder = store.folder(&guest.name);
    let deadline = Instant::now() + patience;
    let answered = exec::hello(&folder, deadline, &|| guest.runs());
    answered.with_context(|| {
        let console = fs::read(folder.join("serial.log")).unwrap_or_default();
        let console = excerpt(&String::from_utf8_lossy(&console));
        let what = if guest.runs() { "does not answer" } else { "has ended" };
        format!("guest {} {what}; its console said:\n{}", guest.name, console)
    })?;
    if !guest.env.is_empty() {
        wait_node(guest, &folder, deadline)?;
    }
    // Unpacked long ago; the kernel has its own copy.
    let _only_space = fs::remove_file(folder.join("root.cpio"));
    Ok(())
}

/// Waits until the guest's mosixd answers; its log is in the error.
fn wait_node(guest: &Guest, folder: &Path, deadline: Instant) -> Result<()> {
    loop {
        let (code, said) = exec::shell(
            folder,
            "mosix node status 2>&1 || { tail /var/log/mosixd.log; false; }",
            None,
        )?;
        if code == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("guest {}: its mosixd does not answer: {}", guest.name, said.trim());
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// The end of a console's output; of a panic what led to it, not the registers after it.
fn excerpt(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    let end = lines
        .iter()
        .position(|line| line.contains("Kernel panic"))
        .map_or(lines.len(), |line| line + 1);
    lines[end.saturating_sub(25)..end].join("\n")
}

/// What `/init` reads.
fn settings(guest: &Guest) -> String {
    let GuestAddress { card, gateway, also } = guest.joined.guest_address(&guest.address);
    let (name, mac) = (&guest.name, mac(&guest.name));
    let mut text = format!("name={name}\nmac={mac}\nip={card}\ngateway={gateway}\nalso={also}\n");
    for (variable, value) in &guest.env {
        text.push_str(&format!("export {variable}='{}'\n", value.replace('\'', "'\\''")));
    }
    text
}

/// A card address of the range for local use, by the guest's name.
fn mac(name: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let [a, b, c, ..] = hasher.finish().to_le_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}
