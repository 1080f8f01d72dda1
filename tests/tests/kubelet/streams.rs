//! Logs, exec and port-forward the whole way: client, API server, kubelet, supervisor.

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{AttachParams, LogParams},
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    node::{DEADLINE, isolated, within},
    pods::is_ready,
};

#[test]
fn logs_exec_and_port_forward() {
    isolated("streams", async |mut node| {
        node.start().await;
        let client = node.remote().await;
        let pods: Api<Pod> = Api::namespaced(client, "default");
        let ready = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1});
        let container = json!({"name": "a", "args": ["serve"], "readinessProbe": ready});
        node.create("web", json!({"containers": [container]})).await;
        node.until("web", "Ready", is_ready).await;

        exec(&pods).await;
        forward(&pods).await;
        logs(&node, &pods).await;
        // A kubelet that stops ends its sessions, and their processes with them.
        let params = AttachParams::default().stdout(true);
        let process = within(pods.exec("web", ["/pith-probe", "sleep", "3600"], &params)).await;
        node.stop().await;
        // With an error: nothing was said goodbye.
        let ended = tokio::time::timeout(DEADLINE, process.join()).await.expect("the session is over");
        assert!(ended.is_err());
        node.start().await;
        node.delete("web", Some(0)).await;
        node.until_gone("web").await;
    });
}

async fn exec(pods: &Api<Pod>) {
    let params = AttachParams::default().stdout(true).stderr(true);
    let mut process = within(pods.exec("web", ["/pith-probe", "echo", "hello", "there"], &params)).await;
    let mut text = String::new();
    process.stdout().expect("asked for").read_to_string(&mut text).await.expect("reads");
    assert_eq!(text, "hello there\n");
    let status = process.take_status().expect("once").await.expect("says how it ended");
    assert_eq!(status.status.as_deref(), Some("Success"));

    let mut process = within(pods.exec("web", ["/pith-probe", "exit", "7"], &params)).await;
    let status = process.take_status().expect("once").await.expect("says how it ended");
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"), "{status:?}");

    // With a terminal, through the toy shell.
    let params = AttachParams::interactive_tty();
    let mut process = within(pods.exec("web", ["/pith-probe", "sh"], &params)).await;
    let mut stdin = process.stdin().expect("asked for");
    stdin.write_all(b"exit\n").await.expect("the shell reads");
    let mut text = String::new();
    process.stdout().expect("asked for").read_to_string(&mut text).await.expect("reads");
    let status = process.take_status().expect("once").await.expect("says how it ended");
    assert_eq!(status.status.as_deref(), Some("Success"), "{text}");
}

async fn forward(pods: &Api<Pod>) {
    let mut forwarder = within(pods.portforward("web", &[8080])).await;
    let mut stream = forwarder.take_stream(8080).expect("was asked for");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("writes");
    let mut text = vec![0; 15];
    stream.read_exact(&mut text).await.expect("reads");
    assert_eq!(String::from_utf8_lossy(&text), "HTTP/1.1 200 OK");
}

async fn logs(node: &crate::node::Node, pods: &Api<Pod>) {
    node.create(
        "talks",
        json!({"restartPolicy": "Never", "containers": [
        {"name": "a", "args": ["echo", "one two"]}]}),
    )
    .await;
    node.until_phase("talks", "Succeeded").await;
    assert_eq!(within(pods.logs("talks", &LogParams::default())).await, "one two\n");
    node.create("later", json!({"containers": [{"name": "a", "args": ["serve"]}]})).await;
    node.until_phase("later", "Running").await;
    let follow = LogParams { follow: true, ..LogParams::default() };
    let stream = within(pods.log_stream("later", &follow)).await;
    let mut lines = Box::pin(futures::AsyncBufReadExt::lines(stream));
    node.delete("later", Some(0)).await;
    // The stream of a container that has ended ends.
    let ended = async {
        while let Some(line) = lines.next().await {
            line?;
        }
        Ok::<_, std::io::Error>(())
    };
    within(ended).await;
    node.until_gone("later").await;
    node.delete("talks", Some(0)).await;
    node.until_gone("talks").await;
}
