//! Compiles the freestanding stub with rustc directly: it is neither a test nor a library of the workspace.

#![allow(clippy::expect_used, reason = "a build script fails by panicking")]

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let stub = PathBuf::from("stub");
    for file in ["src/main.rs", "src/abi.rs", "link.ld"] {
        println!("cargo::rerun-if-changed={}", stub.join(file).display());
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("stub.elf");
    let script = stub
        .join("link.ld")
        .canonicalize()
        .expect("link.ld is part of the sources");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args([
            "--edition",
            "2024",
            "--crate-name",
            "mosix_stub",
            "--crate-type",
            "bin",
            "-C",
            "panic=abort",
        ])
        .args([
            "-C",
            "opt-level=2",
            "-C",
            "relocation-model=pic",
            "-C",
            "strip=none",
            "-C",
            "debuginfo=0",
        ])
        .args([
            "-C",
            "target-feature=-avx,-avx2",
            "-C",
            "linker-features=-lld",
            "-C",
            "default-linker-libraries=no",
        ])
        .args([
            "-C",
            "link-args=-nostdlib -nostartfiles -static -no-pie -Wl,--build-id=none,-z,norelro,--no-dynamic-linker",
        ])
        .arg("-C")
        .arg(format!("link-arg=-Wl,-T,{}", script.display()))
        .arg("-o")
        .arg(&out)
        .arg(stub.join("src/main.rs"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .expect("rustc runs");
    assert!(status.success(), "the stub did not compile");
}
