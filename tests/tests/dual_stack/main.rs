//! Clusters of both families: what has addresses of both, and who reaches whom in IPv6.

mod outside;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use pith_tests::{Cluster, Kubectl, until};
use serde_json::Value;

const DUAL_STACK: &str = include_str!("../manifests/dual_stack.yaml");
const CLIENT: &str = include_str!("../manifests/client.yaml");
/// How long an object may take to show to every replica's name server and programs.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn pods_and_services_have_addresses_of_both_families() {
    let Some(cluster) = Cluster::start(2, &["--dual-stack"]) else { return };
    let Some(kubectl) = cluster.kubectl("1.32") else { return };
    kubectl.apply(DUAL_STACK);
    kubectl.apply(CLIENT);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/client", "pod/echo", "--timeout=60s"]);
    nodes(&kubectl);
    let pods = pods(&kubectl);
    inside(&kubectl, &pods[0]);
    services(&kubectl, &pods);
    headless(&kubectl, &pods);
    datagrams(&kubectl);
    refused_without_endpoints(&kubectl);
    outside::services_are_reached(&cluster, &kubectl, &pods);

    // A replica that starts again adopts its pods with both addresses.
    cluster.kill_replica("replica-1");
    let reply = cluster.pith(&["up", "--detach", "--outside", "none", "--replicas", "2"]);
    assert!(reply.ok, "{}", reply.stderr);
    for pod in &pods {
        assert_eq!(ask(&kubectl, &pod.url()), Ok(BTreeSet::from([pod.name.clone()])));
    }
    cluster.down();
}

struct Pod {
    name: String,
    node: String,
    /// The first is of IPv4.
    addresses: Vec<IpAddr>,
    hosts: Vec<IpAddr>,
}

impl Pod {
    /// Of its server, in IPv6.
    fn url(&self) -> String {
        format!("http://[{}]:8080/", self.addresses[1])
    }
}

fn addresses(list: &Value, field: &str) -> Vec<IpAddr> {
    let of = |item: &Value| item[field].as_str().unwrap_or_default().parse().expect("an address");
    list.as_array().into_iter().flatten().map(of).collect()
}

fn is_pair(addresses: &[IpAddr]) -> bool {
    matches!(addresses, [IpAddr::V4(_), IpAddr::V6(_)])
}

fn nodes(kubectl: &Kubectl) {
    for node in kubectl.json(&["get", "nodes"])["items"].as_array().expect("a list") {
        let cidrs: Vec<&str> =
            node["spec"]["podCIDRs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert!(
            matches!(cidrs[..], [four, six] if four.ends_with("/24") && six.ends_with("/64")),
            "{cidrs:?}"
        );
        assert_eq!(node["spec"]["podCIDR"], cidrs[0]);
        let told = node["status"]["addresses"].as_array().into_iter().flatten();
        let internal: Value = told.filter(|address| address["type"] == "InternalIP").cloned().collect();
        assert!(is_pair(&addresses(&internal, "address")), "{internal}");
    }
}

/// Those of the Deployment, on both replicas.
fn pods(kubectl: &Kubectl) -> Vec<Pod> {
    let list = kubectl.json(&["get", "pods", "-l", "app=web"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pod = |pod: &Value| Pod {
        name: text(&pod["metadata"]["name"]),
        node: text(&pod["spec"]["nodeName"]),
        addresses: addresses(&pod["status"]["podIPs"], "ip"),
        hosts: addresses(&pod["status"]["hostIPs"], "ip"),
    };
    let pods: Vec<Pod> = list["items"].as_array().expect("a list").iter().map(pod).collect();
    for pod in &pods {
        assert!(
            is_pair(&pod.addresses) && is_pair(&pod.hosts),
            "{}: {:?} {:?}",
            pod.name,
            pod.addresses,
            pod.hosts
        );
        // From the client's own replica and from another one.
        assert_eq!(ask(kubectl, &pod.url()), Ok(BTreeSet::from([pod.name.clone()])), "{}", pod.url());
    }
    assert_eq!(pods.iter().map(|pod| &pod.node).collect::<BTreeSet<_>>().len(), 2, "pods on both replicas");
    pods
}

/// What the pod itself sees.
fn inside(kubectl: &Kubectl, pod: &Pod) {
    let joined = |all: &[IpAddr]| all.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let environment = kubectl.run(&["exec", &pod.name, "--", "/pith-probe", "env"]);
    for line in [format!("OWN={}", joined(&pod.addresses)), format!("NODE={}", joined(&pod.hosts))] {
        assert!(environment.lines().any(|had| had == line), "{line} is not in:\n{environment}");
    }
    let hosts = kubectl.run(&["exec", &pod.name, "--", "/pith-probe", "cat", "/etc/hosts"]);
    for address in &pod.addresses {
        let line = format!("{address}\t{}", pod.name);
        assert!(hosts.lines().any(|had| had == line), "{line:?} is not in:\n{hosts}");
    }
}

/// Each answers at each of its addresses and by name, through every pod; names stand for all addresses.
fn services(kubectl: &Kubectl, pods: &[Pod]) {
    let everybody: BTreeSet<String> = pods.iter().map(|pod| pod.name.clone()).collect();
    for (name, families) in [
        ("four", &["IPv4"][..]),
        ("six", &["IPv6"]),
        ("preferred", &["IPv4", "IPv6"]),
        ("required", &["IPv6", "IPv4"]),
    ] {
        let spec = kubectl.json(&["get", "service", name])["spec"].take();
        assert_eq!(spec["ipFamilies"], serde_json::json!(families), "{name}");
        let texts: Vec<&str> =
            spec["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert_eq!(texts.len(), families.len(), "{name}: {texts:?}");
        let mut urls = vec![format!("http://{name}/")];
        for (text, family) in texts.iter().zip(families) {
            let six = text.contains(':');
            assert_eq!(six, *family == "IPv6", "{name}: {texts:?}");
            urls.push(if six { format!("http://[{text}]/") } else { format!("http://{text}/") });
        }
        for url in urls {
            until(&url, SOON, || match ask(kubectl, &url)? {
                answers if answers == everybody => Ok(()),
                answers => Err(format!("{answers:?}")),
            });
        }
        assert_eq!(resolve(kubectl, name), texts.iter().map(ToString::to_string).collect(), "{name}");
    }
}

fn headless(kubectl: &Kubectl, pods: &[Pod]) {
    let all = pods.iter().flat_map(|pod| &pod.addresses).map(IpAddr::to_string).collect();
    assert_eq!(resolve(kubectl, "headless"), all);
}

/// The answer comes, as far as the client can see, from the Service's own address.
fn datagrams(kubectl: &Kubectl) {
    let service = kubectl.run(&["get", "service", "echo6", "-o", "jsonpath={.spec.clusterIP}"]);
    let printed = kubectl.run(&["exec", "client", "--", "/pith-probe", "udp-client", "echo6:7", "hello"]);
    assert_eq!(printed.trim_end(), format!("echo hello from [{service}]:7"));
}

/// The client is told at once, it does not wait.
fn refused_without_endpoints(kubectl: &Kubectl) {
    let refused = ask(kubectl, "http://nobody/").expect_err("nobody answers");
    assert!(refused.contains("refused"), "{refused}");
}

/// Addresses of a name, as the client sees them.
fn resolve(kubectl: &Kubectl, name: &str) -> BTreeSet<String> {
    let printed = kubectl.run(&["exec", "client", "--", "/pith-probe", "resolve", name]);
    printed.lines().map(str::to_owned).collect()
}

/// Who answers the client; an error where somebody does not.
fn ask(kubectl: &Kubectl, url: &str) -> Result<BTreeSet<String>, String> {
    let reply =
        kubectl.try_run(&["exec", "client", "--", "/pith-probe", "client", "--url", url, "--count", "40"]);
    let line = reply.stdout.lines().last().unwrap_or_default();
    let tally: Value =
        serde_json::from_str(line).map_err(|error| format!("{error}: {}{}", reply.stdout, reply.stderr))?;
    match (&tally["failed"], tally["answers"].as_object()) {
        (Value::Number(failed), Some(answers)) if failed.as_u64() == Some(0) => {
            Ok(answers.keys().cloned().collect())
        }
        _ => Err(tally.to_string()),
    }
}
