//! The keeper: signs of life, late acknowledgements, and new connections at the dialling end.

use super::book::Link;
use super::resume::longer;
use super::{Closed, Inner, LinkError, Opener, lock};
use mosix_wire::frame::{Header, Kind};
use std::io;
use std::sync::{Arc, TryLockError};
use std::time::{Duration, Instant};

/// What the keeper finds to do.
enum Work {
    Acknowledge,
    Dial,
    End(Closed),
}

/// Starts the keeper thread; it ends with the session.
pub(super) fn start(inner: &Arc<Inner>, opener: Option<Opener>) -> io::Result<()> {
    let inner = inner.clone();
    std::thread::Builder::new()
        .name("mosix-link".to_owned())
        .spawn(move || run(&inner, opener))?;
    Ok(())
}

fn run(inner: &Inner, mut opener: Option<Opener>) {
    let mut pause = Duration::ZERO;
    loop {
        match wait(inner, opener.is_some(), pause) {
            Work::Acknowledge => acknowledge(inner),
            Work::Dial => {
                let Some(opener) = &mut opener else { continue };
                let attempt = opener()
                    .map_err(LinkError::from)
                    .and_then(|stream| inner.dial_on(stream));
                pause = match attempt {
                    Ok(()) => Duration::ZERO,
                    Err(LinkError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                        inner.end(Closed::Lost(error.to_string()));
                        return;
                    }
                    Err(error) => {
                        if let Link::Down { why, .. } = &mut lock(&inner.book).link {
                            *why = error.to_string();
                        }
                        longer(pause, inner.options.redial)
                    }
                };
            }
            Work::End(closed) => {
                if closed == Closed::Peer {
                    // The peer waits for the acknowledgement of its last frames.
                    acknowledge(inner);
                }
                inner.end(closed);
                return;
            }
        }
    }
}

/// Waits for work; `pause` is how long to leave a broken link alone.
fn wait(inner: &Inner, dials: bool, pause: Duration) -> Work {
    let begun = Instant::now();
    let mut book = lock(&inner.book);
    loop {
        if let Some(closed) = &book.closed {
            return Work::End(closed.clone());
        }
        let now = Instant::now();
        let due = match book.link {
            Link::Up if book.ack_due => return Work::Acknowledge,
            Link::Up => Some(book.last_sent + inner.options.heartbeat),
            // While the session is being closed nobody needs a new connection.
            Link::Down { .. } if dials && !book.closing => Some(begun + pause),
            Link::Down { .. } => None,
        };
        let left = due.map(|due| due.saturating_duration_since(now));
        book = match (left, &book.link) {
            (Some(Duration::ZERO), Link::Up) => return Work::Acknowledge,
            (Some(Duration::ZERO), Link::Down { .. }) => return Work::Dial,
            (Some(left), _) => {
                inner
                    .work
                    .wait_timeout(book, left)
                    .unwrap_or_else(|poison| poison.into_inner())
                    .0
            }
            (None, _) => inner.work.wait(book).unwrap_or_else(|poison| poison.into_inner()),
        };
    }
}

fn acknowledge(inner: &Inner) {
    let mut order = match inner.order.try_lock() {
        Ok(order) => order,
        Err(TryLockError::Poisoned(poison)) => poison.into_inner(),
        Err(TryLockError::WouldBlock) => {
            // A sender is at work. Its frame may have been numbered before the acknowledgement became due, so look again
            // soon; it is not worth a wait for the lock, which a slow link may hold for long.
            std::thread::sleep(Duration::from_millis(5));
            return;
        }
    };
    let Ok(header) = Header::new(Kind::Ack, 0, 0) else {
        return;
    };
    let header = lock(&inner.book).stamp(header);
    inner.write(&mut order, &header, &[]);
}
