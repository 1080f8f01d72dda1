//! The tasks of a role: when one of them fails, all end, and the role with that failure.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long tasks may take to end once they are told to.
const STOP_DEADLINE: Duration = Duration::from_secs(8);

/// Starts tasks that a role cannot do without. Clones start tasks of the same role.
#[derive(Clone)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    cancel: CancellationToken,
    /// Of the first task that failed.
    failure: Arc<Mutex<Option<anyhow::Error>>>,
}

impl Tasks {
    pub(crate) fn new(cancel: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), cancel, failure: Arc::default() }
    }

    /// Cancelled when the role is to end.
    pub(crate) fn cancel(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Starts a task that runs until it is cancelled. Ending before that is a failure.
    pub(crate) fn start<E>(
        &self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Into<anyhow::Error>,
    {
        let role = self.clone();
        self.tracker.spawn(async move {
            let outcome: Result<()> = task.await.map_err(Into::into);
            let outcome: Result<()> = match outcome {
                Ok(()) if role.cancel.is_cancelled() => return,
                Ok(()) => Err(anyhow::anyhow!("ended by itself")),
                Err(error) => Err(error),
            };
            let mut failure = role.failure.lock().unwrap_or_else(PoisonError::into_inner);
            if failure.is_none() {
                *failure = outcome.context(name).err();
            }
            role.cancel.cancel();
        });
    }

    /// Waits until the role is to end and its tasks have ended.
    pub(crate) async fn finish(self) -> Result<()> {
        self.cancel.cancelled().await;
        self.tracker.close();
        if tokio::time::timeout(STOP_DEADLINE, self.tracker.wait()).await.is_err() {
            bail!("{} tasks did not end within {} s", self.tracker.len(), STOP_DEADLINE.as_secs());
        }
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_failure_ends_all_and_is_told() {
        let tasks = Tasks::new(CancellationToken::new());
        let cancel = tasks.cancel();
        tasks.start("waits", async move {
            cancel.cancelled().await;
            Ok::<_, anyhow::Error>(())
        });
        tasks.start("fails", async { Err(anyhow::anyhow!("for a reason")) });
        let error = tasks.finish().await.expect_err("a task failed");
        assert_eq!(format!("{error:#}"), "fails: for a reason");
    }

    #[tokio::test]
    async fn a_cancelled_role_ends_without_failure() {
        let tasks = Tasks::new(CancellationToken::new());
        let cancel = tasks.cancel();
        tasks.start("waits", async move {
            cancel.cancelled().await;
            Ok::<_, anyhow::Error>(())
        });
        tasks.cancel().cancel();
        tasks.finish().await.expect("nothing failed");
    }
}
