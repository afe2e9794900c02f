//! The memory that the bodies of a job may have on this node.
//!
//! | what | bounds |
//! |---|---|
//! | cgroup2, where the daemon has the controller | all of the job, by the kernel |
//! | RLIMIT_DATA | each body's private writable memory |
//! | RLIMIT_STACK, and no new mappings that grow | its stacks |
//! | this module's thread | all bodies together, where there is no cgroup: the largest goes home, and is killed when that takes too long |
//!
//! Bodies have the worst oom_score_adj in any case.

use super::shared::{Command, Shared};
use crate::transfer::resident;
use mosix_wire::ids::Pid;
use mosix_wire::link::Exit;
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How often the bodies are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Looks in a row that find too much before the largest body is killed.
const PATIENCE: u32 = 8;
/// The largest stack of a body: its kind of memory is not counted by RLIMIT_DATA.
pub const STACK: u64 = 1 << 30;

/// Bounds a fresh process, before it has any memory of an image.
///
/// # Errors
/// Those of prlimit(2).
pub fn bound(host: i32, bytes: u64) -> io::Result<()> {
    let target = rustix::process::Pid::from_raw(host);
    let least = |wanted: u64, resource| {
        getrlimit(resource)
            .maximum
            .map_or(wanted, |maximum| wanted.min(maximum))
    };
    for (resource, wanted) in [(Resource::Data, bytes), (Resource::Stack, STACK)] {
        let value = Some(least(wanted, resource));
        let limit = Rlimit {
            current: value,
            maximum: value,
        };
        prlimit(target, resource, limit)?;
    }
    Ok(())
}

/// Watches all bodies, for ever.
pub fn watch(shared: &Arc<Shared>, bytes: u64) {
    let mut looks = 0;
    loop {
        std::thread::sleep(LOOK);
        let (total, largest) = used(shared);
        let Some((pid, of_it)) = largest.filter(|_| total > bytes) else {
            looks = 0;
            continue;
        };
        looks += 1;
        if looks == 1 {
            tracing::warn!(%pid, total, bytes, of_it, "the job has more memory than this node gives it: its largest body goes home");
            shared.command(Command::WantHome(pid, libc::SYS_mmap as u32));
        } else if looks > PATIENCE || total > bytes.saturating_add(bytes / 4) {
            tracing::error!(%pid, total, bytes, of_it, "the job has more memory than this node gives it: its largest body is killed");
            let signal = libc::SIGKILL as u8;
            shared.command(Command::Exit(pid, Exit::Signal { signal, core: false }));
            looks = 0;
        }
    }
}

/// Resident bytes of all bodies, and the largest of them.
fn used(shared: &Shared) -> (u64, Option<(Pid, u64)>) {
    let bodies = shared.bodies.read().unwrap_or_else(|poison| poison.into_inner());
    let each: Vec<(Pid, u64)> = bodies.values().map(|body| (body.pid, resident(body.host))).collect();
    let total = each.iter().map(|(_, bytes)| bytes).sum();
    (total, each.into_iter().max_by_key(|(_, bytes)| *bytes))
}
