//! Who may ask: the server's certificate, and what a client's certificate says.

use std::sync::Arc;

use rustls::{RootCertStore, ServerConfig, ServerConnection, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::Serving;

/// The kubelet's certificate or the authority's is not usable.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{0} is not PEM: {1}")]
    Pem(&'static str, String),
    #[error("the server's certificate")]
    Certificate(#[source] rustls::Error),
    #[error("the clients' authority: {0}")]
    Authority(String),
}

/// The identity by which an API server shows itself, and the group that may do anything.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
const MASTERS: &str = "system:masters";

/// What a client's certificate makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    Trusted,
    /// It showed none.
    Unknown,
    /// One that is not let in, by its name.
    Refused(String),
}

pub(super) fn config(serving: &Serving) -> Result<ServerConfig, TlsError> {
    let chain = certificates("the certificate", &serving.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(serving.key.as_bytes())
        .map_err(|e| TlsError::Pem("the key", e.to_string()))?;
    let mut roots = RootCertStore::empty();
    for ca in certificates("the clients' authority", &serving.client_ca)? {
        roots.add(ca).map_err(|e| TlsError::Authority(e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // Those without a certificate are answered, with 401, so that they learn why.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| TlsError::Authority(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificate)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(TlsError::Certificate)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match parsed {
        Ok(list) if list.is_empty() => Err(TlsError::Pem(what, "it holds no certificate".to_owned())),
        Ok(list) => Ok(list),
        Err(e) => Err(TlsError::Pem(what, e.to_string())),
    }
}

/// The certificate's chain has been verified by the handshake; this reads whose it is.
pub(super) fn standing(connection: &ServerConnection) -> Standing {
    match connection.peer_certificates().and_then(<[_]>::first) {
        Some(certificate) => subject(certificate),
        None => Standing::Unknown,
    }
}

fn subject(certificate: &CertificateDer<'_>) -> Standing {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Standing::Unknown };
    let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().map(str::to_owned).ok();
    let name = parsed.subject().iter_common_name().find_map(text).unwrap_or_default();
    let is_master = parsed.subject().iter_organization().filter_map(text).any(|o| o == MASTERS);
    match is_master || name == API_SERVER {
        true => Standing::Trusted,
        false => Standing::Refused(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str, group: Option<&str>) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
        }
        let key = rcgen::KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().clone()
    }

    #[test]
    fn who_is_let_in() {
        let cases = [
            ("kube-apiserver-kubelet-client", None, Standing::Trusted),
            ("someone", Some("system:masters"), Standing::Trusted),
            (
                "system:node:replica-1",
                Some("system:nodes"),
                Standing::Refused("system:node:replica-1".into()),
            ),
        ];
        for (name, group, expect) in cases {
            assert_eq!(subject(&certificate(name, group)), expect, "{name}");
        }
    }
}
