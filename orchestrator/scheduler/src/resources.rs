//! [`Resources`]: what a pod asks for and what a node has, in whole numbers. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use pith_api::quantity::Quantity;

/// What a container without a request counts as when nodes are compared (upstream's
/// `DefaultMilliCPURequest` and `DefaultMemoryRequest`); it does not count when they are filtered.
const ASSUMED_MILLI_CPU: i64 = 100;
const ASSUMED_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    /// Thousandths of a CPU.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    pub pods: i64,
    /// Everything else by its name, such as `hugepages-2Mi` or `example.com/gpu`.
    pub other: BTreeMap<String, i64>,
}

impl Resources {
    pub(crate) fn from_list(list: Option<&BTreeMap<String, Text>>) -> Self {
        let mut resources = Self::default();
        for (name, text) in list.into_iter().flatten() {
            // The server has validated it; what still does not parse asks for nothing.
            let amount: Quantity = text.0.parse().unwrap_or_default();
            match name.as_str() {
                "cpu" => resources.milli_cpu = amount.milli(),
                "memory" => resources.memory = amount.units(),
                "ephemeral-storage" => resources.ephemeral_storage = amount.units(),
                "pods" => resources.pods = amount.units(),
                other => drop(resources.other.insert(other.to_owned(), amount.units())),
            }
        }
        resources
    }

    pub(crate) fn add(&mut self, more: &Self) {
        self.milli_cpu += more.milli_cpu;
        self.memory += more.memory;
        self.ephemeral_storage += more.ephemeral_storage;
        self.pods += more.pods;
        for (name, amount) in &more.other {
            *self.other.entry(name.clone()).or_default() += amount;
        }
    }

    pub(crate) fn subtract(&mut self, less: &Self) {
        self.milli_cpu -= less.milli_cpu;
        self.memory -= less.memory;
        self.ephemeral_storage -= less.ephemeral_storage;
        self.pods -= less.pods;
        for (name, amount) in &less.other {
            *self.other.entry(name.clone()).or_default() -= amount;
        }
    }

    /// The larger of both, resource by resource.
    fn max(mut self, other: &Self) -> Self {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        self.pods = self.pods.max(other.pods);
        for (name, amount) in &other.other {
            let mine = self.other.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
        self
    }

    /// The names of what `asked` needs beyond what is left of `self` after `used`, and whether it needs more
    /// than there is at all.
    pub(crate) fn lacking(&self, used: &Self, asked: &Self) -> (Vec<String>, bool) {
        let mut lacking = Vec::new();
        let mut never = false;
        let mut check = |name: &str, total: i64, used: i64, asked: i64| {
            if asked > 0 && asked > total - used {
                lacking.push(if name == "pods" {
                    "Too many pods".into()
                } else {
                    format!("Insufficient {name}")
                });
                never |= asked > total;
            }
        };
        check("pods", self.pods, used.pods, asked.pods);
        check("cpu", self.milli_cpu, used.milli_cpu, asked.milli_cpu);
        check("memory", self.memory, used.memory, asked.memory);
        check("ephemeral-storage", self.ephemeral_storage, used.ephemeral_storage, asked.ephemeral_storage);
        for (name, asked) in &asked.other {
            let amount = |of: &Self| of.other.get(name).copied().unwrap_or(0);
            check(name, amount(self), amount(used), *asked);
        }
        (lacking, never)
    }

    /// Whether `asked` fits into what is left of `self` after `used`.
    pub(crate) fn fits(&self, used: &Self, asked: &Self) -> bool {
        let enough = |total: i64, used: i64, asked: i64| asked <= 0 || asked <= total - used;
        enough(self.pods, used.pods, asked.pods)
            && enough(self.milli_cpu, used.milli_cpu, asked.milli_cpu)
            && enough(self.memory, used.memory, asked.memory)
            && enough(self.ephemeral_storage, used.ephemeral_storage, asked.ephemeral_storage)
            && asked.other.iter().all(|(name, asked)| {
                let amount = |of: &Self| of.other.get(name).copied().unwrap_or(0);
                enough(amount(self), amount(used), *asked)
            })
    }
}

/// What a pod needs at once: its containers and sidecars together, or the largest moment of its start (an
/// init container beside the sidecars started before it), and its overhead. Also counts the pod itself.
pub(crate) fn requested(spec: &PodSpec) -> Resources {
    sum(spec, |resources| resources)
}

/// As [`requested`], but containers that do not say count as small, so that they spread all the same.
pub(crate) fn weighed(spec: &PodSpec) -> Resources {
    sum(spec, |mut resources| {
        if resources.milli_cpu == 0 {
            resources.milli_cpu = ASSUMED_MILLI_CPU;
        }
        if resources.memory == 0 {
            resources.memory = ASSUMED_MEMORY;
        }
        resources
    })
}

fn sum(spec: &PodSpec, complete: impl Fn(Resources) -> Resources) -> Resources {
    let of = |container: &Container| complete(requests(container.resources.as_ref()));
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(container));
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let request = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            running.add(&request);
            sidecars.add(&request);
            peak = peak.max(&sidecars);
        } else {
            let mut moment = sidecars.clone();
            moment.add(&request);
            peak = peak.max(&moment);
        }
    }
    let mut total = running.max(&peak);
    if let Some(pod) = &spec.resources {
        // What the pod as a whole asks for replaces the sum of its containers.
        let asked = requests(Some(pod));
        let said = |name: &str| pod.requests.as_ref().is_some_and(|list| list.contains_key(name));
        if said("cpu") {
            total.milli_cpu = asked.milli_cpu;
        }
        if said("memory") {
            total.memory = asked.memory;
        }
        total.other.extend(asked.other);
    }
    total.add(&Resources::from_list(spec.overhead.as_ref()));
    total.pods = 1;
    total
}

fn requests(resources: Option<&ResourceRequirements>) -> Resources {
    Resources::from_list(resources.and_then(|resources| resources.requests.as_ref()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).expect("a valid spec")
    }

    fn container(cpu: &str) -> Value {
        json!({ "name": "c", "resources": { "requests": { "cpu": cpu } } })
    }

    fn sidecar(cpu: &str) -> Value {
        json!({ "name": "s", "restartPolicy": "Always", "resources": { "requests": { "cpu": cpu } } })
    }

    #[test]
    fn requests_table() {
        let cases = [
            ("sum", json!({ "containers": [container("100m"), container("1")] }), 1100),
            (
                "init is smaller",
                json!({ "containers": [container("1")], "initContainers": [container("500m")] }),
                1000,
            ),
            (
                "init is larger",
                json!({ "containers": [container("1")], "initContainers": [container("2")] }),
                2000,
            ),
            (
                "sidecar runs beside all",
                json!({ "containers": [container("1")], "initContainers": [sidecar("200m"), container("500m")] }),
                1200,
            ),
            (
                "init beside an earlier sidecar",
                json!({ "containers": [container("1")], "initContainers": [sidecar("200m"), container("2")] }),
                2200,
            ),
            ("overhead", json!({ "containers": [container("1")], "overhead": { "cpu": "50m" } }), 1050),
            (
                "the pod as a whole",
                json!({ "containers": [container("1")], "resources": { "requests": { "cpu": "3" } } }),
                3000,
            ),
        ];
        for (name, value, expect) in cases {
            assert_eq!(requested(&spec(value)).milli_cpu, expect, "{name}");
        }
        let silent = spec(json!({ "containers": [{ "name": "c" }, { "name": "d" }] }));
        assert_eq!((requested(&silent).milli_cpu, weighed(&silent).milli_cpu), (0, 200));
    }

    #[test]
    fn what_is_lacking_is_named() {
        let list = |value: Value| Resources::from_list(serde_json::from_value(value).ok().as_ref());
        let total = list(json!({ "cpu": "2", "memory": "1Gi", "pods": "10" }));
        let used = list(json!({ "cpu": "1500m", "pods": "10" }));
        let asked = list(json!({ "cpu": "1", "memory": "2Gi", "example.com/gpu": "1", "pods": "1" }));
        let expect =
            ["Too many pods", "Insufficient cpu", "Insufficient memory", "Insufficient example.com/gpu"];
        assert_eq!(total.lacking(&used, &asked), (expect.map(String::from).to_vec(), true));
        assert!(!total.fits(&used, &asked));
        assert!(total.fits(&list(json!({})), &list(json!({ "cpu": "2", "pods": "1" }))));
    }
}
