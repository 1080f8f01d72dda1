//! Points in time, as numbers and as text.

use std::time::{SystemTime, UNIX_EPOCH};

use pith_container::supervisor::protocol::UnixNanos;

const NANOS: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

pub(crate) fn now() -> UnixNanos {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixNanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

struct Civil {
    year: u64,
    month: u64,
    day: u64,
    seconds: u64,
    nanos: u64,
}

/// The proleptic Gregorian date in UTC (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(at: UnixNanos) -> Civil {
    let (seconds, nanos) = (at.0 / NANOS, at.0 % NANOS);
    let shifted = seconds / DAY + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    Civil { year, month, day, seconds: seconds % DAY, nanos }
}

/// `2016-10-06T00:17:09.669794202Z`, as CRI logs have it.
pub(crate) fn rfc3339(at: UnixNanos) -> String {
    let Civil { year, month, day, seconds, nanos } = civil(at);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// `20161006-001709.669794202`: names of rotated logs, which sort by age.
pub(crate) fn file_suffix(at: UnixNanos) -> String {
    let Civil { year, month, day, seconds, nanos } = civil(at);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}.{nanos:09}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_table() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_475_713_029, "2016-10-06T00:17:09.000000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000000000Z"),
        ];
        for (seconds, expect) in cases {
            assert_eq!(rfc3339(UnixNanos(seconds * NANOS)), expect);
        }
        assert_eq!(rfc3339(UnixNanos(1)), "1970-01-01T00:00:00.000000001Z");
        assert_eq!(file_suffix(UnixNanos(1_475_713_029_669_794_202)), "20161006-001709.669794202");
    }
}
