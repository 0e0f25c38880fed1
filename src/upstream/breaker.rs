//! The circuit breaker: while the upstream cannot be reached, one call at a time finds out whether
//! it is back, and the others wait.
//!
//! Only failures to connect count. An upstream that answers, however badly, is there; and one that
//! hangs holds its callers by its timeout and its slots already.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    clock::{self, Instant},
    sync::{Mutex, Notify},
};

/// Connections that must fail in a row before calls are held back.
const FAILURES_TO_OPEN: u32 = 5;

/// Lets calls through, or holds them back while the upstream cannot be reached.
#[derive(Debug)]
pub struct Breaker {
    state: Mutex<State>,
    /// Whether `state` is closed and counts no failure: then a look at it is saved.
    is_well: AtomicBool,
    changed: Notify,
}

/// Decides; knows neither clock nor task.
#[derive(Debug)]
struct State {
    first_wait: Duration,
    max_wait: Duration,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed { failures: u32 },
    Open { probe_at: Instant, wait: Duration },
    Probing { wait: Duration },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Send,
    Probe,
    WaitUntil(Instant),
    WaitForProbe,
}

/// Leave to make one attempt. A probe that is dropped without a result lets the next one try.
#[derive(Debug)]
#[must_use = "tell it whether the upstream was reached"]
pub struct Leave {
    /// Of a probe, which it was given by.
    probing: Option<Arc<Breaker>>,
}

impl Breaker {
    /// Closed. Probes wait `first_wait` after the failure that opens it, then twice as long each
    /// time, up to `max_wait`.
    pub fn new(first_wait: Duration, max_wait: Duration) -> Breaker {
        let phase = Phase::Closed { failures: 0 };
        Breaker {
            state: Mutex::new(State {
                first_wait,
                max_wait,
                phase,
            }),
            is_well: AtomicBool::new(true),
            changed: Notify::new(),
        }
    }

    /// From now on probes wait so long; one that waits already goes by what held before.
    pub fn set_waits(&self, first_wait: Duration, max_wait: Duration) {
        let mut state = self.state.lock();
        state.first_wait = first_wait;
        state.max_wait = max_wait;
    }

    /// Waits until an attempt might be let through; at once while the upstream is there. Cancel
    /// safe.
    pub async fn passable(&self) {
        if self.is_closed() {
            return;
        }
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look at the state, so that no change falls between.
            changed.as_mut().enable();
            let decision = self.state.lock().decide(clock::now);
            match decision {
                Decision::Send | Decision::Probe => return,
                Decision::WaitForProbe => changed.await,
                Decision::WaitUntil(at) => {
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = clock::sleep_until(at) => {}
                    }
                }
            }
        }
    }

    /// The upstream is there, as far as is known.
    pub fn is_closed(&self) -> bool {
        self.is_well() || matches!(self.state.lock().phase, Phase::Closed { .. })
    }

    fn is_well(&self) -> bool {
        self.is_well.load(Ordering::Acquire)
    }

    /// Leave to make one attempt now. `None` if another one is probing already.
    pub fn try_leave(self: &Arc<Self>) -> Option<Leave> {
        if self.is_well() {
            return Some(Leave { probing: None });
        }
        let mut state = self.state.lock();
        match state.decide(clock::now) {
            Decision::Send => Some(Leave { probing: None }),
            Decision::Probe => {
                state.probe();
                let probing = Some(self.clone());
                Some(Leave { probing })
            }
            Decision::WaitUntil(_) | Decision::WaitForProbe => None,
        }
    }

    /// When the upstream is tried next, while it counts as unreachable.
    pub fn next_probe(&self, now: Instant) -> Option<Instant> {
        if self.is_well() {
            return None;
        }
        match self.state.lock().phase {
            Phase::Closed { .. } => None,
            Phase::Open { probe_at, .. } => Some(probe_at.max(now)),
            Phase::Probing { .. } => Some(now),
        }
    }

    /// A reply, or at least a connection, came back to an attempt that left by `leave`.
    pub fn reached(&self, mut leave: Leave) {
        leave.probing = None;
        if self.is_well() {
            return;
        }
        let mut state = self.state.lock();
        let closed = state.reached();
        self.is_well.store(true, Ordering::Release);
        drop(state);
        if closed {
            tracing::info!("the upstream can be reached again");
            self.changed.notify_waiters();
        }
    }

    /// There was no connection.
    pub fn unreachable(&self, mut leave: Leave, cause: &str) {
        leave.probing = None;
        let mut state = self.state.lock();
        let opened = state.unreachable(clock::now());
        self.is_well.store(false, Ordering::Release);
        drop(state);
        if opened {
            tracing::warn!(
                cause,
                "the upstream cannot be reached; calls wait while it is probed"
            );
        }
        self.changed.notify_waiters();
    }

    /// For the status page: `closed`, `open` or `probing`.
    pub fn name(&self) -> &'static str {
        match self.state.lock().phase {
            Phase::Closed { .. } => "closed",
            Phase::Open { .. } => "open",
            Phase::Probing { .. } => "probing",
        }
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some(breaker) = self.probing.take() {
            breaker.state.lock().gave_up(clock::now());
            breaker.changed.notify_waiters();
        }
    }
}

impl State {
    /// The time is asked for only while the upstream is away.
    fn decide(&self, now: impl FnOnce() -> Instant) -> Decision {
        match self.phase {
            Phase::Closed { .. } => Decision::Send,
            Phase::Probing { .. } => Decision::WaitForProbe,
            Phase::Open { probe_at, .. } if probe_at <= now() => Decision::Probe,
            Phase::Open { probe_at, .. } => Decision::WaitUntil(probe_at),
        }
    }

    fn probe(&mut self) {
        if let Phase::Open { wait, .. } = self.phase {
            self.phase = Phase::Probing { wait };
        }
    }

    /// True if this closed the breaker.
    fn reached(&mut self) -> bool {
        let closed = !matches!(self.phase, Phase::Closed { .. });
        self.phase = Phase::Closed { failures: 0 };
        closed
    }

    /// True if this opened the breaker.
    fn unreachable(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::Closed { failures } if failures + 1 < FAILURES_TO_OPEN => {
                self.phase = Phase::Closed {
                    failures: failures + 1,
                };
                false
            }
            Phase::Closed { .. } => {
                let wait = self.first_wait;
                self.phase = Phase::Open {
                    probe_at: now + wait,
                    wait,
                };
                true
            }
            Phase::Probing { wait } => {
                let wait = (wait * 2).min(self.max_wait);
                self.phase = Phase::Open {
                    probe_at: now + wait,
                    wait,
                };
                false
            }
            // An attempt that left before the breaker opened.
            Phase::Open { .. } => false,
        }
    }

    fn gave_up(&mut self, now: Instant) {
        if let Phase::Probing { wait } = self.phase {
            self.phase = Phase::Open {
                probe_at: now,
                wait,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn open(now: Instant) -> State {
        let phase = Phase::Closed { failures: 0 };
        let mut state = State {
            first_wait: 100 * MS,
            max_wait: 300 * MS,
            phase,
        };
        for n in 1..=FAILURES_TO_OPEN {
            assert_eq!(state.decide(|| now), Decision::Send);
            assert_eq!(state.unreachable(now), n == FAILURES_TO_OPEN);
        }
        state
    }

    #[test]
    fn breaker_should_open_after_failures_in_a_row_only() {
        let now = clock::now();
        let phase = Phase::Closed { failures: 0 };
        let mut state = State {
            first_wait: MS,
            max_wait: MS,
            phase,
        };
        for _ in 0..3 {
            for _ in 1..FAILURES_TO_OPEN {
                assert!(!state.unreachable(now));
            }
            assert!(!state.reached());
        }
        assert_eq!(state.decide(|| now), Decision::Send);
    }

    #[test]
    fn breaker_should_probe_one_at_a_time_and_wait_longer_each_time() {
        let mut now = clock::now();
        let mut state = open(now);
        for wait in [100, 200, 300, 300] {
            assert_eq!(state.decide(|| now), Decision::WaitUntil(now + wait * MS));
            now += wait * MS;
            assert_eq!(state.decide(|| now), Decision::Probe);
            state.probe();
            assert_eq!(state.decide(|| now), Decision::WaitForProbe);
            assert!(!state.unreachable(now));
        }
        now += 300 * MS;
        assert_eq!(state.decide(|| now), Decision::Probe);
        assert!(state.reached());
        assert_eq!(state.decide(|| now), Decision::Send);
    }

    async fn leave(breaker: &Arc<Breaker>) -> Leave {
        loop {
            breaker.passable().await;
            if let Some(leave) = breaker.try_leave() {
                return leave;
            }
        }
    }

    async fn opened() -> Arc<Breaker> {
        let breaker = Arc::new(Breaker::new(100 * MS, 1_000 * MS));
        for _ in 0..FAILURES_TO_OPEN {
            let leave = leave(&breaker).await;
            breaker.unreachable(leave, "refused");
        }
        assert_eq!(breaker.name(), "open");
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_should_let_the_next_one_try() {
        let breaker = opened().await;
        let probe = leave(&breaker).await;
        assert!(probe.probing.is_some());
        let next = tokio::spawn({
            let breaker = breaker.clone();
            async move { leave(&breaker).await.probing.is_some() }
        });
        clock::sleep(MS).await;
        assert!(!next.is_finished(), "one at a time");
        drop(probe);
        assert!(next.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn everyone_should_go_on_when_a_probe_gets_through() {
        let breaker = opened().await;
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let breaker = breaker.clone();
                tokio::spawn(async move {
                    let leave = leave(&breaker).await;
                    breaker.reached(leave);
                })
            })
            .collect();
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!(breaker.name(), "closed");
        assert_eq!(breaker.next_probe(clock::now()), None);
    }
}
