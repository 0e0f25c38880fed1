//! HTTP/1.1 to the upstream: connections that carry one call at a time, driven by the task of that
//! call.
//!
//! In a task of its own a connection would cost each call two changes of task and back. While it is
//! idle nobody polls it: what the upstream has done to it meanwhile is seen before its next use.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::Full;
use hyper::{
    body::Body as _,
    client::conn::http1::{Connection, SendRequest, handshake},
    rt::{Read, Write},
};
use tower::ServiceExt as _;

use super::{BoxFuture, Connector, MAX_REPLY_BYTES, Whole, idle::Idle, innermost};
use crate::{
    body::Pieces,
    clock::{self, Instant},
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
}

/// TCP or TLS in service, a pipe in tests.
trait Transport: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Transport for T {}

/// The half of a connection that reads and writes; `None` when it has ended.
struct Driven(Option<Connection<Box<dyn Transport>, Full<Bytes>>>);

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

    /// Sends a request and reads its reply. Nothing is written after `deadline`, when the caller
    /// gives up anyway.
    pub(super) async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<Whole, Failure> {
        // The caller's names the gateway.
        request
            .headers_mut()
            .insert(header::HOST, self.host.clone());
        loop {
            let kept = self.idle.take();
            let is_new = kept.is_none();
            let mut line = match kept {
                Some(line) => line,
                None => self.connect(deadline).await?,
            };
            match line.exchange(request).await {
                Ok(whole) => {
                    self.idle.put(line);
                    return Ok(whole);
                }
                Err(Broken::Lost(why)) => return Err(Failure::Lost(why)),
                Err(Broken::Unsent(_)) if is_new => {
                    return Err(Failure::Unreachable("it closes new connections".to_owned()));
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
        let (sender, connection) = handshake(transport).await?;
        Ok(Line {
            sender,
            driven: Driven(Some(connection)),
        })
    }

    /// Whether it can carry a call, as far as can be known here.
    pub(super) fn is_usable(&mut self) -> bool {
        self.driven.go_on(&mut Context::from_waker(Waker::noop()));
        self.sender.is_ready()
    }

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
        loop {
            let frame = self.driven.until(|cx| Pin::new(&mut rest).poll_frame(cx));
            let Some(frame) = frame.await else {
                let body = body.whole();
                return Ok(Whole { head, body, at });
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
    }
}

impl Driven {
    /// Reads and writes what can be now.
    fn go_on(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.0
            && Pin::new(connection).poll(cx).is_ready()
        {
            // Why it ended is told by the answer of the call that it carried.
            self.0 = None;
        }
    }

    /// Reads and writes until `part` is ready. Nothing else makes it ready, so that it need not wake
    /// this task.
    async fn until<T>(&mut self, mut part: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        let mut part = move || part(&mut Context::from_waker(Waker::noop()));
        poll_fn(|cx| {
            let ready = part();
            if ready.is_ready() {
                return ready;
            }
            self.go_on(cx);
            part()
        })
        .await
    }
}
