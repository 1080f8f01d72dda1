//! postStart and preStop: one action in or towards a container.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::LifecycleHandler;

use crate::{
    checks::{self, CheckError},
    context::PodCell,
    desired::Unit,
    observed::ContainerId,
    process,
};

/// A hook has no time limit of its own; whoever runs it limits it by the pod's grace. This bounds commands
/// that nobody waits for any more.
const LONGEST: Duration = Duration::from_secs(3600);

pub(crate) async fn run(
    cell: &Arc<PodCell>,
    unit: &Unit,
    id: &ContainerId,
    handler: &LifecycleHandler,
) -> Result<(), CheckError> {
    let address = || cell.facts().pod_ips.first().copied().ok_or(CheckError::NoAddress);
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        return Ok(process::run(cell, id, &command, LONGEST).await?);
    }
    if let Some(get) = &handler.http_get {
        return checks::http(&unit.spec, get, address()?).await;
    }
    if let Some(tcp) = &handler.tcp_socket {
        return checks::tcp(&unit.spec, tcp, address()?).await;
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err(CheckError::NoAction)
}
