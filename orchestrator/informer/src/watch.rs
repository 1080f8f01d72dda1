//! [`follow`]: keeps a [`Sink`] equal to what the API serves of one kind.
//!
//! ```text
//!   list ──▶ watch from the list's revision ──closed──▶ watch from the last revision seen
//!     ▲                                                        │
//!     └──────────────── 410 Gone, or nothing to resume from ───┘     (errors: back-off, then again)
//! ```

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::api::{Api, DynamicObject, ListParams, ObjectList, PartialObjectMeta, WatchEvent, WatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::key::Revision;

/// Objects in one page of a list: bounds the memory a list takes on both sides.
const PAGE: u32 = 500;
/// The server ends a watch after this time, so that a connection that died silently is noticed.
const WATCH_SECONDS: u32 = 290;
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// Where objects of a kind are listed and watched.
pub trait Feed: Send + Sync {
    type Object: Resource + Clone + DeserializeOwned + Send;

    fn list(
        &self,
        params: &ListParams,
    ) -> impl Future<Output = kube::Result<ObjectList<Self::Object>>> + Send;

    fn watch(
        &self,
        params: &WatchParams,
        from: &str,
    ) -> impl Future<Output = kube::Result<BoxStream<'static, kube::Result<WatchEvent<Self::Object>>>>> + Send;

    /// What to say in logs.
    fn name(&self) -> String;
}

/// Whole objects of a kind.
pub struct Full<K> {
    pub api: Api<K>,
}

impl<K> Feed for Full<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    type Object = K;

    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<K>> {
        self.api.list(params).await
    }

    async fn watch(
        &self,
        params: &WatchParams,
        from: &str,
    ) -> kube::Result<BoxStream<'static, kube::Result<WatchEvent<K>>>> {
        Ok(self.api.watch(params, from).await?.boxed())
    }

    fn name(&self) -> String {
        K::plural(&()).into_owned()
    }
}

/// Only the metadata of the objects of a kind that is known by discovery.
pub struct Metadata {
    pub api: Api<DynamicObject>,
    pub plural: String,
}

impl Feed for Metadata {
    type Object = PartialObjectMeta<DynamicObject>;

    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<Self::Object>> {
        self.api.list_metadata(params).await
    }

    async fn watch(
        &self,
        params: &WatchParams,
        from: &str,
    ) -> kube::Result<BoxStream<'static, kube::Result<WatchEvent<Self::Object>>>> {
        Ok(self.api.watch_metadata(params, from).await?.boxed())
    }

    fn name(&self) -> String {
        format!("{} (metadata)", self.plural)
    }
}

/// What takes in the objects of a feed.
pub trait Sink<T>: Send + Sync {
    /// All objects there are, at this revision.
    fn replace(&self, objects: Vec<T>, revision: Revision);
    fn apply(&self, object: T);
    fn delete(&self, object: T);
    /// Nothing newer than this has been missed.
    fn progress(&self, revision: Revision);
}

impl<T, S: Sink<T>> Sink<T> for Arc<S> {
    fn replace(&self, objects: Vec<T>, revision: Revision) {
        S::replace(self, objects, revision);
    }

    fn apply(&self, object: T) {
        S::apply(self, object);
    }

    fn delete(&self, object: T) {
        S::delete(self, object);
    }

    fn progress(&self, revision: Revision) {
        S::progress(self, revision);
    }
}

/// Why a watch ended.
enum End {
    /// It can be resumed from the last revision.
    Closed,
    /// The server no longer has the revision: list anew.
    Gone,
}

/// Keeps `sink` equal to `feed` until cancelled. `fields` is a field selector, or empty.
pub async fn follow<F: Feed>(feed: F, fields: &str, sink: impl Sink<F::Object>, cancel: CancellationToken) {
    // Dropping a list or a watch half way loses nothing: the sink is only told whole objects.
    let _cancelled = cancel.run_until_cancelled(follow_forever(feed, fields, sink)).await;
}

async fn follow_forever<F: Feed>(feed: F, fields: &str, sink: impl Sink<F::Object>) {
    let mut from: Option<Revision> = None;
    let mut delay = FIRST_DELAY;
    loop {
        let result = match from {
            None => list_all(&feed, fields).await.map(|(objects, revision)| {
                sink.replace(objects, revision);
                from = Some(revision);
                delay = FIRST_DELAY;
            }),
            Some(mut at) => {
                let end = watch_once(&feed, fields, &sink, &mut at).await;
                if from.is_some_and(|before| at > before) {
                    delay = FIRST_DELAY;
                }
                from = Some(at);
                end.map(|end| match end {
                    End::Closed => {}
                    End::Gone => from = None,
                })
            }
        };
        if let Err(error) = result {
            tracing::warn!(feed = feed.name(), %error, "watch failed, trying again");
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LONGEST_DELAY);
        }
    }
}

async fn list_all<F: Feed>(feed: &F, fields: &str) -> kube::Result<(Vec<F::Object>, Revision)> {
    let mut params = ListParams::default().limit(PAGE);
    if !fields.is_empty() {
        params = params.fields(fields);
    }
    let mut objects = Vec::new();
    loop {
        let page = feed.list(&params).await?;
        objects.extend(page.items);
        let revision = page.metadata.resource_version.as_deref().map(Revision::parse).unwrap_or_default();
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok((objects, revision)),
        }
    }
}

async fn watch_once<F: Feed>(
    feed: &F,
    fields: &str,
    sink: &impl Sink<F::Object>,
    at: &mut Revision,
) -> kube::Result<End> {
    let mut params = WatchParams::default().timeout(WATCH_SECONDS);
    if !fields.is_empty() {
        params = params.fields(fields);
    }
    let opened = tokio::time::Instant::now();
    let mut stream = match feed.watch(&params, &at.0.to_string()).await {
        Err(kube::Error::Api(status)) if status.code == 410 => return Ok(End::Gone),
        other => other?,
    };
    let started_at = *at;
    while let Some(event) = stream.next().await {
        match event? {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                *at = (*at).max(revision_of(&object));
                sink.apply(object);
            }
            WatchEvent::Deleted(object) => {
                *at = (*at).max(revision_of(&object));
                sink.delete(object);
            }
            WatchEvent::Bookmark(bookmark) => {
                *at = (*at).max(Revision::parse(&bookmark.metadata.resource_version));
                sink.progress(*at);
            }
            WatchEvent::Error(status) if status.code == 410 => return Ok(End::Gone),
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        }
    }
    // A server that closes at once and without an event would otherwise be asked in a tight loop.
    if *at == started_at && opened.elapsed() < Duration::from_secs(1) {
        tokio::time::sleep(FIRST_DELAY).await;
    }
    Ok(End::Closed)
}

fn revision_of<T: Resource>(object: &T) -> Revision {
    object.resource_version().as_deref().map(Revision::parse).unwrap_or_default()
}
