//! Points in time as the API writes them: `metav1.Time` (whole seconds) and `metav1.MicroTime`, both UTC.

use jiff::{Timestamp, fmt::temporal::DateTimePrinter};

/// A text that is no RFC 3339 time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": {reason}")]
pub struct ParseError {
    text: String,
    reason: String,
}

/// Reads an RFC 3339 time with any offset.
pub fn parse(text: &str) -> Result<Timestamp, ParseError> {
    text.parse::<Timestamp>().map_err(|e| ParseError { text: text.to_owned(), reason: e.to_string() })
}

/// `metav1.Time`: `2026-01-02T03:04:05Z`; fractions are cut off.
pub fn seconds(at: Timestamp) -> String {
    print(at, 0)
}

/// `metav1.MicroTime`: `2026-01-02T03:04:05.000006Z`.
pub fn micros(at: Timestamp) -> String {
    print(at, 6)
}

fn print(at: Timestamp, precision: u8) -> String {
    DateTimePrinter::new().precision(Some(precision)).timestamp_to_string(&at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_go_writes() {
        for (input, whole, fine) in [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000Z"),
            ("2026-01-02T03:04:05.9999999+02:00", "2026-01-02T01:04:05Z", "2026-01-02T01:04:05.999999Z"),
        ] {
            let at = parse(input).expect(input);
            assert_eq!(seconds(at), whole);
            assert_eq!(micros(at), fine);
        }
        assert!(parse("yesterday").is_err());
    }
}
