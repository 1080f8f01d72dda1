//! Runs of slots in BACKENDS: which are free.
//!
//! Invariant: free runs do not overlap and do not touch. A freed run may be given out again at once: its
//! slots will carry another tag, by which a program that is late notices (see `pith_abi::Head`).

use std::collections::{BTreeMap, BTreeSet};

/// A run of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

impl Run {
    pub(crate) const EMPTY: Self = Self { first: 0, count: 0 };
}

#[derive(Debug)]
pub(crate) struct Slots {
    /// First slot → length.
    free: BTreeMap<u32, u32>,
    /// The same as (length, first slot), to find the best fit.
    by_length: BTreeSet<(u32, u32)>,
    used: u32,
}

impl Slots {
    pub(crate) fn new(capacity: u32) -> Self {
        let mut slots = Self { free: BTreeMap::new(), by_length: BTreeSet::new(), used: capacity };
        if capacity > 0 {
            slots.insert(Run { first: 0, count: capacity });
        }
        slots
    }

    /// How many are not free.
    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// The smallest free run that is long enough, `None` when there is none.
    pub(crate) fn allocate(&mut self, count: u32) -> Option<Run> {
        if count == 0 {
            return Some(Run::EMPTY);
        }
        let &(length, first) = self.by_length.range((count, 0)..).next()?;
        self.remove(first, length);
        if length > count {
            self.insert(Run { first: first + count, count: length - count });
        }
        Some(Run { first, count })
    }

    /// Takes one given run out, `false` when it is not wholly free.
    pub(crate) fn reserve(&mut self, run: Run) -> bool {
        if run.count == 0 {
            return true;
        }
        let Some((&first, &length)) = self.free.range(..=run.first).next_back() else { return false };
        let (end, run_end) = (first + length, run.first.saturating_add(run.count));
        if run_end > end {
            return false;
        }
        self.remove(first, length);
        if run.first > first {
            self.insert(Run { first, count: run.first - first });
        }
        if end > run_end {
            self.insert(Run { first: run_end, count: end - run_end });
        }
        true
    }

    pub(crate) fn free(&mut self, run: Run) {
        if run.count == 0 {
            return;
        }
        let mut whole = run;
        if let Some((&first, &length)) = self.free.range(..run.first).next_back()
            && first + length == run.first
        {
            self.remove(first, length);
            whole = Run { first, count: length + whole.count };
        }
        let end = run.first + run.count;
        if let Some(&length) = self.free.get(&end) {
            self.remove(end, length);
            whole.count += length;
        }
        self.insert(whole);
    }

    fn insert(&mut self, run: Run) {
        self.free.insert(run.first, run.count);
        self.by_length.insert((run.count, run.first));
        self.used -= run.count;
    }

    fn remove(&mut self, first: u32, length: u32) {
        self.free.remove(&first);
        self.by_length.remove(&(length, first));
        self.used += length;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn freed_neighbours_become_one() {
        let mut slots = Slots::new(30);
        let runs: Vec<Run> = (0..3).map(|_| slots.allocate(10).expect("room for three")).collect();
        assert_eq!(slots.allocate(1), None);
        for at in [0, 2, 1] {
            slots.free(runs[at]);
        }
        assert_eq!(slots.allocate(30), Some(Run { first: 0, count: 30 }));
    }

    #[test]
    fn reserve_table() {
        let cases = [
            ("in the middle", Run { first: 10, count: 5 }, true),
            ("at the end", Run { first: 95, count: 5 }, true),
            ("beyond the end", Run { first: 96, count: 5 }, false),
            ("far beyond", Run { first: u32::MAX, count: 5 }, false),
            ("nothing", Run::EMPTY, true),
        ];
        for (name, run, expect) in cases {
            let mut slots = Slots::new(100);
            assert_eq!(slots.reserve(run), expect, "{name}");
            if expect && run.count > 0 {
                assert!(!slots.reserve(run), "{name}: twice");
            }
        }
    }

    proptest! {
        /// Against a plain table of used slots.
        #[test]
        fn no_slot_is_given_twice(steps in prop::collection::vec((any::<bool>(), 1u32..9), 1..200)) {
            const CAPACITY: u32 = 64;
            let mut slots = Slots::new(CAPACITY);
            let mut used = [false; CAPACITY as usize];
            let mut held: Vec<Run> = Vec::new();
            for (give, count) in steps {
                if give || held.is_empty() {
                    if let Some(run) = slots.allocate(count) {
                        for slot in run.first..run.first + run.count {
                            prop_assert!(!std::mem::replace(&mut used[slot as usize], true));
                        }
                        held.push(run);
                    }
                } else {
                    let run = held.swap_remove(count as usize % held.len());
                    used[run.first as usize..(run.first + run.count) as usize].fill(false);
                    slots.free(run);
                }
                prop_assert_eq!(slots.used() as usize, used.iter().filter(|used| **used).count());
            }
            for run in held {
                slots.free(run);
            }
            prop_assert_eq!(slots.allocate(CAPACITY), Some(Run { first: 0, count: CAPACITY }));
        }
    }
}
