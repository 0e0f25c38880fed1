//! The version of HTTP that the upstream chooses: hyper's pooled client, in which all calls of HTTP/2
//! share a connection.

use std::{error::Error as _, time::Duration};

use bytes::Bytes;
use http::{
    Request, Response, Uri, header,
    uri::{Authority, Scheme},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, Error},
    rt::{TokioExecutor, TokioTimer},
};

use super::{BoxFuture, Connector, MAX_REPLY_BYTES, Whole, idle, innermost};
use crate::{clock, upstream::Failure, workers::EachWorker};

/// The largest head of a reply over HTTP/2.
const MAX_REPLY_HEAD: u32 = 64 << 10;

/// A connection of HTTP/2 carries every call, so one that is dead must be noticed: it is asked for a
/// sign of life while calls are under way.
const PING_EVERY: Duration = Duration::from_secs(5);

/// How long that may take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

type Call =
    dyn Fn(Request<Full<Bytes>>) -> BoxFuture<Result<Response<Incoming>, Error>> + Send + Sync;

/// The client, and whom it calls.
pub(super) struct Negotiated {
    call: Box<Call>,
    authority: Authority,
}

impl Negotiated {
    pub(super) fn new(connector: &impl Connector, authority: Authority) -> Negotiated {
        let client = |connector| -> Client<_, Full<Bytes>> {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(idle::KEPT)
                .timer(TokioTimer::new())
                .http2_keep_alive_interval(PING_EVERY)
                .http2_keep_alive_timeout(PING_TIMEOUT)
                .http2_max_header_list_size(MAX_REPLY_HEAD)
                .build(connector)
        };
        let clients = EachWorker::new(|| client(connector.clone()));
        Negotiated {
            call: Box::new(move |request| Box::pin(clients.get().request(request))),
            authority,
        }
    }

    /// Sends a request for a path and reads its reply.
    pub(super) fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> impl Future<Output = Result<Whole, Failure>> + Send + use<> {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(Scheme::HTTPS);
        uri.authority = Some(self.authority.clone());
        let target = Uri::from_parts(uri).map_err(|e| Failure::Unreachable(e.to_string()));
        let response = target.map(|target| {
            *request.uri_mut() = target;
            // The caller's names the gateway. The upstream is named by the URI: hyper writes `Host`
            // for HTTP/1.1 and `:authority` for HTTP/2.
            request.headers_mut().remove(header::HOST);
            (self.call)(request)
        });
        async move {
            let response = response?.await.map_err(|e| failure(&e))?;
            let at = clock::now();
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_REPLY_BYTES).collect().await;
            let body = body.map_err(|e| Failure::Lost(e.to_string()))?.to_bytes();
            Ok(Whole { head, body, at })
        }
    }
}

fn failure(error: &Error) -> Failure {
    let cause = innermost(error);
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
