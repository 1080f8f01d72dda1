//! Whole roll-outs played through: the plan acts on sets whose pods become available, a few at a time, and the
//! bounds must hold at every step.

use serde_json::{Value, json};

use super::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn deployment(replicas: i32, image: &str, change: Value) -> Deployment {
    let mut deployment = json!({
        "metadata": { "name": "web", "namespace": "d", "uid": "u", "generation": 1 },
        "spec": {
            "replicas": replicas, "progressDeadlineSeconds": 600, "selector": { "matchLabels": { "app": "web" } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" } },
            "template": { "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "c", "image": image }] } },
        },
    });
    for (key, value) in change.as_object().into_iter().flatten() {
        deployment["spec"][key] = value.clone();
    }
    serde_json::from_value(deployment).expect("a valid deployment")
}

/// A Deployment and its sets, on which plans are carried out.
struct Play {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    /// How many pods become available in a step.
    pace: i32,
    /// The sets' controller takes one set at a time, while plans go on being made.
    late: bool,
    turn: usize,
    writes: usize,
}

impl Play {
    fn new(deployment: Deployment, pace: i32) -> Self {
        Self { deployment, sets: Vec::new(), pace, late: false, turn: 0, writes: 0 }
    }

    fn plan(&self) -> Plan {
        let owned = self.sets.iter().cloned().map(Arc::new).collect();
        let sets = Sets::new(&self.deployment, owned);
        let old_pods_running = sets.old.iter().any(|set| sets::existing(set) > 0);
        plan(&Observed { deployment: &self.deployment, sets: &sets, old_pods_running, now: NOW })
    }

    /// Carries out one plan. Says whether it held anything.
    fn step(&mut self) -> bool {
        let plan = self.plan();
        let acted = !plan.actions.is_empty();
        for action in plan.actions {
            self.writes += 1;
            match action {
                Action::Create(mut set) => {
                    let second = Timestamp::from_second(self.sets.len() as i64).expect("in range");
                    set.metadata.creation_timestamp =
                        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(second));
                    self.sets.push(set);
                }
                Action::Update { set, .. } => {
                    let place = self.sets.iter_mut().find(|known| known.metadata.name == set.metadata.name);
                    *place.expect("a known set") = set;
                }
                Action::Delete(set) => self.sets.retain(|known| known.metadata.name != set.metadata.name),
                Action::Revision(revision) => {
                    let annotations = self.deployment.metadata.annotations.get_or_insert_default();
                    annotations.insert(revision::ANNOTATION.into(), revision);
                }
                Action::Status(status) => self.deployment.status = Some(status),
            }
        }
        self.pods_follow() || acted
    }

    /// The ReplicaSet controller and the kubelets do their part: pods go at once and come at their pace.
    fn pods_follow(&mut self) -> bool {
        let mut left = self.pace;
        let mut moved = false;
        let count = self.sets.len();
        for index in (0..count).map(|index| (index + self.turn) % count) {
            let set = &mut self.sets[index];
            let wanted = sets::replicas(set);
            let status = set.status.get_or_insert_default();
            let before = status.clone();
            let available = status.available_replicas.unwrap_or(0);
            let next = if available > wanted { wanted } else { available + (wanted - available).min(left) };
            left -= (next - available).max(0);
            status.replicas = wanted;
            status.ready_replicas = Some(next);
            status.available_replicas = Some(next);
            status.observed_generation = set.metadata.generation;
            moved |= before != *status;
            if self.late && before != *status {
                self.turn = index + 1;
                break;
            }
        }
        moved
    }

    /// Pods that there are, and those that are available, in all.
    fn pods(&self) -> (i32, i32) {
        let sum = |of: fn(&ReplicaSet) -> i32| self.sets.iter().map(of).sum();
        (sum(sets::existing), sum(sets::available))
    }

    fn sizes(&self) -> Vec<(i32, i32)> {
        self.sets.iter().map(|set| (sets::replicas(set), sets::available(set))).collect()
    }

    fn settle(&mut self, check: impl Fn(&Self)) {
        for _ in 0..200 {
            if !self.step() {
                return;
            }
            check(self);
        }
        panic!("it never comes to rest: {:?}", self.sizes());
    }

    fn image(&mut self, image: &str) {
        let spec = self.deployment.spec.template.spec.as_mut().expect("a pod spec");
        spec.containers[0].image = Some(image.to_owned());
    }

    fn condition(&self, kind: &str) -> String {
        let conditions = self.deployment.status.as_ref().and_then(|status| status.conditions.as_ref());
        let found = conditions.into_iter().flatten().find(|c| c.type_.as_deref() == Some(kind));
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        found.map(|c| format!("{} {}", text(&c.status), text(&c.reason))).unwrap_or_default()
    }
}

#[test]
fn roll_outs_keep_their_bounds_at_any_pace() {
    let strategies = [("25%", "25%"), ("1", "0"), ("0", "1"), ("100%", "0"), ("0", "100%"), ("3", "2")];
    for replicas in [1, 2, 6, 10] {
        for (surge, unavailable) in strategies {
            for (pace, late) in [(1, false), (2, false), (100, false), (1, true), (100, true)] {
                let text =
                    |text: &str| text.parse::<i32>().map_or_else(|_| json!(text), |number| json!(number));
                let rolling = json!({ "strategy": { "type": "RollingUpdate",
                    "rollingUpdate": { "maxSurge": text(surge), "maxUnavailable": text(unavailable) } } });
                let mut play = Play::new(deployment(replicas, "a", rolling), pace);
                play.late = late;
                play.settle(|_| ());
                play.image("b");
                let bounds = Bounds::of(&play.deployment);
                let case = format!(
                    "{replicas} replicas, surge {surge}, unavailable {unavailable}, pace {pace}, late: {late}"
                );
                play.settle(|play| {
                    let (total, available) = play.pods();
                    assert!(total <= bounds.max(), "{case}: {total} pods");
                    assert!(available >= bounds.min_available(), "{case}: {available} available");
                });
                assert_eq!(play.sizes(), [(0, 0), (replicas, replicas)], "{case}");
                assert_eq!(play.condition("Progressing"), "True NewReplicaSetAvailable", "{case}");
                assert_eq!(play.condition("Available"), "True MinimumReplicasAvailable", "{case}");
            }
        }
    }
}

#[test]
fn recreate_starts_nothing_before_the_old_pods_have_ended() {
    let recreate = json!({ "strategy": { "type": "Recreate", "rollingUpdate": null } });
    let mut play = Play::new(deployment(4, "a", recreate), 2);
    play.settle(|_| ());
    play.image("b");
    play.settle(|play| {
        let both = play.sizes().iter().filter(|(size, available)| *size > 0 || *available > 0).count();
        assert!(both <= 1, "{:?}", play.sizes());
    });
    assert_eq!(play.sizes(), [(0, 0), (4, 4)]);
}

#[test]
fn undo_reuses_the_set_and_history_is_limited() {
    let mut play = Play::new(deployment(2, "0", json!({ "revisionHistoryLimit": 2 })), 100);
    play.settle(|_| ());
    for image in ["1", "2", "3", "4"] {
        play.image(image);
        play.settle(|_| ());
    }
    assert_eq!(play.sets.len(), 3, "the current one and two older ones");
    play.image("3");
    play.settle(|_| ());
    let revisions: Vec<i64> = play.sets.iter().map(|set| revision::of(&set.metadata)).collect();
    assert_eq!(revisions, [3, 6, 5], "the fourth is the sixth now");
    assert_eq!(play.deployment.metadata.annotations.clone().unwrap_or_default()[revision::ANNOTATION], "6");
}

#[test]
fn scaling_in_the_middle_is_shared_out() {
    let mut play = Play::new(deployment(10, "a", json!({})), 100);
    play.settle(|_| ());
    play.image("b");
    // The new pods do not come up: the roll-out stops half way.
    play.pace = 0;
    play.settle(|_| ());
    let before: Vec<i32> = play.sizes().iter().map(|(size, _)| *size).collect();
    assert_eq!(before, [8, 5], "13 at most, 8 available at least");
    play.deployment.spec.replicas = Some(20);
    play.step();
    let after: Vec<i32> = play.sizes().iter().map(|(size, _)| *size).collect();
    assert_eq!((after.iter().sum::<i32>(), after[0] > 8, after[1] > 5), (25, true, true), "{after:?}");
}

#[test]
fn paused_scales_but_does_not_roll() {
    let mut play = Play::new(deployment(3, "a", json!({})), 100);
    play.settle(|_| ());
    play.deployment.spec.paused = Some(true);
    play.image("b");
    play.deployment.spec.replicas = Some(5);
    play.settle(|_| ());
    assert_eq!(play.sizes(), [(5, 5)]);
    assert_eq!(play.condition("Progressing"), "Unknown DeploymentPaused");
    play.deployment.spec.paused = Some(false);
    play.settle(|_| ());
    assert_eq!(play.sizes(), [(0, 0), (5, 5)]);
    assert_eq!(play.condition("Progressing"), "True NewReplicaSetAvailable");
}

#[test]
fn a_roll_out_that_does_not_come_up_is_late() {
    let mut play = Play::new(deployment(3, "a", json!({})), 0);
    play.settle(|_| ());
    assert_eq!(play.condition("Progressing"), "True ReplicaSetUpdated");
    assert_eq!(play.condition("Available"), "False MinimumReplicasUnavailable");
    let plan_at = |play: &Play, second: i64| {
        let sets = Sets::new(&play.deployment, play.sets.iter().cloned().map(Arc::new).collect());
        let now = Timestamp::from_second(second).expect("in range");
        plan(&Observed { deployment: &play.deployment, sets: &sets, old_pods_running: false, now })
    };
    let early = plan_at(&play, 599);
    assert!(early.actions.is_empty());
    assert_eq!(early.after, Some(Duration::from_secs(2)));
    let late = plan_at(&play, 601);
    let [Action::Status(status)] = late.actions.as_slice() else { panic!("{late:?}") };
    play.deployment.status = Some(status.clone());
    assert_eq!(play.condition("Progressing"), "False ProgressDeadlineExceeded");
    assert_eq!(late.after, None);
    play.pace = 100;
    play.settle(|_| ());
    assert_eq!(play.condition("Progressing"), "True NewReplicaSetAvailable");
}

#[test]
fn nothing_is_written_where_nothing_changes() {
    let mut play = Play::new(deployment(3, "a", json!({})), 100);
    play.settle(|_| ());
    assert!(play.writes <= 4, "{} writes for a new Deployment", play.writes);
    let writes = play.writes;
    play.step();
    assert_eq!(play.writes, writes);
}
