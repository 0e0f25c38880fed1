//! Durations as people write them: `"250ms"`, `"30s"`, `"1m 30s"`.

use std::time::Duration;

use super::kind::{Kind, quoted, shown, text};
use super::tree::Value;

/// A duration within bounds.
pub(super) struct DurationIn {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl Kind for DurationIn {
    type Value = Duration;

    fn read(&self, value: &Value<'_>) -> Result<Duration, String> {
        let advice = "write a duration such as \"30s\" or \"250ms\"";
        let text = text(value, advice)?.trim();
        if text.parse::<f64>().is_ok() {
            return Err(format!("is {}, which has no unit; {advice}", shown(text)));
        }
        let duration = humantime::parse_duration(text)
            .map_err(|_| format!("is {}, not a duration; {advice}", shown(text)))?;
        if duration < self.min || duration > self.max {
            return Err(format!(
                "is {}; write a duration from {} to {}",
                shown(text),
                written(self.min),
                written(self.max)
            ));
        }
        Ok(duration)
    }

    fn write(&self, value: &Duration) -> String {
        quoted(&written(*value))
    }
}

/// In the largest unit that needs no fraction.
fn written(duration: Duration) -> String {
    const UNITS: [(u128, &str); 5] = [
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ];
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let unit = UNITS.iter().find(|(size, _)| nanos.is_multiple_of(*size));
    unit.map_or_else(
        || format!("{nanos}ns"),
        |(size, name)| format!("{}{name}", nanos / size),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for (millis, expected) in [
            (0, "0s"),
            (1, "1ms"),
            (1500, "1500ms"),
            (60_000, "1m"),
            (90_000, "90s"),
        ] {
            let duration = Duration::from_millis(millis);
            assert_eq!(written(duration), expected);
            assert_eq!(humantime::parse_duration(expected), Ok(duration));
        }
        assert_eq!(written(Duration::from_nanos(1_500)), "1500ns");
    }
}
