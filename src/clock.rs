//! The only reader of time.
//!
//! Everything that decides gets `now` as an argument; everything that waits asks this module. It
//! reads tokio's clock, so a test that pauses time moves the whole gateway.

use std::{cell::Cell, time::Duration};

#[cfg(not(all(test, feature = "shuttle")))]
use futures_util::FutureExt as _;

pub use tokio::time::Instant;

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
