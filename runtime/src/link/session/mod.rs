//! A session: frames in order, each exactly once, over connections that may break and be made anew.
//!
//! ```text
//!            attach / redial done            the user closes, the peer closes,
//!   Down ──────────────────────────▶ Up ──── or the peer has forgotten ──▶ Closed
//!     ▲                               │      (from Down as well)
//!     └── read or write error, silence┘
//! ```
//!
//! Each frame is numbered and kept until the other end acknowledges it; acknowledgements ride on every frame. At the start of
//! a connection both ends say what they have received ([`mosix_wire::frame::Resume`]) and send the rest again.
//!
//! Threads: senders write on their own thread, the receiving thread reads on its own; one *keeper* thread per session sends
//! signs of life and late acknowledgements and, at the dialling end, makes new connections.
//!
//! One rule for the users: **some thread must always be in [`Session::recv`]** or on its way back to it. Acknowledgements are
//! read there, and without them a sender waits once the window is full. So the receiving thread itself must not wait for room
//! ([`Session::try_send`] never does).

mod book;
mod keeper;
mod resume;
#[cfg(test)]
mod tests;

use super::stream::{Frame, LinkError, Receiver, Sender, Stream};
use book::{Book, Link, Taken};
use mosix_wire::frame::{FrameError, Header, Kind};
use mosix_wire::limits;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

/// Times and sizes of a session.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// An idle end sends a sign of life this often.
    pub heartbeat: Duration,
    /// A connection on which nothing came for so long is given up and made anew.
    pub silence: Duration,
    /// Bytes kept for the peer's acknowledgement before [`Session::send`] waits.
    pub window: usize,
    /// First and longest pause between two attempts to connect again.
    pub redial: (Duration, Duration),
    /// How long [`Session::close`] waits for the peer to have everything.
    pub linger: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(2),
            silence: Duration::from_secs(6),
            window: limits::SESSION_WINDOW,
            redial: (Duration::from_millis(50), Duration::from_secs(1)),
            linger: Duration::from_secs(2),
        }
    }
}

/// Why a session is over; nothing brings it back.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Closed {
    /// [`Session::close`] was called, or the session dropped.
    #[error("the session was closed here")]
    Here,
    /// The other end has closed it, and every frame before was delivered.
    #[error("the other end closed the session")]
    Peer,
    /// One end does not know the session (it was started again), or says impossible things.
    #[error("the session cannot go on: {0}")]
    Lost(String),
}

/// Why a frame was not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// The session is over.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The frame is too large.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The window is full ([`Session::try_send`] only).
    #[error("too many bytes wait for the other end's acknowledgement")]
    Full,
}

/// The state of a session's connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// Connected.
    Up,
    /// Not connected; frames are kept and sent later.
    Down {
        /// Since when.
        since: Instant,
        /// Why, for the user.
        why: String,
    },
    /// Over.
    Closed(Closed),
}

/// A session; see the module's documentation. All methods may be called from any thread.
pub struct Session {
    inner: Arc<Inner>,
}

/// Makes a connection for a session's dialling end.
///
/// An error of kind `NotFound` says that the other end is gone for good ([`crate::node::ClientError::NoAgent`] becomes one) and
/// ends the session as [`Closed::Lost`]; after any other error it is tried again.
pub type Opener = Box<dyn FnMut() -> io::Result<Stream> + Send>;

pub(super) struct Inner {
    options: SessionOptions,
    book: Mutex<Book>,
    /// Signalled when the link comes up and when the session ends: the receiver waits here.
    link: Condvar,
    /// Signalled when kept frames were acknowledged: senders and `close` wait here.
    room: Condvar,
    /// Signalled when the keeper has something to do.
    work: Condvar,
    /// The sending half with its generation. Its lock is the order of frames: whoever numbers a frame holds it until the
    /// frame is written.
    order: Mutex<Option<(u64, Sender)>>,
    /// Frames wait for [`Session::flush`].
    later: AtomicBool,
    /// The receiving thread has more frames at hand, and will write what waits when it has none.
    amid: AtomicBool,
    rx: Mutex<Rx>,
    /// One connection at a time is being put under the session.
    attach: Mutex<()>,
}

/// After so many frames the receiving thread writes what waits although more are at hand.
const AMID: usize = 16;

#[derive(Default)]
struct Rx {
    current: Option<(u64, Receiver)>,
    /// Frames handed over since the receiving thread last wrote what waits.
    handed: usize,
}

/// When a frame is written, and what happens without room for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// At once; waits for room.
    Now,
    /// With the next flush; waits for room.
    Later,
    /// At once; never waits.
    Never,
    /// With the next flush; never waits.
    LaterNever,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Session {
    /// Makes the dialling end: connects through `opener` now, and again after each break.
    pub fn dial(
        mut opener: impl FnMut() -> io::Result<Stream> + Send + 'static,
        options: SessionOptions,
    ) -> Result<Self, LinkError> {
        let inner = Inner::new(random()?, options)?;
        let stream = opener()?;
        inner.dial_on(stream)?;
        let session = Self { inner };
        keeper::start(&session.inner, Some(Box::new(opener)))?;
        Ok(session)
    }

    /// Makes the accepting end, down until the first [`Session::attach`].
    pub fn accept(options: SessionOptions) -> Result<Self, LinkError> {
        let session = Self {
            inner: Inner::new(0, options)?,
        };
        keeper::start(&session.inner, None)?;
        Ok(session)
    }

    /// Puts a connection that the peer has dialled under the session, in place of the one before.
    ///
    /// Blocks for the short handshake. On an error the connection is closed and the session is as before; a peer that
    /// continues another session is refused and told so.
    pub fn attach(&self, stream: Stream) -> Result<(), LinkError> {
        self.inner.accept_on(stream)
    }

    /// Sends a frame: returns when it is numbered and kept, and written unless the link is down.
    ///
    /// Waits while the window is full.
    pub fn send(&self, body: &[u8], payload: &[&[u8]]) -> Result<(), SendError> {
        self.inner.send(Kind::Data, body, payload, Pace::Now)
    }

    /// Sends a frame like [`Session::send`], but leaves it to the next [`Session::flush`] or send, of whichever thread, to write it:
    /// many small frames then cost one record and one system call. Flushes itself before it waits for room.
    pub fn send_later(&self, body: &[u8], payload: &[&[u8]]) -> Result<(), SendError> {
        self.inner.send(Kind::Data, body, payload, Pace::Later)
    }

    /// Writes the frames that [`Session::send_later`] left.
    pub fn flush(&self) {
        if self.inner.later.swap(false, Ordering::SeqCst) {
            let mut order = lock(&self.inner.order);
            self.inner.flush(&mut order);
        }
    }

    /// As [`Session::flush`], but leaves it to the receiving thread when that has more frames at hand: what they lead to shares the
    /// record and the system call. That thread writes when it comes back for a frame that is not there, and after every few frames.
    pub fn flush_soon(&self) {
        // One of the two sees the other: `send_later` has set `later` before, and the receiving thread looks at it after `amid`.
        if !self.inner.amid.load(Ordering::SeqCst) {
            self.flush();
        }
    }

    /// Sends a frame like [`Session::send`], but is [`SendError::Full`] where that would wait.
    pub fn try_send(&self, body: &[u8], payload: &[&[u8]]) -> Result<(), SendError> {
        self.inner.send(Kind::Data, body, payload, Pace::Never)
    }

    /// Sends a small frame from the receiving thread, which writes it when it comes back to [`Session::recv`]; [`SendError::Full`] where
    /// [`Session::send_later`] would wait, be it for another sender.
    pub fn try_send_amid(&self, body: &[u8], payload: &[&[u8]]) -> Result<(), SendError> {
        self.inner.send(Kind::Data, body, payload, Pace::LaterNever)?;
        self.inner.amid.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Whether the receiving thread, which asks, has more frames at hand.
    pub fn is_amid(&self) -> bool {
        self.inner.amid.load(Ordering::SeqCst)
    }

    /// Waits for the next frame, across breaks of the link.
    pub fn recv(&self) -> Result<Frame, Closed> {
        let mut frame = Frame::default();
        self.recv_into(&mut frame)?;
        Ok(frame)
    }

    /// Waits for the next frame and puts it into a used one, whose buffers are used again.
    pub fn recv_into(&self, frame: &mut Frame) -> Result<(), Closed> {
        self.inner.recv_into(frame)
    }

    /// Tells how the connection is.
    pub fn state(&self) -> State {
        let book = lock(&self.inner.book);
        match (&book.closed, &book.link) {
            (Some(closed), _) => State::Closed(closed.clone()),
            (None, Link::Up) => State::Up,
            (None, Link::Down { since, why }) => State::Down {
                since: *since,
                why: why.clone(),
            },
        }
    }

    /// Closes the session: nothing more is sent, and the peer's `recv` ends after the last frame. Waits, at most
    /// [`SessionOptions::linger`], until the peer has everything.
    pub fn close(&self) {
        self.inner.close(self.inner.options.linger);
    }

    /// Breaks the connection, not the session: for tests, and for who knows of a dead link before the kernel does.
    pub fn cut(&self) {
        if let Some(socket) = &lock(&self.inner.book).socket {
            socket.shutdown();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.inner.close(Duration::ZERO);
    }
}

/// Draws a random number that is not 0.
fn random() -> Result<u64, LinkError> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("no random numbers from the kernel"))?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

impl Inner {
    fn new(session: u64, options: SessionOptions) -> Result<Arc<Self>, LinkError> {
        Ok(Arc::new(Self {
            options,
            book: Mutex::new(Book::new(session, random()?)),
            link: Condvar::new(),
            room: Condvar::new(),
            work: Condvar::new(),
            order: Mutex::new(None),
            later: AtomicBool::new(false),
            amid: AtomicBool::new(false),
            rx: Mutex::new(Rx::default()),
            attach: Mutex::new(()),
        }))
    }

    fn send(&self, kind: Kind, body: &[u8], payload: &[&[u8]], pace: Pace) -> Result<(), SendError> {
        let header = Header::new(kind, body.len(), payload.iter().map(|part| part.len()).sum())?;
        let mut bytes = Vec::with_capacity(header.body as usize + header.payload as usize);
        bytes.extend_from_slice(body);
        payload.iter().for_each(|part| bytes.extend_from_slice(part));
        let bytes = Arc::new(bytes);

        loop {
            let mut order = match self.order.try_lock() {
                Ok(order) => order,
                Err(TryLockError::Poisoned(poison)) => poison.into_inner(),
                // Who has it may be waiting for the peer to read.
                Err(TryLockError::WouldBlock) if pace == Pace::LaterNever => return Err(SendError::Full),
                Err(TryLockError::WouldBlock) => lock(&self.order),
            };
            let mut book = lock(&self.book);
            if let Some(closed) = &book.closed {
                return Err(closed.clone().into());
            }
            if book.closing && kind == Kind::Data {
                return Err(Closed::Here.into());
            }
            if kind != Kind::Data || book.has_room(bytes.len(), self.options.window) {
                let header = book.keep(header, bytes.clone());
                drop(book);
                self.push(&mut order, &header, &bytes);
                match pace {
                    Pace::Later | Pace::LaterNever => self.later.store(true, Ordering::SeqCst),
                    Pace::Now | Pace::Never => self.flush(&mut order),
                }
                return Ok(());
            }
            if matches!(pace, Pace::Never | Pace::LaterNever) {
                return Err(SendError::Full);
            }
            drop(book);
            // What was left for later may be what the peer is to acknowledge.
            self.flush(&mut order);
            drop(order);
            let mut book = lock(&self.book);
            book.waiting += 1;
            while book.closed.is_none() && !book.closing && !book.has_room(bytes.len(), self.options.window) {
                book = self.room.wait(book).unwrap_or_else(|poison| poison.into_inner());
            }
            book.waiting -= 1;
        }
    }

    /// Puts a frame behind what is to be written on the current connection; an error breaks the link, the frame is kept.
    fn push(&self, order: &mut Option<(u64, Sender)>, header: &Header, bytes: &[u8]) {
        self.with(order, |sender| sender.push_parts(&[&header.encode(), bytes]));
    }

    /// Writes what was pushed.
    fn flush(&self, order: &mut Option<(u64, Sender)>) {
        self.with(order, Sender::flush);
    }

    fn with(&self, order: &mut Option<(u64, Sender)>, work: impl FnOnce(&mut Sender) -> Result<(), LinkError>) {
        if let Some((generation, sender)) = order
            && let Err(error) = work(sender)
        {
            let generation = *generation;
            *order = None;
            self.broke(generation, &error);
        }
    }

    /// Writes a frame on the current connection.
    fn write(&self, order: &mut Option<(u64, Sender)>, header: &Header, bytes: &[u8]) {
        self.with(order, |sender| sender.write_parts(&[&header.encode(), bytes]));
    }

    /// Marks the connection of this generation broken; older ones are forgotten already.
    fn broke(&self, generation: u64, error: &dyn std::fmt::Display) {
        let mut book = lock(&self.book);
        if book.generation == generation {
            self.take_down(&mut book, error.to_string());
        }
    }

    fn take_down(&self, book: &mut Book, why: String) {
        if let Some(socket) = book.socket.take() {
            socket.shutdown();
        }
        book.fresh = None;
        if matches!(book.link, Link::Up) {
            tracing::debug!(session = book.session, why, "link down");
            book.link = Link::Down {
                since: Instant::now(),
                why,
            };
        }
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Ends the session for good.
    fn end(&self, closed: Closed) {
        let mut book = lock(&self.book);
        book.closed.get_or_insert(closed);
        self.take_down(&mut book, "closed".to_owned());
        self.link.notify_all();
    }

    fn recv_into(&self, frame: &mut Frame) -> Result<(), Closed> {
        let mut rx = lock(&self.rx);
        loop {
            let more = rx.current.as_mut().is_some_and(|(_, receiver)| receiver.is_at_hand());
            if !more || rx.handed >= AMID {
                rx.handed = 0;
                if self.amid.swap(false, Ordering::SeqCst) && self.later.swap(false, Ordering::SeqCst) {
                    self.flush_now();
                }
            }
            if rx.current.is_none() {
                rx.current = Some(self.next_connection(None)?.ok_or(Closed::Here)?);
            }
            if self.recv_step(&mut rx, frame)? {
                rx.handed += 1;
                let more = rx.current.as_mut().is_some_and(|(_, receiver)| receiver.is_at_hand());
                self.amid.store(more, Ordering::SeqCst);
                return Ok(());
            }
        }
    }

    /// Writes what waits, from the receiving thread: it must not wait for the peer to read, which may itself be waiting for this end to.
    fn flush_now(&self) {
        let mut order = match self.order.try_lock() {
            Ok(order) => order,
            Err(TryLockError::Poisoned(poison)) => poison.into_inner(),
            // Whoever has it writes, or flushes when it is done, and does not find this thread amid frames any more.
            Err(TryLockError::WouldBlock) => return self.later.store(true, Ordering::SeqCst),
        };
        let mut all = true;
        self.with(&mut order, |sender| {
            all = sender.flush_now()?;
            Ok(())
        });
        drop(order);
        if !all {
            // The keeper writes, and may wait.
            lock(&self.book).ack_due = true;
            self.work.notify_one();
        }
    }

    /// Waits for a connection to read from, for ever or until `deadline`.
    fn next_connection(&self, deadline: Option<Instant>) -> Result<Option<(u64, Receiver)>, Closed> {
        let mut book = lock(&self.book);
        loop {
            if let Some(closed) = &book.closed {
                return Err(closed.clone());
            }
            if let Some(fresh) = book.fresh.take() {
                return Ok(Some(fresh));
            }
            book = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(left) if left.is_zero() => return Ok(None),
                Some(left) => {
                    self.link
                        .wait_timeout(book, left)
                        .unwrap_or_else(|poison| poison.into_inner())
                        .0
                }
                None => self.link.wait(book).unwrap_or_else(|poison| poison.into_inner()),
            };
        }
    }

    /// Reads one frame; true when it is for the user.
    fn recv_step(&self, rx: &mut Rx, frame: &mut Frame) -> Result<bool, Closed> {
        let Some((generation, receiver)) = &mut rx.current else {
            return Ok(false);
        };
        let generation = *generation;
        if let Err(error) = receiver.recv_into(frame) {
            rx.current = None;
            let silent = matches!(&error, LinkError::Io(io) if io.kind() == io::ErrorKind::TimedOut);
            if silent {
                self.broke(
                    generation,
                    &format_args!("nothing heard for {:.1} s", self.options.silence.as_secs_f32()),
                );
            } else {
                self.broke(generation, &error);
            }
            return Ok(false);
        }
        let mut book = lock(&self.book);
        if book.generation != generation {
            // The peer was told that this frame is not here yet, and sends it again on the newer connection.
            rx.current = None;
            return Ok(false);
        }
        let taken = book.take(&frame.header);
        if book.waiting > 0 || book.closing {
            self.room.notify_all();
        }
        if book.ack_due {
            self.work.notify_one();
        }
        match taken {
            Ok(Taken::Deliver) => Ok(true),
            Ok(Taken::Nothing) => Ok(false),
            Ok(Taken::Close) => {
                book.closed.get_or_insert(Closed::Peer);
                self.room.notify_all();
                // The keeper acknowledges, then ends the connection.
                self.work.notify_all();
                Err(Closed::Peer)
            }
            Err(why) => {
                rx.current = None;
                let closed = Closed::Lost(why);
                book.closed.get_or_insert(closed.clone());
                self.take_down(&mut book, closed.to_string());
                Err(closed)
            }
        }
    }

    fn close(&self, linger: Duration) {
        {
            let mut book = lock(&self.book);
            if book.closed.is_some() || book.closing {
                return;
            }
            book.closing = true;
            self.room.notify_all();
        }
        let up = matches!(lock(&self.book).link, Link::Up);
        if up && !linger.is_zero() {
            let _ = self.send(Kind::Close, &[], &[], Pace::Never);
            self.linger(Instant::now() + linger);
        } else if up {
            self.close_at_once();
        }
        self.end(Closed::Here);
    }

    /// Tells the peer of the end if no sender is at work, without waiting for anything.
    fn close_at_once(&self) {
        let mut order = match self.order.try_lock() {
            Ok(order) => order,
            Err(TryLockError::Poisoned(poison)) => poison.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if let (Some((_, sender)), Ok(header)) = (order.as_mut(), Header::new(Kind::Close, 0, 0)) {
            let _ = sender.socket().set_timeout(None, Some(Duration::from_millis(100)));
            let header = lock(&self.book).keep(header, Arc::new(Vec::new()));
            let _ = sender.write_parts(&[&header.encode()]);
        }
    }

    /// Waits until the peer has everything, the link breaks, or `deadline`. Reads acknowledgements itself when nobody does.
    fn linger(&self, deadline: Instant) {
        let mut frame = Frame::default();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            {
                let book = lock(&self.book);
                let over = book.closed.is_some() || book.all_acknowledged() || matches!(book.link, Link::Down { .. });
                if over || left.is_zero() {
                    return;
                }
            }
            let Ok(mut rx) = self.rx.try_lock() else {
                let book = lock(&self.book);
                let pause = left.min(Duration::from_millis(20));
                drop(
                    self.room
                        .wait_timeout(book, pause)
                        .unwrap_or_else(|poison| poison.into_inner()),
                );
                continue;
            };
            if rx.current.is_none() {
                rx.current = self.next_connection(Some(deadline)).ok().flatten();
            }
            if let Some((_, receiver)) = &rx.current {
                let _ = receiver.socket().set_timeout(Some(left), None);
            }
            if self.recv_step(&mut rx, &mut frame).is_err() {
                return;
            }
        }
    }
}
