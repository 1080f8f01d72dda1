//! Cluster addresses and node ports of Services: each is given to one Service at a time.
//!
//! What is taken is kept in memory, rebuilt from the stored Services at every start, so it cannot disagree with
//! them for longer than a process lives. A write reserves first and keeps or gives back when it is decided:
//!
//! ```text
//!  free ──reserve──► reserved ──stored──► taken ──Service deleted or changed──► free
//!                        └─────refused──────────────────────────────────────────► free
//! ```

use std::{
    collections::HashMap,
    net::IpAddr,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pith_api::{ApiError, Family, FieldError, Settled, meta, settle_families};
use rand::Rng;
use serde_json::{Value, json};

use super::service_ranges::{ServiceCidr, ServiceCidrs};
use crate::verbs::Call;

/// `--service-node-port-range`'s default.
pub(crate) const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Which Service holds what.
#[derive(Debug)]
pub(crate) struct Allocations {
    ranges: ServiceCidrs,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    addresses: HashMap<IpAddr, Owner>,
    ports: HashMap<u16, Owner>,
}

/// A Service's uid: names come again.
type Owner = String;

/// Reservations of one write.
#[derive(Debug)]
pub(crate) struct Reserved {
    taken: Arc<Mutex<Taken>>,
    owner: Owner,
    /// What the Service has already, also where that is in no range any more.
    had: Vec<IpAddr>,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    /// What the Service no longer needs once the write happened.
    dropped_addresses: Vec<IpAddr>,
    dropped_ports: Vec<u16>,
    kept: bool,
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    // Nothing that can panic happens under this lock.
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Taken {
    fn free(&mut self, owner: &Owner, addresses: &[IpAddr], ports: &[u16]) {
        for address in addresses {
            if self.addresses.get(address) == Some(owner) {
                self.addresses.remove(address);
            }
        }
        for port in ports {
            if self.ports.get(port) == Some(owner) {
                self.ports.remove(port);
            }
        }
    }
}

impl Reserved {
    pub(super) fn keep(mut self) {
        self.kept = true;
        lock(&self.taken).free(&self.owner, &self.dropped_addresses, &self.dropped_ports);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.kept {
            lock(&self.taken).free(&self.owner, &self.addresses, &self.ports);
        }
    }
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The addresses and node ports that a Service's object names.
fn held(service: &Value) -> (Vec<IpAddr>, Vec<u16>) {
    let spec = &service["spec"];
    let addresses =
        std::iter::once(&spec["clusterIP"]).chain(spec["clusterIPs"].as_array().into_iter().flatten());
    let mut addresses: Vec<IpAddr> =
        addresses.filter_map(|address| address.as_str().and_then(|text| text.parse().ok())).collect();
    addresses.dedup();
    let ports = spec["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
    let ports = ports.chain(std::iter::once(&spec["healthCheckNodePort"]));
    let ports =
        ports.filter_map(|port| u16::try_from(port.as_u64()?).ok().filter(|port| *port != 0)).collect();
    (addresses, ports)
}

fn service_type(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

fn has_node_ports(service: &Value) -> bool {
    match service_type(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true),
        _ => false,
    }
}

fn has_health_port(service: &Value) -> bool {
    service_type(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

/// Says of a Service that asks for direct server return that it has none in IPv6.
pub(super) fn warning(service: &Value) -> Option<String> {
    const FORWARDING: &str = "pith.dev/forwarding";
    let direct = service["metadata"]["annotations"][FORWARDING] == "dsr";
    let six = texts(&service["spec"]["ipFamilies"]).iter().any(|family| family == Family::V6.name());
    (direct && six).then(|| {
        format!(
            "metadata.annotations[{FORWARDING}]: direct server return is there in IPv4 alone; in IPv6 backends on other nodes see the node that was asked"
        )
    })
}

impl Allocations {
    /// What the stored Services hold. One that is outside the range or taken twice is reported and left alone:
    /// its traffic may still work, and only its owner can decide.
    pub(crate) fn rebuild<'a>(ranges: ServiceCidrs, services: impl Iterator<Item = &'a Value>) -> Self {
        let mut taken = Taken::default();
        for service in services {
            let owner = meta::text(service, "uid").to_owned();
            let name = format!("{}/{}", meta::text(service, "namespace"), meta::name(service));
            let (addresses, ports) = held(service);
            for address in addresses {
                if !ranges.contain(address) {
                    tracing::warn!(service = %name, %address, range = %ranges, "cluster address outside the range");
                }
                let other = taken.addresses.insert(address, owner.clone());
                if other.is_some_and(|other| other != owner) {
                    tracing::warn!(service = %name, %address, "cluster address is held by two Services");
                }
            }
            for port in ports {
                let other = taken.ports.insert(port, owner.clone());
                if other.is_some_and(|other| other != owner) {
                    tracing::warn!(service = %name, port, "node port is held by two Services");
                }
            }
        }
        Self { ranges, taken: Arc::new(Mutex::new(taken)) }
    }

    /// A Service is gone. The address of `kubernetes` is not given back: that Service comes again.
    pub(crate) fn release(&self, service: &Value) {
        let (mut addresses, ports) = held(service);
        addresses.retain(|address| *address != self.ranges.primary().first());
        lock(&self.taken).free(&meta::text(service, "uid").to_owned(), &addresses, &ports);
    }

    /// For a write to this Service, which has these addresses.
    fn reserving(&self, service: &Value, had: Vec<IpAddr>) -> Reserved {
        Reserved {
            taken: self.taken.clone(),
            owner: meta::text(service, "uid").to_owned(),
            had,
            addresses: Vec::new(),
            ports: Vec::new(),
            dropped_addresses: Vec::new(),
            dropped_ports: Vec::new(),
            kept: false,
        }
    }

    /// Gives a Service the families, addresses and ports that it needs and does not have; `old` is what a change
    /// starts from.
    fn assign(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        reserved: &mut Reserved,
    ) -> Result<(), Vec<FieldError>> {
        let families: Vec<Family> = self.ranges.iter().map(|range| range.family()).collect();
        match settle_families(service, old, &families)? {
            Settled::Done => {}
            // Validation is about to refuse it.
            Settled::Unsound => return Ok(()),
        }
        let mut errors = Vec::new();
        if service_type(service) != "ExternalName" {
            self.assign_addresses(service, reserved, &mut errors);
        }
        if has_node_ports(service) {
            self.assign_ports(service, reserved, &mut errors);
        }
        if has_health_port(service) {
            self.assign_health_port(service, reserved, &mut errors);
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(errors),
        }
    }

    /// One address of each of the Service's families, in their order.
    fn assign_addresses(&self, service: &mut Value, reserved: &mut Reserved, errors: &mut Vec<FieldError>) {
        let spec = &mut service["spec"];
        let given: Vec<String> = texts(&spec["clusterIPs"]);
        if given.first().is_some_and(|address| address == "None") {
            return;
        }
        let mut addresses = Vec::new();
        for (i, family) in texts(&spec["ipFamilies"]).iter().enumerate() {
            // A Service that prefers two families may still hold an address of a range that is gone.
            let range = Family::from_name(family).and_then(|family| self.ranges.of(family));
            match self.assign_address(range, given.get(i).map(String::as_str), reserved) {
                Ok(address) => addresses.push(address),
                Err(why) => errors.push(FieldError::invalid("spec.clusterIPs", &json!(given), &why)),
            }
        }
        if let Some(first) = addresses.first() {
            spec["clusterIP"] = first.as_str().into();
            spec["clusterIPs"] = json!(addresses);
        }
    }

    /// The given address, or any of the range; the error is upstream's detail.
    fn assign_address(
        &self,
        range: Option<ServiceCidr>,
        given: Option<&str>,
        reserved: &mut Reserved,
    ) -> Result<String, String> {
        let Some(text) = given else {
            let any = range.and_then(|range| self.any_address(range, reserved));
            return any
                .map(|address| address.to_string())
                .ok_or_else(|| "failed to allocate a serviceIP: range is full".to_owned());
        };
        let refuse = |why: &str| format!("failed to allocate IP {text}: {why}");
        let address: IpAddr = text.parse().map_err(|_| refuse("provided IP is not valid"))?;
        if reserved.had.contains(&address) {
            return Ok(text.to_owned());
        }
        if !range.is_some_and(|range| range.contains(address)) {
            let ranges = range.map_or_else(|| self.ranges.to_string(), |range| range.to_string());
            return Err(refuse(&format!(
                "the provided IP ({text}) is not in the valid range. The range of valid IPs is {ranges}"
            )));
        }
        match self.take_address(address, reserved) {
            true => Ok(text.to_owned()),
            false => Err(refuse("provided IP is already allocated")),
        }
    }

    fn take_address(&self, address: IpAddr, reserved: &mut Reserved) -> bool {
        let mut taken = lock(&self.taken);
        match taken.addresses.get(&address) {
            Some(owner) => *owner == reserved.owner,
            None => {
                taken.addresses.insert(address, reserved.owner.clone());
                reserved.addresses.push(address);
                true
            }
        }
    }

    /// A free address, from a random place on, first of the upper part of the range.
    fn any_address(&self, range: ServiceCidr, reserved: &mut Reserved) -> Option<IpAddr> {
        let (split, end) = (range.dynamic_from(), range.usable());
        let upper = split + 1..=end;
        let start = rand::rng().random_range(upper.clone());
        // The first address is the Service kubernetes's, also before that exists.
        let order = (start..=end).chain(split + 1..start).chain(2..=split);
        let mut taken = lock(&self.taken);
        let address =
            order.map(|index| range.nth(index)).find(|address| !taken.addresses.contains_key(address))?;
        taken.addresses.insert(address, reserved.owner.clone());
        reserved.addresses.push(address);
        Some(address)
    }

    fn assign_ports(&self, service: &mut Value, reserved: &mut Reserved, errors: &mut Vec<FieldError>) {
        let Some(ports) = service["spec"]["ports"].as_array_mut() else { return };
        for (index, port) in ports.iter_mut().enumerate() {
            let path = format!("spec.ports[{index}].nodePort");
            match self.port(&port["nodePort"], path, reserved) {
                Ok(number) => port["nodePort"] = number.into(),
                Err(error) => errors.push(error),
            }
        }
    }

    /// Where load balancers ask whether a node has endpoints of the Service.
    fn assign_health_port(&self, service: &mut Value, reserved: &mut Reserved, errors: &mut Vec<FieldError>) {
        let field = "healthCheckNodePort";
        match self.port(&service["spec"][field], format!("spec.{field}"), reserved) {
            Ok(number) => service["spec"][field] = number.into(),
            Err(error) => errors.push(error),
        }
    }

    /// The node port that the client asks for, where it may have that one; else one that is free.
    fn port(&self, asked: &Value, path: String, reserved: &mut Reserved) -> Result<u16, FieldError> {
        let asked = asked.as_i64().unwrap_or(0);
        if asked == 0 {
            return self.any_port(reserved).ok_or_else(|| {
                FieldError::invalid(path, &json!(0), "failed to allocate a nodePort: range is full")
            });
        }
        match u16::try_from(asked).ok().filter(|port| NODE_PORTS.contains(port)) {
            Some(number) if self.take_port(number, reserved) => Ok(number),
            Some(_) => Err(FieldError::invalid(path, &json!(asked), "provided port is already allocated")),
            None => Err(FieldError::invalid(
                path,
                &json!(asked),
                &format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    NODE_PORTS.start(),
                    NODE_PORTS.end()
                ),
            )),
        }
    }

    /// One Service may use a port for several protocols.
    fn take_port(&self, port: u16, reserved: &mut Reserved) -> bool {
        let mut taken = lock(&self.taken);
        match taken.ports.get(&port) {
            Some(owner) => *owner == reserved.owner,
            None => {
                taken.ports.insert(port, reserved.owner.clone());
                reserved.ports.push(port);
                true
            }
        }
    }

    fn any_port(&self, reserved: &mut Reserved) -> Option<u16> {
        let (first, last) = (*NODE_PORTS.start(), *NODE_PORTS.end());
        let start = rand::rng().random_range(NODE_PORTS);
        let mut taken = lock(&self.taken);
        let port = (start..=last).chain(first..start).find(|port| !taken.ports.contains_key(port))?;
        taken.ports.insert(port, reserved.owner.clone());
        reserved.ports.push(port);
        Some(port)
    }
}

pub(super) fn create(call: &Call, service: &mut Value) -> Result<Reserved, ApiError> {
    let allocations = &call.state.services;
    let mut reserved = allocations.reserving(service, Vec::new());
    let outcome = allocations.assign(service, None, &mut reserved);
    outcome.map_err(|errors| call.target.kind.invalid(meta::name(service), &errors))?;
    Ok(reserved)
}

pub(super) fn update(call: &Call, new: &mut Value, old: &Value) -> Result<Reserved, ApiError> {
    let allocations = &call.state.services;
    let mut reserved = allocations.reserving(old, held(old).0);
    carry_over(new, old);
    let outcome = allocations.assign(new, Some(old), &mut reserved);
    outcome.map_err(|errors| call.target.kind.invalid(meta::name(old), &errors))?;
    let ((old_addresses, old_ports), (addresses, ports)) = (held(old), held(new));
    reserved.dropped_addresses = old_addresses.into_iter().filter(|a| !addresses.contains(a)).collect();
    reserved.dropped_ports = old_ports.into_iter().filter(|p| !ports.contains(p)).collect();
    Ok(reserved)
}

/// Node ports that the server gave and the client does not repeat stay (upstream: `patchAllocatedValues`), and
/// those that the new type has no use for go.
fn carry_over(new: &mut Value, old: &Value) {
    let keeps_ports = has_node_ports(new);
    let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    for port in new["spec"]["ports"].as_array_mut().into_iter().flatten() {
        let same = |found: &&Value| found["port"] == port["port"] && found["protocol"] == port["protocol"];
        let had = before.iter().find(same).map(|found| found["nodePort"].clone()).unwrap_or(Value::Null);
        if keeps_ports && port["nodePort"].as_i64().unwrap_or(0) == 0 && !had.is_null() {
            port["nodePort"] = had;
        } else if !keeps_ports
            && port["nodePort"] == had
            && let Some(port) = port.as_object_mut()
        {
            port.shift_remove("nodePort");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(uid: &str, spec: Value) -> Value {
        json!({"metadata": {"name": uid, "namespace": "default", "uid": uid}, "spec": spec})
    }

    fn allocations(cidr: &str, services: &[Value]) -> Allocations {
        Allocations::rebuild(cidr.parse().expect("a range"), services.iter())
    }

    fn assign(allocations: &Allocations, service: &mut Value) -> Result<Reserved, Vec<FieldError>> {
        let kind = pith_api::find("", "v1", "services").expect("services");
        kind.prepare_create(service);
        let mut reserved = allocations.reserving(service, Vec::new());
        allocations.assign(service, None, &mut reserved).map(|()| reserved)
    }

    #[test]
    fn every_service_gets_an_address_of_its_own_until_the_range_is_full() {
        let allocations = allocations("10.96.0.0/28", &[]);
        let mut seen = std::collections::HashSet::new();
        let mut kept = Vec::new();
        for index in 0..13 {
            let mut service = service(&format!("s{index}"), json!({"type": "ClusterIP"}));
            kept.push(assign(&allocations, &mut service).expect("a free address"));
            assert!(seen.insert(service["spec"]["clusterIP"].as_str().expect("an address").to_owned()));
        }
        assert!(!seen.contains("10.96.0.1"), "that is the Service kubernetes's");
        let mut one_more = service("more", json!({}));
        assert!(assign(&allocations, &mut one_more).is_err());
        kept.pop();
        assert!(assign(&allocations, &mut one_more).is_ok(), "what a refused write reserved is free again");
    }

    #[test]
    fn what_is_not_there_in_ipv6_is_said() {
        for (families, annotations, said) in [
            (&["IPv4"][..], json!({"pith.dev/forwarding": "dsr"}), false),
            (&["IPv4", "IPv6"], json!({"pith.dev/forwarding": "dsr"}), true),
            (&["IPv6"], json!({"pith.dev/forwarding": "snat"}), false),
            (&["IPv6"], json!(null), false),
        ] {
            let mut service = service("s", json!({"type": "NodePort", "ipFamilies": families}));
            service["metadata"]["annotations"] = annotations.clone();
            assert_eq!(warning(&service).is_some(), said, "{families:?} {annotations}");
        }
    }

    #[test]
    fn a_second_address_comes_and_goes_with_the_policy() {
        let allocations = allocations("10.96.0.0/16,fd00:96::/112", &[]);
        let families = |service: &Value| -> Vec<bool> {
            let addresses = held(service).0;
            assert!(addresses.iter().all(|address| allocations.ranges.contain(*address)), "{addresses:?}");
            addresses.iter().map(IpAddr::is_ipv6).collect()
        };
        let change = |old: &Value, policy: &str| {
            let mut new = old.clone();
            new["spec"]["ipFamilyPolicy"] = policy.into();
            let mut reserved = allocations.reserving(old, held(old).0);
            allocations.assign(&mut new, Some(old), &mut reserved).expect("a change of policy");
            reserved.dropped_addresses =
                held(old).0.into_iter().filter(|address| !held(&new).0.contains(address)).collect();
            reserved.keep();
            new
        };
        let mut single = service("s", json!({"type": "ClusterIP"}));
        assign(&allocations, &mut single).expect("an address").keep();
        assert_eq!(families(&single), [false]);
        let dual = change(&single, "PreferDualStack");
        assert_eq!(families(&dual), [false, true]);
        assert_eq!(dual["spec"]["clusterIP"], single["spec"]["clusterIP"]);
        let back = change(&dual, "SingleStack");
        assert_eq!(back["spec"]["clusterIPs"], single["spec"]["clusterIPs"]);

        let second = dual["spec"]["clusterIPs"][1].clone();
        let mut heir = service("heir", json!({"clusterIP": second}));
        assign(&allocations, &mut heir).expect("what was released is free").keep();
        assert_eq!(heir["spec"]["ipFamilies"], json!(["IPv6"]));

        let mut both = service("both", json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}));
        assign(&allocations, &mut both).expect("two addresses").keep();
        assert_eq!(families(&both), [true, false]);
        allocations.release(&both);
        let pair = &both["spec"]["clusterIPs"];
        let chosen = json!({"ipFamilyPolicy": "PreferDualStack", "clusterIP": pair[0], "clusterIPs": pair});
        let mut again = service("again", chosen);
        assign(&allocations, &mut again).expect("released with the Service").keep();
        assert_eq!(again["spec"]["clusterIPs"], *pair);
    }

    #[test]
    fn chosen_addresses_and_ports_are_checked() {
        let held = service(
            "held",
            json!({"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": 30080}]}),
        );
        let allocations = allocations("10.96.0.0/16", &[held]);
        for (spec, expect) in [
            (
                json!({"clusterIP": "10.96.0.10"}),
                "spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to allocate IP 10.96.0.10: provided IP is already allocated",
            ),
            (
                json!({"clusterIP": "10.1.0.1"}),
                "spec.clusterIPs: Invalid value: [\"10.1.0.1\"]: failed to allocate IP 10.1.0.1: the provided IP (10.1.0.1) is not in the valid range. The range of valid IPs is 10.96.0.0/16",
            ),
            (
                json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30080}]}),
                "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated",
            ),
            (
                json!({"type": "NodePort", "ports": [{"port": 1}, {"port": 2, "nodePort": 80}]}),
                "spec.ports[1].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
            ),
        ] {
            let mut service = service("new", spec);
            let errors = assign(&allocations, &mut service).expect_err(expect);
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), [expect]);
        }
        let mut same_port_twice = service(
            "udp",
            json!({"type": "NodePort", "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}, {"port": 53, "protocol": "TCP", "nodePort": 30053}]}),
        );
        assert!(assign(&allocations, &mut same_port_twice).is_ok());
    }

    #[test]
    fn a_balancer_with_local_policy_is_asked_for_its_health_at_a_port() {
        let allocations = allocations("10.96.0.0/16", &[]);
        for (policy, asked, expect) in
            [("Local", Value::Null, true), ("Local", json!(30100), true), ("Cluster", Value::Null, false)]
        {
            let mut service = service(
                policy,
                json!({"type": "LoadBalancer", "externalTrafficPolicy": policy, "ports": [{"port": 80}]}),
            );
            if !asked.is_null() {
                service["spec"]["healthCheckNodePort"] = asked.clone();
            }
            assert!(assign(&allocations, &mut service).is_ok());
            let given = &service["spec"]["healthCheckNodePort"];
            assert_eq!(given.is_u64(), expect, "{policy} {asked}");
            assert!(asked.is_null() || *given == asked, "{policy} {asked}");
        }
    }

    #[test]
    fn node_ports_that_were_given_stay_and_those_of_no_use_go() {
        let old = service(
            "s",
            json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}),
        );
        let mut new = service("s", json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
        carry_over(&mut new, &old);
        assert_eq!(new, old);
        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        carry_over(&mut new, &old);
        assert_eq!(new["spec"]["ports"][0].get("nodePort"), None);
    }
}
