//! What can go wrong in a controller.

use kube::Resource;
use pith_informer::Key;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused or failed a request.
    #[error("{action} {kind} {key}")]
    Api {
        action: &'static str,
        kind: String,
        key: Key,
        #[source]
        source: Box<kube::Error>,
    },
    /// An object says something that has no meaning, such as a selector with an unknown operator.
    #[error("{kind} {key}: {problem}")]
    Object { kind: String, key: Key, problem: String },
    /// What the API serves could not be learned.
    #[error("read discovery")]
    Discovery(#[source] kube::Error),
    /// A task of the controllers panicked or was aborted.
    #[error("a controller ended unexpectedly")]
    Task(#[source] tokio::task::JoinError),
}

impl Error {
    pub(crate) fn write<K: Resource<DynamicType = ()>>(
        action: &'static str,
        object: &K,
        source: kube::Error,
    ) -> Self {
        let mut key = Key::of(object);
        if key.name.is_empty() {
            key.name = object.meta().generate_name.clone().unwrap_or_default();
        }
        Self::Api { action, kind: K::kind(&()).into_owned(), key, source: Box::new(source) }
    }

    pub(crate) fn object<K: Resource<DynamicType = ()>>(object: &K, problem: impl ToString) -> Self {
        Self::Object { kind: K::kind(&()).into_owned(), key: Key::of(object), problem: problem.to_string() }
    }

    fn status(&self) -> Option<&kube::core::Status> {
        let Self::Api { source, .. } = self else { return None };
        match source.as_ref() {
            kube::Error::Api(status) => Some(status),
            _ => None,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.status().is_some_and(|status| status.is_not_found())
    }

    pub(crate) fn is_already_exists(&self) -> bool {
        self.status().is_some_and(|status| status.is_already_exists())
    }

    /// Creation was refused because the namespace is going away: there is nothing to retry.
    pub(crate) fn is_namespace_terminating(&self) -> bool {
        self.status().is_some_and(|status| {
            let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
            status.is_forbidden() && causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
        })
    }

    /// What the server said, for events and conditions.
    pub(crate) fn said(&self) -> String {
        match (self.status(), self) {
            (Some(status), _) => status.message.clone(),
            (None, Self::Api { source, .. }) => source.to_string(),
            (None, other) => other.to_string(),
        }
    }
}
