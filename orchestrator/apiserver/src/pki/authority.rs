//! The certificate authority: issues, and names itself by the hash of its key.

use std::{
    fmt,
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use sha2::{Digest, Sha256};

use super::{DAY, Error, files, files::Access};

/// A certificate with its key.
#[derive(Clone)]
pub struct Issued {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

/// Who a certificate is for, and for what.
#[derive(Clone, Debug)]
pub struct Profile {
    /// CN: the user name.
    pub common_name: String,
    /// O: the group. One at most: rcgen writes no second value of a name part.
    pub organization: Option<String>,
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    pub lifetime: Duration,
}

impl Profile {
    /// For a client.
    pub fn client(common_name: &str, organization: Option<&str>, lifetime: Duration) -> Self {
        Self {
            common_name: common_name.to_owned(),
            organization: organization.map(str::to_owned),
            names: Vec::new(),
            addresses: Vec::new(),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
            lifetime,
        }
    }

    /// For a server that is reached by these names and addresses.
    pub fn server(
        common_name: &str,
        organization: Option<&str>,
        names: &[String],
        addresses: &[IpAddr],
        lifetime: Duration,
    ) -> Self {
        Self {
            names: names.to_vec(),
            addresses: addresses.to_vec(),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
            ..Self::client(common_name, organization, lifetime)
        }
    }

    fn params(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut params = valid_for(self.lifetime);
        let mut subject = DistinguishedName::new();
        if let Some(organization) = &self.organization {
            subject.push(DnType::OrganizationName, organization.as_str());
        }
        subject.push(DnType::CommonName, self.common_name.as_str());
        params.distinguished_name = subject;
        for name in &self.names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(self.addresses.iter().map(|&address| SanType::IpAddress(address)));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = self.usages.clone();
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

/// For clocks that disagree a certificate is good for a while before it was made, within reason for one of a short
/// life: what is left of its life is then known from itself.
fn backdated(lifetime: Duration) -> Duration {
    (lifetime / 10).min(Duration::from_secs(3600))
}

/// From a bit ago until the lifetime is over.
fn valid_for(lifetime: Duration) -> CertificateParams {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.not_before = epoch + now.saturating_sub(backdated(lifetime));
    params.not_after = epoch + now + lifetime;
    params
}

/// A fresh ECDSA P-256 key.
pub(super) fn new_key(subject: &str) -> Result<KeyPair, Error> {
    KeyPair::generate().map_err(|source| Error::Issue { subject: subject.to_owned(), source })
}

/// The cluster's certificate authority.
#[derive(Debug)]
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the authority, or makes it.
    pub(super) fn open(certificate: &Path, key: &Path, lifetime: Duration) -> Result<Self, Error> {
        let content = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Content { path, source }
        };
        let (certificate_pem, key) = match (files::read(certificate)?, files::read(key)?) {
            (Some(certificate_pem), Some(key_pem)) => {
                (certificate_pem, KeyPair::from_pem(&key_pem).map_err(content(key))?)
            }
            _ => {
                let fresh = new_key("the cluster's authority")?;
                let issue = |source| Error::Issue { subject: "the cluster's authority".to_owned(), source };
                let pem = authority_params(lifetime).self_signed(&fresh).map_err(issue)?.pem();
                files::write(key, &fresh.serialize_pem(), Access::OwnerOnly)?;
                files::write(certificate, &pem, Access::Everyone)?;
                (pem, fresh)
            }
        };
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(content(certificate))?;
        Ok(Self { certificate_pem, issuer })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub fn certificate_der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())
            .expect("the authority's certificate was read when it was opened")
    }

    /// `sha256:<hex>` of the authority's public key, as kubeadm writes it for `--discovery-token-ca-cert-hash`.
    pub fn key_hash(&self) -> String {
        key_hash(&self.issuer.key().subject_public_key_info())
    }

    /// Makes a key and a certificate for it.
    pub fn issue(&self, profile: &Profile) -> Result<Issued, Error> {
        let failed = |source| Error::Issue { subject: profile.common_name.clone(), source };
        let key = new_key(&profile.common_name)?;
        let certificate =
            profile.params().and_then(|params| params.signed_by(&key, &self.issuer)).map_err(failed)?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// A certificate for a key that someone else holds.
    pub(super) fn sign(&self, profile: &Profile, key: &impl PublicKeyData) -> Result<String, Error> {
        let failed = |source| Error::Issue { subject: profile.common_name.clone(), source };
        let certificate =
            profile.params().and_then(|params| params.signed_by(key, &self.issuer)).map_err(failed)?;
        Ok(certificate.pem())
    }
}

/// `sha256:<hex>` of a public key in its SubjectPublicKeyInfo form.
pub(super) fn key_hash(subject_public_key_info: &[u8]) -> String {
    let digest = Sha256::digest(subject_public_key_info);
    digest.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn authority_params(lifetime: Duration) -> CertificateParams {
    let mut params = valid_for(lifetime.max(DAY));
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, "pith");
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

impl Issued {
    /// In the form that TLS takes.
    pub fn der(&self) -> Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>().ok()?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(self.key_pem.as_bytes()).ok()?;
        Some((chain, key.into()))
    }
}
