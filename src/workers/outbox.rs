//! What the calls of one turn of a worker write leaves together, as soon as everyone who was ready has
//! been polled.
//!
//! Written by itself, each request and each reply would wake a peer that has just gone to sleep, and
//! have the processor change between the gateway's code and the kernel's: a tenth of what a call costs
//! under load (`benches/README.md`). Redis writes its replies in this way. A call that is alone leaves
//! at once, for its turn ends with it.
//!
//! Nobody waits for what is posted here: it counts as written, and if it cannot be, whoever uses the
//! connection next is told, as with what the kernel has taken and not yet sent.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::poll_fn,
    io::{self, ErrorKind},
    mem::{self, MaybeUninit},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// When so many connections wait for the end of a turn, all of them leave. With calls of usual size
/// that is after half a millisecond: less than the guard of the windows, whose round trips begin here.
const MOST: usize = 32;

/// What is larger, in bytes, is not copied: it leaves at once.
const LARGEST: usize = 16 << 10;

thread_local! {
    /// None where nobody empties it: there everything leaves at once.
    static OUTBOX: RefCell<Option<Outbox>> = const { RefCell::new(None) };
}

struct Outbox {
    /// Wakes [`empty_each_turn`].
    end_of_turn: Waker,
    posted: Vec<Arc<Writing>>,
}

/// The task that empties the outbox of its thread. Woken by what is posted first, it is polled after
/// all who were ready by then.
pub async fn empty_each_turn() -> Infallible {
    let _open = Open;
    poll_fn(|cx| {
        OUTBOX.with_borrow_mut(|outbox| {
            let outbox = outbox.get_or_insert_with(|| Outbox {
                end_of_turn: cx.waker().clone(),
                posted: Vec::with_capacity(MOST),
            });
            outbox.end_of_turn.clone_from(cx.waker());
        });
        empty();
        Poll::Pending
    })
    .await
}

/// Whatever ends the task, nothing is posted any more.
struct Open;

impl Drop for Open {
    fn drop(&mut self) {
        empty();
        OUTBOX.set(None);
    }
}

fn empty() {
    let taken = OUTBOX.with_borrow_mut(|outbox| Some(mem::take(&mut outbox.as_mut()?.posted)));
    let Some(mut posted) = taken else {
        return;
    };
    for writing in posted.drain(..) {
        writing.leave();
    }
    OUTBOX.with_borrow_mut(|outbox| {
        // The list serves the next turn.
        if let Some(outbox) = outbox.as_mut().filter(|outbox| outbox.posted.is_empty()) {
            outbox.posted = posted;
        }
    });
}

fn is_open() -> bool {
    OUTBOX.with_borrow(Option::is_some)
}

fn post(writing: Arc<Writing>) {
    let is_full = OUTBOX.with_borrow_mut(|outbox| {
        let outbox = outbox.as_mut().expect("it is open");
        if outbox.posted.is_empty() {
            outbox.end_of_turn.wake_by_ref();
        }
        outbox.posted.push(writing);
        outbox.posted.len() >= MOST
    });
    if is_full {
        empty();
    }
}

/// A TCP connection that writes by the outbox of the thread that it is used by.
pub struct Stream {
    reading: OwnedReadHalf,
    /// Something has come that is not read yet: an end is behind that.
    has_more: bool,
    writing: Arc<Writing>,
}

struct Writing {
    own: Mutex<Own>,
    /// What was posted has not left, or only in part: the next who writes or flushes sees to that.
    is_stuck: AtomicBool,
}

struct Own {
    half: OwnedWriteHalf,
    posted: Vec<u8>,
    failed: Option<io::Error>,
    /// Of the task that has posted.
    waker: Waker,
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Stream {
        let (reading, half) = stream.into_split();
        let own = Own {
            half,
            posted: Vec::new(),
            failed: None,
            waker: Waker::noop().clone(),
        };
        Stream {
            reading,
            has_more: false,
            writing: Arc::new(Writing {
                own: Mutex::new(own),
                is_stuck: AtomicBool::new(false),
            }),
        }
    }
}

impl Writing {
    /// The turn is over.
    fn leave(&self) {
        let mut own = self.own.lock();
        let posted = mem::take(&mut own.posted);
        if posted.is_empty() {
            return;
        }
        match own.half.try_write(&posted) {
            Ok(all) if all == posted.len() => return,
            Ok(0) => own.failed = Some(ErrorKind::WriteZero.into()),
            Ok(some) => own.posted = posted[some..].to_vec(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => own.posted = posted,
            Err(error) => own.failed = Some(error),
        }
        self.is_stuck.store(true, Relaxed);
        own.waker.wake_by_ref();
    }

    /// Writes what is still here.
    fn poll_leave(&self, own: &mut Own, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = own.failed.take() {
            return Poll::Ready(Err(error));
        }
        while !own.posted.is_empty() {
            let written = ready!(Pin::new(&mut own.half).poll_write(cx, &own.posted))?;
            if written == 0 {
                return Poll::Ready(Err(ErrorKind::WriteZero.into()));
            }
            own.posted.drain(..written);
        }
        self.is_stuck.store(false, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl Stream {
    /// Ready when the peer has closed his side, or the connection is broken, and all that came before has
    /// been read. Reads nothing itself.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_more {
            return Poll::Pending;
        }
        let mut first = [MaybeUninit::uninit()];
        let mut first = ReadBuf::uninit(&mut first);
        match ready!(self.reading.poll_peek(cx, &mut first)) {
            Ok(0) | Err(_) => Poll::Ready(()),
            Ok(_) => {
                self.has_more = true;
                Poll::Pending
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.has_more = false;
        Pin::new(&mut self.reading).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let writing = &self.writing;
        let mut own = writing.own.lock();
        let gathered = own.posted.len() + bytes.len();
        if gathered > LARGEST || writing.is_stuck.load(Relaxed) || !is_open() {
            ready!(writing.poll_leave(&mut own, cx))?;
            return Pin::new(&mut own.half).poll_write(cx, bytes);
        }
        let is_first = own.posted.is_empty();
        own.posted.extend_from_slice(bytes);
        own.waker.clone_from(cx.waker());
        drop(own);
        if is_first {
            post(writing.clone());
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let writing = &self.writing;
        if !writing.is_stuck.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        writing.poll_leave(&mut writing.own.lock(), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let writing = &self.writing;
        let mut own = writing.own.lock();
        ready!(writing.poll_leave(&mut own, cx))?;
        Pin::new(&mut own.half).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{self, Shutdown, TcpListener},
        time::Duration,
    };

    use futures_util::FutureExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        task::{JoinHandle, yield_now},
    };

    use super::*;
    use crate::clock;

    /// A connection whose first readiness the runtime has seen, and its peer, who does not wait.
    async fn connected() -> (Stream, net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let ours = TcpStream::connect(address).await.expect("it listens");
        ours.writable().await.expect("it is open");
        let (peer, _) = listener.accept().expect("one has connected");
        peer.set_nonblocking(true).expect("it is a socket");
        (Stream::from(ours), peer)
    }

    /// The outbox of this thread, open.
    async fn outbox() -> JoinHandle<Infallible> {
        let emptying = tokio::spawn(empty_each_turn());
        yield_now().await;
        emptying
    }

    fn write(stream: &mut Stream, bytes: &[u8]) {
        let written = stream.write_all(bytes).now_or_never();
        written.expect("it need not wait").expect("it is open");
        let flushed = stream.flush().now_or_never();
        flushed.expect("it need not wait").expect("it is open");
    }

    /// All that has come.
    fn arrived(peer: &mut net::TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        match peer.read_to_end(&mut bytes) {
            Ok(_) => bytes.extend(END),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        bytes
    }

    const END: &[u8] = b" and the end";

    #[tokio::test]
    async fn what_is_written_in_a_turn_should_leave_at_its_end() {
        let _outbox = outbox().await;
        let (mut one, mut peer) = connected().await;
        let (mut other, mut others_peer) = connected().await;
        for _ in 0..3 {
            write(&mut one, b"first, ");
            write(&mut other, b"a");
            write(&mut one, b"second");
            assert_eq!(arrived(&mut peer), b"");
            assert_eq!(arrived(&mut others_peer), b"");
            yield_now().await;
            assert_eq!(arrived(&mut peer), b"first, second");
            assert_eq!(arrived(&mut others_peer), b"a");
        }
    }

    #[tokio::test]
    async fn whoever_was_ready_should_be_polled_before_anything_leaves() {
        let _outbox = outbox().await;
        let (mut writers, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            let (stream, peer) = connected().await;
            writers.push(stream);
            peers.push(peer);
        }
        for mut stream in writers {
            tokio::spawn(async move { write(&mut stream, b"a") });
        }
        let last = tokio::spawn(async move {
            let come: Vec<_> = peers.iter_mut().map(arrived).collect();
            assert_eq!(come, vec![b""; 5]);
            peers
        });
        let mut peers = last.await.expect("nothing has left");
        let come: Vec<_> = peers.iter_mut().map(arrived).collect();
        assert_eq!(come, vec![b"a and the end"; 5]);
    }

    #[tokio::test]
    async fn no_more_than_so_many_should_wait() {
        let _outbox = outbox().await;
        let mut pairs = Vec::new();
        for _ in 0..=MOST {
            pairs.push(connected().await);
        }
        for (stream, _) in &mut pairs {
            write(stream, b"a");
        }
        let (last, full) = pairs.split_last_mut().expect("there are some");
        for (_, peer) in full {
            assert_eq!(arrived(peer), b"a");
        }
        assert_eq!(arrived(&mut last.1), b"");
        yield_now().await;
        assert_eq!(arrived(&mut last.1), b"a");
    }

    #[tokio::test]
    async fn without_an_outbox_everything_should_leave_at_once() {
        let (mut stream, mut peer) = connected().await;
        write(&mut stream, b"at once");
        assert_eq!(arrived(&mut peer), b"at once");
        let emptying = outbox().await;
        write(&mut stream, b"late");
        assert_eq!(arrived(&mut peer), b"");
        emptying.abort();
        let ended = emptying.await.expect_err("it has no end of its own");
        assert!(ended.is_cancelled());
        assert_eq!(arrived(&mut peer), b"late");
        write(&mut stream, b"at once again");
        assert_eq!(arrived(&mut peer), b"at once again");
    }

    #[tokio::test]
    async fn what_is_large_should_leave_at_once_and_behind_what_was_posted() {
        let _outbox = outbox().await;
        let (mut stream, mut peer) = connected().await;
        write(&mut stream, b"small");
        write(&mut stream, &[b'l'; LARGEST]);
        let come = arrived(&mut peer);
        assert_eq!(come.len(), LARGEST + 5);
        assert!(come.starts_with(b"smalll"));
        yield_now().await;
        assert_eq!(arrived(&mut peer), b"");
    }

    #[tokio::test]
    async fn what_a_peer_does_not_read_should_be_kept_in_order_and_told_of() {
        let _outbox = outbox().await;
        let (mut stream, mut peer) = connected().await;
        let mut sent = Vec::new();
        while let Some(flushed) = stream.flush().now_or_never() {
            flushed.expect("it is open");
            let first = u32::try_from(sent.len()).expect("buffers are smaller");
            let bytes: Vec<_> = (first..first + 1_000).flat_map(u32::to_le_bytes).collect();
            let written = stream.write_all(&bytes).now_or_never();
            written
                .expect("what was before has left")
                .expect("it is open");
            sent.extend(bytes);
            yield_now().await;
        }
        let rest = tokio::spawn(async move { stream.shutdown().await });
        let mut come = Vec::new();
        while !come.ends_with(END) {
            assert!(come.len() <= sent.len(), "more than was sent");
            come.extend(arrived(&mut peer));
            yield_now().await;
        }
        rest.await.expect("it does not panic").expect("it is open");
        sent.extend(END);
        assert!(come == sent, "{} bytes for {}", come.len(), sent.len());
    }

    #[tokio::test]
    async fn whoever_posted_should_be_told_if_it_cannot_leave() {
        let _outbox = outbox().await;
        let (mut stream, peer) = connected().await;
        write(&mut stream, b"never read");
        yield_now().await;
        drop(peer);
        write(&mut stream, b"to nobody");
        // It is woken for this, and looks when it is.
        let mut is_first = true;
        let told = poll_fn(|cx| {
            if std::mem::replace(&mut is_first, false) {
                // By whom the connection is used says whom to wake.
                let posted = Pin::new(&mut stream).poll_write(cx, b", again");
                assert!(posted.is_ready());
                return Poll::Pending;
            }
            Pin::new(&mut stream).poll_flush(cx)
        });
        let told = clock::by(clock::now() + Duration::from_secs(5), told).await;
        let error = told.expect("it is woken").expect_err("it is closed");
        let kinds = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(kinds.contains(&error.kind()), "{error}");
    }

    #[tokio::test]
    async fn an_end_should_be_seen_behind_all_that_came_and_nothing_be_read() {
        let (mut stream, mut peer) = connected().await;
        let closed = async |stream: &mut Stream| {
            let closed = poll_fn(|cx| stream.poll_closed(cx));
            let soon = clock::now() + Duration::from_millis(50);
            clock::by(soon, closed).await.is_some()
        };
        assert!(!closed(&mut stream).await, "nothing has come");
        peer.write_all(b"more").expect("it is open");
        peer.shutdown(Shutdown::Write).expect("it is open");
        assert!(!closed(&mut stream).await, "something has come");
        let mut read = [0; 4];
        stream.read_exact(&mut read).await.expect("it has come");
        assert_eq!(&read, b"more");
        assert!(closed(&mut stream).await, "an end has come");
    }

    #[tokio::test]
    async fn what_was_posted_should_leave_though_its_stream_is_dropped() {
        let _outbox = outbox().await;
        let (mut stream, mut peer) = connected().await;
        write(&mut stream, b"a last word");
        drop(stream);
        assert_eq!(arrived(&mut peer), b"");
        yield_now().await;
        assert_eq!(arrived(&mut peer), b"a last word and the end");
    }
}
