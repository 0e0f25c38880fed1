//! How long a connection may take over what it does.
//!
//! ```text
//!  connect .... first byte .. head read .. answered ........ first byte .. head read ..
//!  |---- header_timeout ----|             |- idle_timeout -||- header_t. -|
//!                                  answer: |- write_timeout -| until all of it is taken
//! ```
//!
//! While a call is being served no limit of this file holds: the gateway has its own for that. On a
//! connection that carries many calls at a time (HTTP/2) bytes are not the beginning of a head.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

use crate::{
    bound::Bound,
    clock::{self, Instant},
};

/// The time limits of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) header: Duration,
    pub(super) idle: Duration,
    pub(super) write: Duration,
}

/// What one connection does, and since when.
#[derive(Debug)]
pub(super) struct Activity {
    timeouts: Timeouts,
    state: Mutex<State>,
    taken: Notify,
}

#[derive(Debug)]
struct State {
    between: Between,
    since: Instant,
    calls: usize,
    multiplexed: bool,
    /// Since when the caller has not taken all that was written to him.
    untaken: Option<Instant>,
}

/// What a connection does while no call is being served.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Between {
    /// A head has begun to arrive.
    Head,
    /// Nothing.
    Idle,
}

impl State {
    fn received(&mut self, now: Instant) {
        if self.calls == 0 && self.between == Between::Idle && !self.multiplexed {
            self.between = Between::Head;
            self.since = now;
        }
    }

    fn blocked(&mut self, now: Instant) {
        self.untaken.get_or_insert(now);
    }

    /// Everything that was written has been taken; whether something was not before.
    fn flushed(&mut self, now: impl FnOnce() -> Instant) -> bool {
        let was = self.untaken.take().is_some();
        if was && self.between == Between::Idle {
            self.since = now();
        }
        was
    }

    fn begin(&mut self, multiplexed: bool) {
        self.calls += 1;
        self.multiplexed |= multiplexed;
    }

    fn end(&mut self, now: Instant) {
        self.calls -= 1;
        self.between = Between::Idle;
        self.since = now;
    }

    /// When which limit is reached.
    fn due(&self, timeouts: &Timeouts) -> Option<(Instant, Bound)> {
        match (self.untaken, self.between) {
            (Some(since), _) => Some((since + timeouts.write, Bound::WriteTime)),
            _ if self.calls > 0 => None,
            (None, Between::Head) => Some((self.since + timeouts.header, Bound::HeaderTime)),
            (None, Between::Idle) => Some((self.since + timeouts.idle, Bound::IdleTime)),
        }
    }
}

impl Activity {
    /// Of a connection that was accepted now.
    pub(super) fn new(timeouts: Timeouts) -> Arc<Activity> {
        Arc::new(Activity {
            timeouts,
            state: Mutex::new(State {
                between: Between::Head,
                since: clock::now(),
                calls: 0,
                multiplexed: false,
                untaken: None,
            }),
            taken: Notify::new(),
        })
    }

    /// The transport, watched.
    pub(super) fn watch<IO>(self: &Arc<Self>, io: IO) -> Watched<IO> {
        Watched {
            io,
            activity: self.clone(),
        }
    }

    /// A call is being served for as long as what is returned is there. `multiplexed` says whether
    /// others may be at the same time.
    pub(super) fn call(self: &Arc<Self>, multiplexed: bool) -> Serving {
        self.state.lock().begin(multiplexed);
        Serving(self.clone())
    }

    /// What is idle is being closed: it has as long as a head has.
    pub(super) fn wind_up(&self) {
        let mut state = self.state.lock();
        state.between = Between::Head;
        state.since = clock::now();
    }

    /// Waits until the caller has taken the answers to his earlier calls: who sends one call after
    /// the other and reads nothing is not served on and on.
    pub(super) async fn taken(&self) {
        while self.is_untaken() {
            self.taken.notified().await;
        }
    }

    fn is_untaken(&self) -> bool {
        let state = self.state.lock();
        state.untaken.is_some() && !state.multiplexed
    }

    /// Runs a connection until its end, or to the limit that it reached.
    pub(super) async fn within<F: Future>(&self, connection: F) -> Result<F::Output, Bound> {
        let mut connection = pin!(connection);
        let mut rings = clock::now() + self.timeouts.header;
        let mut alarm = pin!(clock::sleep_until(rings));
        poll_fn(|cx| {
            if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                return Poll::Ready(Ok(end));
            }
            loop {
                let due = self.state.lock().due(&self.timeouts);
                // An alarm that rings too early is looked at and set again: requests that come in
                // time cost none.
                if let Some((at, _)) = due
                    && at < rings
                {
                    rings = at;
                    alarm.set(clock::sleep_until(at));
                }
                ready!(alarm.as_mut().poll(cx));
                let now = clock::now();
                rings = match due {
                    Some((at, bound)) if at <= now => return Poll::Ready(Err(bound)),
                    Some((at, _)) => at,
                    None => now + self.timeouts.idle.min(self.timeouts.write),
                };
                alarm.set(clock::sleep_until(rings));
            }
        })
        .await
    }
}

/// A call that is being served.
#[derive(Debug)]
pub(super) struct Serving(Arc<Activity>);

impl Serving {
    /// What it is served on.
    pub(super) fn connection(&self) -> &Activity {
        &self.0
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.state.lock().end(clock::now());
    }
}

/// A transport whose reads and writes are noted.
#[derive(Debug)]
pub(super) struct Watched<IO> {
    io: IO,
    activity: Arc<Activity>,
}

impl<IO> Watched<IO> {
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            self.activity.state.lock().blocked(clock::now());
        }
        written
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.state.lock().received(clock::now());
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        match flushed {
            Poll::Ready(_) => {
                // hyper flushes when it has nothing more to write.
                if self.activity.state.lock().flushed(clock::now) {
                    self.activity.taken.notify_one();
                }
            }
            // Transports with a buffer of their own, such as TLS, stop here.
            Poll::Pending => self.activity.state.lock().blocked(clock::now()),
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        header: Duration::from_secs(10),
        idle: Duration::from_secs(120),
        write: Duration::from_secs(30),
    };

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn connected(now: Instant) -> State {
        State {
            between: Between::Head,
            since: now,
            calls: 0,
            multiplexed: false,
            untaken: None,
        }
    }

    #[test]
    fn a_head_should_have_its_time_from_connecting_or_from_its_first_byte() {
        let start = clock::now();
        let mut state = connected(start);
        let due = |state: &State| state.due(&TIMEOUTS);
        state.received(start + seconds(9));
        assert_eq!(due(&state), Some((start + seconds(10), Bound::HeaderTime)));
        state.begin(false);
        assert_eq!(due(&state), None, "a call is being served");
        state.received(start + seconds(40));
        state.end(start + seconds(50));
        assert_eq!(due(&state), Some((start + seconds(170), Bound::IdleTime)));
        state.received(start + seconds(100));
        state.received(start + seconds(105));
        assert_eq!(due(&state), Some((start + seconds(110), Bound::HeaderTime)));
    }

    #[test]
    fn an_answer_should_have_its_time_until_all_of_it_is_taken() {
        let start = clock::now();
        let mut state = connected(start);
        state.begin(false);
        state.blocked(start + seconds(1));
        state.end(start + seconds(2));
        state.blocked(start + seconds(20));
        let due = state.due(&TIMEOUTS);
        assert_eq!(due, Some((start + seconds(31), Bound::WriteTime)));
        assert!(state.flushed(|| start + seconds(25)));
        assert!(!state.flushed(|| start + seconds(26)));
        let due = state.due(&TIMEOUTS);
        assert_eq!(due, Some((start + seconds(145), Bound::IdleTime)));
    }

    #[test]
    fn bytes_between_the_calls_of_http_2_should_not_begin_a_head() {
        let start = clock::now();
        let mut state = connected(start);
        state.begin(true);
        state.begin(true);
        state.end(start + seconds(1));
        assert_eq!(state.due(&TIMEOUTS), None);
        state.end(start + seconds(2));
        state.received(start + seconds(3));
        let due = state.due(&TIMEOUTS);
        assert_eq!(due, Some((start + seconds(122), Bound::IdleTime)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_should_end_at_the_limit_and_not_before() {
        let activity = Activity::new(TIMEOUTS);
        let start = clock::now();
        let connection = async {
            let call = activity.call(false);
            clock::sleep(seconds(300)).await;
            drop(call);
            std::future::pending::<()>().await;
        };
        assert_eq!(activity.within(connection).await, Err(Bound::IdleTime));
        let took = clock::now() - start;
        assert!(
            (seconds(420)..seconds(421)).contains(&took),
            "{took:?}: 300 s of service and 120 s of nothing"
        );
        let activity = Activity::new(TIMEOUTS);
        let end = async { 7 };
        assert_eq!(activity.within(end).await, Ok(7));
    }
}
