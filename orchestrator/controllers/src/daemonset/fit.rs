//! Which nodes a DaemonSet runs on, and the pod it puts there. Pure.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};
use pith_api::placement;

use crate::{owner, pod};

/// On a DaemonSet's pods: the revision of the template they were made from.
pub(super) const HASH_LABEL: &str = "controller-revision-hash";
const GENERATION_LABEL: &str = "pod-template-generation";
const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";

/// Node troubles that a daemon lives with.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// What a node is to a DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It is to run a pod.
    Run,
    /// No pod is to be started there, but one that runs may stay.
    Keep,
    No,
}

pub(super) fn fit(set: &DaemonSet, node: &Node) -> Fit {
    let mut spec = set.spec.template.spec.clone().unwrap_or_default();
    let named = spec.node_name.as_deref().filter(|name| !name.is_empty());
    if named.is_some() && named != node.metadata.name.as_deref() || !placement::selects(&spec, node) {
        return Fit::No;
    }
    tolerate(&mut spec);
    let tolerations = spec.tolerations.unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    if placement::untolerated(taints, &tolerations, &["NoSchedule", "NoExecute"]).is_none() {
        Fit::Run
    } else if placement::untolerated(taints, &tolerations, &["NoExecute"]).is_none() {
        Fit::Keep
    } else {
        Fit::No
    }
}

fn tolerate(spec: &mut PodSpec) {
    let network = ("node.kubernetes.io/network-unavailable", "NoSchedule");
    let network = spec.host_network.unwrap_or(false).then_some(network);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

/// The pod for a node: the template, tolerant of node troubles, and bound to the node by affinity.
pub(super) fn pod_for(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let mut pod = pod::from_template(&set.spec.template, namespace, owner::reference_to(set));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.to_owned());
    let generation = set.metadata.annotations.as_ref().and_then(|a| a.get(GENERATION_ANNOTATION));
    if let Some(generation) = generation {
        labels.insert(GENERATION_LABEL.into(), generation.clone());
    }
    let spec = pod.spec.get_or_insert_default();
    tolerate(spec);
    let only = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![only]), match_expressions: None };
    // It replaces what the template requires: that has been checked for this very node.
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
    pod
}

/// The node a pod is on or meant for.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    pod::node(pod).or_else(|| {
        let terms = &placement::required_affinity(pod.spec.as_ref()?)?.node_selector_terms;
        let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
        let field = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
        field.values.as_ref()?.first().map(String::as_str)
    })
}
