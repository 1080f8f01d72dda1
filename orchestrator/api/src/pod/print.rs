//! A pod's row: above all the one word that says how it is.

use serde_json::{Value, json};

use crate::{
    object::{has, list, text},
    print::{self, AGE, Column, NAME, Now},
    time,
};

pub(crate) const COLUMNS: &[Column] = &[
    NAME,
    Column::text("Ready"),
    Column::text("Status"),
    Column::text("Restarts"),
    AGE,
    Column::wide("IP"),
    Column::wide("Node"),
    Column::wide("Nominated Node"),
    Column::wide("Readiness Gates"),
];

pub(crate) fn row(pod: &Value, now: Now) -> Vec<Value> {
    let summary = summary(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts > 0 => {
            let ago = print::duration::human(now.as_second() - at.as_second());
            format!("{} ({ago} ago)", summary.restarts)
        }
        _ => summary.restarts.to_string(),
    };
    let ip = match list(&pod["status"]["podIPs"]).first() {
        Some(first) => &first["ip"],
        None => &pod["status"]["podIP"],
    };
    vec![
        print::name(pod),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.word),
        json!(restarts),
        print::age(pod, now),
        print::text_or(ip, "<none>"),
        print::text_or(&pod["spec"]["nodeName"], "<none>"),
        print::text_or(&pod["status"]["nominatedNodeName"], "<none>"),
        json!(readiness_gates(pod)),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(&pod["spec"]["readinessGates"]);
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let met = gates.iter().filter(|g| condition(pod, text(&g["conditionType"])) == "True").count();
    format!("{met}/{}", gates.len())
}

/// The status of one of the pod's conditions.
fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    list(&pod["status"]["conditions"]).iter().find(|c| c["type"] == kind).map_or("", |c| text(&c["status"]))
}

/// What a pod's row is made of.
#[derive(Debug, Default)]
struct Summary {
    ready: usize,
    total: usize,
    word: String,
    restarts: i64,
    last_restart: Option<Now>,
}

impl Summary {
    fn count_restarts(&mut self, container: &Value) {
        self.restarts += container["restartCount"].as_i64().unwrap_or(0);
        let finished = time::parse(text(&container["lastState"]["terminated"]["finishedAt"])).ok();
        self.last_restart = self.last_restart.max(finished);
    }
}

fn summary(pod: &Value) -> Summary {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let sidecars = list(&spec["initContainers"]).iter().filter(|c| c["restartPolicy"] == "Always").count();
    let mut summary = Summary { total: list(&spec["containers"]).len() + sidecars, ..Summary::default() };
    summary.word = match text(&status["reason"]) {
        "" => text(&status["phase"]).to_owned(),
        reason => reason.to_owned(),
    };
    let gated = list(&status["conditions"])
        .iter()
        .any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
    if gated {
        summary.word = "SchedulingGated".to_owned();
    }
    let (initializing, sidecar_restarts) = init_word(pod, &mut summary);
    if !initializing || condition(pod, "Initialized") == "True" {
        (summary.restarts, summary.last_restart) = sidecar_restarts;
        container_word(pod, &mut summary);
    }
    if has(&pod["metadata"], "deletionTimestamp") {
        if status["reason"] == "NodeLost" {
            summary.word = "Unknown".to_owned();
        } else if !matches!(text(&status["phase"]), "Succeeded" | "Failed") {
            summary.word = "Terminating".to_owned();
        }
    }
    summary
}

/// Looks for the first init container that is not through; returns whether there is one, and the restarts of
/// sidecars, which count also when the pod is up.
fn init_word(pod: &Value, summary: &mut Summary) -> (bool, (i64, Option<Now>)) {
    let containers = list(&pod["spec"]["initContainers"]);
    let mut sidecars = Summary::default();
    for (i, one) in list(&pod["status"]["initContainerStatuses"]).iter().enumerate() {
        let sidecar = containers.iter().any(|c| c["name"] == one["name"] && c["restartPolicy"] == "Always");
        summary.count_restarts(one);
        if sidecar {
            sidecars.count_restarts(one);
        }
        let state = &one["state"];
        if let Some(ended) = state.get("terminated") {
            if ended["exitCode"].as_i64().unwrap_or(0) == 0 {
                continue;
            }
            summary.word = format!("Init:{}", ended_word(ended));
        } else if sidecar && one["started"] == true {
            summary.ready += usize::from(one["ready"] == true);
            continue;
        } else {
            summary.word = match text(&state["waiting"]["reason"]) {
                "" | "PodInitializing" => format!("Init:{i}/{}", containers.len()),
                reason => format!("Init:{reason}"),
            };
        }
        return (true, (sidecars.restarts, sidecars.last_restart));
    }
    (false, (sidecars.restarts, sidecars.last_restart))
}

fn container_word(pod: &Value, summary: &mut Summary) {
    let mut running = false;
    for one in list(&pod["status"]["containerStatuses"]).iter().rev() {
        summary.count_restarts(one);
        let state = &one["state"];
        let waiting = text(&state["waiting"]["reason"]);
        if !waiting.is_empty() {
            summary.word = waiting.to_owned();
        } else if let Some(ended) = state.get("terminated") {
            summary.word = ended_word(ended);
        } else if one["ready"] == true && has(state, "running") {
            running = true;
            summary.ready += 1;
        }
    }
    // One container is through, another still runs: the pod is running.
    if summary.word == "Completed" && running {
        summary.word = if condition(pod, "Ready") == "True" { "Running" } else { "NotReady" }.to_owned();
    }
}

fn ended_word(ended: &Value) -> String {
    match (text(&ended["reason"]), ended["signal"].as_i64().unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", ended["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(pod: &Value) -> (String, String, String) {
        let now = time::parse("2026-01-01T01:00:00Z").expect("now");
        let row = row(pod, now);
        let cell = |i: usize| text(&row[i]).to_owned();
        (cell(1), cell(2), cell(3))
    }

    #[test]
    fn one_word_says_how_a_pod_is() {
        let spec = json!({"containers": [{"name": "a"}]});
        let one = |state: Value| json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": true, "state": state}]});
        let init = |state: Value| json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": state}]});
        let with_init = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]});
        for (spec, status, ready, word) in [
            (&spec, json!({"phase": "Pending"}), "0/1", "Pending"),
            (&spec, one(json!({"running": {}})), "1/1", "Running"),
            (&spec, one(json!({"waiting": {"reason": "ContainerCreating"}})), "0/1", "ContainerCreating"),
            (&spec, one(json!({"waiting": {"reason": "CrashLoopBackOff"}})), "0/1", "CrashLoopBackOff"),
            (&spec, one(json!({"terminated": {"reason": "Completed", "exitCode": 0}})), "0/1", "Completed"),
            (&spec, one(json!({"terminated": {"reason": "OOMKilled", "exitCode": 137}})), "0/1", "OOMKilled"),
            (&spec, one(json!({"terminated": {"exitCode": 3}})), "0/1", "ExitCode:3"),
            (&spec, one(json!({"terminated": {"signal": 9, "exitCode": 137}})), "0/1", "Signal:9"),
            (&spec, json!({"phase": "Failed", "reason": "Evicted"}), "0/1", "Evicted"),
            (&with_init, init(json!({"running": {}})), "0/1", "Init:0/1"),
            (&with_init, init(json!({"waiting": {"reason": "ErrImagePull"}})), "0/1", "Init:ErrImagePull"),
            (&with_init, init(json!({"waiting": {"reason": "PodInitializing"}})), "0/1", "Init:0/1"),
            (
                &with_init,
                init(json!({"terminated": {"exitCode": 1, "reason": "Error"}})),
                "0/1",
                "Init:Error",
            ),
        ] {
            let pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
            let (got_ready, got_word, _) = cells(&pod);
            assert_eq!((got_ready.as_str(), got_word.as_str()), (ready, word), "{status}");
            let mut going = pod.clone();
            going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            let expected = if status["phase"] == "Failed" { word } else { "Terminating" };
            assert_eq!(cells(&going).1, expected, "{status}");
        }
    }

    #[test]
    fn restarts_say_when_the_last_one_was() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "status": {"containerStatuses": [
            {"name": "a", "restartCount": 2, "state": {"running": {}}, "ready": true,
             "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}},
            {"name": "b", "restartCount": 1, "state": {"running": {}}},
        ]}});
        assert_eq!(cells(&pod), ("1/2".into(), String::new(), "3 (5m ago)".into()));
    }
}
