//! Links `mosix` statically and at a fixed address where the machine has what that takes: a start of a program is mostly the start of
//! this binary, whose loader would bind three libraries and relocate half a megabyte of pointers first. See docs/adr, "One static binary".
//!
//! `-C target-feature=+crt-static` would do the same, but only for everything that cargo builds, procedural macros included, which then
//! do not build. So the linker finds, under the names of the shared libraries that rustc asks for, scripts that name the archives.
//! Where an archive is missing nothing is changed, and an ordinary dynamic executable comes out.

#![allow(clippy::expect_used, reason = "a build script fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MOSIX_LINK_DYNAMIC");
    if std::env::var_os("MOSIX_LINK_DYNAMIC").is_some() || !wanted() {
        return;
    }
    let found = ["libc.a", "libm.a", "libgcc.a", "libgcc_eh.a"].map(archive);
    let [Some(c), Some(m), Some(gcc), Some(unwind)] = found else {
        return;
    };
    let folder = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("archives");
    fs::create_dir_all(&folder).expect("the folder for linker scripts can be made");
    let group = [&c, &gcc, &unwind].map(|path| path.display().to_string()).join(" ");
    for (name, members) in [
        ("libc.so", group.clone()),
        ("libgcc_s.so", group),
        ("libm.so", m.display().to_string()),
    ] {
        fs::write(folder.join(name), format!("GROUP({members})\n")).expect("a linker script can be written");
    }
    println!("cargo::rustc-link-search=native={}", folder.display());
    // After rustc's own arguments: the last word counts.
    println!("cargo::rustc-link-arg-bin=mosix=-static");
    println!("cargo::rustc-link-arg-bin=mosix=-no-pie");
}

/// Whether this is a build for the machine itself, with the C library that the scripts are about, and not static already.
fn wanted() -> bool {
    let is = |name: &str, wanted: &str| std::env::var(name).is_ok_and(|value| value == wanted);
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && is("CARGO_CFG_TARGET_ARCH", "x86_64")
        && std::env::var_os("HOST") == std::env::var_os("TARGET")
        && !features.split(',').any(|feature| feature == "crt-static")
}

/// Where the compiler that links has an archive.
fn archive(name: &str) -> Option<PathBuf> {
    let linker = std::env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let output = Command::new(linker)
        .arg(format!("-print-file-name={name}"))
        .output()
        .ok()?;
    // Just the name again when there is none.
    let path = String::from_utf8(output.stdout).ok()?;
    Some(Path::new(path.trim()))
        .filter(|path| path.is_absolute() && path.is_file())
        .map(Path::to_owned)
}
