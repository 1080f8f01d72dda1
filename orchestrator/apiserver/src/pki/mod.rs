//! The cluster's keys and certificates.
//!
//! Everything hangs off one certificate authority, made at the first start and kept in `D/pki`:
//! `ca.crt`, `ca.key`, and `sa.key`, which signs ServiceAccount tokens. Keys are readable by their owner only.
//! What a running primary needs for itself (its serving certificate, its client certificate towards kubelets)
//! is issued in memory at every start and again before it expires, so nothing on disk can grow stale.

mod authority;
mod files;
pub mod join;
mod kubeconfig;
pub mod request;
pub mod token;
mod validity;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use self::files::Access;
pub use self::{
    authority::{Authority, Issued, Profile},
    kubeconfig::kubeconfig,
    validity::Validity,
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// kubeadm's lifetimes are 10 years and 1 year as well.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Unless the cluster is opened with another: what pith's own processes use; they renew in time.
pub const CLIENT_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Nothing renews the administrator's kubeconfig while nobody looks, so it lasts as long as the authority.
const ADMIN_LIFETIME: Duration = AUTHORITY_LIFETIME;

/// The group that may do everything.
pub const MASTERS: &str = "system:masters";

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} does not hold a usable key or certificate")]
    Content {
        path: PathBuf,
        #[source]
        source: rcgen::Error,
    },
    #[error("cannot make a key or certificate for {subject}")]
    Issue {
        subject: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("the certificate request is refused: {0}")]
    Request(String),
    #[error("TLS configuration for {subject}")]
    Tls {
        subject: String,
        #[source]
        source: rustls::Error,
    },
}

/// The keys of one cluster.
#[derive(Debug)]
pub struct Pki {
    pub authority: Authority,
    /// Of the certificates that renew themselves: the primary's own and those of nodes.
    pub(crate) lifetime: Duration,
    /// PKCS#8 of the key that signs ServiceAccount tokens (ECDSA P-256).
    pub(crate) token_key: rcgen::KeyPair,
}

impl Pki {
    /// Reads the cluster's keys from `dir`, or makes them. What is issued to processes is good for `lifetime`.
    pub fn open(dir: &Path, lifetime: Duration) -> Result<Self, Error> {
        files::make_dir(dir)?;
        let authority = Authority::open(&dir.join("ca.crt"), &dir.join("ca.key"), AUTHORITY_LIFETIME)?;
        let path = dir.join("sa.key");
        let token_key = match files::read(&path)? {
            Some(pem) => rcgen::KeyPair::from_pem(&pem).map_err(|source| Error::Content { path, source })?,
            None => {
                let key = authority::new_key("service account tokens")?;
                files::write(&path, &key.serialize_pem(), Access::OwnerOnly)?;
                key
            }
        };
        Ok(Self { authority, lifetime, token_key })
    }

    /// The administrator's client certificate.
    pub fn admin(&self) -> Result<Issued, Error> {
        self.authority.issue(&Profile::client("kubernetes-admin", Some(MASTERS), ADMIN_LIFETIME))
    }

    /// What the primary shows to kubelets when it fetches logs or opens streams.
    pub fn kubelet_client(&self) -> Result<Issued, Error> {
        self.authority.issue(&Profile::client("kube-apiserver-kubelet-client", Some(MASTERS), self.lifetime))
    }

    /// What the primary shows to its clients.
    pub fn server(&self, names: &[String], addresses: &[IpAddr]) -> Result<Issued, Error> {
        self.authority.issue(&Profile::server("kube-apiserver", None, names, addresses, self.lifetime))
    }
}
