//! What the tracer does about memory that is lent to a child of vfork(2): whose end lets its parent go on, and leave.

use super::*;

/// How long a departure waits for the end of a vfork.
const LIMIT: Duration = Duration::from_secs(5);

impl Tracer {
    /// A child has given its parent's memory back: the parent goes on, with what waited.
    pub(super) fn memory_back(&mut self, pid: Pid, child: Pid) {
        let shared = Arc::clone(&self.shared);
        let lender = self.processes.get_mut(&pid);
        let Some(process) = lender.filter(|process| process.lent.is_some_and(|(to, _)| to == child)) else {
            return;
        };
        if let Err(error) = process.memory_back() {
            tracing::debug!(%pid, %error, "a thread that waited for its child is gone");
        }
        if let Some((attempt, streams, to_home, _)) = process.leaves.take() {
            return self.capture(pid, attempt, streams, to_home);
        }
        if let Some(nr) = process.wanted_home.take() {
            shared.command(Command::WantHome(pid, nr));
        }
        if let Some(how) = signals::catch_up(&shared, process) {
            self.ended(pid, how);
        }
    }

    /// Gives departures up that have waited for the end of a vfork for too long.
    pub(super) fn late_leaves(&mut self) {
        let late = |process: &mut Process| {
            let leaves = process.leaves.take_if(|leaves| leaves.3.elapsed() > LIMIT)?;
            // Stopping it fails, and says why.
            Some((process.pid, leaves))
        };
        let late: Vec<_> = self.processes.values_mut().filter_map(late).collect();
        for (pid, (attempt, streams, to_home, _)) in late {
            self.depart(pid, attempt, streams, to_home);
        }
    }
}
