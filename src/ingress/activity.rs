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
    io::{self, ErrorKind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use tokio_rustls::server::TlsStream;

use crate::{
    bound::Bound,
    clock::{self, Alarm, Instant},
    workers::outbox,
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
    state: State,
    taken: Notify,
}

/// The task of the connection alone says what it reads and writes; calls of HTTP/2 have tasks of their
/// own, and say when they begin and end. So no lock is needed, of which each call would take ten.
#[derive(Debug)]
struct State {
    connected: Instant,
    /// While no call is being served: whether a head has begun to arrive, or nothing.
    in_head: AtomicBool,
    /// Since when, in nanoseconds after `connected`.
    since: AtomicU64,
    calls: AtomicUsize,
    multiplexed: AtomicBool,
    /// Since when the caller has not taken all that was written to him, or [`NEVER`].
    untaken: AtomicU64,
}

/// No time that is reached.
const NEVER: u64 = u64::MAX;

impl State {
    fn new(connected: Instant) -> State {
        State {
            connected,
            in_head: AtomicBool::new(true),
            since: AtomicU64::new(0),
            calls: AtomicUsize::new(0),
            multiplexed: AtomicBool::new(false),
            untaken: AtomicU64::new(NEVER),
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        let nanos = now.saturating_duration_since(self.connected).as_nanos();
        u64::try_from(nanos).unwrap_or(NEVER - 1)
    }

    fn received(&self, now: impl FnOnce() -> Instant) {
        if self.calls.load(Relaxed) == 0
            && !self.in_head.load(Relaxed)
            && !self.multiplexed.load(Relaxed)
        {
            self.in_head.store(true, Relaxed);
            self.since.store(self.nanos(now()), Relaxed);
        }
    }

    fn blocked(&self, now: Instant) {
        if !self.is_blocked() {
            self.untaken.store(self.nanos(now), Relaxed);
        }
    }

    fn is_blocked(&self) -> bool {
        self.untaken.load(Relaxed) != NEVER
    }

    /// Everything that was written has been taken; whether something was not before.
    fn flushed(&self, now: impl FnOnce() -> Instant) -> bool {
        if !self.is_blocked() {
            return false;
        }
        self.untaken.store(NEVER, Relaxed);
        if !self.in_head.load(Relaxed) {
            self.since.store(self.nanos(now()), Relaxed);
        }
        true
    }

    fn begin(&self, multiplexed: bool) {
        if multiplexed {
            self.multiplexed.store(true, Relaxed);
        }
        self.calls.fetch_add(1, Relaxed);
    }

    fn end(&self, now: Instant) {
        self.in_head.store(false, Relaxed);
        self.since.store(self.nanos(now), Relaxed);
        // Whoever sees that none is left sees since when, too.
        self.calls.fetch_sub(1, Release);
    }

    /// A call is being served that has its connection to itself.
    fn serves_one(&self) -> bool {
        self.calls.load(Relaxed) > 0 && !self.multiplexed.load(Relaxed)
    }

    fn wind_up(&self, now: Instant) {
        self.in_head.store(true, Relaxed);
        self.since.store(self.nanos(now), Relaxed);
    }

    /// When which limit is reached.
    fn due(&self, timeouts: &Timeouts) -> Option<(Instant, Bound)> {
        let at = |since, limit| self.connected + Duration::from_nanos(since) + limit;
        match self.untaken.load(Relaxed) {
            NEVER => {}
            since => return Some((at(since, timeouts.write), Bound::WriteTime)),
        }
        if self.calls.load(Acquire) > 0 {
            return None;
        }
        let since = self.since.load(Relaxed);
        Some(if self.in_head.load(Relaxed) {
            (at(since, timeouts.header), Bound::HeaderTime)
        } else {
            (at(since, timeouts.idle), Bound::IdleTime)
        })
    }
}

impl Activity {
    /// Of a connection that may send a head since `connected`.
    pub(super) fn new(timeouts: Timeouts, connected: Instant) -> Arc<Activity> {
        Arc::new(Activity {
            timeouts,
            state: State::new(connected),
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
        self.state.begin(multiplexed);
        Serving(self.clone())
    }

    /// What is idle is being closed: it has as long as a head has.
    pub(super) fn wind_up(&self) {
        self.state.wind_up(clock::now());
    }

    /// Waits until the caller has taken the answers to his earlier calls: who sends one call after
    /// the other and reads nothing is not served on and on.
    pub(super) async fn taken(&self) {
        while self.is_untaken() {
            self.taken.notified().await;
        }
    }

    fn is_untaken(&self) -> bool {
        self.state.is_blocked() && !self.state.multiplexed.load(Relaxed)
    }

    /// Runs a connection until its end, or to the limit that it reached.
    pub(super) async fn within<F: Future>(&self, connection: F) -> Result<F::Output, Bound> {
        let mut connection = pin!(connection);
        let mut alarm = Alarm::default();
        poll_fn(|cx| {
            if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                return Poll::Ready(Ok(end));
            }
            match self.state.due(&self.timeouts) {
                Some((at, bound)) => alarm.poll_until(at, cx).map(|()| Err(bound)),
                // A call of HTTP/2 may end and nobody say so here: it is looked at again.
                None if alarm.is_set(cx) => Poll::Pending,
                None => {
                    let again = clock::now() + self.timeouts.idle.min(self.timeouts.write);
                    let _ = alarm.poll_until(again, cx);
                    Poll::Pending
                }
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
        self.0.state.end(clock::now());
    }
}

/// What a connection is made of.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Whether [`poll_closed`](Self::poll_closed) tells anything. If not hyper has to read while a call is being
    /// served, for which it wants 8 KiB of each connection.
    const IS_LOOKED_AT: bool;

    /// Ready when the caller has left.
    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

impl Transport for outbox::Stream {
    const IS_LOOKED_AT: bool = true;

    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        outbox::Stream::poll_closed(self, cx)
    }
}

/// Whether there is more, or an end, only those know who decrypt it.
impl Transport for TlsStream<outbox::Stream> {
    const IS_LOOKED_AT: bool = false;

    fn poll_closed(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
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
            self.activity.state.blocked(clock::now());
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
            self.activity.state.received(clock::now);
        }
        read
    }
}

impl<IO: Transport> AsyncWrite for Watched<IO> {
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
                if self.activity.state.flushed(clock::now) {
                    self.activity.taken.notify_one();
                }
            }
            // Transports with a buffer of their own, such as TLS, stop here.
            Poll::Pending => self.activity.state.blocked(clock::now()),
        }
        // hyper flushes whenever it has been polled.
        if IO::IS_LOOKED_AT
            && self.activity.state.serves_one()
            && self.io.poll_closed(cx).is_ready()
        {
            return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
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

    #[test]
    fn a_head_should_have_its_time_from_connecting_or_from_its_first_byte() {
        let start = clock::now();
        let state = State::new(start);
        let due = |state: &State| state.due(&TIMEOUTS);
        state.received(|| start + seconds(9));
        assert_eq!(due(&state), Some((start + seconds(10), Bound::HeaderTime)));
        state.begin(false);
        assert_eq!(due(&state), None, "a call is being served");
        state.received(|| start + seconds(40));
        state.end(start + seconds(50));
        assert_eq!(due(&state), Some((start + seconds(170), Bound::IdleTime)));
        state.received(|| start + seconds(100));
        state.received(|| start + seconds(105));
        assert_eq!(due(&state), Some((start + seconds(110), Bound::HeaderTime)));
    }

    #[test]
    fn an_answer_should_have_its_time_until_all_of_it_is_taken() {
        let start = clock::now();
        let state = State::new(start);
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
        let state = State::new(start);
        state.begin(true);
        state.begin(true);
        state.end(start + seconds(1));
        assert_eq!(state.due(&TIMEOUTS), None);
        state.end(start + seconds(2));
        state.received(|| start + seconds(3));
        let due = state.due(&TIMEOUTS);
        assert_eq!(due, Some((start + seconds(122), Bound::IdleTime)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_should_end_at_the_limit_and_not_before() {
        let activity = Activity::new(TIMEOUTS, clock::now());
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
        let activity = Activity::new(TIMEOUTS, clock::now());
        let end = async { 7 };
        assert_eq!(activity.within(end).await, Ok(7));
    }
}
