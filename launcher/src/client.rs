//! Finds the jobs of a user and talks to their supervisors.

use anyhow::{Context as _, bail};
use mosix_runtime::supervisor::frames;
use mosix_runtime::supervisor::rundir::{is_forgotten, jobs_dir, remove_socket, verify};
use mosix_runtime::supervisor::socket::through;
use mosix_wire::job::{Answer, Job, Process, Request};
use mosix_wire::limits::JOB_MESSAGE;
use nix::sys::socket::{getsockopt, sockopt};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a supervisor may take to list its job. It does so from /proc, in milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// A job that answered.
#[derive(Clone, Debug)]
pub struct Found {
    /// The job.
    pub job: Job,
    /// Its processes.
    pub processes: Vec<Process>,
    socket: PathBuf,
    owner: u32,
}

/// What a search brought.
#[derive(Debug, Default)]
pub struct Search {
    /// Jobs, oldest first.
    pub found: Vec<Found>,
    /// What did not answer, one line each.
    pub silent: Vec<String>,
}

/// Asks every supervisor of the caller; with `all` (root) those of every user that can be found.
///
/// # Errors
/// When the caller's own runtime folder cannot be trusted or read.
pub fn jobs(all: bool) -> anyhow::Result<Search> {
    let me = nix::unistd::geteuid().as_raw();
    let mut search = Search::default();
    let own = jobs_dir()?;
    look_into(&own, me, &mut search)?;
    if all {
        for (folder, owner) in others(&own) {
            if let Err(e) = look_into(&folder, owner, &mut search) {
                search.silent.push(format!("{e:#}"));
            }
        }
    }
    search.found.sort_by_key(|f| (f.job.started, f.job.supervisor));
    Ok(search)
}

/// Runtime folders of other users that login made, and root's own.
fn others(own: &Path) -> Vec<(PathBuf, u32)> {
    let users = std::fs::read_dir("/run/user").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = users.map(|entry| entry.path().join("mosix/jobs")).collect();
    folders.push("/run/mosix/jobs".into());
    folders.retain(|f| f != own);
    let owned = |f: PathBuf| {
        std::fs::symlink_metadata(f.parent()?.parent()?)
            .ok()
            .map(|m| (f, m.uid()))
    };
    folders
        .into_iter()
        .filter_map(owned)
        .filter(|(f, _)| f.exists())
        .collect()
}

fn look_into(folder: &Path, owner: u32, search: &mut Search) -> anyhow::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("runtime folder {}", folder.display())),
    };
    verify(folder, owner)?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("runtime folder {}", folder.display()))?
            .path();
        if path.extension().is_none_or(|e| e != "sock") {
            if is_forgotten(&path) {
                remove_socket(&path);
            }
            continue;
        }
        match ask(&path, owner) {
            Ok(Some(found)) => search.found.push(found),
            Ok(None) => {}
            Err(e) => search.silent.push(format!("{}: {e:#}", path.display())),
        }
    }
    Ok(())
}

/// Lists the job behind a socket. `None`: it has just ended, or was killed long ago.
fn ask(path: &Path, owner: u32) -> anyhow::Result<Option<Found>> {
    let Some(mut stream) = connect(path, owner)? else {
        return Ok(None);
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    let talk = frames::write(&mut stream, &Request::Ps).and_then(|()| frames::read::<Answer>(&mut stream, JOB_MESSAGE));
    match talk {
        Ok(Some(Answer::Rows { job, processes })) => Ok(Some(Found {
            job,
            processes,
            socket: path.to_owned(),
            owner,
        })),
        Ok(Some(Answer::Refused(refusal))) => bail!("{}", refusal.text),
        Ok(Some(_)) => bail!("answers something else than was asked"),
        Ok(None) => Ok(None),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            bail!("the supervisor does not answer; is it stopped?")
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Connects to a supervisor, after looking whose socket it is. A socket that nobody listens on is removed.
fn connect(path: &Path, owner: u32) -> anyhow::Result<Option<UnixStream>> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    if !meta.file_type().is_socket() || meta.uid() != owner {
        bail!("is no socket of user {owner}");
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        bail!("has an impossible name");
    };
    let folder = File::open(folder)?;
    let stream = match UnixStream::connect(through(&folder, name)) {
        Ok(stream) => stream,
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            remove_socket(path);
            return Ok(None);
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let peer = getsockopt(&stream, sockopt::PeerCredentials)?;
    if peer.uid() != owner {
        bail!("is served by user {}, not by user {owner}", peer.uid());
    }
    Ok(Some(stream))
}

impl Found {
    /// How people call the job.
    pub fn label(&self) -> String {
        self.job.name.clone().unwrap_or_else(|| self.job.id.to_string())
    }

    /// Sends a request and hands each answer to `each` until that says it was the last.
    ///
    /// # Errors
    /// When the supervisor ends first.
    pub fn request(&self, request: &Request, mut each: impl FnMut(Answer) -> bool) -> anyhow::Result<()> {
        let ended = || format!("job {}: its supervisor ended", self.label());
        let mut stream = connect(&self.socket, self.owner)?.with_context(ended)?;
        frames::write(&mut stream, request).with_context(ended)?;
        while let Some(answer) = frames::read(&mut stream, JOB_MESSAGE).with_context(ended)? {
            if each(answer) {
                return Ok(());
            }
        }
        bail!("{} before it answered", ended())
    }
}
