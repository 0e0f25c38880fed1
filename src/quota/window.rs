//! The exact window: at most `limit` calls in any `window`, as the upstream counts them.
//!
//! The upstream counts a call when it arrives, and we never see that moment. We know only that it
//! lies between our send and the reply. So a slot is busy while its call is in flight, and stays
//! busy until one window after the reply:
//!
//! ```text
//!   send          arrival         reply                      free again
//!    |---------------*--------------|                             |
//!    |<-- in flight, busy --------->|<-- window + guard - floor ->|
//! ```
//!
//! The call that reuses the slot is sent after `free again`, so it arrives at least one window
//! after this one did, whatever the two delays were. `floor` is the smallest round trip ever seen:
//! no two one-way delays together are shorter, so that much of the wait is certain to be spent on
//! the wire anyway.
//!
//! Nothing here reads a clock or waits: `now` comes in as an argument.

use std::{collections::VecDeque, time::Duration};

use crate::clock::Instant;

/// The largest limit that settings may say.
pub const LARGEST_LIMIT: u32 = 1_000_000;

/// How long a slot of one quota cools, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Calls (or pairs) that one window holds; at least 1.
    pub limit: u32,
    /// The length of the window that the upstream counts in.
    pub window: Duration,
    /// The longest that an attempt whose connection was lost may still be under way to the
    /// upstream.
    pub call_timeout: Duration,
}

impl Pace {
    /// What is added to every window for timer slack and for clocks that run at different rates:
    /// 1 ms and 200 ppm of the window.
    pub fn guard(&self) -> Duration {
        Duration::from_millis(1) + self.window / 5_000
    }

    /// The time between two uses of one slot, apart from the round trip.
    pub fn period(&self) -> Duration {
        self.window + self.guard()
    }

    /// When a slot whose reply came at `reply_at` is free again.
    pub fn free_after_reply(&self, reply_at: Instant, rtt_floor: Duration) -> Instant {
        reply_at + self.period().saturating_sub(rtt_floor)
    }

    /// When a slot whose attempt got no reply is free again; `closed_at` is when its connection
    /// was given up. The call may be on its way for another `call_timeout`.
    pub fn free_after_loss(&self, closed_at: Instant) -> Instant {
        closed_at + self.call_timeout + self.period()
    }
}

/// The slots of one quota key.
#[derive(Clone, Debug)]
pub struct Window {
    limit: u32,
    in_flight: u32,
    /// When each cooling slot is free again, earliest first.
    cooling: VecDeque<Instant>,
    /// Until then nobody knows how many slots are busy: at least those that are held.
    unknown_until: Option<Instant>,
}

impl Window {
    /// A window with every slot free.
    pub fn new(limit: u32) -> Window {
        assert!(limit > 0, "settings refuse a limit of zero");
        Window {
            limit,
            in_flight: 0,
            cooling: VecDeque::new(),
            unknown_until: None,
        }
    }

    /// A window in which slots are busy until these times, latest first, for a process that knows
    /// what its predecessor sent.
    pub fn remembered(limit: u32, latest_first: impl Iterator<Item = Instant>) -> Window {
        let mut window = Window::new(limit);
        // Perhaps more than `limit`, which may have been lowered since and may be raised again; but
        // what is beyond every limit changes no answer, whatever a file says.
        window.cooling = latest_first.take(LARGEST_LIMIT as usize).collect();
        window.cooling.make_contiguous().reverse();
        window
    }

    /// From now on there are so many slots. Those that are busy beyond it stay busy for their time.
    pub fn resize(&mut self, limit: u32) {
        self.limit = limit.max(1);
    }

    /// From now on a slot cools for `to` instead of `from` after its reply: so do those that cool
    /// already, since the upstream counts by the new length.
    ///
    /// When it is longer, slots that are free were perhaps spent so lately that the upstream still
    /// counts them, and nobody remembers. They are held until the last of those is free, which is the
    /// difference later, and not after `forgotten_by`: when by the new length the last call that was
    /// ever sent is free. `None` if there was none, or nobody waits for those.
    pub fn change_period(
        &mut self,
        now: Instant,
        from: Duration,
        to: Duration,
        forgotten_by: Option<Instant>,
    ) {
        self.free(now);
        let (longer, shorter) = (to.saturating_sub(from), from.saturating_sub(to));
        let changed = |at: Instant| (at + longer).checked_sub(shorter).unwrap_or(now);
        for at in &mut self.cooling {
            *at = changed(*at);
        }
        let unknown_until = self.unknown_until.take();
        // Held again each time: the limit may have been raised since.
        let unknown_until = unknown_until
            .or((!longer.is_zero()).then_some(now))
            .map(|until| changed(until.max(now)));
        if let (Some(until), Some(forgotten_by)) = (unknown_until, forgotten_by) {
            self.hold_free(now, until.min(forgotten_by));
        }
    }

    /// Slots that are free at `now` are not before `until`: nobody knows what was sent in them.
    pub fn hold_free(&mut self, now: Instant, until: Instant) {
        if until <= now {
            return;
        }
        self.unknown_until = self.unknown_until.max(Some(until));
        let free = self.free(now);
        self.in_flight += free;
        self.settle(free, until);
    }

    /// The same calls counted otherwise: what nobody knows of `other` nobody knows of this.
    pub fn hold_as(&mut self, other: &Window, now: Instant) {
        if let Some(until) = other.unknown_until {
            self.hold_free(now, until);
        }
    }

    /// Slots that can be taken at `now`.
    pub fn free(&mut self, now: Instant) -> u32 {
        while self.cooling.front().is_some_and(|&at| at <= now) {
            self.cooling.pop_front();
        }
        self.limit.saturating_sub(self.held())
    }

    /// Takes `slots` together, or none and says so.
    pub fn take(&mut self, now: Instant, slots: u32) -> bool {
        if self.free(now) < slots {
            return false;
        }
        self.in_flight += slots;
        true
    }

    /// Slots are in flight that were taken before there was this window.
    pub fn hold(&mut self, slots: u32) {
        self.in_flight += slots;
    }

    /// Slots taken by [`take`](Self::take) start to cool and are free again at `free_at`.
    pub fn settle(&mut self, slots: u32, free_at: Instant) {
        self.in_flight -= slots;
        // What was sent in them before, and was forgotten, may count for longer.
        let free_at = self
            .unknown_until
            .map_or(free_at, |until| free_at.max(until));
        let place = self.cooling.partition_point(|&at| at <= free_at);
        for _ in 0..slots {
            self.cooling.insert(place, free_at);
        }
    }

    /// Slots taken by [`take`](Self::take) whose call was never written to a socket.
    pub fn refund(&mut self, slots: u32) {
        match self.unknown_until {
            Some(until) => self.settle(slots, until),
            None => self.in_flight -= slots,
        }
    }

    /// When `slots` will be free together.
    pub fn next_free(&mut self, now: Instant, slots: u32) -> Next {
        if slots <= self.free(now) {
            return Next::Now;
        }
        let missing = (self.held() + slots - self.limit) as usize;
        self.cooling
            .get(missing - 1)
            .map_or(Next::WhenSettled, |&at| Next::At(at))
    }

    /// When each cooling slot is free again, earliest first.
    pub fn cooling(&self) -> impl Iterator<Item = Instant> + '_ {
        self.cooling.iter().copied()
    }

    /// Slots whose calls are at the upstream.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// How many slots there are.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Nothing is in flight and nothing cools, so that forgetting the key changes no answer.
    pub fn is_idle(&mut self, now: Instant) -> bool {
        self.busy(now) == 0
    }

    /// When a call that takes `slots`, behind calls that take `ahead`, can be sent at the
    /// earliest; every call is taken to spend `service` at the upstream and its slot to be reused
    /// after `pace.period()`.
    pub fn forecast(
        &mut self,
        now: Instant,
        pace: &Pace,
        ahead: u32,
        slots: u32,
        service: Duration,
    ) -> Instant {
        self.free(now);
        let last = ahead + slots.max(1) - 1;
        let (rounds, slot) = (last / self.limit, last % self.limit);
        // Of a limit that was lowered more may be held than there are slots.
        let missing = (self.held() + slot + 1).saturating_sub(self.limit);
        let first_use = if missing == 0 {
            now
        } else {
            self.cooling
                .get(missing as usize - 1)
                .copied()
                // The rest are in flight: they cool from the moment of their reply.
                .unwrap_or(now + service + pace.period())
        };
        first_use + (pace.period() + service) * rounds
    }

    /// Slots that are in flight or cooling at `now`.
    pub fn busy(&mut self, now: Instant) -> u32 {
        self.free(now);
        self.held()
    }

    fn held(&self) -> u32 {
        self.in_flight + u32::try_from(self.cooling.len()).expect("no limit is larger")
    }
}

/// What [`Window::next_free`] knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The slots are free.
    Now,
    /// The slots are free at this time.
    At(Instant),
    /// Calls in flight hold them: ask again when one has settled.
    WhenSettled,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const MS: Duration = Duration::from_millis(1);

    fn pace(limit: u32, window: Duration) -> Pace {
        Pace {
            limit,
            window,
            call_timeout: 5_000 * MS,
        }
    }

    #[test]
    fn guard_should_be_a_millisecond_and_200_ppm() {
        assert_eq!(pace(5, 1_000 * MS).guard(), Duration::from_micros(1_200));
        assert_eq!(pace(200, 60_000 * MS).guard(), 13 * MS);
    }

    #[test]
    fn a_slot_should_be_busy_in_flight_and_one_window_after_the_reply() {
        let t0 = clock::now();
        let pace = pace(1, 1_000 * MS);
        let mut window = Window::new(1);
        assert!(window.take(t0, 1));
        assert!(!window.take(t0 + 10_000 * MS, 1), "in flight, however long");
        assert_eq!(window.next_free(t0, 1), Next::WhenSettled);

        let free_at = pace.free_after_reply(t0 + 50 * MS, Duration::ZERO);
        window.settle(1, free_at);
        assert_eq!(free_at, t0 + 1_050 * MS + pace.guard());
        assert_eq!(window.next_free(t0 + 50 * MS, 1), Next::At(free_at));
        assert!(
            !window.take(free_at - Duration::from_nanos(1), 1),
            "one nanosecond early"
        );
        assert!(window.take(free_at, 1), "on the dot");
    }

    #[test]
    fn the_floor_should_shorten_the_wait_and_never_below_zero() {
        let t0 = clock::now();
        let pace = pace(1, 1_000 * MS);
        assert_eq!(
            pace.free_after_reply(t0, 20 * MS),
            t0 + pace.period() - 20 * MS
        );
        assert_eq!(pace.free_after_reply(t0, 5_000 * MS), t0);
    }

    #[test]
    fn a_lost_call_should_hold_its_slot_for_the_call_timeout_and_a_window() {
        let t0 = clock::now();
        let pace = pace(1, 1_000 * MS);
        assert_eq!(pace.free_after_loss(t0), t0 + 6_000 * MS + pace.guard());
    }

    #[test]
    fn slots_should_be_taken_together_or_not_at_all() {
        let t0 = clock::now();
        let mut window = Window::new(5);
        assert!(window.take(t0, 3));
        assert!(!window.take(t0, 3));
        assert_eq!(window.free(t0), 2);
        window.settle(3, t0 + 10 * MS);
        assert_eq!(window.next_free(t0, 2), Next::Now);
        assert_eq!(window.next_free(t0, 3), Next::At(t0 + 10 * MS));
        assert!(window.take(t0 + 10 * MS, 5));
        window.refund(5);
        assert!(window.is_idle(t0 + 10 * MS));
    }

    #[test]
    fn slots_should_be_freed_in_the_order_of_their_times_not_of_their_settling() {
        let t0 = clock::now();
        let mut window = Window::new(2);
        assert!(window.take(t0, 2));
        window.settle(1, t0 + 900 * MS);
        window.settle(1, t0 + 300 * MS);
        assert_eq!(window.next_free(t0, 1), Next::At(t0 + 300 * MS));
        assert_eq!(window.next_free(t0, 2), Next::At(t0 + 900 * MS));
    }

    #[test]
    fn a_window_should_tell_what_is_in_flight_and_what_cools() {
        let t0 = clock::now();
        let mut window = Window::new(5);
        assert!(window.is_idle(t0));
        assert!(window.take(t0, 4));
        window.settle(1, t0 + 20 * MS);
        window.settle(1, t0 + 10 * MS);
        assert_eq!((window.limit(), window.in_flight()), (5, 2));
        let cooling: Vec<_> = window.cooling().collect();
        assert_eq!(cooling, [t0 + 10 * MS, t0 + 20 * MS]);
        window.refund(2);
        assert!(!window.is_idle(t0 + 19 * MS));
        assert!(window.is_idle(t0 + 20 * MS));
    }

    #[test]
    fn a_held_window_should_free_everything_at_once() {
        let t0 = clock::now();
        let mut window = Window::new(5);
        window.hold_free(t0, t0 + 1_000 * MS);
        assert!(!window.take(t0 + 999 * MS, 1));
        assert!(window.take(t0 + 1_000 * MS, 5));
    }

    #[test]
    fn a_remembered_window_should_free_each_slot_in_its_time() {
        let t0 = clock::now();
        let until = [t0 + 300 * MS, t0 + 200 * MS, t0 + 100 * MS];
        let mut window = Window::remembered(4, until.into_iter());
        assert_eq!(window.free(t0), 1);
        assert_eq!(window.free(t0 + 200 * MS), 3);
        let mut lowered = Window::remembered(1, until.into_iter());
        assert_eq!(lowered.next_free(t0, 1), Next::At(t0 + 300 * MS));
    }

    #[test]
    fn a_remembered_window_should_keep_no_more_than_the_largest_limit() {
        let t0 = clock::now();
        let claimed = std::iter::repeat_n(t0 + 200 * MS, 900_000)
            .chain(std::iter::repeat_n(t0 + 100 * MS, u32::MAX as usize));
        let mut window = Window::remembered(5, claimed);
        assert_eq!(window.busy(t0), LARGEST_LIMIT);
        window.resize(LARGEST_LIMIT);
        assert_eq!(window.next_free(t0, 1), Next::At(t0 + 100 * MS));
        assert_eq!(window.free(t0 + 100 * MS), 100_000, "the latest are kept");
        assert_eq!(window.free(t0 + 200 * MS), LARGEST_LIMIT);
    }

    #[test]
    fn a_lowered_limit_should_wait_for_all_that_is_held_beyond_it() {
        let t0 = clock::now();
        let pace = pace(2, 1_000 * MS);
        let mut window = Window::new(5);
        assert!(window.take(t0, 5));
        for millis in [100, 200, 300, 400] {
            window.settle(1, t0 + millis * MS);
        }
        window.resize(2);
        assert_eq!(window.next_free(t0, 1), Next::At(t0 + 400 * MS));
        assert_eq!(window.next_free(t0, 2), Next::WhenSettled);
        let forecast = window.forecast(t0, &pace, 0, 1, Duration::ZERO);
        assert_eq!(forecast, t0 + 400 * MS);
        assert_eq!(window.free(t0 + 399 * MS), 0);
        assert_eq!(window.free(t0 + 400 * MS), 1);
        window.resize(5);
        assert_eq!(window.free(t0 + 400 * MS), 4, "and what was raised is free");
    }

    #[test]
    fn a_longer_window_should_lengthen_what_cools_and_hold_what_may_be_forgotten() {
        let t0 = clock::now();
        let (from, to) = (1_000 * MS, 3_000 * MS);
        let cooling = |forgotten_by| {
            let mut window = Window::new(4);
            assert!(window.take(t0, 3));
            window.settle(1, t0);
            window.settle(1, t0 + 500 * MS);
            window.change_period(t0, from, to, forgotten_by);
            assert_eq!(window.in_flight(), 1);
            window.cooling().map(|at| at - t0).collect::<Vec<_>>()
        };
        let far = t0 + 9_000 * MS;
        assert_eq!(cooling(Some(far)), [2_000 * MS, 2_000 * MS, 2_500 * MS]);
        let near = t0 + 700 * MS;
        assert_eq!(cooling(Some(near)), [700 * MS, 700 * MS, 2_500 * MS]);
        assert_eq!(cooling(Some(t0)), [2_500 * MS]);
        assert_eq!(cooling(None), [2_500 * MS]);
    }

    #[test]
    fn what_is_not_known_should_stay_held_whatever_changes_next() {
        let t0 = clock::now();
        let length = |seconds: u32| seconds * 1_000 * MS;
        let far = Some(t0 + length(60));
        // Ten calls that a window of a second has forgotten; then five in three, then twelve in four.
        let mut window = Window::new(10);
        window.resize(5);
        window.change_period(t0, length(1), length(3), far);
        window.resize(12);
        assert_eq!(window.free(t0), 7, "until the change is complete");
        window.change_period(t0 + length(1), length(3), length(4), far);
        assert_eq!(window.free(t0 + length(3) - MS), 0);
        assert_eq!(window.free(t0 + length(3)), 12);

        // A raised limit alone, and a shorter window.
        for (to, free_at) in [(3, 2), (2, 1)] {
            let mut window = Window::new(5);
            window.change_period(t0, length(1), length(3), far);
            window.resize(12);
            window.change_period(t0, length(3), length(to), far);
            assert_eq!(window.free(t0 + length(free_at) - MS), 0);
            assert_eq!(window.free(t0 + length(free_at)), 12);
        }

        // Slots that were in flight then, too: earlier calls in them are forgotten.
        let mut window = Window::new(5);
        assert!(window.take(t0, 2));
        window.change_period(t0, length(1), length(3), far);
        window.refund(1);
        window.settle(1, t0 + length(1));
        assert_eq!(window.free(t0 + length(2) - MS), 0);
        assert_eq!(window.free(t0 + length(2)), 5);

        // What has passed is known again.
        let mut window = Window::new(5);
        window.change_period(t0, length(1), length(3), far);
        window.change_period(t0 + length(2), length(3), length(3), far);
        assert_eq!(window.free(t0 + length(2)), 5);
    }

    #[test]
    fn calls_that_are_counted_otherwise_should_be_held_as_long() {
        let t0 = clock::now();
        let mut window = Window::new(5);
        window.change_period(t0, 1_000 * MS, 3_000 * MS, Some(t0 + 9_000 * MS));
        let mut pairs = Window::remembered(8, [t0 + 2_500 * MS].into_iter());
        pairs.hold_as(&window, t0);
        assert_eq!(pairs.free(t0 + 2_000 * MS - MS), 0);
        assert_eq!(pairs.free(t0 + 2_000 * MS), 7);
        let mut none = Window::new(8);
        none.hold_as(&Window::new(5), t0);
        assert_eq!(none.free(t0), 8);
    }

    #[test]
    fn a_limit_that_is_raised_after_a_start_should_find_all_that_is_remembered() {
        let t0 = clock::now();
        let latest_first = (1..=10).rev().map(|second| t0 + second * 1_000 * MS);
        let mut window = Window::remembered(5, latest_first);
        assert_eq!(window.next_free(t0, 1), Next::At(t0 + 6_000 * MS));
        window.resize(12);
        assert_eq!(window.free(t0), 2);
    }

    #[test]
    fn a_shorter_window_should_free_earlier_and_undo_a_longer_one() {
        let t0 = clock::now();
        let (one, three) = (1_000 * MS, 3_000 * MS);
        let mut window = Window::new(3);
        assert!(window.take(t0, 1));
        window.settle(1, t0 + 500 * MS);
        window.change_period(t0, one, three, Some(t0 + 9_000 * MS));
        assert_eq!(window.free(t0), 0);
        window.change_period(t0, three, one, Some(t0 + 9_000 * MS));
        assert_eq!(window.free(t0), 2);
        assert_eq!(window.next_free(t0, 3), Next::At(t0 + 500 * MS));
    }

    #[test]
    fn the_forecast_should_count_rounds_of_the_window() {
        let t0 = clock::now();
        let pace = pace(5, 1_000 * MS);
        let mut window = Window::new(5);
        let at = |window: &mut Window, ahead| window.forecast(t0, &pace, ahead, 1, 10 * MS) - t0;
        assert_eq!(at(&mut window, 4), Duration::ZERO);
        assert_eq!(at(&mut window, 5), pace.period() + 10 * MS);
        assert_eq!(at(&mut window, 14), (pace.period() + 10 * MS) * 2);

        assert!(window.take(t0, 1));
        assert_eq!(at(&mut window, 3), Duration::ZERO);
        assert_eq!(
            at(&mut window, 4),
            pace.period() + 10 * MS,
            "the fifth slot is in flight"
        );
        window.settle(1, t0 + 400 * MS);
        assert_eq!(at(&mut window, 4), 400 * MS);
        assert_eq!(
            window.forecast(t0, &pace, 0, 5, Duration::ZERO) - t0,
            400 * MS
        );
    }
}
