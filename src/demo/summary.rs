//! The two columns at the end: the same calls with the gateway and without.

use std::fmt;

use super::{callers::Tally, is_busy};
use crate::simulate::{Report, Worst};

/// One column: what callers heard and what their upstream counted.
#[derive(Clone, Debug)]
pub(super) struct Side {
    /// What the callers were told.
    pub(super) heard: Tally,
    /// Calls that the upstream counted.
    pub(super) arrived: u64,
    /// Those of them that it refused over a quota.
    pub(super) refused: u64,
    /// The fullest window of the busy group.
    pub(super) fullest: Option<Worst>,
    /// What arrived for the busy group, over what its quota allowed.
    pub(super) share: Option<f64>,
}

impl Side {
    pub(super) fn new(heard: Tally, upstream: &Report, share: Option<f64>) -> Side {
        let fullest = upstream.worst.iter().find(|worst| is_busy(&worst.key));
        Side {
            heard,
            arrived: upstream.calls,
            refused: upstream.refusals.values().sum(),
            fullest: fullest.cloned(),
            share,
        }
    }
}

/// What the demo found.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    pub(super) with: Side,
    pub(super) without: Side,
    /// Calls that travelled in another's upstream call.
    pub(super) merged: u64,
    /// Attempts that the gateway repeated.
    pub(super) repeats: u64,
    /// Calls through the gateway that were not the sample callers'.
    pub(super) others: u64,
}

impl Summary {
    /// Whether the upstream behind the gateway refused nothing over a quota.
    pub(super) fn kept_the_quotas(&self) -> bool {
        self.with.refused == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        row(f, "the same calls", "with the gateway", "without")?;
        let mut both = |title: &str, figure: &dyn Fn(&Side) -> String| {
            row(f, title, &figure(&self.with), &figure(&self.without))
        };
        both("calls by the callers", &|s| s.heard.calls().to_string())?;
        both("  answered OK", &|s| s.heard.ok.to_string())?;
        both("  refused over quota", &|s| s.heard.over_quota.to_string())?;
        both("  failed otherwise", &|s| s.heard.failed.to_string())?;
        both("upstream calls", &|s| s.arrived.to_string())?;
        both("  refused over quota", &|s| s.refused.to_string())?;
        both("busy group: fullest window", &fullest)?;
        both("busy group: share of its quota used", &share)?;
        row(
            f,
            "writes merged into another's",
            &self.merged.to_string(),
            "-",
        )?;
        row(f, "repeats after a fault", &self.repeats.to_string(), "-")?;
        if self.others > 0 {
            row(
                f,
                "calls by others, such as curl",
                &self.others.to_string(),
                "-",
            )?;
        }
        if self.kept_the_quotas() {
            writeln!(
                f,
                "\nThe upstream behind the gateway refused nothing over quota."
            )
        } else {
            writeln!(
                f,
                "\nFAILED: the upstream behind the gateway refused {} calls over quota.",
                self.with.refused
            )
        }
    }
}

fn row(f: &mut fmt::Formatter<'_>, title: &str, with: &str, without: &str) -> fmt::Result {
    writeln!(f, "{title:<36} {with:>16} {without:>16}")
}

fn fullest(side: &Side) -> String {
    match &side.fullest {
        Some(Worst { count, limit, .. }) => format!("{count} of {limit}"),
        None => "-".to_owned(),
    }
}

fn share(side: &Side) -> String {
    match side.share {
        Some(share) => format!("{:.0} %", share * 100.0),
        // No window was whole yet.
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::simulate::{Limit, QuotaKey};

    #[test]
    fn summary_should_be_pleasant_to_read_and_fail_on_a_refusal() {
        let side = |over_quota, arrived, refused, count, share| Side {
            heard: Tally {
                ok: 90,
                over_quota,
                failed: 1,
            },
            arrived,
            refused,
            fullest: Some(Worst {
                key: QuotaKey::Group {
                    sdkappid: "1".into(),
                    group: "g".into(),
                },
                count,
                limit: Limit::new(5, Duration::from_secs(1)),
                exact: true,
            }),
            share,
        };
        let mut summary = Summary {
            with: side(0, 40, 0, 5, Some(0.984)),
            without: side(9, 100, 9, 21, None),
            merged: 50,
            repeats: 2,
            others: 1,
        };
        let expected = "\
the same calls                       with the gateway          without
calls by the callers                               91              100
  answered OK                                      90               90
  refused over quota                                0                9
  failed otherwise                                  1                1
upstream calls                                     40              100
  refused over quota                                0                9
busy group: fullest window                  5 of 5/1s       21 of 5/1s
busy group: share of its quota used              98 %                -
writes merged into another's                       50                -
repeats after a fault                               2                -
calls by others, such as curl                       1                -

The upstream behind the gateway refused nothing over quota.
";
        assert_eq!(summary.to_string(), expected);
        assert!(summary.kept_the_quotas());
        summary.with.refused = 3;
        assert!(!summary.kept_the_quotas());
        assert!(summary.to_string().contains("FAILED") && summary.to_string().contains("3 calls"));
    }
}
