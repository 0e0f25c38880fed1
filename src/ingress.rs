//! Sockets in: connections under a bound, requests under limits of size and time, and the way
//! they end when the gateway stops.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulConnection, GracefulShutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
};

use crate::{
    call::Caller,
    clock,
    config::Listen,
    error::{self, Reason, Refusal},
    gateway::{Body, Gateway},
    shutdown::{FLUSH, Lifecycle, Phase},
};

/// What is read and thrown away of a body that is too large, so that its sender gets to read the
/// answer instead of a reset connection.
const DISCARDED: usize = 16 << 20;

/// How long that may take.
const DISCARDING: Duration = Duration::from_secs(2);

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

/// Serves callers until the gateway stops and everyone has been answered.
pub async fn run(
    listener: TcpListener,
    gateway: Arc<Gateway>,
    limits: Limits,
    lifecycle: Lifecycle,
) {
    let connections = Arc::new(Semaphore::new(limits.max_connections));
    let graceful = GracefulShutdown::new();
    let draining = lifecycle.reached(Phase::Draining);
    tokio::pin!(draining);
    loop {
        // At the bound new connections wait in the backlog of the listener.
        let (stream, caller, place) = tokio::select! {
            biased;
            () = &mut draining => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let connection = connection(stream, caller, gateway.clone(), limits);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A caller who breaks off is no event for the log.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    let flushed = async {
        lifecycle.reached(Phase::Expired).await;
        clock::sleep(FLUSH).await;
    };
    tokio::select! {
        () = graceful.shutdown() => {}
        () = flushed => {}
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> (
    tokio::net::TcpStream,
    Caller,
    tokio::sync::OwnedSemaphorePermit,
) {
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

/// One connection of HTTP/1.1 over any transport, all of whose requests are from `caller`.
pub fn connection<IO>(
    io: IO,
    caller: Caller,
    gateway: Arc<Gateway>,
    limits: Limits,
) -> impl GracefulConnection<Error = hyper::Error> + Send
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(64 << 10)
        .serve_connection(
            TokioIo::new(io),
            service_fn(move |request: Request<Incoming>| {
                let (gateway, caller) = (gateway.clone(), caller.clone());
                async move {
                    let (parts, incoming) = request.into_parts();
                    let body = read(incoming, limits);
                    let request = Request::from_parts(parts, ());
                    let response = gateway.handle(caller, request, body).await;
                    Ok::<Response<Full<Bytes>>, Infallible>(response.map(Full::new))
                }
            }),
        )
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
