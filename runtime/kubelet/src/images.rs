//! From a container's image field to an image on disk: pull policy, credentials, and errors as Kubernetes
//! names them.

use std::path::Path;
use std::sync::Arc;

use pith_image::{DockerConfig, Error, Image, Keychain, Reference, Store};

use crate::{desired::Unit, network::chain, objects::Data, observed::TroubleKind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    /// The API server sets it; this is for pods that come another way.
    pub(crate) fn of(unit: &Unit) -> Self {
        let image = unit.spec.image.as_deref().unwrap_or_default();
        match unit.spec.image_pull_policy.as_deref() {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            Some(_) => Self::IfNotPresent,
            None => {
                let tag = image.rsplit('/').next().and_then(|last| last.split_once(':'));
                let pinned = image.contains('@') || tag.is_some_and(|(_, t)| t != "latest");
                if pinned { Self::IfNotPresent } else { Self::Always }
            }
        }
    }
}

/// What an attempt to have the image came to.
pub(crate) enum Found {
    /// It was on the machine.
    Present(Image),
    /// It has to be pulled; `local` serves if the registry cannot be asked.
    Pull { reference: Reference, local: Option<Image> },
}

#[derive(Debug)]
pub(crate) struct ImageTrouble {
    pub(crate) kind: TroubleKind,
    pub(crate) message: String,
}

/// The registry of images that only ever come by import: there is nothing to ask.
const NO_REGISTRY: &str = "pith.local";
/// Credentials for all pods of the node, where the kubelet's state is, in the form of docker's config.json.
const NODE_CREDENTIALS: &str = "config.json";

/// Looks the image up. Blocks for a `stat`.
pub(crate) fn find(store: &Store, unit: &Unit) -> Result<Found, ImageTrouble> {
    let text = unit.spec.image.as_deref().unwrap_or_default();
    let reference = Reference::parse(text).map_err(|e| ImageTrouble {
        kind: TroubleKind::InvalidImageName,
        message: format!("Failed to apply default image tag \"{text}\": {e}"),
    })?;
    let policy = PullPolicy::of(unit);
    match (store.resolve(text), policy) {
        (Ok(image), PullPolicy::IfNotPresent | PullPolicy::Never) => Ok(Found::Present(image)),
        (Err(Error::NotFound { .. }), PullPolicy::Never) => Err(ImageTrouble {
            kind: TroubleKind::ErrImageNeverPull,
            message: format!("Container image \"{text}\" is not present with pull policy of Never"),
        }),
        (Ok(image), PullPolicy::Always) if reference.registry() == NO_REGISTRY => Ok(Found::Present(image)),
        (Ok(image), PullPolicy::Always) => Ok(Found::Pull { reference, local: Some(image) }),
        (Err(Error::NotFound { .. }), _) => Ok(Found::Pull { reference, local: None }),
        (Err(e), _) => Err(failed(text, &e)),
    }
}

/// Pulls with the credentials of the pod's secrets, then the node's: each that is about the registry is tried. What is
/// here already serves when the registry cannot be reached: an imported image has none that could answer.
pub(crate) async fn pull(
    store: &Store,
    reference: &Reference,
    local: Option<Image>,
    secrets: &[Arc<Data>],
    state_dir: &Path,
) -> Result<Image, ImageTrouble> {
    let keychain = keychain(secrets, state_dir);
    let pulled = store.pull(reference, &keychain, Arc::new(pith_image::Quiet)).await;
    match (pulled, local) {
        (Ok(image), _) => Ok(image),
        (Err(Error::Registry { .. }), Some(image)) => Ok(image),
        (Err(e), _) => Err(failed(&reference.to_string(), &e)),
    }
}

/// Configurations that cannot be read help nobody, but keep no image from being pulled that needs no credentials.
fn keychain(secrets: &[Arc<Data>], state_dir: &Path) -> Keychain {
    let mut keychain = Keychain::anonymous();
    for data in secrets {
        let bytes = data.get(".dockerconfigjson").or_else(|| data.get(".dockercfg"));
        match bytes.map(|bytes| DockerConfig::parse("a pull secret", bytes)) {
            Some(Ok(config)) => keychain.add(config),
            Some(Err(error)) => tracing::warn!(%error, "a pull secret is of no use"),
            None => {}
        }
    }
    for file in [Some(state_dir.join(NODE_CREDENTIALS)), Keychain::file_of_user()].into_iter().flatten() {
        if let Err(error) = keychain.add_file(&file) {
            tracing::warn!(error = chain(&error), "the node's credentials are of no use");
        }
    }
    keychain
}

fn failed(image: &str, error: &Error) -> ImageTrouble {
    ImageTrouble {
        kind: TroubleKind::ErrImagePull,
        message: format!("failed to pull and unpack image \"{image}\": {}", chain(error)),
    }
}

/// What the status calls the image: by digest where it has one.
pub(crate) fn status_id(image: &Image) -> String {
    image.repo_digests().next().map_or_else(|| image.id.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::desired::fixture::desired;

    #[test]
    fn policies() {
        let cases = [
            (json!({"image": "nginx"}), PullPolicy::Always),
            (json!({"image": "nginx:latest"}), PullPolicy::Always),
            (json!({"image": "nginx:1.27"}), PullPolicy::IfNotPresent),
            (json!({"image": "localhost:5000/nginx"}), PullPolicy::Always),
            (json!({"image": "nginx@sha256:00"}), PullPolicy::IfNotPresent),
            (json!({"image": "nginx", "imagePullPolicy": "Never"}), PullPolicy::Never),
        ];
        for (mut container, expect) in cases {
            container["name"] = json!("a");
            let d = desired(json!({"containers": [container]}));
            assert_eq!(PullPolicy::of(&d.units[0]), expect, "{container}");
        }
    }
}
