//! The fullest window of one key, computed exactly from its arrivals.

use std::{collections::VecDeque, time::Duration};

use super::settings::Limit;

/// The most weight that arrived in any half-open window of the limit's length, wherever it begins.
///
/// The fullest window can be moved until it ends with an arrival, so it is enough to look back
/// from each. Only the last window's stamps are kept, and of those no more than a flood far beyond
/// the limit would need; past that the count is a lower bound.
#[derive(Debug)]
pub(super) struct Peak {
    recent: VecDeque<(Duration, u32)>,
    sum: u64,
    pub(super) worst: u64,
    pub(super) exact: bool,
}

impl Peak {
    pub(super) fn new() -> Self {
        Self {
            recent: VecDeque::new(),
            sum: 0,
            worst: 0,
            exact: true,
        }
    }

    /// Notes an arrival; `at` never goes back.
    pub(super) fn note(&mut self, limit: Limit, at: Duration, weight: u32) {
        while let Some(&(old, _)) = self.recent.front()
            && at.saturating_sub(old) >= limit.window
        {
            self.forget();
        }
        if self.recent.len() as u64 > 4 * u64::from(limit.count) + 1000 {
            self.forget();
            self.exact = false;
        }
        self.recent.push_back((at, weight));
        self.sum += u64::from(weight);
        self.worst = self.worst.max(self.sum);
    }

    fn forget(&mut self) {
        if let Some((_, weight)) = self.recent.pop_front() {
            self.sum -= u64::from(weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn peak_should_agree_with_a_brute_force(
            gaps in prop::collection::vec((0_u64..400, 1_u32..4), 1..60),
            window in 1_u64..1200,
        ) {
            let limit = Limit::new(5, Duration::from_millis(window));
            let mut arrivals = Vec::new();
            let (mut at, mut peak) = (0, Peak::new());
            for (gap, weight) in gaps {
                at += gap;
                arrivals.push((at, weight));
                peak.note(limit, Duration::from_millis(at), weight);
            }
            let brute: u64 = (0..=at)
                .map(|start| {
                    arrivals
                        .iter()
                        .filter(|(at, _)| (start..start + window).contains(at))
                        .map(|&(_, weight)| u64::from(weight))
                        .sum()
                })
                .max()
                .unwrap();
            prop_assert_eq!(peak.worst, brute);
            prop_assert!(peak.exact);
        }
    }

    #[test]
    fn peak_should_stay_small_under_a_flood_and_say_so() {
        let limit = Limit::new(5, Duration::from_mins(1));
        let mut peak = Peak::new();
        for _ in 0..10_000 {
            peak.note(limit, Duration::ZERO, 1);
        }
        assert!(peak.recent.len() < 1100 && peak.worst > 1000 && !peak.exact);
    }
}
