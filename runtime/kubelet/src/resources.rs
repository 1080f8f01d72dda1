//! Requests and limits → quality of service, cgroup limits and the kernel's preference when memory runs out.
//!
//! CPU: shares from the request, quota from the limit over a period of 100 ms. Memory: the limit; swap is
//! not granted beyond it. A pod's own cgroup carries the sums, where every container has a limit.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// CFS period in µs, the kubelet's default.
const PERIOD_US: u64 = 100_000;
const MIN_QUOTA_US: i64 = 1_000;
/// cpu.shares of the kernel: least, and what a whole core is worth.
const MIN_SHARES: u64 = 2;
const SHARES_PER_CORE: u64 = 1024;
const MAX_SHARES: u64 = 262_144;

/// One resource in thousandths of its unit (cpu: millicores); `None` where it is not named.
pub(crate) fn milli(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    Some(list?.get(name)?.0.parse::<pith_api::quantity::Quantity>().ok()?.milli())
}

/// One resource in whole units (bytes).
pub(crate) fn whole(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    Some(list?.get(name)?.0.parse::<pith_api::quantity::Quantity>().ok()?.units())
}

/// The pod's class, over cpu and memory of all its containers.
pub(crate) fn qos(spec: &PodSpec) -> Qos {
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let positive = |list: Option<&BTreeMap<String, Quantity>>, name| milli(list, name).filter(|m| *m > 0);
    let mut any = false;
    let mut guaranteed = true;
    for c in all() {
        let needs = c.resources.as_ref();
        for name in ["cpu", "memory"] {
            let limit = positive(needs.and_then(|r| r.limits.as_ref()), name);
            let request = positive(needs.and_then(|r| r.requests.as_ref()), name);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// Whom the kernel kills first: by class, and among the burstable by how little they asked for.
pub(crate) fn oom_score_adj(spec: &PodSpec, container: &Container, machine_memory: u64) -> i32 {
    match qos(spec) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let asked = request(container, "memory", whole).unwrap_or(0).max(0);
            let share = i64::try_from(machine_memory).ok().filter(|m| *m > 0);
            let adj = share.map_or(999, |m| 1000 - asked.saturating_mul(1000) / m);
            i32::try_from(adj.clamp(3, 999)).expect("clamped")
        }
    }
}

type Read = fn(Option<&BTreeMap<String, Quantity>>, &str) -> Option<i64>;

fn request(c: &Container, name: &str, read: Read) -> Option<i64> {
    let needs = c.resources.as_ref()?;
    read(needs.requests.as_ref(), name).or_else(|| read(needs.limits.as_ref(), name))
}

fn limit(c: &Container, name: &str, read: Read) -> Option<i64> {
    read(c.resources.as_ref()?.limits.as_ref(), name).filter(|l| *l > 0)
}

/// The limits of one container's cgroup.
pub(crate) fn of_container(c: &Container, pids_limit: Option<i64>) -> LinuxResources {
    limits(
        request(c, "cpu", milli).unwrap_or(0),
        limit(c, "cpu", milli),
        limit(c, "memory", whole),
        pids_limit,
    )
}

/// The limits of the pod's cgroup: requests are summed, limits only where every container has one.
pub(crate) fn of_pod(spec: &PodSpec, pids_limit: Option<i64>) -> LinuxResources {
    let is_sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let lasting = || spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(is_sidecar));
    let passing = || spec.init_containers.iter().flatten().filter(|c| !is_sidecar(c));
    let most = |name, read: Read, get: fn(&Container, &str, Read) -> Option<i64>| {
        let sum: Option<i64> = lasting().map(|c| get(c, name, read)).sum();
        let peak: Option<Vec<i64>> = passing().map(|c| get(c, name, read)).collect();
        Some(sum?.max(peak?.into_iter().max().unwrap_or(0)))
    };
    let shares: i64 = lasting().filter_map(|c| request(c, "cpu", milli)).sum();
    limits(shares, most("cpu", milli, limit), most("memory", whole, limit), pids_limit)
}

fn limits(
    cpu_request_milli: i64,
    cpu_limit_milli: Option<i64>,
    memory_limit: Option<i64>,
    pids_limit: Option<i64>,
) -> LinuxResources {
    let request = u64::try_from(cpu_request_milli).unwrap_or(0);
    let mut cpu =
        LinuxCpuBuilder::default().shares((request * SHARES_PER_CORE / 1000).clamp(MIN_SHARES, MAX_SHARES));
    if let Some(milli) = cpu_limit_milli {
        let quota = milli.saturating_mul(PERIOD_US as i64 / 1000).max(MIN_QUOTA_US);
        cpu = cpu.quota(quota).period(PERIOD_US);
    }
    let mut all = LinuxResourcesBuilder::default().cpu(cpu.build().expect("no field is required"));
    if let Some(bytes) = memory_limit {
        let memory = LinuxMemoryBuilder::default().limit(bytes).build();
        all = all.memory(memory.expect("no field is required"));
    }
    if let Some(limit) = pids_limit {
        let pids = LinuxPidsBuilder::default().limit(limit).build();
        all = all.pids(pids.expect("its limit is set"));
    }
    all.build().expect("no field is required")
}

/// The amount a `resourceFieldRef` names, in the unit of its divisor, rounded up. What is not limited is
/// what the node has.
pub(crate) fn field(
    c: &Container,
    resource: &str,
    divisor: Option<&Quantity>,
    node: NodeSize,
) -> Option<String> {
    let (list, name) = resource.split_once('.')?;
    let needs: Option<&ResourceRequirements> = c.resources.as_ref();
    let chosen = match list {
        "limits" => needs.and_then(|r| r.limits.as_ref()),
        "requests" => needs.and_then(|r| r.requests.as_ref()),
        _ => return None,
    };
    let amount = match (milli(chosen, name), list, name) {
        (Some(m), _, _) => m,
        (None, "limits", "cpu") => node.cpu_milli,
        (None, "limits", "memory") => node.memory.saturating_mul(1000),
        (None, _, _) => 0,
    };
    let unit = match divisor {
        Some(q) if q.0 != "0" => q.0.parse::<pith_api::quantity::Quantity>().ok()?.milli().max(1),
        Some(_) | None => 1000,
    };
    Some((amount / unit + i64::from(amount % unit > 0)).to_string())
}

/// What the node has to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeSize {
    pub(crate) cpu_milli: i64,
    /// Bytes.
    pub(crate) memory: i64,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(containers: Value) -> PodSpec {
        serde_json::from_value(json!({"containers": containers})).expect("fixture")
    }

    fn container(resources: Value) -> Container {
        serde_json::from_value(json!({"name": "a", "resources": resources})).expect("fixture")
    }

    #[test]
    fn classes() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        let cases = [
            (json!([{"name": "a"}]), Qos::BestEffort),
            (json!([{"name": "a", "resources": {"limits": both, "requests": both}}]), Qos::Guaranteed),
            (json!([{"name": "a", "resources": {"limits": both}}]), Qos::Guaranteed),
            (json!([{"name": "a", "resources": {"limits": both}}, {"name": "b"}]), Qos::Burstable),
            (json!([{"name": "a", "resources": {"requests": {"cpu": "1m"}}}]), Qos::Burstable),
            (
                json!([{"name": "a", "resources": {"limits": both, "requests": {"cpu": "500m"}}}]),
                Qos::Burstable,
            ),
        ];
        for (containers, expect) in cases {
            assert_eq!(qos(&spec(containers.clone())), expect, "{containers}");
        }
    }

    #[test]
    fn container_limits() {
        let cases = [
            // resources, shares, quota, memory
            (json!({}), 2, None, None),
            (json!({"requests": {"cpu": "250m"}}), 256, None, None),
            (json!({"limits": {"cpu": "1500m", "memory": "64Mi"}}), 1536, Some(150_000), Some(64 << 20)),
            (json!({"limits": {"cpu": "1m"}}), 2, Some(1_000), None),
        ];
        for (resources, shares, quota, memory) in cases {
            let r = of_container(&container(resources.clone()), Some(100));
            let cpu = r.cpu().clone().expect("always set");
            assert_eq!(cpu.shares(), Some(shares), "{resources}");
            assert_eq!(cpu.quota(), quota, "{resources}");
            assert_eq!(r.memory().as_ref().and_then(|m| m.limit()), memory, "{resources}");
            assert_eq!(r.pids().as_ref().map(|p| p.limit()), Some(100));
        }
    }

    #[test]
    fn a_pod_is_limited_where_all_its_containers_are() {
        let limited = json!({"limits": {"memory": "10Mi", "cpu": "1"}});
        let r = of_pod(
            &spec(json!([{"name": "a", "resources": limited}, {"name": "b", "resources": limited}])),
            None,
        );
        assert_eq!(r.memory().as_ref().and_then(|m| m.limit()), Some(20 << 20));
        assert_eq!(r.cpu().as_ref().and_then(|c| c.quota()), Some(200_000));
        let r = of_pod(&spec(json!([{"name": "a", "resources": limited}, {"name": "b"}])), None);
        assert!(r.memory().is_none());
    }

    #[test]
    fn resource_fields() {
        let node = NodeSize { cpu_milli: 2000, memory: 1 << 30 };
        let c = container(json!({"limits": {"cpu": "1500m"}, "requests": {"memory": "100Mi"}}));
        let cases = [
            ("limits.cpu", None, "2"),
            ("limits.cpu", Some("1m"), "1500"),
            ("requests.memory", Some("1Mi"), "100"),
            ("limits.memory", None, "1073741824"),
            ("requests.cpu", None, "0"),
        ];
        for (name, divisor, expect) in cases {
            let divisor = divisor.map(|d| Quantity(d.to_owned()));
            assert_eq!(field(&c, name, divisor.as_ref(), node).as_deref(), Some(expect), "{name}");
        }
    }
}
