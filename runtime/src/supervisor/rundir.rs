//! The runtime folder: where a user's jobs have their sockets.
//!
//! `$MOSIX_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/mosix` when that is the caller's own (after `su` it is somebody else's), else
//! `/run/mosix` for root, else `~/.local/state/mosix/run`. A socket lies in `jobs/<job id>.sock` below it. The folders are the user's
//! alone (0700); one that belongs to somebody else, or that others can enter, is refused: whoever made it could answer
//! in the place of supervisors. Abstract sockets have no owner and are never used.

use mosix_wire::ids::JobId;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why there is no usable runtime folder.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Neither variable nor home folder says where.
    #[error("no runtime folder: set MOSIX_RUNTIME_DIR, XDG_RUNTIME_DIR or HOME")]
    Nowhere,
    /// It could not be made or looked at.
    #[error("runtime folder {path}: {source}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not the caller's alone.
    #[error("runtime folder {path} {what}; remove it or set MOSIX_RUNTIME_DIR")]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// Says where the runtime folder is, whether it exists or not.
///
/// # Errors
/// [`RunDirError::Nowhere`].
pub fn runtime_dir() -> Result<PathBuf, RunDirError> {
    resolve(
        |name| std::env::var_os(name).filter(|v| !v.is_empty()),
        nix::unistd::geteuid().as_raw(),
    )
}

fn resolve(variable: impl Fn(&str) -> Option<OsString>, uid: u32) -> Result<PathBuf, RunDirError> {
    if let Some(path) = variable("MOSIX_RUNTIME_DIR") {
        return Ok(path.into());
    }
    if let Some(path) = variable("XDG_RUNTIME_DIR").map(PathBuf::from)
        && path.is_absolute()
        && std::fs::metadata(&path).is_ok_and(|m| m.is_dir() && m.uid() == uid)
    {
        return Ok(path.join("mosix"));
    }
    if uid == 0 {
        return Ok("/run/mosix".into());
    }
    let home = variable("HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute())
        .ok_or(RunDirError::Nowhere)?;
    Ok(home.join(".local/state/mosix/run"))
}

/// Where sockets of jobs are, without making it.
///
/// # Errors
/// [`RunDirError::Nowhere`].
pub fn jobs_dir() -> Result<PathBuf, RunDirError> {
    Ok(runtime_dir()?.join("jobs"))
}

/// Makes the folder for sockets of jobs, if needed, and verifies it.
///
/// # Errors
/// When it cannot be made, or is not the caller's alone.
pub fn make_jobs_dir() -> Result<PathBuf, RunDirError> {
    let runtime = runtime_dir()?;
    let jobs = runtime.join("jobs");
    for path in [&runtime, &jobs] {
        let error = |source| RunDirError::Io {
            path: path.clone(),
            source,
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(error)?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(error(e)),
            _ => verify(path, nix::unistd::geteuid().as_raw())?,
        }
    }
    Ok(jobs)
}

/// Verifies that `path` is a folder (no symbolic link) of user `uid` that nobody else can enter.
///
/// # Errors
/// [`RunDirError::NotOurs`] or the reason why it cannot be looked at.
pub fn verify(path: &Path, uid: u32) -> Result<(), RunDirError> {
    let meta = std::fs::symlink_metadata(path).map_err(|source| RunDirError::Io {
        path: path.into(),
        source,
    })?;
    let what = if !meta.is_dir() {
        "is no folder".to_owned()
    } else if meta.uid() != uid {
        format!("belongs to user {}, not to user {uid}", meta.uid())
    } else if meta.mode() & 0o077 != 0 {
        format!("is open to others (mode {:03o}, wanted 700)", meta.mode() & 0o777)
    } else {
        return Ok(());
    };
    Err(RunDirError::NotOurs {
        path: path.into(),
        what,
    })
}

/// File name of a job's socket.
pub fn socket_name(job: JobId) -> String {
    format!("{job}.sock")
}

/// File name of a job's socket while nobody listens on it yet.
pub fn unheard_name(job: JobId) -> String {
    format!("{job}.{UNHEARD}")
}

/// Ending of sockets that nobody listens on yet, for microseconds.
const UNHEARD: &str = "new";
/// Age at which such a socket belongs to nobody: its supervisor was killed in between.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// Whether `path` names a socket that a supervisor was killed over before it listened.
pub fn is_forgotten(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == UNHEARD)
        && std::fs::symlink_metadata(path)
            .and_then(|meta| meta.modified())
            .is_ok_and(|made| made.elapsed().is_ok_and(|age| age > FORGOTTEN))
}

/// Removes a job's socket. Anything else at that place is left alone.
pub fn remove_socket(path: &Path) {
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        // Somebody else may have removed it; nothing depends on who does.
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn resolved(variables: &[(&str, &str)], uid: u32) -> Option<String> {
        let get = |name: &str| {
            variables
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| OsString::from(v))
        };
        resolve(get, uid).ok().map(|p| p.to_string_lossy().into_owned())
    }

    #[test]
    fn places_are_tried_in_order() {
        let me = nix::unistd::geteuid().as_raw();
        let dir = tempfile::tempdir().unwrap();
        let xdg = dir.path().to_str().unwrap();
        assert_eq!(
            resolved(&[("MOSIX_RUNTIME_DIR", "/x"), ("XDG_RUNTIME_DIR", xdg)], me).unwrap(),
            "/x"
        );
        assert_eq!(
            resolved(&[("XDG_RUNTIME_DIR", xdg)], me).unwrap(),
            format!("{xdg}/mosix")
        );
        // Somebody else's XDG_RUNTIME_DIR, as after su.
        assert_eq!(resolved(&[("XDG_RUNTIME_DIR", xdg)], 0).map(|_| ()), Some(()));
        assert_eq!(
            resolved(&[("XDG_RUNTIME_DIR", xdg), ("HOME", "/h")], me + 1).unwrap(),
            "/h/.local/state/mosix/run"
        );
        assert_eq!(resolved(&[], 0).unwrap(), "/run/mosix");
        assert_eq!(resolved(&[], 1000), None);
    }

    #[test]
    fn only_an_old_socket_without_listener_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let id = JobId(7);
        for (name, forgotten) in [(unheard_name(id), true), (socket_name(id), false)] {
            let path = dir.path().join(name);
            let file = std::fs::File::create(&path).unwrap();
            assert!(!is_forgotten(&path));
            file.set_modified(std::time::SystemTime::now() - 2 * FORGOTTEN).unwrap();
            assert_eq!(is_forgotten(&path), forgotten);
        }
    }

    #[test]
    fn squatted_and_open_folders_are_refused() {
        let me = nix::unistd::geteuid().as_raw();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o711)).unwrap();
        assert!(
            verify(&path, me)
                .unwrap_err()
                .to_string()
                .contains("open to others (mode 711")
        );
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        verify(&path, me).unwrap();
        assert!(
            verify(&path, me + 1)
                .unwrap_err()
                .to_string()
                .contains("belongs to user")
        );
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(verify(&link, me).unwrap_err().to_string().contains("is no folder"));
    }
}
