//! The files of the repository.

use std::fs;
use std::path::{Path, PathBuf};

/// The repository's top folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A text file.
pub struct File {
    /// Path from the top folder.
    pub path: String,
    pub text: String,
}

/// All files whose name ends so, sorted; build output and hidden folders left out, except those of the project itself.
pub fn files(ends: &[&str]) -> Vec<File> {
    let mut found = vec![];
    walk(&root(), &mut found);
    let root = root();
    let mut files: Vec<File> = found
        .into_iter()
        .filter(|path| ends.iter().any(|end| path.to_string_lossy().ends_with(end)))
        .filter_map(|path| {
            let text = fs::read_to_string(&path).ok()?;
            let path = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            Some(File { path, text })
        })
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.len() > 2, "found almost no {ends:?}");
    files
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let hidden = name.starts_with('.') && !matches!(&*name, ".ci" | ".config" | ".github" | ".cargo");
        if hidden || name == "target" {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Rust source of the product and its tests.
pub fn rust() -> Vec<File> {
    files(&[".rs"])
}

impl File {
    /// True for code that runs in the product: no test, no developer's tool.
    pub fn is_product(&self) -> bool {
        let test =
            self.path.ends_with("tests.rs") || self.path.split('/').any(|part| matches!(part, "tests" | "benches"));
        !test && !self.path.ends_with("build.rs")
    }

    /// The lines before the file's inline tests, without comments.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines: Vec<&str> = self.text.lines().collect();
        // `#[cfg(test)]`, perhaps more attributes, `mod tests {`: from there on it is a test.
        let inline = |at: &usize| {
            let mut rest = lines[at + 1..]
                .iter()
                .map(|line| line.trim())
                .skip_while(|line| line.starts_with("#["));
            lines[*at].trim() == "#[cfg(test)]"
                && rest
                    .next()
                    .is_some_and(|line| line.contains("mod ") && line.ends_with('{'))
        };
        let end = (0..lines.len()).find(inline).unwrap_or(lines.len());
        lines
            .into_iter()
            .take(end)
            .enumerate()
            .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or("")))
    }
}
