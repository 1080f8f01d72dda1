//! What the server itself demands of writes and adds to them, one module a concern.

mod namespaces;
mod nodes;
mod pods;
mod requests;
mod service_accounts;
pub(crate) mod service_ranges;
pub(crate) mod services;

use pith_api::{ApiError, Kind, Subresource};
use serde_json::Value;

pub use self::pods::Tolerations;
use self::services::Reserved;
use crate::{objects::Stored, state::State, verbs::Call};

/// A write that may happen. Dropped without [`Admitted::keep`], what was reserved for it is given back.
#[must_use]
#[derive(Default)]
pub(crate) struct Admitted {
    reserved: Option<Reserved>,
}

impl Admitted {
    /// The write happened.
    pub(crate) fn keep(self) {
        if let Some(reserved) = self.reserved {
            reserved.keep();
        }
    }
}

/// Looks at a reading that is about to happen.
pub(crate) use self::nodes::read;

/// Looks at an object that is about to be created.
pub(crate) async fn create(call: &Call, object: &mut Value) -> Result<Admitted, ApiError> {
    namespaces::create(call, object).await?;
    nodes::create(call, object)?;
    match (call.target.kind.group, call.target.kind.plural) {
        ("", "pods") => {
            pods::create(object, call.state.tolerations)?;
            service_accounts::create(call, object).await?;
            Ok(Admitted::default())
        }
        ("", "services") => {
            let reserved = services::create(call, object)?;
            Ok(Admitted { reserved: Some(reserved) })
        }
        ("certificates.k8s.io", "certificatesigningrequests") => {
            requests::create(call, object)?;
            Ok(Admitted::default())
        }
        _ => Ok(Admitted::default()),
    }
}

/// Looks at a change that is about to be made.
pub(crate) async fn update(
    call: &Call,
    new: &mut Value,
    old: &Value,
    door: Subresource,
) -> Result<Admitted, ApiError> {
    nodes::update(call, new, old)?;
    match (call.target.kind.group, call.target.kind.plural, door) {
        ("", "services", Subresource::Main) => {
            let reserved = services::update(call, new, old)?;
            Ok(Admitted { reserved: Some(reserved) })
        }
        _ => Ok(Admitted::default()),
    }
}

/// What the cluster does not do of what an object says that was written.
pub(crate) fn warnings(call: &Call, stored: &Stored) -> Result<Vec<String>, ApiError> {
    let target = &call.target;
    match (target.kind.group, target.kind.plural, &target.subresource) {
        ("", "services", None) => Ok(services::warning(&stored.value(target.kind)?).into_iter().collect()),
        _ => Ok(Vec::new()),
    }
}

/// Looks at a deletion that is about to happen.
pub(crate) fn delete(call: &Call, old: &Value) -> Result<(), ApiError> {
    namespaces::delete(call, old)?;
    nodes::delete(call, old)
}

/// An object is gone.
pub(crate) fn deleted(state: &State, kind: &Kind, old: &Value) {
    if (kind.group, kind.plural) == ("", "services") {
        state.services.release(old);
    }
}
