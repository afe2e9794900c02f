//! Who may depend on whom.

use crate::tree::{files, rust};

/// Each crate and the crates of this workspace that it may use. Left to right only: launcher, runtime, loader, wire, sys.
const MAY: [(&str, &[&str]); 7] = [
    (
        "launcher",
        &["mosix-runtime", "mosix-loader", "mosix-wire", "mosix-sys"],
    ),
    ("runtime", &["mosix-loader", "mosix-wire", "mosix-sys"]),
    ("loader", &["mosix-sys"]),
    ("runtime/wire", &[]),
    ("runtime/sys", &[]),
    ("tests", &["mosix-runtime"]),
    ("tests/xtask", &["mosix-tests", "mosix-runtime", "mosix-wire"]),
];

#[test]
fn crates_depend_in_one_direction() {
    let mut bad = vec![];
    for manifest in files(&["Cargo.toml"]) {
        let folder = manifest.path.trim_end_matches("Cargo.toml").trim_end_matches('/');
        let Some((_, may)) = MAY.iter().find(|(name, _)| *name == folder) else {
            continue;
        };
        for line in manifest.text.lines() {
            let name = line.split(['.', ' ', '=']).next().unwrap_or("");
            if name.starts_with("mosix-") && !may.contains(&name) {
                bad.push(format!("{folder} uses {name}"));
            }
        }
    }
    assert!(bad.is_empty(), "against the layers: {bad:#?}");
}

#[test]
fn every_crate_has_a_layer() {
    let workspace = files(&["Cargo.toml"])
        .into_iter()
        .find(|file| file.path == "Cargo.toml")
        .unwrap()
        .text;
    let members = workspace.lines().find(|line| line.starts_with("members")).unwrap();
    for member in members.split('"').skip(1).step_by(2) {
        assert!(
            MAY.iter().any(|(name, _)| *name == member),
            "{member} is in no layer: add it to the table"
        );
    }
}

/// Folders without I/O, and what they must not name.
const PURE: [(&str, &[&str]); 2] = [
    (
        "runtime/wire/src/",
        &[
            "std::net",
            "std::fs",
            "std::process",
            "std::thread",
            "std::time::Instant",
            "libc::",
            "nix::",
        ],
    ),
    (
        "runtime/src/contract/",
        &[
            "std::net",
            "std::fs",
            "std::process",
            "std::thread",
            "std::time",
            "nix::",
            "rustix::",
            "mosix_sys",
        ],
    ),
];

#[test]
fn pure_folders_do_no_io() {
    let mut bad = vec![];
    for file in rust() {
        for (_, words) in PURE.iter().filter(|(folder, _)| file.path.starts_with(folder)) {
            for (number, line) in file.code() {
                let named = words.iter().filter(|word| line.contains(*word));
                bad.extend(named.map(|word| format!("{}:{number} names {word}", file.path)));
            }
        }
    }
    assert!(bad.is_empty(), "these folders are pure: {bad:#?}");
}

#[test]
fn the_call_path_has_no_async_runtime() {
    let daemon = ["runtime/src/node/", "runtime/src/bin/", "launcher/src/cli/node"];
    let mut bad = vec![];
    for file in rust()
        .iter()
        .filter(|file| file.is_product() && file.path.starts_with("runtime/"))
    {
        if daemon.iter().any(|folder| file.path.starts_with(folder)) {
            continue;
        }
        let named = file
            .code()
            .filter(|(_, line)| line.contains("tokio::") || line.contains("async fn"));
        bad.extend(named.map(|(number, _)| format!("{}:{number}", file.path)));
    }
    assert!(
        bad.is_empty(),
        "tokio is for the daemon alone, calls go through blocking threads: {bad:#?}"
    );
}
