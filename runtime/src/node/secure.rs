//! TLS of the control links: mutual, TLS 1.3, with exactly the cluster's CA on both sides.

use super::keys::{NodeKeys, node_of};
use crate::link::tls::PROVIDER;
use mosix_wire::control::Fingerprint;
use mosix_wire::ids::NodeName;
use mosix_wire::node::ALPN;
use rustls::client::WebPkiServerVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error as TlsError, RootCertStore, ServerConfig,
    pki_types::ServerName, pki_types::UnixTime, version,
};
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Both ends' configuration of a node.
pub struct Secure {
    cluster: Fingerprint,
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl Secure {
    /// Prepares the node's keys for use.
    pub fn new(keys: NodeKeys) -> Result<Self, TlsError> {
        let other = |error: &dyn std::fmt::Display| TlsError::General(error.to_string());
        let mut roots = RootCertStore::empty();
        roots.add(keys.ca)?;
        let roots = Arc::new(roots);
        let chain = vec![keys.certificate];
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), PROVIDER.clone());
        let mut client = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .with_webpki_verifier(verifier.build().map_err(|error| other(&error))?)
            .with_client_auth_cert(chain.clone(), keys.key.clone_key())?;
        client.resumption = rustls::client::Resumption::disabled();
        client.alpn_protocols = vec![ALPN.to_vec()];
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, PROVIDER.clone());
        let mut server = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier.build().map_err(|error| other(&error))?)
            .with_single_cert(chain, keys.key)?;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self {
            cluster: keys.cluster,
            connector: Arc::new(client).into(),
            acceptor: Arc::new(server).into(),
        })
    }

    /// The cluster's id.
    pub fn cluster(&self) -> Fingerprint {
        self.cluster
    }

    /// Takes the dialling side of a connection through the handshake with the node of this name.
    pub async fn dial(&self, name: &NodeName, socket: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        let server = ServerName::try_from(name.0.clone()).map_err(io::Error::other)?;
        let stream = self.connector.connect(server, socket).await?;
        match peer(stream.get_ref().1.peer_certificates(), self.cluster) {
            Some(node) if node == *name => Ok(stream),
            Some(node) => Err(wrong(format!("the node there is {node}, not {name}"))),
            None => Err(wrong("its certificate names no node of this cluster".to_owned())),
        }
    }

    /// Takes the accepting side through the handshake and learns who dials.
    pub async fn accept(&self, socket: TcpStream) -> io::Result<(NodeName, server::TlsStream<TcpStream>)> {
        let stream = self.acceptor.accept(socket).await?;
        match peer(stream.get_ref().1.peer_certificates(), self.cluster) {
            Some(node) => Ok((node, stream)),
            None => Err(wrong("its certificate names no node of this cluster".to_owned())),
        }
    }
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, what)
}

fn peer(certificates: Option<&[rustls::pki_types::CertificateDer<'_>]>, cluster: Fingerprint) -> Option<NodeName> {
    node_of(certificates?.first()?, cluster)
}

/// Says in one line what went wrong on a control link.
pub fn describe(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(error) => describe_tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "the connection was closed".to_owned(),
        None if error.kind() == io::ErrorKind::ConnectionRefused => {
            "connection refused: does its mosixd run, and on this port?".to_owned()
        }
        None => error.to_string(),
    }
}

fn describe_tls(error: &TlsError) -> String {
    use AlertDescription as Alert;
    use CertificateError as Bad;
    match error {
        TlsError::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "its certificate is not of our cluster's CA".to_owned()
        }
        TlsError::InvalidCertificate(Bad::NotValidForName) => "its certificate is of another node".to_owned(),
        TlsError::InvalidCertificate(Bad::NotValidForNameContext { expected, presented }) => {
            let presented = presented
                .iter()
                .filter_map(|name| dns_name(name))
                .collect::<Vec<_>>()
                .join(", ");
            let expected = expected.to_str();
            format!("the node there is {presented}, not {expected}: compare the addresses of the peers")
        }
        TlsError::InvalidCertificate(Bad::ExpiredContext { time, not_after }) => format!(
            "its certificate is valid until {}, and here it is {}: set the clocks, or make new keys",
            date(*not_after),
            date(*time)
        ),
        TlsError::InvalidCertificate(Bad::NotValidYetContext { time, not_before }) => format!(
            "its certificate is valid from {}, and here it is {}: set the clocks",
            date(*not_before),
            date(*time)
        ),
        TlsError::InvalidCertificate(other) => format!("its certificate is wrong: {other:?}"),
        TlsError::AlertReceived(Alert::UnknownCA | Alert::DecryptError) => {
            "it refused our certificate, which is not of its cluster's CA".to_owned()
        }
        TlsError::AlertReceived(Alert::CertificateExpired) => {
            format!(
                "it refused our certificate as not valid at its time; here it is {}: compare the clocks",
                date(UnixTime::now())
            )
        }
        TlsError::AlertReceived(Alert::BadCertificate | Alert::CertificateUnknown) => {
            "it refused our certificate: its log says why".to_owned()
        }
        TlsError::AlertReceived(Alert::NoApplicationProtocol) | TlsError::NoApplicationProtocol => {
            "it speaks another version of the control link".to_owned()
        }
        TlsError::NoCertificatesPresented => "it showed no certificate".to_owned(),
        TlsError::InvalidMessage(_) => "it does not speak TLS: is its transport \"plain\"?".to_owned(),
        other => format!("TLS: {other}"),
    }
}

/// The name in `DnsName("n2")`, as the library prints it; other kinds of names say nothing to the reader.
fn dns_name(presented: &str) -> Option<&str> {
    presented.strip_prefix("DnsName(\"")?.strip_suffix("\")")
}

/// Days and minutes are enough to see what is wrong with a clock.
fn date(time: UnixTime) -> String {
    let secs = time.as_secs();
    let (mut year, mut days) = (1970_u64, secs / 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = |year| if leap(year) { 366 } else { 365 };
    // Certificates end in the year 9999 at the latest.
    while days >= length(year) && year < 10_000 {
        days -= length(year);
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!(
        "{year}-{month:02}-{:02} {:02}:{:02} UTC",
        days + 1,
        secs / 3600 % 24,
        secs / 60 % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::keys::{Authority, init, init_at, load};
    use std::time::{Duration, SystemTime};
    use tokio::io::AsyncReadExt;

    /// Both sides' words about a handshake of n1 with n2, whose certificate was made at `then`.
    fn meet(then: SystemTime) -> (Result<(), String>, Result<(), String>) {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        init(&one, "n1", &Authority::New).unwrap();
        init_at(&two, "n2", &Authority::folder(&one.join("keys")), then).unwrap();
        let secure = |dir, name: &str| Secure::new(load(dir, &NodeName(name.to_owned())).unwrap()).unwrap();
        let (n1, n2) = (secure(&one, "n1"), secure(&two, "n2"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let accept = async {
                let (socket, _) = listener.accept().await.unwrap();
                n1.accept(socket)
                    .await
                    .map(|(name, _)| assert_eq!(name.0, "n2"))
                    .map_err(|error| describe(&error))
            };
            let dial = async {
                let socket = TcpStream::connect(address).await.unwrap();
                let mut stream = n2
                    .dial(&NodeName("n1".to_owned()), socket)
                    .await
                    .map_err(|error| describe(&error))?;
                // A refused client certificate shows at the first read.
                match stream.read(&mut [0; 1]).await {
                    Ok(_) => Ok(()),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
                    Err(error) => Err(describe(&error)),
                }
            };
            tokio::join!(accept, dial)
        })
    }

    #[test]
    fn wrong_clocks_are_named_on_both_sides() {
        let day = Duration::from_secs(86_400);
        let now = SystemTime::now();
        assert_eq!(meet(now), (Ok(()), Ok(())));
        // A node whose clock is three weeks ahead made its certificate: no harm.
        assert_eq!(meet(now + 21 * day), (Ok(()), Ok(())));
        let (accepting, dialling) = meet(now + 400 * day);
        let said = accepting.unwrap_err();
        assert!(
            said.contains("is valid from 20") && said.contains("set the clocks"),
            "{said}"
        );
        assert!(dialling.is_err());
        let (accepting, dialling) = meet(now - 4000 * day);
        let said = accepting.unwrap_err();
        assert!(
            said.contains("is valid until 20") && said.contains("here it is 20"),
            "{said}"
        );
        let said = dialling.unwrap_err();
        assert!(
            said.contains("refused our certificate") && said.contains("compare the clocks"),
            "{said}"
        );
    }

    #[test]
    fn dates_are_readable() {
        let at = |secs| date(UnixTime::since_unix_epoch(Duration::from_secs(secs)));
        assert_eq!(at(0), "1970-01-01 00:00 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(at(1_795_334_399), "2026-11-22 07:59 UTC");
        assert_eq!(at(4_102_444_800), "2100-01-01 00:00 UTC");
    }
}
