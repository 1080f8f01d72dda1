//! The server's side of TLS: its certificate and the client certificates it accepts; and how what it issues to
//! itself is renewed while it runs.

use std::{
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};

use crate::pki::{self, Pki};

/// The names that clients in the cluster and on the machine use.
const NAMES: &[&str] = &[
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// What the serving certificate is valid for.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) names: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Names {
    pub(crate) fn new(further: impl IntoIterator<Item = String>, addresses: Vec<IpAddr>) -> Self {
        let names = NAMES.iter().map(|&name| name.to_owned()).chain(further).collect();
        Self { names, addresses }
    }
}

/// Something made from a certificate, made anew when a third of the certificate's life is left.
pub(crate) struct Renewed<T> {
    lifetime: Duration,
    make: Box<dyn Fn() -> Result<Arc<T>, pki::Error> + Send + Sync>,
    current: ArcSwap<(Instant, Arc<T>)>,
}

impl<T> Renewed<T> {
    /// `make` issues from these keys.
    pub(crate) fn new(
        pki: &Pki,
        make: impl Fn() -> Result<Arc<T>, pki::Error> + Send + Sync + 'static,
    ) -> Result<Self, pki::Error> {
        let current = ArcSwap::from_pointee((Instant::now(), make()?));
        Ok(Self { lifetime: pki.lifetime, make: Box::new(make), current })
    }

    pub(crate) fn get(&self) -> Arc<T> {
        let current = self.current.load();
        if current.0.elapsed() > self.lifetime / 3 * 2 {
            match (self.make)() {
                // Two at once may both make one; either is good.
                Ok(fresh) => self.current.store(Arc::new((Instant::now(), fresh))),
                Err(error) => tracing::error!(%error, "cannot renew a certificate"),
            }
        }
        self.current.load().1.clone()
    }
}

impl<T> fmt::Debug for Renewed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewed").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Serving(Renewed<CertifiedKey>);

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.get())
    }
}

fn issue(pki: &Pki, names: &Names) -> Result<Arc<CertifiedKey>, pki::Error> {
    let failed = |source| pki::Error::Tls { subject: "the server".to_owned(), source };
    let issued = pki.server(&names.names, &names.addresses)?;
    let (chain, key) = issued.der().expect("a certificate that was just issued is PEM");
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(failed)?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

/// TLS 1.2 and 1.3, HTTP/2 or 1.1, client certificates of the cluster's authority welcome but not required.
pub(crate) fn server_config(pki: &Arc<Pki>, names: Names) -> Result<Arc<ServerConfig>, pki::Error> {
    let failed = |source| pki::Error::Tls { subject: "the server".to_owned(), source };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(pki.authority.certificate_der()).map_err(failed)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| failed(rustls::Error::General(error.to_string())))?;
    let issuer = pki.clone();
    let serving = Renewed::new(pki, move || issue(&issuer, &names))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Serving(serving)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
