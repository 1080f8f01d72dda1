//! Options of `up` that are kept with the cluster and handed on to its processes, which know them by the same names.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use pith_apiserver::Tolerations;
use pith_apiserver::pki::CLIENT_LIFETIME;
use pith_image::Policy;
use pith_proxy::Limits;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::UsedWrongly;

/// A group of such options, none of which has to be given. As JSON a field has the name of its option, with `_` for `-`.
pub(crate) trait Kept: Serialize + DeserializeOwned {
    /// What is given here, and else what was given before.
    fn or(&self, before: &Self) -> Self {
        let mut all = given(before);
        all.extend(given(self));
        serde_json::from_value(all.into()).expect("options are read as they are written")
    }

    /// As arguments of another process.
    fn flags(&self) -> impl Iterator<Item = String> {
        given(self).into_iter().map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("--{}={value}", name.replace('_', "-"))
        })
    }
}

fn given(options: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(options) {
        Ok(Value::Object(all)) => all.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        other => unreachable!("options are an object of numbers and UTF-8: {other:?}"),
    }
}

impl Kept for ReplicaImageArgs {}
impl Kept for TimeArgs {}
impl Kept for LimitArgs {}

/// A time in seconds, as Kubernetes' flags take it: `40s`, `2m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(u64);

impl Time {
    pub(crate) fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
        let factor = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err("a time is a number and a unit: 40s, 2m, 1h".into()),
        };
        let number: u64 = number.parse().map_err(|_| format!("{number:?} is not a whole number"))?;
        number
            .checked_mul(factor)
            .filter(|seconds| *seconds > 0)
            .map(Self)
            .ok_or_else(|| "out of range".into())
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            /// As clusters of earlier versions keep it.
            Seconds(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Seconds(seconds) => Ok(Self(seconds)),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// Another process may be started elsewhere, and JSON is UTF-8.
fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = std::path::absolute(text).map_err(|error| error.to_string())?;
    if path.to_str().is_none() {
        return Err(format!("{} is not UTF-8: give a path from / on", path.display()));
    }
    Ok(path)
}

/// How a replica treats its images. The names of the first three are those of Kubernetes' kubelet.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReplicaImageArgs {
    /// Percent of the disk in use from which images that nothing uses are removed [default: 85].
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) image_gc_high_threshold: Option<u8>,
    /// Percent of the disk in use down to which they are removed [default: 80].
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) image_gc_low_threshold: Option<u8>,
    /// How long an image stays at least, used or not, such as 2m [default: 2m].
    #[arg(long, value_name = "TIME")]
    pub(crate) minimum_image_ttl_duration: Option<Time>,
    /// What containers' roots are made of: overlays of their images' layers, or copies of all files
    /// [default: overlayfs where the kernel has it].
    #[arg(long, value_enum)]
    #[serde(default)]
    pub(crate) snapshotter: Option<Snapshotter>,
    /// Where mirrors of registries are configured, in the form of containerd's certs.d [default: /etc/pith/certs.d].
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub(crate) hosts_dir: Option<PathBuf>,
}

/// As containerd and k3s call them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Snapshotter {
    Overlayfs,
    Native,
}

impl Snapshotter {
    /// Whether roots are copies.
    pub(crate) fn copies(given: Option<Snapshotter>) -> bool {
        given.map_or_else(|| !pith_image::has_overlayfs(), |given| given == Snapshotter::Native)
    }
}

impl ReplicaImageArgs {
    pub(crate) fn policy(&self) -> Result<Policy, UsedWrongly> {
        let (mut high, mut low) = (self.image_gc_high_threshold, self.image_gc_low_threshold);
        // One alone moves the other along where it has to.
        high = high.or(low.map(|low| low.max(85)));
        low = low.or(high.map(|high| high.min(80)));
        let (high_percent, low_percent) = (high.unwrap_or(85), low.unwrap_or(80));
        if low_percent > high_percent {
            let text = format!(
                "--image-gc-low-threshold {low_percent} is above --image-gc-high-threshold {high_percent}"
            );
            return Err(UsedWrongly(text));
        }
        let min_age = self.minimum_image_ttl_duration.map_or(Duration::from_secs(120), Time::duration);
        Ok(Policy::Thresholds { high_percent, low_percent, min_age })
    }
}

/// How soon the pods of a silent replica are replaced, and how long certificates are good. The names are those of
/// kube-controller-manager and kube-apiserver.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TimeArgs {
    /// Time without a lease after which a replica counts as lost, such as 40s [default: 40s].
    #[arg(long, value_name = "TIME")]
    pub(crate) node_monitor_grace_period: Option<Time>,
    /// How long pods stay on a replica that is not ready, where they do not say it themselves [default: 300].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) default_not_ready_toleration_seconds: Option<u32>,
    /// How long pods stay on a replica that is lost, where they do not say it themselves [default: 300].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) default_unreachable_toleration_seconds: Option<u32>,
    /// How long the certificates are good that replicas and the primary renew by themselves [default: 8760h].
    #[arg(long, value_name = "TIME")]
    #[serde(default)]
    pub(crate) cluster_signing_duration: Option<Time>,
}

impl TimeArgs {
    pub(crate) fn lease(&self) -> Duration {
        self.node_monitor_grace_period
            .map_or(pith_controllers::Options::default().lease_grace, Time::duration)
    }

    pub(crate) fn certificate_lifetime(&self) -> Duration {
        self.cluster_signing_duration.map_or(CLIENT_LIFETIME, Time::duration)
    }

    pub(crate) fn tolerations(&self) -> Tolerations {
        let Tolerations { not_ready_s, unreachable_s } = Tolerations::default();
        Tolerations {
            not_ready_s: self.default_not_ready_toleration_seconds.unwrap_or(not_ready_s),
            unreachable_s: self.default_unreachable_toleration_seconds.unwrap_or(unreachable_s),
        }
    }
}

/// How much the proxy's maps hold. Maps that are there keep their size.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LimitArgs {
    /// Most addresses × ports at which Services answer [default: 65536].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_frontends: Option<u32>,
    /// Most ports of Services, each counted once for every policy that differs [default: 65536].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_services: Option<u32>,
    /// Most endpoints of all Services together [default: 262144].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_backends: Option<u32>,
    /// Most clients that Services with affinity remember; the oldest are forgotten first [default: 4096].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_affinity: Option<u32>,
    /// Most flows that packets have at one time [default: 65536].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_flows: Option<u32>,
    /// Most ranges of sources that Services name [default: 16384].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_sources: Option<u32>,
    /// Most backends that packets name by connection IDs of QUIC [default: 16384].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_servers: Option<u32>,
    /// Most IPv6 addresses that Services and their endpoints have [default: 65536].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) limit_addresses: Option<u32>,
}

impl LimitArgs {
    pub(crate) fn limits(&self) -> Limits {
        let default = Limits::DEFAULT;
        Limits {
            frontends: self.limit_frontends.unwrap_or(default.frontends),
            services: self.limit_services.unwrap_or(default.services),
            backends: self.limit_backends.unwrap_or(default.backends),
            affinity: self.limit_affinity.unwrap_or(default.affinity),
            flows: self.limit_flows.unwrap_or(default.flows),
            sources: self.limit_sources.unwrap_or(default.sources),
            servers: self.limit_servers.unwrap_or(default.servers),
            addresses: self.limit_addresses.unwrap_or(default.addresses),
            ..default
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn times_table() {
        let cases = [
            ("40s", Some(40)),
            ("2m", Some(120)),
            ("1h", Some(3600)),
            ("40", None),
            ("", None),
            ("0s", None),
        ];
        for (text, expect) in cases {
            assert_eq!(text.parse::<Time>().ok(), expect.map(Time), "{text:?}");
        }
    }

    #[test]
    fn image_thresholds_table() {
        let policy = |high, low| {
            let args = ReplicaImageArgs {
                image_gc_high_threshold: high,
                image_gc_low_threshold: low,
                ..ReplicaImageArgs::default()
            };
            match args.policy() {
                Ok(Policy::Thresholds { high_percent, low_percent, .. }) => Some((high_percent, low_percent)),
                _ => None,
            }
        };
        for (high, low, expect) in [
            (None, None, Some((85, 80))),
            (Some(90), None, Some((90, 80))),
            (Some(50), None, Some((50, 50))),
            (None, Some(95), Some((95, 95))),
            (Some(70), Some(60), Some((70, 60))),
            (Some(60), Some(70), None),
        ] {
            assert_eq!(policy(high, low), expect, "{high:?} {low:?}");
        }
    }

    fn parse(command: &str, flags: &[String]) -> Command {
        let words = ["pith", command].into_iter().chain(flags.iter().map(String::as_str));
        Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{command} {flags:?}: {error}")).command
    }

    /// What two `up`s are given is kept, and reaches the processes by their own flags.
    #[test]
    fn what_is_given_is_kept_and_handed_on() {
        let up =
            |flags: &[&str]| match parse("up", &flags.iter().map(ToString::to_string).collect::<Vec<_>>()) {
                Command::Up(args) => args,
                _ => panic!("up is up"),
            };
        let first = up(&[
            "--node-monitor-grace-period=1m",
            "--default-not-ready-toleration-seconds=5",
            "--image-gc-high-threshold=9",
            "--minimum-image-ttl-duration=60s",
            "--snapshotter=native",
            "--hosts-dir=/d",
            "--limit-backends=64",
            "--limit-flows=9",
        ]);
        let second = up(&["--node-monitor-grace-period=9s", "--limit-flows=10"]);

        let times = second.times.or(&first.times);
        let mut flags: Vec<String> = times.flags().collect();
        flags.sort();
        assert_eq!(flags, ["--default-not-ready-toleration-seconds=5", "--node-monitor-grace-period=9s"]);
        assert!(matches!(parse("primary", &flags), Command::Primary(args) if args.times == times));
        assert_eq!(times.lease(), Duration::from_secs(9));
        assert_eq!(TimeArgs::default().lease(), Duration::from_secs(40));

        let (images, limits) = (second.images.or(&first.images), second.limits.or(&first.limits));
        let mut flags: Vec<String> = images.flags().chain(limits.flags()).collect();
        flags.sort();
        let expect = [
            "--hosts-dir=/d",
            "--image-gc-high-threshold=9",
            "--limit-backends=64",
            "--limit-flows=10",
            "--minimum-image-ttl-duration=60s",
            "--snapshotter=native",
        ];
        assert_eq!(flags, expect);
        let Command::Replica(replica) = parse("replica", &flags) else { panic!("replica is replica") };
        assert_eq!((replica.images, replica.limits), (images, limits));
        assert_eq!(limits.limits(), Limits { backends: 64, flows: 10, ..Limits::DEFAULT });
    }

    #[test]
    fn what_earlier_versions_kept_is_read() {
        let kept: TimeArgs = serde_json::from_str(
            r#"{"node_monitor_grace_period": 60, "default_not_ready_toleration_seconds": null,
                "default_unreachable_toleration_seconds": 7}"#,
        )
        .expect("JSON");
        assert_eq!(kept.lease(), Duration::from_secs(60));
        assert_eq!(kept.default_unreachable_toleration_seconds, Some(7));
    }
}
