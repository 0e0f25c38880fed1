//! One attempt: a request to the upstream and its reply, under the attempt's timeout.

mod http1;
mod idle;
mod negotiated;

use std::{error::Error, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::Either};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header, response,
};
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
pub struct Attempt {
    protocol: Protocol,
    call_timeout: Duration,
}

enum Protocol {
    /// HTTP/1.1: a connection for each call, kept for the next.
    Http1(Arc<Lines>),
    /// What the upstream chooses in the TLS handshake.
    Negotiated(Negotiated),
}

/// What came of a request.
enum Done {
    Sent(Result<Whole, Failure>),
    /// It could not be sent, for this reason, and comes back.
    Unsent(String, Box<Request<Full<Bytes>>>),
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
            Protocol::Http1(Arc::new(Lines::new(connector, url)))
        };
        let call_timeout = upstream.call_timeout;
        Attempt {
            protocol,
            call_timeout,
        }
    }

    /// Sends a call and reads its reply, once.
    pub fn send(
        &self,
        outbound: Arc<Outbound>,
    ) -> impl Future<Output = Result<Reply, Failure>> + Send + use<> {
        let now = clock::now();
        let span = &outbound.trip.span;
        let attempt = span.attempt(outbound.trip.attempts(), &outbound.head.method, now);
        let mut request = Request::new(Full::new(outbound.body.clone()));
        *request.uri_mut() = outbound.head.target.clone().into();
        *request.method_mut() = outbound.head.method.clone();
        *request.headers_mut() = match &self.protocol {
            Protocol::Http1(_) if outbound.is_repeated_only_unsent() => {
                outbound.head.headers.take()
            }
            _ => outbound.head.headers.to_send(),
        };
        attempt.inject(request.headers_mut());
        let call_timeout = self.call_timeout;
        let deadline = now + call_timeout;
        let exchange = match &self.protocol {
            Protocol::Http1(lines) => Either::Left(lines.clone().exchange(request, deadline)),
            Protocol::Negotiated(negotiated) => {
                let exchange = clock::by(deadline, negotiated.exchange(request));
                Either::Right(Box::pin(exchange.map(|done| done.map(Done::Sent))))
            }
        };
        async move {
            let result = match exchange.await {
                Some(Done::Sent(Ok(whole))) => {
                    reply(whole, &outbound.head.method, outbound.command.is_some())
                }
                Some(Done::Sent(Err(failure))) => Err(failure),
                Some(Done::Unsent(why, request)) => {
                    let (head, _) = request.into_parts();
                    outbound.head.headers.put_back(head.headers);
                    Err(Failure::Unreachable(why))
                }
                None => Err(Failure::TimedOut(call_timeout)),
            };
            attempt.end(&result);
            result
        }
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
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let is_told = match (lengths.next(), lengths.next()) {
        (Some(said), None) => !body.is_empty() && is_length(said, body.len()),
        (None, _) => true,
        _ => false,
    };
    if *method != Method::HEAD && !is_told {
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

/// Whether it belongs to one connection and not to the message.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
}

/// Whether a `Content-Length` is that of so many bytes.
pub fn is_length(said: &HeaderValue, bytes: usize) -> bool {
    said.as_bytes() == itoa::Buffer::new().format(bytes).as_bytes()
}

/// Removes what belongs to the connection, and what `Connection` names.
pub fn drop_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none of it, which is cheaper to see than to remove.
    if !headers.keys().any(is_hop_by_hop) {
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

/// What the API answers to most writes, byte for byte.
const USUAL: &[u8] = br#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

/// `ErrorCode` of the API's envelope; `None` if the body is no such thing.
fn error_code(body: &[u8]) -> Option<i64> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "ErrorCode")]
        error_code: i64,
    }
    if body == USUAL {
        return Some(0);
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
    use super::*;

    #[test]
    fn the_code_should_be_found_only_in_the_apis_envelope() {
        let good = br#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0,"More":[1]}"#;
        assert_eq!(error_code(good), Some(0));
        assert_eq!(error_code(USUAL), Some(0));
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
