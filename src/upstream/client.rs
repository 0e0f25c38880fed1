//! One attempt: a request over hyper's pooled client, under the attempt's timeout.

use std::{error::Error as _, future::Future, pin::Pin, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, Error, connect::Connect},
    rt::{TokioExecutor, TokioTimer},
};
use serde::Deserialize;
use tower::Service;

use super::{Failure, Outbound};
use crate::{
    call::Reply,
    clock,
    config::{Scheme, UpstreamUrl},
};

/// The largest reply that is taken. The API's own limit is 1 MB (code 10018).
pub const MAX_REPLY_BYTES: usize = 8 << 20;

/// The same for its headers, over HTTP/2.
const MAX_REPLY_HEAD: u32 = 64 << 10;

/// A connection of HTTP/2 carries every call, so one that is dead must be noticed: it is asked for a
/// sign of life while calls are under way.
const PING_EVERY: Duration = Duration::from_secs(5);

/// How long that may take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an idle connection is kept: shorter than the 60 to 75 s of usual servers, so that a
/// call rarely meets one that is being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Send_ = dyn Fn(Request<Full<Bytes>>) -> BoxFuture<Result<http::Response<hyper::body::Incoming>, Error>>
    + Send
    + Sync;

/// Sends one attempt and reads its reply whole.
#[derive(Clone)]
pub struct Attempt {
    request: Arc<Send_>,
    scheme: Scheme,
    authority: http::uri::Authority,
    call_timeout: Duration,
}

impl Attempt {
    /// A client of `url` over `connector`: TCP and TLS in service, in-process pipes in tests.
    pub fn new<C>(connector: C, url: &UpstreamUrl, call_timeout: Duration) -> Attempt
    where
        C: Connect + Clone + Send + Sync + 'static,
    {
        let client: Client<C, Full<Bytes>> = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(PING_EVERY)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_max_header_list_size(MAX_REPLY_HEAD)
            .build(connector);
        Attempt {
            request: Arc::new(move |request| Box::pin(client.request(request))),
            scheme: url.scheme,
            authority: url.authority.clone(),
            call_timeout,
        }
    }

    async fn send(self, outbound: Outbound) -> Result<Reply, Failure> {
        let timeout = self.call_timeout;
        let looked_into = outbound.command.is_some();
        let deadline = clock::now() + timeout;
        let mut uri = Uri::builder().authority(self.authority.clone());
        uri = uri.scheme(match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        });
        let uri = uri.path_and_query(outbound.head.target.clone()).build();
        let mut request = Request::new(Full::new(outbound.body.clone()));
        *request.uri_mut() = uri.map_err(|e| Failure::Unreachable(e.to_string()))?;
        *request.method_mut() = outbound.head.method.clone();
        *request.headers_mut() = outbound.head.headers.clone();
        // The caller's names the gateway. The upstream is named by the URI: hyper writes `Host` for
        // HTTP/1.1 and `:authority` for HTTP/2.
        request.headers_mut().remove(header::HOST);
        let trip = outbound.trip.clone();
        let number = trip.facts().attempts;
        let attempt = trip.span.attempt(number, request.method(), clock::now());
        attempt.inject(request.headers_mut());
        let exchange = async {
            let response = (self.request)(request).await.map_err(|e| failure(&e))?;
            let at = clock::now();
            let (parts, body) = response.into_parts();
            if parts.status == StatusCode::SWITCHING_PROTOCOLS {
                // Handed on, it would make the caller's connection a tunnel to nowhere.
                return Err(Failure::Lost(
                    "the upstream wants to switch protocols, which nobody asked for".to_owned(),
                ));
            }
            let body = Limited::new(body, MAX_REPLY_BYTES).collect().await;
            let body = body.map_err(|e| Failure::Lost(e.to_string()))?.to_bytes();
            let code = looked_into.then(|| error_code(&body)).flatten();
            let mut headers = parts.headers;
            drop_hop_by_hop(&mut headers);
            if outbound.head.method != Method::HEAD {
                // hyper writes the length of the body that we hand on.
                headers.remove(header::CONTENT_LENGTH);
            }
            Ok(Reply {
                status: parts.status,
                headers,
                body,
                code,
                at,
            })
        };
        let result = tokio::select! {
            biased;
            reply = exchange => reply,
            () = clock::sleep_until(deadline) => Err(Failure::TimedOut(timeout)),
        };
        attempt.end(&result, clock::now());
        result
    }
}

impl Service<Outbound> for Attempt {
    type Response = Reply;
    type Error = Failure;
    type Future = BoxFuture<Result<Reply, Failure>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, outbound: Outbound) -> Self::Future {
        Box::pin(self.clone().send(outbound))
    }
}

/// Removes what belongs to one connection and not to the message (RFC 9110, 7.6.1), those that
/// `Connection` names included.
pub fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<header::HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
    ] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

/// `ErrorCode` of the API's envelope; `None` if the body is no such thing.
fn error_code(body: &[u8]) -> Option<i64> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "ErrorCode")]
        error_code: i64,
    }
    serde_json::from_slice::<Envelope>(body)
        .ok()
        .map(|envelope| envelope.error_code)
}

fn failure(error: &Error) -> Failure {
    // The outermost message ("client error (Connect)") says where, the innermost says why.
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let message = cause.to_string();
    if error.is_connect() || never_written(error) || never_processed(cause) {
        Failure::Unreachable(message)
    } else {
        Failure::Lost(message)
    }
}

/// hyper gives a request back unsent when its connection closed before it was written.
fn never_written(error: &Error) -> bool {
    error
        .source()
        .and_then(|source| source.downcast_ref::<hyper::Error>())
        .is_some_and(hyper::Error::is_canceled)
}

/// A stream of HTTP/2 that the upstream refused, or that came after the last one that it will look
/// at: it says that nothing was done (RFC 9113, 8.7).
fn never_processed(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.downcast_ref::<h2::Error>().is_some_and(|error| {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (refused || error.is_go_away())
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_code_should_be_found_only_in_the_apis_envelope() {
        let good = br#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0,"More":[1]}"#;
        assert_eq!(error_code(good), Some(0));
        for body in [
            &b"<html>"[..],
            b"",
            b"[]",
            b"{}",
            br#"{"ErrorCode":"0"}"#,
            b"{\"ErrorCode\":0",
        ] {
            assert_eq!(error_code(body), None);
        }
    }

    #[test]
    fn hop_by_hop_headers_should_go_with_those_that_connection_names() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("proxy-authorization", "Basic x"),
            ("x-kept", "2"),
            ("authorization", "Bearer x"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        drop_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(ToString::to_string).collect();
        left.sort();
        assert_eq!(left, ["authorization", "x-kept"]);
    }
}
