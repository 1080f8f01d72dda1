//! Address families of Services: which a Service has, in which order, and how that may change.
//!
//! Three fields of a Service speak of it (`ipFamilyPolicy`, `ipFamilies`, `clusterIPs`), and the oldest of all
//! (`clusterIP`) repeats the first of the last. Clients may write any of them. [`normalise`] makes the old field
//! and the new one agree, [`settle`] fills in what follows from the rest and from the families that the cluster
//! has, and what contradicts itself is named by [`validate`] and [`validate_change`]. All in upstream's order and
//! words (pkg/registry/core/service/storage/alloc.go, pkg/apis/core/validation).

use std::{fmt, net::IpAddr};

use serde_json::{Value, json};

use super::{has_cluster_ip, is_headless};
use crate::{
    field::{FieldError, Path},
    object::{child, has, list, remove, text},
    pod::validate::{ip, maybe_one_of},
};

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

/// What an address is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As `ipFamilies` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|family| family.name() == name)
    }

    fn of_text(text: &str) -> Option<Self> {
        text.parse().ok().map(Self::of)
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What settling a Service's families came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Settled {
    Done,
    /// What the client wrote contradicts itself; validation says where.
    Unsound,
}

/// Clients write the singular field, both, or neither; one that repeats the old singular or plural field while
/// it changes the other means the change.
pub(super) fn normalise(new: &mut Value, old: Option<&Value>) {
    let address = text(&new["spec"]["clusterIP"]).to_owned();
    let absent = list(&new["spec"]["clusterIPs"]).is_empty();
    let Some(old) = old else {
        if !address.is_empty() && absent {
            new["spec"]["clusterIPs"] = json!([address]);
        }
        return;
    };
    let before = text(&old["spec"]["clusterIP"]);
    if absent && address == before && !list(&old["spec"]["clusterIPs"]).is_empty() {
        new["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
    }
    if address != before && same(new, old, "clusterIPs") {
        if address.is_empty() {
            remove(child(new, "spec"), "clusterIPs");
        } else {
            new["spec"]["clusterIPs"] = json!([address]);
        }
    }
    // What was allocated and is not repeated stays (upstream: `patchAllocatedValues`).
    if has_cluster_ip(new) && has_cluster_ip(old) && !before.is_empty() {
        let spec = child(new, "spec");
        if text(&spec["clusterIP"]).is_empty() {
            spec["clusterIP"] = before.into();
        }
        if list(&spec["clusterIPs"]).is_empty() && spec["clusterIP"] == *before {
            spec["clusterIPs"] = old["spec"]["clusterIPs"].clone();
        }
    }
}

fn same(new: &Value, old: &Value, field: &str) -> bool {
    list(&new["spec"][field]) == list(&old["spec"][field])
}

/// Fills in policy and families of a Service that needs addresses; `cluster` are the families that have a range,
/// the default first. `old` is what a change started from.
pub fn settle(new: &mut Value, old: Option<&Value>, cluster: &[Family]) -> Result<Settled, Vec<FieldError>> {
    if new["spec"]["type"] == "ExternalName" {
        return Ok(Settled::Done);
    }
    let mut errors = Vec::new();
    validate(&new["spec"], &mut errors);
    if let Some(old) = old {
        validate_change(new, old, &mut errors);
    }
    if !errors.is_empty() {
        return Ok(Settled::Unsound);
    }
    // A Service that prefers two families gains or loses none because its cluster did.
    if old.is_some_and(|old| keeps_preferring(new, old)) {
        return Ok(Settled::Done);
    }
    let policy = policy(new, old);
    new["spec"]["ipFamilyPolicy"] = policy.as_str().into();
    if let Some(old) = old {
        release(new, old, &policy, &mut errors);
    }
    check_single(&new["spec"], &policy, &mut errors);
    infer(new, cluster, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    choose(new, &policy, cluster)?;
    Ok(Settled::Done)
}

fn keeps_preferring(new: &Value, old: &Value) -> bool {
    [new, old].iter().all(|service| service["spec"]["ipFamilyPolicy"] == PREFER)
        && same(new, old, "clusterIPs")
        && same(new, old, "ipFamilies")
}

fn is_selectorless(service: &Value) -> bool {
    service["spec"]["selector"].as_object().is_none_or(serde_json::Map::is_empty)
}

/// There is no default that is the same for all: a change that does not say stays with what was, and whose
/// endpoints nobody selects may have those of any family.
fn policy(new: &Value, old: Option<&Value>) -> String {
    let said = text(&new["spec"]["ipFamilyPolicy"]);
    let before = old.map_or("", |old| text(&old["spec"]["ipFamilyPolicy"]));
    let default = if is_headless(new) && is_selectorless(new) { REQUIRE } else { SINGLE };
    [said, before, default].into_iter().find(|policy| !policy.is_empty()).unwrap_or(default).to_owned()
}

/// Lets the second address go where that was asked for, and refuses where it only seems so.
fn release(new: &mut Value, old: &Value, policy: &str, errors: &mut Vec<FieldError>) {
    for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        if policy == SINGLE {
            if same(new, old, field)
                && let Some(values) = new["spec"][field].as_array_mut()
            {
                values.truncate(1);
            }
        } else if list(&old["spec"][field]).len() == 2 && list(&new["spec"][field]).len() == 1 {
            let detail = format!("must be 'SingleStack' to release the secondary {what}");
            errors.push(FieldError::invalid("spec.ipFamilyPolicy", &json!(policy), &detail));
        }
    }
}

fn check_single(spec: &Value, policy: &str, errors: &mut Vec<FieldError>) {
    for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        if policy == SINGLE && list(&spec[field]).len() == 2 {
            let detail =
                format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
            errors.push(FieldError::invalid("spec.ipFamilyPolicy", &json!(policy), &detail));
        }
    }
}

/// Families that follow from addresses which the client chose.
fn infer(new: &mut Value, cluster: &[Family], errors: &mut Vec<FieldError>) {
    let spec = child(new, "spec");
    let addresses = spec["clusterIPs"].clone();
    let mut families = list(&spec["ipFamilies"]).to_vec();
    for (i, address) in list(&addresses).iter().enumerate().skip(families.len()) {
        let Some(family) = Family::of_text(text(address)) else { break };
        if cluster.contains(&family) {
            families.push(family.name().into());
        } else {
            let place = Path::new("spec");
            let place = place.child("clusterIPs");
            let detail = format!("{family} is not configured on this cluster");
            errors.push(FieldError::invalid(place.index(i), &addresses, &detail));
        }
    }
    if !families.is_empty() {
        spec["ipFamilies"] = families.into();
    }
}

/// The families, once everything that was said is consistent.
fn choose(new: &mut Value, policy: &str, cluster: &[Family]) -> Result<(), Vec<FieldError>> {
    let anybodys = is_headless(new) && is_selectorless(new);
    let spec = child(new, "spec");
    let mut errors = Vec::new();
    // The endpoints of a headless Service without selector are not the cluster's to give addresses to.
    if !anybodys {
        if policy == REQUIRE && cluster.len() < 2 {
            let detail = "this cluster is not configured for dual-stack services";
            errors.push(FieldError::invalid("spec.ipFamilyPolicy", &json!(policy), detail));
        }
        for (i, family) in list(&spec["ipFamilies"]).iter().enumerate() {
            if !Family::from_name(text(family)).is_some_and(|family| cluster.contains(&family)) {
                let place = format!("spec.ipFamilies[{i}]");
                errors.push(FieldError::invalid(place, family, "not configured on this cluster"));
            }
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let named = list(&spec["ipFamilies"]).iter().filter_map(|family| Family::from_name(text(family)));
    let mut families: Vec<Family> = named.collect();
    if families.is_empty() {
        families.extend(cluster.first());
    }
    if let [only] = families[..]
        && policy != SINGLE
        && (anybodys || cluster.len() == 2)
    {
        families.push(only.other());
    }
    spec["ipFamilies"] = families.into_iter().map(Family::name).collect();
    Ok(())
}

/// Whether the fields agree with each other.
pub(super) fn validate(spec: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    let place = path.child("clusterIPs");
    let (all, first) = (list(&spec["clusterIPs"]), text(&spec["clusterIP"]));
    match all.first() {
        None if !first.is_empty() => errors.push(FieldError::required(place, "")),
        Some(_) if first.is_empty() => {
            let detail = "must be empty when `clusterIP` is not specified";
            errors.push(FieldError::invalid(place, &spec["clusterIPs"], detail));
        }
        Some(address) if address != first => {
            errors.push(FieldError::invalid(
                place,
                &spec["clusterIPs"],
                "first value must match `clusterIP`",
            ));
        }
        _ => {}
    }
    let families = list(&spec["ipFamilies"]);
    for (i, family) in families.iter().enumerate() {
        let place = path.child("ipFamilies");
        maybe_one_of(family, &["IPv4", "IPv6"], &place.index(i), errors);
        if families[..i].contains(family) {
            errors.push(FieldError::duplicate(place.index(i), family));
        }
    }
    let policies = &[PREFER, REQUIRE, SINGLE];
    maybe_one_of(&spec["ipFamilyPolicy"], policies, &path.child("ipFamilyPolicy"), errors);
    let before = errors.len();
    for (i, address) in all.iter().enumerate() {
        match (i, address == "None") {
            (0, true) if all.len() > 1 => {
                let detail = "'None' must be the first and only value";
                errors.push(FieldError::invalid(place, &spec["clusterIPs"], detail));
            }
            (0, true) => {}
            _ => ip(address, &place.index(i), errors),
        }
    }
    if all.len() > 2 {
        errors.push(FieldError::invalid(place, &spec["clusterIPs"], "may only hold up to 2 values"));
    }
    if errors.len() == before {
        pairs(spec, &place, errors);
    }
}

/// Addresses, all valid, against each other and against the families.
fn pairs(spec: &Value, place: &Path<'_>, errors: &mut Vec<FieldError>) {
    let all = list(&spec["clusterIPs"]);
    let family = |address: &Value| Family::of_text(text(address));
    if let [first, second] = all
        && family(first) == family(second)
    {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(place, &spec["clusterIPs"], detail));
    }
    for (i, (address, named)) in all.iter().zip(list(&spec["ipFamilies"])).enumerate() {
        if let (Some(found), Some(named)) = (family(address), Family::from_name(text(named)))
            && found != named
        {
            let detail = format!("expected an {named} value as indicated by `ipFamilies[{i}]`");
            errors.push(FieldError::invalid(place.index(i), address, &detail));
        }
    }
}

/// The first address and family are for life, the second comes and goes as the policy says.
pub(super) fn validate_change(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if !has_cluster_ip(new) || !has_cluster_ip(old) {
        return;
    }
    match (is_headless(new), is_headless(old)) {
        (true, true) => {}
        (false, false) => {
            may_change(new, old, "clusterIPs", "clusterIP", errors);
            may_change(new, old, "ipFamilies", "ipFamily", errors);
        }
        _ => may_change(new, old, "clusterIPs", "clusterIP", errors),
    }
}

fn may_change(new: &Value, old: &Value, field: &str, one: &str, errors: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    let place = path.child(field);
    let (now, before) = (list(&new["spec"][field]), list(&old["spec"][field]));
    let mut complain = |i: usize, detail: &str| {
        errors.push(FieldError::invalid(place.index(i), &new["spec"][field], detail))
    };
    if now.len() == before.len() {
        for i in (0..now.len()).filter(|i| now[*i] != before[*i]) {
            complain(i, "may not change once set");
        }
        return;
    }
    if now.is_empty() && list(&new["spec"]["clusterIPs"]).is_empty() {
        complain(0, &format!("primary {one} can not be unset"));
    }
    if let (Some(now), Some(before)) = (now.first(), before.first())
        && now != before
    {
        complain(0, "may not change once set");
    }
    if now.len() == 1 && before.len() == 2 && new["spec"]["ipFamilyPolicy"] != SINGLE {
        complain(
            1,
            &format!("`ipFamilyPolicy` must be set to 'SingleStack' when releasing the secondary {one}"),
        );
    }
}

/// A name has no addresses, hence no families.
pub(super) fn validate_absent(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let detail = "may not be set for ExternalName services";
    if !text(&spec["clusterIP"]).is_empty() || !list(&spec["clusterIPs"]).is_empty() {
        errors.push(FieldError::forbidden(path.child("clusterIPs"), detail));
    }
    if !list(&spec["ipFamilies"]).is_empty() {
        errors.push(FieldError::forbidden(path.child("ipFamilies"), detail));
    }
    if has(spec, "ipFamilyPolicy") {
        errors.push(FieldError::forbidden(path.child("ipFamilyPolicy"), detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &[Family] = &[Family::V4];
    const V4_V6: &[Family] = &[Family::V4, Family::V6];
    const V6_V4: &[Family] = &[Family::V6, Family::V4];

    fn service(spec: &Value) -> Value {
        let mut service = json!({"metadata": {"name": "web"}, "spec": {"type": "ClusterIP"}});
        for (field, value) in spec.as_object().expect("a table of objects") {
            service["spec"][field] = value.clone();
        }
        service
    }

    fn families(service: &Value) -> String {
        let families: Vec<_> = list(&service["spec"]["ipFamilies"]).iter().map(text).collect();
        format!("{} {}", text(&service["spec"]["ipFamilyPolicy"]), families.join(","))
    }

    /// What settling, or else validation, comes to.
    fn outcome(new: &mut Value, old: Option<&Value>, cluster: &[Family]) -> String {
        let mut errors = Vec::new();
        match settle(new, old, cluster) {
            Ok(Settled::Done) => return families(new),
            Err(refused) => errors = refused,
            Ok(Settled::Unsound) => {
                validate(&new["spec"], &mut errors);
                if let Some(old) = old {
                    validate_change(new, old, &mut errors);
                }
                assert!(!errors.is_empty(), "unsound, and validation says nothing");
            }
        }
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn new_services() {
        let all = json!({"a": "b"});
        for (name, cluster, spec, expect) in [
            ("nothing said", V4, json!({}), "SingleStack IPv4"),
            ("nothing said, two families", V4_V6, json!({}), "SingleStack IPv4"),
            ("nothing said, IPv6 first", V6_V4, json!({}), "SingleStack IPv6"),
            ("preferred, one family", V4, json!({"ipFamilyPolicy": PREFER}), "PreferDualStack IPv4"),
            ("preferred", V4_V6, json!({"ipFamilyPolicy": PREFER}), "PreferDualStack IPv4,IPv6"),
            ("required, IPv6 first", V6_V4, json!({"ipFamilyPolicy": REQUIRE}), "RequireDualStack IPv6,IPv4"),
            (
                "required, one family",
                V4,
                json!({"ipFamilyPolicy": REQUIRE}),
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
            (
                "order is the client's",
                V4_V6,
                json!({"ipFamilyPolicy": PREFER, "ipFamilies": ["IPv6"]}),
                "PreferDualStack IPv6,IPv4",
            ),
            ("one family", V4_V6, json!({"ipFamilies": ["IPv6"]}), "SingleStack IPv6"),
            (
                "a family that the cluster lacks",
                V4,
                json!({"ipFamilies": ["IPv6"]}),
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
            ),
            (
                "two families and no policy",
                V4_V6,
                json!({"ipFamilies": ["IPv6", "IPv4"]}),
                "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
            ),
            (
                "an address says the family",
                V4_V6,
                json!({"clusterIP": "fd00::5", "clusterIPs": ["fd00::5"]}),
                "SingleStack IPv6",
            ),
            (
                "an address of a family that the cluster lacks",
                V4,
                json!({"clusterIP": "fd00::5", "clusterIPs": ["fd00::5"]}),
                "spec.clusterIPs[0]: Invalid value: [\"fd00::5\"]: IPv6 is not configured on this cluster",
            ),
            (
                "two addresses",
                V4_V6,
                json!({"ipFamilyPolicy": PREFER, "clusterIP": "fd00::5", "clusterIPs": ["fd00::5", "10.0.0.5"]}),
                "PreferDualStack IPv6,IPv4",
            ),
            (
                "two addresses of one family",
                V4_V6,
                json!({"ipFamilyPolicy": PREFER, "clusterIP": "10.0.0.4", "clusterIPs": ["10.0.0.4", "10.0.0.5"]}),
                "spec.clusterIPs: Invalid value: [\"10.0.0.4\",\"10.0.0.5\"]: may specify no more than one IP for each IP family",
            ),
            (
                "an address of another family than named",
                V4_V6,
                json!({"ipFamilies": ["IPv6"], "clusterIP": "10.0.0.4", "clusterIPs": ["10.0.0.4"]}),
                "spec.clusterIPs[0]: Invalid value: \"10.0.0.4\": expected an IPv6 value as indicated by `ipFamilies[0]`",
            ),
            (
                "a family twice",
                V4_V6,
                json!({"ipFamilyPolicy": PREFER, "ipFamilies": ["IPv4", "IPv4"]}),
                "spec.ipFamilies[1]: Duplicate value: \"IPv4\"",
            ),
            (
                "an unknown policy",
                V4_V6,
                json!({"ipFamilyPolicy": "Both"}),
                "spec.ipFamilyPolicy: Unsupported value: \"Both\": supported values: \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"",
            ),
            (
                "the plural alone",
                V4,
                json!({"clusterIPs": ["10.0.0.4"]}),
                "spec.clusterIPs: Invalid value: [\"10.0.0.4\"]: must be empty when `clusterIP` is not specified",
            ),
            (
                "none and some",
                V4,
                json!({"clusterIP": "None", "clusterIPs": ["None", "10.0.0.4"]}),
                "spec.clusterIPs: Invalid value: [\"None\",\"10.0.0.4\"]: 'None' must be the first and only value",
            ),
            (
                "headless, selecting",
                V4_V6,
                json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": all}),
                "SingleStack IPv4",
            ),
            (
                "headless, of whoever says so",
                V4,
                json!({"clusterIP": "None", "clusterIPs": ["None"]}),
                "RequireDualStack IPv4,IPv6",
            ),
            ("a name", V4, json!({"type": "ExternalName"}), " "),
        ] {
            assert_eq!(outcome(&mut service(&spec), None, cluster), expect, "{name}");
        }
    }

    #[test]
    fn changed_services() {
        let one = json!({"ipFamilyPolicy": SINGLE, "ipFamilies": ["IPv4"], "clusterIP": "10.0.0.4", "clusterIPs": ["10.0.0.4"]});
        let two = json!({"ipFamilyPolicy": PREFER, "ipFamilies": ["IPv4", "IPv6"], "clusterIP": "10.0.0.4", "clusterIPs": ["10.0.0.4", "fd00::4"]});
        for (name, cluster, old, change, expect, addresses) in [
            ("nothing", V4, &one, json!({}), "SingleStack IPv4", "10.0.0.4"),
            ("a cluster that grew", V4_V6, &one, json!({}), "SingleStack IPv4", "10.0.0.4"),
            (
                "upgrade",
                V4_V6,
                &one,
                json!({"ipFamilyPolicy": REQUIRE}),
                "RequireDualStack IPv4,IPv6",
                "10.0.0.4",
            ),
            (
                "upgrade to a chosen address",
                V4_V6,
                &one,
                json!({"ipFamilyPolicy": PREFER, "clusterIPs": ["10.0.0.4", "fd00::9"]}),
                "PreferDualStack IPv4,IPv6",
                "10.0.0.4,fd00::9",
            ),
            (
                "upgrade where there is one family",
                V4,
                &one,
                json!({"ipFamilyPolicy": REQUIRE}),
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
                "10.0.0.4",
            ),
            ("downgrade", V4_V6, &two, json!({"ipFamilyPolicy": SINGLE}), "SingleStack IPv4", "10.0.0.4"),
            ("a cluster that shrank", V4, &two, json!({}), "PreferDualStack IPv4,IPv6", "10.0.0.4,fd00::4"),
            (
                "an old client says what it knows",
                V4_V6,
                &two,
                json!({"clusterIPs": null, "ipFamilies": null, "ipFamilyPolicy": null}),
                "PreferDualStack IPv4,IPv6",
                "10.0.0.4,fd00::4",
            ),
            (
                "release without a word",
                V4_V6,
                &two,
                json!({"clusterIPs": ["10.0.0.4"], "ipFamilies": null}),
                "spec.clusterIPs[1]: Invalid value: [\"10.0.0.4\"]: `ipFamilyPolicy` must be set to 'SingleStack' when releasing the secondary clusterIP",
                "10.0.0.4",
            ),
            (
                "another first address",
                V4_V6,
                &two,
                json!({"clusterIP": "10.0.0.9"}),
                "spec.clusterIPs[0]: Invalid value: [\"10.0.0.9\"]: may not change once set; spec.clusterIPs[1]: Invalid value: [\"10.0.0.9\"]: `ipFamilyPolicy` must be set to 'SingleStack' when releasing the secondary clusterIP",
                "10.0.0.9",
            ),
            (
                "families in another order",
                V4_V6,
                &two,
                json!({"ipFamilies": ["IPv6", "IPv4"], "clusterIPs": ["10.0.0.4"], "ipFamilyPolicy": SINGLE}),
                "spec.clusterIPs[0]: Invalid value: \"10.0.0.4\": expected an IPv6 value as indicated by `ipFamilies[0]`; spec.ipFamilies[0]: Invalid value: [\"IPv6\",\"IPv4\"]: may not change once set; spec.ipFamilies[1]: Invalid value: [\"IPv6\",\"IPv4\"]: may not change once set",
                "10.0.0.4",
            ),
        ] {
            let old = service(old);
            let mut new = old.clone();
            for (field, value) in change.as_object().expect("a table of objects") {
                new["spec"][field] = value.clone();
            }
            normalise(&mut new, Some(&old));
            assert_eq!(outcome(&mut new, Some(&old), cluster), expect, "{name}");
            let left: Vec<_> = list(&new["spec"]["clusterIPs"]).iter().map(text).collect();
            assert_eq!(left.join(","), addresses, "{name}");
        }
    }
}
