//! HTTP/2 to the upstream, which is played frame by frame: what each way of not answering means for
//! the call and for the quota.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use chat_gateway::{
    call::Caller,
    clock::{self, Instant},
    config::{Sources, load},
    metrics::Metrics,
    serve::Core,
};
use http::{Request, Response, Uri};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use parking_lot::Mutex;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf,
};

use crate::harness::{ATTRIBUTES, CREDENTIALS, attribute};

const OK: &str = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

// Frames and errors (RFC 9113, 6 and 7).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// What the upstream does with a call when its headers are there.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Answer,
    /// Resets the stream with this error.
    Reset(u32),
    /// Says that it looked at no call of this connection, with this error.
    GoAway(u32),
    /// Says that it will look at no further call, and closes without an answer to this one.
    GoAwayAfter,
    /// Answers nothing, but pings.
    Hang,
    /// Answers nothing any more, pings included.
    Die,
}

/// What the upstream saw.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    /// Headers of a call on this connection and stream.
    Call(usize, u32),
    /// A reset by the gateway, with this error.
    Reset(usize, u32, u32),
}

#[derive(Clone)]
struct Upstream {
    /// Deeds in store; when they are spent, calls are answered.
    deeds: Arc<Mutex<Vec<Deed>>>,
    seen: Arc<Mutex<Vec<(Instant, Seen)>>>,
    connections: Arc<Mutex<usize>>,
}

struct World {
    upstream: Upstream,
    core: Arc<Core>,
}

impl World {
    fn new(deeds: &[Deed], settings: &[&str]) -> World {
        let upstream = Upstream {
            deeds: Arc::new(Mutex::new(deeds.iter().rev().copied().collect())),
            seen: Arc::default(),
            connections: Arc::default(),
        };
        let mut overrides = vec!["upstream.url=https://chat.test", "state.hold=0s"];
        overrides.extend(settings);
        let sources = Sources {
            overrides: overrides.into_iter().map(str::to_owned).collect(),
            ..Sources::default()
        };
        let config = load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let core = Core::new(&config, upstream.clone(), Arc::new(Metrics::new()));
        World {
            upstream,
            core: Arc::new(core),
        }
    }

    async fn post(&self, path: &str, body: &str) -> Response<Bytes> {
        let uri = format!("{path}?{CREDENTIALS}&random=7&contenttype=json");
        let request = Request::post(uri).body(()).expect("a legal request");
        let body = Bytes::copy_from_slice(body.as_bytes());
        let body = async { Ok(body) };
        let (mut head, ()) = request.into_parts();
        self.core
            .gateway
            .handle(Caller::Local, &mut head, body)
            .await
    }

    /// A write to the group, which may be repeated.
    async fn write(&self) -> Response<Bytes> {
        let path = format!("{ATTRIBUTES}set_group_attr");
        self.post(&path, &attribute("g", "k", "v")).await
    }

    /// What has arrived so far, in its order.
    fn seen(&self) -> Vec<Seen> {
        let seen = self.upstream.seen.lock();
        seen.iter().map(|(_, seen)| *seen).collect()
    }

    /// A call of which nothing is known, which is repeated only if nothing was sent.
    async fn odd(&self) -> Response<Bytes> {
        self.post("/v4/odd", "{}").await
    }

    fn calls(&self) -> Vec<Instant> {
        let seen = self.upstream.seen.lock();
        let calls = seen
            .iter()
            .filter(|(_, seen)| matches!(seen, Seen::Call(..)));
        calls.map(|(at, _)| *at).collect()
    }
}

fn header<'a>(response: &'a Response<Bytes>, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value.map_or("", |value| value.to_str().expect("text"))
}

#[tokio::test(start_paused = true)]
async fn calls_should_share_a_connection() {
    let world = World::new(&[], &[]);
    for _ in 0..3 {
        let answer = world.odd().await;
        assert_eq!(answer.body(), OK);
        assert_eq!(header(&answer, "x-chat-gateway-attempts"), "1");
    }
    let seen = world.seen();
    assert_eq!(seen, [Seen::Call(1, 1), Seen::Call(1, 3), Seen::Call(1, 5)]);
}

#[tokio::test(start_paused = true)]
async fn what_was_certainly_not_processed_should_be_repeated_at_once_and_cost_no_quota() {
    let settings = ["quota.group_attributes.limit=1", "quota.api.limit=1"];
    for deed in [
        Deed::Reset(REFUSED_STREAM),
        Deed::GoAway(0),
        Deed::GoAway(ENHANCE_YOUR_CALM),
    ] {
        for known in [true, false] {
            let world = World::new(&[deed], &settings);
            let begun = clock::now();
            let answer = if known {
                world.write().await
            } else {
                world.odd().await
            };
            assert_eq!(answer.body(), OK, "{deed:?}");
            assert_eq!(header(&answer, "x-chat-gateway-attempts"), "2", "{deed:?}");
            // The backoff, and no window: the first attempt gave its slots back.
            assert!(
                clock::now() - begun < Duration::from_millis(150),
                "{deed:?}"
            );
            assert_eq!(world.calls().len(), 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_processed_should_keep_its_slot_and_not_be_repeated_blindly() {
    let settings = [
        "quota.group_attributes.limit=1",
        "upstream.call_timeout=500ms",
        "queue.deadline=20s",
    ];
    for deed in [
        Deed::Reset(INTERNAL_ERROR),
        Deed::Reset(CANCEL),
        Deed::GoAwayAfter,
    ] {
        let world = World::new(&[deed], &settings);
        let answer = world.odd().await;
        let reason = header(&answer, "x-chat-gateway-reason");
        assert_eq!(reason, "upstream-unreachable", "{deed:?}");
        assert_eq!(header(&answer, "x-chat-gateway-attempts"), "1", "{deed:?}");

        let world = World::new(&[deed], &settings);
        let answer = world.write().await;
        assert_eq!(answer.body(), OK, "{deed:?}");
        let calls = world.calls();
        let apart = calls[1] - calls[0];
        // It may be on its way for `call_timeout` yet, and counts for a window from there.
        assert!(apart >= Duration::from_millis(1_500), "{deed:?}: {apart:?}");
        assert!(apart < Duration::from_millis(1_700), "{deed:?}: {apart:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_given_up_should_be_reset_and_leave_the_connection_to_others() {
    let world = World::new(&[Deed::Hang], &["upstream.call_timeout=300ms"]);
    let begun = clock::now();
    let answer = world.odd().await;
    assert_eq!(header(&answer, "x-chat-gateway-reason"), "upstream-timeout");
    assert_eq!(clock::now() - begun, Duration::from_millis(300));
    clock::sleep(Duration::from_millis(1)).await;
    assert_eq!(world.odd().await.body(), OK);
    let seen = world.seen();
    assert_eq!(
        seen,
        [
            Seen::Call(1, 1),
            Seen::Reset(1, 1, CANCEL),
            Seen::Call(1, 3)
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_dead_should_be_noticed_and_left() {
    let world = World::new(&[Deed::Answer, Deed::Die], &["upstream.call_timeout=4s"]);
    assert_eq!(world.odd().await.body(), OK);
    let died = clock::now();
    let mut lost = 0;
    while world.odd().await.body() != OK {
        lost += 1;
        assert!(lost < 10, "no new connection");
    }
    assert!(
        clock::now() - died < Duration::from_secs(15),
        "{:?}",
        clock::now() - died
    );
    assert_eq!(*world.upstream.connections.lock(), 2);
}

impl Upstream {
    async fn serve(self, number: usize, mut io: DuplexStream) -> io::Result<()> {
        let mut preface = [0; 24];
        io.read_exact(&mut preface).await?;
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        io.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
        let mut is_silent = false;
        loop {
            let mut head = [0; 9];
            io.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; length as usize];
            io.read_exact(&mut payload).await?;
            if is_silent {
                continue;
            }
            match (head[3], head[4]) {
                (SETTINGS, 0) => io.write_all(&frame(SETTINGS, 1, 0, &[])).await?,
                (PING, 0) => io.write_all(&frame(PING, 1, 0, &payload)).await?,
                (RST_STREAM, _) => {
                    let error = u32::from_be_bytes(payload[..4].try_into().expect("four bytes"));
                    self.note(Seen::Reset(number, stream, error));
                }
                (HEADERS, _) => {
                    self.note(Seen::Call(number, stream));
                    let deed = self.deeds.lock().pop().unwrap_or(Deed::Answer);
                    match deed {
                        Deed::Answer => {
                            // 0x88 is `:status: 200` (RFC 7541, appendix A).
                            io.write_all(&frame(HEADERS, 4, stream, &[0x88])).await?;
                            io.write_all(&frame(DATA, 1, stream, OK.as_bytes())).await?;
                        }
                        Deed::Reset(error) => {
                            let frame = frame(RST_STREAM, 0, stream, &error.to_be_bytes());
                            io.write_all(&frame).await?;
                        }
                        Deed::GoAway(error) => {
                            let last = [0_u32.to_be_bytes(), error.to_be_bytes()].concat();
                            io.write_all(&frame(GOAWAY, 0, 0, &last)).await?;
                        }
                        Deed::GoAwayAfter => {
                            let last = [stream.to_be_bytes(), [0; 4]].concat();
                            io.write_all(&frame(GOAWAY, 0, 0, &last)).await?;
                            return Ok(());
                        }
                        Deed::Hang => {}
                        Deed::Die => is_silent = true,
                    }
                }
                _ => {}
            }
        }
    }

    fn note(&self, seen: Seen) {
        self.seen.lock().push((clock::now(), seen));
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .expect("it is short")
        .to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

impl tower::Service<Uri> for Upstream {
    type Response = TokioIo<Negotiated>;
    type Error = io::Error;
    type Future = std::future::Ready<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (near, far) = tokio::io::duplex(1 << 16);
        let number = {
            let mut connections = self.connections.lock();
            *connections += 1;
            *connections
        };
        tokio::spawn(self.clone().serve(number, far));
        std::future::ready(Ok(TokioIo::new(Negotiated(near))))
    }
}

/// A pipe on which both sides have agreed on HTTP/2.
struct Negotiated(DuplexStream);

impl Connection for Negotiated {
    fn connected(&self) -> Connected {
        Connected::new().negotiated_h2()
    }
}

impl AsyncRead for Negotiated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Negotiated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
