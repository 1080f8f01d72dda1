//! What all requests share.

use std::{fmt, net::IpAddr, sync::Arc};

use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admission::Tolerations, admission::services::Allocations, authz::Authorizer, metrics::Metrics,
    objects::Objects, openapi::Documents, pki::Pki, service_tokens::ServiceTokens, stream_proxy::Kubelets,
};

/// Requests that are worked on at once, watches and streams apart (upstream: 400 reads and 200 writes).
pub(crate) const MAX_IN_FLIGHT: usize = 600;

pub(crate) struct State {
    pub(crate) objects: Objects,
    pub(crate) pki: Arc<Pki>,
    pub(crate) tokens: ServiceTokens,
    pub(crate) authorizer: Box<dyn Authorizer>,
    pub(crate) services: Allocations,
    pub(crate) tolerations: Tolerations,
    pub(crate) kubelets: Kubelets,
    pub(crate) metrics: Metrics,
    pub(crate) openapi: Documents,
    pub(crate) in_flight: Semaphore,
    /// Where clients reach this server.
    pub(crate) advertise: (IpAddr, u16),
    /// Ends watches and streams.
    pub(crate) stopping: CancellationToken,
    /// Streams between clients and kubelets, which outlive the request that began them.
    pub(crate) streams: TaskTracker,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("advertise", &self.advertise).finish_non_exhaustive()
    }
}
