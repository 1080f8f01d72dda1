//! Services. Addresses and node ports are allocated by the server, which then fills in what it chose; this
//! module knows which of them a Service needs, and what may not change.

pub(crate) mod families;

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::{
    field::{FieldError, Path},
    kind::{Hooks, Subresource},
    meta::NameRule,
    names,
    object::{child, has, list, list_mut, remove, set_default, text},
    pod::{
        containers::{PROTOCOLS, port_number, port_number_or_name},
        validate::{ip, maybe_one_of, name, one_of},
    },
    print::{self, AGE, Column, NAME, Now},
    selector::format_set,
};

pub(crate) const HOOKS: Hooks = Hooks {
    default,
    name: NameRule::Label1035,
    validate_create: |service, errors| validate(service, errors),
    validate_update,
    prepare_create,
    prepare_update,
    columns: COLUMNS,
    row,
    selectable: &["spec.clusterIP", "spec.type"],
    ..Hooks::PLAIN
};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const POLICIES: &[&str] = &["Cluster", "Local"];

/// Whether it is reached through a port of every node.
fn needs_node_ports(service: &Value) -> bool {
    let spec = &service["spec"];
    match text(&spec["type"]) {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// Whether load balancers check its health on a port of its own.
fn needs_health_check_port(service: &Value) -> bool {
    service["spec"]["type"] == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

fn is_headless(service: &Value) -> bool {
    service["spec"]["clusterIP"] == "None"
}

fn has_cluster_ip(service: &Value) -> bool {
    matches!(text(&service["spec"]["type"]), "" | "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn default(service: &mut Value) {
    let spec = child(service, "spec");
    set_default(spec, "sessionAffinity", "None");
    match text(&spec["sessionAffinity"]) {
        "None" => {
            remove(spec, "sessionAffinityConfig");
        }
        "ClientIP" => {
            let client = child(child(spec, "sessionAffinityConfig"), "clientIP");
            set_default(client, "timeoutSeconds", 10_800);
        }
        _ => {}
    }
    set_default(spec, "type", "ClusterIP");
    for port in list_mut(spec, "ports") {
        set_default(port, "protocol", "TCP");
        let number = port["port"].clone();
        if matches!(&port["targetPort"], Value::Null) || port["targetPort"] == 0 || port["targetPort"] == "" {
            port["targetPort"] = number;
        }
    }
    let kind = text(&spec["type"]).to_owned();
    let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    if external || !list(&spec["externalIPs"]).is_empty() && kind != "ExternalName" {
        set_default(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        set_default(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set_default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

fn prepare_create(service: &mut Value) {
    service["status"] = json!({"loadBalancer": {}});
    families::normalise(service, None);
}

fn prepare_update(new: &mut Value, old: &Value, door: Subresource) {
    if door != Subresource::Main {
        return;
    }
    drop_type_dependent(new, old);
    families::normalise(new, Some(old));
    if needs_node_ports(new) && needs_node_ports(old) {
        let before = list(&old["spec"]["ports"]);
        for port in list_mut(child(new, "spec"), "ports") {
            let same = before.iter().find(|b| b["port"] == port["port"] && b["protocol"] == port["protocol"]);
            if let Some(number) = same.and_then(|b| b.get("nodePort")) {
                set_default(port, "nodePort", number.clone());
            }
        }
    }
    if needs_health_check_port(new) && needs_health_check_port(old) {
        set_default(child(new, "spec"), "healthCheckNodePort", old["spec"]["healthCheckNodePort"].clone());
    }
}

/// When the type changes, what belonged to the old one and was not changed by the client goes.
fn drop_type_dependent(new: &mut Value, old: &Value) {
    if has_cluster_ip(old) && !has_cluster_ip(new) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if new["spec"][field] == old["spec"][field] {
                remove(child(new, "spec"), field);
            }
        }
    }
    if needs_node_ports(old) && !needs_node_ports(new) {
        let before: Vec<Value> = list(&old["spec"]["ports"]).to_vec();
        for port in list_mut(child(new, "spec"), "ports") {
            if before.iter().any(|b| has(port, "nodePort") && b["nodePort"] == port["nodePort"]) {
                remove(port, "nodePort");
            }
        }
    }
    let external = |service: &Value| matches!(text(&service["spec"]["type"]), "NodePort" | "LoadBalancer");
    if external(old) && !external(new) && list(&new["spec"]["externalIPs"]).is_empty() {
        remove(child(new, "spec"), "externalTrafficPolicy");
    }
    if old["spec"]["type"] == "LoadBalancer" && new["spec"]["type"] != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            remove(child(new, "spec"), field);
        }
        new["status"] = json!({"loadBalancer": {}});
    }
    if needs_health_check_port(old) && !needs_health_check_port(new) {
        remove(child(new, "spec"), "healthCheckNodePort");
    }
}

fn validate(service: &Value, errors: &mut Vec<FieldError>) {
    let (spec, path) = (&service["spec"], Path::new("spec"));
    let kind = text(&spec["type"]);
    one_of(&spec["type"], TYPES, &path.child("type"), errors);
    if list(&spec["ports"]).is_empty() && !is_headless(service) && kind != "ExternalName" {
        errors.push(FieldError::required(path.child("ports"), ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(service) => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid(path.child("clusterIPs").index(0), &json!("None"), &detail));
        }
        "ExternalName" => {
            let target = text(&spec["externalName"]);
            families::validate_absent(spec, &path, errors);
            if target.is_empty() {
                errors.push(FieldError::required(path.child("externalName"), ""));
            } else {
                for problem in names::subdomain(target.strip_suffix('.').unwrap_or(target)) {
                    errors.push(FieldError::invalid(
                        path.child("externalName"),
                        &spec["externalName"],
                        &problem,
                    ));
                }
            }
        }
        _ => {}
    }
    ports(service, &path, errors);
    crate::meta::validate_labels(&spec["selector"], &path.child("selector"), errors);
    one_of(&spec["sessionAffinity"], &["ClientIP", "None"], &path.child("sessionAffinity"), errors);
    affinity(spec, &path, errors);
    if kind != "ExternalName" {
        families::validate(spec, errors);
    }
    addresses(spec, &path, errors);
    policies(service, &path, errors);
}

fn affinity(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    const DAY_S: i64 = 86_400;
    if spec["sessionAffinity"] == "ClientIP" {
        let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
        if !timeout.as_i64().is_some_and(|s| (1..=DAY_S).contains(&s)) {
            let place = path.child("sessionAffinityConfig");
            let place = place.child("clientIP");
            let detail = format!("must be greater than 0 and less than {DAY_S}");
            errors.push(FieldError::invalid(place.child("timeoutSeconds"), timeout, &detail));
        }
    }
}

fn ports(service: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let spec = &service["spec"];
    let all = list(&spec["ports"]);
    let (mut seen_names, mut seen_ports, mut seen_nodes) = (HashSet::new(), HashSet::new(), HashSet::new());
    let path = path.child("ports");
    for (i, port) in all.iter().enumerate() {
        let place = path.index(i);
        let port_name = text(&port["name"]);
        if all.len() > 1 && port_name.is_empty() {
            errors.push(FieldError::required(place.child("name"), ""));
        } else if !port_name.is_empty() {
            name(&port["name"], names::label, &place.child("name"), errors);
            if !seen_names.insert(port_name) {
                errors.push(FieldError::duplicate(place.child("name"), &port["name"]));
            }
        }
        port_number(&port["port"], &place.child("port"), errors);
        one_of(&port["protocol"], PROTOCOLS, &place.child("protocol"), errors);
        port_number_or_name(&port["targetPort"], &place.child("targetPort"), errors);
        let protocol = text(&port["protocol"]);
        if !seen_ports.insert((protocol, port["port"].as_i64())) {
            errors.push(FieldError::duplicate(place, &json!({"port": port["port"], "protocol": protocol})));
        }
        let Some(node @ 1..) = port["nodePort"].as_i64() else { continue };
        if !matches!(text(&spec["type"]), "NodePort" | "LoadBalancer") {
            let detail = format!("may not be used when `type` is '{}'", text(&spec["type"]));
            errors.push(FieldError::forbidden(place.child("nodePort"), &detail));
        } else if !seen_nodes.insert((protocol, node)) {
            errors.push(FieldError::duplicate(place.child("nodePort"), &port["nodePort"]));
        }
    }
}

fn addresses(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for (i, address) in list(&spec["externalIPs"]).iter().enumerate() {
        let place = path.child("externalIPs");
        let before = errors.len();
        ip(address, &place.index(i), errors);
        if errors.len() == before {
            routable(address, &place.index(i), errors);
        }
    }
    for (i, range) in list(&spec["loadBalancerSourceRanges"]).iter().enumerate() {
        if !is_cidr(text(range).trim()) {
            let place = path.child("loadBalancerSourceRanges");
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.push(FieldError::invalid(place.index(i), range, detail));
        }
    }
}

/// An address that a node could answer for.
fn routable(address: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let Ok(parsed) = text(address).parse::<std::net::IpAddr>() else { return };
    let link_local = match parsed {
        std::net::IpAddr::V4(v4) => v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    for (bad, detail) in [
        (parsed.is_unspecified(), "may not be unspecified (0.0.0.0 or ::)"),
        (parsed.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (parsed.is_multicast(), "may not be in the multicast range (224.0.0.0/4, ff00::/8)"),
    ] {
        if bad {
            errors.push(FieldError::invalid(path, address, detail));
        }
    }
}

/// `10.0.0.0/8`, `fd00::/64`
pub(crate) fn is_cidr(value: &str) -> bool {
    let Some((address, bits)) = value.split_once('/') else { return false };
    let max = match address.parse() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|b| b <= max)
}

fn policies(service: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let spec = &service["spec"];
    let external =
        matches!(text(&spec["type"]), "NodePort" | "LoadBalancer") || !list(&spec["externalIPs"]).is_empty();
    if has(spec, "externalTrafficPolicy") {
        let place = path.child("externalTrafficPolicy");
        if external {
            maybe_one_of(&spec["externalTrafficPolicy"], POLICIES, &place, errors);
        } else {
            let detail = "may only be set for externally-accessible services";
            errors.push(FieldError::invalid(place, &spec["externalTrafficPolicy"], detail));
        }
    }
    maybe_one_of(&spec["internalTrafficPolicy"], POLICIES, &path.child("internalTrafficPolicy"), errors);
    let wishes = &["PreferClose", "PreferSameZone", "PreferSameNode"];
    maybe_one_of(&spec["trafficDistribution"], wishes, &path.child("trafficDistribution"), errors);
    if has(spec, "healthCheckNodePort") && !needs_health_check_port(service) {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(
            path.child("healthCheckNodePort"),
            &spec["healthCheckNodePort"],
            detail,
        ));
    }
    if has(spec, "loadBalancerClass") && spec["type"] != "LoadBalancer" {
        errors.push(FieldError::forbidden(
            path.child("loadBalancerClass"),
            "may only be used when `type` is 'LoadBalancer'",
        ));
    }
}

fn validate_update(new: &Value, old: &Value, door: Subresource, errors: &mut Vec<FieldError>) {
    if door != Subresource::Main {
        return;
    }
    validate(new, errors);
    families::validate_change(new, old, errors);
}

const COLUMNS: &[Column] = &[
    NAME,
    Column::text("Type"),
    Column::text("Cluster-IP"),
    Column::text("External-IP"),
    Column::text("Port(s)"),
    AGE,
    Column::wide("Selector"),
];

fn row(service: &Value, now: Now) -> Vec<Value> {
    let spec = &service["spec"];
    let ports: Vec<String> = list(&spec["ports"])
        .iter()
        .map(|port| match port["nodePort"].as_i64() {
            Some(node @ 1..) => format!("{}:{node}/{}", port["port"], text(&port["protocol"])),
            _ => format!("{}/{}", port["port"], text(&port["protocol"])),
        })
        .collect();
    let ports = if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") };
    let selector = format_set(&spec["selector"]);
    vec![
        print::name(service),
        spec["type"].clone(),
        print::text_or(&spec["clusterIP"], "<none>"),
        external_ip(service).into(),
        ports.into(),
        print::age(service, now),
        if selector.is_empty() { "<none>".into() } else { selector.into() },
    ]
}

fn external_ip(service: &Value) -> String {
    let spec = &service["spec"];
    let mut addresses: Vec<&str> = Vec::new();
    match text(&spec["type"]) {
        "ExternalName" => return text(&spec["externalName"]).to_owned(),
        "LoadBalancer" => {
            for ingress in list(&service["status"]["loadBalancer"]["ingress"]) {
                let ip = text(&ingress["ip"]);
                addresses.push(if ip.is_empty() { text(&ingress["hostname"]) } else { ip });
            }
        }
        _ => {}
    }
    addresses.extend(list(&spec["externalIPs"]).iter().map(text));
    match (addresses.is_empty(), text(&spec["type"])) {
        (true, "LoadBalancer") => "<pending>".to_owned(),
        (true, _) => "<none>".to_owned(),
        (false, _) => addresses.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find;

    fn service(spec: Value) -> Value {
        let kind = find("", "v1", "services").expect("services");
        let mut object = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
        kind.default(&mut object);
        kind.prepare_create(&mut object);
        object
    }

    fn complaints(spec: Value) -> Vec<String> {
        let kind = find("", "v1", "services").expect("services");
        kind.validate_create(&service(spec)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_those_of_kubectl_get() {
        assert_eq!(
            service(json!({"ports": [{"port": 80}], "selector": {"a": "b"}})),
            json!({
                "metadata": {"name": "web", "namespace": "default"},
                "spec": {
                    "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "selector": {"a": "b"},
                    "sessionAffinity": "None", "type": "ClusterIP", "internalTrafficPolicy": "Cluster",
                },
                "status": {"loadBalancer": {}},
            })
        );
        let node = service(
            json!({"type": "NodePort", "sessionAffinity": "ClientIP", "ports": [{"port": 80, "targetPort": "http"}]}),
        );
        assert_eq!(node["spec"]["externalTrafficPolicy"], "Cluster");
        assert_eq!(node["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
        assert_eq!(node["spec"]["ports"][0]["targetPort"], "http");
    }

    #[test]
    fn bad_services_name_their_fields() {
        for (spec, complaint) in [
            (json!({}), "spec.ports: Required value"),
            (
                json!({"ports": [{"port": 0}]}),
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ),
            (json!({"ports": [{"port": 1}, {"port": 2}]}), "spec.ports[0].name: Required value"),
            (
                json!({"ports": [{"port": 1, "nodePort": 30000}]}),
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ),
            (
                json!({"type": "X", "ports": [{"port": 1}]}),
                "spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ),
            (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
            (
                json!({"clusterIP": "1.2.3", "ports": [{"port": 1}]}),
                "spec.clusterIPs[0]: Invalid value: \"1.2.3\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
        ] {
            let found = complaints(spec);
            assert!(found.iter().any(|c| c == complaint), "{complaint}: {found:#?}");
        }
        assert_eq!(complaints(json!({"clusterIP": "None"})), Vec::<String>::new(), "headless needs no port");
        assert_eq!(complaints(json!({"type": "ExternalName", "externalName": "a.b"})), Vec::<String>::new());
    }

    #[test]
    fn what_was_allocated_stays_unless_the_type_changes() {
        let kind = find("", "v1", "services").expect("services");
        let mut old = service(
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}], "clusterIP": "10.96.0.7"}),
        );
        kind.normalise(&mut old);
        let mut new = service(json!({"type": "NodePort", "ports": [{"port": 80}]}));
        kind.prepare_update(&mut new, &old, Subresource::Main);
        assert_eq!(new["spec"], old["spec"]);
        assert_eq!(kind.validate_update(&new, &old, Subresource::Main), []);

        let mut new = old.clone();
        new["spec"]["clusterIP"] = json!("10.96.0.8");
        new["spec"]["clusterIPs"] = json!(["10.96.0.8"]);
        kind.prepare_update(&mut new, &old, Subresource::Main);
        let errors = kind.validate_update(&new, &old, Subresource::Main);
        assert_eq!(
            errors[0].to_string(),
            "spec.clusterIPs[0]: Invalid value: [\"10.96.0.8\"]: may not change once set"
        );

        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        kind.prepare_update(&mut new, &old, Subresource::Main);
        assert_eq!(new["spec"]["ports"][0].get("nodePort"), None);
        assert_eq!(new["spec"].get("externalTrafficPolicy"), None);
    }
}
