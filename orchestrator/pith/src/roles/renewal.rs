//! Renews a replica's certificates before they expire, without a new process and without touching a pod.
//!
//! ```text
//!  wait until 70-90 % of their time is over ─► ask as the node ─► write ─► hand out ─► wait …
//!                                                   │ refused, or nobody there
//!                                                   └► warn, wait 2 s … 5 min, ask again; the old ones go on
//! ```
//! Whoever uses them holds a receiver of the newest. Requests under way end on the connections that they began on; new
//! ones are made with new certificates, since an API server looks at a certificate's dates with each request.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use kube::Client;
use kube::client::Body;
use pith_kubelet::Serving;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::credentials::{Kept, Member};

/// The part of a certificate's life after which kubelets ask for the next, a different one each time, so that those
/// that started together do not ask together (kubernetes/client-go/util/certificate/certificate_manager.go).
const RENEW_AFTER: std::ops::Range<f64> = 0.7..0.9;
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_LONGEST: Duration = Duration::from_secs(300);
/// The clock may be set, and a machine may sleep: both are seen this late at most.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// A replica's certificates and those that use them.
pub(crate) struct Renewal {
    kept: Kept,
    member: Member,
    clients: watch::Sender<Client>,
    serving: watch::Sender<Serving>,
}

impl Renewal {
    pub(crate) async fn new(kept: Kept, member: Member) -> Result<Self> {
        let clients = watch::Sender::new(kept.connect(&member).await?);
        let serving = watch::Sender::new(serving(&kept));
        Ok(Self { kept, member, clients, serving })
    }

    /// A client whose every request is made with the newest certificate.
    pub(crate) fn client(&self) -> Client {
        let newest = self.clients.subscribe();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let client = newest.borrow().clone();
            async move { client.send(request).await }
        });
        Client::new(service, "default")
    }

    /// What the kubelet's server shows.
    pub(crate) fn serving(&self) -> watch::Receiver<Serving> {
        self.serving.subscribe()
    }

    /// Renews in time, until it is told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<()> {
        tokio::select! {
            // A certificate that was asked for and not kept is asked for again at the next start.
            () = stop.cancelled() => Ok(()),
            ended = self.keep_fresh() => ended,
        }
    }

    /// Returns only with an error, when its own certificates cannot be read.
    async fn keep_fresh(&mut self) -> Result<()> {
        let mut pause = RETRY_FIRST;
        let mut due = self.due()?;
        loop {
            sleep_until(due).await;
            match self.renew().await {
                Ok(()) => {
                    tracing::info!("the node's certificates are renewed");
                    (pause, due) = (RETRY_FIRST, self.due()?);
                }
                Err(error) => {
                    let left = self.kept.validity()?.not_after.duration_since(SystemTime::now());
                    let left_s = left.unwrap_or_default().as_secs();
                    tracing::warn!(
                        error = format!("{error:#}"),
                        good_for_s = left_s,
                        retry_s = pause.as_secs(),
                        "the node's certificates are not renewed; once they have expired, join again with a token"
                    );
                    due = SystemTime::now() + pause;
                    pause = (pause * 2).min(RETRY_LONGEST);
                }
            }
        }
    }

    fn due(&self) -> Result<SystemTime> {
        Ok(self.kept.validity()?.after(rand::random_range(RENEW_AFTER)))
    }

    async fn renew(&mut self) -> Result<()> {
        self.kept.renew(&self.member).await?;
        let client = self.kept.connect(&self.member).await?;
        self.clients.send_replace(client);
        self.serving.send_replace(serving(&self.kept));
        Ok(())
    }
}

fn serving(kept: &Kept) -> Serving {
    let credentials = &kept.credentials;
    Serving {
        certificate: credentials.serving.certificate_pem.clone(),
        key: credentials.serving.key_pem.clone(),
        client_ca: credentials.authority_pem.clone(),
    }
}

async fn sleep_until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
    }
}

#[cfg(test)]
mod tests;
