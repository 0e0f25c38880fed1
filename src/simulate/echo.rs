//! The answer to every path that is no command: a description of what arrived, so that a test can
//! see what a gateway passed on.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode, http::request::Parts};
use serde_json::json;

use super::answer::respond;

/// `method`, `path`, `query` (null when absent) and `headers` (pairs; hyper has put the names in
/// lower case) as they arrived, and `body` when it is text or `body_base64` when it is not.
pub(super) fn describe(parts: &Parts, body: &Bytes) -> Response<Full<Bytes>> {
    let headers: Vec<_> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
        .collect();
    let mut description = json!({
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "query": parts.uri.query(),
        "headers": headers,
    });
    match str::from_utf8(body) {
        Ok(text) => description["body"] = text.into(),
        Err(_) => description["body_base64"] = STANDARD.encode(body).into(),
    }
    let body = description.to_string().into();
    respond(StatusCode::OK, "application/json", body)
}
