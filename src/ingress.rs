//! Sockets in: connections under a bound, requests under limits of size and time, and the way
//! they end when the gateway stops.

use std::{
    convert::Infallible,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::{Body as _, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    call::Caller,
    clock,
    config::Listen,
    error::{self, Reason, Refusal},
    gateway::{Body, Gateway},
    metrics::Metrics,
    shutdown::{FLUSH, Lifecycle, Phase},
    tls,
    watch::FromFiles,
};

/// What is read and thrown away of a body that is too large, so that its sender gets to read the
/// answer instead of a reset connection.
const DISCARDED: usize = 16 << 20;

/// How long that may take.
const DISCARDING: Duration = Duration::from_secs(2);

/// The head of a request: of HTTP/1.1 with all of its lines, of HTTP/2 with its list of headers.
const MAX_HEAD: u32 = 64 << 10;

/// Calls that one connection of HTTP/2 may make at a time; further ones wait at the caller.
const HTTP2_STREAMS: u32 = 250;

/// What one call, and one connection, of HTTP/2 may send before it is read. A body is read at once, so
/// this is what a connection can hold against us.
const HTTP2_STREAM_WINDOW: u32 = 64 << 10;
const HTTP2_CONNECTION_WINDOW: u32 = 256 << 10;

/// Bytes of answers that one call of HTTP/2 may leave unread before the next piece waits.
const HTTP2_SEND_BUFFER: usize = 64 << 10;

/// Calls of HTTP/2 that were taken back before they were looked at, and resets of ours that a caller
/// provoked: with more of either the connection is closed ("rapid reset", CVE-2023-44487).
const HTTP2_PENDING_RESETS: usize = 20;
const HTTP2_PROVOKED_RESETS: usize = 128;

/// A caller of HTTP/2 who does not answer a ping is gone.
const HTTP2_PING_EVERY: Duration = Duration::from_secs(20);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(10);

/// The limits of what comes in.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    max_body: usize,
    max_connections: usize,
    header_timeout: Duration,
}

impl From<&Listen> for Limits {
    fn from(listen: &Listen) -> Limits {
        Limits {
            max_body: listen.max_body,
            max_connections: listen.max_connections,
            header_timeout: listen.header_timeout,
        }
    }
}

/// The traffic port.
pub struct Ingress {
    /// Who answers.
    pub gateway: Arc<Gateway>,
    /// The limits of what comes in.
    pub limits: Limits,
    /// What callers of TLS are met with; without it they come by plain HTTP.
    pub tls: Option<Arc<FromFiles<ServerConfig>>>,
    /// Where what goes wrong before a call is counted.
    pub metrics: Arc<Metrics>,
    /// How far the gateway has come.
    pub lifecycle: Lifecycle,
}

impl Ingress {
    /// Serves callers until the gateway stops and everyone has been answered.
    pub async fn run(self, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(self.limits.max_connections));
        let lifecycle = self.lifecycle.clone();
        let ingress = Arc::new(self);
        let draining = lifecycle.reached(Phase::Draining);
        tokio::pin!(draining);
        loop {
            // At the bound new connections wait in the backlog of the listener.
            let (stream, caller, place) = tokio::select! {
                biased;
                () = &mut draining => break,
                accepted = accept(&listener, &connections) => accepted,
            };
            let ingress = ingress.clone();
            tokio::spawn(async move {
                ingress.serve(stream, caller).await;
                drop(place);
            });
        }
        drop(listener);
        let all = u32::try_from(ingress.limits.max_connections).unwrap_or(u32::MAX);
        let flushed = async {
            lifecycle.reached(Phase::Expired).await;
            clock::sleep(FLUSH).await;
        };
        tokio::select! {
            _ = connections.acquire_many(all) => {}
            () = flushed => {}
        }
    }

    async fn serve(&self, stream: TcpStream, caller: Caller) {
        let (gateway, limits) = (self.gateway.clone(), self.limits);
        let Some(tls) = &self.tls else {
            return connection(stream, caller, gateway, limits, &self.lifecycle).await;
        };
        if let Some(stream) = self.shake_hands(stream, tls.get()).await {
            connection(stream, caller, gateway, limits, &self.lifecycle).await;
        }
    }

    /// One who does not finish the handshake is treated like one who does not finish a head.
    async fn shake_hands(
        &self,
        stream: TcpStream,
        config: Arc<ServerConfig>,
    ) -> Option<TlsStream<TcpStream>> {
        let handshake = TlsAcceptor::from(config).accept(stream);
        let shaken = tokio::select! {
            biased;
            shaken = within(self.limits.header_timeout, handshake) => shaken,
            () = self.lifecycle.reached(Phase::Draining) => return None,
        };
        let (cause, error) = match shaken {
            Some(Ok(stream)) => return Some(stream),
            Some(Err(error)) => (tls::cause(&error), error.to_string()),
            None => ("timeout", "it took too long".to_owned()),
        };
        self.metrics.tls_failure(cause);
        tracing::debug!(cause, error, "a TLS handshake failed");
        None
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> (TcpStream, Caller, OwnedSemaphorePermit) {
    let place = connections
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // A small answer should not wait for another packet.
                let _ = stream.set_nodelay(true);
                return (stream, peer.ip().into(), place);
            }
            Err(error) => {
                // Out of file descriptors, mostly: they come back when connections end.
                tracing::warn!(%error, "a connection could not be accepted");
                clock::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves one connection over any transport, all of whose requests are from `caller`: HTTP/1.1, or
/// HTTP/2 if that is what it begins with. Ends when the caller does, when he has been idle for
/// `header_timeout`, or, once what was read is answered, when the gateway drains.
pub async fn connection<IO>(
    io: IO,
    caller: Caller,
    gateway: Arc<Gateway>,
    limits: Limits,
    lifecycle: &Lifecycle,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::default());
    let service = service_fn(|request: Request<Incoming>| {
        let (gateway, caller, under_way) = (gateway.clone(), caller.clone(), activity.begin());
        async move {
            let (parts, incoming) = request.into_parts();
            let body = read(incoming, limits);
            let request = Request::from_parts(parts, ());
            let response = gateway.handle(caller, request, body).await;
            drop(under_way);
            Ok::<Response<Full<Bytes>>, Infallible>(response.map(Full::new))
        }
    });
    let builder = builder(limits);
    let connection = builder.serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let draining = lifecycle.reached(Phase::Draining);
    tokio::pin!(draining);
    let mut ending = false;
    let mut seen = activity.begun();
    loop {
        tokio::select! {
            biased;
            // A caller who breaks off is no event for the log.
            _ = &mut connection => return,
            () = &mut draining, if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = clock::sleep(limits.header_timeout) => {
                let begun = activity.begun();
                if begun != std::mem::replace(&mut seen, begun) || activity.is_under_way() {
                    continue;
                }
                if begun == 0 || std::mem::replace(&mut ending, true) {
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

fn builder(limits: Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(MAX_HEAD as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_header_list_size(MAX_HEAD)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .max_send_buf_size(HTTP2_SEND_BUFFER)
        .max_pending_accept_reset_streams(HTTP2_PENDING_RESETS)
        .max_local_error_reset_streams(HTTP2_PROVOKED_RESETS)
        .keep_alive_interval(HTTP2_PING_EVERY)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT);
    builder
}

/// Whether anything happens on a connection.
#[derive(Debug, Default)]
struct Activity {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A call under way, until it is dropped.
struct UnderWay(Arc<Activity>);

impl Activity {
    fn begin(self: &Arc<Self>) -> UnderWay {
        self.begun.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    fn is_under_way(&self) -> bool {
        self.begun() != self.ended.load(Ordering::Relaxed)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// The whole body, under the limits of size and time.
async fn read(mut body: Incoming, limits: Limits) -> Body {
    let length = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let whole = async {
        if length > limits.max_body {
            return Err(too_large(limits, body).await);
        }
        let mut first = Bytes::new();
        let mut more = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken(&error))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if first.len() + more.len() + data.len() > limits.max_body {
                return Err(too_large(limits, body).await);
            }
            // Most bodies come in one piece, which then is not copied.
            if first.is_empty() {
                first = data;
            } else {
                more.extend_from_slice(&data);
            }
        }
        if more.is_empty() {
            return Ok(first);
        }
        let mut all = BytesMut::with_capacity(first.len() + more.len());
        all.extend_from_slice(&first);
        all.extend_from_slice(&more);
        Ok(all.freeze())
    };
    within(limits.header_timeout, whole)
        .await
        .unwrap_or_else(|| {
            Err(Refusal::invalid(
                error::BAD_REQUEST,
                format!(
                    "the body was not here within {}",
                    humantime::format_duration(limits.header_timeout)
                ),
            ))
        })
}

async fn too_large(limits: Limits, mut rest: Incoming) -> Refusal {
    let mut discarded = 0;
    let discard = async {
        while let Some(Ok(frame)) = rest.frame().await {
            discarded += frame.data_ref().map_or(0, Bytes::len);
            if discarded > DISCARDED {
                return;
            }
        }
    };
    within(DISCARDING, discard).await;
    Refusal::new(
        Reason::TooLarge,
        error::BAD_REQUEST,
        format!(
            "the body is larger than listen.max_body, {} bytes",
            limits.max_body
        ),
    )
}

fn broken(error: &hyper::Error) -> Refusal {
    Refusal::invalid(
        error::BAD_REQUEST,
        format!("the body could not be read: {error}"),
    )
}

async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = clock::sleep(limit) => None,
    }
}
