//! The long-lived roles of the binary: each wires the crates of its plane together and runs until it is told to stop.

use std::path::Path;

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

mod credentials;
mod pod_network;
pub(crate) mod primary;
pub(crate) mod proxy;
pub(crate) mod proxying;
mod renewal;
pub(crate) mod replica;
mod surroundings;
mod tasks;
pub(crate) mod uplink;

/// A client with the credentials of a kubeconfig file.
pub(crate) async fn client_from(kubeconfig: &Path) -> Result<Client> {
    let context = || format!("use the kubeconfig {}", kubeconfig.display());
    let parsed = Kubeconfig::read_from(kubeconfig).with_context(context)?;
    let config =
        Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await.with_context(context)?;
    Client::try_from(config).with_context(context)
}

/// A token that is cancelled by SIGTERM or SIGINT.
pub(crate) fn cancelled_by_signals() -> Result<CancellationToken> {
    let cancel = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let stop = cancel.clone();
    tokio::spawn(async move {
        // Either signal means the same, and the other one is no longer of interest.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(cancel)
}

/// Tells whoever started this process that it serves (sd_notify(3)); nobody may be listening.
fn notify_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot report readiness to NOTIFY_SOCKET");
    }
}
