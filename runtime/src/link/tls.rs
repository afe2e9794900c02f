//! Keys of a job: a self-signed certificate per end, the other end's pinned by SHA-256.
//!
//! There is no authority to ask: a supervisor and its agents learn each other's fingerprints through the node daemons, whose
//! links are authenticated by the cluster's CA. A certificate is good when its hash is the expected one *and* its owner
//! signed the handshake; names and dates in it mean nothing.

use mosix_wire::control::Fingerprint;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme, version,
};
use std::collections::HashSet;
use std::sync::{Arc, LazyLock, RwLock};

/// Protocol name in the handshake: a job's end never takes a node's control link for one of its own.
const ALPN: &[u8] = b"mosix-job/1";

/// Why keys or a TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate could not be generated.
    #[error("generating the job's certificate")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refuses the configuration.
    #[error("setting up TLS")]
    Setup(#[from] rustls::Error),
}

/// The cryptography of all links: AES-128-GCM first, the fastest by far where AES is in the CPU; key exchange with X25519
/// and ML-KEM, so that memory recorded today cannot be read by the quantum computer of tomorrow.
pub(crate) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::{cipher_suite as suite, kx_group as group};
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![group::X25519MLKEM768, group::X25519, group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
});

/// Hashes a certificate in DER.
pub fn fingerprint(certificate: &[u8]) -> Fingerprint {
    let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, certificate);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    Fingerprint(out)
}

/// The key pair and certificate of one end of a job's links, for the life of its process. Never written anywhere.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    fingerprint: Fingerprint,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Generates a P-256 key pair and its certificate; takes well under a millisecond.
    pub fn generate() -> Result<Self, TlsError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = rcgen::CertificateParams::new(vec!["job.mosix".to_owned()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        let certificate = params.self_signed(&key)?;
        let certificate = certificate.der().clone();
        let fingerprint = fingerprint(&certificate);
        Ok(Self {
            certificate,
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
            fingerprint,
        })
    }

    /// The hash by which the other end knows this one.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }
}

/// The certificates that an end accepts; shared, and may change while links run (a move between hosts adds the source).
#[derive(Clone, Debug, Default)]
pub struct Pins(Arc<RwLock<HashSet<Fingerprint>>>);

impl Pins {
    /// Accepts exactly this certificate.
    pub fn one(fingerprint: Fingerprint) -> Self {
        let pins = Self::default();
        pins.add(fingerprint);
        pins
    }

    /// Accepts this certificate too.
    pub fn add(&self, fingerprint: Fingerprint) {
        self.0
            .write()
            .unwrap_or_else(|poison| poison.into_inner())
            .insert(fingerprint);
    }

    /// Accepts this certificate no longer on new connections.
    pub fn remove(&self, fingerprint: Fingerprint) {
        self.0
            .write()
            .unwrap_or_else(|poison| poison.into_inner())
            .remove(&fingerprint);
    }

    /// Whether a certificate is accepted.
    pub fn accepts(&self, fingerprint: Fingerprint) -> bool {
        self.0
            .read()
            .unwrap_or_else(|poison| poison.into_inner())
            .contains(&fingerprint)
    }
}

/// How a stream is protected.
#[derive(Clone)]
pub enum Security {
    /// Mutual TLS 1.3 with pinned certificates.
    Tls {
        /// Configuration of a dialling end.
        client: Arc<ClientConfig>,
        /// Configuration of an accepting end.
        server: Arc<ServerConfig>,
    },
    /// Nothing, because the node's configuration says `transport = "plain"`.
    Plain,
}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tls { .. } => "tls",
            Self::Plain => "plain",
        })
    }
}

impl Security {
    /// Mutual TLS as `identity`, with peers out of `pins`.
    pub fn tls(identity: &Identity, pins: &Pins) -> Result<Self, TlsError> {
        let verifier = Arc::new(Pinned { pins: pins.clone() });
        let chain = vec![identity.certificate.clone()];
        let mut client = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_auth_cert(chain.clone(), identity.key())?;
        client.resumption = rustls::client::Resumption::disabled();
        client.enable_sni = false;
        // Records are made in `records`, with the secrets of the handshake.
        client.enable_secret_extraction = true;
        client.alpn_protocols = vec![ALPN.to_vec()];
        let mut server = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, identity.key())?;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.enable_secret_extraction = true;
        server.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self::Tls {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }
}

/// Verifies certificates by hash, and handshake signatures by the certificate's key.
#[derive(Debug)]
struct Pinned {
    pins: Pins,
}

impl Pinned {
    fn check(&self, end_entity: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        if chain.is_empty() && self.pins.accepts(fingerprint(end_entity)) {
            return Ok(());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn signature(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &PROVIDER.signature_verification_algorithms,
        )
    }
}

fn no_tls12() -> rustls::Error {
    rustls::PeerIncompatible::Tls12NotOffered.into()
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A configuration that shows one identity's certificate and signs with another's key.
    pub(in crate::link) fn mixed(shown: &Identity, signs: &Identity) -> Result<ServerConfig, rustls::Error> {
        ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![shown.certificate.clone()], signs.key())
    }

    #[test]
    fn identities_differ_and_are_quick_to_make() {
        let begun = std::time::Instant::now();
        let all: HashSet<_> = (0..50).map(|_| Identity::generate().unwrap().fingerprint()).collect();
        println!("{:?} per identity", begun.elapsed() / 50);
        assert_eq!(all.len(), 50);
    }

    #[test]
    fn a_signature_by_another_key_is_refused() {
        use rustls::internal::msgs::codec::{Codec, Reader};
        let (honest, mallory) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let message = b"transcript";
        let signed = |identity: &Identity| {
            let key = PROVIDER.key_provider.load_private_key(identity.key()).unwrap();
            let scheme = SignatureScheme::ECDSA_NISTP256_SHA256;
            let signature = key.choose_scheme(&[scheme]).unwrap().sign(message).unwrap();
            let mut bytes = Vec::new();
            scheme.encode(&mut bytes);
            bytes.extend_from_slice(&(signature.len() as u16).to_be_bytes());
            bytes.extend_from_slice(&signature);
            DigitallySignedStruct::read(&mut Reader::init(&bytes)).unwrap()
        };
        assert!(Pinned::signature(message, &honest.certificate, &signed(&honest)).is_ok());
        assert!(Pinned::signature(message, &honest.certificate, &signed(&mallory)).is_err());
        assert!(Pinned::signature(b"other", &honest.certificate, &signed(&honest)).is_err());
    }
}
