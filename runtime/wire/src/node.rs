//! Messages on the control link of two nodes' daemons, and the first bytes of every connection to a node's port.
//!
//! A message is four bytes of length (little endian, at most [`crate::limits::NODE_MESSAGE`]) and postcard, as in
//! [`crate::control`]. Both sides begin with [`NodeMessage::Hello`].

use crate::control::Fingerprint;
use crate::ids::{JobId, NodeName, Nonce};
use serde::{Deserialize, Serialize};

/// First bytes of a job stream; a [`crate::control::StreamHello`] with its length follows.
pub const STREAM_MAGIC: [u8; 4] = *b"mxj1";

/// First bytes of a control link without TLS. A link with TLS begins with TLS' own first byte.
pub const PLAIN_MAGIC: [u8; 4] = *b"mxn1";

/// First byte of a TLS connection: a handshake record.
pub const TLS_FIRST: u8 = 0x16;

/// TLS application protocol of a control link; another version of it is refused in the handshake.
pub const ALPN: &[u8] = b"mosix-node/1";

/// A message between two daemons.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NodeMessage {
    /// First message each way.
    Hello(NodeHello),
    /// The link is not wanted and ends; the reason is one line for both owners.
    Refused(Refusal),
    /// Are you there?
    Ping(u64),
    /// The answer to the ping of this number.
    Pong(u64),
    /// Something to do; answered under the same number, in any order.
    Request {
        /// Its number, unique on this link and in this direction.
        id: u64,
        /// What.
        request: NodeRequest,
    },
    /// The answer to a request.
    Answer {
        /// Its number.
        id: u64,
        /// The outcome, or the reason for the user.
        answer: Result<NodeAnswer, String>,
    },
    /// The daemon stops; its agents go on.
    Bye,
}

/// Who a daemon is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeHello {
    /// Its node.
    pub name: NodeName,
    /// Version of mosix.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
}

/// Why a link is not wanted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Refusal {
    /// There is a better one of the same two nodes.
    Duplicate,
    /// For this reason.
    Because(String),
}

/// What a daemon asks another to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NodeRequest {
    /// Have an agent for a job of the asking node: [`NodeAnswer::Agent`].
    OpenAgent {
        /// The job.
        job: JobId,
        /// The supervisor's life.
        home: Nonce,
        /// The certificate that the supervisor will show.
        supervisor: Fingerprint,
        /// The job's user at home.
        uid: u32,
    },
    /// The supervisor of a job of the asking node has ended, as its kernel says: end the job's agent, which waits for a home
    /// that will not come back. [`NodeAnswer::Done`].
    JobEnded {
        /// The job.
        job: JobId,
        /// The supervisor's life; an agent of another one is left alone.
        home: Nonce,
    },
}

/// What comes of a [`NodeRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NodeAnswer {
    /// The certificate that the agent will show.
    Agent {
        /// SHA-256 of it.
        fingerprint: Fingerprint,
    },
    /// It is done, or nothing was to be done.
    Done,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::decode;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode::<NodeMessage>(&bytes);
        }
    }

    #[test]
    fn first_bytes_differ() {
        assert!(STREAM_MAGIC[0] != TLS_FIRST && PLAIN_MAGIC[0] != TLS_FIRST && STREAM_MAGIC != PLAIN_MAGIC);
    }
}
