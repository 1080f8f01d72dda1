//! Pulling: registry → partial blobs on disk → verified → layers. Async here, because here is the network;
//! hashing, writing and unpacking happen on blocking threads.
//!
//! A pull that breaks leaves what it has in `partial`, and the next attempt (of this pull or of a later one) asks
//! the registry for the rest. Nothing of a blob is used before all of it has been hashed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use oci_client::RegistryOperation;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::auth::Auth;
use crate::digest::{Digest, Hasher};
use crate::error::{At, Error, Result};
use crate::layer::Installed;
use crate::layout::{self, Documents, digest_of};
use crate::progress::{Event, Progress, Step};
use crate::reference::Reference;
use crate::store::{Image, Store};

/// Docker's and containerd's default too.
const PARALLEL_LAYERS: usize = 3;
/// Attempts for one blob within one pull; each goes on where the last one stopped.
const ATTEMPTS_MAX: u32 = 5;
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// A registry that sends nothing for so long is as good as gone.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Chunks on their way from the network to the disk.
const CHUNKS_IN_FLIGHT: usize = 16;
const INDEX_DEPTH_MAX: usize = 4;

const MANIFEST_TYPES: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

impl Store {
    /// Pulls an image. Layers that are in the store already are not transferred; others arrive in parallel.
    ///
    /// Dropping the future stops the pull; what has arrived serves the next one.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: &Auth,
        progress: Arc<dyn Progress>,
    ) -> Result<Image> {
        let store = self.clone();
        let _busy = blocking(move || store.lock_shared("busy")).await?;
        let registry = Registry::connect(reference, auth).await?;
        let label = reference.to_string();

        let (manifest, names) = registry.manifest(self).await?;
        let parsed: ImageManifest = layout::parse(&format!("manifest {}", manifest.0), &manifest.1)?;
        let config = registry.document(parsed.config(), self.inner.limits.document_bytes).await?;
        let documents = Documents::new(&label, &self.inner.platform, manifest, config)?;
        documents.check_layer_count(parsed.layers().len())?;
        let bytes = parsed.layers().iter().map(Descriptor::size).sum();
        progress.report(&Event::Resolved { image: &label, layers: parsed.layers().len(), bytes });

        let layers: BTreeMap<&Digest, &Descriptor> = documents.diff_ids.iter().zip(parsed.layers()).collect();
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
        let image = blocking(move || store.commit(&documents, &names, sizes.iter().sum())).await?;
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
        let (store, diff_id) = (self.store.clone(), self.diff_id.clone());
        let (lock, present) = blocking(move || {
            let lock = store.lock_layer(&diff_id)?;
            let present = store.layer_bytes(&diff_id)?;
            Ok((lock, present))
        })
        .await?;
        if let Some(bytes) = present {
            self.report(Step::Present);
            return Ok(bytes);
        }
        let digest = digest_of(descriptor)?;
        let partial = Partial::open(self.store, &digest, descriptor.size()).await?;
        let (file, path) = self.download(partial).await?;

        self.report(Step::Unpacking);
        let (store, diff_id) = (self.store.clone(), self.diff_id.clone());
        let installed = blocking(move || {
            // Its digest was computed while it arrived: it is not verified a second time.
            let installed = store.install_layer(&lock, &diff_id, &format!("blob {digest}"), None, &file)?;
            fs::remove_file(&path).at("remove", &path)?;
            Ok(installed)
        })
        .await?;
        self.report(match installed {
            Installed::Present(_) => Step::Present,
            Installed::New(bytes) => Step::Unpacked { bytes },
        });
        Ok(installed.bytes())
    }

    /// Fetches until the blob is whole and its digest is right; rewound.
    async fn download(&self, mut partial: Partial) -> Result<(File, PathBuf)> {
        let mut attempt = 0;
        let mut backoff = BACKOFF_FIRST;
        loop {
            attempt += 1;
            let resumed = partial.hasher.bytes() > 0;
            let result = self.fetch(&mut partial).await;
            let error = match result {
                Ok(()) => match partial.verify() {
                    Ok(file) => return Ok(file),
                    // Old bytes of a broken pull may be at fault: once more, from the start.
                    Err(error) if !resumed => return Err(error),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if attempt >= ATTEMPTS_MAX || !(error.is_transient() || resumed) {
                return Err(error);
            }
            tracing::debug!(blob = %partial.digest, attempt, %error, "pull of a layer interrupted");
            self.report(Step::Retrying { attempt });
            tokio::time::sleep(backoff).await;
            backoff *= 2;
            partial = partial.reopen(self.store).await?;
        }
    }

    /// One request for what is missing, written to disk as it comes.
    async fn fetch(&self, partial: &mut Partial) -> Result<()> {
        let total = partial.size;
        let have = partial.hasher.bytes();
        if have == total {
            return Ok(());
        }
        let response = self.registry.blob(&partial.digest, have).await?;
        let (mut stream, from) = match response {
            BlobResponse::Partial(stream) => (stream, have),
            BlobResponse::Full(stream) => (stream, 0),
        };
        let (chunks, writer) = partial.write_from(from)?;
        let mut received = from;
        let result = loop {
            let chunk = match stream.stream.next().await {
                None => break Ok(()),
                Some(Err(e)) if is_digest_error(&e) => break Ok(()),
                Some(Err(e)) => break Err(self.registry.failed("reading a blob", &e.into())),
                Some(Ok(chunk)) => chunk,
            };
            received += chunk.len() as u64;
            if received > total {
                let what = format!("blob {}", partial.digest);
                break Err(Error::TooLarge { what, limit: total });
            }
            self.report(Step::Receiving { received, total });
            if chunks.send(chunk).await.is_err() {
                // The writer ended first; what it says comes below.
                break Ok(());
            }
        };
        drop(chunks);
        partial.hasher = joined(writer.await)?;
        result?;
        if received < total {
            let reason = format!("the connection ended after {received} of {total} bytes");
            return Err(self.registry.error("reading a blob", reason));
        }
        Ok(())
    }
}

/// A blob of which a part may be on disk already, locked against others who want the same.
struct Partial {
    digest: Digest,
    size: u64,
    path: PathBuf,
    file: Arc<File>,
    /// Of what is in the file.
    hasher: Hasher,
}

impl Partial {
    async fn open(store: &Store, digest: &Digest, size: u64) -> Result<Partial> {
        let path = store.dir().join("partial").join(digest.hex());
        let digest = digest.clone();
        blocking(move || {
            let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
            let file = file.at("open", &path)?;
            file.lock().at("lock", &path)?;
            let hasher = hash_of(&file, &path)?;
            Ok(Partial { digest, size, path, file: Arc::new(file), hasher })
        })
        .await
    }

    /// Again, from what is really on disk; from nothing when that cannot become the blob.
    async fn reopen(self, store: &Store) -> Result<Partial> {
        let Partial { digest, size, hasher, file, .. } = self;
        if hasher.bytes() >= size {
            file.set_len(0).at("empty the part of", Path::new(digest.as_str()))?;
        }
        // Its lock ends here, and is waited for again.
        drop(file);
        Partial::open(store, &digest, size).await
    }

    /// A thread that appends what is sent to it, starting at `from`: 0 or where the file ends.
    fn write_from(&self, from: u64) -> Result<(mpsc::Sender<bytes::Bytes>, Writer)> {
        let (sender, mut receiver) = mpsc::channel::<bytes::Bytes>(CHUNKS_IN_FLIGHT);
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        let mut hasher = if from == 0 { Hasher::default() } else { self.hasher.clone() };
        file.set_len(from).at("shorten", &path)?;
        let writer = tokio::task::spawn_blocking(move || {
            let mut file = &*file;
            file.seek(SeekFrom::Start(from)).at("seek in", &path)?;
            while let Some(chunk) = receiver.blocking_recv() {
                file.write_all(&chunk).at("write", &path)?;
                hasher.update(&chunk);
            }
            Ok(hasher)
        });
        Ok((sender, writer))
    }

    /// The file, rewound, if it is the blob.
    fn verify(&self) -> Result<(File, PathBuf)> {
        let got = self.hasher.clone().finish();
        if got != self.digest {
            fs::remove_file(&self.path).at("remove", &self.path)?;
            let blob = format!("blob {}", self.digest);
            return Err(Error::DigestMismatch { blob, expected: self.digest.clone(), got });
        }
        let mut file = self.file.try_clone().at("duplicate", &self.path)?;
        file.seek(SeekFrom::Start(0)).at("rewind", &self.path)?;
        Ok((file, self.path.clone()))
    }
}

type Writer = tokio::task::JoinHandle<Result<Hasher>>;

fn hash_of(mut file: &File, path: &Path) -> Result<Hasher> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0_u8; 128 * 1024];
    loop {
        let n = file.read(&mut buffer).at("read", path)?;
        if n == 0 {
            return Ok(hasher);
        }
        hasher.update(&buffer[..n]);
    }
}

/// A connection to one repository.
struct Registry {
    client: oci_client::Client,
    reference: Reference,
}

impl Registry {
    async fn connect(reference: &Reference, auth: &Auth) -> Result<Registry> {
        let registry = reference.registry().to_owned();
        let protocol = if reference.is_local_registry() {
            ClientProtocol::HttpsExcept(vec![registry])
        } else {
            ClientProtocol::Https
        };
        let config = ClientConfig {
            protocol,
            read_timeout: Some(READ_TIMEOUT),
            connect_timeout: Some(CONNECT_TIMEOUT),
            user_agent: concat!("pith/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let registry = Registry { client: oci_client::Client::new(config), reference: reference.clone() };
        let auth = match auth {
            Auth::Anonymous => RegistryAuth::Anonymous,
            Auth::Basic { username, password } => RegistryAuth::Basic(username.clone(), password.clone()),
            Auth::Bearer(token) => RegistryAuth::Bearer(token.clone()),
        };
        registry
            .client
            .auth(reference.oci(), &auth, RegistryOperation::Pull)
            .await
            .map_err(|e| registry.failed("logging in", &e))?;
        Ok(registry)
    }

    /// The manifest for this platform, and every name that leads to it.
    async fn manifest(&self, store: &Store) -> Result<((Digest, Vec<u8>), Vec<Reference>)> {
        let mut names = vec![self.reference.clone()];
        let mut wanted = self.reference.clone();
        for _ in 0..INDEX_DEPTH_MAX {
            let (bytes, _) = self
                .client
                .pull_manifest_raw(wanted.oci(), &RegistryAuth::Anonymous, MANIFEST_TYPES)
                .await
                .map_err(|e| self.failed("fetching the manifest", &e))?;
            let bytes = bytes.to_vec();
            let got = Digest::of(&bytes);
            if let Some(expected) = wanted.digest().filter(|expected| *expected != got) {
                return Err(Error::DigestMismatch { blob: format!("manifest of {wanted}"), expected, got });
            }
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

    /// A small blob, verified.
    async fn document(&self, descriptor: &Descriptor, max: u64) -> Result<(Digest, Vec<u8>)> {
        let digest = digest_of(descriptor)?;
        let what = format!("blob {digest}");
        let mut stream = match self.blob(&digest, 0).await? {
            BlobResponse::Full(stream) | BlobResponse::Partial(stream) => stream,
        };
        let mut content = Vec::new();
        while let Some(chunk) = stream.stream.next().await {
            let chunk = match chunk {
                Err(e) if is_digest_error(&e) => break,
                chunk => chunk.map_err(|e| self.failed("reading a blob", &e.into()))?,
            };
            content.extend_from_slice(&chunk);
            if content.len() as u64 > max {
                return Err(Error::TooLarge { what, limit: max });
            }
        }
        let got = Digest::of(&content);
        if got != digest {
            return Err(Error::DigestMismatch { blob: what, expected: digest, got });
        }
        Ok((digest, content))
    }

    async fn blob(&self, digest: &Digest, from: u64) -> Result<BlobResponse> {
        let descriptor = digest.as_str();
        let response = if from == 0 {
            let stream = self.client.pull_blob_stream(self.reference.oci(), descriptor).await;
            stream.map(BlobResponse::Full)
        } else {
            self.client.pull_blob_stream_partial(self.reference.oci(), descriptor, from, None).await
        };
        response.map_err(|e| self.failed(&format!("fetching blob {digest}"), &e))
    }

    fn error(&self, action: &str, reason: impl ToString) -> Error {
        Error::Registry {
            registry: self.reference.registry().to_owned(),
            action: action.to_owned(),
            reason: reason.to_string(),
        }
    }

    /// The registry's answer in our words.
    fn failed(&self, action: &str, error: &OciDistributionError) -> Error {
        let unauthorised = |reason: String| Error::Unauthorised {
            registry: self.reference.registry().to_owned(),
            repository: self.reference.repository().to_owned(),
            reason,
        };
        let not_found = || Error::NotFound { reference: self.reference.to_string() };
        match error {
            OciDistributionError::UnauthorizedError { .. } => {
                unauthorised("credentials are needed".to_owned())
            }
            OciDistributionError::AuthenticationFailure(reason) => unauthorised(one_line(reason)),
            OciDistributionError::ImageManifestNotFoundError(_) => not_found(),
            OciDistributionError::ServerError { code: 401 | 403, message, .. } => {
                unauthorised(one_line(message))
            }
            OciDistributionError::ServerError { code: 404, .. } => not_found(),
            OciDistributionError::RegistryError { envelope, .. } => {
                match envelope.errors.first().map(|e| (&e.code, &e.message)) {
                    Some((OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown, _)) => not_found(),
                    Some((OciErrorCode::Unauthorized | OciErrorCode::Denied, message)) => {
                        unauthorised(one_line(message))
                    }
                    _ => self.error(action, error),
                }
            }
            OciDistributionError::DigestError(oci_client::errors::DigestError::VerificationError {
                expected,
                actual,
            }) => match (expected.parse(), actual.parse()) {
                (Ok(expected), Ok(got)) => {
                    Error::DigestMismatch { blob: format!("an answer of {}", self.reference), expected, got }
                }
                _ => self.error(action, error),
            },
            OciDistributionError::RequestError(request) => self.error(action, innermost(request)),
            OciDistributionError::IoError(io) => self.error(action, innermost(io)),
            _ => self.error(action, one_line(&error.to_string())),
        }
    }
}

/// The client hashes some answers itself, and says so at their end; what counts is what reached the disk.
fn is_digest_error(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<oci_client::errors::DigestError>())
}

/// reqwest's own text names the URL and hides the cause ("connection refused").
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Registries answer with HTML pages too.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    joined(tokio::task::spawn_blocking(work).await)
}

/// A panic of the thread goes on here.
fn joined<T>(result: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    match result {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(error) => Err(Error::io("wait for", Path::new("a thread"), std::io::Error::other(error))),
        },
    }
}
