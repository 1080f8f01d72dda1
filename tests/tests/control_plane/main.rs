//! Controllers and scheduler together against the real API server, in one process, with kubelets that only
//! pretend to run what they are given. No right and no network is needed.

mod world;

use anyhow::Result;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use self::world::World;

fn deployment(name: &str, replicas: i32, image: &str) -> Deployment {
    serde_json::from_value(json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": name } }, "template": {
            "metadata": { "labels": { "app": name } },
            "spec": { "terminationGracePeriodSeconds": 1, "containers": [{ "name": "c", "image": image,
                "ports": [{ "name": "http", "containerPort": 8080 }] }] } } },
    }))
    .expect("a valid deployment")
}

fn is_up(deployment: &Deployment, replicas: i32) -> bool {
    let Some(status) = &deployment.status else { return false };
    let all = [status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas];
    status.observed_generation == deployment.metadata.generation
        && all.iter().all(|count| count.unwrap_or(0) == replicas)
        && status.unavailable_replicas.is_none()
}

fn on(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default()
}

fn image(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_spread_served_rolled_back_and_deleted() -> Result<()> {
    let world = World::start(3).await?;
    let deployments = world.api::<Deployment>();
    deployments.create(&PostParams::default(), &deployment("web", 6, "image:1")).await?;
    let service: Service = serde_json::from_value(json!({ "metadata": { "name": "web" }, "spec": {
        "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] } }))?;
    world.api::<Service>().create(&PostParams::default(), &service).await?;

    world.until("six are up", |world| world.deployment("web").is_some_and(|d| is_up(&d, 6))).await;
    for node in ["replica-1", "replica-2", "replica-3"] {
        let count = world.pods("web").iter().filter(|pod| on(pod) == node).count();
        assert_eq!(count, 2, "{node}");
    }
    let web = deployments.get("web").await?;
    let conditions = web.status.and_then(|status| status.conditions).unwrap_or_default();
    let mut told: Vec<_> = conditions
        .iter()
        .map(|c| format!("{}={} {}", text(&c.type_), text(&c.status), text(&c.reason)))
        .collect();
    told.sort();
    assert_eq!(told, ["Available=True MinimumReplicasAvailable", "Progressing=True NewReplicaSetAvailable"]);
    assert_eq!(web.metadata.annotations.unwrap_or_default()["deployment.kubernetes.io/revision"], "1");
    served(&world, 6).await?;

    // Scaling to and fro.
    for replicas in [12, 2, 6] {
        let patch = json!({ "spec": { "replicas": replicas } });
        deployments.patch("web", &PatchParams::default(), &Patch::Merge(patch)).await?;
        let up = |world: &World| {
            world.deployment("web").is_some_and(|d| is_up(&d, replicas))
                && world.pods("web").len() == replicas as usize
        };
        world.until("scaled", up).await;
    }

    // A new image: never fewer than five available (25 % of six, rounded down), never more than eight there.
    roll(&world, "image:2").await?;
    let sets = world.api::<ReplicaSet>().list(&ListParams::default()).await?.items;
    assert_eq!(sets.len(), 2);
    let newest = sets.iter().find(|set| set.spec.replicas == Some(6)).expect("the new set has all replicas");
    assert_eq!(newest.annotations()["deployment.kubernetes.io/revision"], "2");

    // Back: the first set is used again, as the third revision.
    roll(&world, "image:1").await?;
    let sets = world.api::<ReplicaSet>().list(&ListParams::default()).await?.items;
    let first = sets.iter().find(|set| set.spec.replicas == Some(6)).expect("the first set has all replicas");
    assert_eq!(sets.len(), 2);
    assert_eq!(first.annotations()["deployment.kubernetes.io/revision"], "3");
    assert_eq!(first.annotations()["deployment.kubernetes.io/revision-history"], "1");
    served(&world, 6).await?;

    deployments.delete("web", &DeleteParams::background()).await?;
    world.until("the pods are gone", |world| world.pods("web").is_empty()).await;
    let none = async || Ok(world.api::<ReplicaSet>().list(&ListParams::default()).await?.items.is_empty());
    world.until_api("the sets are gone", none).await?;
    told_events(&world).await?;
    world.stop().await
}

fn text(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or_default()
}

/// All pods of `web` are in its slices, its Endpoints and ready.
async fn served(world: &World, count: usize) -> Result<()> {
    let ready = async || {
        let labelled = ListParams::default().labels("kubernetes.io/service-name=web");
        let slices = world.api::<EndpointSlice>().list(&labelled).await?.items;
        let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        let ready = endpoints.filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
        });
        let ports =
            slices.iter().all(|slice| slice.ports.as_ref().is_some_and(|ports| ports[0].port == Some(8080)));
        let legacy = world.api::<Endpoints>().get_opt("web").await?;
        let subsets = legacy.and_then(|endpoints| endpoints.subsets).unwrap_or_default();
        let addresses: usize = subsets.iter().flat_map(|subset| &subset.addresses).map(Vec::len).sum();
        Ok(ready.count() == count && addresses == count && ports)
    };
    world.until_api("the Service has its endpoints", ready).await
}

async fn roll(world: &World, to: &str) -> Result<()> {
    let patch =
        json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": to }] } } } });
    world.api::<Deployment>().patch("web", &PatchParams::default(), &Patch::Strategic(patch)).await?;
    let done = |world: &World| {
        let pods = world.pods("web");
        let alive = || pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let available = alive().filter(|pod| world::is_ready(pod)).count();
        assert!(available >= 5, "{available} available while rolling to {to}");
        assert!(alive().count() <= 8, "{} pods while rolling to {to}", alive().count());
        pods.len() == 6
            && pods.iter().all(|pod| image(pod) == to)
            && world.deployment("web").is_some_and(|d| is_up(&d, 6))
    };
    world.until("rolled out", done).await;
    Ok(())
}

/// What `kubectl describe` shows.
async fn told_events(world: &World) -> Result<()> {
    let wanted = [
        ("Deployment", "ScalingReplicaSet", "Scaled up replica set web-"),
        ("ReplicaSet", "SuccessfulCreate", "Created pod: web-"),
        ("ReplicaSet", "SuccessfulDelete", "Deleted pod: web-"),
        ("Pod", "Scheduled", "Successfully assigned default/web-"),
    ];
    let all_told = async || {
        let events = world.api::<Event>().list(&ListParams::default()).await?.items;
        let told = |(kind, reason, message): &(&str, &str, &str)| {
            events.iter().any(|event| {
                event.involved_object.kind.as_deref() == Some(kind)
                    && event.reason.as_deref() == Some(reason)
                    && event.message.as_deref().is_some_and(|text| text.starts_with(message))
            })
        };
        Ok(wanted.iter().all(told))
    };
    world.until_api("the events are there", all_told).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_can_orphan_or_wait_for_what_is_below() -> Result<()> {
    let world = World::start(1).await?;
    let deployments = world.api::<Deployment>();
    deployments.create(&PostParams::default(), &deployment("web", 2, "image:1")).await?;
    world.until("two are up", |world| world.deployment("web").is_some_and(|d| is_up(&d, 2))).await;

    deployments.delete("web", &DeleteParams::orphan()).await?;
    world.until("the deployment is gone", |world| world.deployment("web").is_none()).await;
    let sets = world.api::<ReplicaSet>();
    let free = async || {
        Ok(sets.list(&ListParams::default()).await?.items.iter().all(|set| set.owner_references().is_empty()))
    };
    world.until_api("the set has no owner", free).await?;
    assert_eq!(world.pods("web").len(), 2);

    // One that asks for the same takes over what is there.
    deployments.create(&PostParams::default(), &deployment("web", 2, "image:1")).await?;
    world.until("adopted", |world| world.deployment("web").is_some_and(|d| is_up(&d, 2))).await;
    let found = sets.list(&ListParams::default()).await?.items;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].owner_references().len(), 1);

    deployments.delete("web", &DeleteParams::foreground()).await?;
    world.until("deleted from below", |world| world.deployment("web").is_none()).await;
    // Asked for, not watched: two watches are not ordered among each other.
    let left = Api::<Pod>::default_namespaced(world.client.clone()).list(&ListParams::default()).await?;
    assert!(left.items.is_empty(), "the owner waits for its dependents");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_are_furnished_and_emptied() -> Result<()> {
    let world = World::start(1).await?;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let namespace: Namespace = serde_json::from_value(json!({ "metadata": { "name": "team" } }))?;
    namespaces.create(&PostParams::default(), &namespace).await?;
    let furnished = async || {
        let account =
            Api::<ServiceAccount>::namespaced(world.client.clone(), "team").get_opt("default").await?;
        let ca =
            Api::<ConfigMap>::namespaced(world.client.clone(), "team").get_opt("kube-root-ca.crt").await?;
        Ok(account.is_some() && ca.is_some_and(|ca| ca.data.unwrap_or_default()["ca.crt"] == "PEM"))
    };
    world.until_api("the namespace is furnished", furnished).await?;

    let mut web = deployment("web", 3, "image:1");
    web.metadata.namespace = Some("team".into());
    let deployments: Api<Deployment> = Api::namespaced(world.client.clone(), "team");
    deployments.create(&PostParams::default(), &web).await?;
    let up = async || Ok(is_up(&deployments.get("web").await?, 3));
    world.until_api("three are up", up).await?;
    namespaces.delete("team", &DeleteParams::default()).await?;
    world
        .until_api("the namespace is gone", async || Ok(namespaces.get_opt("team").await?.is_none()))
        .await?;
    world.until("its pods are gone", |world| world.pods("web").is_empty()).await;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_lost_node_run_elsewhere() -> Result<()> {
    let world = World::start(3).await?;
    let deployments = world.api::<Deployment>();
    deployments.create(&PostParams::default(), &deployment("web", 6, "image:1")).await?;
    world.until("six are up", |world| world.deployment("web").is_some_and(|d| is_up(&d, 6))).await;
    world.kill("replica-2");
    let elsewhere = |world: &World| {
        let pods = world.pods("web");
        let serving = pods.iter().filter(|pod| world::is_ready(pod) && on(pod) != "replica-2").count();
        serving == 6 && world.deployment("web").is_some_and(|d| is_up(&d, 6))
    };
    world.until("six run elsewhere", elsewhere).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let lost = nodes.get("replica-2").await?;
    let taints = lost.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let mut taints: Vec<_> = taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect();
    taints.sort();
    assert_eq!(
        taints,
        ["node.kubernetes.io/unreachable:NoExecute", "node.kubernetes.io/unreachable:NoSchedule"]
    );
    let stuck: Vec<_> = world.pods("web").into_iter().filter(|pod| on(pod) == "replica-2").collect();
    assert_eq!(stuck.len(), 2, "nobody can say that they have ended");
    assert!(stuck.iter().all(|pod| pod.metadata.deletion_timestamp.is_some()));

    nodes.delete("replica-2", &DeleteParams::default()).await?;
    world
        .until("its pods are removed", |world| world.pods("web").iter().all(|pod| on(pod) != "replica-2"))
        .await;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_runs_on_each_node_and_rolls() -> Result<()> {
    let world = World::start(2).await?;
    let daemon = |image: &str| -> Value {
        json!({ "metadata": { "name": "agent" }, "spec": { "selector": { "matchLabels": { "app": "agent" } },
            "template": { "metadata": { "labels": { "app": "agent" } }, "spec": {
                "terminationGracePeriodSeconds": 1, "containers": [{ "name": "c", "image": image }] } } } })
    };
    let sets = world.api::<DaemonSet>();
    sets.create(&PostParams::default(), &serde_json::from_value(daemon("image:1"))?).await?;
    let running = |image_: &'static str, nodes: &'static [&'static str]| {
        move |world: &World| {
            let pods = world.pods("agent");
            let mut on: Vec<_> = pods.iter().filter(|pod| world::is_ready(pod)).map(on).collect();
            on.sort();
            on == nodes && pods.iter().all(|pod| image(pod) == image_)
        }
    };
    world.until("one on each node", running("image:1", &["replica-1", "replica-2"])).await;
    world.add_node("replica-3").await?;
    world.until("one on the new node", running("image:1", &["replica-1", "replica-2", "replica-3"])).await;
    sets.patch("agent", &PatchParams::default(), &Patch::Merge(daemon("image:2"))).await?;
    world.until("rolled", running("image:2", &["replica-1", "replica-2", "replica-3"])).await;
    let complete = async || {
        let status = sets.get("agent").await?.status.unwrap_or_default();
        Ok(status.updated_number_scheduled == Some(3) && status.number_available == Some(3))
    };
    world.until_api("the status says so", complete).await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_is_tried_again() -> Result<()> {
    let world = World::start(1).await?;
    let big: Pod =
        serde_json::from_value(json!({ "metadata": { "name": "big", "labels": { "app": "big" } },
        "spec": { "nodeSelector": { "disk": "fast" }, "containers": [{ "name": "c", "image": "i" }] } }))?;
    world.api::<Pod>().create(&PostParams::default(), &big).await?;
    let message = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. preemption: \
                   0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    let told = |world: &World| {
        world.pods("big").iter().any(|pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().any(|condition| {
                condition.type_ == "PodScheduled"
                    && condition.reason.as_deref() == Some("Unschedulable")
                    && condition.message.as_deref() == Some(message)
            })
        })
    };
    world.until("the condition says why", told).await;
    let event = async || {
        let events = world.api::<Event>().list(&ListParams::default()).await?.items;
        let found = |event: &Event| {
            event.reason.as_deref() == Some("FailedScheduling") && event.message.as_deref() == Some(message)
        };
        Ok(events.iter().any(found))
    };
    world.until_api("an event says why", event).await?;
    let label = json!({ "metadata": { "labels": { "disk": "fast" } } });
    let nodes: Api<Node> = Api::all(world.client.clone());
    nodes.patch("replica-1", &PatchParams::default(), &Patch::Merge(label)).await?;
    world.until("it runs", |world| world.pods("big").iter().any(world::is_ready)).await;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_pods_at_once() -> Result<()> {
    let world = World::start(3).await?;
    let start = std::time::Instant::now();
    world.api::<Deployment>().create(&PostParams::default(), &deployment("web", 100, "image:1")).await?;
    world.until("a hundred are up", |world| world.deployment("web").is_some_and(|d| is_up(&d, 100))).await;
    eprintln!("100 pods created, bound, reported Ready and counted in {:?}", start.elapsed());
    let cidrs: std::collections::BTreeSet<String> =
        world.nodes().iter().filter_map(world::pod_cidr).collect();
    assert_eq!(cidrs.into_iter().collect::<Vec<_>>(), ["10.9.0.0/24", "10.9.1.0/24", "10.9.2.0/24"]);
    world.stop().await
}
