//! The pause after a refusal by quota: the upstream counted what we did not, so the key waits for
//! at least one slot's share of the window, longer with each refusal in a row, up to the window.

use std::time::Duration;

use super::window::Pace;
use crate::clock::Instant;

/// Until when a key rests. Pure: `now` comes in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rest {
    until: Option<Instant>,
    refusals_in_row: u32,
}

impl Rest {
    /// The upstream refused a call over the quota: rest for `window / limit`, doubled for each
    /// refusal in a row, at most the window.
    pub fn refused(&mut self, now: Instant, pace: &Pace) {
        let share = pace.window / pace.limit;
        let length = 2_u32
            .checked_pow(self.refusals_in_row)
            .and_then(|factor| share.checked_mul(factor))
            .map_or(pace.window, |length| length.min(pace.window));
        self.refusals_in_row = self.refusals_in_row.saturating_add(1);
        self.until = self.until.max(Some(now + length));
    }

    /// The upstream took a call: the next rest starts small again.
    pub fn accepted(&mut self) {
        self.refusals_in_row = 0;
    }

    /// When the rest is over, if it is not yet.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|&until| until > now)
    }

    /// How long the key has still to rest.
    pub fn left(&self, now: Instant) -> Duration {
        self.until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_rest_should_grow_from_a_slots_share_to_the_window_and_shrink_after_success() {
        let pace = Pace {
            limit: 5,
            window: Duration::from_secs(1),
            call_timeout: Duration::from_secs(5),
        };
        let mut now = clock::now();
        let mut rest = Rest::default();
        assert_eq!(rest.until(now), None);
        for millis in [200, 400, 800, 1_000, 1_000] {
            rest.refused(now, &pace);
            let length = Duration::from_millis(millis);
            assert_eq!(rest.left(now), length);
            assert_eq!(rest.until(now), Some(now + length));
            now += rest.left(now);
            assert_eq!(rest.until(now), None);
        }
        rest.accepted();
        rest.refused(now, &pace);
        assert_eq!(rest.left(now), Duration::from_millis(200));
    }

    #[test]
    fn a_later_refusal_should_not_shorten_a_rest() {
        let pace = Pace {
            limit: 1,
            window: Duration::from_secs(60),
            call_timeout: Duration::ZERO,
        };
        let now = clock::now();
        let mut rest = Rest::default();
        rest.refused(now, &pace);
        rest.accepted();
        rest.refused(now - Duration::from_secs(30), &pace);
        assert_eq!(rest.left(now), Duration::from_secs(60));
    }
}
