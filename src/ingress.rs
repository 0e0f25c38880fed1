//! Sockets in: connections under a bound, requests under limits of size and time, and the way
//! they end when the gateway stops.

mod activity;
mod forwarded;
mod hygiene;
mod opening;
mod protocol;
mod read;
mod woken;

use std::{
    convert::Infallible,
    error::Error,
    future::Future,
    net,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulConnection};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    bound::Bound,
    call::Caller,
    clock::{self, Instant},
    config::InForce,
    gateway::Gateway,
    metrics::Metrics,
    shutdown::{FLUSH, Lifecycle, Phase},
    tls,
    watch::FromFiles,
    workers::{Workers, outbox},
};
use activity::{Activity, Serving, Timeouts, Transport};
use hygiene::HeadLimits;
use opening::Opening;
use read::BodyLimits;
use woken::{Bells, Woken};

/// The limits of what comes in.
#[derive(Clone, Copy, Debug)]
struct Limits {
    head: HeadLimits,
    body: BodyLimits,
    timeouts: Timeouts,
    streams: u32,
    /// How callers reach this port, if the API is told.
    forwarded: Option<&'static str>,
}

impl Limits {
    fn of(settings: &InForce) -> Limits {
        let listen = &settings.get().listen;
        Limits {
            head: HeadLimits {
                headers: listen.max_headers,
                bytes: listen.max_header_bytes,
            },
            body: BodyLimits {
                bytes: listen.max_body,
                time: listen.body_timeout,
            },
            timeouts: Timeouts {
                header: listen.header_timeout,
                idle: listen.idle_timeout,
                write: listen.write_timeout,
            },
            streams: listen.max_streams,
            forwarded: listen.forwarded.then_some(match &listen.tls.cert {
                Some(_) => "https",
                None => "http",
            }),
        }
    }
}

/// The traffic port.
pub struct Ingress {
    /// Who answers.
    pub gateway: Arc<Gateway>,
    /// The settings in force.
    pub settings: InForce,
    /// What callers of TLS are met with; without it they come by plain HTTP.
    pub tls: Option<Arc<FromFiles<ServerConfig>>>,
    /// Where what goes wrong before a call is counted.
    pub metrics: Arc<Metrics>,
    /// How far the gateway has come.
    pub lifecycle: Lifecycle,
}

impl Ingress {
    /// Serves callers until the gateway stops and everyone has been answered.
    pub async fn run(self, listener: TcpListener, workers: Workers) {
        let max_connections = self.settings.get().listen.max_connections;
        let connections = Arc::new(Semaphore::new(max_connections));
        let lifecycle = self.lifecycle.clone();
        let ingress = Arc::new(self);
        let draining = lifecycle.reached(Phase::Draining);
        tokio::pin!(draining);
        loop {
            // At the bound new connections wait in the backlog of the listener.
            let accepted = tokio::select! {
                biased;
                () = &mut draining => break,
                accepted = accept(&listener, &connections, &ingress.metrics) => accepted,
            };
            workers.run(ingress.clone().serve_accepted(accepted));
        }
        drop(listener);
        let all = u32::try_from(max_connections).unwrap_or(u32::MAX);
        let flushed = async {
            lifecycle.reached(Phase::Expired).await;
            clock::sleep(FLUSH).await;
        };
        tokio::select! {
            _ = connections.acquire_many(all) => {}
            () = flushed => {}
        }
    }

    async fn serve_accepted(self: Arc<Self>, accepted: Accepted) {
        let Accepted {
            stream,
            caller,
            place,
        } = accepted;
        let connected = self.metrics.connected();
        // Out of memory, mostly: the caller sees that his connection is closed.
        if let Ok(stream) = TcpStream::from_std(stream) {
            self.serve(stream, caller).await;
        }
        drop((connected, place));
    }

    async fn serve(&self, stream: TcpStream, caller: Caller) {
        let connected = clock::now();
        let Some(tls) = &self.tls else {
            if let Some(Ok(opening)) = self.before_head(Opening::of(&stream)).await {
                let stream = outbox::Stream::from(stream);
                self.connection(stream, connected, opening, caller).await;
            }
            return;
        };
        // In a box: it takes twice as much, and connections without TLS would have room for it.
        Box::pin(async {
            let stream = outbox::Stream::from(stream);
            if let Some(stream) = self.shake_hands(stream, tls.get()).await {
                let opening = Opening::agreed(stream.get_ref().1.alpn_protocol());
                self.connection(stream, clock::now(), opening, caller).await;
            }
        })
        .await;
    }

    /// What comes of `first`, which has the time that a head has; `None` if the gateway drains before.
    async fn before_head<F: Future>(&self, first: F) -> Option<Result<F::Output, Bound>> {
        let header_timeout = self.settings.get().listen.header_timeout;
        let done = tokio::select! {
            biased;
            done = within(header_timeout, first) => done,
            () = self.lifecycle.reached(Phase::Draining) => return None,
        };
        Some(done.ok_or_else(|| {
            self.metrics.reached(Bound::HeaderTime);
            Bound::HeaderTime
        }))
    }

    /// One who does not finish the handshake is treated like one who does not finish a head.
    async fn shake_hands(
        &self,
        stream: outbox::Stream,
        config: Arc<ServerConfig>,
    ) -> Option<TlsStream<outbox::Stream>> {
        let handshake = TlsAcceptor::from(config).accept(stream);
        let (cause, error) = match self.before_head(handshake).await? {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => (tls::cause(&error), error.to_string()),
            Err(_) => ("timeout", "it took too long".to_owned()),
        };
        self.metrics.tls_failure(cause);
        tracing::debug!(cause, error, "a TLS handshake failed");
        None
    }

    /// Serves one connection over any transport, all of whose requests are from `caller`. Ends when the
    /// caller does, at a limit of time, or, once what was read is answered, when the gateway drains.
    async fn connection<IO>(&self, io: IO, connected: Instant, opening: Opening, caller: Caller)
    where
        IO: Transport,
    {
        let (gateway, settings) = (&self.gateway, &self.settings);
        let limits = Limits::of(settings);
        let activity = Activity::new(limits.timeouts, connected);
        let bells = Bells::default();
        // HTTP/1.1 has one call at a time.
        let bell = bells.another();
        let service = service_fn(|request: Request<Incoming>| {
            // A call goes by the settings of its time; what its connection was made with stays.
            let limits = Limits::of(settings);
            let (gateway, caller) = (gateway.clone(), caller.clone());
            let multiplexed = request.version() == Version::HTTP_2;
            let serving = activity.call(multiplexed);
            let bell = if multiplexed {
                bells.another()
            } else {
                bell.clone()
            };
            Woken::new(answer(gateway, caller, request, limits, serving), bell)
        });
        let io = TokioIo::new(activity.watch(io));
        match opening {
            Opening::Http1 => {
                let connection = protocol::http1::<IO>(limits).serve_connection(io, service);
                self.until_end(pin!(connection), &activity, &bells).await;
            }
            // In a box: HTTP/2's takes twice as much, and few connections are such.
            Opening::Either => {
                let connection = async {
                    let builder = protocol::either::<IO>(limits);
                    let connection = builder.serve_connection(io, service);
                    self.until_end(pin!(connection), &activity, &bells).await;
                };
                Box::pin(connection).await;
            }
        }
    }

    /// Runs a connection to its end, which begins when the gateway drains or nothing has been asked for
    /// too long.
    async fn until_end<C>(&self, mut connection: Pin<&mut C>, activity: &Activity, bells: &Bells)
    where
        C: GracefulConnection<Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        let mut awaited = Some(Phase::Draining);
        let mut phase = pin!(self.lifecycle.reached(Phase::Draining));
        let mut ending = false;
        loop {
            let end = tokio::select! {
                biased;
                end = activity.within(connection.as_mut()) => end,
                () = &mut phase, if awaited.is_some() => {
                    if awaited == Some(Phase::Draining) {
                        ending = true;
                        connection.as_mut().graceful_shutdown();
                        phase.set(self.lifecycle.reached(Phase::Expired));
                        awaited = Some(Phase::Expired);
                    } else {
                        bells.ring();
                        awaited = None;
                    }
                    continue;
                }
            };
            // A caller who breaks off is no event for the log.
            let bound = match end {
                Ok(Ok(())) => None,
                Ok(Err(error)) => broken_rule(error.into().as_ref()),
                Err(bound) => Some(bound),
            };
            if let Some(bound) = bound {
                self.metrics.reached(bound);
            }
            if bound != Some(Bound::IdleTime) || ending {
                return;
            }
            // HTTP/2 says so before it closes, and a call that crosses that is still served.
            ending = true;
            activity.wind_up();
            connection.as_mut().graceful_shutdown();
        }
    }
}

/// A connection, and its place among `listen.max_connections`.
struct Accepted {
    stream: net::TcpStream,
    caller: Caller,
    place: OwnedSemaphorePermit,
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
    metrics: &Metrics,
) -> Accepted {
    if connections.available_permits() == 0 {
        metrics.reached(Bound::Connections);
    }
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
                // The runtime that accepts it is not the one that serves it.
                let Ok(stream) = stream.into_std() else {
                    continue;
                };
                let caller = peer.ip().into();
                return Accepted {
                    stream,
                    caller,
                    place,
                };
            }
            Err(error) => {
                // Out of file descriptors, mostly: they come back when connections end.
                tracing::warn!(%error, "a connection could not be accepted");
                clock::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// What a connection ended by that was not HTTP, or too much of it.
fn broken_rule(error: &(dyn Error + 'static)) -> Option<Bound> {
    let error = error.downcast_ref::<hyper::Error>()?;
    if error.is_parse_too_large() {
        return Some(Bound::HeaderBytes);
    }
    if error.is_parse() {
        return Some(Bound::Protocol);
    }
    let cause = error.source()?.downcast_ref::<h2::Error>()?;
    // Said by us, not by the caller.
    if !cause.is_library() {
        return None;
    }
    match cause.reason()? {
        h2::Reason::ENHANCE_YOUR_CALM => Some(Bound::Resets),
        h2::Reason::NO_ERROR => None,
        _ => Some(Bound::Protocol),
    }
}

/// The answer to one request. In two boxes, one after the other: hyper moves them, a connection would
/// have room for them while it has no call, and what waits needs nothing of what was read.
fn answer(
    gateway: Arc<Gateway>,
    caller: Caller,
    request: Request<Incoming>,
    limits: Limits,
    serving: Serving,
) -> impl Future<Output = Result<Response<Full<Bytes>>, Infallible>> {
    let (mut head, incoming) = request.into_parts();
    let hygiene = hygiene::check(&head, limits.head);
    let is_tunnel = head.method == Method::CONNECT;
    if let Some(proto) = limits.forwarded {
        forwarded::add(&mut head.headers, &caller, proto);
    }
    let begin = async move {
        serving.connection().taken().await;
        let body = async |room: &_| {
            hygiene?;
            read::whole(incoming, &limits.body, room).await
        };
        let under_way = gateway.begin(caller, &mut head, body).await;
        (under_way, serving)
    };
    Box::pin(begin).then(move |(under_way, serving)| {
        Box::pin(under_way.answer().map(move |mut response| {
            if is_tunnel {
                // Whatever `listen.status_codes`: any 2xx would open the tunnel (RFC 9110, 9.3.6).
                *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            }
            drop(serving);
            Ok(response.map(Full::new))
        }))
    })
}

fn within<F: Future>(limit: Duration, future: F) -> impl Future<Output = Option<F::Output>> {
    clock::by(clock::now() + limit, future)
}
