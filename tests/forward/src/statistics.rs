//! Medians, percentiles and bootstrap intervals.
//!
//! Invariant: everything is deterministic. The bootstrap draws from a generator with a fixed seed, so the same
//! samples always give the same interval.

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap; 2,000 settle the second digit of an interval's ends (Efron and Tibshirani, 1993).
const RESAMPLES: usize = 2_000;
const SEED: u64 = 0x7069_7468;

/// A median with the interval that holds it in 95 of 100 repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Rounds it was taken from.
    pub(crate) rounds: usize,
}

/// The value below which `share` (0 to 1) of the samples lie: the nearest rank. `None` without samples.
pub(crate) fn percentile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile_of_sorted(&sorted, share)
}

fn percentile_of_sorted(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into samples, far below 2^52"
    )]
    let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1).min(last)).copied()
}

/// The middle value; the mean of the two middle ones where their number is even.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    median_of_sorted(&sorted)
}

fn median_of_sorted(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(sorted.get(middle - 1)?.midpoint(upper))
}

/// Median of one value a round, with its percentile bootstrap interval.
pub(crate) fn estimate(rounds: &[f64]) -> Option<Estimate> {
    let middle = median(rounds)?;
    let mut random = StdRng::seed_from_u64(SEED);
    let mut resample = vec![0.0; rounds.len()];
    let medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            for place in &mut resample {
                *place = rounds[random.random_range(0..rounds.len())];
            }
            resample.sort_by(f64::total_cmp);
            median_of_sorted(&resample)
        })
        .collect();
    Some(Estimate {
        median: middle,
        low: percentile(&medians, 0.025)?,
        high: percentile(&medians, 0.975)?,
        rounds: rounds.len(),
    })
}

/// `a / b` round by round. Both were measured within the same second, so whatever else the machine did in
/// that round touches both, and their ratio less than either. `None` where the rounds do not match.
pub(crate) fn ratio(a: &[f64], b: &[f64]) -> Option<Estimate> {
    if a.len() != b.len() || b.contains(&0.0) {
        return None;
    }
    estimate(&a.iter().zip(b).map(|(a, b)| a / b).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_table() {
        let cases: [(&str, &[f64], Option<f64>); 5] = [
            ("nothing", &[], None),
            ("one", &[4.0], Some(4.0)),
            ("odd, unsorted", &[9.0, 1.0, 5.0], Some(5.0)),
            ("even", &[4.0, 1.0, 2.0, 3.0], Some(2.5)),
            ("an outlier moves nothing", &[1.0, 2.0, 1e9], Some(2.0)),
        ];
        for (name, samples, expect) in cases {
            assert_eq!(median(samples), expect, "{name}");
        }
    }

    #[test]
    fn percentile_table() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        let cases: [(&str, &[f64], f64, Option<f64>); 6] = [
            ("nothing", &[], 0.5, None),
            ("half of a hundred", &hundred, 0.5, Some(50.0)),
            ("99 of a hundred", &hundred, 0.99, Some(99.0)),
            ("all", &hundred, 1.0, Some(100.0)),
            ("none", &hundred, 0.0, Some(1.0)),
            ("of two", &[2.0, 1.0], 0.99, Some(2.0)),
        ];
        for (name, samples, share, expect) in cases {
            assert_eq!(percentile(samples, share), expect, "{name}");
        }
    }

    #[test]
    fn intervals_hold_the_median_and_narrow_with_more_rounds() {
        let few = estimate(&[10.0, 12.0, 11.0, 30.0, 9.0]).expect("five rounds");
        assert!(few.low <= few.median && few.median <= few.high, "{few:?}");
        assert_eq!((few.median, few.rounds), (11.0, 5));
        let many: Vec<f64> = (0..200).map(|round| 10.0 + f64::from(round % 5)).collect();
        let many = estimate(&many).expect("many rounds");
        assert!(many.high - many.low < few.high - few.low, "{many:?}");
        assert_eq!(estimate(&[]), None);
        assert_eq!(estimate(&[7.0]), Some(Estimate { median: 7.0, low: 7.0, high: 7.0, rounds: 1 }));
    }

    #[test]
    fn the_same_samples_give_the_same_interval() {
        let samples = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0];
        assert_eq!(estimate(&samples), estimate(&samples));
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // A machine that was twice as slow in the second round says nothing about the ratio.
        let same = ratio(&[10.0, 20.0], &[5.0, 10.0]).expect("two rounds");
        assert_eq!((same.median, same.low, same.high), (2.0, 2.0, 2.0));
        assert_eq!(ratio(&[1.0], &[1.0, 2.0]), None);
        assert_eq!(ratio(&[1.0], &[0.0]), None);
    }
}
