//! The registry of one reference as a pull sees it: its hosts, asked in turn until one has what is wanted.

use oci_spec::image::{Descriptor, ImageIndex};
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use serde_json::Value;

use crate::blocking::blocking;
use crate::digest::Digest;
use crate::endpoint::{Endpoint, Want};
use crate::error::{Error, Result};
use crate::hosts::hosts;
use crate::keychain::Keychain;
use crate::layout::{self, digest_of};
use crate::reference::Reference;
use crate::store::Store;

const INDEX_DEPTH_MAX: usize = 4;
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// A document and its digest.
pub(crate) type Document = (Digest, Vec<u8>);

pub(crate) struct Registry {
    endpoints: Vec<Endpoint>,
    reference: Reference,
    document_bytes: u64,
}

impl Registry {
    pub(crate) async fn open(store: &Store, reference: &Reference, keychain: &Keychain) -> Result<Registry> {
        let (inner, keychain, wanted) = (store.inner.clone(), keychain.clone(), reference.clone());
        let endpoints = blocking(move || {
            let mut endpoints = Vec::new();
            for host in hosts(inner.hosts_dir.as_deref(), &wanted)? {
                let key = if host.is_own { wanted.registry_key().to_owned() } else { host.key() };
                let auths = keychain.lookup(&key, wanted.repository(), host.is_own)?;
                endpoints.push(Endpoint::new(host, wanted.repository(), auths, inner.timeouts)?);
            }
            Ok(endpoints)
        })
        .await?;
        let document_bytes = store.inner.limits.document_bytes;
        Ok(Registry { endpoints, reference: reference.clone(), document_bytes })
    }

    /// The manifest for this platform, and every name that leads to it.
    pub(crate) async fn manifest(&self, store: &Store) -> Result<(Document, Vec<Reference>)> {
        let mut names = vec![self.reference.clone()];
        let mut wanted = self.reference.clone();
        for _ in 0..INDEX_DEPTH_MAX {
            let (got, bytes) = self.fetch_manifest(&wanted).await?;
            names.push(self.reference.with_digest(&got));
            let value: Value = layout::parse(&format!("manifest {got}"), &bytes)?;
            if value.get("manifests").is_none() {
                if value.get("schemaVersion") == Some(&Value::from(1)) {
                    return Err(Error::Unsupported {
                        what: format!("manifest {got}"),
                        reason: "schema 1 was given up by Docker in 2019; push the image again".to_owned(),
                    });
                }
                names.dedup();
                return Ok(((got, bytes), names));
            }
            let index: ImageIndex = layout::parse(&format!("index {got}"), &bytes)?;
            let chosen = store.inner.platform.choose(&self.reference.to_string(), &index)?;
            wanted = self.reference.with_digest(&digest_of(chosen)?);
        }
        Err(Error::corrupt(self.reference.to_string(), "the index", "indexes are nested too deep"))
    }

    async fn fetch_manifest(&self, wanted: &Reference) -> Result<Document> {
        let expected = wanted.digest();
        let tag = wanted.tag().unwrap_or("latest");
        let rest = format!("manifests/{}", expected.as_ref().map_or(tag, Digest::as_str));
        let what = format!("the manifest of {wanted}");
        self.verified(&what, &rest, Some(MANIFEST_TYPES), expected.as_ref()).await
    }

    /// A small blob, verified.
    pub(crate) async fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        let expected = digest_of(descriptor)?;
        let what = format!("blob {expected}");
        self.verified(&what, &format!("blobs/{expected}"), None, Some(&expected)).await
    }

    /// From the first host that has it; whose digest is known is asked of hosts that may not say what a tag means.
    async fn verified(
        &self,
        what: &str,
        rest: &str,
        accept: Option<&str>,
        expected: Option<&Digest>,
    ) -> Result<Document> {
        let may = |at: &&Endpoint| if expected.is_some() { at.host.pull } else { at.host.resolve };
        let mut last = None;
        for endpoint in self.endpoints.iter().filter(may) {
            let error = match self.document_from(endpoint, what, rest, accept).await {
                Err(error) => error,
                Ok(bytes) => match (Digest::of(&bytes), expected) {
                    (got, Some(expected)) if got != *expected => {
                        let (blob, expected) = (what.to_owned(), expected.clone());
                        Error::DigestMismatch { blob, expected, got }
                    }
                    (got, _) => return Ok((got, bytes)),
                },
            };
            last = Some(self.passed_over(endpoint, error));
        }
        Err(self.named(last))
    }

    async fn document_from(
        &self,
        endpoint: &Endpoint,
        what: &str,
        rest: &str,
        accept: Option<&str>,
    ) -> Result<Vec<u8>> {
        let action = format!("fetching {what}");
        let want = Want { action: &action, rest, accept, from: 0, mirror_of: self.mirror_of(endpoint) };
        let response = endpoint.get(&want).await?;
        let what = format!("{what} from {}", endpoint.host.key());
        endpoint.body(&action, &what, response, self.document_bytes).await
    }

    /// A blob from `from` on, if the host can, else from its beginning: where it begins. Each attempt begins with
    /// another host, so that one that always breaks does not keep the others from being asked.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        from: u64,
        attempt: usize,
    ) -> Result<(&Endpoint, Response, u64)> {
        let action = format!("fetching blob {digest}");
        let rest = format!("blobs/{digest}");
        let able: Vec<&Endpoint> = self.endpoints.iter().filter(|endpoint| endpoint.host.pull).collect();
        let mut last = None;
        for n in 0..able.len() {
            let endpoint = able[(n + attempt) % able.len()];
            let mut want = Want { action: &action, rest: &rest, accept: None, from, mirror_of: None };
            want.mirror_of = self.mirror_of(endpoint);
            let answer = match endpoint.get(&want).await {
                Ok(response) if begins_at(&response, from) => return Ok((endpoint, response, from)),
                Ok(response) if response.status() == StatusCode::OK => return Ok((endpoint, response, 0)),
                // It cannot send that part: then all of it.
                Ok(_) => endpoint.get(&Want { from: 0, ..want }).await,
                Err(error) => Err(error),
            };
            let error = match answer {
                Ok(response) if response.status() == StatusCode::OK => return Ok((endpoint, response, 0)),
                Ok(response) => endpoint.error(&action, format!("it answers {}", response.status())),
                Err(error) => error,
            };
            last = Some(self.passed_over(endpoint, error));
        }
        Err(match last {
            // The image is there: what is missing is a part of it.
            Some(Error::NotFound { .. }) => Error::Registry {
                registry: self.reference.registry().to_owned(),
                action,
                reason: "it has no such blob".to_owned(),
            },
            other => self.named(other),
        })
    }

    pub(crate) fn hosts_to_pull_from(&self) -> usize {
        self.endpoints.iter().filter(|endpoint| endpoint.host.pull).count()
    }

    fn mirror_of(&self, endpoint: &Endpoint) -> Option<&str> {
        (!endpoint.host.is_own).then(|| self.reference.registry_key())
    }

    /// The next host is asked.
    fn passed_over(&self, endpoint: &Endpoint, error: Error) -> Error {
        tracing::debug!(image = %self.reference, host = endpoint.host.key(), %error, "a host did not serve");
        error
    }

    /// Of the hosts that were asked the last one counts: the registry itself.
    fn named(&self, last: Option<Error>) -> Error {
        match last {
            Some(Error::NotFound { .. }) => Error::NotFound { reference: self.reference.to_string() },
            Some(error) => error,
            None => Error::BadConfiguration {
                path: std::path::PathBuf::from("hosts.toml"),
                reason: format!("no host may be asked for {}", self.reference),
            },
        }
    }
}

/// Whether it is the rest of something, from that byte on: some send another part than was asked for.
fn begins_at(response: &Response, from: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse::<u64>().ok());
    response.status() == StatusCode::PARTIAL_CONTENT && first == Some(from)
}
