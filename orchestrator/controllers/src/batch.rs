//! Many requests at once, beginning with few, so that a refusal that would meet all of them costs few.

use futures::StreamExt;
use futures::stream;

use crate::error::{Error, Result};

/// Size of the first batch; each later one is twice as large.
const FIRST: usize = 8;
/// Requests under way at once.
const AT_ONCE: usize = 32;

/// How a run of requests ended.
pub(crate) struct Batched {
    pub done: usize,
    /// The first failure. What came after its batch has not been tried.
    pub error: Option<Error>,
}

/// Carries out `request` for each item, in growing batches, until all are done or a batch has a failure.
pub(crate) async fn in_batches<T, F>(items: Vec<T>, request: impl Fn(T) -> F) -> Batched
where
    F: Future<Output = Result<()>>,
{
    let mut result = Batched { done: 0, error: None };
    let mut items = items.into_iter();
    let mut size = FIRST;
    loop {
        let batch: Vec<T> = items.by_ref().take(size).collect();
        if batch.is_empty() || result.error.is_some() {
            return result;
        }
        let mut outcomes = stream::iter(batch).map(&request).buffer_unordered(AT_ONCE);
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(()) => result.done += 1,
                Err(error) => result.error = result.error.or(Some(error)),
            }
        }
        size *= 2;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[tokio::test]
    async fn stops_after_the_batch_that_fails() {
        let cases = [("none fails", 100, None, 100, 100), ("the third fails", 100, Some(3), 8, 7)];
        for (name, items, bad, tried, done) in cases {
            let count = Cell::new(0);
            let result = in_batches((0..items).collect(), |item: usize| {
                count.set(count.get() + 1);
                async move {
                    if Some(item) == bad { Err(Error::object(&Pod::default(), "refused")) } else { Ok(()) }
                }
            })
            .await;
            assert_eq!((count.get(), result.done), (tried, done), "{name}");
            assert_eq!(result.error.is_some(), bad.is_some(), "{name}");
        }
    }
}
