//! Names: of clusters, replicas and pods, and of the interfaces and namespaces derived from them.
//!
//! Invariant: an interface name has at most 15 bytes (IFNAMSIZ), is the same at every start, and begins
//! with `pith`. What does not fit is replaced by a hash.

use std::fmt;

use sha2::{Digest, Sha256};

/// Longest cluster name: it becomes part of file, cgroup and namespace names.
const CLUSTER_NAME_MAX: usize = 40;
/// IFNAMSIZ without the terminating zero.
const INTERFACE_NAME_MAX: usize = 15;

/// A name that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// Not a cluster name.
    #[error(
        "cluster name {0:?} must be 1 to 40 of a-z, 0-9 and '-', and start and end with a letter or digit"
    )]
    Cluster(String),
    /// Not a pod uid.
    #[error("pod uid {0:?} must be 1 to 64 letters, digits, '-', '_' and '.'")]
    PodUid(String),
}

/// The name of one cluster on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName(String);

impl ClusterName {
    /// # Errors
    /// The text is no lower-case DNS label of at most 40 bytes.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let valid = text.len() <= CLUSTER_NAME_MAX
            && text.bytes().all(|byte| inner(byte) || byte == b'-')
            && text.bytes().next().is_some_and(inner)
            && text.bytes().last().is_some_and(inner);
        if valid { Ok(Self(text.to_owned())) } else { Err(NameError::Cluster(text.to_owned())) }
    }

    /// The bridge that joins the cluster's replicas.
    pub fn bridge(&self) -> String {
        let name = format!("pith-{}", self.0);
        if name.len() <= INTERFACE_NAME_MAX { name } else { format!("pith-{}", hash(&self.0, 10)) }
    }

    /// The network namespace of a replica.
    pub fn netns(&self, replica: ReplicaNumber) -> String {
        format!("pith-{}-r{}", self.0, replica.0)
    }

    /// The host's end of a replica's uplink.
    pub fn port(&self, replica: ReplicaNumber) -> String {
        format!("{}{}", self.port_prefix(), replica.0)
    }

    /// Whether the host's link `name` is the uplink of one of the cluster's replicas.
    pub(crate) fn owns_port(&self, name: &str) -> bool {
        is_number(name.strip_prefix(&self.port_prefix()))
    }

    /// Whether the namespace `name` is one of the cluster's replicas.
    pub(crate) fn owns_netns(&self, name: &str) -> bool {
        is_number(name.strip_prefix(&format!("pith-{}-r", self.0)))
    }

    fn port_prefix(&self) -> String {
        format!("pith{}r", hash(&self.0, 6))
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A replica of `pith up`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaNumber(u16);

impl ReplicaNumber {
    /// The most replicas that one machine's cluster can have: their addresses come from a /24.
    pub const MAX: u16 = 253;

    /// `None` where the number is 0 or above [`Self::MAX`].
    pub fn new(number: u16) -> Option<Self> {
        (1..=Self::MAX).contains(&number).then_some(Self(number))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }

    /// The first `count` replicas, at most [`Self::MAX`].
    pub fn first(count: u16) -> impl Iterator<Item = Self> {
        (1..=count.min(Self::MAX)).map(Self)
    }
}

/// A pod's `metadata.uid`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PodUid(String);

impl PodUid {
    /// # Errors
    /// The text is empty, too long, or has characters that no uid has.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let valid = (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if valid { Ok(Self(text.to_owned())) } else { Err(NameError::PodUid(text.to_owned())) }
    }

    /// The uid as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The replica's end of the pod's interface: 44 bits of hash, so that even among 2^16 pods two share
    /// a name with a chance of 1 in 8000, and then attaching the second fails instead of confusing them.
    pub fn interface(&self) -> String {
        format!("pith{}", hash(&self.0, 11))
    }
}

impl TryFrom<String> for PodUid {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<PodUid> for String {
    fn from(uid: PodUid) -> Self {
        uid.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first `digits` hexadecimal digits of the text's SHA-256.
pub(crate) fn hash(text: &str, digits: usize) -> String {
    let mut hex: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(digits);
    hex
}

fn is_number(text: Option<&str>) -> bool {
    text.is_some_and(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_are_dns_labels() {
        let long = "x".repeat(41);
        for (text, valid) in [
            ("pith", true),
            ("a", true),
            ("team-7", true),
            ("0", true),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("A", false),
            ("a_b", false),
            ("a/b", false),
            ("..", false),
            (long.as_str(), false),
        ] {
            assert_eq!(ClusterName::parse(text).is_ok(), valid, "{text:?}");
        }
    }

    #[test]
    fn interface_names_fit_and_differ() {
        let parse = |text: &str| ClusterName::parse(text).expect("valid");
        let last = ReplicaNumber::new(253).expect("valid");
        for text in ["a", "pith", "ten-letter", "eleven-long", "a-very-long-cluster-name-of-forty-letters"] {
            let text = &text[..text.len().min(40)];
            let cluster = parse(text);
            assert!(cluster.bridge().len() <= INTERFACE_NAME_MAX, "{}", cluster.bridge());
            assert!(cluster.port(last).len() <= INTERFACE_NAME_MAX, "{}", cluster.port(last));
            assert!(cluster.owns_port(&cluster.port(last)));
            assert!(cluster.owns_netns(&cluster.netns(last)));
        }
        assert_eq!(parse("ten-letter").bridge(), "pith-ten-letter");
        assert_ne!(parse("eleven-long").bridge(), parse("eleven-lonh").bridge());
        // A cluster whose name continues another's must not be taken for it.
        let (short, long) = (parse("a"), parse("a-r1"));
        let first = ReplicaNumber::new(1).expect("valid");
        assert!(!short.owns_netns(&long.netns(first)));
        assert!(!short.owns_port(&long.port(first)));
        let uid = PodUid::parse("9b2f3c1e-1111-4222-8333-444455556666").expect("valid");
        assert!(uid.interface().len() <= INTERFACE_NAME_MAX);
    }

    #[test]
    fn pod_uids_cannot_leave_their_place() {
        for (text, valid) in [("abc-1", true), ("", false), ("a/b", false), ("a b", false)] {
            assert_eq!(PodUid::parse(text).is_ok(), valid, "{text:?}");
        }
    }
}
