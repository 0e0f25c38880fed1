//! One call every so often, for upstreams that forbid bursts: governor's GCRA with a burst of one,
//! over the gateway's clock.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed},
};

use crate::clock::{self, Instant};

/// Spaces the calls of one key.
#[derive(Debug)]
pub struct Spacing {
    gap: Duration,
    limiter: RateLimiter<NotKeyed, InMemoryState, OverTokio, NoOpMiddleware<Nanos>>,
    /// governor has no look without a take; with a burst of one the next time is known.
    next: Option<Instant>,
}

impl Spacing {
    /// One call every `gap`, beginning `after` the last one, if there was one.
    pub fn new(gap: Duration, after: Option<Instant>) -> Spacing {
        let gap = gap.max(Duration::from_nanos(1));
        let quota = governor::Quota::with_period(gap)
            .expect("the gap is not zero")
            .allow_burst(NonZeroU32::MIN);
        let clock = OverTokio::from_now();
        Spacing {
            gap,
            limiter: RateLimiter::direct_with_clock(quota, clock),
            next: after.map(|after| after + gap),
        }
    }

    /// The time between two calls.
    pub fn gap(&self) -> Duration {
        self.gap
    }

    /// When the next call may be sent, if not at `now`.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        self.next.filter(|&next| next > now)
    }

    /// The call that was sent last takes `slots` more.
    pub fn extend(&mut self, slots: u32) {
        self.next = self.next.map(|next| next + self.gap * slots);
    }

    /// A call that takes `slots` is sent at `now`.
    pub fn take(&mut self, now: Instant, slots: u32) -> bool {
        if self.next(now).is_some() || self.limiter.check().is_err() {
            return false;
        }
        self.next = Some(now + self.gap * slots);
        true
    }
}

/// governor's view of the gateway's clock, which paused time moves.
#[derive(Clone, Debug)]
pub struct OverTokio {
    base: Instant,
}

impl OverTokio {
    /// A clock that counts from now on.
    pub fn from_now() -> OverTokio {
        OverTokio { base: clock::now() }
    }
}

impl Clock for OverTokio {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(clock::now() - self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_should_be_spaced_and_heavy_ones_pay_for_each_slot() {
        let gap = Duration::from_millis(200);
        let mut spacing = Spacing::new(gap, None);
        let start = clock::now();
        assert!(spacing.take(start, 1));
        assert_eq!(spacing.next(start), Some(start + gap));
        assert!(!spacing.take(clock::now(), 1));
        clock::sleep(gap).await;
        assert!(spacing.take(clock::now(), 3));
        assert_eq!(spacing.next(clock::now()), Some(start + 4 * gap));
        clock::sleep(3 * gap).await;
        assert!(spacing.take(clock::now(), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn spacing_should_begin_after_the_call_before_it() {
        let now = clock::now();
        let spacing = Spacing::new(Duration::from_secs(1), Some(now));
        assert_eq!(spacing.next(now), Some(now + Duration::from_secs(1)));
    }
}
