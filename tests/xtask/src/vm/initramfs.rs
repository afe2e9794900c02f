//! What a guest finds as its root: busybox, a few real programs of this machine, `mosix`, and its own configuration.
//!
//! Three archives that the kernel unpacks one after the other: the base (made once per manifest), the programs just
//! built, and the few files of one guest.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::manifest::Manifest;
use super::tools::Tools;
use crate::workspace;

/// First program of a guest.
const INIT: &str = "vm-images/qemu/init";
/// What busybox init keeps running.
const INITTAB: &str = "vm-images/qemu/inittab";
/// Starts mosixd in guests that have a configuration.
const NODE: &str = "vm-images/qemu/node";

/// The base archive under `cache`; made anew when anything in it has changed.
pub fn base(manifest: &Manifest, tools: &Tools, cache: &Path) -> Result<PathBuf> {
    let root = workspace::root()?;
    let (init, inittab, node) = (root.join(INIT), root.join(INITTAB), root.join(NODE));
    let mut hasher = DefaultHasher::new();
    let programs = manifest.guest.programs.iter().chain(&manifest.guest.optional);
    let sources = programs.map(PathBuf::from).chain([
        init.clone(),
        inittab.clone(),
        node.clone(),
        root.join("vm-images/manifest.toml"),
        tools.busybox().to_owned(),
        std::env::current_exe().unwrap_or_default(),
    ]);
    for path in sources {
        let meta = fs::metadata(&path).ok();
        let time = meta
            .as_ref()
            .and_then(|meta| meta.modified().ok())
            .unwrap_or(SystemTime::UNIX_EPOCH);
        (path, time, meta.map(|meta| meta.len())).hash(&mut hasher);
    }
    let path = cache.join(format!("base-{:016x}.cpio", hasher.finish()));
    if path.exists() {
        return Ok(path);
    }
    eprintln!("vm: making the guests' base archive");
    let mut archive = Archive::default();
    for folder in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "proc",
        "sys",
        "dev",
        "mnt",
        "tmp",
        "run",
        "root",
        "var/log",
    ] {
        archive.dir(folder)?;
    }
    for folder in ["bin", "sbin", "lib", "lib64"] {
        archive.link(folder, &format!("usr/{folder}"))?;
    }
    // The kernel opens it before /init can mount anything.
    archive.device("dev/console", 0o600, (5, 1))?;
    for (path, mode, from) in [
        ("init", 0o755, init),
        ("etc/inittab", 0o644, inittab),
        ("usr/sbin/node", 0o755, node),
    ] {
        let text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        archive.file(path, mode, &text)?;
    }
    archive.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n",
    )?;
    archive.file("etc/group", 0o644, b"root:x:0:\nuser:x:1000:\n")?;
    for program in &manifest.guest.programs {
        add_program(&mut archive, Path::new(program), manifest).with_context(|| format!("guest program {program}"))?;
    }
    for program in manifest
        .guest
        .optional
        .iter()
        .map(Path::new)
        .filter(|path| path.exists())
    {
        add_program(&mut archive, program, manifest)?;
    }
    archive.file("usr/bin/busybox", 0o755, &fs::read(tools.busybox())?)?;
    let applets = Command::new(tools.busybox())
        .arg("--list")
        .output()
        .context("busybox --list")?;
    for applet in String::from_utf8_lossy(&applets.stdout)
        .lines()
        .filter(|applet| !applet.is_empty())
    {
        let path = format!("usr/bin/{applet}");
        if !archive.has(&path) {
            archive.link(&path, "busybox")?;
        }
    }
    for old in fs::read_dir(cache)?.filter_map(Result::ok) {
        if old.file_name().to_string_lossy().starts_with("base-") {
            fs::remove_file(old.path())?;
        }
    }
    let beside = path.with_extension("new");
    fs::write(&beside, archive.finish()?).with_context(|| format!("cannot write {}", beside.display()))?;
    fs::rename(&beside, &path)?;
    Ok(path)
}

/// Adds `program` at its own path, with links on the way to it, the libraries it loads, and Python's library.
fn add_program(archive: &mut Archive, program: &Path, manifest: &Manifest) -> Result<()> {
    let real = fs::canonicalize(program).with_context(|| format!("{} is not on this machine", program.display()))?;
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    archive.copy(&real, &in_guest(&real)?, &|_| true)?;
    if name(&real) != name(program) && !archive.has(&in_guest(program)?) {
        archive.link(&in_guest(program)?, &name(&real))?;
    }
    add_libraries(archive, &real)?;
    if name(&real).starts_with("python3.") {
        let library = Path::new("/usr/lib").join(name(&real));
        let without: BTreeSet<&str> = manifest.guest.python_without.iter().map(String::as_str).collect();
        archive.copy(&library, &in_guest(&library)?, &|path| {
            let name = name(path);
            // "config-…" has the static library for embedding; site hooks of the distribution are of no use here.
            !without.contains(name.as_str()) && !name.starts_with("config-") && name != "sitecustomize.py"
        })?;
        for module in fs::read_dir(library.join("lib-dynload"))? {
            add_libraries(archive, &module?.path())?;
        }
    }
    Ok(())
}

/// Adds what `ldd` says that `object` loads.
fn add_libraries(archive: &mut Archive, object: &Path) -> Result<()> {
    let output = Command::new("ldd").arg(object).output().context("cannot start ldd")?;
    // A static program: nothing to add.
    if !output.status.success() {
        return Ok(());
    }
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if line.contains("not found") {
            bail!("{}: {}", object.display(), line.trim());
        }
        let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) else {
            continue;
        };
        let library = Path::new(library);
        if !archive.has(&in_guest(library)?) {
            let real = fs::canonicalize(library).with_context(|| library.display().to_string())?;
            archive.copy(&real, &in_guest(library)?, &|_| true)?;
        }
    }
    Ok(())
}

/// Where `path` goes in the guest, whose `/lib` and `/bin` are links into `/usr` even if this machine's are not.
fn in_guest(path: &Path) -> Result<String> {
    let folder = path
        .parent()
        .with_context(|| format!("{} has no folder", path.display()))?;
    let folder = fs::canonicalize(folder).with_context(|| folder.display().to_string())?;
    let path = folder.join(path.file_name().unwrap_or_default());
    let text = path
        .to_str()
        .with_context(|| format!("{}: not UTF-8", path.display()))?;
    Ok(if text.starts_with("/usr/") {
        text.to_owned()
    } else {
        format!("/usr{text}")
    })
}

/// What [`build`] made.
#[derive(Debug)]
pub struct Built {
    /// The static `mosix`, which runs on this machine as well.
    pub mosix: PathBuf,
    /// Archive with it and the exec server.
    pub archive: PathBuf,
}

/// Builds the static `mosix` and the exec server, and packs them.
pub fn build(cache: &Path) -> Result<Built> {
    let target = cache.join("build");
    let mut cargo = workspace::cargo()?;
    cargo.args([
        "build",
        "--quiet",
        "--profile",
        "guest",
        "--target",
        "x86_64-unknown-linux-gnu",
    ]);
    cargo.args([
        "--package",
        "mosix",
        "--package",
        "xtask",
        "--bin",
        "mosix",
        "--bin",
        "vm-guest",
    ]);
    cargo
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    workspace::run(&mut cargo).context("building the guests' programs")?;
    let built = target.join("x86_64-unknown-linux-gnu/guest");
    let mut archive = Archive::default();
    archive.copy(&built.join("mosix"), "usr/bin/mosix", &|_| true)?;
    archive.copy(&built.join("vm-guest"), "usr/sbin/vm-guest", &|_| true)?;
    let path = cache.join("build.cpio");
    let beside = path.with_extension("new");
    fs::write(&beside, archive.finish()?).with_context(|| format!("cannot write {}", beside.display()))?;
    fs::rename(&beside, &path)?;
    Ok(Built {
        mosix: built.join("mosix"),
        archive: path,
    })
}
