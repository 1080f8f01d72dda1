//! Tables and whole lives: a pod driven through `plan` with a world that does what it is told.

use serde_json::{Value, json};

use super::*;
use crate::{
    desired::fixture::desired,
    observed::{ContainerId, Doom, Happened, News},
};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).expect("in range")
}

/// A world where every action succeeds, but containers only exit when they are told to.
struct World {
    desired: Desired,
    observed: Observed,
    now: Timestamp,
    ids: u32,
}

impl World {
    fn new(spec: Value) -> Self {
        let desired = desired(spec);
        let observed = Observed::new(desired.units.iter().map(|u| u.name.clone()));
        Self { desired, observed, now: at(0), ids: 0 }
    }

    /// Plans and carries out until nothing is left to do; the actions in words.
    fn settle(&mut self) -> Vec<String> {
        let mut said = vec![];
        for _ in 0..100 {
            let actions = plan(&self.desired, &self.observed, self.now).actions;
            if actions.is_empty() {
                return said;
            }
            for action in actions {
                self.observed.begin(&action, self.now);
                said.push(self.carry_out(action));
            }
        }
        panic!("does not settle: {said:#?}");
    }

    fn carry_out(&mut self, action: Action) -> String {
        let (text, happened) = match action {
            Action::PrepareVolumes => ("volumes".into(), Some(Happened::VolumesReady)),
            Action::CreateSandbox => ("sandbox".into(), Some(Happened::SandboxReady { addresses: vec![] })),
            Action::RemoveSandbox => ("no sandbox".into(), Some(Happened::SandboxRemoved)),
            Action::RemoveVolumes => ("no volumes".into(), Some(Happened::VolumesRemoved)),
            Action::Finalize => ("forget".into(), Some(Happened::Finalized)),
            Action::RestartInit { names } => (format!("init again {}", names.join(",")), None),
            Action::BeginStopping => ("stopping".into(), None),
            Action::End(ended) => (format!("end {}", ended.reason), None),
            Action::Announce { name, message } => (format!("announce {name}: {message}"), None),
            Action::Stop { name, grace, hook, .. } => {
                (format!("stop {name} {}s{}", grace.as_secs(), if hook { " hook" } else { "" }), None)
            }
            Action::Terminate { name } => (format!("term {name}"), None),
            Action::Kill { name } => (format!("kill {name}"), None),
            Action::Start { name, attempt } => {
                self.ids += 1;
                let id = ContainerId(format!("id{}", self.ids));
                let unit = self.desired.unit(&name).expect("planned units exist").clone();
                let news = News::Started {
                    id,
                    attempt,
                    at: self.now,
                    has_startup_probe: unit.has_startup_probe,
                    has_readiness_probe: unit.has_readiness_probe,
                };
                (format!("start {name} #{attempt}"), Some(Happened::Container { name, news }))
            }
        };
        if let Some(h) = happened {
            self.observed.apply(h, self.now);
        }
        text
    }

    fn id(&self, name: &str) -> ContainerId {
        self.observed.containers[name].running().expect("runs").id.clone()
    }

    fn exit(&mut self, name: &str, code: i32) {
        let id = self.id(name);
        let exit = Exit {
            id: Some(id.clone()),
            code,
            signal: None,
            reason: if code == 0 { ExitReason::Completed } else { ExitReason::Error },
            message: String::new(),
            started_at: Some(self.now),
            finished_at: self.now,
            announced: false,
        };
        self.news(name, News::Exited { id, exit });
    }

    fn news(&mut self, name: &str, news: News) {
        self.observed.apply(Happened::Container { name: name.into(), news }, self.now);
    }

    fn wait(&mut self, seconds: i64) {
        self.now += Duration::from_secs(seconds.unsigned_abs());
    }

    fn wake_after(&self) -> Option<i64> {
        let wake = plan(&self.desired, &self.observed, self.now).wake_at?;
        Some(wake.duration_since(self.now).as_secs())
    }

    fn delete(&mut self, grace: u64) {
        self.desired.fate = Fate::Remove { grace: Duration::from_secs(grace) };
    }
}

use crate::observed::ExitReason;

#[test]
fn a_plain_pod_starts_and_is_removed() {
    let mut w = World::new(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    assert_eq!(w.settle(), ["volumes", "sandbox", "start a #0", "start b #0"]);
    w.delete(30);
    assert_eq!(w.settle(), ["stopping", "stop a 30s", "stop b 30s"]);
    assert_eq!(w.wake_after(), Some(30));
    w.exit("a", 0);
    assert!(w.settle().is_empty());
    w.wait(30);
    assert_eq!(w.settle(), ["kill b"]);
    w.exit("b", 137);
    assert_eq!(w.settle(), ["no sandbox", "no volumes", "forget"]);
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    let mut w = World::new(json!({
        "initContainers": [{"name": "one"}, {"name": "mesh", "restartPolicy": "Always",
            "startupProbe": {"tcpSocket": {"port": 1}}}, {"name": "two"}],
        "containers": [{"name": "app"}],
    }));
    assert_eq!(w.settle(), ["volumes", "sandbox", "start one #0"]);
    w.exit("one", 1);
    assert_eq!(w.settle(), ["start one #1"], "the first restart is free");
    w.exit("one", 0);
    assert_eq!(w.settle(), ["start mesh #0"]);
    let id = w.id("mesh");
    w.news("mesh", News::ProbeStartup { id });
    assert_eq!(w.settle(), ["start two #0"]);
    w.exit("two", 0);
    assert_eq!(w.settle(), ["start app #0"]);
    w.exit("mesh", 0);
    assert_eq!(w.settle(), ["start mesh #1"], "a sidecar comes back and main containers stay");
    w.delete(30);
    assert_eq!(w.settle(), ["stopping", "stop app 30s"], "sidecars last");
    w.wait(10);
    w.exit("app", 0);
    assert_eq!(w.settle(), ["stop mesh 20s"], "within what is left of the grace");
    w.wait(20);
    assert_eq!(w.settle(), ["kill mesh"]);
    w.exit("mesh", 137);
    assert_eq!(w.settle(), ["no sandbox", "no volumes", "forget"]);
}

#[test]
fn crashes_back_off_and_say_so() {
    let mut w = World::new(json!({"containers": [{"name": "a"}]}));
    w.settle();
    w.exit("a", 1);
    assert_eq!(w.settle(), ["start a #1"]);
    w.exit("a", 1);
    assert!(w.settle().is_empty(), "still shown as a plain error");
    w.wait(1);
    let said = w.settle();
    assert_eq!(
        said,
        ["announce a: back-off 10s restarting failed container=a \
          pod=web_default(11111111-2222-3333-4444-555555555555)"]
    );
    assert_eq!(w.wake_after(), Some(9));
    w.wait(9);
    assert_eq!(w.settle(), ["start a #2"]);
}

#[test]
fn restart_policies_decide_the_end() {
    let cases = [
        // policy, exit code, what follows
        ("Always", 0, vec!["start a #1"]),
        ("OnFailure", 1, vec!["start a #1"]),
        ("OnFailure", 0, vec!["no sandbox", "no volumes"]),
        ("Never", 1, vec!["no sandbox", "no volumes"]),
    ];
    for (policy, code, expect) in cases {
        let mut w = World::new(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
        w.settle();
        w.exit("a", code);
        assert_eq!(w.settle(), expect, "{policy} {code}");
    }
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let mut w = World::new(json!({"restartPolicy": "Never",
        "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    w.settle();
    w.exit("i", 3);
    assert_eq!(w.settle(), ["no sandbox", "no volumes"]);
}

#[test]
fn a_lost_supervisor_restarts_the_pod_by_its_policy() {
    let spec = |policy: &str| {
        json!({"restartPolicy": policy,
        "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]})
    };
    let mut w = World::new(spec("Always"));
    w.settle();
    w.exit("i", 0);
    w.settle();
    w.observed.apply(Happened::SandboxLost, w.now);
    assert_eq!(w.observed.containers["a"].exit().map(|e| e.code), Some(137));
    assert_eq!(w.settle(), ["no sandbox", "init again i", "sandbox", "start i #1"]);
    w.exit("i", 0);
    assert_eq!(w.settle(), ["start a #1"]);

    let mut w = World::new(spec("Never"));
    w.settle();
    w.exit("i", 0);
    w.settle();
    w.observed.apply(Happened::SandboxLost, w.now);
    assert_eq!(w.settle(), ["no sandbox", "no volumes"]);
}

#[test]
fn hooks_get_the_grace_and_signals_two_seconds_more() {
    let mut w = World::new(json!({"containers": [
        {"name": "a", "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}]}));
    w.settle();
    w.delete(5);
    assert_eq!(w.settle(), ["stopping", "stop a 5s hook"]);
    w.wait(5);
    assert_eq!(w.settle(), ["term a"]);
    assert_eq!(w.wake_after(), Some(2));
    w.wait(2);
    assert_eq!(w.settle(), ["kill a"]);
}

#[test]
fn a_hook_that_ends_in_time_leaves_the_rest_of_the_grace() {
    let mut w = World::new(json!({"containers": [
        {"name": "a", "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}]}));
    w.settle();
    w.delete(30);
    w.settle();
    w.wait(3);
    let id = w.id("a");
    w.news("a", News::HookDone { id });
    assert_eq!(w.wake_after(), Some(27));
}

#[test]
fn force_shortens_a_stop_under_way() {
    let mut w = World::new(json!({"containers": [{"name": "a"}]}));
    w.settle();
    w.delete(300);
    w.settle();
    w.wait(5);
    w.delete(1);
    assert_eq!(w.settle(), ["kill a"]);
}

#[test]
fn a_failed_probe_restarts_one_container() {
    let mut w =
        World::new(json!({"terminationGracePeriodSeconds": 7, "containers": [{"name": "a"}, {"name": "b"}]}));
    w.settle();
    let id = w.id("a");
    let doom = Doom { message: "failed liveness probe".into(), grace: None };
    w.news("a", News::Doomed { id, doom });
    assert_eq!(w.settle(), ["stop a 7s"]);
    w.exit("a", 143);
    assert_eq!(w.settle(), ["start a #1"]);
}

#[test]
fn missing_images_are_announced_then_retried() {
    let mut w = World::new(json!({"containers": [{"name": "a", "image": "nosuch:1"}]}));
    let trouble = |w: &mut World| {
        w.news("a", News::Trouble { kind: TroubleKind::ErrImagePull, message: "not found".into() });
    };
    w.settle();
    w.observed.containers.get_mut("a").expect("exists").phase = Phase::Starting;
    trouble(&mut w);
    assert_eq!(w.wake_after(), Some(1));
    w.wait(1);
    assert_eq!(w.settle(), ["announce a: Back-off pulling image \"nosuch:1\": not found"]);
    assert_eq!(w.wake_after(), Some(9));
    w.wait(9);
    assert_eq!(w.settle(), ["start a #0"], "no attempt was used up");
}

#[test]
fn deadlines_end_the_pod() {
    let mut w = World::new(json!({"activeDeadlineSeconds": 60, "containers": [{"name": "a"}]}));
    w.settle();
    assert_eq!(w.wake_after(), Some(60));
    w.wait(60);
    assert_eq!(w.settle(), ["end DeadlineExceeded", "stopping", "stop a 30s"]);
    w.exit("a", 143);
    assert_eq!(w.settle(), ["no sandbox", "no volumes"]);
}

#[test]
fn nothing_starts_in_a_pod_that_is_over_or_deleted() {
    let mut w = World::new(json!({"containers": [{"name": "a"}]}));
    w.desired.over = true;
    assert!(w.settle().is_empty());
    w.delete(30);
    assert_eq!(w.settle(), ["forget"]);
}
