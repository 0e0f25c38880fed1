//! The headers of the gateway's own: what callers ask by them, and what they are told. Names are parsed
//! once, not for each call.

use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    config::Config,
    error::{self, Refusal},
};

static TIMEOUT: HeaderName = HeaderName::from_static("x-chat-gateway-timeout");
static MERGE: HeaderName = HeaderName::from_static("x-chat-gateway-merge");
pub(super) const ORIGIN: HeaderName = HeaderName::from_static("x-chat-gateway-origin");
pub(super) const BATCH: HeaderName = HeaderName::from_static("x-chat-gateway-batch");
pub(super) const ATTEMPTS: HeaderName = HeaderName::from_static("x-chat-gateway-attempts");
pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What a caller may ask for by headers of the gateway.
pub(super) struct Wishes {
    pub(super) deadline: Duration,
    pub(super) merge: bool,
}

impl Wishes {
    pub(super) fn of(headers: &HeaderMap, settings: &Config) -> Result<Wishes, Refusal> {
        let max_deadline = settings.queue.deadline;
        let wrong = |name, what: &str| {
            Refusal::invalid(
                error::BAD_REQUEST,
                format!("the header {name} is not {what}"),
            )
        };
        let deadline = match headers.get(&TIMEOUT) {
            None => max_deadline,
            Some(value) => value
                .to_str()
                .ok()
                .and_then(|text| humantime::parse_duration(text.trim()).ok())
                .ok_or_else(|| wrong("x-chat-gateway-timeout", "a duration such as 750ms or 5s"))?
                .min(max_deadline),
        };
        let merge = match headers.get(&MERGE).map(HeaderValue::as_bytes) {
            None | Some(b"on") => settings.merge.enabled,
            Some(b"off") => false,
            Some(_) => return Err(wrong("x-chat-gateway-merge", "off or on")),
        };
        Ok(Wishes { deadline, merge })
    }
}

/// `wait;dur=12.3, upstream;dur=45.6`, in milliseconds (W3C Server Timing).
pub(super) fn server_timing(wait: Duration, upstream: Duration) -> HeaderValue {
    // The formatting of the standard library costs ten times as much, and this is for each call.
    let mut text = BytesMut::with_capacity(64);
    let mut digits = itoa::Buffer::new();
    for (name, time) in [("wait;dur=", wait), (", upstream;dur=", upstream)] {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let tenths = micros.saturating_add(50) / 100;
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(digits.format(tenths / 10).as_bytes());
        text.extend_from_slice(b".");
        text.extend_from_slice(digits.format(tenths % 10).as_bytes());
    }
    HeaderValue::from_maybe_shared(text.freeze())
        .expect("digits and letters are a legal header value")
}

/// A count that is seldom anything but 1.
pub(super) fn number(count: u32) -> HeaderValue {
    match count {
        1 => HeaderValue::from_static("1"),
        count => count.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timing_should_be_in_milliseconds_with_a_decimal() {
        for (micros, shown) in [
            (0, "0.0"),
            (49, "0.0"),
            (50, "0.1"),
            (1_049, "1.0"),
            (12_345_678, "12345.7"),
        ] {
            let timing = server_timing(Duration::from_micros(micros), Duration::ZERO);
            assert_eq!(timing, format!("wait;dur={shown}, upstream;dur=0.0"));
        }
    }
}
