//! How often one caller may call: governor's GCRA over the gateway's clock.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    RateLimiter,
    clock::Clock as _,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed},
};

use crate::quota::spacing::OverTokio;

/// The calls of one caller.
#[derive(Debug)]
pub(super) struct Rate {
    limiter: RateLimiter<NotKeyed, InMemoryState, OverTokio, NoOpMiddleware<Nanos>>,
    clock: OverTokio,
}

impl Rate {
    /// `burst` calls at once after a pause, `rate` a second in the long run; 0 counts as 1.
    pub(super) fn new(rate: u32, burst: u32) -> Rate {
        let positive = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        let quota = governor::Quota::per_second(positive(rate)).allow_burst(positive(burst));
        let clock = OverTokio::from_now();
        Rate {
            limiter: RateLimiter::direct_with_clock(quota, clock.clone()),
            clock,
        }
    }

    /// One call now; or how long until there is room for it.
    pub(super) fn take(&self) -> Result<(), Duration> {
        self.limiter
            .check()
            .map_err(|wait| wait.wait_time_from(self.clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[tokio::test(start_paused = true)]
    async fn a_caller_should_have_his_burst_and_then_his_rate() {
        let rate = Rate::new(50, 100);
        for call in 0..100 {
            assert_eq!(rate.take(), Ok(()), "call {call}");
        }
        let wait = rate.take().unwrap_err();
        assert_eq!(wait, Duration::from_millis(20));
        clock::sleep(Duration::from_millis(19)).await;
        assert!(rate.take().is_err());
        clock::sleep(Duration::from_millis(1)).await;
        assert_eq!(rate.take(), Ok(()));
        assert!(rate.take().is_err());
        clock::sleep(Duration::from_secs(60)).await;
        let taken = (0..200).filter(|_| rate.take().is_ok()).count();
        assert_eq!(taken, 100, "a long pause saves no more than a burst");
    }
}
