//! Endpoints and EndpointSlices: the addresses behind Services.

use serde_json::{Value, json};

use crate::{
    field::{FieldError, Path},
    kind::{Hooks, Subresource},
    meta::immutable,
    names,
    object::{child, list, list_mut, set_default, text},
    pod::{
        containers::{PROTOCOLS, port_number},
        validate::{ip, maybe_one_of, name, one_of},
    },
    print::{self, AGE, Column, NAME, Now},
};

pub(crate) const ENDPOINTS: Hooks = Hooks {
    default: default_endpoints,
    validate_create: |object, errors| endpoints(object, errors),
    validate_update: |new, _, _, errors| endpoints(new, errors),
    columns: &[NAME, Column::text("Endpoints"), AGE],
    row: endpoints_row,
    ..Hooks::PLAIN
};

pub(crate) const SLICE: Hooks = Hooks {
    default: default_slice,
    validate_create: |object, errors| slice(object, errors),
    validate_update: update_slice,
    generation: true,
    columns: &[NAME, Column::text("AddressType"), Column::text("Ports"), Column::text("Endpoints"), AGE],
    row: slice_row,
    ..Hooks::PLAIN
};

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 100;
/// Entries that a row shows before it says how many more there are.
const SHOWN: usize = 3;

fn default_endpoints(object: &mut Value) {
    for subset in list_mut(object, "subsets") {
        for port in list_mut(subset, "ports") {
            set_default(port, "protocol", "TCP");
        }
    }
}

fn endpoints(object: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("subsets");
    for (i, subset) in list(&object["subsets"]).iter().enumerate() {
        let path = path.index(i);
        if list(&subset["addresses"]).is_empty() && list(&subset["notReadyAddresses"]).is_empty() {
            errors.push(FieldError::required(path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for group in ["addresses", "notReadyAddresses"] {
            for (j, address) in list(&subset[group]).iter().enumerate() {
                let group = path.child(group);
                ip(&address["ip"], &group.index(j).child("ip"), errors);
            }
        }
        let ports = list(&subset["ports"]);
        for (j, port) in ports.iter().enumerate() {
            let group = path.child("ports");
            let place = group.index(j);
            match text(&port["name"]) {
                "" if ports.len() > 1 => errors.push(FieldError::required(place.child("name"), "")),
                "" => {}
                _ => name(&port["name"], names::label, &place.child("name"), errors),
            }
            port_number(&port["port"], &place.child("port"), errors);
            one_of(&port["protocol"], PROTOCOLS, &place.child("protocol"), errors);
        }
    }
}

fn endpoints_row(object: &Value, now: Now) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in list(&object["subsets"]) {
        for address in list(&subset["addresses"]) {
            let ports = list(&subset["ports"]);
            if ports.is_empty() {
                all.push(text(&address["ip"]).to_owned());
            }
            for port in ports {
                all.push(join_host_port(text(&address["ip"]), &port["port"]));
            }
        }
    }
    vec![print::name(object), shortened(&all).into(), print::age(object, now)]
}

fn join_host_port(host: &str, port: &Value) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn shortened(all: &[String]) -> String {
    match all.len() {
        0 => "<none>".to_owned(),
        n if n > SHOWN => format!("{} + {} more...", all[..SHOWN].join(","), n - SHOWN),
        _ => all.join(","),
    }
}

fn default_slice(object: &mut Value) {
    for port in list_mut(object, "ports") {
        set_default(port, "name", "");
        set_default(port, "protocol", "TCP");
    }
    for endpoint in list_mut(object, "endpoints") {
        child(endpoint, "conditions");
    }
}

fn slice(object: &Value, errors: &mut Vec<FieldError>) {
    one_of(&object["addressType"], &["FQDN", "IPv4", "IPv6"], &Path::new("addressType"), errors);
    let path = Path::new("endpoints");
    let all = list(&object["endpoints"]);
    if all.len() > MAX_ENDPOINTS {
        errors.push(FieldError::too_many(path, all.len(), MAX_ENDPOINTS));
        return;
    }
    for (i, endpoint) in all.iter().enumerate() {
        let place = path.index(i);
        let addresses = list(&endpoint["addresses"]);
        let at = place.child("addresses");
        if addresses.is_empty() {
            errors.push(FieldError::required(at, "must contain at least 1 address"));
        } else if addresses.len() > MAX_ADDRESSES {
            errors.push(FieldError::too_many(at, addresses.len(), MAX_ADDRESSES));
        }
        for (j, address) in addresses.iter().enumerate() {
            slice_address(text(&object["addressType"]), address, &at.index(j), errors);
        }
        if !text(&endpoint["hostname"]).is_empty() {
            name(&endpoint["hostname"], names::label, &place.child("hostname"), errors);
        }
        if !text(&endpoint["nodeName"]).is_empty() {
            name(&endpoint["nodeName"], names::subdomain, &place.child("nodeName"), errors);
        }
    }
    slice_ports(object, errors);
}

fn slice_address(kind: &str, address: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let wrong = match kind {
        "IPv4" => text(address).parse::<std::net::Ipv4Addr>().err().map(|_| "must be a valid IPv4 address"),
        "IPv6" => text(address).parse::<std::net::Ipv6Addr>().err().map(|_| "must be a valid IPv6 address"),
        "FQDN" => return name(address, names::subdomain, path, errors),
        _ => None,
    };
    if let Some(detail) = wrong {
        errors.push(FieldError::invalid(path, address, detail));
    }
}

fn slice_ports(object: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("ports");
    let ports = list(&object["ports"]);
    if ports.len() > MAX_PORTS {
        errors.push(FieldError::too_many(path, ports.len(), MAX_PORTS));
        return;
    }
    let mut seen = std::collections::HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let place = path.index(i);
        if !text(&port["name"]).is_empty() {
            name(&port["name"], names::label, &place.child("name"), errors);
        }
        if !seen.insert(text(&port["name"])) {
            errors.push(FieldError::duplicate(place.child("name"), &port["name"]));
        }
        maybe_one_of(&port["protocol"], PROTOCOLS, &place.child("protocol"), errors);
    }
}

fn update_slice(new: &Value, old: &Value, _: Subresource, errors: &mut Vec<FieldError>) {
    slice(new, errors);
    immutable(&new["addressType"], &old["addressType"], &Path::new("addressType"), errors);
}

fn slice_row(object: &Value, now: Now) -> Vec<Value> {
    let ports: Vec<String> = list(&object["ports"])
        .iter()
        .map(|port| match port["port"].as_i64() {
            Some(number) => number.to_string(),
            None => text(&port["name"]).to_owned(),
        })
        .collect();
    let ports = if ports.is_empty() { "<unset>".to_owned() } else { shortened(&ports) };
    let addresses: Vec<String> = list(&object["endpoints"])
        .iter()
        .flat_map(|e| list(&e["addresses"]))
        .map(|a| text(a).to_owned())
        .collect();
    let addresses = if addresses.is_empty() { "<unset>".to_owned() } else { shortened(&addresses) };
    vec![
        print::name(object),
        object["addressType"].clone(),
        json!(ports),
        json!(addresses),
        print::age(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find;

    #[test]
    fn slices_are_filled_in_checked_and_shown() {
        let kind = find("discovery.k8s.io", "v1", "endpointslices").expect("endpointslices");
        let mut object = json!({
            "metadata": {"name": "web-x", "namespace": "default"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.3"]}, {"addresses": ["10.0.0.4"]}],
            "ports": [{"port": 80}],
        });
        kind.default(&mut object);
        assert_eq!(object["ports"], json!([{"port": 80, "name": "", "protocol": "TCP"}]));
        assert_eq!(object["endpoints"][0]["conditions"], json!({}));
        assert_eq!(kind.validate_create(&object), []);
        let now = crate::time::parse("2026-01-01T00:00:00Z").expect("now");
        let row = slice_row(&object, now);
        assert_eq!(row[3], "10.0.0.1,10.0.0.2,10.0.0.3 + 1 more...");
        object["endpoints"][0]["addresses"][0] = json!("::1");
        assert_eq!(
            kind.validate_create(&object)[0].to_string(),
            "endpoints[0].addresses[0]: Invalid value: \"::1\": must be a valid IPv4 address"
        );
    }
}
