//! Documents that must not drift from the code.

use crate::tree::{files, root};
use std::fs;

#[test]
fn links_between_documents_lead_somewhere() {
    let mut bad = vec![];
    for file in files(&[".md"]) {
        let folder = root().join(&file.path).parent().unwrap().to_path_buf();
        for link in file.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            if !folder.join(target).exists() {
                bad.push(format!("{}: {link}", file.path));
            }
        }
    }
    assert!(bad.is_empty(), "dead links: {bad:#?}");
}

#[test]
fn files_named_in_documents_exist() {
    // In backquotes, with a folder and an extension: that is a path of this repository.
    let ends = [".rs", ".md", ".toml", ".c"];
    let mut bad = vec![];
    for file in files(&[".md"]) {
        for word in file.text.split('`').skip(1).step_by(2) {
            let path = word.trim_end_matches('/');
            let named = path.contains('/') && ends.iter().any(|end| path.ends_with(end));
            let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)) && !path.starts_with('/');
            let near = root().join(&file.path).parent().unwrap().join(path);
            if named && plain && !root().join(path).exists() && !near.exists() {
                bad.push(format!("{}: {word}", file.path));
            }
        }
    }
    assert!(bad.is_empty(), "documents name files that are not there: {bad:#?}");
}

#[test]
fn readme_names_every_crate() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = workspace.lines().find(|line| line.starts_with("members")).unwrap();
    for member in members.split('"').skip(1).step_by(2) {
        assert!(
            readme.contains(&format!("`{member}`")),
            "README.md says nothing about the crate `{member}`"
        );
    }
}

#[test]
fn decisions_are_numbered_and_listed() {
    let list = fs::read_to_string(root().join("docs/adr/README.md")).unwrap();
    let mut numbers = vec![];
    for file in files(&[".md"])
        .into_iter()
        .filter(|file| file.path.starts_with("docs/adr/0"))
    {
        let name = file.path.trim_start_matches("docs/adr/");
        assert!(
            list.contains(&format!("]({name})")),
            "docs/adr/README.md does not list {name}"
        );
        for heading in [
            "## Summary",
            "## Motivation",
            "## Design",
            "## Drawbacks",
            "## Prior art",
        ] {
            assert!(file.text.contains(heading), "{name} has no {heading}");
        }
        numbers.push(name[..4].parse::<usize>().unwrap());
    }
    assert_eq!(
        numbers,
        (1..=numbers.len()).collect::<Vec<_>>(),
        "numbers of decisions have a gap or a double"
    );
}

#[test]
fn wire_page_names_every_message() {
    let page = fs::read_to_string(root().join("docs/wire.md")).unwrap();
    let link = fs::read_to_string(root().join("runtime/wire/src/link.rs")).unwrap();
    let mut inside = false;
    for line in link.lines() {
        if line.starts_with("pub enum To") {
            inside = true;
        } else if line.starts_with('}') {
            inside = false;
        }
        let variant = line
            .strip_prefix("    ")
            .filter(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()));
        if let (true, Some(rest)) = (inside, variant) {
            let name: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
            assert!(
                page.contains(&format!("`{name}`")),
                "docs/wire.md does not name the message `{name}`"
            );
        }
    }
}

#[test]
fn the_repository_speaks_of_the_product_alone() {
    // Written in two parts, so that this file does not name what it forbids.
    let words = [concat!("/wo", "rk/"), concat!("/home/", "user")];
    let mut bad = vec![];
    for file in files(&[".rs", ".md", ".toml", ".yml", ".sh", ".c", ".h", "/run"]) {
        for (number, line) in file.text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                bad.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
    }
    assert!(bad.is_empty(), "paths of somebody's machine: {bad:#?}");
}
