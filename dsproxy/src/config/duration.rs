//! Durations as kube-proxy's flags and file have them: `1h30m`, `120s`, `1.5h`, `0` (Go's `time.ParseDuration`).
//!
//! The API client's crate can read them too, and panics on one that is too long.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Units, in nanoseconds; the micro sign and the Greek letter are both in use.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3600 * 1_000_000_000),
];

const ADVICE: &str = "write numbers with units, as in 90s, 5m or 1h30m";

/// What is wrong with a duration. The command line or the file names the place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DurationError {
    /// Not numbers with units.
    #[error("{0:?} is no duration; {ADVICE}")]
    Malformed(String),
    /// A time before now.
    #[error("{0:?} is negative; {ADVICE}")]
    Negative(String),
    /// Longer than Go's 292 years.
    #[error("{0:?} is too long; {ADVICE}")]
    TooLong(String),
}

/// A duration that is read and written in Go's form. The unit is in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

impl GoDuration {
    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || DurationError::Malformed(text.to_owned());
        let too_long = || DurationError::TooLong(text.to_owned());
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest == "0" || rest == "-0" {
            return Ok(Self::default());
        }
        if rest.is_empty() {
            return Err(malformed());
        }
        if rest.starts_with('-') {
            return Err(DurationError::Negative(text.to_owned()));
        }
        let mut nanoseconds = 0u64;
        while !rest.is_empty() {
            let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(malformed)?;
            let (number, after) = rest.split_at(number_end);
            let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
            let (unit, next) = after.split_at(unit_end);
            let (_, unit) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
            let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
            if whole.len() + fraction.len() == 0 || fraction.contains('.') {
                return Err(malformed());
            }
            let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_long())? };
            let whole = whole.checked_mul(unit).ok_or_else(too_long)?;
            nanoseconds = nanoseconds
                .checked_add(whole)
                .and_then(|sum| sum.checked_add(part_of(fraction, unit)))
                .filter(|sum| *sum <= i64::MAX as u64)
                .ok_or_else(too_long)?;
            rest = next;
        }
        Ok(Self(Duration::from_nanos(nanoseconds)))
    }
}

/// The digits behind a point, as a part of `unit`; what is below a nanosecond is dropped.
fn part_of(digits: &str, unit: u64) -> u64 {
    let mut scale = unit;
    let mut sum = 0;
    for digit in digits.bytes() {
        // An hour has 13 digits of nanoseconds, so no digit is lost that counts.
        sum += u64::from(digit - b'0') * scale / 10;
        scale /= 10;
    }
    sum
}

impl fmt::Display for GoDuration {
    /// As Go prints it: `1h30m0s`, `250ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(duration) = *self;
        if duration.as_secs() == 0 {
            // The same units and decimals as Go's.
            return if duration.is_zero() { f.write_str("0s") } else { write!(f, "{duration:?}") };
        }
        let (hours, minutes) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        let seconds = Duration::new(duration.as_secs() % 60, duration.subsec_nanos());
        write!(f, "{}s", seconds.as_secs_f64())
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print_as_in_go() {
        for (text, nanoseconds, printed) in [
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("-0", 0, "0s"),
            ("5s", 5_000_000_000, "5s"),
            ("+120s", 120_000_000_000, "2m0s"),
            ("1h30m", 5_400_000_000_000, "1h30m0s"),
            ("24h", 86_400_000_000_000, "24h0m0s"),
            ("1.5h", 5_400_000_000_000, "1h30m0s"),
            (".5s", 500_000_000, "500ms"),
            ("5.s", 5_000_000_000, "5s"),
            ("250ms", 250_000_000, "250ms"),
            ("1m0.25s", 60_250_000_000, "1m0.25s"),
            ("3us2\u{b5}s1\u{3bc}s4ns", 6_004, "6.004µs"),
            ("0.3333333333333333333h", 1_200_000_000_000, "20m0s"),
        ] {
            let read: GoDuration = text.parse().unwrap_or_else(|error| panic!("{error}"));
            let GoDuration(duration) = read;
            assert!(
                duration.abs_diff(Duration::from_nanos(nanoseconds)) < Duration::from_nanos(100),
                "{text}: {duration:?}"
            );
            if duration == Duration::from_nanos(nanoseconds) {
                assert_eq!(read.to_string(), printed);
                assert_eq!(printed.parse(), Ok(read));
            }
        }
    }

    #[test]
    fn what_is_none_is_named() {
        let malformed = ["", "3", ".", "s", ".s", "1.2.3s", "1d", "1h 30m", "h1", "1e3s", "ten"];
        let cases = malformed.map(|text| (text, DurationError::Malformed(text.to_owned())));
        let longer = ["9223372036854775808ns", "2562048h", "99999999999999999999h"];
        let cases = cases.into_iter().chain(longer.map(|text| (text, DurationError::TooLong(text.to_owned()))));
        let cases = cases.chain([("-5s", DurationError::Negative("-5s".to_owned()))]);
        for (text, expected) in cases {
            let error = GoDuration::from_str(text).expect_err(text);
            assert_eq!(error, expected);
            assert!(error.to_string().contains("1h30m"), "{error}");
        }
    }
}
