//! Messages on the unix sockets of a node: to `mosixd` (`<state dir>/control.sock`) and to an agent
//! (`<state dir>/agents/<job>.sock`); and the hello that opens a job stream between two nodes.
//!
//! On a unix socket a message is four bytes of length (little endian, at most [`limits::CONTROL_MESSAGE`]) and postcard. A
//! descriptor that belongs to a message travels with its first byte by SCM_RIGHTS. A connection carries one request after
//! the other, each with one answer.
//!
//! ```mermaid
//! sequenceDiagram
//!     supervisor->>mosixd n1: OpenAgent{n2, job, fingerprint}
//!     mosixd n1->>mosixd n2: the same, over the control link
//!     mosixd n2->>agent: starts it
//!     agent-->>mosixd n2: fingerprint
//!     mosixd n2-->>supervisor: Agent{fingerprint}
//!     supervisor->>mosixd n1: OpenStream{n2, job}
//!     mosixd n1->>mosixd n2: new TCP connection, StreamHello
//!     mosixd n2->>agent: AgentMessage::Stream + descriptor
//!     mosixd n2-->>mosixd n1: StreamAnswer::Ok
//!     mosixd n1-->>supervisor: Stream + descriptor
//!     supervisor->>agent: TLS 1.3, pinned keys
//! ```

use crate::ids::{JobId, NodeName, Nonce};
use crate::limits;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fmt;

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a fingerprint is 64 hexadecimal digits")]
pub struct NotAFingerprint;

impl std::str::FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.as_bytes();
        if bytes.len() != 64 || !bytes.iter().all(u8::is_ascii_hexdigit) {
            return Err(NotAFingerprint);
        }
        let mut out = [0; 32];
        for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| NotAFingerprint)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| NotAFingerprint)?;
        }
        Ok(Self(out))
    }
}

/// What a job stream is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Purpose {
    /// A connection of the session of supervisor and agent.
    Session,
    /// Pages of one move, from the supervisor or from another agent of the job.
    Pages,
}

/// A request for an agent of a job on a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpenAgent {
    /// Where the agent shall be.
    pub node: NodeName,
    /// The job.
    pub job: JobId,
    /// The supervisor's life; an agent of an older life is replaced.
    pub home: Nonce,
    /// The certificate that the supervisor will show to the agent.
    pub supervisor: Fingerprint,
    /// The job's user at home, in the user namespace of home's daemon.
    pub uid: u32,
}

/// To `mosixd`, from the command line, supervisors and agents of its node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// What this daemon is: [`Response::Status`].
    Status,
    /// The peers and their state: [`Response::Nodes`].
    Nodes,
    /// End the daemon; agents go on. [`Response::Stopping`].
    Stop,
    /// Have an agent of the job on a node: [`Response::Agent`].
    OpenAgent(OpenAgent),
    /// Open a stream to the job's agent on a node: [`Response::Stream`] with the connected socket.
    OpenStream {
        /// Where the agent is.
        node: NodeName,
        /// The job.
        job: JobId,
        /// What for.
        purpose: Purpose,
    },
}

/// From `mosixd`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Nodes`].
    Nodes(Vec<Peer>),
    /// To [`Request::Stop`].
    Stopping,
    /// To [`Request::OpenAgent`]: the certificate that the agent will show.
    Agent {
        /// SHA-256 of it.
        fingerprint: Fingerprint,
    },
    /// To [`Request::OpenStream`]; the message carries the socket.
    Stream,
    /// It could not be done; the reason is one line for the user.
    Error(String),
    /// To [`Request::OpenStream`]: the node was reached, and the job's agent there has ended. It will not come back; whatever
    /// bodies it had are dead.
    NoAgent(String),
}

/// What a daemon says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Its node.
    pub node: NodeName,
    /// Version of mosix.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Address and port it listens on.
    pub listen: String,
    /// `tls` or `plain`.
    pub transport: String,
    /// SHA-256 of the cluster's CA certificate; absent without TLS.
    pub cluster: Option<Fingerprint>,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// Agents on this node.
    pub agents: Vec<AgentStatus>,
}

/// An agent as its daemon sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The job.
    pub job: JobId,
    /// The job's home; unknown after a restart of the daemon until the agent said it.
    pub home: NodeName,
    /// Process id of the agent.
    pub pid: u32,
    /// The job's user at home.
    pub uid: u32,
    /// The daemon was restarted since the agent started.
    pub adopted: bool,
}

/// A peer as its daemon sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: NodeName,
    /// Its address as configured.
    pub address: String,
    /// This very node.
    pub local: bool,
    /// The control link stands.
    pub up: bool,
    /// Seconds since `up` last changed.
    pub since_s: u64,
    /// Kernel release, when the link stood once.
    pub kernel: Option<String>,
    /// Version of mosix, when the link stood once.
    pub version: Option<String>,
    /// Round trip of the last keepalive in microseconds.
    pub rtt_us: Option<u64>,
    /// Why the link is down, or why it was.
    pub last_error: Option<String>,
}

/// To an agent, over its own socket, by the daemon of its node only.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AgentMessage {
    /// Who are you: [`AgentAnswer::Identity`]. The connection stays open; its end tells the daemon that the agent ended.
    Identify,
    /// A stream for you; the message carries the socket. [`AgentAnswer::Taken`].
    Stream(StreamHello),
}

/// From an agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AgentAnswer {
    /// To [`AgentMessage::Identify`].
    Identity(AgentIdentity),
    /// To [`AgentMessage::Stream`].
    Taken,
}

/// What an agent says of itself to a daemon that does not know it (any more).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AgentIdentity {
    /// The job.
    pub job: JobId,
    /// The job's home node.
    pub home_node: NodeName,
    /// The supervisor's life.
    pub home: Nonce,
    /// The certificate that the agent shows.
    pub fingerprint: Fingerprint,
    /// The certificate that the supervisor shows.
    pub supervisor: Fingerprint,
    /// The job's user at home.
    pub uid: u32,
}

/// First bytes of a job stream, in plain: names the job, proves nothing. Keys are checked by the two ends, by TLS.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StreamHello {
    /// The job.
    pub job: JobId,
    /// What for.
    pub purpose: Purpose,
    /// The node of the dialling end.
    pub from: NodeName,
}

/// What the listening node says to a [`StreamHello`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum StreamAnswer {
    /// The agent has the stream; the next bytes are between the ends.
    Ok,
    /// The agent does not answer; the connection ends.
    No(String),
    /// There is no agent of the job (any more); the connection ends.
    NoAgent(String),
}

/// Why a message could not be made or read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MessageError {
    /// It is longer than allowed.
    #[error("message of {0} bytes, at most {1} are allowed")]
    Long(usize, usize),
    /// It is not the message that was expected.
    #[error("bytes are not a valid message")]
    Malformed,
}

/// Encodes a message with its length in front.
pub fn encode<T: Serialize>(message: &T, limit: usize) -> Result<Vec<u8>, MessageError> {
    let mut bytes = postcard::to_extend(message, vec![0; 4]).map_err(|_| MessageError::Malformed)?;
    let len = bytes.len() - 4;
    if len > limit {
        return Err(MessageError::Long(len, limit));
    }
    let len = u32::try_from(len).map_err(|_| MessageError::Long(len, limit))?;
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    Ok(bytes)
}

/// Reads the length in front of a message and checks it.
pub fn decode_len(bytes: [u8; 4], limit: usize) -> Result<usize, MessageError> {
    let len = u32::from_le_bytes(bytes) as usize;
    if len > limit {
        Err(MessageError::Long(len, limit))
    } else {
        Ok(len)
    }
}

/// Decodes a message after its length; left-over bytes are an error.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(MessageError::Malformed),
    }
}

/// Makes one bounded line of a reason: control characters of a peer never reach a terminal or a log.
pub fn reason(text: impl fmt::Display) -> String {
    let mut line: String = text
        .to_string()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if line.len() > limits::REASON {
        let cut = (0..=limits::REASON - 3)
            .rev()
            .find(|at| line.is_char_boundary(*at))
            .unwrap_or(0);
        line.truncate(cut);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_come_back_and_limits_hold() {
        let request = Request::OpenStream {
            node: NodeName("n2".into()),
            job: JobId(7),
            purpose: Purpose::Pages,
        };
        let bytes = encode(&request, limits::CONTROL_MESSAGE).unwrap();
        let len = decode_len([bytes[0], bytes[1], bytes[2], bytes[3]], limits::CONTROL_MESSAGE).unwrap();
        assert_eq!(len, bytes.len() - 4);
        assert_eq!(decode::<Request>(&bytes[4..]), Ok(request.clone()));
        assert_eq!(
            decode::<Request>(&bytes[4..bytes.len() - 1]),
            Err(MessageError::Malformed)
        );
        assert_eq!(encode(&request, 2), Err(MessageError::Long(len, 2)));
        assert_eq!(
            decode_len(u32::MAX.to_le_bytes(), 9),
            Err(MessageError::Long(u32::MAX as usize, 9))
        );
    }

    #[test]
    fn a_hostile_string_length_allocates_nothing() {
        // Response::Error with a string that claims 2^62 bytes.
        let bytes = [5, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40];
        assert_eq!(decode::<Response>(&bytes), Err(MessageError::Malformed));
    }

    #[test]
    fn fingerprints_are_text_and_back() {
        let print = Fingerprint([0xa5; 32]);
        assert_eq!(print.to_string().parse(), Ok(print));
        assert!("a5".parse::<Fingerprint>().is_err());
        assert!("ä".repeat(32).parse::<Fingerprint>().is_err());
    }

    #[test]
    fn reasons_are_one_bounded_line() {
        assert_eq!(reason("a\n\x1b[31mb"), "a  [31mb");
        let long = reason("ä".repeat(1000));
        assert!(long.len() <= limits::REASON && long.ends_with('…'));
    }

    proptest! {
        #[test]
        fn garbage_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Response>(&bytes);
            let _ = decode::<AgentMessage>(&bytes);
            let _ = decode::<AgentAnswer>(&bytes);
            let _ = decode::<StreamHello>(&bytes);
            let _ = decode::<StreamAnswer>(&bytes);
        }
    }
}
