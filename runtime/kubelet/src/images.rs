//! From a container's image field to an image on disk: pull policy, credentials, and errors as Kubernetes
//! names them.

use pith_image::{Auth, Error, Image, Reference, Store};

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

/// Pulls with the credentials of the first secret that knows the registry. What is here already serves when
/// the registry cannot be reached: an imported image has none that could answer.
pub(crate) async fn pull(
    store: &Store,
    reference: &Reference,
    local: Option<Image>,
    secrets: &[std::sync::Arc<Data>],
) -> Result<Image, ImageTrouble> {
    let auth = secrets.iter().find_map(|data| credentials(data, reference)).unwrap_or_default();
    let pulled = store.pull(reference, &auth, std::sync::Arc::new(pith_image::Quiet)).await;
    match (pulled, local) {
        (Ok(image), _) => Ok(image),
        (Err(Error::Registry { .. }), Some(image)) => Ok(image),
        (Err(e), _) => Err(failed(&reference.to_string(), &e)),
    }
}

fn credentials(secret: &Data, reference: &Reference) -> Option<Auth> {
    let bytes = secret.get(".dockerconfigjson").or_else(|| secret.get(".dockercfg"))?;
    Auth::from_docker_config(bytes, reference).ok().flatten()
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
