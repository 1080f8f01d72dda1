//! [`Waiting`]: the pods that have no node yet, and when each is to be tried. Pure: time comes from outside.
//!
//! ```text
//!             ┌────────────── something that may help, or five minutes ──────────────┐
//!             ▼                                                                      │
//!   add ─▶ active ──pop──▶ in hand ──failed──▶ unschedulable ──helped too early──▶ backing off
//!             ▲               └──── placed ──▶ (gone)                                │
//!             └────────────────────────── back-off over ─────────────────────────────┘
//!   A gated pod waits for its gates, outside of all this.
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pith_informer::Uid;

use crate::filter::Reject;
use crate::plan::Unfit;
use crate::pod::Pending;

const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);
/// An unschedulable pod is tried again after this time even if nothing seems to have changed for it.
const ANYHOW_AFTER: Duration = Duration::from_secs(300);

/// What has happened that may let an unschedulable pod fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Help {
    /// A node came, or changed in a way that counts.
    Node,
    /// A pod left its node.
    PodGone,
    /// A pod came to a node.
    PodPlaced,
}

/// What could help a pod that did not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Hopes {
    pod_gone: bool,
    pod_placed: bool,
}

impl Hopes {
    fn of(unfit: &Unfit) -> Self {
        let mut hopes = Self::default();
        for reject in unfit.rejects.keys() {
            match reject {
                Reject::Ports
                | Reject::Resources(..)
                | Reject::PodAntiAffinity
                | Reject::ExistingAntiAffinity => hopes.pod_gone = true,
                Reject::PodAffinity => hopes.pod_placed = true,
                Reject::Spread => hopes = Self { pod_gone: true, pod_placed: true },
                Reject::Unschedulable
                | Reject::NodeName
                | Reject::Taint(..)
                | Reject::NodeAffinity
                | Reject::NotNamed
                | Reject::SpreadLabel => {}
            }
        }
        hopes
    }

    fn include(self, help: Help) -> bool {
        match help {
            Help::Node => true,
            Help::PodGone => self.pod_gone,
            Help::PodPlaced => self.pod_placed,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Active,
    InHand,
    /// Until this time.
    BackingOff(Timestamp),
    /// At the latest until this time.
    Unschedulable(Hopes, Timestamp),
    Gated,
}

struct Entry {
    pending: Arc<Pending>,
    state: State,
    /// The order of arrival.
    number: u64,
    attempts: u32,
    failed_at: Option<Timestamp>,
    /// What its PodScheduled condition says.
    reported: Option<String>,
}

#[derive(Default)]
pub(crate) struct Waiting {
    entries: HashMap<Uid, Entry>,
    /// By priority, then arrival.
    active: BTreeSet<(Reverse<i32>, u64, Uid)>,
    /// Those whose state ends at a time.
    timed: BTreeSet<(Timestamp, Uid)>,
    /// The unschedulable ones by what could help them.
    hoping: HashMap<Hopes, BTreeSet<Uid>>,
    arrivals: u64,
}

impl Waiting {
    /// A pod without a node was seen. One that has changed is tried at once; `reported` is the message of its
    /// PodScheduled condition.
    pub(crate) fn put(&mut self, pending: Pending, reported: Option<String>) {
        let uid = pending.pod.uid.clone();
        let target = if pending.gated { State::Gated } else { State::Active };
        let Some(entry) = self.entries.get_mut(&uid) else {
            self.arrivals += 1;
            let entry = Entry {
                pending: Arc::new(pending),
                state: State::Gated,
                number: self.arrivals,
                attempts: 0,
                failed_at: None,
                reported,
            };
            self.entries.insert(uid.clone(), entry);
            return self.set(&uid, target);
        };
        entry.reported = reported.or(entry.reported.take());
        if *entry.pending == pending {
            return;
        }
        let in_hand = entry.state == State::InHand;
        // The place in the queue depends on the priority: out with the old one first.
        self.set(&uid, State::InHand);
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.pending = Arc::new(pending);
        }
        if !in_hand {
            self.set(&uid, target);
        }
    }

    pub(crate) fn remove(&mut self, uid: &Uid) {
        self.set(uid, State::InHand);
        self.entries.remove(uid);
    }

    pub(crate) fn uids(&self) -> Vec<Uid> {
        self.entries.keys().cloned().collect()
    }

    /// The next pod to try: of those that may be tried now, the one of highest priority, then the oldest.
    pub(crate) fn pop(&mut self, now: Timestamp) -> Option<Arc<Pending>> {
        while let Some((due, uid)) = self.timed.first().cloned()
            && due <= now
        {
            self.set(&uid, State::Active);
        }
        let (.., uid) = self.active.first().cloned()?;
        self.set(&uid, State::InHand);
        self.entries.get(&uid).map(|entry| entry.pending.clone())
    }

    /// When a pod becomes active by time alone.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.timed.first().map(|(due, _)| *due)
    }

    /// The pod in hand fits nowhere. Says whether its condition has to be written.
    pub(crate) fn failed(&mut self, uid: &Uid, unfit: &Unfit, message: &str, now: Timestamp) -> bool {
        let Some(entry) = self.entries.get_mut(uid) else { return false };
        entry.attempts += 1;
        entry.failed_at = Some(now);
        let news = entry.reported.as_deref() != Some(message);
        entry.reported = Some(message.to_owned());
        self.set(uid, State::Unschedulable(Hopes::of(unfit), later(now, ANYHOW_AFTER)));
        news
    }

    /// The pod in hand could not be bound: it is tried again after a while.
    pub(crate) fn put_back(&mut self, uid: &Uid, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.attempts += 1;
        entry.failed_at = Some(now);
        let until = entry.backed_off_until();
        self.set(uid, State::BackingOff(until));
    }

    /// Tries those again that this may have helped. Says whether there are any.
    pub(crate) fn helped(&mut self, help: Help, now: Timestamp) -> bool {
        let hopeful = self.hoping.iter().filter(|(hopes, _)| hopes.include(help));
        let uids: Vec<Uid> = hopeful.flat_map(|(_, uids)| uids).cloned().collect();
        for uid in &uids {
            let until = self.entries.get(uid).map_or(now, Entry::backed_off_until);
            self.set(uid, if until <= now { State::Active } else { State::BackingOff(until) });
        }
        !uids.is_empty()
    }

    /// The pod, if it is gated and its condition does not say so yet; it counts as told from now on.
    pub(crate) fn tell_gated(&mut self, uid: &Uid, message: &str) -> Option<Arc<Pending>> {
        let entry = self.entries.get_mut(uid)?;
        if entry.state != State::Gated || entry.reported.as_deref() == Some(message) {
            return None;
        }
        entry.reported = Some(message.to_owned());
        Some(entry.pending.clone())
    }

    /// The one place where a pod's state changes.
    fn set(&mut self, uid: &Uid, state: State) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let place = (Reverse(entry.pending.priority), entry.number, uid.clone());
        let left = std::mem::replace(&mut entry.state, state);
        if let State::Unschedulable(hopes, _) = left
            && let Some(hoping) = self.hoping.get_mut(&hopes)
        {
            hoping.remove(uid);
        }
        match left {
            State::Active => drop(self.active.remove(&place)),
            State::BackingOff(until) | State::Unschedulable(_, until) => {
                self.timed.remove(&(until, uid.clone()));
            }
            State::InHand | State::Gated => {}
        }
        if let State::Unschedulable(hopes, _) = state {
            self.hoping.entry(hopes).or_default().insert(uid.clone());
        }
        match state {
            State::Active => drop(self.active.insert(place)),
            State::BackingOff(until) | State::Unschedulable(_, until) => {
                self.timed.insert((until, uid.clone()));
            }
            State::InHand | State::Gated => {}
        }
    }
}

impl Entry {
    fn backed_off_until(&self) -> Timestamp {
        let doubled = FIRST_BACK_OFF.saturating_mul(1 << self.attempts.saturating_sub(1).min(8));
        later(self.failed_at.unwrap_or(Timestamp::UNIX_EPOCH), doubled.min(LONGEST_BACK_OFF))
    }
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    time.saturating_add(SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn pending(name: &str, priority: i32, gated: bool) -> Pending {
        let gates = if gated { json!([{ "name": "g" }]) } else { json!([]) };
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "d", "uid": name },
            "spec": { "containers": [], "priority": priority, "schedulingGates": gates },
        }))
        .expect("a valid pod");
        Pending::of(&pod)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn next(waiting: &mut Waiting, second: i64) -> Option<String> {
        waiting.pop(at(second)).map(|pending| pending.pod.key.name.clone())
    }

    fn unfit(reject: Reject) -> Unfit {
        Unfit::new(1, BTreeMap::from([(reject, 1)]))
    }

    #[test]
    fn priority_then_arrival() {
        let mut waiting = Waiting::default();
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            waiting.put(pending(name, priority, false), None);
        }
        let order: Vec<_> = std::iter::from_fn(|| next(&mut waiting, 0)).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn what_helps_depends_on_what_failed() {
        let lacking = Reject::Resources(vec!["Insufficient cpu".into()], false);
        let cases = [
            (lacking.clone(), Help::PodGone, true),
            (lacking.clone(), Help::PodPlaced, false),
            (lacking, Help::Node, true),
            (Reject::PodAffinity, Help::PodPlaced, true),
            (Reject::PodAffinity, Help::PodGone, false),
            (Reject::NodeAffinity, Help::PodGone, false),
            (Reject::NodeAffinity, Help::Node, true),
            (Reject::Spread, Help::PodPlaced, true),
        ];
        for (reject, help, expect) in cases {
            let mut waiting = Waiting::default();
            waiting.put(pending("a", 0, false), None);
            next(&mut waiting, 0);
            assert!(waiting.failed(&Uid("a".into()), &unfit(reject.clone()), "m", at(0)));
            assert_eq!(waiting.helped(help, at(60)), expect, "{reject:?} {help:?}");
            assert_eq!(next(&mut waiting, 60).is_some(), expect, "{reject:?} {help:?}");
        }
    }

    #[test]
    fn back_off_doubles_and_help_waits_for_it() {
        let mut waiting = Waiting::default();
        let uid = Uid("a".into());
        waiting.put(pending("a", 0, false), None);
        let mut now = 0;
        for wait in [1, 2, 4, 8, 10, 10] {
            assert!(next(&mut waiting, now).is_some());
            waiting.failed(&uid, &unfit(Reject::NodeAffinity), "m", at(now));
            assert_eq!(next(&mut waiting, now + 100), None, "nothing has helped yet");
            assert!(waiting.helped(Help::Node, at(now)));
            assert_eq!(next(&mut waiting, now + wait - 1), None, "{wait} s");
            now += wait;
        }
        assert!(next(&mut waiting, now).is_some());
        waiting.failed(&uid, &unfit(Reject::NodeAffinity), "m", at(now));
        assert!(next(&mut waiting, now + 300).is_some(), "tried anyhow");
    }

    #[test]
    fn gates_hold_and_a_change_frees() {
        let mut waiting = Waiting::default();
        waiting.put(pending("a", 0, true), None);
        assert_eq!(next(&mut waiting, 0), None);
        let uid = Uid("a".into());
        assert!(waiting.tell_gated(&uid, "gated").is_some());
        assert!(waiting.tell_gated(&uid, "gated").is_none());
        waiting.put(pending("a", 0, false), None);
        assert_eq!(next(&mut waiting, 0).as_deref(), Some("a"));
        waiting.failed(&uid, &unfit(Reject::NodeAffinity), "m", at(0));
        waiting.put(pending("a", 0, false), Some("m".into()));
        assert_eq!(next(&mut waiting, 0), None, "only its status has changed");
        waiting.put(pending("a", 5, false), None);
        assert_eq!(next(&mut waiting, 0).as_deref(), Some("a"));
    }
}
