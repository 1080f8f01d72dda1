//! [`Desk`]: takes in what the watches show, and says what to do next. No IO.
//!
//! A pod that was given a node is booked there at once (*assumed*), so that the next decision counts it
//! before the API has confirmed the binding.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, NodeSpec, NodeStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use pith_informer::{Key, Uid, uid_of};

use crate::books::Books;
use crate::plan::{Chosen, plan};
use crate::pod::{Pending, Placed};
use crate::waiting::{Help, Waiting};

/// The scheduler that pods without a schedulerName mean.
const NAME: &str = "default-scheduler";
pub(crate) const GATED: &str = "Scheduling is blocked due to non-empty scheduling gates";

/// Which pod a step is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    pub key: Key,
    pub uid: Uid,
}

impl PodRef {
    fn of(pending: &Pending) -> Self {
        Self { key: pending.pod.key.clone(), uid: pending.pod.uid.clone() }
    }
}

/// What the driver is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Bind the pod to the node of this name; it is booked there already.
    Bind { pod: PodRef, node: String },
    /// Say that the pod fits nowhere; in its condition too if that says something else.
    Unschedulable { pod: PodRef, message: String, news: bool },
    /// Say in the pod's condition that its gates hold it.
    Gated { pod: PodRef },
    /// Nothing now; look again at this time at the latest.
    Idle(Option<Timestamp>),
}

/// A kind of which all objects have been shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Listed {
    Pods,
    Nodes,
    Namespaces,
}

/// All that the scheduler knows and has to do.
#[derive(Default)]
pub struct Desk {
    books: Books,
    waiting: Waiting,
    /// Which kinds have been listed: nothing is decided on half a picture.
    listed: HashSet<Listed>,
    start: usize,
    untold: Vec<PodRef>,
}

impl Desk {
    /// All objects of the kind have been shown.
    pub fn listed(&mut self, kind: Listed) {
        self.listed.insert(kind);
    }

    /// Decides about one pod, or says that there is nothing to do.
    pub fn next(&mut self, now: Timestamp) -> Step {
        if self.listed.len() < 3 {
            return Step::Idle(None);
        }
        if let Some(pod) = self.untold.pop() {
            return Step::Gated { pod };
        }
        let Some(pending) = self.waiting.pop(now) else { return Step::Idle(self.waiting.next_due()) };
        self.books.prepare(&pending);
        match plan(&self.books, &pending, self.start) {
            Ok(Chosen { slot, next }) => {
                self.start = next;
                let node = self.books.host(slot).map(|host| host.name().to_owned()).unwrap_or_default();
                self.books.place(pending.pod.clone(), &node);
                self.waiting.helped(Help::PodPlaced, now);
                Step::Bind { pod: PodRef::of(&pending), node }
            }
            Err(unfit) => {
                let message = unfit.message();
                let news = self.waiting.failed(&pending.pod.uid, &unfit, &message, now);
                Step::Unschedulable { pod: PodRef::of(&pending), message, news }
            }
        }
    }

    /// The API did not accept the binding. `retry` unless the pod is gone or bound otherwise.
    pub fn not_bound(&mut self, uid: &Uid, retry: bool, now: Timestamp) {
        self.books.remove(uid);
        self.waiting.helped(Help::PodGone, now);
        if retry {
            self.waiting.put_back(uid, now);
        } else {
            self.waiting.remove(uid);
        }
    }

    /// What the watch shows of a pod.
    pub fn pod(&mut self, pod: &Pod, now: Timestamp) {
        let uid = uid_of(pod);
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return self.pod_gone(&uid, now);
        }
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        if !node.is_empty() {
            self.waiting.remove(&uid);
            return self.placed(pod, node, now);
        }
        if pod.metadata.deletion_timestamp.is_some() {
            return self.waiting.remove(&uid);
        }
        // Booked without a node: it is assumed, and its binding is under way.
        if is_ours(pod) && self.books.node_of(&uid).is_none() {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            let scheduled =
                conditions.into_iter().flatten().find(|condition| condition.type_ == "PodScheduled");
            let reported = scheduled.and_then(|condition| condition.message.clone());
            self.waiting.put(Pending::of(pod), reported);
            self.untold.extend(self.waiting.tell_gated(&uid, GATED).map(|pending| PodRef::of(&pending)));
        }
    }

    fn placed(&mut self, pod: &Pod, node: &str, now: Timestamp) {
        let placed = Placed::of(pod);
        let known = self.books.placed(&placed.uid);
        let same_node = self.books.node_of(&placed.uid) == Some(node);
        if same_node && known.is_some_and(|known| **known == placed) {
            return;
        }
        let frees = known.is_some();
        self.books.place(Arc::new(placed), node);
        self.waiting.helped(Help::PodPlaced, now);
        if frees {
            self.waiting.helped(Help::PodGone, now);
        }
    }

    /// The pod needs nothing any more.
    pub fn pod_gone(&mut self, uid: &Uid, now: Timestamp) {
        self.waiting.remove(uid);
        if self.books.remove(uid) {
            self.waiting.helped(Help::PodGone, now);
        }
    }

    /// A list of all pods: what is not in it is gone.
    pub fn all_pods(&mut self, pods: &[Pod], now: Timestamp) {
        let listed: HashSet<Uid> = pods.iter().map(uid_of).collect();
        for uid in self.books.placed_uids().into_iter().chain(self.waiting.uids()) {
            if !listed.contains(&uid) {
                self.pod_gone(&uid, now);
            }
        }
        pods.iter().for_each(|pod| self.pod(pod, now));
        self.listed(Listed::Pods);
    }

    /// What the watch shows of a node.
    pub fn node(&mut self, node: &Node, now: Timestamp) {
        let node = what_counts(node);
        let name = node.metadata.name.clone().unwrap_or_default();
        let known = self.books.slot_of(&name).and_then(|slot| self.books.host(slot));
        // Most updates are heartbeats, which change nothing here.
        if known.is_some_and(|host| *host.node == node) {
            return;
        }
        self.books.set_node(Arc::new(node));
        self.waiting.helped(Help::Node, now);
    }

    /// The node is gone; its pods stay booked until they are gone, too.
    pub fn node_gone(&mut self, name: &str) {
        self.books.remove_node(name);
    }

    /// A list of all nodes: what is not in it is gone.
    pub fn all_nodes(&mut self, nodes: &[Node], now: Timestamp) {
        let listed: HashSet<&str> = nodes.iter().filter_map(|node| node.metadata.name.as_deref()).collect();
        let known: Vec<String> = self.books.hosts().map(|(_, host)| host.name().to_owned()).collect();
        for name in known.iter().filter(|name| !listed.contains(name.as_str())) {
            self.books.remove_node(name);
        }
        nodes.iter().for_each(|node| self.node(node, now));
        self.listed(Listed::Nodes);
    }

    /// What the watch shows of a namespace.
    pub fn namespace(&mut self, namespace: &Namespace) {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        self.books.set_namespace(name, Some(namespace.metadata.labels.clone().unwrap_or_default()));
    }

    /// The namespace is gone.
    pub fn namespace_gone(&mut self, name: &str) {
        self.books.set_namespace(name, None);
    }
}

fn is_ours(pod: &Pod) -> bool {
    let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    matches!(scheduler, None | Some("" | NAME))
}

/// A node reduced to what decisions read.
fn what_counts(node: &Node) -> Node {
    let spec = node.spec.as_ref();
    Node {
        metadata: ObjectMeta {
            name: node.metadata.name.clone(),
            labels: node.metadata.labels.clone(),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: spec.and_then(|spec| spec.taints.clone()),
            unschedulable: spec.and_then(|spec| spec.unschedulable),
            ..NodeSpec::default()
        }),
        status: Some(NodeStatus {
            allocatable: node.status.as_ref().and_then(|status| status.allocatable.clone()),
            ..NodeStatus::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, cpu: &str, node: Option<&str>) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "d", "uid": name },
            "spec": { "nodeName": node, "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] },
        }))
        .expect("a valid pod")
    }

    fn node(name: &str) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": name },
            "status": { "allocatable": { "cpu": "1", "memory": "1Gi", "pods": "10" } } }))
        .expect("a valid node")
    }

    fn desk(nodes: &[Node], pods: &[Pod]) -> Desk {
        let mut desk = Desk::default();
        desk.all_nodes(nodes, NOW);
        desk.all_pods(pods, NOW);
        desk.listed(Listed::Namespaces);
        desk
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn show(step: Step) -> String {
        match step {
            Step::Bind { pod, node } => format!("{} → {node}", pod.key.name),
            Step::Unschedulable { pod, news, .. } => format!("{} unfit, news: {news}", pod.key.name),
            Step::Gated { pod } => format!("{} gated", pod.key.name),
            Step::Idle(_) => "idle".into(),
        }
    }

    #[test]
    fn an_assumed_pod_counts_at_once() {
        let mut desk = desk(&[node("n")], &[pod("a", "600m", None), pod("b", "600m", None)]);
        assert_eq!(show(desk.next(NOW)), "a → n");
        assert_eq!(show(desk.next(NOW)), "b unfit, news: true");
        // The watch still shows it without a node: its binding is under way.
        desk.pod(&pod("a", "600m", None), NOW);
        assert_eq!(show(desk.next(NOW)), "idle");
        desk.pod(&pod("a", "600m", Some("n")), NOW);
        assert_eq!(show(desk.next(NOW)), "idle");
        let later = NOW + jiff::SignedDuration::from_secs(2);
        desk.pod_gone(&Uid("a".into()), later);
        assert_eq!(show(desk.next(later)), "b → n");
    }

    #[test]
    fn a_binding_that_failed_frees_the_node() {
        let mut desk = desk(&[node("n")], &[pod("a", "600m", None)]);
        assert_eq!(show(desk.next(NOW)), "a → n");
        desk.not_bound(&Uid("a".into()), true, NOW);
        assert_eq!(show(desk.next(NOW)), "idle");
        assert_eq!(show(desk.next(NOW + jiff::SignedDuration::from_secs(1))), "a → n");
    }

    #[test]
    fn nothing_is_decided_before_everything_is_listed() {
        let mut desk = Desk::default();
        desk.all_pods(&[pod("a", "1", None)], NOW);
        desk.all_nodes(&[node("n")], NOW);
        assert_eq!(show(desk.next(NOW)), "idle");
        desk.listed(Listed::Namespaces);
        assert_eq!(show(desk.next(NOW)), "a → n");
    }
}
