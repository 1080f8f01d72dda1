//! Pulling: registry → partial blobs on disk → verified → layers. Async here, because here is the network;
//! hashing, writing and unpacking happen on blocking threads.
//!
//! A pull that breaks leaves what it has in `partial`, and the next attempt (of this pull or of a later one) asks
//! the registry for the rest. Nothing of a blob is used before all of it has been hashed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use oci_spec::image::{Descriptor, ImageManifest};
use tokio::time::Instant;

use crate::blocking::blocking;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::keychain::Keychain;
use crate::layer::Installed;
use crate::layout::{self, Documents, digest_of};
use crate::partial::{self, Partial};
use crate::progress::{Event, Progress, Step};
use crate::reference::Reference;
use crate::registry::Registry;
use crate::store::{Image, Store};

/// Docker's and containerd's default too.
const PARALLEL_LAYERS: usize = 3;
/// Attempts for one blob within one pull without getting on; each goes on where the last one stopped.
const ATTEMPTS_MAX: u32 = 5;
/// So much more on disk is getting on: a line that breaks every few minutes still brings a large layer.
const GETTING_ON: u64 = 1 << 20;
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A host that sends less than this within the time for one piece of an answer is as good as gone.
const TRICKLE: u64 = 4096;

impl Store {
    /// Pulls an image. Layers that are in the store already are not transferred; others arrive in parallel.
    ///
    /// Dropping the future stops the pull; what has arrived serves the next one.
    pub async fn pull(
        &self,
        reference: &Reference,
        keychain: &Keychain,
        progress: Arc<dyn Progress>,
    ) -> Result<Image> {
        let store = self.clone();
        let _busy = blocking(move || store.lock_shared("busy")).await?;
        let registry = Registry::open(self, reference, keychain).await?;
        let label = reference.to_string();

        let (manifest, names) = registry.manifest(self).await?;
        let parsed: ImageManifest = layout::parse(&format!("manifest {}", manifest.0), &manifest.1)?;
        layout::check_manifest(&label, &parsed)?;
        let config = registry.document(parsed.config()).await?;
        let documents = Documents::new(&label, &self.inner.platform, manifest, config)?;
        documents.check_layer_count(parsed.layers().len())?;
        let layers: BTreeMap<&Digest, &Descriptor> = documents.diff_ids.iter().zip(parsed.layers()).collect();
        let bytes = layers.values().fold(0_u64, |sum, layer| sum.saturating_add(layer.size()));
        progress.report(&Event::Resolved { image: &label, layers: layers.len(), bytes });

        // Made before the stream: a closure over references inside it would keep this future from being `Send`.
        let jobs: Vec<_> = layers
            .into_iter()
            .map(|(diff_id, descriptor)| {
                let job = LayerJob { store: self, registry: &registry, diff_id, progress: &progress };
                async move { job.run(descriptor).await }
            })
            .collect();
        let sizes: Vec<u64> =
            futures::stream::iter(jobs).buffer_unordered(PARALLEL_LAYERS).try_collect().await?;

        let store = self.clone();
        let image = blocking(move || store.commit(&documents, &names, sizes.iter().sum(), false)).await?;
        progress.report(&Event::Stored { image: &label, id: &image.id });
        Ok(image)
    }
}

/// One layer of one pull.
struct LayerJob<'p> {
    store: &'p Store,
    registry: &'p Registry,
    diff_id: &'p Digest,
    progress: &'p Arc<dyn Progress>,
}

impl LayerJob<'_> {
    fn report(&self, step: Step) {
        self.progress.report(&Event::Layer { diff_id: self.diff_id, step });
    }

    /// Bytes of its files.
    async fn run(&self, descriptor: &Descriptor) -> Result<u64> {
        let digest = digest_of(descriptor)?;
        let (store, diff_id, blob) = (self.store.clone(), self.diff_id.clone(), digest.clone());
        let (lock, present) = blocking(move || {
            let lock = store.lock_layer(&diff_id)?;
            let present = store.layer_bytes(&diff_id)?;
            if present.is_some() {
                // Of a pull that was killed when the layer was in place.
                partial::remove(&store, &blob)?;
            }
            Ok((lock, present))
        })
        .await?;
        if let Some(bytes) = present {
            self.report(Step::Present);
            return Ok(bytes);
        }
        let limit = self.store.inner.limits.archive_bytes;
        if descriptor.size() > limit {
            return Err(Error::TooLarge { what: format!("blob {digest}"), limit });
        }
        let mut partial = Partial::open(self.store, &digest, descriptor.size()).await?;
        if let Err(error) = self.download(&mut partial).await {
            // A full disk needs what is here more than the next pull does.
            if !matches!(error, Error::Registry { .. }) {
                partial.remove()?;
            }
            return Err(layout::explain_missing(descriptor, error));
        }

        self.report(Step::Unpacking);
        let (store, diff_id) = (self.store.clone(), self.diff_id.clone());
        let installed = blocking(move || {
            let file = partial.verify()?;
            // Its digest was computed while it arrived: it is not verified a second time.
            let installed = store.install_layer(&lock, &diff_id, &format!("blob {digest}"), None, &*file);
            partial.remove()?;
            installed
        })
        .await?;
        self.report(match installed {
            Installed::Present(_) => Step::Present,
            Installed::New(bytes) => Step::Unpacked { bytes },
        });
        Ok(installed.bytes())
    }

    /// Fetches until the blob is whole and its digest is right.
    async fn download(&self, partial: &mut Partial) -> Result<()> {
        let (mut attempt, mut all) = (0, 0);
        let mut backoff = BACKOFF_FIRST;
        let mut before = partial.received();
        loop {
            let resumed = partial.received() > 0;
            let error = match self.fetch(partial, all).await {
                Ok(()) => match partial.verify() {
                    Ok(_) => return Ok(()),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            // Old bytes of a broken pull, or a mirror, may be at fault when content is wrong: once more, from the start.
            let worth_it = match &error {
                Error::Registry { .. } => true,
                Error::DigestMismatch { .. } => resumed || all + 1 < self.registry.hosts_to_pull_from(),
                _ => false,
            };
            if partial.received() >= before.saturating_add(GETTING_ON) {
                (attempt, backoff) = (0, BACKOFF_FIRST);
            }
            before = partial.received();
            (attempt, all) = (attempt + 1, all + 1);
            if attempt >= ATTEMPTS_MAX || !worth_it {
                return Err(error);
            }
            tracing::debug!(blob = %partial.digest, attempt, %error, "pull of a layer interrupted");
            self.report(Step::Retrying { attempt });
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// One request for what is missing, written to disk as it comes.
    async fn fetch(&self, partial: &mut Partial, attempt: usize) -> Result<()> {
        let total = partial.size;
        let have = partial.received();
        if have == total {
            return Ok(());
        }
        let (endpoint, response, from) = self.registry.blob(&partial.digest, have, attempt).await?;
        let writer = partial.write_from(from)?;
        let mut stream = response.bytes_stream();
        let mut received = from;
        let mut pace = Pace::new(endpoint.timeouts.read, received);
        let result = loop {
            let chunk = match stream.next().await {
                None => break Ok(()),
                Some(Err(e)) => break Err(endpoint.failed("reading a blob", &e)),
                Some(Ok(chunk)) => chunk,
            };
            received += chunk.len() as u64;
            if received > total {
                let what = format!("blob {}", partial.digest);
                break Err(Error::TooLarge { what, limit: total });
            }
            self.report(Step::Receiving { received, total });
            if !writer.send(chunk).await {
                // The writer ended first; what it says comes below.
                break Ok(());
            }
            if pace.is_lost(received) {
                break Err(endpoint.error("reading a blob", "it sends next to nothing"));
            }
        };
        partial.written(writer).await?;
        result?;
        if received < total {
            let reason = format!("the connection ended after {received} of {total} bytes");
            return Err(endpoint.error("reading a blob", reason));
        }
        Ok(())
    }
}

/// Tells a slow line from a host that only keeps the connection open.
struct Pace {
    window: Duration,
    since: Instant,
    then: u64,
}

impl Pace {
    fn new(window: Duration, received: u64) -> Pace {
        Pace { window, since: Instant::now(), then: received }
    }

    fn is_lost(&mut self, received: u64) -> bool {
        if self.since.elapsed() < self.window {
            return false;
        }
        let lost = received - self.then < TRICKLE;
        (self.since, self.then) = (Instant::now(), received);
        lost
    }
}
