//! The envelope of every answer, and the refusals that go into it.

use std::borrow::Cow;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode, header};
use serde_json::{Map, Value, json};

/// What a command that succeeded adds to the envelope.
pub(super) type Fields = Map<String, Value>;

/// A code that is not 0, with the text that explains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: i64,
    pub(super) info: Cow<'static, str>,
}

impl Refusal {
    pub(super) fn new(code: i64, info: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            info: info.into(),
        }
    }

    /// A parameter is missing, of the wrong type or out of its limits (10004).
    pub(super) fn parameter(info: impl Into<Cow<'static, str>>) -> Self {
        Self::new(10004, info)
    }
}

/// The envelope as the API sends it: HTTP status 200, whatever the code.
pub(super) fn envelope(result: &Result<Fields, Refusal>) -> Response<Full<Bytes>> {
    const OK: Bytes = Bytes::from_static(br#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#);
    let body = match result {
        Ok(fields) if fields.is_empty() => OK,
        Ok(fields) => {
            let mut envelope = fields.clone();
            envelope.insert("ActionStatus".into(), "OK".into());
            envelope.insert("ErrorInfo".into(), "".into());
            envelope.insert("ErrorCode".into(), 0.into());
            Value::Object(envelope).to_string().into()
        }
        Err(refusal) => json!({
            "ActionStatus": "FAIL",
            "ErrorInfo": refusal.info,
            "ErrorCode": refusal.code,
        })
        .to_string()
        .into(),
    };
    respond(StatusCode::OK, "application/json", body)
}

/// Any answer with its content type.
pub(super) fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let content_type = header::HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}
