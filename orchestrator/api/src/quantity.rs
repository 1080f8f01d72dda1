//! Amounts of resources (`resource.Quantity`): exact decimal or binary numbers with a suffix, such as `500m`,
//! `1.5Gi` or `1e3`. Sums and comparisons are exact to a billionth; nothing is ever a floating point number.

use std::{cmp::Ordering, fmt, iter::Sum, ops, str::FromStr};

/// Billionths in one.
const NANOS: i128 = 1_000_000_000;

/// Which suffixes a quantity is written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `m`, `k`, `M`, `G` …
    #[default]
    DecimalSi,
    /// `Ki`, `Mi`, `Gi` …
    BinarySi,
    /// `e3`, `e6` …
    DecimalExponent,
}

/// An amount, kept in billionths; equal and ordered by value, whatever its format.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// A text that is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Form,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
/// The largest whole amount that is kept, as upstream: larger ones are capped.
const MAX: i128 = i64::MAX as i128 * NANOS;

impl Quantity {
    /// A whole number of units: bytes, pods.
    pub const fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: units as i128 * NANOS, format }
    }

    /// Thousandths: milli-CPUs.
    pub const fn from_milli(milli: i64) -> Self {
        Self { nanos: milli as i128 * 1_000_000, format: Format::DecimalSi }
    }

    /// Whole units, rounded up; capped at `i64::MAX`.
    pub fn units(self) -> i64 {
        clamp(div_up(self.nanos, NANOS))
    }

    /// Thousandths, rounded up; capped at `i64::MAX`.
    pub fn milli(self) -> i64 {
        clamp(div_up(self.nanos, 1_000_000))
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it has no fraction.
    pub fn is_whole(self) -> bool {
        self.nanos % NANOS == 0
    }

    pub fn format(self) -> Format {
        self.format
    }
}

/// Division that rounds away from zero, as upstream's `ScaledValue` does.
fn div_up(value: i128, by: i128) -> i128 {
    value / by + (value % by).signum()
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let split = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(split);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseError::Form);
        }
        if !suffix.chars().all(|c| c.is_ascii_digit() || "eEinumkKMGTP+-".contains(c)) {
            return Err(ParseError::Form);
        }
        let (format, scale) = scale(suffix)?;
        let nanos = match scale {
            Scale::Binary(bits) => exact(whole, fraction, 9, 1i128 << bits),
            Scale::Decimal(exponent) => exact(whole, fraction, exponent + 9, 1),
        };
        let nanos = nanos.min(MAX);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

enum Scale {
    Binary(u32),
    Decimal(i32),
}

fn scale(suffix: &str) -> Result<(Format, Scale), ParseError> {
    if let Some((_, bits)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::BinarySi, Scale::Binary(*bits)));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::DecimalSi, Scale::Decimal(*exponent)));
    }
    let digits = suffix.strip_prefix(['e', 'E']).ok_or(ParseError::Suffix)?;
    let exponent: i32 = digits.parse().map_err(|_| ParseError::Suffix)?;
    // Anything beyond is zero or capped; the bound keeps the arithmetic below small.
    Ok((Format::DecimalExponent, Scale::Decimal(exponent.clamp(-100, 100))))
}

/// `whole.fraction × 10^exponent × factor`, rounded up to an integer, saturating.
fn exact(whole: &str, fraction: &str, exponent: i32, factor: i128) -> i128 {
    let point = whole.len() as i64 + i64::from(exponent);
    let mut digits = whole.bytes().chain(fraction.bytes()).map(|b| i128::from(b - b'0'));
    let mut value: i128 = 0;
    let cap = MAX.saturating_mul(2);
    let mut taken = 0i64;
    let mut tail = Vec::new();
    for digit in &mut digits {
        if taken < point {
            value = (value.saturating_mul(10).saturating_add(digit)).min(cap);
            taken += 1;
        } else {
            tail.push(digit);
        }
    }
    while taken < point && value != 0 && value < cap {
        value = value.saturating_mul(10).min(cap);
        taken += 1;
    }
    if factor == 1 {
        // Digits further right than a billionth round up.
        let leading_zeros_only = tail.iter().all(|d| *d == 0);
        return if leading_zeros_only { value } else { value + 1 };
    }
    // Binary suffixes multiply: digits beyond a billionth may still count.
    let mut scaled = value.saturating_mul(factor);
    let (mut part, mut unit) = (0i128, 1i128);
    for digit in tail.into_iter().take(15) {
        part = part * 10 + digit;
        unit *= 10;
    }
    scaled = scaled.saturating_add(div_up(part.saturating_mul(factor), unit));
    scaled
}

/// The canonical form: the largest suffix that leaves a whole number.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi && self.is_whole() && (self.nanos / NANOS).abs() >= 1024 {
            let units = self.nanos / NANOS;
            let (suffix, bits) = BINARY
                .iter()
                .rev()
                .find(|(_, bits)| units % (1i128 << bits) == 0)
                .copied()
                .unwrap_or(("", 0));
            return write!(f, "{}{suffix}", units >> bits);
        }
        let (mut number, mut exponent) = (self.nanos, -9);
        while number % 1000 == 0 && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent && exponent != 0 {
            return write!(f, "{number}e{exponent}");
        }
        let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s);
        write!(f, "{number}{suffix}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl ops::Add for Quantity {
    type Output = Self;

    /// Keeps the left side's format, or takes the right side's where the left is zero.
    fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: (self.nanos + other.nanos).clamp(-MAX, MAX), format }
    }
}

impl ops::Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + Self { nanos: -other.nanos, ..other }
    }
}

impl ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl ops::SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::default(), |a, b| a + b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_writes_the_canonical_form() {
        for (input, canonical, units, milli) in [
            ("0", "0", 0, 0),
            ("1", "1", 1, 1000),
            ("1000m", "1", 1, 1000),
            ("0.5", "500m", 1, 500),
            (".5", "500m", 1, 500),
            ("5.", "5", 5, 5000),
            ("100m", "100m", 1, 100),
            ("1500m", "1500m", 2, 1500),
            ("1.5Gi", "1536Mi", 1_610_612_736, 1_610_612_736_000),
            ("1024Mi", "1Gi", 1 << 30, (1 << 30) * 1000),
            ("128Mi", "128Mi", 128 << 20, (128 << 20) * 1000),
            ("1000Ki", "1000Ki", 1_024_000, 1_024_000_000),
            ("0.5Ki", "512", 512, 512_000),
            ("1000k", "1M", 1_000_000, 1_000_000_000),
            ("1e3", "1e3", 1000, 1_000_000),
            ("1E3", "1e3", 1000, 1_000_000),
            ("1E", "1E", 1_000_000_000_000_000_000, i64::MAX),
            ("12345678901", "12345678901", 12_345_678_901, 12_345_678_901_000),
            ("0.1n", "1n", 1, 1),
            ("-1", "-1", -1, -1000),
            ("+2", "2", 2, 2000),
            ("0.000000001", "1n", 1, 1),
            ("99999999999999999999", "9223372036854775807", i64::MAX, i64::MAX),
            ("8Ei", "9223372036854775807", i64::MAX, i64::MAX),
        ] {
            let quantity: Quantity = input.parse().unwrap_or_else(|e| panic!("{input}: {e}"));
            assert_eq!(quantity.to_string(), canonical, "{input}");
            assert_eq!(quantity.units(), units, "{input}");
            assert_eq!(quantity.milli(), milli, "{input}");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for input in ["", "abc", "1.2.3", "1 Gi", "1Gib", "--1", "1ki", "Mi", "1e", "1ee3", "0x10"] {
            assert!(input.parse::<Quantity>().is_err(), "{input:?}");
        }
    }

    #[test]
    fn adds_and_compares_by_value() {
        let sum: Quantity =
            ["100m", "0.9", "1"].iter().map(|t| t.parse::<Quantity>().expect("quantity")).sum();
        assert_eq!(sum.to_string(), "2");
        assert!("1Gi".parse::<Quantity>().expect("1Gi") > "1G".parse().expect("1G"));
        let rest = "1Gi".parse::<Quantity>().expect("1Gi") - "1Mi".parse().expect("1Mi");
        assert_eq!(rest.to_string(), "1023Mi");
    }
}
