//! What images an archive holds: OCI layouts (`oci-layout`, `index.json`, `blobs/`) and docker-archives
//! (`manifest.json`, one tar a layer). `docker save` of today writes both at once; then the layout counts,
//! because it has digests.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::platform::{self, Platform};
use crate::reference::Reference;
use crate::source::Source;
use crate::unpack::Limits;

/// overlayfs stacks at most 500 directories (OVL_MAX_STACK).
pub(crate) const LAYERS_MAX: usize = 500;
/// An index may point to indexes; nobody nests them deeper than this.
const INDEX_DEPTH_MAX: usize = 4;
/// Annotations that name an image in an index: containerd's is always complete, OCI's may be only a tag.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// One image of an archive, its documents verified, its layers not read yet.
pub(crate) struct Found {
    pub(crate) names: Vec<Reference>,
    pub(crate) documents: Documents,
    /// Lowest first; as many as the configuration has diff ids.
    pub(crate) layers: Vec<FoundLayer>,
}

pub(crate) struct FoundLayer {
    pub(crate) file: String,
    /// Of the file as it is; a docker-archive does not say.
    pub(crate) digest: Option<Digest>,
}

/// Manifest and configuration: exact bytes, because their digests are the image's names.
pub(crate) struct Documents {
    pub(crate) manifest_digest: Digest,
    pub(crate) manifest: Vec<u8>,
    pub(crate) config_digest: Digest,
    pub(crate) config: Vec<u8>,
    pub(crate) diff_ids: Vec<Digest>,
}

impl Documents {
    pub(crate) fn new(
        image: &str,
        platform: &Platform,
        manifest: (Digest, Vec<u8>),
        config: (Digest, Vec<u8>),
    ) -> Result<Documents> {
        let config_name = format!("configuration {}", config.0);
        let parsed = parse_config(&config_name, &config.1)?;
        platform.check_config(image, &parsed)?;
        let diff_ids = parsed
            .rootfs()
            .diff_ids()
            .iter()
            .map(|id| id.parse().map_err(|e| Error::corrupt(&config_name, "rootfs.diff_ids", e)))
            .collect::<Result<Vec<Digest>>>()?;
        if diff_ids.len() > LAYERS_MAX {
            return Err(Error::TooLarge { what: format!("the list of layers of {image}"), limit: 500 });
        }
        Ok(Documents {
            manifest_digest: manifest.0,
            manifest: manifest.1,
            config_digest: config.0,
            config: config.1,
            diff_ids,
        })
    }

    pub(crate) fn check_layer_count(&self, layers: usize) -> Result<()> {
        if layers == self.diff_ids.len() {
            return Ok(());
        }
        let reason = format!("it lists {} layers, the manifest {layers}", self.diff_ids.len());
        Err(Error::corrupt(format!("configuration {}", self.config_digest), "rootfs.diff_ids", reason))
    }
}

pub(crate) fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| json_error(what, &e))
}

fn json_error(what: &str, error: &serde_json::Error) -> Error {
    Error::corrupt(what, format!("line {}, column {}", error.line(), error.column()), error)
}

/// Docker writes `null` for whatever is empty, which the specification's types do not take.
pub(crate) fn parse_config(what: &str, bytes: &[u8]) -> Result<ImageConfiguration> {
    let mut value: Value = parse(what, bytes)?;
    drop_nulls(&mut value);
    serde_json::from_value(value).map_err(|e| Error::corrupt(what, "its fields", e))
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Every image of the archive that is for `platform`. An archive for other platforms only is an error.
pub(crate) fn find(source: &Source, platform: &Platform, limits: &Limits) -> Result<Vec<Found>> {
    let reader = Layout { source, platform, limits };
    if let Some(index) = source.document("index.json", limits)? {
        return reader.oci(&index);
    }
    if let Some(manifest) = source.document("manifest.json", limits)? {
        return reader.docker(&manifest);
    }
    Err(Error::Unsupported {
        what: source.name().to_owned(),
        reason: "it has neither index.json (OCI layout) nor manifest.json (docker save) in it".to_owned(),
    })
}

struct Layout<'s> {
    source: &'s Source,
    platform: &'s Platform,
    limits: &'s Limits,
}

impl Layout<'_> {
    fn oci(&self, index: &[u8]) -> Result<Vec<Found>> {
        let index: ImageIndex = parse(&format!("index.json of {}", self.source.name()), index)?;
        let mut found = Vec::new();
        let mut refused = None;
        for descriptor in index.manifests() {
            match self.image(descriptor) {
                Ok(image) => found.push(image),
                // One of several manifests for another platform (skopeo copy --all) is no fault.
                Err(error @ Error::WrongPlatform { .. }) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        match (found.is_empty(), refused) {
            (true, Some(error)) => Err(error),
            (true, None) => Err(Error::corrupt(self.source.name(), "index.json", "it lists no image")),
            (false, _) => Ok(found),
        }
    }

    fn image(&self, descriptor: &Descriptor) -> Result<Found> {
        let label = names_of(descriptor).first().map_or(self.source.name().to_owned(), ToString::to_string);
        let mut chosen = descriptor.clone();
        for _ in 0..INDEX_DEPTH_MAX {
            let (digest, bytes) = self.blob(&chosen)?;
            if platform::is_index(chosen.media_type()) {
                let index: ImageIndex = parse(&format!("index {digest}"), &bytes)?;
                chosen = self.platform.choose(&label, &index)?.clone();
                continue;
            }
            let manifest: ImageManifest = parse(&format!("manifest {digest}"), &bytes)?;
            check_manifest(&label, &manifest)?;
            let config = self.blob(manifest.config())?;
            let documents = Documents::new(&label, self.platform, (digest, bytes), config)?;
            documents.check_layer_count(manifest.layers().len())?;
            let layers = manifest.layers().iter().map(|layer| {
                let digest = digest_of(layer)?;
                Ok(FoundLayer { file: blob_path(&digest), digest: Some(digest) })
            });
            let layers = layers.collect::<Result<Vec<FoundLayer>>>()?;
            return Ok(Found { names: names_of(descriptor), documents, layers });
        }
        Err(Error::corrupt(self.source.name(), "index.json", "indexes are nested too deep"))
    }

    /// A document by its descriptor, its digest verified.
    fn blob(&self, descriptor: &Descriptor) -> Result<(Digest, Vec<u8>)> {
        let expected = digest_of(descriptor)?;
        let path = blob_path(&expected);
        let Some(bytes) = self.source.document(&path, self.limits)? else {
            return Err(Error::corrupt(self.source.name(), path, "it is missing"));
        };
        let got = Digest::of(&bytes);
        if got != expected {
            return Err(Error::DigestMismatch {
                blob: format!("{path} of {}", self.source.name()),
                expected,
                got,
            });
        }
        Ok((expected, bytes))
    }

    fn docker(&self, manifest: &[u8]) -> Result<Vec<Found>> {
        let what = format!("manifest.json of {}", self.source.name());
        let entries: Vec<DockerEntry> = parse(&what, manifest)?;
        if entries.is_empty() {
            return Err(Error::corrupt(self.source.name(), "manifest.json", "it lists no image"));
        }
        entries.into_iter().map(|entry| self.docker_image(entry)).collect()
    }

    fn docker_image(&self, entry: DockerEntry) -> Result<Found> {
        let Some(config) = self.source.document(&entry.config, self.limits)? else {
            return Err(Error::corrupt(self.source.name(), entry.config, "it is missing"));
        };
        let config_digest = Digest::of(&config);
        // `docker save` names the file by its digest, so that damage shows.
        let stem = entry.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        if let Ok(expected) = format!("sha256:{stem}").parse::<Digest>()
            && expected != config_digest
        {
            let blob = format!("{} of {}", entry.config, self.source.name());
            return Err(Error::DigestMismatch { blob, expected, got: config_digest });
        }
        let names: Vec<Reference> = entry
            .repo_tags
            .unwrap_or_default()
            .iter()
            .map(|tag| Reference::parse(tag))
            .collect::<Result<_>>()?;
        let label = names.first().map_or(self.source.name().to_owned(), ToString::to_string);
        let diff_ids = parse_config(&format!("{} of {}", entry.config, self.source.name()), &config)?;
        let diff_ids = diff_ids.rootfs().diff_ids();
        if diff_ids.len() != entry.layers.len() {
            let reason = format!("it lists {} layers, manifest.json {}", diff_ids.len(), entry.layers.len());
            return Err(Error::corrupt(entry.config, "rootfs.diff_ids", reason));
        }
        let manifest = self.manifest_for((&config_digest, config.len()), diff_ids, &entry.layers)?;
        let manifest = (Digest::of(&manifest), manifest);
        let documents = Documents::new(&label, self.platform, manifest, (config_digest, config))?;
        let layers = entry.layers.into_iter().map(|file| FoundLayer { file, digest: None }).collect();
        Ok(Found { names, documents, layers })
    }

    /// A docker-archive has no OCI manifest; one is made of it, always the same for the same archive, so that
    /// the image has a digest. It names the layers by their diff ids: uncompressed, that is what they are.
    fn manifest_for(
        &self,
        config: (&Digest, usize),
        diff_ids: &[String],
        files: &[String],
    ) -> Result<Vec<u8>> {
        let layers = diff_ids.iter().zip(files).map(|(diff_id, file)| {
            let size = self.source.open_file(file)?.map_or(0, |part| part.len());
            Ok(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": diff_id, "size": size,
            }))
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config.0, "size": config.1,
            },
            "layers": layers.collect::<Result<Vec<Value>>>()?,
        });
        Ok(manifest.to_string().into_bytes())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Charts, signatures and other artifacts have manifests too.
pub(crate) fn check_manifest(image: &str, manifest: &ImageManifest) -> Result<()> {
    const CONFIGURATIONS: [&str; 3] = [
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
        // What some old pushers wrote.
        "application/octet-stream",
    ];
    let unsupported = |what: String, reason: String| Err(Error::Unsupported { what, reason });
    let kind = manifest.config().media_type().to_string();
    if !CONFIGURATIONS.contains(&kind.as_str()) {
        let reason = format!("it is an artifact of type {kind}, and no container image");
        return unsupported(image.to_owned(), reason);
    }
    for layer in manifest.layers() {
        let kind = layer.media_type().to_string();
        if kind.ends_with("+encrypted") {
            return unsupported(format!("layer {}", layer.digest()), "it is encrypted".to_owned());
        }
    }
    Ok(())
}

/// Layers that their registry may not distribute (Windows' base layers) are elsewhere, if anywhere.
pub(crate) fn explain_missing(layer: &Descriptor, error: Error) -> Error {
    let kind = layer.media_type().to_string();
    if !matches!(error, Error::Registry { .. })
        || !(kind.contains("nondistributable") || kind.contains("foreign"))
    {
        return error;
    }
    Error::Unsupported {
        what: format!("layer {}", layer.digest()),
        reason: "it is a foreign one, which its registry does not distribute".to_owned(),
    }
}

pub(crate) fn digest_of(descriptor: &Descriptor) -> Result<Digest> {
    let text = descriptor.digest().to_string();
    text.parse().map_err(|_| Error::Unsupported {
        what: format!("digest {text}"),
        reason: "blobs are verified by sha256".to_owned(),
    })
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The complete names among the annotations; a bare tag names nothing by itself.
fn names_of(descriptor: &Descriptor) -> Vec<Reference> {
    let Some(annotations) = descriptor.annotations() else { return Vec::new() };
    for key in NAME_ANNOTATIONS {
        let Some(name) = annotations.get(key) else { continue };
        if name.contains(['/', ':'])
            && let Ok(reference) = Reference::parse(name)
        {
            return vec![reference];
        }
    }
    Vec::new()
}
