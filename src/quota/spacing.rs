//! One call every so often, for upstreams that forbid bursts: governor's GCRA with a burst of one,
//! at the moments that it is asked about.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

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
    limiter: RateLimiter<NotKeyed, InMemoryState, Asked, NoOpMiddleware<Nanos>>,
    asked: Asked,
    first: Option<Instant>,
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
        let asked = Asked::default();
        Spacing {
            gap,
            limiter: RateLimiter::direct_with_clock(quota, asked.clone()),
            asked,
            first: None,
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
        if self.next(now).is_some() {
            return false;
        }
        let first = *self.first.get_or_insert(now);
        self.asked.about(now - first);
        if self.limiter.check().is_err() {
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

/// governor's clock. It stands at the moment of the question: a clock that runs on would be later
/// than the time that [`Spacing`] counts from, and refuse the next call at its due time.
#[derive(Clone, Debug, Default)]
struct Asked(Arc<AtomicU64>);

impl Asked {
    fn about(&self, since_first: Duration) {
        let nanos = u64::try_from(since_first.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanos, Ordering::Relaxed);
    }
}

impl Clock for Asked {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.load(Ordering::Relaxed).into()
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

    #[tokio::test(start_paused = true)]
    async fn a_call_should_be_due_one_gap_after_the_time_given_however_late_it_was_asked_about() {
        let gap = Duration::from_millis(200);
        let mut spacing = Spacing::new(gap, None);
        let start = clock::now();
        // The time was read, then others had the processor.
        clock::sleep(Duration::from_millis(5)).await;
        assert!(spacing.take(start, 1));
        clock::sleep_until(start + gap).await;
        assert_eq!(spacing.next(clock::now()), None);
        assert!(spacing.take(clock::now(), 1), "what is due can be taken");
    }
}
