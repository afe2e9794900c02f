//! Executing the job's program as a shell's `exec` would, and saying why it could not be.
//!
//! The search and its error rules are execvp(3)'s: a name without `/` is looked up in PATH, candidates that are missing or
//! forbidden are passed over, a text file without `#!` goes to /bin/sh. Exit codes are those of bash and env(1): 127 when something
//! is not there, 126 when it is there and cannot be run.

use nix::errno::Errno;
use nix::unistd::execve;
use serde::{Deserialize, Serialize};
use std::ffi::{CString, OsStr};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A program that could not be executed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExecFailure {
    /// 126 or 127.
    pub code: u8,
    /// One line for the user.
    pub line: String,
}

/// There and cannot be run.
const CANNOT_RUN: u8 = 126;
/// Not there.
const NOT_FOUND: u8 = 127;

/// What execvp(3) uses when PATH is not set.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";

/// How much of a file is looked at for its kind: bash looks at 80 bytes, the kernel at 256; program headers fit in a page.
const HEAD: usize = 4096;

/// Replaces this process by the program `arguments[0]`; returns only when that failed. `environment` is what the program gets;
/// `path` the PATH to search.
pub fn exec(arguments: &[CString], environment: &[CString], path: Option<&[u8]>) -> ExecFailure {
    let Some(name) = arguments.first() else {
        return ExecFailure {
            code: NOT_FOUND,
            line: "no program given".into(),
        };
    };
    let mut refused = None;
    let mut missing_part = None;
    for candidate in candidates(name.as_bytes(), path.unwrap_or(DEFAULT_PATH)) {
        let Ok(file) = CString::new(candidate) else { continue };
        let errno = match execve(&file, arguments, environment) {
            Err(e) => e,
            Ok(never) => match never {},
        };
        match errno {
            // The file may be there and what it names as its interpreter may not.
            Errno::ENOENT => missing_part = missing_part.or_else(|| missing_interpreter(&file)),
            Errno::ENOTDIR if !name.as_bytes().contains(&b'/') => {}
            // A folder of PATH that this user may not look into says nothing about the program.
            Errno::EACCES if !name.as_bytes().contains(&b'/') && std::fs::metadata(os(&file)).is_err() => {}
            Errno::EACCES => refused = refused.or(Some((file, errno))),
            Errno::ENOEXEC => return script_or_binary(&file, arguments, environment),
            Errno::ELOOP | Errno::ENAMETOOLONG | Errno::ESTALE | Errno::ENODEV | Errno::ETIMEDOUT => {
                refused = refused.or(Some((file, errno)));
            }
            _ => return failure(CANNOT_RUN, &file, describe(&file, errno)),
        }
    }
    if let Some((file, errno)) = refused {
        return failure(CANNOT_RUN, &file, describe(&file, errno));
    }
    if let Some((file, what)) = missing_part {
        return failure(NOT_FOUND, &file, what);
    }
    let what = if name.as_bytes().contains(&b'/') {
        "no such file"
    } else {
        "not found in PATH"
    };
    failure(NOT_FOUND, name, what.to_owned())
}

/// Files to try for `name`, in order.
fn candidates(name: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    if name.is_empty() {
        return Vec::new();
    }
    path.split(|&b| b == b':')
        .map(|folder| {
            if folder.is_empty() {
                [b"./", name].concat()
            } else {
                [folder, b"/", name].concat()
            }
        })
        .collect()
}

/// The kernel knows no format for `file`: a text is given to /bin/sh, anything else is no program.
fn script_or_binary(file: &CString, arguments: &[CString], environment: &[CString]) -> ExecFailure {
    let head = head(file);
    let first_line = head.split(|&b| b == b'\n').next().unwrap_or(&head);
    if head.starts_with(b"\x7fELF") || first_line.contains(&0) {
        return failure(CANNOT_RUN, file, bad_binary(&head));
    }
    let shell = c"/bin/sh";
    let mut words = vec![shell.to_owned(), file.clone()];
    words.extend_from_slice(arguments.get(1..).unwrap_or_default());
    match execve(shell, &words, environment) {
        Err(e) => failure(
            CANNOT_RUN,
            file,
            format!("it has no #! line and /bin/sh could not be run: {}", e.desc()),
        ),
        Ok(never) => match never {},
    }
}

fn failure(code: u8, file: &CString, what: String) -> ExecFailure {
    ExecFailure {
        code,
        line: format!("cannot run '{}': {what}", file.to_string_lossy()),
    }
}

fn os(file: &CString) -> &Path {
    Path::new(OsStr::from_bytes(file.as_bytes()))
}

fn head(file: &CString) -> Vec<u8> {
    let mut head = Vec::new();
    if let Ok(f) = std::fs::File::open(os(file)) {
        let _ = f.take(HEAD as u64).read_to_end(&mut head);
    }
    head
}

/// Says more than the errno's own text where that misleads.
fn describe(file: &CString, errno: Errno) -> String {
    match errno {
        Errno::EACCES => match std::fs::metadata(os(file)) {
            Ok(m) if m.is_dir() => "it is a directory".into(),
            Ok(m) if m.is_file() && m.permissions().mode() & 0o111 == 0 => "it is not executable (chmod +x)".into(),
            Ok(m) if !m.is_file() => "it is no regular file".into(),
            Ok(_) => "permission denied (its mode, a folder on its path, or a noexec mount)".into(),
            Err(_) => "permission denied on a folder of its path".into(),
        },
        Errno::E2BIG => "arguments and environment are too long for the stack limit".into(),
        Errno::ETXTBSY => "somebody is writing to it".into(),
        e => e.desc().to_owned(),
    }
}

/// For a file that exists though execve said ENOENT: the part that does not.
fn missing_interpreter(file: &CString) -> Option<(CString, String)> {
    if !os(file).exists() {
        return None;
    }
    let head = head(file);
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&b| b == b'\n').next().unwrap_or_default();
        let mut words = line.split(|b| b" \t\r".contains(b)).filter(|w| !w.is_empty());
        let interpreter = String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned();
        let hint = if line.ends_with(b"\r") {
            " (the line ends in a carriage return)"
        } else {
            ""
        };
        return Some((
            file.clone(),
            format!("its interpreter '{interpreter}' does not exist{hint}"),
        ));
    }
    let interpreter = elf_interpreter(&head)?;
    Some((
        file.clone(),
        format!("its program interpreter '{interpreter}' does not exist"),
    ))
}

/// The PT_INTERP of an ELF file whose first bytes are `head`, when it lies in them.
fn elf_interpreter(head: &[u8]) -> Option<String> {
    let wide = *head.get(4)? == 2;
    let number = |at: usize, width: usize| -> Option<usize> {
        let bytes = head.get(at..at.checked_add(width)?)?;
        bytes
            .iter()
            .rev()
            .try_fold(0usize, |n, &b| n.checked_mul(256)?.checked_add(usize::from(b)))
    };
    let (table, entry, count) = if wide {
        (number(32, 8)?, number(54, 2)?, number(56, 2)?)
    } else {
        (number(28, 4)?, number(42, 2)?, number(44, 2)?)
    };
    for i in 0..count.min(64) {
        let at = table.checked_add(i.checked_mul(entry)?)?;
        if number(at, 4)? == 3 {
            let (offset, size) = if wide {
                (number(at + 8, 8)?, number(at + 32, 8)?)
            } else {
                (number(at + 4, 4)?, number(at + 16, 4)?)
            };
            let name = head.get(offset..offset.checked_add(size)?)?;
            return Some(String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned());
        }
    }
    None
}

/// Why the kernel does not take a binary.
fn bad_binary(head: &[u8]) -> String {
    if !head.starts_with(b"\x7fELF") {
        return "it is neither a program nor a script (exec format error)".into();
    }
    match (head.get(4), head.get(18..20)) {
        (Some(2), Some([62, 0])) => "its ELF headers are corrupt or truncated (exec format error)".into(),
        (Some(1), Some([3, 0])) => {
            "it is a 32-bit program and this kernel runs none, or it is corrupt (exec format error)".into()
        }
        (Some(1 | 2), Some(machine)) if !matches!(machine, [62, 0] | [3, 0]) => {
            format!(
                "it is for another kind of machine (ELF machine {})",
                u16::from_le_bytes([machine[0], machine[1]])
            )
        }
        _ => "its ELF header is corrupt or truncated (exec format error)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_searched_as_execvp_does() {
        assert_eq!(candidates(b"a/b", b"/x"), [b"a/b"]);
        assert_eq!(
            candidates(b"ls", b"/x::/y/"),
            [b"/x/ls".to_vec(), b"./ls".to_vec(), b"/y//ls".to_vec()]
        );
        assert!(candidates(b"", b"/x").is_empty());
    }

    #[test]
    fn the_interpreter_of_a_real_program_is_found() {
        let name = elf_interpreter(&head(&c"/bin/sh".to_owned())).unwrap();
        assert!(name.starts_with("/lib") && Path::new(&name).exists(), "{name}");
    }

    proptest::proptest! {
        #[test]
        fn foreign_headers_never_panic(mut bytes: Vec<u8>) {
            bad_binary(&bytes);
            elf_interpreter(&bytes);
            bytes.splice(0..0, *b"\x7fELF\x02");
            bad_binary(&bytes);
            elf_interpreter(&bytes);
        }
    }
}
