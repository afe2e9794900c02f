//! Lanes of moves under way: further page streams, and what brings them together with the stream that has the image.
//!
//! A lane is dialled before the freeze, so it is usually here before its image: to bring pages it waits for the place of them, to take pages
//! it is kept until the body is captured.

use super::shared::lock;
use crate::link::Sender;
use crate::process::landing::Landing;
use mosix_wire::ids::{Epoch, NodeName, Pid};
use mosix_wire::limits::LANES;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

type Key = (Pid, Epoch);

/// Refused images that are remembered: more than come at a time.
const REMEMBERED: usize = 64;

/// All of them.
#[derive(Default)]
pub struct Lanes {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    /// Where pages of arriving images go, with the node that sends them (none: home).
    landings: HashMap<Key, (Option<NodeName>, Arc<Landing>)>,
    /// Images that were refused, the last ones: their lanes need not wait.
    refused: VecDeque<Key>,
    /// Lanes on which home wants the pages of a body.
    fetching: HashMap<Key, Vec<Sender>>,
}

impl Lanes {
    /// Pages of an image may come.
    pub fn open(&self, key: Key, from: Option<NodeName>, landing: Arc<Landing>) {
        lock(&self.state).landings.insert(key, (from, landing));
        self.news.notify_all();
    }

    /// No more pages of it come.
    pub fn close(&self, key: Key) {
        lock(&self.state).landings.remove(&key);
    }

    /// An image is not taken.
    pub fn refuse(&self, key: Key) {
        let mut state = lock(&self.state);
        state.refused.push_back(key);
        if state.refused.len() > REMEMBERED {
            state.refused.pop_front();
        }
        drop(state);
        self.news.notify_all();
    }

    /// Where the pages of an image go that `from` sends, once that is known; nowhere when it is refused, or not here in time.
    pub fn landing(&self, key: Key, from: &Option<NodeName>, patience: Duration) -> Option<Arc<Landing>> {
        let found = self.wait(patience, |state| {
            if state.refused.contains(&key) {
                return Some(None);
            }
            let (sender, landing) = state.landings.get(&key)?;
            (sender == from).then(|| Some(Arc::clone(landing)))
        });
        found.flatten()
    }

    /// Keeps a lane for a body that home will ask for. Those of earlier attempts go.
    pub fn give(&self, key: Key, lane: Sender) {
        let mut state = lock(&self.state);
        state
            .fetching
            .retain(|(pid, epoch), _| *pid != key.0 || *epoch == key.1);
        let lanes = state.fetching.entry(key).or_default();
        if lanes.len() < LANES {
            lanes.push(lane);
        }
        drop(state);
        self.news.notify_all();
    }

    /// Takes the lanes of a body, when there are so many of them in time.
    pub fn take(&self, key: Key, count: usize, patience: Duration) -> Option<Vec<Sender>> {
        if count == 0 {
            return Some(Vec::new());
        }
        self.wait(patience, |state| {
            let there = state.fetching.get(&key)?.len();
            if there >= count {
                state.fetching.remove(&key)
            } else {
                None
            }
        })
    }

    fn wait<T>(&self, patience: Duration, mut look: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + patience;
        let mut state = lock(&self.state);
        loop {
            if let Some(found) = look(&mut state) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            state = self
                .news
                .wait_timeout(state, left)
                .unwrap_or_else(|poison| poison.into_inner())
                .0;
        }
    }
}
