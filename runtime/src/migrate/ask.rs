//! Questions to hosts that a thread of home waits for: what a host's kernel says about a body in /proc.

use crate::link::Session;
use mosix_wire::frame::encode_body;
use mosix_wire::ids::{Pid, Tid};
use mosix_wire::link::{ProcFile, ToHost};
use std::collections::HashMap;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long an answer is waited for: a host that is slower, or cut off, makes the process come home for its question.
const ANSWER: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Open {
    last: u64,
    waiting: HashMap<u64, SyncSender<Vec<u8>>>,
}

/// Questions that wait for their answers.
#[derive(Debug, Default)]
pub struct Questions(Mutex<Open>);

impl Questions {
    fn lock(&self) -> MutexGuard<'_, Open> {
        // Each change is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the host behind a session and waits for the text. Never on the session's receiving thread.
    pub fn ask(&self, session: &Session, pid: i32, thread: Option<i32>, file: ProcFile) -> Option<Vec<u8>> {
        let (answer, text) = sync_channel(1);
        let number = {
            let mut open = self.lock();
            open.last += 1;
            let number = open.last;
            open.waiting.insert(number, answer);
            number
        };
        let question = ToHost::AskProc {
            number,
            pid: Pid(pid),
            tid: thread.map(Tid),
            file,
        };
        // Who asks holds what the receiving thread may want: it does not wait for room.
        let sent = encode_body(&question).is_ok_and(|body| session.try_send(&body, &[]).is_ok());
        let text = sent.then(|| text.recv_timeout(ANSWER).ok()).flatten();
        self.lock().waiting.remove(&number);
        text.filter(|text| !text.is_empty())
    }

    /// An answer came. One that nobody waits for any more is dropped.
    pub fn answered(&self, number: u64, text: &[u8]) {
        if let Some(waits) = self.lock().waiting.remove(&number) {
            let _ = waits.try_send(text.to_vec());
        }
    }
}
