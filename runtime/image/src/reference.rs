//! Names of images, as Docker reads them: `nginx` is `docker.io/library/nginx:latest`.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::Reference as OciReference;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// A normalised reference. With a digest the tag is only decoration, and is dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference(OciReference);

impl Reference {
    pub fn parse(text: &str) -> Result<Reference> {
        let bad = |reason: String| Error::BadReference { text: text.to_owned(), reason };
        let parsed: OciReference = text.parse().map_err(|e| bad(format!("{e}")))?;
        if let Some(digest) = parsed.digest() {
            digest.parse::<Digest>().map_err(|e| bad(e.to_string()))?;
            return Ok(Reference(parsed.clone_with_digest(digest.to_owned())));
        }
        Ok(Reference(parsed))
    }

    pub fn registry(&self) -> &str {
        self.0.registry()
    }

    pub fn repository(&self) -> &str {
        self.0.repository()
    }

    pub fn tag(&self) -> Option<&str> {
        self.0.tag()
    }

    pub fn digest(&self) -> Option<Digest> {
        self.0.digest().and_then(|digest| digest.parse().ok())
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry(), self.repository())
    }

    /// The same repository, at a digest: how Kubernetes reports the image a container runs.
    pub fn with_digest(&self, digest: &Digest) -> Reference {
        Reference(self.0.clone_with_digest(digest.to_string()))
    }

    /// Registries on this machine speak plain HTTP, as Docker assumes too.
    pub(crate) fn is_local_registry(&self) -> bool {
        let registry = self.registry();
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        host == "localhost" || host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        Reference::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalise_table() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let tagged_digest = format!("nginx:1.25@sha256:{hex}");
        let as_digest = format!("docker.io/library/nginx@sha256:{hex}");
        let cases = [
            ("nginx", Some("docker.io/library/nginx:latest")),
            ("nginx:1.25", Some("docker.io/library/nginx:1.25")),
            ("bitnami/redis", Some("docker.io/bitnami/redis:latest")),
            ("index.docker.io/library/nginx", Some("docker.io/library/nginx:latest")),
            ("pith.local/demo:v1", Some("pith.local/demo:v1")),
            ("localhost/demo", Some("localhost/demo:latest")),
            ("127.0.0.1:5000/a/b:c", Some("127.0.0.1:5000/a/b:c")),
            (tagged_digest.as_str(), Some(as_digest.as_str())),
            ("", None),
            ("NGINX", None),
            ("nginx:", None),
            ("nginx:bad tag", None),
            ("../etc/passwd", None),
            ("nginx@sha256:12", None),
        ];
        for (text, expect) in cases {
            let parsed = Reference::parse(text).ok().map(|r| r.to_string());
            assert_eq!(parsed.as_deref(), expect, "{text:?}");
        }
    }

    #[test]
    fn local_registries() {
        for (text, local) in [
            ("localhost:5000/x", true),
            ("127.0.0.1:5000/x", true),
            ("localhost/x", true),
            ("quay.io/x", false),
            ("10.0.0.1:5000/x", false),
        ] {
            assert_eq!(Reference::parse(text).expect(text).is_local_registry(), local, "{text}");
        }
    }
}
