//! Where a node keeps its things.

use mosix_wire::ids::JobId;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Longest path of a unix socket: `sun_path` without its final zero.
const SOCKET_PATH: usize = 107;

/// `$MOSIX_STATE_DIR`, else `/var/lib/mosix` for root, else `~/.local/state/mosix`.
pub fn state_dir() -> io::Result<PathBuf> {
    state_dir_from(
        |name| std::env::var_os(name).filter(|value| !value.is_empty()),
        rustix::process::geteuid().is_root(),
    )
}

fn state_dir_from(variable: impl Fn(&str) -> Option<std::ffi::OsString>, root: bool) -> io::Result<PathBuf> {
    if let Some(dir) = variable("MOSIX_STATE_DIR") {
        return Ok(dir.into());
    }
    if root {
        return Ok("/var/lib/mosix".into());
    }
    let home = variable("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let home = home.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "no state folder: set MOSIX_STATE_DIR or HOME",
        )
    })?;
    Ok(home.join(".local/state/mosix"))
}

/// The daemon's socket.
pub fn control_socket(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

/// The folder of the agents' sockets and logs.
pub fn agents_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("agents")
}

/// An agent's socket.
pub fn agent_socket(state_dir: &Path, job: JobId) -> PathBuf {
    agents_dir(state_dir).join(format!("{job}.sock"))
}

/// The folder of certificates and keys.
pub fn keys_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("keys")
}

/// Refuses paths that no unix socket can have, with what to do about it.
pub fn check_socket_path(path: &Path) -> io::Result<()> {
    if path.as_os_str().len() > SOCKET_PATH {
        let what = format!(
            "{} is too long for a unix socket (at most {SOCKET_PATH} bytes): choose a shorter state folder",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(())
}

/// Creates a folder with this mode, or checks that the existing one is ours and not open to writers.
pub fn create_dir(path: &Path, mode: u32) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(named)?;
    let meta = std::fs::metadata(path).map_err(named)?;
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        let what = format!(
            "{} belongs to user {}, not to {me}: choose another folder or change its owner",
            path.display(),
            meta.uid()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    if meta.mode() & 0o777 & !mode != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(named)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_folder_follows_the_documented_order() {
        let from = |pairs: &'static [(&str, &str)], root| {
            state_dir_from(
                |name| {
                    pairs
                        .iter()
                        .find(|(key, _)| *key == name)
                        .map(|(_, value)| value.into())
                },
                root,
            )
        };
        assert_eq!(
            from(&[("MOSIX_STATE_DIR", "/x"), ("HOME", "/h")], true).unwrap(),
            Path::new("/x")
        );
        assert_eq!(from(&[("HOME", "/h")], true).unwrap(), Path::new("/var/lib/mosix"));
        assert_eq!(
            from(&[("HOME", "/h")], false).unwrap(),
            Path::new("/h/.local/state/mosix")
        );
        assert!(
            from(&[("HOME", "relative")], false)
                .unwrap_err()
                .to_string()
                .contains("MOSIX_STATE_DIR")
        );
    }

    #[test]
    fn folders_are_tightened_and_long_paths_refused() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("a/keys");
        std::fs::create_dir_all(&keys).unwrap();
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o755)).unwrap();
        create_dir(&keys, 0o700).unwrap();
        assert_eq!(std::fs::metadata(&keys).unwrap().mode() & 0o777, 0o700);
        assert!(check_socket_path(&keys.join("x".repeat(100))).is_err());
    }
}
