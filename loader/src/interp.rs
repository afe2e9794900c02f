//! `#!` scripts: which program runs them, with which arguments. The rules of fs/binfmt_script.c.
//!
//! The file itself is opened by the caller: on a host, only home can say what a path means and whether the user may execute it.

use crate::elf::HEAD;
use crate::error::{LoadError, SCRIPT_DEPTH};

/// What the head of a file says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// Starts like an ELF file.
    Elf,
    /// A script and its interpreter.
    Script(Script),
}

/// A `#!` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Path of the interpreter.
    pub interpreter: Vec<u8>,
    /// The rest of the line as one argument, blanks inside it included.
    pub argument: Option<Vec<u8>>,
}

/// Tells an ELF file from a script.
///
/// # Errors
/// ENOEXEC when it is neither, or its `#!` line is unusable; EACCES when that names the empty path.
pub fn form(head: &[u8; HEAD]) -> Result<Form, LoadError> {
    if head.starts_with(b"\x7fELF") {
        Ok(Form::Elf)
    } else if head.starts_with(b"#!") {
        script(head).map(Form::Script)
    } else {
        Err(LoadError::NotExecutable)
    }
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn script(head: &[u8; HEAD]) -> Result<Script, LoadError> {
    let line = &head[2..];
    let line = match line.iter().position(|byte| *byte == b'\n') {
        Some(end) => &line[..end],
        None => {
            // The line goes on beyond what was read. Its argument may be cut; its path must be whole, which a blank or 0 behind it shows.
            let line = &line[..line.len() - 1];
            let whole = &head[2..];
            let start = whole
                .iter()
                .position(|byte| !is_blank(*byte))
                .ok_or(LoadError::Script("nothing but blanks"))?;
            if !whole[start..].iter().any(|byte| is_blank(*byte) || *byte == 0) {
                return Err(LoadError::Script("its path is cut off after 256 bytes"));
            }
            line
        }
    };
    let end = line
        .iter()
        .rposition(|byte| !is_blank(*byte))
        .map_or(0, |last| last + 1);
    let line = &line[..end];
    let start = line
        .iter()
        .position(|byte| !is_blank(*byte))
        .ok_or(LoadError::Script("nothing but blanks"))?;
    let line = &line[start..];
    let stop = line
        .iter()
        .position(|byte| is_blank(*byte) || *byte == 0)
        .unwrap_or(line.len());
    let (path, rest) = line.split_at(stop);
    let argument = match rest.first() {
        Some(0) | None => None,
        Some(_) => rest
            .iter()
            .position(|byte| !is_blank(*byte))
            .map(|start| c_string(&rest[start..])),
    };
    if path.is_empty() {
        return Err(LoadError::EmptyPath);
    }
    Ok(Script {
        interpreter: path.to_vec(),
        argument,
    })
}

/// The bytes before the first 0.
fn c_string(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().take_while(|byte| *byte != 0).collect()
}

/// The arguments of an execve on the way through its scripts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Path given to execve: AT_EXECFN, whatever interprets it.
    pub filename: Vec<u8>,
    /// Path of the file to look at next.
    pub program: Vec<u8>,
    /// Arguments for it.
    pub argv: Vec<Vec<u8>>,
    depth: usize,
}

impl Invocation {
    /// Starts with the arguments of execve. An empty `argv` gets the empty string that the kernel puts there.
    #[must_use]
    pub fn new(filename: &[u8], argv: Vec<Vec<u8>>) -> Self {
        let argv = if argv.is_empty() { vec![Vec::new()] } else { argv };
        Self {
            filename: filename.to_vec(),
            program: filename.to_vec(),
            argv,
            depth: 0,
        }
    }

    /// Looks at the head of [`Self::program`]. True: it is an ELF file and all is known. False: it was a script; `program` now names
    /// its interpreter and `argv` is what that gets.
    ///
    /// # Errors
    /// ENOEXEC for what is neither; ELOOP when the interpreter of the fifth script is a script as well.
    pub fn step(&mut self, head: &[u8; HEAD]) -> Result<bool, LoadError> {
        match form(head)? {
            Form::Elf => Ok(true),
            Form::Script(script) => {
                if self.depth >= SCRIPT_DEPTH {
                    return Err(LoadError::TooManyScripts);
                }
                self.depth += 1;
                let path = std::mem::replace(&mut self.program, script.interpreter.clone());
                let lead = [Some(script.interpreter), script.argument, Some(path)];
                self.argv.splice(..1, lead.into_iter().flatten());
                Ok(false)
            }
        }
    }
}
