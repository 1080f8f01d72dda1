//! Tables of phases, reasons and conditions.

use serde_json::{Value, json};

use std::sync::Arc;

use super::*;
use crate::{
    desired::{Fate, fixture::desired},
    observed::{ContainerId, Running, Trouble, TroubleKind},
};

fn at(s: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + s).expect("in range")
}

fn exit(code: i32) -> Exit {
    Exit {
        id: Some(ContainerId("dead".into())),
        code,
        signal: None,
        reason: if code == 0 { ExitReason::Completed } else { ExitReason::Error },
        message: String::new(),
        started_at: Some(at(1)),
        finished_at: at(2),
        announced: false,
    }
}

fn set(o: &mut Observed, name: &str, phase: &str) {
    let c = o.containers.entry(name.to_owned()).or_default();
    c.phase = match phase {
        "waiting" => Phase::Waiting(None),
        "starting" => Phase::Starting,
        "ok" => Phase::Exited(exit(0)),
        "bad" => Phase::Exited(exit(1)),
        "pull" => Phase::Waiting(Some(Trouble {
            kind: TroubleKind::ErrImagePull,
            message: "no".into(),
            since: at(0),
            retry_at: at(10),
        })),
        "crash" => {
            c.backoff.retried(at(0), at(0));
            Phase::Exited(Exit { announced: true, ..exit(1) })
        }
        _ => Phase::Running(Running { id: ContainerId("live".into()), started_at: at(1), stop: None }),
    };
    c.started = phase == "run" || phase == "unready";
    c.once_started = c.started;
    c.ready = phase == "run";
}

fn run(spec: Value, phases: &[(&str, &str)], fate: Fate) -> (Desired, PodStatus) {
    let mut d = desired(spec);
    d.fate = fate;
    let mut o = Observed::new(d.units.iter().map(|u| u.name.clone()));
    o.sandbox = Sandbox::Ready { addresses: vec![[10, 1, 0, 5].into()] };
    for (name, phase) in phases {
        set(&mut o, name, phase);
    }
    if fate != Fate::Run {
        o.stopping_since = Some(at(3));
    }
    let facts = Facts { host_ips: vec![[10, 0, 0, 1].into()], now: at(5), previous: None };
    let s = status(&d, &o, &facts);
    (d, s)
}

/// `phase state-of-each-container ready?` in one line.
fn line(s: &PodStatus) -> String {
    let word = |c: &ContainerStatus| {
        let st = c.state.clone().unwrap_or_default();
        let reason = st
            .waiting
            .and_then(|w| w.reason)
            .or(st.terminated.and_then(|t| t.reason))
            .unwrap_or("Running".into());
        format!("{}={reason}", c.name)
    };
    let all = s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten());
    let words: Vec<_> = all.map(word).collect();
    let ready = s.conditions.iter().flatten().find(|c| c.type_ == "Ready").expect("always there");
    format!("{} {} ready={}", s.phase.as_deref().unwrap_or("?"), words.join(" "), ready.status)
}

#[test]
fn phases_and_reasons() {
    let plain = || json!({"containers": [{"name": "a"}]});
    let never = || json!({"restartPolicy": "Never", "containers": [{"name": "a"}]});
    let two = || json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let init = || json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let gone = Fate::Remove { grace: std::time::Duration::from_secs(30) };
    type Case = (Value, Vec<(&'static str, &'static str)>, Fate, &'static str);
    let cases: Vec<Case> = vec![
        (plain(), vec![], Fate::Run, "Pending a=ContainerCreating ready=False"),
        (plain(), vec![("a", "run")], Fate::Run, "Running a=Running ready=True"),
        (plain(), vec![("a", "unready")], Fate::Run, "Running a=Running ready=False"),
        (plain(), vec![("a", "pull")], Fate::Run, "Pending a=ErrImagePull ready=False"),
        (plain(), vec![("a", "bad")], Fate::Run, "Running a=Error ready=False"),
        (plain(), vec![("a", "crash")], Fate::Run, "Running a=CrashLoopBackOff ready=False"),
        (never(), vec![("a", "ok")], Fate::Run, "Succeeded a=Completed ready=False"),
        (never(), vec![("a", "bad")], Fate::Run, "Failed a=Error ready=False"),
        (
            two(),
            vec![("a", "run"), ("b", "starting")],
            Fate::Run,
            "Pending a=Running b=ContainerCreating ready=False",
        ),
        (init(), vec![], Fate::Run, "Pending i=ContainerCreating a=PodInitializing ready=False"),
        (init(), vec![("i", "run")], Fate::Run, "Pending i=Running a=PodInitializing ready=False"),
        (init(), vec![("i", "ok"), ("a", "run")], Fate::Run, "Running i=Completed a=Running ready=True"),
        (init(), vec![("i", "crash")], Fate::Run, "Pending i=CrashLoopBackOff a=PodInitializing ready=False"),
        (plain(), vec![("a", "run")], gone, "Running a=Running ready=True"),
        (plain(), vec![("a", "starting")], gone, "Pending a=ContainerCreating ready=False"),
        (plain(), vec![("a", "ok")], gone, "Succeeded a=Completed ready=False"),
        (plain(), vec![("a", "bad")], gone, "Failed a=Error ready=False"),
    ];
    for (spec, phases, fate, expect) in cases {
        let (_, s) = run(spec.clone(), &phases, fate);
        assert_eq!(line(&s), expect, "{spec} {phases:?}");
    }
}

#[test]
fn conditions_name_the_containers() {
    let (_, s) = run(
        json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b"}]}),
        &[("i", "run")],
        Fate::Run,
    );
    let find = |t: &str| s.conditions.iter().flatten().find(|c| c.type_ == t).cloned().expect("there");
    assert_eq!(find("Initialized").message.as_deref(), Some("containers with incomplete status: [i]"));
    assert_eq!(find("ContainersReady").message.as_deref(), Some("containers with unready status: [a b]"));
    assert_eq!(find("Ready").reason.as_deref(), Some("ContainersNotReady"));
    assert_eq!(find("PodScheduled").status, "True");
    assert_eq!(find("PodReadyToStartContainers").status, "True");
}

#[test]
fn a_condition_keeps_its_time_until_its_value_changes() {
    let (d, first) = run(json!({"containers": [{"name": "a"}]}), &[("a", "run")], Fate::Run);
    let mut o = Observed::new(["a".to_owned()]);
    o.sandbox = Sandbox::Ready { addresses: vec![] };
    set(&mut o, "a", "unready");
    let facts = Facts { host_ips: vec![[10, 0, 0, 1].into()], now: at(99), previous: Some(&first) };
    let second = status(&d, &o, &facts);
    let since = |s: &PodStatus, t: &str| {
        let found = s.conditions.iter().flatten().find(|c| c.type_ == t).cloned();
        found.and_then(|c| c.last_transition_time).expect("has a time").0
    };
    assert_eq!(since(&second, "Initialized"), at(5));
    assert_eq!(since(&second, "Ready"), at(99));
}

#[test]
fn readiness_gates_hold_a_pod_back() {
    let mut d = desired(
        json!({"readinessGates": [{"conditionType": "example.com/lb"}], "containers": [{"name": "a"}]}),
    );
    let mut o = Observed::new(["a".to_owned()]);
    o.sandbox = Sandbox::Ready { addresses: vec![] };
    set(&mut o, "a", "run");
    let facts = Facts { host_ips: vec![[10, 0, 0, 1].into()], now: at(5), previous: None };
    assert!(line(&status(&d, &o, &facts)).ends_with("ready=False"));
    let mut pod = (*d.pod).clone();
    pod.status =
        serde_json::from_value(json!({"conditions": [{"type": "example.com/lb", "status": "True"}]})).ok();
    d.pod = Arc::new(pod);
    let s = status(&d, &o, &facts);
    assert!(line(&s).ends_with("ready=True"));
    assert!(s.conditions.iter().flatten().any(|c| c.type_ == "example.com/lb"), "foreign conditions stay");
}
