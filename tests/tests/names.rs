//! Services that are names: headless ones whose names lead to pods, names of names, and pods that are reached before
//! they are Ready. Asked from a pod of a running cluster, by real connections.

use std::collections::BTreeSet;
use std::time::Duration;

use pith_tests::{Cluster, Kubectl, until};
use serde_json::Value;

const CLIENT: &str = include_str!("manifests/client.yaml");
const NAMES: &str = include_str!("manifests/names.yaml");
/// How long an object may take to show to every replica's name server and programs.
const SOON: Duration = Duration::from_secs(30);

/// Addresses of a name, as the client sees them.
fn resolve(kubectl: &Kubectl, name: &str) -> Result<BTreeSet<String>, String> {
    let reply = kubectl.try_run(&["exec", "client", "--", "/pith-probe", "resolve", name]);
    if reply.ok { Ok(reply.stdout.lines().map(str::to_owned).collect()) } else { Err(reply.stderr) }
}

fn address(kubectl: &Kubectl, pod: &str) -> String {
    kubectl.run(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])
}

/// Who answers a few requests of the client; an error where somebody does not.
fn ask(kubectl: &Kubectl, url: &str) -> Result<BTreeSet<String>, String> {
    let reply =
        kubectl.try_run(&["exec", "client", "--", "/pith-probe", "client", "--url", url, "--count", "5"]);
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

#[test]
fn names_lead_to_pods() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let Some(kubectl) = cluster.kubectl("1.32") else { return };
    kubectl.apply(CLIENT);
    kubectl.apply(NAMES);
    let ready =
        ["wait", "--for=condition=Ready", "pod/client", "pod/peers-0", "pod/peers-1", "--timeout=60s"];
    kubectl.run(&ready);
    kubectl.run(&["wait", "--for=jsonpath={.status.phase}=Running", "pod/unready", "--timeout=60s"]);

    let answers = [
        ("http://peers-1.peers:8080/", "peers-1"),
        ("http://peers-0.peers.default.svc.cluster.local:8080/", "peers-0"),
        // Who is not Ready serves where the Service says so, with an address and without.
        ("http://early/", "unready"),
        ("http://early-headless:8080/", "unready"),
    ];
    for (url, expect) in answers {
        until(url, SOON, || match ask(&kubectl, url)? {
            answers if answers.iter().eq([expect]) => Ok(()),
            answers => Err(format!("{answers:?}")),
        });
    }
    // A headless Service's name leads to every pod, and so does a name of that name.
    let both = BTreeSet::from(["peers-0", "peers-1"].map(|pod| address(&kubectl, pod)));
    for name in ["peers", "elsewhere"] {
        assert_eq!(resolve(&kubectl, name), Ok(both.clone()), "{name}");
    }
    assert!(ask(&kubectl, "http://elsewhere:8080/").is_ok());
    assert!(ask(&kubectl, "http://late/").is_err(), "nobody is Ready");
    assert!(resolve(&kubectl, "late-headless").is_err(), "nobody is Ready");

    // The name of a pod that is gone is gone with it; the others stay.
    kubectl.run(&["delete", "pod", "peers-1"]);
    until("the second pod's name is gone", SOON, || match resolve(&kubectl, "peers-1.peers") {
        Err(_) => Ok(()),
        Ok(addresses) => Err(format!("{addresses:?}")),
    });
    let left = BTreeSet::from([address(&kubectl, "peers-0")]);
    until("the first is left", SOON, || match resolve(&kubectl, "peers")? {
        addresses if addresses == left => Ok(()),
        addresses => Err(format!("{addresses:?}")),
    });
    cluster.down();
}
