//! Sizes in bytes: `"1MiB"`, `"64KiB"`, `"1024B"`, `"1MB"`.
//!
//! Units with an `i` count in 1024, those without in 1000, as everywhere outside of memory chips.
//! `"1M"` is refused, because readers disagree on which of the two it is.

use super::kind::{Kind, quoted, shown, text};
use super::tree::Value;

const UNITS: [(&str, usize); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
];

/// A number of bytes within bounds.
pub(super) struct SizeIn {
    pub(super) min: usize,
    pub(super) max: usize,
}

impl Kind for SizeIn {
    type Value = usize;

    fn read(&self, value: &Value<'_>) -> Result<usize, String> {
        let advice = "write a size such as \"1MiB\", \"64KiB\" or \"1024B\"";
        let text = text(value, advice)?.trim();
        let size =
            parse(text).ok_or_else(|| format!("is {}, not a size; {advice}", shown(text)))?;
        if size < self.min || size > self.max {
            return Err(format!(
                "is {}; write a size from {} to {}",
                shown(text),
                written(self.min),
                written(self.max)
            ));
        }
        Ok(size)
    }

    fn write(&self, value: &usize) -> String {
        quoted(&written(*value))
    }
}

fn parse(text: &str) -> Option<usize> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '_')?;
    let (digits, unit) = text.split_at(digits_end);
    let digits = digits.replace('_', "");
    let (_, bytes) = UNITS.iter().find(|(name, _)| *name == unit.trim_start())?;
    if digits.is_empty() {
        return None;
    }
    // So many digits that they do not fit are above every bound.
    Some(
        digits
            .parse::<usize>()
            .unwrap_or(usize::MAX)
            .saturating_mul(*bytes),
    )
}

/// In the largest binary unit that needs no fraction.
fn written(size: usize) -> String {
    let unit = UNITS.iter().find(|(name, bytes)| {
        name.ends_with('B') && bytes.is_power_of_two() && size.is_multiple_of(*bytes)
    });
    match unit {
        Some((name, bytes)) if size > 0 => format!("{}{name}", size / bytes),
        _ => format!("{size}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_and_decimal_units_differ() {
        assert_eq!(parse("1MiB"), Some(1_048_576));
        assert_eq!(parse("1MB"), Some(1_000_000));
        assert_eq!(parse("64 KiB"), Some(65_536));
        assert_eq!(parse("1_024B"), Some(1_024));
        assert_eq!(parse("99999999999999999999GiB"), Some(usize::MAX));
    }

    #[test]
    fn what_is_ambiguous_or_partial_is_no_size() {
        for text in ["", "1", "1M", "1.5MiB", "MiB", "_B", "-1B", "1mib", "1MiB2"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for (size, expected) in [
            (0, "0B"),
            (1_000, "1000B"),
            (1 << 20, "1MiB"),
            (3 << 9, "1536B"),
            (5 << 30, "5GiB"),
        ] {
            assert_eq!(written(size), expected);
            assert_eq!(parse(expected), Some(size));
        }
    }
}
