//! Rules about source code.

use crate::tree::{File, rust};

/// Folders that may say `unsafe`: the one crate of raw system calls, and the freestanding stub inside a guest.
const UNSAFE: [&str; 2] = ["runtime/sys/", "loader/stub/"];

fn word(line: &str, wanted: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|word| word == wanted)
}

#[test]
fn unsafe_code_lives_in_two_places() {
    let mut bad = vec![];
    for file in rust() {
        if UNSAFE.iter().any(|folder| file.path.starts_with(folder)) || file.path.starts_with("tests/rules/") {
            continue;
        }
        bad.extend(
            file.code()
                .filter(|(_, line)| word(line, "unsafe"))
                .map(|(n, _)| format!("{}:{n}", file.path)),
        );
    }
    assert!(
        bad.is_empty(),
        "`unsafe` outside {UNSAFE:?}; add a safe wrapper to runtime/sys instead: {bad:#?}"
    );
}

#[test]
fn crates_forbid_unsafe_code() {
    let roots = rust().into_iter().filter(|file| {
        let root = ["src/lib.rs", "src/main.rs"].iter().any(|end| file.path.ends_with(end));
        root && !UNSAFE.iter().any(|folder| file.path.starts_with(folder))
    });
    let bad: Vec<String> = roots
        .filter(|file| !file.text.contains("#![forbid(unsafe_code)]"))
        .map(|file| file.path)
        .collect();
    assert!(
        bad.is_empty(),
        "these crates do not say #![forbid(unsafe_code)]: {bad:#?}"
    );
}

/// Words that end a process or promise later work.
const PANICS: [&str; 6] = [
    ".unwrap()",
    ".expect(\"",
    "panic!(",
    "unreachable!(",
    "unimplemented!(",
    "todo!(",
];

/// How many of them the product has. Lower the number with each that goes.
const PANICS_MOST: usize = 1;

#[test]
fn product_code_has_few_panics() {
    let mut found = vec![];
    for file in rust().into_iter().filter(File::is_product) {
        for (number, line) in file.code() {
            let count = PANICS.iter().map(|word| line.matches(word).count()).sum::<usize>();
            found.extend((0..count).map(|_| format!("{}:{number}: {}", file.path, line.trim())));
        }
    }
    assert!(
        found.len() <= PANICS_MOST,
        "{} panics in product code, {PANICS_MOST} are allowed: {found:#?}",
        found.len()
    );
}

#[test]
fn no_notes_to_self() {
    let mut bad = vec![];
    for file in rust().iter().filter(|file| !file.path.starts_with("tests/rules/")) {
        for (number, line) in file.text.lines().enumerate() {
            if word(line, "TODO") || word(line, "FIXME") || word(line, "HACK") || line.contains("(under construction)")
            {
                bad.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
    }
    assert!(bad.is_empty(), "finish it or open an issue: {bad:#?}");
}

/// Lines of a file: more are too many for one thought.
const MOST_LINES: usize = 1000;
/// Half of all files are shorter than this.
const MEDIAN_LINES: usize = 250;

#[test]
fn files_are_short() {
    let mut lengths: Vec<(usize, String)> = rust()
        .into_iter()
        .map(|file| (file.text.lines().count(), file.path))
        .collect();
    lengths.sort();
    let too_long: Vec<_> = lengths.iter().filter(|(lines, _)| *lines > MOST_LINES).collect();
    assert!(too_long.is_empty(), "longer than {MOST_LINES} lines: {too_long:#?}");
    let (median, _) = lengths[lengths.len() / 2];
    assert!(
        median < MEDIAN_LINES,
        "the median file has {median} lines, {MEDIAN_LINES} are too many"
    );
}

#[test]
fn every_file_says_what_it_is() {
    let bad: Vec<String> = rust()
        .into_iter()
        .filter(|file| !file.text.starts_with("//!") && !file.text.starts_with("#!["))
        .map(|file| file.path)
        .collect();
    assert!(bad.is_empty(), "no `//!` docs at the top of: {bad:#?}");
}
