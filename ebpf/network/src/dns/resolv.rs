//! A pod's /etc/resolv.conf. Pure, but for reading the machine's.

use std::{fs, net::IpAddr, path::Path};

use k8s_openapi::api::core::v1::{PodDNSConfig, PodSpec};

/// As glibc and Kubernetes have it (`MAXNS`; `MaxDNSSearchPaths`, `MaxDNSSearchListChars`).
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_BYTES_MAX: usize = 2048;
/// Names with fewer dots are tried in the search domains first, so that `web.default.svc` is found.
const NDOTS: &str = "ndots:5";
/// The file that programs read, and the one that systemd-resolved keeps beside it for others than this
/// machine itself.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// What a resolv.conf says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvConf {
    /// Addresses of name servers.
    pub nameservers: Vec<IpAddr>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options as they are written, e.g. `ndots:5`.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads the text of a resolv.conf; lines that it does not know are left out.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                // An address may have a zone (`fe80::1%eth0`), which means nothing in a pod.
                Some("nameserver") => {
                    conf.nameservers.extend(words.next().and_then(|it| it.parse::<IpAddr>().ok()))
                }
                // The last one counts.
                Some("search" | "domain") => {
                    conf.searches = words.map(str::to_owned).collect();
                }
                Some("options") => conf.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        conf
    }

    /// The machine's, as others than the machine itself can use it: where its only name servers are on
    /// its loopback, those that systemd-resolved asks. Empty where there is none.
    pub fn of_machine() -> Self {
        let read = |path: &str| fs::read_to_string(Path::new(path)).map(|text| Self::parse(&text)).ok();
        let [own, resolved] = FILES.map(read);
        let own = own.unwrap_or_default();
        match resolved {
            Some(resolved) if own.nameservers.iter().all(IpAddr::is_loopback) => resolved,
            Some(_) | None => own,
        }
    }

    /// The text of the file.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text += &format!("search {}\n", self.searches.join(" "));
        }
        for nameserver in &self.nameservers {
            text += &format!("nameserver {nameserver}\n");
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }

    fn merge(&mut self, config: &PodDNSConfig) {
        let nameservers = config.nameservers.iter().flatten().filter_map(|it| it.parse::<IpAddr>().ok());
        self.nameservers.extend(nameservers);
        self.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            let same = |it: &String| it.split(':').next() == Some(name);
            self.options.retain(|it| !same(it));
            self.options.push(match &option.value {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.clone(),
            });
        }
    }

    /// Without repetitions, and within what resolvers read.
    fn limit(mut self) -> Self {
        let mut seen = Vec::new();
        self.nameservers.retain(|it| {
            !seen.contains(it) && {
                seen.push(*it);
                true
            }
        });
        self.nameservers.truncate(NAMESERVERS_MAX);
        let (mut seen, mut bytes) = (Vec::<String>::new(), 0);
        self.searches.retain(|it| {
            let length = it.len() + usize::from(!seen.is_empty());
            let keep = !seen.contains(it) && seen.len() < SEARCHES_MAX && bytes + length <= SEARCH_BYTES_MAX;
            if keep {
                bytes += length;
                seen.push(it.clone());
            }
            keep
        });
        self
    }
}

/// What a pod's resolv.conf depends on besides the pod.
#[derive(Debug, Clone)]
pub struct Cluster<'a> {
    /// The replica's name server.
    pub server: IpAddr,
    /// The cluster's domain, e.g. `cluster.local`.
    pub domain: &'a str,
    /// The machine's.
    pub machine: &'a ResolvConf,
}

/// The resolv.conf of a pod, after its dnsPolicy and dnsConfig.
pub fn of_pod(cluster: &Cluster<'_>, namespace: &str, spec: &PodSpec) -> ResolvConf {
    let host_network = spec.host_network == Some(true);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let mut conf = match policy {
        "None" => ResolvConf::default(),
        "Default" => cluster.machine.clone(),
        // A pod on the node's network that says nothing else resolves as the node does.
        "ClusterFirst" if host_network => cluster.machine.clone(),
        _ => {
            let domain = cluster.domain;
            let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
            ResolvConf {
                nameservers: vec![cluster.server],
                searches: own.into_iter().chain(cluster.machine.searches.iter().cloned()).collect(),
                options: vec![NDOTS.to_owned()],
            }
        }
    };
    if let Some(config) = &spec.dns_config {
        conf.merge(config);
    }
    conf.limit()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodDNSConfigOption;

    use super::*;

    fn spec(policy: Option<&str>, host_network: bool, config: Option<PodDNSConfig>) -> PodSpec {
        PodSpec {
            dns_policy: policy.map(str::to_owned),
            host_network: Some(host_network),
            dns_config: config,
            ..PodSpec::default()
        }
    }

    #[test]
    fn policies_and_configs() {
        let machine = ResolvConf::parse("# c\nsearch corp.example\nnameserver 192.0.2.53\noptions edns0\n");
        let cluster = Cluster { server: [10, 244, 1, 1].into(), domain: "cluster.local", machine: &machine };
        let config = PodDNSConfig {
            nameservers: Some(vec!["1.2.3.4".to_owned(), "10.244.1.1".to_owned()]),
            searches: Some(vec!["more.example".to_owned(), "svc.cluster.local".to_owned()]),
            options: Some(vec![
                PodDNSConfigOption { name: Some("ndots".to_owned()), value: Some("2".to_owned()) },
                PodDNSConfigOption { name: Some("edns0".to_owned()), value: None },
            ]),
        };
        let first = "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\n\
                     nameserver 10.244.1.1\noptions ndots:5\n";
        let own = "search corp.example\nnameserver 192.0.2.53\noptions edns0\n";
        for (name, spec, expect) in [
            ("nothing said", spec(None, false, None), first),
            ("ClusterFirst", spec(Some("ClusterFirst"), false, None), first),
            ("on the node's network", spec(Some("ClusterFirst"), true, None), own),
            ("ClusterFirstWithHostNet", spec(Some("ClusterFirstWithHostNet"), true, None), first),
            ("Default", spec(Some("Default"), false, None), own),
            ("None", spec(Some("None"), false, None), ""),
            (
                "None with a config",
                spec(Some("None"), false, Some(config.clone())),
                "search more.example svc.cluster.local\nnameserver 1.2.3.4\nnameserver 10.244.1.1\n\
                 options ndots:2 edns0\n",
            ),
            (
                "merged",
                spec(None, false, Some(config)),
                "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example more.example\n\
                 nameserver 10.244.1.1\nnameserver 1.2.3.4\noptions ndots:2 edns0\n",
            ),
        ] {
            assert_eq!(of_pod(&cluster, "shop", &spec).render(), expect, "{name}");
        }
    }

    #[test]
    fn limits_are_the_resolvers() {
        let many = ResolvConf {
            nameservers: (1..=5).map(|n| [10, 0, 0, n].into()).collect(),
            searches: (0..40).map(|n| format!("{n}.{}", "x".repeat(60))).collect(),
            options: Vec::new(),
        };
        let limited = many.limit();
        assert_eq!(limited.nameservers.len(), 3);
        assert_eq!(limited.searches.len(), 32);
        assert!(limited.searches.join(" ").len() <= SEARCH_BYTES_MAX);
    }
}
