//! What the kubelet asks of the network: the only thing it knows of it.

use std::{net::IpAddr, os::fd::OwnedFd};

use futures::future::BoxFuture;

use crate::desired::{PodId, PodUid};

/// A failure of the network, in its own words.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct NetworkError(Box<dyn std::error::Error + Send + Sync>);

impl NetworkError {
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }

    /// The error with its sources, in one line.
    pub(crate) fn chain(&self) -> String {
        chain(&*self.0)
    }
}

/// An error and what caused it, in one line: for events and logs, which show nothing else.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Pods' interfaces on this node. Every call is idempotent: asked twice, it answers twice the same.
pub trait PodNetwork: Send + Sync + 'static {
    /// The node's pod ranges are known (or changed). The node is not Ready before this succeeded.
    fn configure(&self, pod_cidrs: &[String]) -> BoxFuture<'_, Result<(), NetworkError>>;

    /// Gives the namespace its interface and tells the pod's addresses.
    fn attach(&self, pod: &PodId, netns: OwnedFd) -> BoxFuture<'_, Result<Vec<IpAddr>, NetworkError>>;

    fn detach(&self, pod: &PodId) -> BoxFuture<'_, Result<(), NetworkError>>;

    /// Removes every attachment that none of these pods owns.
    fn reconcile(&self, live: &[PodUid]) -> BoxFuture<'_, Result<(), NetworkError>>;

    /// Name servers of the cluster as this node's pods reach them; none before [`Self::configure`].
    fn name_servers(&self) -> Vec<IpAddr>;
}
