//! Every answer that is the gateway's own, rendered once in the API's envelope.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use crate::{bound::Bound, config::StatusCodes};

/// Why the gateway answers itself; its name is the `x-chat-gateway-reason` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The call breaks a documented limit or rule: the API would refuse it.
    Invalid,
    /// The body is larger than `listen.max_body`.
    TooLarge,
    /// It cannot be served before its deadline.
    Deadline,
    /// There is no room to wait.
    QueueFull,
    /// The upstream cannot be reached.
    UpstreamUnreachable,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// The gateway is stopping.
    Draining,
    /// The same credentials were refused by the upstream a moment ago; or the caller has no token
    /// that the gateway knows, or one for other commands.
    Unauthorized,
    /// The caller calls more often than the gateway allows him.
    CallerLimit,
}

impl Reason {
    /// The value of `x-chat-gateway-reason`.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Invalid => "invalid",
            Reason::TooLarge => "too-large",
            Reason::Deadline => "deadline",
            Reason::QueueFull => "queue-full",
            Reason::UpstreamUnreachable => "upstream-unreachable",
            Reason::UpstreamTimeout => "upstream-timeout",
            Reason::Draining => "draining",
            Reason::Unauthorized => "unauthorized",
            Reason::CallerLimit => "caller-limit",
        }
    }

    /// The HTTP status: 200 as the API does, or the nearest that HTTP has.
    pub fn status(self, codes: StatusCodes) -> StatusCode {
        match codes {
            StatusCodes::Chat => StatusCode::OK,
            StatusCodes::Http => match self {
                Reason::Invalid => StatusCode::BAD_REQUEST,
                Reason::Unauthorized => StatusCode::UNAUTHORIZED,
                Reason::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                Reason::Deadline | Reason::QueueFull | Reason::CallerLimit => {
                    StatusCode::TOO_MANY_REQUESTS
                }
                Reason::UpstreamUnreachable => StatusCode::BAD_GATEWAY,
                Reason::Draining => StatusCode::SERVICE_UNAVAILABLE,
                Reason::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            },
        }
    }
}

/// The URL could not be parsed, in the API's public table of codes (1047/34348).
pub const BAD_REQUEST: i32 = 60002;
/// The JSON of the request could not be parsed.
pub const BAD_JSON: i32 = 60003;
/// The account is wrong.
pub const BAD_ACCOUNT: i32 = 60004;
/// `sdkappid` is invalid.
pub const BAD_APP: i32 = 60006;
/// A command's frequency is over its limit.
pub const API_LIMIT: i32 = 60007;
/// Service timeout.
pub const SERVICE_TIMEOUT: i32 = 60008;
/// Bad method or resource.
pub const BAD_METHOD: i32 = 60009;
/// `sdkappid` is missing.
pub const NO_APP: i32 = 60012;
/// `usersig` is empty.
pub const NO_SIGNATURE: i32 = 70002;

/// An answer that the gateway gives itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The `ErrorCode`, one that the API documents for this cause.
    pub code: i32,
    /// The `ErrorInfo`: what, where, and what to do instead. Never a signature.
    pub info: String,
    /// When it may be worth trying again.
    pub retry_after: Option<Duration>,
    /// The bound of the gateway that the call met, for the metrics.
    pub bound: Option<Bound>,
}

impl Refusal {
    /// A refusal without `Retry-After`.
    pub fn new(reason: Reason, code: i32, info: impl Into<String>) -> Refusal {
        Refusal {
            reason,
            code,
            info: info.into(),
            retry_after: None,
            bound: None,
        }
    }

    /// The same, of a call that met this bound.
    #[must_use]
    pub fn at(self, bound: Bound) -> Refusal {
        Refusal {
            bound: Some(bound),
            ..self
        }
    }

    /// A call that breaks a documented rule.
    pub fn invalid(code: i32, info: impl Into<String>) -> Refusal {
        Refusal::new(Reason::Invalid, code, info)
    }

    /// The HTTP answer, without the headers that every answer carries.
    pub fn response(&self, codes: StatusCodes) -> Response<Bytes> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Envelope<'a> {
            action_status: &'a str,
            error_info: &'a str,
            error_code: i32,
        }
        let envelope = Envelope {
            action_status: "FAIL",
            error_info: &self.info,
            error_code: self.code,
        };
        let body = serde_json::to_vec(&envelope).expect("strings and a number serialize");
        let mut response = Response::new(Bytes::from(body));
        let response_status = self.reason.status(codes);
        *response.status_mut() = response_status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(
            "x-chat-gateway-reason",
            HeaderValue::from_static(self.reason.name()),
        );
        if response_status == StatusCode::UNAUTHORIZED {
            // RFC 9110, 15.5.2: with 401 comes what would be welcome.
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"chat-gateway\""),
            );
        }
        if let Some(after) = self.retry_after {
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(whole_seconds_up(after)),
            );
        }
        response
    }
}

/// `Retry-After` counts whole seconds; rounded up, so that whoever obeys it is not early, and at
/// least one: whoever may come back at once would not have been refused.
fn whole_seconds_up(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_should_be_the_apis_envelope() {
        let mut refusal = Refusal::new(Reason::Deadline, 10049, "the wait is 1.2 s");
        refusal.retry_after = Some(Duration::from_millis(1_001));
        let response = refusal.response(StatusCodes::Chat);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["x-chat-gateway-reason"], "deadline");
        assert_eq!(
            response.body(),
            r#"{"ActionStatus":"FAIL","ErrorInfo":"the wait is 1.2 s","ErrorCode":10049}"#
        );
    }

    #[test]
    fn each_reason_should_have_its_http_status() {
        for (reason, status) in [
            (Reason::Invalid, 400),
            (Reason::Unauthorized, 401),
            (Reason::TooLarge, 413),
            (Reason::Deadline, 429),
            (Reason::QueueFull, 429),
            (Reason::CallerLimit, 429),
            (Reason::UpstreamUnreachable, 502),
            (Reason::Draining, 503),
            (Reason::UpstreamTimeout, 504),
        ] {
            assert_eq!(reason.status(StatusCodes::Http), status);
            assert_eq!(reason.status(StatusCodes::Chat), 200);
        }
    }

    #[test]
    fn retry_after_should_be_rounded_up() {
        for (millis, seconds) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2)] {
            assert_eq!(whole_seconds_up(Duration::from_millis(millis)), seconds);
        }
    }
}
