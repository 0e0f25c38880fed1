//! One attempt: a request to the upstream and its reply, under the attempt's timeout.

mod http1;
mod idle;
mod negotiated;

use std::{error::Error, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, StatusCode, Uri, header, response};
use http_body_util::Full;
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::{Connect, Connection};
use serde::Deserialize;
use tower::Service;

use super::{BoxFuture, Failure, Outbound};
use crate::{
    call::Reply,
    clock::{self, Instant},
    config::{self, Scheme},
};
use http1::Lines;
use negotiated::Negotiated;

/// The largest reply that is taken. The API's own limit is 1 MB (code 10018).
pub const MAX_REPLY_BYTES: usize = 8 << 20;

/// Makes transports to the upstream: TCP and TLS in service, in-process pipes in tests.
pub trait Connector:
    Connect
    + Clone
    + Send
    + Sync
    + 'static
    + Service<
        Uri,
        Response: Connection + Read + Write + Send + Unpin + 'static,
        Error: Into<Box<dyn Error + Send + Sync>>,
        Future: Send + Unpin + 'static,
    >
{
}

impl<C> Connector for C where
    C: Connect
        + Clone
        + Send
        + Sync
        + 'static
        + Service<
            Uri,
            Response: Connection + Read + Write + Send + Unpin + 'static,
            Error: Into<Box<dyn Error + Send + Sync>>,
            Future: Send + Unpin + 'static,
        >
{
}

/// Sends one attempt and reads its reply whole.
#[derive(Clone)]
pub struct Attempt(Arc<Way>);

/// The way to the upstream.
struct Way {
    protocol: Protocol,
    call_timeout: Duration,
}

enum Protocol {
    /// HTTP/1.1: a connection for each call, kept for the next.
    Http1(Lines),
    /// What the upstream chooses in the TLS handshake.
    Negotiated(Negotiated),
}

/// A reply that was read whole.
struct Whole {
    head: response::Parts,
    body: Bytes,
    /// When its first byte was here.
    at: Instant,
}

impl Attempt {
    /// To `upstream.url` over `connector`.
    pub fn new(connector: impl Connector, upstream: &config::Upstream) -> Attempt {
        let url = &upstream.url;
        let protocol = if upstream.http2 && url.scheme == Scheme::Https {
            Protocol::Negotiated(Negotiated::new(&connector, url.authority.clone()))
        } else {
            Protocol::Http1(Lines::new(connector, url))
        };
        let call_timeout = upstream.call_timeout;
        Attempt(Arc::new(Way {
            protocol,
            call_timeout,
        }))
    }

    /// Sends a call and reads its reply, once.
    pub fn send(
        &self,
        outbound: Outbound,
    ) -> impl Future<Output = Result<Reply, Failure>> + Send + use<> {
        self.0.clone().send(outbound)
    }
}

impl Way {
    async fn send(self: Arc<Self>, outbound: Outbound) -> Result<Reply, Failure> {
        let Outbound {
            head,
            body,
            trip,
            command,
            ..
        } = outbound;
        let now = clock::now();
        let deadline = now + self.call_timeout;
        let mut request = Request::new(Full::new(body));
        *request.uri_mut() = head.target.clone().into();
        *request.method_mut() = head.method.clone();
        *request.headers_mut() = head.headers.clone();
        let attempt = trip.span.attempt(trip.attempts(), request.method(), now);
        attempt.inject(request.headers_mut());
        let result = match &self.protocol {
            Protocol::Http1(lines) => lines.exchange(request, deadline).await,
            Protocol::Negotiated(negotiated) => {
                clock::by(deadline, negotiated.exchange(request)).await
            }
        };
        let result = match result {
            Some(Ok(whole)) => reply(whole, &head.method, command.is_some()),
            Some(Err(failure)) => Err(failure),
            None => Err(Failure::TimedOut(self.call_timeout)),
        };
        attempt.end(&result);
        result
    }
}

/// What of a reply goes on; its code only if it `is_looked_into`.
fn reply(whole: Whole, method: &Method, is_looked_into: bool) -> Result<Reply, Failure> {
    let Whole { head, body, at } = whole;
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        // Handed on, it would make the caller's connection a tunnel to nowhere.
        return Err(Failure::Lost(
            "the upstream wants to switch protocols, which nobody asked for".to_owned(),
        ));
    }
    let code = is_looked_into.then(|| error_code(&body)).flatten();
    let mut headers = head.headers;
    drop_hop_by_hop(&mut headers);
    if *method != Method::HEAD {
        // hyper writes the length of the body that we hand on.
        headers.remove(header::CONTENT_LENGTH);
    }
    Ok(Reply {
        status: head.status,
        headers,
        body,
        code,
        at,
    })
}

/// What belongs to one connection and not to the message (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Removes it, and what `Connection` names.
pub fn drop_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none of it, which is cheaper to see than to remove.
    if !headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
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

/// The outermost message ("client error (Connect)") says where, the innermost says why.
fn innermost<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
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
