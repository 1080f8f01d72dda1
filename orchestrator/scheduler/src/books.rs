//! [`Books`]: what the scheduler knows of nodes, of the pods on them, and of how many pods of each group are where.
//!
//! Everything is kept up to date as pods come and go, so that placing a pod never walks over all pods. Invariants:
//! - A pod is on one node's books at most.
//! - A group that is counted is counted for all pods that are placed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};
use pith_informer::Uid;

use crate::pod::{
    Carried, Group, HostPort, Members, NamespaceLabels, Namespaces, Pending, Placed, Term, Wish,
};
use crate::resources::Resources;
use crate::topology::Topology;

/// Topologies known at most, beyond those that placed pods speak of.
const TOPOLOGIES: usize = 64;

/// Groups counted at most; those unused for longest go first.
const COUNTED: usize = 4096;

/// The place of a node in [`Books::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot(pub u32);

/// A node and what is taken of it.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// Name and labels, as node affinity reads them.
    pub node: Arc<Node>,
    /// Beside the numbers, because every decision reads them of thousands of nodes.
    pub taints: Vec<Taint>,
    pub is_unschedulable: bool,
    pub allocatable: Resources,
    pub used: Resources,
    pub weighed: Resources,
    pub ports: Vec<HostPort>,
    pub pods: HashMap<Uid, Arc<Placed>>,
    /// Pods are booked here, but the node itself is not known (yet, or any more).
    pub is_ghost: bool,
}

impl Host {
    pub(crate) fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }
}

/// How many pods of a group each node has; nodes with none are absent.
pub(crate) type Count = HashMap<Slot, u32, foldhash::fast::FixedState>;

struct Counted {
    group: Group,
    count: Count,
    used_at: u64,
}

/// A term that pods on nodes carry, and how many on each.
pub(crate) struct CarriedCount {
    pub term: Term,
    pub wish: Wish,
    pub count: Count,
}

#[derive(Default)]
pub(crate) struct Books {
    /// A slot is never given to another node while pods are booked on it.
    nodes: Vec<Option<Host>>,
    free: Vec<Slot>,
    by_name: HashMap<String, Slot>,
    /// By label. Every topology is there that a placed pod speaks of.
    topologies: HashMap<Arc<str>, Topology>,
    placed: HashMap<Uid, Slot>,
    groups: HashMap<Arc<str>, Counted>,
    /// Which groups may hold pods of a namespace; the empty name is for those that may hold any.
    by_namespace: HashMap<String, Vec<Arc<str>>>,
    by_controller: HashMap<Uid, Arc<str>>,
    carried: HashMap<(Arc<str>, Arc<str>, Wish), CarriedCount>,
    namespaces: NamespaceLabels,
    known: usize,
    clock: u64,
}

impl Books {
    /// How many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.known
    }

    /// The number of slots: the bound of a walk over all nodes.
    pub(crate) fn slots(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn host(&self, slot: Slot) -> Option<&Host> {
        self.nodes.get(slot.0 as usize)?.as_ref().filter(|host| !host.is_ghost)
    }

    pub(crate) fn slot_of(&self, name: &str) -> Option<Slot> {
        self.by_name.get(name).copied().filter(|slot| self.host(*slot).is_some())
    }

    pub(crate) fn hosts(&self) -> impl Iterator<Item = (Slot, &Host)> {
        (0..self.nodes.len() as u32).map(Slot).filter_map(|slot| Some((slot, self.host(slot)?)))
    }

    pub(crate) fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let allocatable =
            Resources::from_list(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
        let slot = self.slot_for(&name);
        let Some(host) = &mut self.nodes[slot.0 as usize] else { return };
        self.known += usize::from(host.is_ghost);
        host.is_ghost = false;
        host.taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        host.is_unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        host.node = node;
        host.allocatable = allocatable;
        for (key, topology) in &mut self.topologies {
            topology.set(slot, host.label(key));
        }
        let stale = self.topologies.iter().filter(|(_, topology)| topology.is_stale());
        for key in stale.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.topologies.remove(&key);
            self.know_topology(&key);
        }
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.slot_of(name) else { return };
        let Some(host) = &mut self.nodes[slot.0 as usize] else { return };
        host.is_ghost = true;
        self.known -= 1;
        self.topologies.values_mut().for_each(|topology| topology.set(slot, None));
        self.free_if_empty(slot);
    }

    fn know_topology(&mut self, key: &Arc<str>) {
        if !self.topologies.contains_key(key) {
            let topology = Topology::of(self.hosts().map(|(slot, host)| (slot, host.label(key))));
            self.topologies.insert(key.clone(), topology);
        }
    }

    /// The domains of the nodes. Known of every term of a placed pod and of the pod that is decided about
    /// ([`Books::prepare`]).
    pub(crate) fn topology(&self, key: &str) -> Option<&Topology> {
        self.topologies.get(key)
    }

    /// The slot of this name; a new one is a ghost until the node is set.
    fn slot_for(&mut self, name: &str) -> Slot {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        let host = Host {
            node: Arc::new(node),
            taints: Vec::new(),
            is_unschedulable: false,
            allocatable: Resources::default(),
            used: Resources::default(),
            weighed: Resources::default(),
            ports: Vec::new(),
            pods: HashMap::new(),
            is_ghost: true,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            Slot(self.nodes.len() as u32 - 1)
        });
        self.nodes[slot.0 as usize] = Some(host);
        self.by_name.insert(name.to_owned(), slot);
        slot
    }

    fn free_if_empty(&mut self, slot: Slot) {
        let place = &mut self.nodes[slot.0 as usize];
        if let Some(host) = place.take_if(|host| host.is_ghost && host.pods.is_empty()) {
            self.by_name.remove(host.name());
            self.free.push(slot);
        }
    }

    /// Where the pod is booked.
    pub(crate) fn node_of(&self, uid: &Uid) -> Option<&str> {
        let slot = self.placed.get(uid)?;
        self.nodes[slot.0 as usize].as_ref().map(Host::name)
    }

    /// Books the pod on the node, and off where it was before.
    pub(crate) fn place(&mut self, pod: Arc<Placed>, node: &str) {
        self.remove(&pod.uid);
        let slot = self.slot_for(node);
        let Some(host) = &mut self.nodes[slot.0 as usize] else { return };
        host.used.add(&pod.requested);
        host.weighed.add(&pod.weighed);
        host.ports.extend(pod.ports.iter().cloned());
        host.pods.insert(pod.uid.clone(), pod.clone());
        self.placed.insert(pod.uid.clone(), slot);
        self.count(&pod, slot, 1);
    }

    /// The pod needs nothing any more. Says whether it was booked.
    pub(crate) fn remove(&mut self, uid: &Uid) -> bool {
        let Some(slot) = self.placed.remove(uid) else { return false };
        let Some(host) = &mut self.nodes[slot.0 as usize] else { return false };
        let Some(pod) = host.pods.remove(uid) else { return false };
        host.used.subtract(&pod.requested);
        host.weighed.subtract(&pod.weighed);
        for port in &pod.ports {
            if let Some(index) = host.ports.iter().position(|taken| taken == port) {
                host.ports.swap_remove(index);
            }
        }
        self.count(&pod, slot, -1);
        self.free_if_empty(slot);
        true
    }

    pub(crate) fn placed(&self, uid: &Uid) -> Option<&Arc<Placed>> {
        let slot = self.placed.get(uid)?;
        self.nodes[slot.0 as usize].as_ref()?.pods.get(uid)
    }

    pub(crate) fn placed_uids(&self) -> Vec<Uid> {
        self.placed.keys().cloned().collect()
    }

    /// Counts the pod in or out of all groups that hold it.
    fn count(&mut self, pod: &Arc<Placed>, slot: Slot, by: i32) {
        let named = self.by_namespace.get(&pod.key.namespace).into_iter().flatten();
        let open = self.by_namespace.get("").into_iter().flatten();
        let controlled = pod.controller.as_ref().and_then(|uid| self.by_controller.get(uid));
        for id in named.chain(open).chain(controlled) {
            if let Some(counted) = self.groups.get_mut(id)
                && counted.group.contains(pod, &self.namespaces)
            {
                change(&mut counted.count, slot, by);
            }
        }
        for Carried { term, wish } in &pod.carried {
            self.know_topology(&term.topology_key);
            let key = (term.group.id.clone(), term.topology_key.clone(), *wish);
            let carried = self.carried.entry(key.clone()).or_insert_with(|| CarriedCount {
                term: term.clone(),
                wish: *wish,
                count: Count::default(),
            });
            change(&mut carried.count, slot, by);
            if carried.count.is_empty() {
                self.carried.remove(&key);
            }
        }
    }

    /// Makes sure that all is counted which a decision about this pod asks for.
    pub(crate) fn prepare(&mut self, pending: &Pending) {
        if self.topologies.len() > TOPOLOGIES + self.carried.len() {
            let carried = &self.carried;
            self.topologies.retain(|key, _| carried.keys().any(|(_, carried, _)| carried == key));
        }
        pending.topology_keys().for_each(|key| self.know_topology(key));
        self.count_groups(pending.groups());
    }

    fn count_groups<'a>(&mut self, groups: impl Iterator<Item = &'a Group>) {
        self.clock += 1;
        for group in groups {
            if let Some(counted) = self.groups.get_mut(&group.id) {
                counted.used_at = self.clock;
                continue;
            }
            let mut count = Count::default();
            for (index, host) in self.nodes.iter().enumerate() {
                let pods = host.iter().flat_map(|host| host.pods.values());
                let members = pods.filter(|pod| group.contains(pod, &self.namespaces)).count();
                if members > 0 {
                    count.insert(Slot(index as u32), members as u32);
                }
            }
            self.file(group);
            let counted = Counted { group: group.clone(), count, used_at: self.clock };
            self.groups.insert(group.id.clone(), counted);
        }
        if self.groups.len() > COUNTED {
            self.forget_oldest_groups();
        }
    }

    /// Files a group under the namespaces or the controller whose pods it may hold.
    fn file(&mut self, group: &Group) {
        let mut under = |namespace: &str| {
            self.by_namespace.entry(namespace.to_owned()).or_default().push(group.id.clone());
        };
        match &group.members {
            Members::Controller(uid) => drop(self.by_controller.insert(uid.clone(), group.id.clone())),
            Members::Selected { namespaces: Namespaces::Named(names), .. } => {
                names.iter().for_each(|name| under(name));
            }
            Members::Selected { .. } => under(""),
        }
    }

    fn forget_oldest_groups(&mut self) {
        let mut ages: Vec<u64> = self.groups.values().map(|counted| counted.used_at).collect();
        ages.sort_unstable();
        let oldest_kept = ages[ages.len() / 2];
        self.forget_groups(|counted| counted.used_at < oldest_kept);
    }

    fn forget_groups(&mut self, which: impl Fn(&Counted) -> bool) {
        self.groups.retain(|_, counted| !which(counted));
        let groups = &self.groups;
        self.by_controller.retain(|_, id| groups.contains_key(id));
        self.by_namespace.retain(|_, ids| {
            ids.retain(|id| groups.contains_key(id));
            !ids.is_empty()
        });
    }

    /// The pods of a group by node. The group must be counted: see [`Books::prepare`].
    pub(crate) fn members(&self, group: &Group) -> Option<&Count> {
        self.groups.get(&group.id).map(|counted| &counted.count)
    }

    /// The terms that placed pods carry and that this pod is meant by.
    pub(crate) fn carried_about<'a>(&'a self, pod: &'a Placed) -> impl Iterator<Item = &'a CarriedCount> {
        self.carried.values().filter(|carried| carried.term.group.contains(pod, &self.namespaces))
    }

    pub(crate) fn namespaces(&self) -> &NamespaceLabels {
        &self.namespaces
    }

    pub(crate) fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) {
        let before = match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels.clone()) == Some(labels),
            None => self.namespaces.remove(name).is_none(),
        };
        let unchanged = before;
        if !unchanged {
            // They are counted anew when they are next asked for.
            self.forget_groups(|counted| counted.group.reads_namespace_labels());
        }
    }
}

fn change(count: &mut Count, slot: Slot, by: i32) {
    let entry = count.entry(slot).or_default();
    *entry = entry.saturating_add_signed(by);
    if *entry == 0 {
        count.remove(&slot);
    }
}
