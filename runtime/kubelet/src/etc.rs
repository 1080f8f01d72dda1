//! The files every container of a pod finds in /etc: hosts, hostname, resolv.conf. Pure text.

use std::{fmt::Write, net::IpAddr};

use k8s_openapi::api::core::v1::PodSpec;

/// The host name inside the pod: `spec.hostname` or the pod's name, at most 63 characters.
pub(crate) fn hostname(spec: &PodSpec, pod_name: &str) -> String {
    let name = spec.hostname_override.as_deref().or(spec.hostname.as_deref()).unwrap_or(pod_name);
    let cut = name.char_indices().nth(63).map_or(name, |(i, _)| &name[..i]);
    cut.trim_end_matches(['-', '.']).to_owned()
}

pub(crate) fn hosts(spec: &PodSpec, hostname: &str, namespace: &str, domain: &str, ips: &[IpAddr]) -> String {
    let mut out = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        let _ = match spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
            Some(sub) => writeln!(out, "{ip}\t{hostname}.{sub}.{namespace}.svc.{domain}\t{hostname}"),
            None => writeln!(out, "{ip}\t{hostname}"),
        };
    }
    let aliases: Vec<_> = spec.host_aliases.iter().flatten().collect();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let _ = writeln!(
            out,
            "{}\t{}",
            alias.ip,
            alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
        );
    }
    out
}

/// What the cluster and the node offer for name resolution.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Dns {
    /// The cluster's name servers as this node's pods reach them; empty without cluster DNS.
    pub(crate) servers: Vec<IpAddr>,
    /// The cluster's domain: `cluster.local`.
    pub(crate) domain: String,
    /// The node's own /etc/resolv.conf.
    pub(crate) node: String,
}

/// Limits of the resolver in glibc (resolv.conf(5)) as Kubernetes applies them.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

#[derive(Default)]
struct Resolv {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

pub(crate) fn resolv_conf(spec: &PodSpec, namespace: &str, dns: &Dns) -> String {
    let host_network = spec.host_network.unwrap_or(false);
    let mut conf = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Resolv::default(),
        "Default" => parse(&dns.node),
        "ClusterFirst" if host_network => parse(&dns.node),
        _ if dns.servers.is_empty() => parse(&dns.node),
        _ => cluster(namespace, dns),
    };
    if let Some(own) = &spec.dns_config {
        conf.servers.extend(own.nameservers.iter().flatten().cloned());
        conf.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            let same = |o: &String| o.split(':').next() == Some(name.as_str());
            conf.options.retain(|o| !same(o));
            conf.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    render(conf)
}

fn cluster(namespace: &str, dns: &Dns) -> Resolv {
    let domain = &dns.domain;
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    searches.extend(parse(&dns.node).searches);
    Resolv {
        servers: dns.servers.iter().map(IpAddr::to_string).collect(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

fn parse(text: &str) -> Resolv {
    let mut conf = Resolv::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => conf.servers.extend(words.next()),
            Some("search" | "domain") => conf.searches = words.collect(),
            Some("options") => conf.options.extend(words),
            Some(_) | None => {}
        }
    }
    conf
}

fn render(mut conf: Resolv) -> String {
    let mut seen = std::collections::HashSet::new();
    conf.searches.retain(|s| s != "." && seen.insert(s.clone()));
    let mut out = String::new();
    if !conf.searches.is_empty() {
        conf.searches.truncate(MAX_SEARCHES);
        let _ = writeln!(out, "search {}", conf.searches.join(" "));
    }
    for server in conf.servers.iter().take(MAX_SERVERS) {
        let _ = writeln!(out, "nameserver {server}");
    }
    if !conf.options.is_empty() {
        let _ = writeln!(out, "options {}", conf.options.join(" "));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(mut fields: Value) -> PodSpec {
        fields["containers"] = json!([]);
        serde_json::from_value(fields).expect("fixture")
    }

    #[test]
    fn resolver_by_policy() {
        let dns = Dns {
            servers: vec![[10, 244, 1, 1].into()],
            domain: "cluster.local".into(),
            node: "nameserver 192.0.2.53\nsearch corp.example\noptions edns0\n".into(),
        };
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\n\
                       nameserver 10.244.1.1\noptions ndots:5\n";
        let node = "search corp.example\nnameserver 192.0.2.53\noptions edns0\n";
        let cases = [
            (json!({}), cluster),
            (json!({"hostNetwork": true}), node),
            (json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), cluster),
            (json!({"dnsPolicy": "Default"}), node),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"],
                    "searches": ["x"], "options": [{"name": "ndots", "value": "2"}]}}),
                "search x\nnameserver 1.1.1.1\noptions ndots:2\n",
            ),
        ];
        for (fields, expect) in cases {
            assert_eq!(resolv_conf(&spec(fields.clone()), "shop", &dns), expect, "{fields}");
        }
    }

    #[test]
    fn hosts_and_names() {
        let s = spec(json!({"hostname": "db-0", "subdomain": "db",
            "hostAliases": [{"ip": "10.9.9.9", "hostnames": ["a", "b"]}]}));
        assert_eq!(hostname(&s, "pod"), "db-0");
        let text = hosts(&s, "db-0", "shop", "cluster.local", &[[10, 1, 0, 5].into()]);
        assert!(text.contains("10.1.0.5\tdb-0.db.shop.svc.cluster.local\tdb-0\n"), "{text}");
        assert!(text.ends_with("10.9.9.9\ta\tb\n"), "{text}");
        assert_eq!(hostname(&spec(json!({})), &"x".repeat(70)).len(), 63);
    }
}
