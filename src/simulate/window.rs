//! The ways in which a server may count calls, each as naive as it can be.
//!
//! ```text
//! fixed          |1 2 . . . |. . . . . |     a count per aligned window, its phase unknown
//! first-hit         |1 2 . . . |             a count per window that the first call opens
//! log                . [1 2 . . .]           the accepted calls of the last window
//! log-refusals       . [1 2 x x .]           the accepted and the refused ones
//! bucket            tokens, up to N, N a window
//! gcra              one call every window/N, a few in advance
//! counter        |prev . . |now . .|         this count, and the last one by its share in the window
//! ```
//!
//! A window is half-open: of two calls exactly one window apart, the first is forgotten.

use std::{collections::VecDeque, time::Duration};

use super::settings::Limit;

/// How calls are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum WindowKind {
    /// A count per window; windows follow each other from a phase that the seed decides.
    Fixed,
    /// A count per window; the first call after a window's end opens the next.
    FirstHit,
    /// A sliding log of accepted calls.
    #[default]
    Log,
    /// A sliding log of all calls: being refused keeps the log full.
    LogRefusals,
    /// A token bucket that holds N and gains N a window.
    Bucket,
    /// One call every window/N, with a burst.
    Gcra,
    /// Two aligned counts, the older one weighted by its share in the sliding window.
    Counter,
}

/// What the two-bucket counter compares with its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CounterTest {
    /// Refuse when the estimate with this call exceeds N.
    #[default]
    Including,
    /// Refuse when the estimate before this call has reached N.
    Before,
}

/// What all windows of one quota have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) kind: WindowKind,
    pub(super) gcra_burst: u32,
    pub(super) counter: CounterTest,
    pub(super) limit: Limit,
    /// How much of an aligned window had passed when time began.
    pub(super) phase: Duration,
}

impl Shape {
    /// How long a key must be idle before its window is as good as new.
    pub(super) fn memory(&self) -> Duration {
        let burst = match self.kind {
            WindowKind::Gcra => self.gcra_burst / self.limit.count,
            _ => 0,
        };
        self.limit.window * (2 + burst)
    }

    fn n(&self) -> u128 {
        u128::from(self.limit.count)
    }

    fn nanos(&self) -> u128 {
        self.limit.window.as_nanos()
    }

    /// The aligned window that `at` is in, and how far in (nanoseconds).
    fn aligned(&self, at: Duration) -> (u128, u128) {
        let at = (at + self.phase).as_nanos();
        (at / self.nanos(), at % self.nanos())
    }
}

/// The count of one key. Times are since the simulator's start and never go back.
#[derive(Debug)]
pub(super) enum Window {
    Fixed {
        index: u128,
        used: u128,
    },
    FirstHit {
        opened: Option<Duration>,
        used: u128,
    },
    Log {
        log: VecDeque<(Duration, u32)>,
        sum: u128,
    },
    /// `level` is in tokens times nanoseconds of the window, so that nothing is rounded.
    Bucket {
        level: u128,
        at: Duration,
    },
    /// The theoretical arrival time, in nanoseconds times N, so that nothing is rounded.
    Gcra {
        due: u128,
    },
    Counter {
        index: u128,
        previous: u128,
        current: u128,
    },
}

impl Window {
    pub(super) fn new(shape: &Shape) -> Self {
        match shape.kind {
            WindowKind::Fixed => Self::Fixed { index: 0, used: 0 },
            WindowKind::FirstHit => Self::FirstHit {
                opened: None,
                used: 0,
            },
            WindowKind::Log | WindowKind::LogRefusals => Self::Log {
                log: VecDeque::new(),
                sum: 0,
            },
            WindowKind::Bucket => Self::Bucket {
                level: shape.n() * shape.nanos(),
                at: Duration::ZERO,
            },
            WindowKind::Gcra => Self::Gcra { due: 0 },
            WindowKind::Counter => Self::Counter {
                index: 0,
                previous: 0,
                current: 0,
            },
        }
    }

    /// Counts an arrival of `weight` calls at once; false when it is refused.
    pub(super) fn arrive(&mut self, shape: &Shape, at: Duration, weight: u32) -> bool {
        let (n, nanos, cost) = (shape.n(), shape.nanos(), u128::from(weight));
        match self {
            Self::Fixed { index, used } => {
                let (now, _) = shape.aligned(at);
                if now != *index {
                    (*index, *used) = (now, 0);
                }
                take(used, cost, n)
            }
            Self::FirstHit { opened, used } => {
                if opened.is_none_or(|opened| at.saturating_sub(opened) >= shape.limit.window) {
                    (*opened, *used) = (Some(at), 0);
                }
                take(used, cost, n)
            }
            Self::Log { log, sum } => {
                while let Some(&(old, weight)) = log.front()
                    && at.saturating_sub(old) >= shape.limit.window
                {
                    log.pop_front();
                    *sum -= u128::from(weight);
                }
                let accepted = *sum + cost <= n;
                if accepted || shape.kind == WindowKind::LogRefusals {
                    log.push_back((at, weight));
                    *sum += cost;
                }
                // What lies before the last N calls cannot decide anything any more.
                while let Some(&(_, weight)) = log.front()
                    && *sum - u128::from(weight) >= n
                {
                    log.pop_front();
                    *sum -= u128::from(weight);
                }
                accepted
            }
            Self::Bucket { level, at: filled } => {
                *level = (*level + at.saturating_sub(*filled).as_nanos() * n).min(n * nanos);
                *filled = at;
                let accepted = cost * nanos <= *level;
                if accepted {
                    *level -= cost * nanos;
                }
                accepted
            }
            Self::Gcra { due } => {
                let now = at.as_nanos() * n;
                let next = (*due).max(now) + cost * nanos;
                // A call that weighs more than the burst could otherwise never pass.
                let burst = u128::from(shape.gcra_burst.max(weight));
                let accepted = next - now <= burst * nanos;
                if accepted {
                    *due = next;
                }
                accepted
            }
            Self::Counter {
                index,
                previous,
                current,
            } => {
                let (now, passed) = shape.aligned(at);
                if now != *index {
                    *previous = if now == *index + 1 { *current } else { 0 };
                    (*index, *current) = (now, 0);
                }
                let estimate = *previous * (nanos - passed) + *current * nanos;
                let accepted = match shape.counter {
                    CounterTest::Including => estimate + cost * nanos <= n * nanos,
                    CounterTest::Before => estimate < n * nanos,
                };
                if accepted {
                    *current += cost;
                }
                accepted
            }
        }
    }
}

fn take(used: &mut u128, cost: u128, n: u128) -> bool {
    let accepted = *used + cost <= n;
    if accepted {
        *used += cost;
    }
    accepted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(kind: WindowKind) -> Shape {
        Shape {
            kind,
            gcra_burst: 2,
            counter: CounterTest::Including,
            limit: Limit::new(5, Duration::from_secs(1)),
            phase: Duration::ZERO,
        }
    }

    /// `arrivals` are milliseconds, `expected` has a `+` for each accepted one and a `-` for each
    /// refused one.
    #[track_caller]
    fn check(shape: Shape, arrivals: &[u64], expected: &str) {
        let mut window = Window::new(&shape);
        let seen: String = arrivals
            .iter()
            .map(|&at| window.arrive(&shape, Duration::from_millis(at), 1))
            .map(|accepted| if accepted { '+' } else { '-' })
            .collect();
        assert_eq!(seen, expected, "{:?} at {arrivals:?}", shape.kind);
    }

    #[test]
    fn fixed_window_should_forget_at_its_boundary() {
        let arrivals = [
            900, 950, 960, 970, 999, 999, 1000, 1001, 1002, 1003, 1004, 1005,
        ];
        check(shape(WindowKind::Fixed), &arrivals, "+++++-+++++-");
    }

    #[test]
    fn fixed_window_should_start_at_its_phase() {
        let shape = Shape {
            phase: Duration::from_millis(300),
            ..shape(WindowKind::Fixed)
        };
        let arrivals = [650, 650, 650, 650, 699, 699, 700];
        check(shape, &arrivals, "+++++-+");
    }

    #[test]
    fn first_hit_window_should_open_with_a_call() {
        let arrivals = [900, 950, 960, 970, 999, 1000, 1899, 1900, 2899, 2900];
        check(shape(WindowKind::FirstHit), &arrivals, "+++++--+++");
    }

    #[test]
    fn first_hit_window_should_allow_nearly_twice_its_limit() {
        let arrivals = [0, 999, 999, 999, 999, 1000, 1000, 1000, 1000, 1000, 1000];
        check(shape(WindowKind::FirstHit), &arrivals, "++++++++++-");
    }

    #[test]
    fn log_should_allow_the_limit_in_every_sliding_window_and_no_more() {
        let arrivals = [
            0, 999, 999, 999, 999, 999, 1000, 1000, 1998, 1999, 1999, 1999,
        ];
        check(shape(WindowKind::Log), &arrivals, "+++++-+--+++");
    }

    #[test]
    fn log_should_not_count_what_it_refuses_but_log_refusals_should() {
        let arrivals = [0, 0, 0, 0, 0, 500, 500, 500, 500, 500, 1000, 1500, 2500];
        check(shape(WindowKind::Log), &arrivals, "+++++-----+++");
        check(shape(WindowKind::LogRefusals), &arrivals, "+++++------++");
    }

    #[test]
    fn log_of_refusals_should_stay_small_under_a_flood() {
        let shape = shape(WindowKind::LogRefusals);
        let mut window = Window::new(&shape);
        for at in 0..10_000 {
            window.arrive(&shape, Duration::from_micros(at), 1);
        }
        let Window::Log { log, .. } = window else {
            unreachable!("a log was asked for")
        };
        assert_eq!(log.len(), 5);
    }

    #[test]
    fn bucket_should_hold_the_limit_and_refill_evenly() {
        let arrivals = [
            0, 0, 0, 0, 0, 0, 199, 200, 399, 400, 9000, 9000, 9000, 9000, 9000, 9000,
        ];
        check(shape(WindowKind::Bucket), &arrivals, "+++++--+-++++++-");
    }

    #[test]
    fn gcra_should_allow_its_burst_and_then_one_each_interval() {
        let arrivals = [0, 0, 0, 199, 200, 200, 399, 400, 1000, 1000, 1000];
        check(shape(WindowKind::Gcra), &arrivals, "++--+--+++-");
        let strict = Shape {
            gcra_burst: 1,
            ..shape(WindowKind::Gcra)
        };
        check(strict, &[0, 0, 199, 200, 400], "+--++");
    }

    #[test]
    fn counter_should_weigh_the_previous_window() {
        // At 1200 four fifths of the five before still count: 4 + 1 fit, 4 + 2 do not.
        let arrivals = [
            999, 999, 999, 999, 999, 999, 1000, 1199, 1200, 1200, 1400, 3000,
        ];
        check(shape(WindowKind::Counter), &arrivals, "+++++---+-++");
    }

    #[test]
    fn counter_that_looks_before_should_allow_one_more() {
        let shape = Shape {
            counter: CounterTest::Before,
            ..shape(WindowKind::Counter)
        };
        let arrivals = [999, 999, 999, 999, 999, 999, 1000, 1001, 1002, 1201];
        check(shape, &arrivals, "+++++--+-+");
    }

    #[test]
    fn every_kind_should_take_weights_at_once() {
        for kind in [
            WindowKind::Fixed,
            WindowKind::FirstHit,
            WindowKind::Log,
            WindowKind::LogRefusals,
            WindowKind::Bucket,
            WindowKind::Counter,
        ] {
            let shape = shape(kind);
            let mut window = Window::new(&shape);
            assert!(window.arrive(&shape, Duration::ZERO, 3), "{kind:?}");
            assert!(!window.arrive(&shape, Duration::ZERO, 3), "{kind:?}");
        }
    }

    #[test]
    fn every_kind_should_be_fresh_after_its_memory() {
        for kind in [
            WindowKind::Fixed,
            WindowKind::FirstHit,
            WindowKind::Log,
            WindowKind::LogRefusals,
            WindowKind::Bucket,
            WindowKind::Gcra,
            WindowKind::Counter,
        ] {
            let shape = shape(kind);
            let (mut used, mut fresh) = (Window::new(&shape), Window::new(&shape));
            for _ in 0..20 {
                used.arrive(&shape, Duration::from_millis(7), 1);
            }
            let later = Duration::from_millis(7) + shape.memory();
            for _ in 0..20 {
                let (one, other) = (
                    used.arrive(&shape, later, 1),
                    fresh.arrive(&shape, later, 1),
                );
                assert_eq!(one, other, "{kind:?}");
            }
        }
    }
}
