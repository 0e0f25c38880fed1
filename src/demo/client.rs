//! What a backend service has: a pooled HTTP client, and no idea of quotas.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::{
    client::legacy::{Client as Pooled, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;

use crate::clock;

/// The app of all callers.
pub(super) const APP: &str = "1400000000";

/// Longer than the gateway's deadline: whoever has no answer by then never gets one.
const PATIENCE: Duration = Duration::from_secs(15);

const MAX_REPLY_BYTES: usize = 1 << 20;

/// What a caller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// `ErrorCode` 0.
    Ok,
    /// The code of a quota that is spent.
    OverQuota,
    /// Another code, no answer or an unreadable one.
    Failed,
}

/// A call, apart from whom it is sent to.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) path: &'static str,
    pub(super) body: Bytes,
}

/// Clones share their connections.
#[derive(Clone)]
pub(super) struct Client(Pooled<HttpConnector, Full<Bytes>>);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Envelope {
    error_code: i64,
}

impl Client {
    pub(super) fn new() -> Client {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Client(Pooled::builder(TokioExecutor::new()).build(connector))
    }

    /// Makes a call to the API at `address`.
    pub(super) async fn send(&self, address: SocketAddr, call: Call) -> Heard {
        tokio::select! {
            biased;
            code = self.code(address, call) => match code {
                Some(0) => Heard::Ok,
                Some(10049 | 23003 | 60007) => Heard::OverQuota,
                _ => Heard::Failed,
            },
            () = clock::sleep(PATIENCE) => Heard::Failed,
        }
    }

    async fn code(&self, address: SocketAddr, call: Call) -> Option<i64> {
        let target = target(call.path, rand::random());
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{address}{target}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(call.body))
            .ok()?;
        let reply = self.0.request(request).await.ok()?;
        let body = Limited::new(reply.into_body(), MAX_REPLY_BYTES);
        let body = body.collect().await.ok()?.to_bytes();
        let envelope: Envelope = serde_json::from_slice(&body).ok()?;
        Some(envelope.error_code)
    }
}

/// A path with the parameters that every call has. The simulators believe any signature.
pub(super) fn target(path: &str, random: u32) -> String {
    format!(
        "{path}?sdkappid={APP}&identifier=administrator&usersig=demo&random={random}&contenttype=json"
    )
}
