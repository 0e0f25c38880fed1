//! HTTP/1.1 to the upstream: connections that carry one call at a time, driven by the task of that
//! call.
//!
//! In a task of its own a connection would cost each call two changes of task and back. While it is
//! idle nobody polls it: what the upstream has done to it meanwhile is seen before its next use.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::Full;
use hyper::{
    body::{Body as _, Incoming},
    client::conn::{
        TrySendError,
        http1::{Builder, Connection, SendRequest},
    },
    rt::{Read, Write},
};
use tower::ServiceExt as _;

use super::{BoxFuture, Connector, Done, MAX_REPLY_BYTES, Whole, idle::Idle, innermost};
use crate::{
    body::Pieces,
    clock::{self, Alarm, Instant},
    config::UpstreamUrl,
    upstream::Failure,
};

/// Connections to the upstream.
pub(super) struct Lines {
    connect: Box<dyn Fn() -> BoxFuture<Result<Line, String>> + Send + Sync>,
    idle: Arc<Idle>,
    host: HeaderValue,
}

/// One of them, which is not in use or in use by one call.
pub(super) struct Line {
    sender: SendRequest<Full<Bytes>>,
    driven: Driven,
    alarm: Alarm,
}

/// TCP or TLS in service, a pipe in tests.
trait Transport: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Transport for T {}

/// The half of a connection that reads and writes.
struct Driven {
    /// `None` when it has ended.
    connection: Option<Connection<Box<dyn Transport>, Full<Bytes>>>,
    quiet: Arc<Quiet>,
    /// Wakes `quiet`.
    waker: Waker,
}

/// Wakes the task that drives a connection, but not for what that task does itself: hyper wakes
/// whoever polled a connection when he takes its data, which would have every call polled once more.
#[derive(Default)]
struct Quiet {
    task: AtomicWaker,
    /// The thread that is driving it, 0 if none. Whoever reads his own there has put it there, so that
    /// this needs no order between threads.
    driver: AtomicUsize,
    missed: AtomicBool,
}

thread_local! {
    static HERE: u8 = const { 0 };
}

/// A number that no other thread has.
fn this_thread() -> usize {
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// A request that was handed to a connection.
struct Sent {
    line: Box<Line>,
    response: Responding,
}

/// The head of the reply to come. In a box, for it has room for the request, to give it back.
type Responding = BoxFuture<Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>>>;

/// What of a reply is waited for.
#[derive(Clone, Copy)]
enum Part {
    /// It comes when it is there.
    Head,
    /// It is read when it was asked for.
    Body,
}

/// Why there is no reply.
enum Broken {
    /// The connection had ended before: nothing was written.
    Unsent(Box<Request<Full<Bytes>>>),
    /// It ended after the request was, or may have been, written.
    Lost(String),
}

impl Lines {
    /// None yet.
    pub(super) fn new(connector: impl Connector, url: &UpstreamUrl) -> Lines {
        let target: Uri = url.to_string().parse().expect("settings name a legal URL");
        let connect = move || -> BoxFuture<_> {
            let transport = connector.clone().oneshot(target.clone());
            Box::pin(async move {
                let transport = transport
                    .await
                    .map_err(|e| innermost(e.into().as_ref()).to_string())?;
                Line::over(Box::new(transport))
                    .await
                    .map_err(|e| innermost(&e).to_string())
            })
        };
        Lines {
            connect: Box::new(connect),
            idle: Idle::new(),
            host: HeaderValue::try_from(url.authority.as_str()).expect("a host is a legal header"),
        }
    }

    /// Sends a request and reads its reply; `None` if that is not done by `deadline`. A connection that
    /// waits is given the request at once: in the future it would be moved with its call.
    pub(super) fn exchange(
        self: Arc<Self>,
        mut request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> impl Future<Output = Option<Done>> + Send {
        // The caller's names the gateway.
        request
            .headers_mut()
            .insert(header::HOST, self.host.clone());
        let begun = match self.idle.take() {
            Some(line) => Ok(line.send(request)),
            None => Err(Box::new(request)),
        };
        async move {
            let request = match begun {
                Ok(sent) => match self.finish(sent, deadline).await? {
                    Ok(done) => return Some(done),
                    Err(unsent) => unsent,
                },
                Err(request) => request,
            };
            Box::pin(self.try_others(request, deadline)).await
        }
    }

    /// Sends a request over another connection that waits, and at last over a new one.
    async fn try_others(
        &self,
        mut request: Box<Request<Full<Bytes>>>,
        deadline: Instant,
    ) -> Option<Done> {
        loop {
            let kept = self.idle.take();
            let is_new = kept.is_none();
            let line = match kept {
                Some(line) => line,
                None => match self.connect(deadline).await {
                    Ok(line) => line,
                    Err(why) => return Some(Done::Unsent(why, request)),
                },
            };
            match self.finish(line.send(*request), deadline).await? {
                Ok(done) => return Some(done),
                Err(unsent) if is_new => {
                    let why = "it closes new connections".to_owned();
                    return Some(Done::Unsent(why, unsent));
                }
                Err(unsent) => request = unsent,
            }
        }
    }

    /// Reads the reply and keeps the connection for the next; gives back a request that it did not
    /// write.
    async fn finish(
        &self,
        mut sent: Sent,
        deadline: Instant,
    ) -> Option<Result<Done, Box<Request<Full<Bytes>>>>> {
        Some(match sent.reply_by(deadline).await? {
            Ok(whole) => {
                self.idle.put(sent.line, whole.at);
                Ok(Done::Sent(Ok(whole)))
            }
            Err(Broken::Lost(why)) => Ok(Done::Sent(Err(Failure::Lost(why)))),
            Err(Broken::Unsent(request)) => Err(request),
        })
    }

    async fn connect(&self, deadline: Instant) -> Result<Box<Line>, String> {
        let line = clock::by(deadline, (self.connect)()).await;
        let line = line.unwrap_or_else(|| Err("connecting takes too long".to_owned()));
        line.map(Box::new)
    }
}

impl Line {
    async fn over(transport: Box<dyn Transport>) -> hyper::Result<Line> {
        // The kernel takes one piece of memory for less than two.
        let (sender, connection) = Builder::new().writev(false).handshake(transport).await?;
        Ok(Line {
            sender,
            driven: Driven::new(connection),
            alarm: Alarm::default(),
        })
    }

    /// Whether it can carry a call, as far as was known when it was used last. If the upstream has closed
    /// it since, it reads that before it writes, and gives the request back.
    pub(super) fn is_ready(&mut self) -> bool {
        self.sender.is_ready() || self.is_open()
    }

    /// Whether the upstream has not closed it.
    pub(super) fn is_open(&mut self) -> bool {
        self.driven.go_on(&mut Context::from_waker(Waker::noop()));
        self.sender.is_ready()
    }

    /// Hands it a request. Nothing is written before the reply is waited for.
    fn send(mut self: Box<Self>, request: Request<Full<Bytes>>) -> Sent {
        // That there is something to write need wake nobody: it is driven next.
        self.driven.quiet.begin();
        let response = Box::pin(self.sender.try_send_request(request));
        self.driven.quiet.end();
        Sent {
            line: self,
            response,
        }
    }
}

impl Sent {
    /// Given up before its end, the connection is of no use any more.
    async fn reply_by(&mut self, deadline: Instant) -> Option<Result<Whole, Broken>> {
        let Line { driven, alarm, .. } = &mut *self.line;
        let reply = pin!(driven.reply(&mut self.response));
        alarm.by(deadline, reply).await
    }
}

impl Driven {
    fn new(connection: Connection<Box<dyn Transport>, Full<Bytes>>) -> Driven {
        let quiet = Arc::<Quiet>::default();
        Driven {
            connection: Some(connection),
            waker: quiet.clone().into(),
            quiet,
        }
    }

    /// Writes a request and reads its reply.
    async fn reply(&mut self, response: &mut Responding) -> Result<Whole, Broken> {
        let response = self
            .until(Part::Head, |cx| response.as_mut().poll(cx))
            .await;
        let at = clock::now();
        let response = response.map_err(|mut error| match error.take_message() {
            Some(request) => Broken::Unsent(Box::new(request)),
            None => Broken::Lost(innermost(error.error()).to_string()),
        })?;
        let (head, mut rest) = response.into_parts();
        let mut body = Pieces::default();
        while !rest.is_end_stream() {
            let frame = self.until(Part::Body, |cx| Pin::new(&mut rest).poll_frame(cx));
            let Some(frame) = frame.await else {
                break;
            };
            let frame = frame.map_err(|error| Broken::Lost(innermost(&error).to_string()))?;
            // Trailers belong to no reply of the API.
            let data = frame.into_data().unwrap_or_default();
            if body.len() + data.len() > MAX_REPLY_BYTES {
                return Err(Broken::Lost(format!(
                    "the reply is larger than {MAX_REPLY_BYTES} bytes"
                )));
            }
            body.push(data);
        }
        let body = body.whole();
        Ok(Whole { head, body, at })
    }

    /// Reads and writes what can be now.
    fn go_on(&mut self, cx: &mut Context<'_>) {
        self.quiet.task.register(cx.waker());
        if let Some(connection) = &mut self.connection
            && Pin::new(connection)
                .poll(&mut Context::from_waker(&self.waker))
                .is_ready()
        {
            // Why it ended is told by the answer of the call that it carried.
            self.connection = None;
        }
    }

    /// Reads and writes until `part` is ready. Nothing else makes it ready, so that it need not wake
    /// this task.
    async fn until<T>(
        &mut self,
        which: Part,
        mut part: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> T {
        let mut part = move || part(&mut Context::from_waker(Waker::noop()));
        poll_fn(|cx| {
            self.quiet.begin();
            let mut ready = match which {
                Part::Head => Poll::Pending,
                Part::Body => part(),
            };
            if ready.is_pending() {
                self.go_on(cx);
                ready = part();
            }
            if self.quiet.end() && ready.is_pending() {
                cx.waker().wake_by_ref();
            }
            ready
        })
        .await
    }
}

impl Quiet {
    /// This thread drives it from now on.
    fn begin(&self) {
        self.driver.store(this_thread(), Ordering::Relaxed);
    }

    /// Not any more. True if it was woken meanwhile.
    fn end(&self) -> bool {
        self.driver.store(0, Ordering::Relaxed);
        let missed = self.missed.load(Ordering::Relaxed);
        if missed {
            self.missed.store(false, Ordering::Relaxed);
        }
        missed
    }
}

impl Wake for Quiet {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.driver.load(Ordering::Relaxed) == this_thread() {
            self.missed.store(true, Ordering::Relaxed);
        } else {
            self.task.wake();
        }
    }
}
