//! The headers of the gateway's own: what callers ask by them, and what they are told. Names are parsed
//! once, not for each call.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{
    config::Config,
    error::{self, Refusal},
    upstream::client::{is_hop_by_hop, is_length},
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

/// What the headers of a request say to the gateway. Each is looked at once: most of what could be
/// there is not, and a look-up costs as much as a pass.
#[derive(Default)]
pub(super) struct Said<'a> {
    timeout: Option<&'a HeaderValue>,
    merge: Option<&'a HeaderValue>,
    length: Option<&'a HeaderValue>,
    lengths: u32,
    /// There is a body, though it may be empty.
    pub(super) has_body: bool,
    /// Something of it belongs to the connection.
    pub(super) is_hop_by_hop: bool,
    /// `Expect` is there.
    pub(super) expects: bool,
}

impl<'a> Said<'a> {
    pub(super) fn by(headers: &'a HeaderMap) -> Said<'a> {
        let mut said = Said::default();
        for (name, value) in headers {
            if *name == header::CONTENT_LENGTH {
                said.length = Some(value);
                said.lengths += 1;
                said.has_body = true;
            } else if is_hop_by_hop(name) {
                said.is_hop_by_hop = true;
                said.has_body |= *name == header::TRANSFER_ENCODING;
            } else if *name == header::EXPECT {
                said.expects = true;
            } else if *name == TIMEOUT {
                said.timeout.get_or_insert(value);
            } else if *name == MERGE {
                said.merge.get_or_insert(value);
            }
        }
        said
    }

    /// Whether it says that the body is of so many bytes, once, and as anyone would.
    pub(super) fn says_length(&self, bytes: usize) -> bool {
        self.lengths == 1 && self.length.is_some_and(|length| is_length(length, bytes))
    }

    pub(super) fn wishes(&self, settings: &Config) -> Result<Wishes, Refusal> {
        let max_deadline = settings.queue.deadline;
        let wrong = |name, what: &str| {
            Refusal::invalid(
                error::BAD_REQUEST,
                format!("the header {name} is not {what}"),
            )
        };
        let deadline = match self.timeout {
            None => max_deadline,
            Some(value) => value
                .to_str()
                .ok()
                .and_then(|text| humantime::parse_duration(text.trim()).ok())
                .ok_or_else(|| wrong("x-chat-gateway-timeout", "a duration such as 750ms or 5s"))?
                .min(max_deadline),
        };
        let merge = match self.merge.map(HeaderValue::as_bytes) {
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
    let mut text = [0; 2 * (", upstream;dur=".len() + 22)];
    let mut end = 0;
    let mut write = |piece: &[u8]| {
        text[end..][..piece.len()].copy_from_slice(piece);
        end += piece.len();
    };
    let mut digits = itoa::Buffer::new();
    for (name, time) in [("wait;dur=", wait), (", upstream;dur=", upstream)] {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let tenths = micros.saturating_add(50) / 100;
        write(name.as_bytes());
        write(digits.format(tenths / 10).as_bytes());
        write(&[b'.', b"0123456789"[(tenths % 10) as usize]]);
    }
    HeaderValue::from_bytes(&text[..end]).expect("digits and letters are a legal header value")
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
