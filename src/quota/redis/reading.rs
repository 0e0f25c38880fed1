//! What is known of the store's clock. Pure: `now` comes in.
//!
//! A reading was made somewhere between question and answer, so the store's time is known as well as
//! the two are near each other: a process that was stopped in between knows little.

use std::time::Duration;

use super::script::StoreTime;
use crate::clock::Instant;

/// Clocks that are further apart than they should be have been moved.
const MOVED: Duration = Duration::from_millis(50);

/// The store's clock, and ours before and after it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What it showed.
    pub there: StoreTime,
    /// When it was asked.
    pub asked_at: Instant,
    /// When it had answered.
    pub told_at: Instant,
}

impl Reading {
    /// How well the time is known.
    pub fn width(&self) -> Duration {
        self.told_at.saturating_duration_since(self.asked_at)
    }

    /// What the clock shows at `now` at most.
    pub fn latest(&self, now: Instant) -> StoreTime {
        self.there + micros(now.saturating_duration_since(self.asked_at))
    }

    /// What the clock shows at `now` at least.
    pub fn earliest(&self, now: Instant) -> StoreTime {
        self.there + micros(now.saturating_duration_since(self.told_at))
    }

    /// The better of the two: the newer one, unless it is much less exact than the older still is.
    #[must_use]
    pub fn or_finer(self, older: Option<Reading>) -> Reading {
        let worn = |older: &Reading| {
            let age = self.asked_at.saturating_duration_since(older.told_at);
            older.width() + age / 1_000
        };
        older
            .filter(|older| worn(older) < self.width())
            .unwrap_or(self)
    }

    /// Whether the clock shows something else than it would if it had run as ours since `before`.
    pub fn moved_since(&self, before: &Reading) -> bool {
        let passed = self.told_at.saturating_duration_since(before.asked_at);
        let slack = micros(MOVED + passed / 2_000);
        let least = before.earliest(self.asked_at);
        let most = before.latest(self.told_at);
        self.there < least - slack || self.there > most + slack
    }
}

fn micros(duration: Duration) -> StoreTime {
    StoreTime::try_from(duration.as_micros()).unwrap_or(StoreTime::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const MS: Duration = Duration::from_millis(1);

    fn reading(there: StoreTime, asked_at: Instant, width: Duration) -> Reading {
        Reading {
            there,
            asked_at,
            told_at: asked_at + width,
        }
    }

    #[test]
    fn a_clock_that_ran_on_should_not_count_as_moved() {
        let start = clock::now();
        let before = reading(1_000_000, start, 10 * MS);
        let check = |there| reading(there, start + 1_000 * MS, 10 * MS).moved_since(&before);
        assert!(!check(2_000_000));
        assert!(!check(1_945_000) && check(1_900_000), "set back");
        assert!(!check(2_055_000) && check(2_100_000), "set forward");
    }

    #[test]
    fn the_time_should_be_known_as_well_as_it_was_read() {
        let start = clock::now();
        let read = reading(1_000_000, start, 10 * MS);
        assert_eq!(read.earliest(start + 10 * MS), 1_000_000);
        assert_eq!(read.latest(start + 10 * MS), 1_010_000);
        assert_eq!(read.latest(start) - read.earliest(start), 0);
    }

    #[test]
    fn a_reading_across_a_pause_should_not_take_the_place_of_a_better_one() {
        let start = clock::now();
        let fine = reading(1_000_000, start, MS);
        let coarse = reading(2_000_000, start + 1_000 * MS, 300 * MS);
        assert_eq!(coarse.or_finer(Some(fine)), fine);
        let next = reading(2_000_000, start + 1_000 * MS, MS * 3 / 2);
        assert_eq!(
            next.or_finer(Some(fine)),
            next,
            "it has worn by a thousandth"
        );
        assert_eq!(coarse.or_finer(None), coarse);
    }
}
