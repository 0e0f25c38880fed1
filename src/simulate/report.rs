//! The sum of a run, for people.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
};

use super::{fault::Fault, journal::Totals, quotas::QuotaKey, settings::Limit};

/// What a simulator saw so far. Printing it gives a few aligned lines.
#[derive(Clone, Debug)]
pub struct Report {
    /// Commands that arrived.
    pub calls: u64,
    /// Writes that were executed, whatever their callers were told.
    pub applied: u64,
    /// Calls that other spenders made.
    pub foreign: u64,
    /// How often each `ErrorCode` was answered, 0 included.
    pub answers: BTreeMap<i64, u64>,
    /// How often a quota refused a call, by the code for that.
    pub refusals: BTreeMap<i64, u64>,
    /// How often each fault was met.
    pub faults: BTreeMap<Fault, u64>,
    /// The keys that came nearest to their limits or went beyond, the fullest first, at most 20.
    pub worst: Vec<Worst>,
}

/// The fullest window of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worst {
    /// Whose window it is.
    pub key: QuotaKey,
    /// The most that arrived in any sliding half-open window, refused calls included and other
    /// spenders' calls not.
    pub count: u64,
    /// The limit and the length of the window.
    pub limit: Limit,
    /// False when so much arrived that the count is only a lower bound.
    pub exact: bool,
}

impl Worst {
    /// Whether more arrived than the limit allows.
    pub fn is_over(&self) -> bool {
        self.count > u64::from(self.limit.count)
    }
}

impl Report {
    /// How many keys a report lists.
    pub(super) const WORST: usize = 20;

    pub(super) fn new(totals: Totals, worst: Vec<Worst>) -> Self {
        Self {
            calls: totals.calls,
            applied: totals.applied,
            foreign: totals.foreign,
            answers: totals.answers,
            refusals: totals.refusals,
            faults: totals.faults,
            worst,
        }
    }
}

impl Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused: u64 = self.refusals.values().sum();
        writeln!(
            formatter,
            "{} calls arrived, {} writes were applied, {} calls were refused by a quota",
            grouped(self.calls),
            grouped(self.applied),
            grouped(refused),
        )?;
        if self.foreign > 0 {
            writeln!(formatter, "  by others    {}", grouped(self.foreign))?;
        }
        line(formatter, "answered", &self.answers)?;
        line(formatter, "refused", &self.refusals)?;
        line(formatter, "disturbed", &self.faults)?;
        if !self.worst.is_empty() {
            writeln!(formatter, "  fullest windows")?;
        }
        for worst in &self.worst {
            let bound = if worst.exact { "" } else { "at least " };
            let count = format!("{bound}{}", grouped(worst.count));
            let over = if worst.is_over() { "OVER" } else { "" };
            let (limit, key) = (worst.limit.to_string(), &worst.key);
            writeln!(formatter, "    {count:>9} of {limit:<8} {over:<4} {key}")?;
        }
        Ok(())
    }
}

fn line<K: Display>(
    formatter: &mut fmt::Formatter<'_>,
    title: &str,
    counts: &BTreeMap<K, u64>,
) -> fmt::Result {
    if counts.is_empty() {
        return Ok(());
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(what, count)| format!("{what}: {}", grouped(*count)))
        .collect();
    writeln!(formatter, "  {title:<12} {}", counts.join(", "))
}

/// A number with a comma before each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_should_be_pleasant_to_read() {
        let worst = |group: &str, count, exact| Worst {
            key: QuotaKey::Group {
                sdkappid: "1400000000".into(),
                group: group.into(),
            },
            count,
            limit: Limit::new(5, std::time::Duration::from_secs(1)),
            exact,
        };
        let report = Report {
            calls: 1_234_567,
            applied: 999,
            foreign: 12,
            answers: [(0, 1_234_560), (10049, 6)].into(),
            refusals: [(10049, 6)].into(),
            faults: [(Fault::Hang, 1)].into(),
            worst: vec![worst("a", 1021, false), worst("b", 5, true)],
        };
        let expected = "\
1,234,567 calls arrived, 999 writes were applied, 6 calls were refused by a quota
  by others    12
  answered     0: 1,234,560, 10049: 6
  refused      10049: 6
  disturbed    hang: 1
  fullest windows
    at least 1,021 of 5/1s     OVER group 1400000000/a
            5 of 5/1s          group 1400000000/b
";
        assert_eq!(report.to_string(), expected);
    }
}
