//! Keys of a cluster and of its nodes: made by `mosix node init`, read by the daemon.
//!
//! A cluster is its certificate authority: its id is the hash of the CA's certificate. A node's certificate carries its name
//! twice: as DNS name (`n1`), which the dialling side checks, and as URI (`mosix://<cluster id>/n1`), from which the
//! accepting side takes it, and which no other cluster's CA can pass off as ours.
//!
//! ```text
//! <state dir>/keys/        0700
//!   ca.pem                 the cluster's certificate
//!   ca.key                 0600, only where the CA was made: whoever has it can make nodes
//!   node.pem  node.key     0600
//! ```

use super::config::check_name;
use super::paths;
use crate::link::tls::fingerprint;
use mosix_wire::control::Fingerprint;
use mosix_wire::ids::NodeName;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Certificates are valid this long before they are made: nodes whose clocks are behind can use them at once.
const BEFORE: Duration = Duration::from_secs(30 * 86_400);

/// And this long after.
const AFTER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Why keys could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file or folder.
    #[error("{path}")]
    File {
        /// It.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder has keys already.
    #[error("{path} exists: this node has keys already; remove the folder {folder} to make new ones", folder = .path.parent().unwrap_or(.path).display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There are no keys yet.
    #[error(
        "no keys in {folder}: make them with `mosix node init`, or set transport = \"plain\" on an isolated network"
    )]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// A key file that others can read.
    #[error("{path} can be read by others (mode {mode:o}): chmod 600 it, and make new keys if it was seen")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file is not what its name says.
    #[error("{path}: {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The name is no node name.
    #[error("{0:?} {1}")]
    Name(String, &'static str),
    /// A certificate could not be made.
    #[error("making a certificate")]
    Make(#[from] rcgen::Error),
}

/// The CA that signs a new node's certificate.
#[derive(Clone, Debug)]
pub enum Authority {
    /// A new one: this node begins a cluster.
    New,
    /// An existing one, from its files.
    Files {
        /// Its certificate.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

impl Authority {
    /// The CA in a folder: `keys` of the node that made it, or one made by [`create_authority`].
    pub fn folder(dir: &Path) -> Self {
        Self::Files {
            certificate: dir.join("ca.pem"),
            key: dir.join("ca.key"),
        }
    }
}

/// Makes keys for a node: the body of `mosix node init`. Gives the cluster's id.
pub fn init(state_dir: &Path, name: &str, authority: &Authority) -> Result<Fingerprint, KeyError> {
    init_at(state_dir, name, authority, SystemTime::now())
}

/// Makes keys as if it were `now`.
pub(super) fn init_at(
    state_dir: &Path,
    name: &str,
    authority: &Authority,
    now: SystemTime,
) -> Result<Fingerprint, KeyError> {
    let node = check_name(name).map_err(|why| KeyError::Name(name.to_owned(), why))?;
    let mode = if rustix::process::geteuid().is_root() {
        0o711
    } else {
        0o700
    };
    let folder = paths::keys_dir(state_dir);
    for (dir, mode) in [(state_dir, mode), (&folder, 0o700)] {
        paths::create_dir(dir, mode).map_err(|source| KeyError::File {
            path: dir.to_owned(),
            source,
        })?;
    }
    for file in ["node.pem", "node.key", "ca.pem"] {
        let path = folder.join(file);
        if path.exists() {
            return Err(KeyError::Exists { path });
        }
    }
    let (ca, issuer) = match authority {
        Authority::New => {
            create_authority(&folder)?;
            load_authority(&folder.join("ca.pem"), &folder.join("ca.key"))?
        }
        Authority::Files { certificate, key } => load_authority(certificate, key)?,
    };
    let cluster = fingerprint(&ca.der);
    let (certificate, key) = sign(&node, cluster, &issuer, now)?;
    if matches!(authority, Authority::Files { .. }) {
        write(&folder.join("ca.pem"), &ca.pem, 0o644)?;
    }
    write(&folder.join("node.key"), &key.serialize_pem(), 0o600)?;
    write(&folder.join("node.pem"), &certificate.pem(), 0o644)?;
    Ok(cluster)
}

/// Makes a CA in a folder of its own, `ca.pem` and `ca.key`; for whoever keeps it apart from the nodes.
pub fn create_authority(dir: &Path) -> Result<Fingerprint, KeyError> {
    paths::create_dir(dir, 0o700).map_err(|source| KeyError::File {
        path: dir.to_owned(),
        source,
    })?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = named("mosix cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, SystemTime::now());
    let certificate = params.self_signed(&key)?;
    write(&dir.join("ca.key"), &key.serialize_pem(), 0o600)?;
    write(&dir.join("ca.pem"), &certificate.pem(), 0o644)?;
    Ok(fingerprint(certificate.der()))
}

struct Ca {
    pem: String,
    der: CertificateDer<'static>,
}

fn load_authority(certificate: &Path, key: &Path) -> Result<(Ca, Issuer<'static, KeyPair>), KeyError> {
    let pem = read(certificate)?;
    let der = first_certificate(certificate, &pem)?;
    check_private(key)?;
    let secret = KeyPair::from_pem(&read(key)?).map_err(|error| KeyError::Content {
        path: key.to_owned(),
        what: format!("no private key: {error}"),
    })?;
    let wrong = |what: String| KeyError::Content {
        path: certificate.to_owned(),
        what,
    };
    let (_, parsed) =
        X509Certificate::from_der(&der).map_err(|error| wrong(format!("no X.509 certificate: {error}")))?;
    if !parsed.is_ca() {
        return Err(wrong(
            "not a CA's certificate: give the cluster's ca.pem, not a node's".to_owned(),
        ));
    }
    if parsed.public_key().subject_public_key.as_ref() != secret.public_key_raw() {
        return Err(wrong(format!("does not belong to the key {}", key.display())));
    }
    let issuer = Issuer::from_ca_cert_der(&der, secret)?;
    Ok((Ca { pem, der }, issuer))
}

/// Makes a certificate valid around `now`.
fn set_validity(params: &mut CertificateParams, now: SystemTime) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + now.saturating_sub(BEFORE);
    params.not_after = epoch + now + AFTER;
}

fn named(name: &str) -> DistinguishedName {
    let mut out = DistinguishedName::new();
    out.push(DnType::CommonName, name);
    out
}

fn sign(
    node: &NodeName,
    cluster: Fingerprint,
    issuer: &Issuer<'_, KeyPair>,
    now: SystemTime,
) -> Result<(rcgen::Certificate, KeyPair), KeyError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = named(&node.0);
    params.subject_alt_names = vec![
        SanType::DnsName(node.0.as_str().try_into()?),
        SanType::URI(uri(cluster, node).as_str().try_into()?),
    ];
    params.is_ca = IsCa::NoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now);
    let certificate = params.signed_by(&key, issuer)?;
    Ok((certificate, key))
}

fn uri(cluster: Fingerprint, node: &NodeName) -> String {
    format!("mosix://{cluster}/{node}")
}

/// The name of a node of this cluster, out of its certificate. `None` when it names no node of it, or several.
pub fn node_of(certificate: &[u8], cluster: Fingerprint) -> Option<NodeName> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (uri, None) = (uris.next()?, uris.next()) else {
        return None;
    };
    let (id, name) = uri.strip_prefix("mosix://")?.split_once('/')?;
    if id.parse() != Ok(cluster) {
        return None;
    }
    check_name(name).ok()
}

/// What a daemon needs to prove itself and to know its cluster.
#[derive(Debug)]
pub struct NodeKeys {
    /// The cluster's id.
    pub cluster: Fingerprint,
    /// The CA's certificate.
    pub ca: CertificateDer<'static>,
    /// The node's certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

/// Reads a node's keys and checks that they are its own and nobody else's to read.
pub fn load(state_dir: &Path, name: &NodeName) -> Result<NodeKeys, KeyError> {
    let folder = paths::keys_dir(state_dir);
    let (ca_path, node_path, key_path) = (folder.join("ca.pem"), folder.join("node.pem"), folder.join("node.key"));
    if !node_path.exists() && !key_path.exists() {
        return Err(KeyError::Missing { folder });
    }
    let ca = first_certificate(&ca_path, &read(&ca_path)?)?;
    let certificate = first_certificate(&node_path, &read(&node_path)?)?;
    check_private(&key_path)?;
    let key = PrivateKeyDer::from_pem_slice(read(&key_path)?.as_bytes()).map_err(|error| KeyError::Content {
        path: key_path.clone(),
        what: format!("no private key: {error}"),
    })?;
    let cluster = fingerprint(&ca);
    match node_of(&certificate, cluster) {
        Some(node) if node == *name => {}
        Some(node) => {
            let what =
                format!("this is the certificate of {node}, but the configuration says that this node is {name}");
            return Err(KeyError::Content { path: node_path, what });
        }
        None => {
            let what = format!("this certificate is of another cluster than {}", ca_path.display());
            return Err(KeyError::Content { path: node_path, what });
        }
    }
    Ok(NodeKeys {
        cluster,
        ca,
        certificate,
        key,
    })
}

fn first_certificate(path: &Path, pem: &str) -> Result<CertificateDer<'static>, KeyError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| KeyError::Content {
        path: path.to_owned(),
        what: format!("no certificate in PEM: {error}"),
    })
}

fn read(path: &Path) -> Result<String, KeyError> {
    std::fs::read_to_string(path).map_err(|source| KeyError::File {
        path: path.to_owned(),
        source,
    })
}

/// Refuses a key that others can read: what its secrecy was worth is unknown.
fn check_private(path: &Path) -> Result<(), KeyError> {
    let meta = std::fs::metadata(path).map_err(|source| KeyError::File {
        path: path.to_owned(),
        source,
    })?;
    match meta.mode() & 0o777 {
        mode if mode & 0o077 != 0 => Err(KeyError::Exposed {
            path: path.to_owned(),
            mode,
        }),
        _ => Ok(()),
    }
}

/// Writes a new file; never over one that exists, and never wider open than `mode`, not even for a moment.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), KeyError> {
    let file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|source| {
            if source.kind() == io::ErrorKind::AlreadyExists {
                KeyError::Exists { path: path.to_owned() }
            } else {
                KeyError::File {
                    path: path.to_owned(),
                    source,
                }
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_cluster_of_two_is_made_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        let cluster = init(&one, "n1", &Authority::New).unwrap();
        assert_eq!(
            init(&two, "n2", &Authority::folder(&one.join("keys"))).unwrap(),
            cluster
        );
        let keys = load(&two, &NodeName("n2".into())).unwrap();
        assert_eq!(
            (keys.cluster, node_of(&keys.certificate, cluster)),
            (cluster, Some(NodeName("n2".into())))
        );
        assert_eq!(node_of(&keys.certificate, Fingerprint([0; 32])), None);
        assert_eq!(node_of(&keys.ca, cluster), None);
        for (path, wanted) in [
            ("1/keys", 0o700),
            ("1/keys/ca.key", 0o600),
            ("1/keys/node.key", 0o600),
            ("2/keys", 0o700),
        ] {
            assert_eq!(mode(&dir.path().join(path)), wanted, "{path}");
        }
        assert!(!two.join("keys/ca.key").exists());
        // Not twice, and not under another name.
        assert!(matches!(
            init(&one, "n1", &Authority::New),
            Err(KeyError::Exists { .. })
        ));
        let said = load(&two, &NodeName("n3".into())).unwrap_err().to_string();
        assert!(said.contains("n2") && said.contains("n3"), "{said}");
    }

    #[test]
    fn bad_keys_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        let n1 = NodeName("n1".into());
        assert!(matches!(load(&one, &n1), Err(KeyError::Missing { .. })));
        init(&one, "n1", &Authority::New).unwrap();
        create_authority(&two).unwrap();
        let mixed = Authority::Files {
            certificate: two.join("ca.pem"),
            key: one.join("keys/ca.key"),
        };
        assert!(
            init(&dir.path().join("3"), "n3", &mixed)
                .unwrap_err()
                .to_string()
                .contains("does not belong")
        );
        let leaf = Authority::Files {
            certificate: one.join("keys/node.pem"),
            key: one.join("keys/node.key"),
        };
        assert!(
            init(&dir.path().join("4"), "n3", &leaf)
                .unwrap_err()
                .to_string()
                .contains("not a CA")
        );
        assert!(init(&dir.path().join("5"), "N3", &Authority::New).is_err());

        let ca = one.join("keys/ca.pem");
        let own = std::fs::read(&ca).unwrap();
        std::fs::copy(two.join("ca.pem"), &ca).unwrap();
        assert!(load(&one, &n1).unwrap_err().to_string().contains("another cluster"));
        std::fs::write(&ca, own).unwrap();
        let key = one.join("keys/node.key");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(&one, &n1), Err(KeyError::Exposed { mode: 0o640, .. })));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&key, "garbage").unwrap();
        assert!(load(&one, &n1).unwrap_err().to_string().contains("node.key"));
    }
}
