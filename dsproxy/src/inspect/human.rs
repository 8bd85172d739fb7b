//! Numbers as people read them. Pure.

use std::time::Duration;

/// A time, in its two largest units.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let pair = |large: u64, unit: &str, small: u64, small_unit: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    match seconds {
        0 if time.as_micros() < 1000 => format!("{}us", time.as_micros()),
        0 => format!("{}ms", time.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => pair(seconds / 60, "m", seconds % 60, "s"),
        3600..86_400 => pair(seconds / 3600, "h", seconds / 60 % 60, "m"),
        _ => pair(seconds / 86_400, "d", seconds / 3600 % 24, "h"),
    }
}

/// A number of bytes, in powers of 1024.
pub(super) fn bytes(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// How many a second, in powers of 1000.
pub(super) fn rate(per_second: f64) -> String {
    scaled(per_second, 1000.0, &["", "k", "M", "G", "T"])
}

/// Bits a second, of bytes a second.
pub(super) fn bit_rate(bytes_per_second: f64) -> String {
    scaled(bytes_per_second * 8.0, 1000.0, &["bit", "kbit", "Mbit", "Gbit", "Tbit"])
}

fn scaled(mut number: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while number >= step && unit + 1 < units.len() {
        number /= step;
        unit += 1;
    }
    let text = if number >= 100.0 || number.fract() == 0.0 { format!("{number:.0}") } else { format!("{number:.1}") };
    match units.get(unit) {
        Some(&"") | None => text,
        Some(unit) if unit.len() == 1 && *unit != "B" => format!("{text}{unit}"),
        Some(unit) => format!("{text} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_two_units_at_most() {
        for (milliseconds, expected) in [
            (0, "0us"),
            (350, "350ms"),
            (1_000, "1s"),
            (59_999, "59s"),
            (192_000, "3m12s"),
            (180_000, "3m"),
            (7_380_000, "2h3m"),
            (446_400_000, "5d4h"),
        ] {
            assert_eq!(span(Duration::from_millis(milliseconds)), expected);
        }
        assert_eq!(span(Duration::from_micros(350)), "350us");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0, 999, 4096, 7_340_608, 268_435_456].map(bytes),
            ["0 B", "999 B", "4 KiB", "7.0 MiB", "256 MiB"].map(str::to_owned)
        );
        assert_eq!([0.0, 0.5, 12.0, 1234.0, 2e6].map(rate), ["0", "0.5", "12", "1.2k", "2M"].map(str::to_owned));
        assert_eq!(bit_rate(1250.0), "10 kbit");
    }
}
