//! How objects are named and ordered: [`Key`], [`Uid`], [`Revision`].

use std::fmt;

use kube::Resource;

/// Namespace and name. The namespace of a cluster-scoped object is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of a cluster-scoped object.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self::new("", name)
    }

    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// `metadata.uid`: what tells an object from a later one of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(pub String);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The object's uid, empty where the server has not given one yet.
pub fn uid_of<K: Resource>(object: &K) -> Uid {
    Uid(object.meta().uid.clone().unwrap_or_default())
}

/// `metadata.resourceVersion` as a number. Comparable within a kind: that is part of the API since
/// Kubernetes 1.35 (KEP-5504), and etcd's revision always behaved so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub u64);

impl Revision {
    /// Zero, which is older than anything, where the text is no number.
    pub fn parse(text: &str) -> Self {
        Self(text.parse().unwrap_or(0))
    }

    pub fn of<K: Resource>(object: &K) -> Self {
        object.meta().resource_version.as_deref().map(Self::parse).unwrap_or_default()
    }
}
