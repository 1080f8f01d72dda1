//! Answers to load balancers that ask whether a Service has endpoints on this node (healthCheckNodePort).
//!
//! One listener a Service. What it answers is a number that the driver sets; 200 where it is above 0, else 503,
//! as kube-proxy does.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use serde_json::json;
use tokio::task::{AbortHandle, JoinSet};
use tracing::warn;

use crate::{
    http::{Answer, listen, serve},
    plan::Health,
    service::ServiceName,
};

struct Listening {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    task: AbortHandle,
}

/// All listeners of this node. They end with it.
#[derive(Default)]
pub(crate) struct Servers {
    by_service: HashMap<ServiceName, Listening>,
    tasks: JoinSet<()>,
}

impl Servers {
    /// Makes a Service's listener what the plan says.
    pub(crate) fn set(&mut self, service: &ServiceName, health: Option<Health>) {
        match (self.by_service.get(service), health) {
            (Some(known), Some(health)) if known.port == health.port => {
                known.endpoints.store(health.endpoints, Ordering::Relaxed);
                return;
            }
            (None, None) => return,
            _ => {}
        }
        if let Some(old) = self.by_service.remove(service) {
            old.task.abort();
        }
        while self.tasks.try_join_next().is_some() {}
        let Some(health) = health else { return };
        let endpoints = Arc::new(AtomicUsize::new(health.endpoints));
        match listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, health.port))) {
            Ok(listener) => {
                let (name, count) = (service.clone(), endpoints.clone());
                let answer = move |_: &_| answer(&name, count.load(Ordering::Relaxed));
                let task = self.tasks.spawn(serve(listener, answer));
                self.by_service.insert(service.clone(), Listening { port: health.port, endpoints, task });
            }
            // Balancing goes on; balancers take a node that does not answer for one without endpoints.
            Err(error) => warn!(%service, port = health.port, %error, "nobody can ask for its health"),
        }
    }
}

fn answer(service: &ServiceName, endpoints: usize) -> Answer {
    let (namespace, name) = service.0.split_once('/').unwrap_or_default();
    let body = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": true,
    });
    let mut answer = Answer::new(body.to_string());
    if endpoints == 0 {
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
