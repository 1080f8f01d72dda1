//! The table of kinds: one file an API group, one entry a kind. Adding a kind is adding an entry, and hooks
//! where it behaves in its own way.

use std::sync::LazyLock;

use k8s_openapi::Resource;
use schemars::JsonSchema;

use crate::{
    kind::{Hooks, Kind, STORED_VERBS},
    openapi,
};

mod apps;
mod authentication;
mod authorization;
mod autoscaling;
mod certificates;
mod coordination;
mod core;
mod discovery;
mod events;
mod policy;

/// Every kind, group by group, in discovery's order.
pub fn kinds() -> &'static [Kind] {
    static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
        [
            core::KINDS,
            events::KINDS,
            authentication::KINDS,
            authorization::KINDS,
            apps::KINDS,
            autoscaling::KINDS,
            certificates::KINDS,
            policy::KINDS,
            coordination::KINDS,
            discovery::KINDS,
        ]
        .concat()
    });
    &KINDS
}

/// The kind behind `/apis/<group>/<version>/<plural>`; the core group is empty.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    kinds().iter().find(|k| k.plural == plural && k.group == group && k.version == version)
}

/// The kind of that apiVersion and name, virtual ones included.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    kinds().iter().find(|k| k.kind == kind && k.group == group && k.version == version)
}

/// Get, update and patch: what `status` and its like offer.
pub(crate) const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

/// A kind whose objects are stored, in namespaces or for the whole cluster. What differs from that, entries set.
pub(crate) const fn stored<T: Resource + JsonSchema>(
    package: &'static str,
    singular: &'static str,
    namespaced: bool,
    hooks: Hooks,
) -> Kind {
    Kind {
        group: T::GROUP,
        version: T::VERSION,
        kind: T::KIND,
        plural: T::URL_PATH_SEGMENT,
        singular,
        short_names: &[],
        categories: &[],
        namespaced,
        verbs: STORED_VERBS,
        subresources: &[],
        storage: (T::GROUP, T::URL_PATH_SEGMENT),
        package,
        describe: openapi::describe::<T>,
        hooks,
    }
}

/// A question: created, answered, never stored.
pub(crate) const fn question<T: Resource + JsonSchema>(
    package: &'static str,
    singular: &'static str,
    namespaced: bool,
) -> Kind {
    Kind { verbs: &["create"], storage: ("", ""), ..stored::<T>(package, singular, namespaced, Hooks::PLAIN) }
}

/// Only the type of a subresource's bodies: known to the codec, in no discovery list. Its name in lower case
/// stands for the plural that it does not have.
pub(crate) const fn body(
    group: &'static str,
    kind: &'static str,
    name: &'static str,
    package: &'static str,
    describe: openapi::Register,
) -> Kind {
    Kind {
        group,
        version: "v1",
        kind,
        plural: name,
        singular: name,
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: &[],
        subresources: &[],
        storage: ("", ""),
        package,
        describe,
        hooks: Hooks::PLAIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_consistent() {
        for kind in kinds() {
            let _ = kind.schema();
            assert_eq!(kind.singular, kind.kind.to_lowercase());
            assert!(find(kind.group, kind.version, kind.plural).is_some());
            assert_eq!(kind.is_stored(), !kind.storage.1.is_empty(), "{}", kind.kind);
            for sub in kind.subresources {
                let body = crate::codec::Body::of(sub.group, sub.version, sub.kind);
                assert!(body.is_some(), "{}/{}", kind.plural, sub.name);
            }
        }
    }
}
