//! A kernel package made bootable: the uncompressed `vmlinux`, which QEMU starts faster than the packed image (the
//! guest need not unpack itself under emulation), and the modules of the manifest in the order of their loading.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::debs::{self, Apt};
use super::manifest::{Kernel, Manifest};
use super::tools::Tools;

/// A kernel ready to boot.
#[derive(Debug)]
pub struct Image {
    /// `uname -r`.
    pub release: String,
    /// Uncompressed ELF image.
    pub vmlinux: PathBuf,
    /// Archive with the modules and the list that `/init` loads.
    pub modules: PathBuf,
}

/// Fetches and prepares `kernel` under `cache`; what is there already is used.
pub fn prepare(kernel: &Kernel, manifest: &Manifest, tools: &Tools, apt: &Apt, cache: &Path) -> Result<Image> {
    let unpacked = match cached(kernel, cache)? {
        Some(folder) => folder,
        None => {
            let package = apt.pick(&kernel.pinned, &kernel.package)?;
            eprintln!("vm: fetching {package}");
            let folder = cache.join("kernels").join(&package);
            apt.unpack(&package, &folder, false)?;
            folder
        }
    };
    let boot = unpacked.join("boot");
    let packed = fs::read_dir(&boot)
        .with_context(|| format!("cannot list {}", boot.display()))?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"))
        .with_context(|| format!("{} has no vmlinuz", boot.display()))?;
    let release = packed
        .file_name()
        .to_string_lossy()
        .trim_start_matches("vmlinuz-")
        .to_owned();
    let vmlinux = unpacked.join("vmlinux");
    if !vmlinux.exists() {
        let image = fs::read(packed.path())?;
        let elf = unpack_image(&image, tools).with_context(|| packed.path().display().to_string())?;
        replace(&vmlinux, &elf)?;
    }
    let modules = unpacked.join("modules.cpio");
    let wanted = manifest.guest.modules.join(" ");
    let wanted_file = unpacked.join("modules.wanted");
    if !modules.exists() || fs::read_to_string(&wanted_file).ok().as_deref() != Some(&wanted) {
        let tree = ["lib/modules", "usr/lib/modules"]
            .map(|folder| unpacked.join(folder).join(&release))
            .into_iter()
            .find(|folder| folder.is_dir())
            .with_context(|| format!("{} has no modules of {release}", unpacked.display()))?;
        replace(&modules, &module_archive(&tree, &manifest.guest.modules, tools)?)?;
        replace(&wanted_file, wanted.as_bytes())?;
    }
    Ok(Image {
        release,
        vmlinux,
        modules,
    })
}

/// The folder of this kernel unpacked earlier: the pinned version, or what the pattern gave.
fn cached(kernel: &Kernel, cache: &Path) -> Result<Option<PathBuf>> {
    let pinned = cache.join("kernels").join(&kernel.pinned);
    if pinned.join(".complete").exists() {
        return Ok(Some(pinned));
    }
    let kernels = cache.join("kernels");
    if !kernels.is_dir() {
        return Ok(None);
    }
    for entry in fs::read_dir(&kernels)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let package = name.split('=').next().unwrap_or_default();
        if debs::matches(&kernel.package, package) && entry.path().join(".complete").exists() {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Writes beside and renames, so that an interrupted run leaves no half file.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, bytes).with_context(|| format!("cannot write {}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Takes the ELF kernel out of a bzImage, by the fields `payload_offset` and `payload_length` of its header
/// ([Documentation/arch/x86/boot.rst](https://docs.kernel.org/arch/x86/boot.html)).
fn unpack_image(image: &[u8], tools: &Tools) -> Result<Vec<u8>> {
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("shorter than a boot header")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("not a bzImage");
    }
    let sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    let payload = image
        .get(start..start + word(0x24c)?)
        .context("payload beyond the end of the file")?;
    // The build appends the unpacked size to every format but gzip, which has it inside: the same four bytes.
    let (packed, size) = payload.split_last_chunk::<4>().context("empty payload")?;
    let program = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0x1f, 0x8b, ..] => bail!("packed with gzip, which no kernel of the manifest is"),
        _ => bail!("packed in an unknown way: {:02x?}", &payload[..payload.len().min(4)]),
    };
    let elf = filter(tools, program, packed)?;
    if elf.len() != u32::from_le_bytes(*size) as usize || !elf.starts_with(b"\x7fELF") {
        bail!("{program} gave {} bytes that are not the kernel", elf.len());
    }
    Ok(elf)
}

/// Pipes `bytes` through `program -dc`.
fn filter(tools: &Tools, program: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut command = tools.get(program)?.command();
    let mut child = command
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(bytes));
        let output = child.wait_with_output()?;
        let written = writer.join().map_err(|_| anyhow::anyhow!("writer ended early"))?;
        if !output.status.success() {
            bail!("{program} -dc failed: {}", output.status);
        }
        written.with_context(|| format!("writing to {program}"))?;
        Ok(output.stdout)
    })
}

/// Archive with `/lib/modules/boot/NN-NAME.ko`, numbered so that a module comes after those it depends on.
fn module_archive(tree: &Path, wanted: &[String], tools: &Tools) -> Result<Vec<u8>> {
    let mut files = BTreeMap::new();
    collect(&tree.join("kernel"), &mut files)?;
    let built_in: BTreeSet<String> = fs::read_to_string(tree.join("modules.builtin"))
        .with_context(|| format!("{}: modules.builtin", tree.display()))?
        .lines()
        .map(|line| plain_name(Path::new(line)))
        .collect();
    let mut order: Vec<(String, Vec<u8>)> = Vec::new();
    for name in wanted {
        add(name, &files, &built_in, tools, &mut order, 0)?;
    }
    let mut archive = Archive::default();
    archive.dir("usr/lib/modules/boot")?;
    for (number, (name, bytes)) in order.iter().enumerate() {
        archive.file(&format!("usr/lib/modules/boot/{number:02}-{name}.ko"), 0o644, bytes)?;
    }
    archive.finish()
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    built_in: &BTreeSet<String>,
    tools: &Tools,
    order: &mut Vec<(String, Vec<u8>)>,
    depth: u32,
) -> Result<()> {
    if built_in.contains(name) || order.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    if depth > 20 {
        bail!("module {name}: dependencies in a circle");
    }
    let path = files
        .get(name)
        .with_context(|| format!("this kernel has no module {name}"))?;
    let mut bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if path.extension().is_some_and(|ext| ext == "xz") {
        bytes = filter(tools, "xz", &bytes)?;
    }
    for below in depends(&bytes) {
        add(&below, files, built_in, tools, order, depth + 1)?;
    }
    order.push((name.to_owned(), bytes));
    Ok(())
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.insert(plain_name(&path), path);
        }
    }
    Ok(())
}

/// `a/b-c.ko.xz` is the module `b_c`.
fn plain_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

/// The line `depends=` of a module's `.modinfo` section. Found by its text: the section is a list of C strings.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let value = module[at + key.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_strings_of_a_module() {
        assert_eq!(
            depends(b"x\0license=GPL\0depends=net_failover,a-b\0retpoline=Y\0"),
            ["net_failover", "a_b"]
        );
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"nothing").is_empty());
    }

    #[test]
    fn names_of_module_files() {
        assert_eq!(
            plain_name(Path::new("kernel/drivers/char/hw_random/virtio-rng.ko.xz")),
            "virtio_rng"
        );
    }
}
