//! [`work`]: takes keys from a [`Queue`] and reconciles them, several at a time, failures again later.

use std::error::Error;
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;

use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::queue::Queue;

/// What a reconciliation that did not fail asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing until something changes.
    Done,
    /// Look again after this time, because the clock alone changes what is to be done.
    After(Duration),
}

/// Runs `reconcile` for the queue's keys, at most `limit` at a time, until cancelled. A reconciliation that
/// has begun is dropped on cancellation: each is idempotent, the next start picks up what is left.
pub async fn work<T, E, F>(
    name: &'static str,
    queue: Queue<T>,
    limit: usize,
    cancel: CancellationToken,
    reconcile: impl Fn(T) -> F,
) where
    T: Clone + Eq + Hash + Ord + Debug,
    E: Error,
    F: Future<Output = Result<Outcome, E>>,
{
    let workers = join_all((0..limit).map(|_| work_on(name, &queue, &reconcile)));
    // Nothing is owed on the way out: see above.
    let _cancelled = cancel.run_until_cancelled(workers).await;
}

async fn work_on<T, E, F>(name: &'static str, queue: &Queue<T>, reconcile: &impl Fn(T) -> F)
where
    T: Clone + Eq + Hash + Ord + Debug,
    E: Error,
    F: Future<Output = Result<Outcome, E>>,
{
    loop {
        let key = queue.next().await;
        match reconcile(key.clone()).await {
            Ok(outcome) => {
                queue.forget(&key);
                if let Outcome::After(delay) = outcome {
                    queue.add_after(key.clone(), delay);
                }
            }
            Err(error) => {
                tracing::debug!(controller = name, ?key, error = chain(&error), "failed, will retry");
                queue.retry(key.clone());
            }
        }
        queue.done(&key);
    }
}

/// The error and what caused it, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
