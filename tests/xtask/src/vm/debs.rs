//! Debian packages, fetched with apt and unpacked into a folder: nothing is installed, upgraded or removed, so neither
//! a privilege nor a conflict with the machine's own packages (QEMU's are quick to demand one) comes into play.

use std::cell::Cell;
use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// apt, used only to look up and to download.
#[derive(Debug)]
pub struct Apt {
    folder: PathBuf,
    refreshed: Cell<bool>,
}

impl Apt {
    /// Uses the machine's package lists, or those that an earlier [`Apt::refresh`] left under `cache`.
    pub fn new(cache: &Path) -> Self {
        Self {
            folder: cache.join("apt"),
            refreshed: Cell::new(false),
        }
    }

    /// Unpacks `package` (`NAME` or `NAME=VERSION`) into `into`; with those packages it needs that this machine lacks,
    /// if `closure` is set. A folder that was finished earlier is left as it is.
    pub fn unpack(&self, package: &str, into: &Path, closure: bool) -> Result<()> {
        if into.join(".complete").exists() {
            return Ok(());
        }
        self.with_fresh_lists(|| self.fetch(package, into, closure))
            .with_context(|| format!("package {package} cannot be had"))
    }

    /// `pinned` if the archives still have it, else the newest package whose name matches `pattern`, as
    /// `NAME=VERSION`.
    pub fn pick(&self, pinned: &str, pattern: &str) -> Result<String> {
        self.with_fresh_lists(|| self.pick_once(pinned, pattern))
    }

    fn pick_once(&self, pinned: &str, pattern: &str) -> Result<String> {
        if self.offers(pinned) {
            return Ok(pinned.to_owned());
        }
        let prefix = pattern.split('*').next().unwrap_or_default();
        let names = text(self.command("apt-cache").args(["pkgnames", prefix]))?;
        let newest = names
            .lines()
            .filter(|name| matches(pattern, name) && self.offers(name))
            .max_by(|left, right| by_number(left, right))
            .with_context(|| {
                format!(
                    "apt knows neither {pinned} nor any {pattern}: add the Debian release (and its security archive) \
                     that has this kernel to apt's sources"
                )
            })?;
        let shown = text(self.command("apt-cache").args(["show", "--no-all-versions", newest]))?;
        let version = shown
            .lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .unwrap_or_default();
        Ok(format!("{newest}={version}"))
    }

    fn fetch(&self, package: &str, into: &Path, closure: bool) -> Result<()> {
        let packages = if closure {
            self.missing(package)?
        } else {
            vec![package.to_owned()]
        };
        let debs = into.with_extension("debs");
        for folder in [into, debs.as_path()] {
            if folder.exists() {
                fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            }
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        workspace::run(
            self.command("apt-get")
                .args(["-qq", "download"])
                .args(&packages)
                .current_dir(&debs),
        )?;
        for deb in fs::read_dir(&debs)? {
            workspace::run(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(into))?;
        }
        fs::remove_dir_all(&debs)?;
        let mark = into.join(".complete");
        fs::write(&mark, packages.join("\n")).with_context(|| format!("cannot write {}", mark.display()))
    }

    fn offers(&self, package: &str) -> bool {
        let shown = self
            .command("apt-cache")
            .args(["show", "--no-all-versions", package])
            .output();
        shown.is_ok_and(|Output { status, stdout, .. }| status.success() && !stdout.is_empty())
    }

    /// `package` and what it needs of what this machine lacks, as `NAME=VERSION`.
    fn missing(&self, package: &str) -> Result<Vec<String>> {
        let words = [
            "install",
            "--print-uris",
            "-qq",
            "--no-install-recommends",
            "-o",
            "Debug::NoLocking=1",
            package,
        ];
        let uris = text(self.command("apt-get").args(words))?;
        let mut packages = Vec::new();
        for line in uris.lines().filter(|line| line.starts_with('\'')) {
            // 'URI' NAME_VERSION_ARCH.deb SIZE HASH
            let file = line.split_whitespace().nth(1).unwrap_or_default();
            let mut parts = file.split('_');
            match (parts.next(), parts.next()) {
                (Some(name), Some(version)) => packages.push(format!("{name}={}", version.replace("%3a", ":"))),
                _ => bail!("apt-get install --print-uris {package}: cannot read {line:?}"),
            }
        }
        if packages.is_empty() {
            bail!("{package} is installed, but its program is not in PATH");
        }
        Ok(packages)
    }

    /// Runs `attempt`; if it fails, fetches the archives' present lists once and tries again: a machine may never have
    /// had any, or such as name versions that are gone.
    fn with_fresh_lists<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        match attempt() {
            Err(_) if !self.refreshed.replace(true) => {
                self.refresh().context("cannot fetch the archives' package lists")?;
                attempt()
            }
            other => other,
        }
    }

    /// Fetches package lists into a folder of our own: the machine's are left alone, and no privilege is needed.
    fn refresh(&self) -> Result<()> {
        eprintln!("vm: fetching the Debian archives' package lists");
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = self.folder.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let folder = self.folder.display();
        let text = format!("Dir::State::lists \"{folder}/lists\";\nDir::Cache \"{folder}/cache\";\n");
        let config = self.folder.join("apt.conf");
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        workspace::run(self.command("apt-get").args(["-qq", "update"]))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let config = self.folder.join("apt.conf");
        if config.exists() {
            command.env("APT_CONFIG", config);
        }
        // The download's own user may not enter our folders; without this apt says so at length and goes on as root.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    }

    /// Path of `program`: the machine's own, or else one unpacked from `package` under `tools`.
    pub fn tool(&self, program: &str, package: &str, tools: &Path) -> Result<Tool> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from));
        if let Some(found) = folders.map(|folder| folder.join(program)).find(|path| path.is_file()) {
            return Ok(Tool {
                program: found,
                root: None,
            });
        }
        let root = tools.join(package);
        self.unpack(package, &root, true)
            .with_context(|| format!("{program} is not on this machine"))?;
        let candidates = ["usr/bin", "bin", "usr/sbin", "sbin"].map(|folder| root.join(folder).join(program));
        match candidates.into_iter().find(|path| path.is_file()) {
            Some(program) => Ok(Tool {
                program,
                root: Some(root),
            }),
            None => bail!("package {package} has no program {program}"),
        }
    }
}

fn text(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {command:?}; is this a Debian?"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {command:?}"))
}

/// Whether `name` fits `pattern`, in which one `*` stands for anything.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, end)) => name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end),
    }
}

/// Orders names like versions: runs of digits count as numbers.
fn by_number(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left, right);
    loop {
        let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (left_digits, right_digits) = (digits(left), digits(right));
        let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
        let order = if left_digits > 0 && right_digits > 0 {
            number(&left[..left_digits]).cmp(&number(&right[..right_digits]))
        } else {
            left.chars().next().cmp(&right.chars().next())
        };
        if order != Ordering::Equal || left.is_empty() {
            return order;
        }
        let step = |text: &str, digits: usize| digits.max(text.chars().next().map_or(0, char::len_utf8));
        left = &left[step(left, left_digits)..];
        right = &right[step(right, right_digits)..];
    }
}

/// A program and, if it was unpacked privately, the folder that stands for its `/`.
#[derive(Debug, Clone)]
pub struct Tool {
    /// The program.
    pub program: PathBuf,
    /// Where its package was unpacked; absent for the machine's own.
    pub root: Option<PathBuf>,
}

impl Tool {
    /// Value for `LD_LIBRARY_PATH`, where the program needs one.
    pub fn library_path(&self) -> Option<String> {
        let root = self.root.as_ref()?.display();
        Some(format!("{root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu"))
    }

    /// A command that runs the program.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(path) = self.library_path() {
            command.env("LD_LIBRARY_PATH", path);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_by_their_numbers() {
        let mut names = ["a-6.12.9-c", "a-6.12.117-c", "a-6.12.63-c", "a-6.1.0-9", "a-6.1.0-56"];
        names.sort_by(|left, right| by_number(left, right));
        assert_eq!(
            names,
            ["a-6.1.0-9", "a-6.1.0-56", "a-6.12.9-c", "a-6.12.63-c", "a-6.12.117-c"]
        );
        assert_eq!(by_number("x1", "x1"), Ordering::Equal);
    }

    #[test]
    fn a_pattern_does_not_take_debug_or_unsigned_packages() {
        let pattern = "linux-image-6.1.*-cloud-amd64";
        assert!(matches(pattern, "linux-image-6.1.0-56-cloud-amd64"));
        assert!(!matches(pattern, "linux-image-6.1.0-56-cloud-amd64-dbg"));
        assert!(!matches(pattern, "linux-image-6.12.1-cloud-amd64"));
        assert!(!matches(pattern, "linux-image-6.1.0-56-amd64"));
    }
}
