//! The second port, for operators and their tools.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 while the process runs |
//! | `/readyz` | 200 while calls are taken, 503 before and while draining |
//! | `/metrics` | Prometheus text |
//! | `/status.json` | the busiest keys: wait, queue, batches, next slot |
//! | `/explain?sdkappid=&group=&msg_seq=`, `/explain?sdkappid=&quota=&key=` | why a key waits: queue, window, profile, refusals; a page for browsers |
//! | `/log` | the log level in force; `PUT` sets it until the process ends |
//! | `/` | the same for people |

mod explain;
mod status;

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    clock::{self, Instant},
    lane::Lanes,
    log,
    metrics::{Metrics, Scraped},
    shutdown::{Lifecycle, Phase},
};

/// Connections of operators and scrapers at a time; further ones wait.
const MAX_CONNECTIONS: usize = 64;

/// How long the head of a request may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The body of a request; `PUT /log` needs a line.
const MAX_BODY: usize = 4 << 10;

/// The status page, whole: style and script are in it, since operators may have no way out.
const PAGE: &str = include_str!("admin/page.html");

/// What the page may do: nothing but show itself and ask this port.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
                           script-src 'unsafe-inline'; connect-src 'self'; img-src data:";

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
    shown: status::Shown,
}

impl Admin {
    /// What is to be seen of these parts.
    pub fn new(
        lanes: Arc<Lanes>,
        metrics: Arc<Metrics>,
        lifecycle: Lifecycle,
        started: Instant,
    ) -> Admin {
        Admin {
            lanes,
            metrics,
            lifecycle,
            started,
            shown: status::Shown::default(),
        }
    }

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
                let service = service_fn(|request: Request<Incoming>| async {
                    let (head, body) = request.into_parts();
                    let response = match read(&head.method, body).await {
                        Ok(body) => admin.answer(&Request::from_parts(head, body)),
                        Err(response) => response,
                    };
                    Ok::<_, Infallible>(response.map(Full::new))
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
    pub fn answer(&self, request: &Request<Bytes>) -> Response<Bytes> {
        let query = request.uri().query().unwrap_or_default();
        match (request.method(), request.uri().path()) {
            (&Method::PUT, "/log") => return set_level(request.body()),
            (&Method::GET | &Method::HEAD, _) => {}
            (_, path) => return wrong_method(path),
        }
        match request.uri().path() {
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
                let metrics = self.metrics.render(Scraped {
                    room: &lanes.room,
                    quota: &lanes.quota,
                    rtt_floor,
                    breaker_open: lanes.upstream.breaker.name() != "closed",
                });
                with_type("text/plain; version=0.0.4; charset=utf-8", metrics)
            }
            "/status.json" => with_type("application/json", status::render(self)),
            // The page asks again, for JSON.
            "/explain" if wants_page(request) => page(),
            "/explain" => match explain::render(self, query) {
                Ok(explanation) => with_type("application/json", explanation),
                Err((status, what)) => text(status, what),
            },
            "/log" => match log::current() {
                Some(log) => text(StatusCode::OK, format!("{}\n", log.level())),
                None => text(StatusCode::NOT_FOUND, "this process does not log\n"),
            },
            _ => text(
                StatusCode::NOT_FOUND,
                "nothing here; try /, /livez, /readyz, /metrics, /status.json, /explain, /log\n",
            ),
        }
    }
}

/// The body of a request that may have one.
async fn read(method: &Method, body: Incoming) -> Result<Bytes, Response<Bytes>> {
    if method != Method::PUT {
        return Ok(Bytes::new());
    }
    let whole = Limited::new(body, MAX_BODY).collect();
    tokio::select! {
        biased;
        body = whole => match body {
            Ok(body) => Ok(body.to_bytes()),
            Err(_) => Err(text(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is broken or larger than {MAX_BODY} bytes\n"),
            )),
        },
        () = clock::sleep(HEADER_TIMEOUT) => Err(text(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body was not here within {HEADER_TIMEOUT:?}\n"),
        )),
    }
}

fn set_level(body: &[u8]) -> Response<Bytes> {
    let Ok(level) = std::str::from_utf8(body) else {
        return text(StatusCode::BAD_REQUEST, "the body is not text\n");
    };
    let Some(log) = log::current() else {
        return text(StatusCode::NOT_FOUND, "this process does not log\n");
    };
    match log.set_level(level.trim()) {
        Ok(()) => text(StatusCode::OK, format!("{}\n", log.level())),
        Err(problem) => text(StatusCode::BAD_REQUEST, format!("{problem}\n")),
    }
}

fn wrong_method(path: &str) -> Response<Bytes> {
    let (allowed, what) = match path {
        "/log" => ("GET, HEAD, PUT", "only GET and PUT are answered here\n"),
        _ => ("GET, HEAD", "only GET is answered here\n"),
    };
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, what);
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

/// A browser says that it takes HTML; tools say nothing, or anything, and get JSON.
fn wants_page(request: &Request<Bytes>) -> bool {
    let accepts = request.headers().get_all(header::ACCEPT).iter();
    accepts
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("text/html"))
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

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = with_type("text/plain; charset=utf-8", body);
    *response.status_mut() = status;
    response
}
