//! The round trip that no call undercuts: how much of a slot's wait is certain to be spent on the
//! wire.
//!
//! A slot may be reused one window after its call arrived. We know when its reply came; the way
//! back took at least the smallest delay there, and the next call takes at least the smallest
//! delay out. Both together are the smallest round trip that the line has. What we have seen is
//! never less than that, and with jitter at first a good deal more: so the smallest of a few round
//! trips is not trusted as it is, but less the more their mean lies above it and the fewer they
//! are.
//!
//! Nothing here reads a clock: `now` comes in as an argument.

use std::{collections::VecDeque, time::Duration};

use crate::clock::Instant;

/// How long a round trip counts.
const MEMORY: Duration = Duration::from_secs(600);
/// Round trips are kept as the sums of so long a time.
const SPAN: Duration = Duration::from_secs(60);
/// Fewer round trips than this say nothing.
const ENOUGH: u32 = 32;
/// What is trusted of the smallest round trip: a line may become shorter.
const TRUSTED: f64 = 0.9;

/// The smallest round trips of the last ten minutes.
#[derive(Clone, Debug, Default)]
pub struct RttFloor {
    spans: VecDeque<Span>,
    /// A refusal that our count cannot explain: until then nothing is taken for certain.
    doubted_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    since: Instant,
    min: Duration,
    sum: Duration,
    count: u32,
}

impl RttFloor {
    /// Takes in one round trip.
    pub fn record(&mut self, now: Instant, rtt: Duration) {
        self.forget(now);
        match self.spans.back_mut().filter(|span| now - span.since < SPAN) {
            Some(span) => {
                span.min = span.min.min(rtt);
                span.sum += rtt;
                span.count += 1;
            }
            None => self.spans.push_back(Span {
                since: now,
                min: rtt,
                sum: rtt,
                count: 1,
            }),
        }
    }

    /// The upstream refused what should have had room: the next ten minutes go without a floor.
    pub fn doubt(&mut self, now: Instant) {
        self.doubted_until = Some(now + MEMORY);
    }

    /// What every round trip takes at least, as far as it can be trusted; zero at first.
    pub fn get(&mut self, now: Instant) -> Duration {
        self.forget(now);
        let count: u32 = self.spans.iter().map(|span| span.count).sum();
        if count < ENOUGH || self.doubted_until.is_some_and(|until| now < until) {
            return Duration::ZERO;
        }
        let min = self
            .spans
            .iter()
            .map(|span| span.min)
            .min()
            .unwrap_or_default();
        let mean = self.spans.iter().map(|span| span.sum).sum::<Duration>() / count;
        // The smallest of n sums of two delays lies above the true floor by about the spread over
        // the root of n. Eight times that is taken off: among a thousand random lines none was then
        // overestimated by more than the guard; with a quarter of it every second one was.
        let unsure = mean
            .saturating_sub(min)
            .mul_f64(8.0 / f64::from(count).sqrt());
        min.saturating_sub(unsure).mul_f64(TRUSTED)
    }

    fn forget(&mut self, now: Instant) {
        while self
            .spans
            .front()
            .is_some_and(|span| now - span.since >= MEMORY + SPAN)
        {
            self.spans.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::clock;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_floor_should_be_zero_until_enough_is_known() {
        let mut floor = RttFloor::default();
        let now = clock::now();
        for _ in 1..ENOUGH {
            floor.record(now, 10 * MS);
            assert_eq!(floor.get(now), Duration::ZERO);
        }
        floor.record(now, 10 * MS);
        assert_eq!(
            floor.get(now),
            9 * MS,
            "a line without jitter is known at once"
        );
    }

    #[test]
    fn the_floor_should_follow_the_smallest_of_ten_minutes() {
        let mut floor = RttFloor::default();
        let start = clock::now();
        for _ in 0..ENOUGH {
            floor.record(start, 10 * MS);
        }
        let mut now = start;
        while now < start + MEMORY {
            now += 10 * 1_000 * MS;
            floor.record(now, 100 * MS);
        }
        assert!(floor.get(now) < 10 * MS);
        now += 2 * SPAN;
        floor.record(now, 100 * MS);
        assert_eq!(floor.get(now), 90 * MS, "the old line is forgotten");
        assert_eq!(
            floor.get(now + 2 * MEMORY),
            Duration::ZERO,
            "and so is this one"
        );
    }

    #[test]
    fn a_doubt_should_hold_for_ten_minutes() {
        let mut floor = RttFloor::default();
        let now = clock::now();
        floor.doubt(now);
        let later = now + MEMORY;
        for _ in 0..ENOUGH {
            floor.record(later, 10 * MS);
        }
        assert_eq!(floor.get(later - MS), Duration::ZERO);
        assert_eq!(floor.get(later), 9 * MS);
    }

    #[test]
    fn round_trips_should_be_kept_as_one_sum_a_minute() {
        let mut floor = RttFloor::default();
        let start = clock::now();
        for second in 0..3_600 {
            floor.record(start + second * 1_000 * MS, 10 * MS);
            let minutes = (second / 60 + 1).min(11) as usize;
            assert_eq!(floor.spans.len(), minutes, "after {second} s");
        }
    }

    #[test]
    fn the_smallest_should_be_trusted_less_the_more_the_others_lie_above_it() {
        let mut floor = RttFloor::default();
        let now = clock::now();
        for n in 0..400 {
            floor.record(now, if n % 2 == 0 { 10 * MS } else { 20 * MS });
        }
        // The mean is 5 ms above it, and eight times that over the root of 400 is 2 ms.
        assert_eq!(floor.get(now), Duration::from_micros(7_200));
    }

    #[test]
    fn the_floor_should_stay_below_what_the_line_can_do() {
        for seed in 0..1_000 {
            let rng = &mut StdRng::seed_from_u64(seed);
            let (least, jitter) = (rng.random_range(0..60), rng.random_range(1..80));
            let mut floor = RttFloor::default();
            let now = clock::now();
            for _ in 0..400 {
                let mut way = || MS * least / 2 + (MS * jitter).mul_f64(rng.random());
                let rtt = way() + way();
                floor.record(now, rtt);
                // The guard of the shortest window covers what is left of the doubt.
                assert!(
                    floor.get(now) <= MS * least + MS,
                    "seed {seed}: {:?}",
                    floor.get(now)
                );
            }
        }
    }
}
