//! The only reader of time.
//!
//! Everything that decides gets `now` as an argument; everything that waits asks this module. It
//! reads tokio's clock, so a test that pauses time moves the whole gateway.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

#[cfg(not(all(test, feature = "shuttle")))]
use futures_util::FutureExt as _;
use parking_lot::Mutex;

pub use tokio::time::Instant;

use crate::workers::EachWorker;

/// Now, on the monotonic clock that paused time moves.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the file that the lint points to"
)]
pub fn now() -> Instant {
    #[cfg(all(test, feature = "shuttle"))]
    if let Some(now) = crate::sync::model::now() {
        return now;
    }
    Instant::now()
}

/// Waits until `at`; returns at once when it has passed.
pub async fn sleep_until(at: Instant) {
    #[cfg(all(test, feature = "shuttle"))]
    return crate::sync::model::sleep_until(at).await;
    #[cfg(not(all(test, feature = "shuttle")))]
    tokio::time::sleep_until(at).await;
}

/// Waits for `duration`.
pub async fn sleep(duration: Duration) {
    #[cfg(all(test, feature = "shuttle"))]
    return sleep_until(now() + duration).await;
    #[cfg(not(all(test, feature = "shuttle")))]
    tokio::time::sleep(duration).await;
}

/// What comes of `future`; `None` if it is not ready by `at`. Dropped then.
#[cfg(not(all(test, feature = "shuttle")))]
pub fn by<F: Future>(at: Instant, future: F) -> impl Future<Output = Option<F::Output>> {
    // An async function would have the future twice: as its argument and where it is awaited.
    tokio::time::timeout_at(at, future).map(Result::ok)
}

/// What comes of `future`; `None` if it is not ready by `at`, as the model tells time.
#[cfg(all(test, feature = "shuttle"))]
pub async fn by<F: Future>(at: Instant, future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = sleep_until(at) => None,
    }
}

/// Ends what takes too long, one after the other. A wait for each would have to be entered among those of
/// the runtime and taken out again; this one stays, and when it is over looks whether it was meant. Of the
/// runtime, not of a model.
pub struct Alarm {
    wait: Pin<Box<tokio::time::Sleep>>,
    /// Whose waker it has: while it has not rung that is kept there, so that no other has its address.
    registered: Option<usize>,
}

impl Default for Alarm {
    fn default() -> Alarm {
        Alarm {
            wait: Box::pin(tokio::time::sleep_until(now())),
            registered: None,
        }
    }
}

impl Alarm {
    /// Ready when `at` has come; until then whoever polls is woken for the times of others, too.
    pub fn poll_until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_rung() || self.wait.deadline() > at {
            self.wait.as_mut().reset(at);
        } else if self.is_set(cx) {
            return Poll::Pending;
        }
        self.registered = Some(cx.waker().data().addr());
        while self.wait.as_mut().poll(cx).is_ready() {
            if self.wait.deadline() >= at {
                return Poll::Ready(());
            }
            self.wait.as_mut().reset(at);
        }
        Poll::Pending
    }

    /// Whether it will wake whoever asks, sooner or later.
    pub fn is_set(&self, cx: &Context<'_>) -> bool {
        !self.has_rung() && self.registered == Some(cx.waker().data().addr())
    }

    /// Or was never polled: that would wake its task at once, for nothing.
    fn has_rung(&self) -> bool {
        self.registered.is_none() || self.wait.is_elapsed()
    }

    /// What comes of `future`; `None` if it is not ready by `at`.
    pub fn by<'a, F: Future>(
        &'a mut self,
        at: Instant,
        mut future: Pin<&'a mut F>,
    ) -> impl Future<Output = Option<F::Output>> + use<'a, F> {
        poll_fn(move |cx| self.poll_by(at, future.as_mut(), cx))
    }

    fn poll_by<F: Future>(
        &mut self,
        at: Instant,
        future: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<F::Output>> {
        match future.poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll_until(at, cx).map(|()| None),
        }
    }
}

/// How many [`Alarms`] are kept for each worker.
const ALARMS_KEPT: usize = 64;

/// Alarms for whatever there are many of and what is mostly over in time: those of one that is over serve
/// the next.
#[derive(Default)]
pub struct Alarms(EachWorker<Mutex<Vec<Alarm>>>);

impl Alarms {
    /// What comes of `future`; `None` if it is not ready by `at`.
    pub fn by<'a, F: Future>(
        &'a self,
        at: Instant,
        mut future: Pin<&'a mut F>,
    ) -> impl Future<Output = Option<F::Output>> + use<'a, F> {
        let kept = self.0.get().lock().pop();
        let mut lent = Lent {
            alarms: self,
            alarm: Some(kept.unwrap_or_default()),
        };
        poll_fn(move |cx| {
            let alarm = lent.alarm.as_mut().expect("just put there");
            alarm.poll_by(at, future.as_mut(), cx)
        })
    }
}

/// Goes back when it is dropped.
struct Lent<'a> {
    alarms: &'a Alarms,
    alarm: Option<Alarm>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut kept = self.alarms.0.get().lock();
        if kept.len() < ALARMS_KEPT {
            kept.extend(self.alarm.take());
        }
    }
}

/// Time since 1970 on the wall clock, for what people and other machines read. Never used to
/// decide how long to wait. Time that passes in a paused test passes here too.
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "this is the file that the lint points to"
)]
pub fn unix_now() -> Duration {
    let wall = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .saturating_sub(SET_BACK.get());
    // Both are the same clock, unless a test has paused the one.
    let (here, real) = (Instant::now().into_std(), std::time::Instant::now());
    match here.checked_duration_since(real) {
        Some(ahead) => wall + ahead,
        None => wall.saturating_sub(real - here),
    }
}

thread_local! {
    static SET_BACK: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Sets the wall clock of this thread back by so much in all, for tests in which processes follow
/// each other.
pub fn set_wall_clock_back(by: Duration) {
    SET_BACK.set(by);
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_alarm_should_ring_for_each_use_at_its_own_time() {
        let mut alarm = Alarm::default();
        let start = now();
        let mut check = async |limit, takes, ends| {
            let (began, seconds) = (now(), Duration::from_secs);
            let work = pin!(sleep(seconds(takes)));
            let done = alarm.by(began + seconds(limit), work).await;
            assert_eq!(done.is_some(), takes < limit, "{limit} {takes}");
            assert_eq!(now() - start, seconds(ends), "{limit} {takes}");
        };
        check(5, 9, 5).await;
        check(5, 1, 6).await;
        // What was set for the last one comes first.
        check(5, 9, 11).await;
        check(5, 1, 12).await;
        check(2, 9, 14).await;
        check(30, 29, 43).await;
        check(30, 31, 73).await;
    }
}
