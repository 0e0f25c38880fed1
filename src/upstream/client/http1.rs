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
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::Full;
use hyper::{
    body::Body as _,
    client::conn::http1::{Builder, Connection, SendRequest},
    rt::{Read, Write},
};
use tower::ServiceExt as _;

use super::{BoxFuture, Connector, MAX_REPLY_BYTES, Whole, idle::Idle, innermost};
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
    carrier: Carrier,
    alarm: Alarm,
}

/// What carries the calls.
struct Carrier {
    sender: SendRequest<Full<Bytes>>,
    driven: Driven,
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
    is_driving: AtomicBool,
    missed: AtomicBool,
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

    /// Sends a request and reads its reply; `None` if that is not done by `deadline`.
    pub(super) async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Option<Result<Whole, Failure>> {
        // The caller's names the gateway.
        request
            .headers_mut()
            .insert(header::HOST, self.host.clone());
        loop {
            let kept = self.idle.take();
            let is_new = kept.is_none();
            let mut line = match kept {
                Some(line) => line,
                None => match self.connect(deadline).await {
                    Ok(line) => line,
                    Err(failure) => return Some(Err(failure)),
                },
            };
            match line.exchange_by(deadline, request).await? {
                Ok(whole) => {
                    self.idle.put(line, whole.at);
                    return Some(Ok(whole));
                }
                Err(Broken::Lost(why)) => return Some(Err(Failure::Lost(why))),
                Err(Broken::Unsent(_)) if is_new => {
                    let why = "it closes new connections".to_owned();
                    return Some(Err(Failure::Unreachable(why)));
                }
                Err(Broken::Unsent(back)) => request = *back,
            }
        }
    }

    async fn connect(&self, deadline: Instant) -> Result<Box<Line>, Failure> {
        let line = clock::by(deadline, (self.connect)()).await;
        let line = line.unwrap_or_else(|| Err("connecting takes too long".to_owned()));
        line.map(Box::new).map_err(Failure::Unreachable)
    }
}

impl Line {
    async fn over(transport: Box<dyn Transport>) -> hyper::Result<Line> {
        // The kernel takes one piece of memory for less than two.
        let (sender, connection) = Builder::new().writev(false).handshake(transport).await?;
        Ok(Line {
            carrier: Carrier {
                sender,
                driven: Driven::new(connection),
            },
            alarm: Alarm::default(),
        })
    }

    /// Whether it can carry a call, as far as can be known here.
    pub(super) fn is_usable(&mut self) -> bool {
        let Carrier { sender, driven } = &mut self.carrier;
        driven.go_on(&mut Context::from_waker(Waker::noop()));
        sender.is_ready()
    }

    async fn exchange_by(
        &mut self,
        deadline: Instant,
        request: Request<Full<Bytes>>,
    ) -> Option<Result<Whole, Broken>> {
        let exchange = pin!(self.carrier.exchange(request));
        self.alarm.by(deadline, exchange).await
    }
}

impl Carrier {
    /// Sends a request and reads its reply. Given up before its end, the connection is of no use any
    /// more.
    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Whole, Broken> {
        let mut response = pin!(self.sender.try_send_request(request));
        let response = self.driven.until(|cx| response.as_mut().poll(cx)).await;
        let at = clock::now();
        let response = response.map_err(|mut error| match error.take_message() {
            Some(request) => Broken::Unsent(Box::new(request)),
            None => Broken::Lost(innermost(error.error()).to_string()),
        })?;
        let (head, mut rest) = response.into_parts();
        let mut body = Pieces::default();
        while !rest.is_end_stream() {
            let frame = self.driven.until(|cx| Pin::new(&mut rest).poll_frame(cx));
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
    async fn until<T>(&mut self, mut part: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        let mut part = move || part(&mut Context::from_waker(Waker::noop()));
        poll_fn(|cx| {
            self.quiet.is_driving.store(true, Ordering::SeqCst);
            let mut ready = part();
            if ready.is_pending() {
                self.go_on(cx);
                ready = part();
            }
            self.quiet.is_driving.store(false, Ordering::SeqCst);
            if self.quiet.missed.swap(false, Ordering::SeqCst) && ready.is_pending() {
                cx.waker().wake_by_ref();
            }
            ready
        })
        .await
    }
}

impl Wake for Quiet {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_driving.load(Ordering::SeqCst) {
            self.missed.store(true, Ordering::SeqCst);
        }
        // It may have stopped meanwhile, and will not look again.
        if !self.is_driving.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}
