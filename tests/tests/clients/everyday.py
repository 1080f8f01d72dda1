"""What people do with the stock Python client, against the cluster of KUBECONFIG.

Each part prints its name when all of it was as on Kubernetes; anything else raises.
"""

import json

from kubernetes import client, config, dynamic, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward, stream

NAMESPACE = "default"
DEADLINE_S = 60


def labelled(name):
    return client.V1ObjectMeta(name=name, labels={"app": name})


def demo():
    return client.V1Container(name="main", image="pith.local/demo:v1", image_pull_policy="Never")


def until(core, name, wanted):
    """Watches the pod until `wanted(event type, pod)`, from what a list says on."""
    listed = core.list_namespaced_pod(NAMESPACE, label_selector=f"app={name}")
    if any(wanted("LISTED", pod) for pod in listed.items):
        return
    if not listed.items and wanted("DELETED", None):
        return
    events = watch.Watch()
    for event in events.stream(
        core.list_namespaced_pod,
        NAMESPACE,
        label_selector=f"app={name}",
        resource_version=listed.metadata.resource_version,
        timeout_seconds=DEADLINE_S,
    ):
        if wanted(event["type"], event["object"]):
            events.stop()
            return
    raise TimeoutError(f"{name}: not within {DEADLINE_S} s")


def is_ready(_, pod):
    conditions = (pod and pod.status.conditions) or []
    return any(one.type == "Ready" and one.status == "True" for one in conditions)


def pods(core):
    spec = client.V1PodSpec(containers=[demo()], termination_grace_period_seconds=1)
    created = core.create_namespaced_pod(NAMESPACE, client.V1Pod(metadata=labelled("py"), spec=spec))
    assert created.status.phase == "Pending" and created.metadata.uid, created
    until(core, "py", is_ready)
    pod = core.read_namespaced_pod("py", NAMESPACE)
    assert pod.status.pod_ip and pod.spec.node_name.startswith("replica-"), pod.status
    patched = core.patch_namespaced_pod("py", NAMESPACE, {"metadata": {"labels": {"seen": "yes"}}})
    assert patched.metadata.labels == {"app": "py", "seen": "yes"}, patched.metadata.labels


def run(core, command, **options):
    call = core.connect_get_namespaced_pod_exec
    return stream(call, "py", NAMESPACE, command=command, stderr=True, stdout=True, tty=False, **options)


def streams(core):
    # Ready without a probe says nothing of what it has printed: the log is followed until it is there.
    options = {"follow": True, "_preload_content": False, "_request_timeout": DEADLINE_S}
    log = core.read_namespaced_pod_log("py", NAMESPACE, **options)
    assert any(b"8080" in line for line in log)
    log.close()
    assert "8080" in core.read_namespaced_pod_log("py", NAMESPACE)
    assert run(core, ["/pith-probe", "echo", "hello"], stdin=False) == "hello\n"
    session = run(core, ["/pith-probe", "sh"], stdin=True, _preload_content=False)
    session.write_stdin("echo typed\nexit\n")
    session.run_forever(timeout=DEADLINE_S)
    assert "typed" in session.read_stdout(), session.read_all()
    assert session.returncode == 0, session.returncode
    failed = run(core, ["/pith-probe", "exit", "7"], stdin=False, _preload_content=False)
    failed.run_forever(timeout=DEADLINE_S)
    assert failed.returncode == 7, failed.returncode

    forward = portforward(core.connect_get_namespaced_pod_portforward, "py", NAMESPACE, ports="8080")
    socket = forward.socket(8080)
    socket.settimeout(DEADLINE_S)
    socket.sendall(b"GET /marker HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert socket.recv(64).startswith(b"HTTP/1.1 ")
    socket.close()
    followed = watch.Watch()
    for line in followed.stream(core.read_namespaced_pod_log, "py", NAMESPACE, follow=True):
        if "/marker" in line:
            followed.stop()
    core.delete_namespaced_pod("py", NAMESPACE)
    until(core, "py", lambda kind, _: kind == "DELETED")


def objects(core, apps):
    for number in range(5):
        meta = client.V1ObjectMeta(name=f"page-{number}", labels={"paged": "yes"})
        core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=meta, data={"n": str(number)}))
    names, more = [], None
    while more != "":
        page = core.list_namespaced_config_map(NAMESPACE, label_selector="paged=yes", limit=2, _continue=more)
        assert len(page.items) <= 2, page.items
        names += [one.metadata.name for one in page.items]
        more = page.metadata._continue or ""
    assert names == [f"page-{number}" for number in range(5)], names
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="paged=yes")
    assert not core.list_namespaced_config_map(NAMESPACE, label_selector="paged=yes").items

    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels={"app": "two"}), spec=client.V1PodSpec(containers=[demo()])
    )
    selector = client.V1LabelSelector(match_labels={"app": "two"})
    spec = client.V1DeploymentSpec(replicas=1, selector=selector, template=template)
    apps.create_namespaced_deployment(NAMESPACE, client.V1Deployment(metadata=labelled("two"), spec=spec))
    until(core, "two", is_ready)
    apps.patch_namespaced_deployment_scale("two", NAMESPACE, {"spec": {"replicas": 2}})
    operation = [{"op": "add", "path": "/metadata/annotations", "value": {"note": "hello"}}]
    apps.patch_namespaced_deployment("two", NAMESPACE, operation)
    deployment = apps.read_namespaced_deployment("two", NAMESPACE)
    assert deployment.spec.replicas == 2 and deployment.metadata.annotations["note"] == "hello", deployment
    apps.delete_namespaced_deployment("two", NAMESPACE, propagation_policy="Foreground")


def refused(status, call, *arguments):
    try:
        call(*arguments)
    except ApiException as error:
        assert error.status == status, error
        return json.loads(error.body)
    raise AssertionError(f"{call.__name__} was not refused")


def errors(core):
    missing = refused(404, core.read_namespaced_pod, "none", NAMESPACE)
    assert missing["reason"] == "NotFound" and missing["details"]["name"] == "none", missing
    settings = core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "settings"}, "data": {"a": "1"}})
    refused(409, core.create_namespaced_config_map, NAMESPACE, {"metadata": {"name": "settings"}})
    core.replace_namespaced_config_map("settings", NAMESPACE, {"metadata": {"name": "settings"}, "data": {"a": "2"}})
    stale = refused(409, core.replace_namespaced_config_map, "settings", NAMESPACE, settings)
    assert stale["reason"] == "Conflict", stale
    bad = refused(422, core.create_namespaced_config_map, NAMESPACE, {"metadata": {"name": "Bad_Name"}})
    assert bad["details"]["causes"][0]["field"] == "metadata.name", bad


def by_discovery():
    """Finds kinds by discovery alone, and applies on the server's side."""
    cluster = dynamic.DynamicClient(client.ApiClient())
    maps = cluster.resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"b": "3"}}
    applied = maps.server_side_apply(body=body, namespace=NAMESPACE, field_manager="everyday")
    assert applied.data.to_dict() == {"a": "2", "b": "3"}, applied.data
    maps.delete(name="settings", namespace=NAMESPACE)
    deployments = cluster.resources.get(api_version="apps/v1", kind="Deployment")
    assert deployments.get(namespace="kube-system").items == []


def main():
    config.load_kube_config()
    core, apps = client.CoreV1Api(), client.AppsV1Api()
    for name, part in [
        ("pods", lambda: pods(core)),
        ("streams", lambda: streams(core)),
        ("objects", lambda: objects(core, apps)),
        ("errors", lambda: errors(core)),
        ("dynamic", by_discovery),
    ]:
        part()
        print(name, flush=True)


if __name__ == "__main__":
    main()
