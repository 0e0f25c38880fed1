//! The second port, for operators and their tools.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 while the process runs |
//! | `/readyz` | 200 while calls are taken, 503 before and while draining |
//! | `/metrics` | Prometheus text |
//! | `/status.json` | the busiest keys: wait, queue, batches, next slot |
//! | `/explain?sdkappid=&group=&msg_seq=`, `/explain?sdkappid=&quota=&key=` | why a key waits: queue, window, profile, refusals |
//! | `/` | the same for people |

mod explain;
mod status;

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    clock::{self, Instant},
    lane::Lanes,
    metrics::Metrics,
    shutdown::{Lifecycle, Phase},
};

/// Connections of operators and scrapers at a time; further ones wait.
const MAX_CONNECTIONS: usize = 64;

/// How long the head of a request may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The status page, whole: style and script are in it, since operators may have no way out.
const PAGE: &str = include_str!("admin/page.html");

/// What the page may do: nothing but show itself and ask this port.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
                           script-src 'unsafe-inline'; connect-src 'self'";

/// What operators may see.
pub struct Admin {
    /// The lanes, their windows and the room.
    pub lanes: Arc<Lanes>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Whether calls are taken.
    pub lifecycle: Lifecycle,
    /// When the process started.
    pub started: Instant,
}

impl Admin {
    /// Answers operators for as long as the process runs: also while it drains.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let place = connections.clone().acquire_owned().await;
            let place = place.expect("the semaphore is never closed");
            let Ok((stream, _)) = listener.accept().await else {
                clock::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let admin = self.clone();
            tokio::spawn(async move {
                let service = service_fn(|request: Request<Incoming>| {
                    let uri = request.uri();
                    let query = uri.query().unwrap_or_default();
                    let response = admin.answer(request.method(), uri.path(), query);
                    async { Ok::<_, Infallible>(response.map(Full::new)) }
                });
                // One who breaks off is no event for the log.
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                drop(place);
            });
        }
    }

    /// The answer to one request.
    pub fn answer(&self, method: &Method, path: &str, query: &str) -> Response<Bytes> {
        if method != Method::GET && method != Method::HEAD {
            let mut response = text(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET is answered here\n",
            );
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/" => page(),
            "/livez" => text(StatusCode::OK, "alive\n"),
            "/readyz" => match self.lifecycle.phase() {
                Phase::Ready => text(StatusCode::OK, "ready\n"),
                Phase::Starting => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
                Phase::Draining | Phase::Expired => {
                    text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
                }
            },
            "/metrics" => {
                let lanes = &self.lanes;
                let rtt_floor = lanes.upstream.floor.lock().get(clock::now());
                let open = lanes.upstream.breaker.name() != "closed";
                let metrics = self
                    .metrics
                    .render(&lanes.room, &lanes.quota, rtt_floor, open);
                with_type("text/plain; version=0.0.4; charset=utf-8", metrics)
            }
            "/status.json" => with_type("application/json", status::render(self)),
            "/explain" => match explain::render(self, query) {
                Ok(explanation) => with_type("application/json", explanation),
                Err((status, what)) => {
                    let mut response = with_type("text/plain; charset=utf-8", what);
                    *response.status_mut() = status;
                    response
                }
            },
            _ => text(
                StatusCode::NOT_FOUND,
                "nothing here; try /, /livez, /readyz, /metrics, /status.json, /explain\n",
            ),
        }
    }
}

fn page() -> Response<Bytes> {
    let mut response = with_type("text/html; charset=utf-8", PAGE);
    let policy = HeaderValue::from_static(PAGE_POLICY);
    response
        .headers_mut()
        .insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

fn with_type(kind: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Bytes> {
    let mut response = with_type("text/plain; charset=utf-8", body);
    *response.status_mut() = status;
    response
}
