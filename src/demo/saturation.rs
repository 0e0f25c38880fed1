//! How much of a quota was used, from the times of arrival alone. Pure.

use crate::{clock::Instant, simulate::Limit};

/// The arrivals of one key, counted by whole windows from the first one on.
///
/// Whole windows, because a quota is only worth its limit in a whole one: 5 calls in the first
/// 0.1 s of a window are all of it, not ten times too much.
#[derive(Debug)]
pub(super) struct Saturation {
    limit: Limit,
    first: Option<Instant>,
    /// The window of the latest arrival, and what arrived in it.
    current: (u128, u64),
    /// What arrived in all windows before that.
    before: u64,
}

impl Saturation {
    pub(super) fn new(limit: Limit) -> Self {
        Self {
            limit,
            first: None,
            current: (0, 0),
            before: 0,
        }
    }

    /// Notes arrivals, in their order.
    pub(super) fn add(&mut self, arrivals: impl Iterator<Item = Instant>) {
        for at in arrivals {
            let first = *self.first.get_or_insert(at);
            let window = self.windows(first, at);
            if window != self.current.0 {
                self.before += self.current.1;
                self.current = (window, 0);
            }
            self.current.1 += 1;
        }
    }

    /// Arrivals over what the quota allowed, in the windows that are whole at `now`: more than 1 is
    /// more than the quota. `None` if there is no whole window yet.
    pub(super) fn share(&self, now: Instant) -> Option<f64> {
        let whole = self.windows(self.first?, now);
        if whole == 0 {
            return None;
        }
        let (window, count) = self.current;
        let arrived = self.before + if window < whole { count } else { 0 };
        let allowed = whole * u128::from(self.limit.count);
        #[expect(clippy::cast_precision_loss, reason = "a share for people")]
        Some(arrived as f64 / allowed as f64)
    }

    fn windows(&self, first: Instant, at: Instant) -> u128 {
        at.saturating_duration_since(first).as_nanos() / self.limit.window.as_nanos()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    #[track_caller]
    fn check(arrivals_ms: &[u64], now_ms: u64, expected: Option<f64>) {
        let start = clock::now();
        let at = |ms: &u64| start + Duration::from_millis(*ms);
        let mut saturation = Saturation::new(Limit::new(5, Duration::from_secs(1)));
        saturation.add(arrivals_ms.iter().map(at));
        assert_eq!(saturation.share(at(&now_ms)), expected);
    }

    #[test]
    fn share_should_count_whole_windows_from_the_first_arrival() {
        check(&[], 9_000, None);
        check(&[500, 501, 502, 503, 504], 1_499, None);
        check(&[500, 501, 502, 503, 504], 1_500, Some(1.0));
        check(&[500, 501, 502, 503, 504, 1_500, 1_501], 1_600, Some(1.0));
        check(&[500, 501, 502, 503, 504, 1_500, 1_501], 2_500, Some(0.7));
        check(&[0, 2_999], 5_000, Some(0.08));
        check(&[0; 20], 1_000, Some(4.0));
    }
}
