//! Whose call it is, for the API: `x-forwarded-for` and `x-forwarded-proto`.

use http::{HeaderMap, HeaderValue};

use crate::call::Caller;

/// Adds the caller to those that the request came through already, and how he reached this port.
pub(super) fn add(headers: &mut HeaderMap, caller: &Caller, proto: &'static str) {
    if let Caller::Address(address) = caller {
        let mut through: Vec<u8> = Vec::new();
        for earlier in headers.get_all("x-forwarded-for") {
            through.extend_from_slice(earlier.as_bytes());
            through.extend_from_slice(b", ");
        }
        through.extend_from_slice(address.to_string().as_bytes());
        if let Ok(through) = HeaderValue::from_bytes(&through) {
            headers.insert("x-forwarded-for", through);
        }
    }
    headers.insert("x-forwarded-proto", HeaderValue::from_static(proto));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_should_be_the_last_of_those_it_came_through() {
        let caller = Caller::Address([10, 0, 0, 7].into());
        let mut headers = HeaderMap::new();
        add(&mut headers, &caller, "http");
        assert_eq!(headers["x-forwarded-for"], "10.0.0.7");
        assert_eq!(headers["x-forwarded-proto"], "http");
        headers.append("x-forwarded-for", HeaderValue::from_static("::1"));
        add(&mut headers, &caller, "https");
        let all: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
        assert_eq!(all, ["10.0.0.7, ::1, 10.0.0.7"]);
        assert_eq!(headers["x-forwarded-proto"], "https");
    }
}
