//! The jobs of this node that have agents somewhere, and what happens when a supervisor ends without a farewell.
//!
//! The process that asks for an agent is the job's supervisor. Its end is noticed by its pidfd, so it is certain: every node
//! with an agent of the job is told, and ends it. (Silence alone, of a link or of this whole node, is another case: there the
//! agents wait under their lease.) A restarted daemon finds in [`jobs_file`] whom it watched.

use super::daemon::Node;
use super::jobs_file::{self, Saved};
use mosix_wire::ids::{JobId, NodeName, Nonce};
use mosix_wire::node::NodeRequest;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long a node that cannot be reached is tried to be told: afterwards the agent's own lease is over as well.
const TELL: Duration = Duration::from_secs(900);

/// Pause between two attempts.
const AGAIN: Duration = Duration::from_secs(5);

/// The jobs whose supervisors have asked here.
#[derive(Default)]
pub struct Jobs(Mutex<HashMap<JobId, Job>>);

struct Job {
    uid: u32,
    home: Nonce,
    supervisor: Option<i32>,
    hosts: BTreeSet<NodeName>,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Job>> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The user whose job this is, when it is known here.
    pub fn owner(&self, job: JobId) -> Option<u32> {
        self.lock().get(&job).map(|job| job.uid)
    }

    /// Whether this life of the job has not ended.
    fn knows(&self, job: JobId, home: Nonce) -> bool {
        self.lock().get(&job).is_some_and(|known| known.home == home)
    }

    /// Notes a supervisor; true when it is a new one, to be watched.
    fn claim(&self, job: JobId, uid: u32, home: Nonce, supervisor: Option<i32>) -> Result<bool, String> {
        let mut jobs = self.lock();
        match jobs.get(&job) {
            Some(known) if known.uid != uid => return Err(format!("job {job} is not of user {uid}")),
            Some(known) if known.home == home => return Ok(false),
            _ => {}
        }
        jobs.insert(
            job,
            Job {
                uid,
                home,
                supervisor,
                hosts: BTreeSet::new(),
            },
        );
        Ok(true)
    }

    /// Notes that the job has, or may get, an agent on a node; true when that is new.
    pub fn add_host(&self, state_dir: &Path, job: JobId, home: Nonce, node: NodeName) -> bool {
        let mut jobs = self.lock();
        let Some(known) = jobs.get_mut(&job).filter(|job| job.home == home) else {
            return false;
        };
        if !known.hosts.insert(node) {
            return false;
        }
        let Some((supervisor, started)) = known.supervisor.and_then(|pid| Some((pid, jobs_file::started(pid)?))) else {
            return true;
        };
        let saved = Saved {
            uid: known.uid,
            home,
            supervisor,
            started,
            hosts: known.hosts.clone(),
        };
        if let Err(error) = jobs_file::write(state_dir, job, &saved) {
            tracing::warn!(%job, %error, "a restart of this daemon will not know the job");
        }
        true
    }

    /// The job got no agent there. Its file names the node on: telling it of the job's end does no harm.
    pub fn remove_host(&self, job: JobId, home: Nonce, node: &NodeName) {
        if let Some(known) = self.lock().get_mut(&job).filter(|job| job.home == home) {
            known.hosts.remove(node);
        }
    }

    /// Forgets a supervisor; gives the nodes where its job has agents.
    fn ended(&self, job: JobId, home: Nonce) -> BTreeSet<NodeName> {
        let mut jobs = self.lock();
        match jobs.get(&job) {
            Some(known) if known.home == home => jobs.remove(&job).map(|job| job.hosts).unwrap_or_default(),
            _ => BTreeSet::new(),
        }
    }
}

/// Notes the supervisor of a job, and waits for its end in the background.
pub fn watch(node: &Arc<Node>, job: JobId, uid: u32, home: Nonce, pid: Option<i32>) -> Result<(), String> {
    if !node.jobs.claim(job, uid, home, pid)? {
        return Ok(());
    }
    let pidfd = pid
        .and_then(Pid::from_raw)
        .map(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK));
    if matches!(pidfd, Some(Err(Errno::SRCH))) {
        node.jobs.ended(job, home);
        return Err(format!("the supervisor of job {job} has ended"));
    }
    // A supervisor in a pid namespace that this daemon does not see cannot be watched; its agents have their lease.
    let Some(Ok(pidfd)) = pidfd else {
        tracing::debug!(%job, ?pid, "the supervisor cannot be watched");
        return Ok(());
    };
    #[expect(
        deprecated,
        reason = "unsound only for types that do not own their descriptor; an OwnedFd does"
    )]
    let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE);
    let pidfd = pidfd.map_err(|error| format!("watching job {job}: {error}"))?;
    let node = node.clone();
    tokio::spawn(async move {
        if pidfd.readable().await.is_err() {
            return;
        }
        let hosts = node.jobs.ended(job, home);
        over(&node, job, home, hosts);
    });
    Ok(())
}

/// The supervisor of a job has ended: tells the nodes with agents.
fn over(node: &Arc<Node>, job: JobId, home: Nonce, hosts: BTreeSet<NodeName>) {
    if !hosts.is_empty() {
        jobs_file::remove(&node.config.state_dir, job);
    }
    for host in hosts {
        tokio::spawn(tell(node.clone(), host, job, home));
    }
}

/// An agent was opened. It is ended again when the supervisor has ended meanwhile: whoever told of that came too early.
pub fn opened(node: &Arc<Node>, job: JobId, home: Nonce, host: NodeName) {
    if !node.jobs.knows(job, home) {
        tokio::spawn(tell(node.clone(), host, job, home));
    }
}

/// Watches the supervisors that this daemon's last life watched. Those that ended meanwhile are told of.
pub fn take_up(node: &Arc<Node>) {
    for (job, saved) in jobs_file::read_all(&node.config.state_dir) {
        let Saved {
            uid,
            home,
            supervisor,
            started,
            hosts,
        } = saved;
        if jobs_file::started(supervisor) != Some(started) {
            tracing::info!(%job, supervisor, "the job's supervisor ended while no daemon ran here");
            over(node, job, home, hosts);
            continue;
        }
        match watch(node, job, uid, home, Some(supervisor)) {
            Ok(()) => hosts
                .into_iter()
                .for_each(|host| _ = node.jobs.add_host(&node.config.state_dir, job, home, host)),
            Err(why) => tracing::warn!(%job, why, "a job cannot be watched again"),
        }
    }
}

/// Tells a node of a supervisor's end.
async fn tell(node: Arc<Node>, host: NodeName, job: JobId, home: Nonce) {
    if host == node.config.name {
        node.agents.job_ended(job, &host, home).await;
        return;
    }
    let begun = Instant::now();
    while let Err(why) = node.peers.request(&host, NodeRequest::JobEnded { job, home }).await {
        if begun.elapsed() > TELL {
            tracing::warn!(%job, %host, why, "could not tell of the end of a job's supervisor");
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_have_one_user_and_one_life() {
        let jobs = Jobs::default();
        let (job, node) = (JobId(1), NodeName("n2".into()));
        assert_eq!(jobs.claim(job, 1000, Nonce(1), None), Ok(true));
        assert_eq!(jobs.claim(job, 1000, Nonce(1), None), Ok(false));
        assert!(jobs.claim(job, 1001, Nonce(2), None).is_err());
        jobs.add_host(Path::new("/"), job, Nonce(1), node.clone());
        // A new life: the old one's end tells nobody any more.
        assert!(jobs.knows(job, Nonce(1)));
        assert_eq!(jobs.claim(job, 1000, Nonce(2), None), Ok(true));
        assert!(!jobs.knows(job, Nonce(1)));
        jobs.add_host(Path::new("/"), job, Nonce(1), node.clone());
        assert!(jobs.ended(job, Nonce(1)).is_empty());
        jobs.add_host(Path::new("/"), job, Nonce(2), node.clone());
        assert_eq!(jobs.ended(job, Nonce(2)), BTreeSet::from([node]));
        assert_eq!(jobs.owner(job), None);
    }
}
