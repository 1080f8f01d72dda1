//! Exponential back-off as the kubelet keeps it: the first retry is free, the next wait 10 s, 20 s … 5 min
//! after the failure, and ten quiet minutes forget it all.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backoff {
    last: Option<Attempt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Attempt {
    at: Timestamp,
    delay: Duration,
}

impl Backoff {
    /// When a retry of what failed at `failed_at` is due.
    pub(crate) fn due(&self, failed_at: Timestamp) -> Timestamp {
        match self.last {
            Some(a) if !forgotten(a.at, failed_at) => failed_at + a.delay,
            Some(_) | None => failed_at,
        }
    }

    /// The wait that `due` imposes, as the user is told it.
    pub(crate) fn delay(&self) -> Duration {
        self.last.map_or(Duration::ZERO, |a| a.delay)
    }

    /// Notes a retry at `now` of what failed at `failed_at`.
    pub(crate) fn retried(&mut self, failed_at: Timestamp, now: Timestamp) {
        let delay = match self.last {
            Some(a) if !forgotten(a.at, failed_at) => (a.delay * 2).min(LONGEST),
            Some(_) | None => FIRST,
        };
        self.last = Some(Attempt { at: now, delay });
    }
}

fn forgotten(attempt: Timestamp, event: Timestamp) -> bool {
    event.duration_since(attempt).unsigned_abs() > FORGOTTEN_AFTER && event > attempt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + s).expect("in range")
    }

    #[test]
    fn grows_to_five_minutes_and_forgets() {
        let mut b = Backoff::default();
        assert_eq!(b.due(at(0)), at(0), "the first retry is free");
        let mut now = 0;
        let mut waits = vec![];
        for _ in 0..8 {
            b.retried(at(now), at(now));
            waits.push(b.due(at(now)).duration_since(at(now)).as_secs());
            now += waits.last().expect("just pushed");
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(b.due(at(now + 700)), at(now + 700), "ten quiet minutes");
    }
}
