//! The kinds that the API serves, as the controllers need them that work on all kinds alike.

use std::time::Duration;

use kube::api::DynamicObject;
use kube::core::discovery::{ApiResource, Scope, verbs};
use kube::{Api, Client, Discovery};

use crate::error::{Error, Result};

/// Between attempts, while the API does not answer.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub resource: ApiResource,
    pub namespaced: bool,
}

impl Kind {
    pub(crate) fn everywhere(&self, client: &Client) -> Api<DynamicObject> {
        Api::all_with(client.clone(), &self.resource)
    }

    /// The objects in the namespace, or the kind's only scope.
    pub(crate) fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            self.everywhere(client)
        }
    }
}

/// The kinds whose objects can be listed, watched and deleted; waits for the API to answer.
pub(crate) async fn kinds(client: &Client) -> Vec<Kind> {
    loop {
        match read(client).await {
            Ok(kinds) => return kinds,
            Err(error) => tracing::warn!(%error, "discovery failed, trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// One attempt.
pub(crate) async fn read(client: &Client) -> Result<Vec<Kind>> {
    let discovery = Discovery::new(client.clone()).run_aggregated().await.map_err(Error::Discovery)?;
    let resources = discovery.groups().flat_map(|group| group.recommended_resources());
    let kinds = resources.filter(|(_, can)| {
        [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|verb| can.supports_operation(verb))
    });
    Ok(kinds.map(|(resource, can)| Kind { resource, namespaced: can.scope == Scope::Namespaced }).collect())
}
