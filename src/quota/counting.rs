//! What one slot of a quota stands for, and how that is found out where the vendor does not say.
//!
//! It starts with calls. A key keeps a [`Tally`] of the pairs that its recent calls carried, and two
//! things settle the question:
//!
//! - The upstream refuses a call although fewer than `limit` calls were in the window, and more than
//!   `limit` pairs: it counts pairs.
//! - It takes more pairs than any way of counting them would let through: it counts calls.
//!
//! Nothing here reads a clock: `now` comes in as an argument.

use std::{collections::VecDeque, time::Duration};

use super::window::{Pace, Window};
use crate::clock::Instant;

/// What one slot stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// An upstream call, however many travel in it.
    Calls,
    /// A pair.
    Pairs,
}

impl Counting {
    /// The name in settings and on the admin port.
    pub fn name(self) -> &'static str {
        match self {
            Counting::Calls => "calls",
            Counting::Pairs => "pairs",
        }
    }
}

/// What is known of the upstream's way of counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Known {
    /// It counts calls: the vendor or the settings say so, or it was seen.
    Calls,
    /// Nothing yet: calls are counted so far.
    CallsSoFar,
    /// It counts pairs: the settings say so, or it was seen.
    Pairs,
}

impl Known {
    pub(super) const ALL: [Known; 3] = [Known::Calls, Known::CallsSoFar, Known::Pairs];

    /// What is counted.
    pub fn counting(self) -> Counting {
        match self {
            Known::Calls | Known::CallsSoFar => Counting::Calls,
            Known::Pairs => Counting::Pairs,
        }
    }
}

/// The pairs of the calls that a window of calls holds.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    in_flight: u32,
    /// When the slot of each call is free again, earliest first, and how many pairs it carried.
    cooling: VecDeque<Cooling>,
    /// The pairs of those that the upstream took.
    taken: u64,
}

#[derive(Clone, Copy, Debug)]
struct Cooling {
    free_at: Instant,
    pairs: u32,
    taken: bool,
}

impl Tally {
    /// The calls that the process before this one made, in any order.
    pub fn remembered(calls: impl Iterator<Item = (Instant, u32)>) -> Tally {
        let mut cooling: Vec<_> = calls
            .map(|(free_at, pairs)| Cooling {
                free_at,
                pairs,
                taken: false,
            })
            .collect();
        cooling.sort_by_key(|call| call.free_at);
        Tally {
            cooling: cooling.into(),
            ..Tally::default()
        }
    }

    /// A call with so many pairs, or so many more of one, is on its way.
    pub fn take(&mut self, pairs: u32) {
        self.in_flight += pairs;
    }

    /// Its slot is free again at `free_at`; `taken` says that the upstream took it.
    pub fn settle(&mut self, pairs: u32, free_at: Instant, taken: bool) {
        self.in_flight -= pairs;
        let place = self.cooling.partition_point(|call| call.free_at <= free_at);
        let call = Cooling {
            free_at,
            pairs,
            taken,
        };
        self.cooling.insert(place, call);
        self.taken += call.taken_pairs();
    }

    /// From now on a slot cools for `to` instead of `from`, as that of its window does.
    pub fn change_period(&mut self, now: Instant, from: Duration, to: Duration) {
        self.forget(now);
        for call in &mut self.cooling {
            let shorter = from.saturating_sub(to);
            let at = call.free_at + to.saturating_sub(from);
            call.free_at = at.checked_sub(shorter).unwrap_or(now);
        }
    }

    /// It was never sent.
    pub fn refund(&mut self, pairs: u32) {
        self.in_flight -= pairs;
    }

    /// The pairs that may be in the upstream's window at `now`.
    pub fn busy(&mut self, now: Instant) -> u32 {
        self.forget(now);
        // What is remembered is as large as a file says.
        let cooling = self.cooling.iter().map(|call| call.pairs);
        cooling.fold(self.in_flight, u32::saturating_add)
    }

    /// The upstream took more pairs than it could if it counted them.
    ///
    /// The calls that are summed up arrived within a window, the guard and a round trip. Whatever
    /// the way of counting, that much time lets through at most `limit` for each window that it
    /// touches.
    pub fn is_beyond_pairs(&mut self, now: Instant, pace: &Pace) -> bool {
        self.forget(now);
        let extra = pace.guard() + pace.call_timeout;
        let extra_windows = extra.as_nanos().div_ceil(pace.window.as_nanos().max(1));
        u128::from(self.taken) > u128::from(pace.limit) * (2 + extra_windows)
    }

    /// The same calls in a window of `limit` that counts their pairs.
    pub fn into_window(mut self, now: Instant, limit: u32) -> Window {
        self.forget(now);
        let latest_first = self.cooling.iter().rev();
        let slots =
            latest_first.flat_map(|call| std::iter::repeat_n(call.free_at, call.pairs as usize));
        let mut window = Window::remembered(limit, slots);
        window.hold(self.in_flight);
        window
    }

    fn forget(&mut self, now: Instant) {
        while let Some(call) = self.cooling.front().filter(|call| call.free_at <= now) {
            self.taken -= call.taken_pairs();
            self.cooling.pop_front();
        }
    }
}

impl Cooling {
    fn taken_pairs(&self) -> u64 {
        if self.taken { self.pairs.into() } else { 0 }
    }
}

/// Whether a refusal beside so many calls and pairs, its own included, says that pairs are counted.
pub fn shows_pairs(calls: u32, pairs: u32, limit: u32) -> bool {
    calls < limit && pairs > limit
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{clock, quota::window::LARGEST_LIMIT};

    const SECOND: Duration = Duration::from_secs(1);

    fn pace() -> Pace {
        Pace {
            limit: 10,
            window: 60 * SECOND,
            call_timeout: 5 * SECOND,
        }
    }

    #[test]
    fn a_refusal_should_show_pairs_on_one_side_of_both_limits_only() {
        assert!(shows_pairs(9, 11, 10));
        assert!(!shows_pairs(9, 10, 10), "the pairs had room");
        assert!(!shows_pairs(10, 200, 10), "the calls had hardly room");
    }

    #[test]
    fn a_tally_should_count_what_is_in_flight_and_what_cools() {
        let now = clock::now();
        let mut tally = Tally::default();
        tally.take(4);
        tally.take(3);
        assert_eq!(tally.busy(now), 7);
        tally.settle(4, now + SECOND, true);
        tally.refund(3);
        tally.take(20);
        assert_eq!(tally.busy(now), 24);
        assert_eq!(tally.busy(now + SECOND), 20);
    }

    #[test]
    fn a_tally_should_survive_whatever_is_remembered() {
        let now = clock::now();
        let huge = [(now + SECOND, u32::MAX), (now + 2 * SECOND, u32::MAX)];
        let mut tally = Tally::remembered(huge.into_iter());
        tally.take(1);
        assert_eq!(tally.busy(now), u32::MAX);
        let mut window = tally.into_window(now, 10);
        assert_eq!(window.busy(now), LARGEST_LIMIT + 1);
        assert_eq!(window.free(now + 2 * SECOND), 9);
    }

    #[test]
    fn slots_should_be_free_at_their_times_in_whatever_order_they_were_settled() {
        let now = clock::now();
        let mut tally = Tally::default();
        for (pairs, after) in [(1, 3), (2, 1), (4, 2), (8, 2)] {
            tally.take(pairs);
            tally.settle(pairs, now + after * SECOND, true);
        }
        let busy = [0, 1, 2, 3].map(|after| tally.busy(now + after * SECOND));
        assert_eq!(busy, [15, 13, 1, 0]);
    }

    #[test]
    fn slots_should_cool_for_a_changed_period() {
        let now = clock::now();
        let mut tally = Tally::default();
        tally.take(3);
        tally.settle(3, now + 4 * SECOND, true);
        tally.change_period(now, 5 * SECOND, 7 * SECOND);
        let just_before = Duration::from_millis(1);
        assert_eq!(tally.clone().busy(now + 6 * SECOND - just_before), 3);
        assert_eq!(tally.clone().busy(now + 6 * SECOND), 0);
        tally.change_period(now, 7 * SECOND, 2 * SECOND);
        assert_eq!(tally.clone().busy(now + SECOND - just_before), 3);
        assert_eq!(tally.busy(now + SECOND), 0);
    }

    #[test]
    fn a_tally_should_become_a_window_of_pairs() {
        let now = clock::now();
        let mut tally = Tally::remembered([(now + 3 * SECOND, 2), (now + SECOND, 3)].into_iter());
        tally.take(4);
        let mut window = tally.clone().into_window(now, 10);
        assert_eq!((window.in_flight(), window.free(now)), (4, 1));
        assert_eq!(window.free(now + SECOND), 4);
        assert_eq!(window.free(now + 3 * SECOND), 6);
        window.settle(4, now + 4 * SECOND);
        assert_eq!(window.free(now + 4 * SECOND), 10);
        let mut full = tally.into_window(now, 5);
        assert_eq!(full.free(now + 2 * SECOND), 0, "four in flight, two cool");
    }

    #[test]
    fn more_pairs_than_three_windows_hold_should_show_calls() {
        let now = clock::now();
        let mut tally = Tally::default();
        let mut settle = |pairs, taken| {
            tally.take(pairs);
            tally.settle(pairs, now + SECOND, taken);
            tally.is_beyond_pairs(now, &pace())
        };
        assert!(!settle(20, true));
        assert!(!settle(20, false), "refused or lost");
        assert!(!settle(10, true), "as many as three windows hold");
        assert!(settle(1, true));
        assert!(!tally.is_beyond_pairs(now + SECOND, &pace()));
    }
}
