//! Events that tell users which limit of the maps is reached, and how to raise it, and what is not as fast as it
//! was meant to be.
//!
//! Invariant: they are sent beside the driver and never hold it up; what cannot be sent soon is dropped.

use std::{convert::Infallible, fmt::Debug, future::pending, sync::Arc};

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Node, ObjectReference, Pod, Service},
};
use kube::{
    Api, Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tracing::debug;

use crate::{
    annotations::Misread,
    limit::Limit,
    service::ServiceName,
    world::{Named, named},
};

/// News that wait to be told.
const QUEUE: usize = 256;

/// What users should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// A part of this Service is not in the maps, because they are full.
    LimitReached { service: ServiceName, limit: Limit, max: u32 },
    /// So many flows were not begun since the last time.
    FlowTableFull { refused: u64, max: u32 },
    /// An annotation of this Service says nothing that is known.
    Misread { service: ServiceName, misread: Misread },
    /// Packets at the uplink are not met in XDP, where they could or should be.
    NoXdp { interface: String, why: String },
}

impl News {
    fn event(&self, node: &str) -> Event {
        let (reason, note) = match self {
            Self::LimitReached { limit, max, .. } => {
                let advice = limit.option().map_or_else(String::new, |option| {
                    format!(" Restart it with a larger {option} after removing its maps.")
                });
                let note = format!(
                    "The proxy of {node} holds {max} {limit}, and no more: what is new here is not served there.{advice}"
                );
                ("ProxyLimitReached", note)
            }
            Self::FlowTableFull { refused, max } => {
                let note = format!(
                    "The proxy of {node} holds {max} flows, and no more: {refused} new ones were refused. \
                     `pith services` says who fills the table, --limit-flows makes it larger."
                );
                ("FlowTableFull", note)
            }
            Self::Misread { misread: Misread { name, value, known }, .. } => {
                let note = format!("{name}: {value:?} is as if it were not there. What it may say: {known}.");
                ("AnnotationMisread", note)
            }
            Self::NoXdp { interface, why } => {
                let note = format!(
                    "The proxy of {node} sends packets on at tcx and not in XDP, which takes it longer. \
                     At {interface}: {why}."
                );
                ("ProxyWithoutXDP", note)
            }
        };
        Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note),
            action: match self {
                Self::NoXdp { .. } => "Attach",
                Self::Misread { .. } => "ReadService",
                Self::LimitReached { .. } | Self::FlowTableFull { .. } => "WriteMaps",
            }
            .to_owned(),
            secondary: None,
        }
    }

    /// The object that it is about; `None` when that is gone.
    async fn about(&self, client: &Client, node: &str) -> Result<Option<ObjectReference>, kube::Error> {
        match self {
            Self::FlowTableFull { .. } | Self::NoXdp { .. } => {
                let node = Api::<Node>::all(client.clone()).get_opt(node).await?;
                Ok(node.map(|node| node.object_ref(&())))
            }
            Self::LimitReached { service, .. } | Self::Misread { service, .. } => match named(service) {
                Named::Pod(pod) => find::<Pod>(client, &pod).await,
                Named::Service => find::<Service>(client, service).await,
            },
        }
    }
}

async fn find<K>(client: &Client, name: &ServiceName) -> Result<Option<ObjectReference>, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let (namespace, name) = name.0.split_once('/').unwrap_or_default();
    let object = Api::<K>::namespaced(client.clone(), namespace).get_opt(name).await?;
    Ok(object.map(|object| object.object_ref(&())))
}

/// Where the driver leaves its news.
#[derive(Clone, Debug)]
pub(crate) struct Newsroom(mpsc::Sender<News>);

impl Newsroom {
    pub(crate) fn new() -> (Self, mpsc::Receiver<News>) {
        let (sender, queue) = mpsc::channel(QUEUE);
        (Self(sender), queue)
    }

    pub(crate) fn tell(&self, news: News) {
        if let Err(error) = self.0.try_send(news) {
            debug!(%error, "an event is not sent");
        }
    }
}

/// Sends news as events, one after the other.
pub(crate) async fn send(client: Client, node: Arc<str>, mut queue: mpsc::Receiver<News>) -> Infallible {
    let reporter = Reporter { controller: "pith-proxy".to_owned(), instance: Some(node.to_string()) };
    let recorder = Recorder::new(client.clone(), reporter);
    while let Some(news) = queue.recv().await {
        let sent = async {
            match news.about(&client, &node).await? {
                Some(object) => recorder.publish(&news.event(&node), &object).await,
                None => Ok(()),
            }
        };
        if let Err(error) = sent.await {
            debug!(%error, "an event was not sent");
        }
    }
    pending().await
}
