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
}

impl Window {
    /// A window with every slot free.
    pub fn new(limit: u32) -> Window {
        assert!(limit > 0, "settings refuse a limit of zero");
        Window {
            limit,
            in_flight: 0,
            cooling: VecDeque::new(),
        }
    }

    /// A window that counts as spent until `until`, for a process that does not know what its
    /// predecessor sent.
    pub fn spent(limit: u32, until: Instant) -> Window {
        let mut window = Window::new(limit);
        window.cooling = (0..limit).map(|_| until).collect();
        window
    }

    /// A window in which slots are busy until these times, latest first, for a process that knows
    /// what its predecessor sent.
    pub fn remembered(limit: u32, latest_first: impl Iterator<Item = Instant>) -> Window {
        let mut window = Window::new(limit);
        // The limit may have been lowered since: the first slot is free when all but `limit` are.
        window.cooling = latest_first.take(limit as usize).collect();
        window.cooling.make_contiguous().reverse();
        window
    }

    /// From now on there are so many slots. Those that are busy beyond it stay busy for their time.
    pub fn resize(&mut self, limit: u32) {
        self.limit = limit.max(1);
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
        let place = self.cooling.partition_point(|&at| at <= free_at);
        for _ in 0..slots {
            self.cooling.insert(place, free_at);
        }
    }

    /// Slots taken by [`take`](Self::take) whose call was never written to a socket.
    pub fn refund(&mut self, slots: u32) {
        self.in_flight -= slots;
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
        let free = self.free(now);
        let last = ahead + slots.max(1) - 1;
        let (rounds, slot) = (last / self.limit, last % self.limit);
        let first_use = if slot < free {
            now
        } else {
            self.cooling
                .get((slot - free) as usize)
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
        self.in_flight + u32::try_from(self.cooling.len()).expect("at most `limit` slots cool")
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
    fn a_spent_window_should_free_everything_at_once() {
        let t0 = clock::now();
        let mut window = Window::spent(5, t0 + 1_000 * MS);
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
