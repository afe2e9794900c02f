//! Bodies that were forked from one another here: they inherit one filter, and with it one listener, on which the calls of all arrive.

use super::shared::BodyCalls;
use mosix_sys::notif::Listener;
use mosix_wire::ids::Pid;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// A listener and the bodies behind it.
#[derive(Debug)]
pub struct Family {
    /// Where their calls arrive.
    pub listener: Listener,
    bodies: RwLock<Vec<Arc<BodyCalls>>>,
}

impl Family {
    /// A family without a body.
    pub fn new(listener: Listener) -> Arc<Self> {
        Arc::new(Self {
            listener,
            bodies: RwLock::default(),
        })
    }

    fn bodies(&self) -> RwLockReadGuard<'_, Vec<Arc<BodyCalls>>> {
        self.bodies.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A body whose calls arrive here from now on.
    pub fn join(&self, body: &Arc<BodyCalls>) {
        let mut bodies = self.bodies.write().unwrap_or_else(PoisonError::into_inner);
        bodies.push(Arc::clone(body));
    }

    /// A body is no more.
    pub fn leave(&self, pid: Pid) {
        let mut bodies = self.bodies.write().unwrap_or_else(PoisonError::into_inner);
        bodies.retain(|body| body.pid != pid);
    }

    /// The body that has this thread, by its number on this node. Of the only one nobody asks: it says itself that it does not know it.
    pub fn body_of(&self, host: i32) -> Option<Arc<BodyCalls>> {
        match self.bodies().as_slice() {
            [only] => Some(Arc::clone(only)),
            bodies => bodies.iter().find(|body| body.calls.knows(host)).cloned(),
        }
    }

    /// Threads of all its bodies.
    pub fn count(&self) -> usize {
        self.bodies().iter().map(|body| body.calls.count()).sum()
    }
}
