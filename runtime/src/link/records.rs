//! TLS 1.3 records after the handshake, made and opened here: the library's own layer costs a call more than its cryptography.
//!
//! rustls makes the handshake, hands over the traffic secrets, and derives the next ones
//! ([`rustls::kernel`]); this is the interface it offers for records made by a kernel. A record is a header of 5 bytes, the
//! ciphertext of its content and one byte of content type, and a tag of 16 bytes
//! ([RFC 8446, section 5.2](https://www.rfc-editor.org/rfc/rfc8446#section-5.2)).
//!
//! The two directions share nothing but the key schedule, so that neither waits for the other.

use super::stream::LinkError;
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, ConnectionTrafficSecrets, Error};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Plaintext bytes of a full record.
pub(super) const RECORD: usize = 16 << 10;

/// Bytes of a record's header.
const HEADER: usize = 5;

/// Bytes of a record's tag.
const TAG: usize = 16;

/// Most bytes behind a record's header: content, type, padding, tag (RFC 8446, 5.2).
const MOST: usize = RECORD + 256;

/// Records after which a sender takes a new key; the limit for AES-GCM is 2^24.5 full ones (RFC 8446, 5.5).
const KEY_LIFE: u64 = 1 << 23;

const APPLICATION_DATA: u8 = 23;
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;

/// A handshake message that says: from here on with the next key; the peer need not.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// An alert that says: nothing follows.
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// The key schedule of a connection.
pub(super) struct Schedule {
    side: Mutex<Side>,
    /// The peer has asked for a new key of this end's.
    asked: AtomicBool,
}

pub(super) enum Side {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Schedule {
    pub(super) fn new(side: Side) -> Arc<Self> {
        Arc::new(Self {
            side: Mutex::new(side),
            asked: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Side> {
        self.side.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn next_sealing(&self) -> Result<Key, LinkError> {
        let (seq, secrets) = match &mut *self.lock() {
            Side::Client(kernel) => kernel.update_tx_secret()?,
            Side::Server(kernel) => kernel.update_tx_secret()?,
        };
        Key::new(seq, &secrets)
    }

    fn next_opening(&self) -> Result<Key, LinkError> {
        let (seq, secrets) = match &mut *self.lock() {
            Side::Client(kernel) => kernel.update_rx_secret()?,
            Side::Server(kernel) => kernel.update_rx_secret()?,
        };
        Key::new(seq, &secrets)
    }
}

/// The key of one direction, and the number of its next record.
pub(super) struct Key {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    seq: u64,
}

impl Key {
    pub(super) fn new(seq: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, LinkError> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(LinkError::NotTls),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| LinkError::Exhausted)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv: iv.as_ref().try_into().map_err(|_| LinkError::NotTls)?,
            seq,
        })
    }

    /// The nonce of the next record; each is given out once.
    fn nonce(&mut self) -> Result<Nonce, LinkError> {
        let mut nonce = self.iv;
        for (byte, seq) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.seq.to_be_bytes()) {
            *byte ^= seq;
        }
        self.seq = self.seq.checked_add(1).ok_or(LinkError::Exhausted)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

fn header(behind: usize) -> Result<[u8; HEADER], LinkError> {
    let [high, low] = u16::try_from(behind).map_err(|_| LinkError::Exhausted)?.to_be_bytes();
    Ok([APPLICATION_DATA, 3, 3, high, low])
}

/// Bytes on their way to the socket. The room behind them stays initialised: clearing it anew for every record would cost a good part
/// of its encryption.
#[derive(Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    used: usize,
}

impl Output {
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    pub(super) fn len(&self) -> usize {
        self.used
    }

    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// Forgets the first `count` bytes; not while a record is open.
    pub(super) fn drop_first(&mut self, count: usize) {
        let count = count.min(self.used);
        self.bytes.copy_within(count..self.used, 0);
        self.used -= count;
    }

    /// The next `count` bytes, to be written.
    fn next(&mut self, count: usize) -> &mut [u8] {
        let begin = self.used;
        self.used += count;
        if self.bytes.len() < self.used {
            self.bytes.resize(self.used, 0);
        }
        &mut self.bytes[begin..self.used]
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.next(bytes.len()).copy_from_slice(bytes);
    }

    /// All bytes from `begin` on.
    fn from(&mut self, begin: usize) -> &mut [u8] {
        &mut self.bytes[begin..self.used]
    }
}

/// Makes the records of one direction.
pub(super) struct Sealer {
    key: Key,
    schedule: Arc<Schedule>,
    /// Where in the output a record begins that still has room.
    open: Option<usize>,
}

impl Sealer {
    pub(super) fn new(key: Key, schedule: Arc<Schedule>) -> Self {
        Self {
            key,
            schedule,
            open: None,
        }
    }

    /// Appends `plain` to `out`, in whole records and one that [`Self::seal`] ends.
    pub(super) fn push(&mut self, mut plain: &[u8], out: &mut Output) -> Result<(), LinkError> {
        while !plain.is_empty() {
            let Some(begin) = self.open else {
                self.renew(out)?;
                if plain.len() >= RECORD {
                    let (now, rest) = plain.split_at(RECORD);
                    self.whole(now, out)?;
                    plain = rest;
                } else {
                    self.open = Some(out.len());
                    out.next(HEADER);
                }
                continue;
            };
            let room = (RECORD + HEADER).saturating_sub(out.len() - begin);
            let (now, rest) = plain.split_at(plain.len().min(room));
            out.extend(now);
            plain = rest;
            if now.len() == room {
                self.seal(out)?;
            }
        }
        Ok(())
    }

    /// Ends the record that was begun, if any.
    pub(super) fn seal(&mut self, out: &mut Output) -> Result<(), LinkError> {
        match self.open.take() {
            Some(begin) => self.end(begin, APPLICATION_DATA, out),
            None => Ok(()),
        }
    }

    /// A record of content that lies elsewhere is encrypted from there.
    fn whole(&mut self, plain: &[u8], out: &mut Output) -> Result<(), LinkError> {
        let header = header(plain.len() + 1 + TAG)?;
        out.extend(&header);
        let nonce = self.key.nonce()?;
        let (cipher, tail) = out.next(plain.len() + 1 + TAG).split_at_mut(plain.len());
        self.key
            .key
            .seal_out_of_place_scatter(nonce, Aad::from(header), plain, cipher, &[APPLICATION_DATA], tail)
            .map_err(|_| LinkError::Exhausted)
    }

    /// Makes a record of what lies behind the room for a header at `begin`.
    fn end(&mut self, begin: usize, kind: u8, out: &mut Output) -> Result<(), LinkError> {
        out.extend(&[kind]);
        let header = header(out.len() - begin - HEADER + TAG)?;
        let nonce = self.key.nonce()?;
        let (head, content) = out.from(begin).split_at_mut(HEADER);
        head.copy_from_slice(&header);
        let tag = self
            .key
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), content)
            .map_err(|_| LinkError::Exhausted)?;
        out.extend(tag.as_ref());
        Ok(())
    }

    fn message(&mut self, kind: u8, content: &[u8], out: &mut Output) -> Result<(), LinkError> {
        self.seal(out)?;
        let begin = out.len();
        out.next(HEADER);
        out.extend(content);
        self.end(begin, kind, out)
    }

    /// Takes a new key when this one was used enough, or the peer wants it.
    fn renew(&mut self, out: &mut Output) -> Result<(), LinkError> {
        if self.key.seq < KEY_LIFE && !self.schedule.asked.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.update(out)
    }

    fn update(&mut self, out: &mut Output) -> Result<(), LinkError> {
        self.message(HANDSHAKE, &KEY_UPDATE, out)?;
        self.schedule.asked.store(false, Ordering::Relaxed);
        self.key = self.schedule.next_sealing()?;
        Ok(())
    }

    /// Appends a close_notify alert, so that the peer can tell an end from a cut.
    pub(super) fn close(&mut self, out: &mut Output) -> Result<(), LinkError> {
        self.message(ALERT, &CLOSE_NOTIFY, out)
    }

    /// As if the key had been used up.
    #[cfg(test)]
    pub(super) fn wear_out(&mut self) {
        self.schedule.asked.store(true, Ordering::Relaxed);
    }
}

/// What the first bytes of the input are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Opened {
    /// So many bytes are a record, with data in this part of them; none in a message that was for this layer.
    Record(usize, std::ops::Range<usize>),
    /// More bytes are needed.
    Starved,
    /// The peer has closed its direction properly.
    Closed,
}

/// Opens the records of one direction.
pub(super) struct OpenerKey {
    key: Key,
    schedule: Arc<Schedule>,
}

impl OpenerKey {
    pub(super) fn new(key: Key, schedule: Arc<Schedule>) -> Self {
        Self { key, schedule }
    }

    /// Decrypts the record at the start of `input`, in place.
    pub(super) fn open(&mut self, input: &mut [u8]) -> Result<Opened, LinkError> {
        let Some((head, rest)) = input.split_first_chunk_mut::<HEADER>() else {
            return Ok(Opened::Starved);
        };
        let [APPLICATION_DATA, 3, 3, high, low] = *head else {
            return Err(LinkError::NotTls);
        };
        let behind = usize::from(u16::from_be_bytes([high, low]));
        if !(1 + TAG..=MOST).contains(&behind) {
            return Err(LinkError::NotTls);
        }
        let Some(body) = rest.get_mut(..behind) else {
            return Ok(Opened::Starved);
        };
        let nonce = self.key.nonce()?;
        let (content, tag) = body.split_at_mut(behind - TAG);
        self.key
            .key
            .open_in_place_separate_tag(nonce, Aad::from(*head), tag, content)
            .map_err(|_| LinkError::Tls(Error::DecryptError))?;
        // Zeros behind the type are padding.
        let Some(last) = content.iter().rposition(|byte| *byte != 0) else {
            return Err(LinkError::NotTls);
        };
        let (content, kind) = (&content[..last], content[last]);
        let data = match kind {
            APPLICATION_DATA if content.len() <= RECORD => HEADER..HEADER + last,
            ALERT => {
                return match *content {
                    [_, 0] => Ok(Opened::Closed),
                    [_, why] => Err(Error::AlertReceived(AlertDescription::from(why)).into()),
                    _ => Err(LinkError::NotTls),
                };
            }
            // The only handshake message between us; it must end its record.
            HANDSHAKE => {
                let [24, 0, 0, 1, wants @ (0 | 1)] = *content else {
                    return Err(LinkError::NotTls);
                };
                if wants == 1 {
                    self.schedule.asked.store(true, Ordering::Relaxed);
                }
                self.key = self.schedule.next_opening()?;
                0..0
            }
            _ => return Err(LinkError::NotTls),
        };
        Ok(Opened::Record(HEADER + behind, data))
    }
}
