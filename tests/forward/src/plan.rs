//! How much is measured: all of it bounded.

use std::time::Duration;

/// Sizes of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Numbers of Services.
    pub(crate) counts: &'static [u32],
    /// Rounds of every contender at every count, besides one that warms up.
    pub(crate) rounds: usize,
    /// Operations of one load in one round; some loads take a part of it.
    pub(crate) operations: usize,
    /// How long the rules of one contender may take to load before it is left out.
    pub(crate) load_deadline: Duration,
    /// Services and endpoints of each that are written into an empty kernel.
    pub(crate) cold: &'static [(u32, u8)],
    pub(crate) cold_deadline: Duration,
}

impl Plan {
    /// All parts in less than five minutes.
    pub(crate) const QUICK: Self = Self {
        counts: &[1, 1_000, 10_000],
        rounds: 10,
        operations: 400,
        load_deadline: Duration::from_secs(30),
        cold: &[(100, 50), (5_000, 50)],
        cold_deadline: Duration::from_secs(15),
    };

    pub(crate) const FULL: Self = Self {
        counts: &[1, 100, 1_000, 10_000, 30_000],
        rounds: 30,
        operations: 1_600,
        load_deadline: Duration::from_secs(300),
        cold: &[(100, 50), (1_000, 50), (5_000, 50)],
        cold_deadline: Duration::from_secs(300),
    };
}
