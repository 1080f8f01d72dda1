//! [`Queue`]: keys to work on, each at most once in hand at a time.
//!
//! ```text
//!   add ──▶ waiting ──next──▶ in hand ──done──▶ (gone, or waiting again if added meanwhile)
//!   add_after ──▶ later ──due──▶ waiting
//! ```
//! A key that is added while it is in hand waits until it is done, so no two workers ever hold the same one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// First delay after a failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// A handle; clones share the queue.
pub struct Queue<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

struct State<T> {
    order: VecDeque<T>,
    waiting: HashSet<T>,
    in_hand: HashSet<T>,
    /// By time. An entry counts only while [`State::due`] agrees with it.
    later: BinaryHeap<Reverse<(Instant, T)>>,
    /// When each key that comes later is due: one time a key, however often it was added.
    due: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
}

impl<T: Clone + Eq + Hash + Ord> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + Eq + Hash + Ord> Queue<T> {
    pub fn new() -> Self {
        let state = State {
            order: VecDeque::new(),
            waiting: HashSet::new(),
            in_hand: HashSet::new(),
            later: BinaryHeap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }) }
    }

    pub fn add(&self, key: T) {
        if self.lock().add(key) {
            self.shared.changed.notify_one();
        }
    }

    /// Adds the key once the delay has passed. Of several delays of one key the earliest end counts.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        if self.lock().add_later(key, Instant::now() + delay) {
            self.shared.changed.notify_one();
        }
    }

    /// Adds the key after a delay that doubles with each failure since the last [`Queue::forget`].
    pub fn retry(&self, key: T) {
        let failures = {
            let mut state = self.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures += 1;
            *failures
        };
        self.add_after(key, retry_delay(failures));
    }

    /// The key succeeded: its next failure starts with the shortest delay.
    pub fn forget(&self, key: &T) {
        self.lock().failures.remove(key);
    }

    /// The next key, taken in hand. Call [`Queue::done`] when finished with it. Safe to cancel.
    pub async fn next(&self) -> T {
        loop {
            let due = {
                let mut state = self.lock();
                state.promote(Instant::now());
                if let Some(key) = state.take() {
                    if !state.order.is_empty() {
                        self.shared.changed.notify_one();
                    }
                    return key;
                }
                state.later.peek().map(|Reverse((due, _))| *due)
            };
            match due {
                Some(due) => {
                    // Either outcome leads to another look at the state, which holds everything.
                    let _woken = tokio::time::timeout_at(due, self.shared.changed.notified()).await;
                }
                None => self.shared.changed.notified().await,
            }
        }
    }

    pub fn done(&self, key: &T) {
        let mut state = self.lock();
        state.in_hand.remove(key);
        if state.waiting.contains(key) {
            state.order.push_back(key.clone());
            self.shared.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.shared.state.lock().expect("nothing panics while it holds the lock")
    }
}

impl<T: Clone + Eq + Hash + Ord> State<T> {
    /// Whether a worker can take it now.
    fn add(&mut self, key: T) -> bool {
        if !self.waiting.insert(key.clone()) || self.in_hand.contains(&key) {
            return false;
        }
        self.order.push_back(key);
        true
    }

    /// Whether this is the earliest time for the key.
    fn add_later(&mut self, key: T, due: Instant) -> bool {
        if self.due.get(&key).is_some_and(|known| *known <= due) {
            return false;
        }
        self.due.insert(key.clone(), due);
        self.later.push(Reverse((due, key)));
        true
    }

    fn promote(&mut self, now: Instant) {
        while let Some(Reverse((due, _))) = self.later.peek()
            && *due <= now
        {
            let Some(Reverse((due, key))) = self.later.pop() else { return };
            if self.due.get(&key) == Some(&due) {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }

    fn take(&mut self) -> Option<T> {
        let key = self.order.pop_front()?;
        self.waiting.remove(&key);
        self.in_hand.insert(key.clone());
        Some(key)
    }
}

fn retry_delay(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(LONGEST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_in_hand_once() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        // "a" is in hand, so nothing can be taken although it was added again.
        assert!(tokio::time::timeout(Duration::ZERO, queue.next()).await.is_err());
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test]
    async fn delays_are_kept_and_do_not_hold_up_others() {
        let queue = Queue::new();
        queue.add_after("late", Duration::from_millis(500));
        queue.add_after("soon", Duration::from_millis(20));
        queue.add_after("late", Duration::from_secs(3600));
        queue.add("now");
        let mut order = Vec::new();
        for _ in 0..3 {
            order.push(queue.next().await);
        }
        assert_eq!(order, ["now", "soon", "late"]);
        assert!(queue.lock().due.is_empty(), "a key has one time, the earliest");
    }

    #[test]
    fn retry_delays_double_up_to_a_limit() {
        let cases = [(1, 5), (2, 10), (3, 20), (8, 640), (15, 60_000), (40, 60_000)];
        for (failures, milliseconds) in cases {
            assert_eq!(retry_delay(failures), Duration::from_millis(milliseconds), "{failures} failures");
        }
    }
}
