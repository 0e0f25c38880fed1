//! What a head must not say, whatever the command: two programs that read it could read two
//! requests. Refused is better than repaired.

use http::{HeaderMap, HeaderValue, Method, Version, header, request::Parts, uri::Authority};

use crate::{
    bound::Bound,
    error::{self, Reason, Refusal},
};

/// The limits of a head.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadLimits {
    pub(super) headers: usize,
    pub(super) bytes: usize,
}

/// Refuses a head that is too large or can be read in two ways.
pub(super) fn check(head: &Parts, limits: HeadLimits) -> Result<(), Refusal> {
    if head.headers.len() > limits.headers {
        return Err(too_large(
            Bound::Headers,
            head.headers.len(),
            "headers",
            limits.headers,
        ));
    }
    let said = Said::by(&head.headers);
    let bytes = line_bytes(head) + said.bytes;
    if bytes > limits.bytes {
        return Err(too_large(Bound::HeaderBytes, bytes, "bytes", limits.bytes));
    }
    if head.method == Method::CONNECT {
        return Err(invalid("CONNECT asks for a tunnel, the gateway makes none"));
    }
    check_host(head, said.host, said.hosts)?;
    check_transfer_encoding(said.coding, said.codings)
}

/// What headers say, of one look at each.
#[derive(Default)]
struct Said<'a> {
    bytes: usize,
    host: Option<&'a HeaderValue>,
    hosts: usize,
    coding: Option<&'a HeaderValue>,
    codings: usize,
}

impl<'a> Said<'a> {
    fn by(headers: &'a HeaderMap) -> Said<'a> {
        let mut said = Said::default();
        for (name, value) in headers {
            said.bytes += name.as_str().len() + value.len() + ": \r\n".len();
            if *name == header::HOST {
                said.host = Some(value);
                said.hosts += 1;
            } else if *name == header::TRANSFER_ENCODING {
                said.coding = Some(value);
                said.codings += 1;
            }
        }
        said
    }
}

/// The bytes of a request line as HTTP/1.1 writes it, and of the empty line at the end.
fn line_bytes(head: &Parts) -> usize {
    let target = head.uri.path_and_query();
    head.method.as_str().len()
        + target.map_or(0, |text| text.as_str().len())
        + "  HTTP/1.1\r\n\r\n".len()
}

/// Exactly one in HTTP/1.1 (RFC 9112, 3.2), none that names a user (RFC 9110, 4.2.4).
fn check_host(head: &Parts, host: Option<&HeaderValue>, hosts: usize) -> Result<(), Refusal> {
    let names_a_user = |authority: &Authority| authority.as_str().contains('@');
    if head.uri.authority().is_some_and(names_a_user) {
        return Err(invalid("the request target names a user"));
    }
    let host = match host {
        None if head.version == Version::HTTP_11 => {
            return Err(invalid("the request has no Host header"));
        }
        None => return Ok(()),
        Some(_) if hosts > 1 => return Err(invalid("the request has more than one Host header")),
        Some(host) => host.as_bytes(),
    };
    let is_plain = |host| Authority::try_from(host).is_ok_and(|host| !names_a_user(&host));
    if host.is_empty() || is_plain(host) {
        return Ok(());
    }
    Err(invalid(
        "the Host header is not a host with an optional port",
    ))
}

/// Only `chunked`, once: what else there may be stays on the body, but its name would be lost.
fn check_transfer_encoding(coding: Option<&HeaderValue>, codings: usize) -> Result<(), Refusal> {
    match coding {
        None => Ok(()),
        Some(value) if codings == 1 && value.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        Some(_) => Err(invalid(
            "the request has a Transfer-Encoding other than chunked",
        )),
    }
}

fn invalid(what: &str) -> Refusal {
    Refusal::invalid(error::BAD_REQUEST, what).at(Bound::Protocol)
}

fn too_large(bound: Bound, count: usize, what: &str, limit: usize) -> Refusal {
    let info = format!(
        "the head of the request has {count} {what}, {} is {limit}",
        bound.name()
    );
    Refusal::new(Reason::TooLarge, error::BAD_REQUEST, info).at(bound)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const LIMITS: HeadLimits = HeadLimits {
        headers: 4,
        bytes: 100,
    };

    fn head(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::get("/path?query");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn both_sides_of_each_limit_of_a_head_should_be_right() {
        let mut headers = vec![("host", "h"), ("a", "1"), ("a", "2"), ("b", "3")];
        assert_eq!(check(&head(&headers), LIMITS), Ok(()));
        headers.push(("c", "4"));
        let refusal = check(&head(&headers), LIMITS).unwrap_err();
        assert_eq!(refusal.bound, Some(Bound::Headers));

        let text = "GET /path?query HTTP/1.1\r\nhost: h\r\nlong: \r\n\r\n";
        let value = "x".repeat(100 - text.len());
        let limit = check(&head(&[("host", "h"), ("long", &value)]), LIMITS);
        assert_eq!(limit, Ok(()));
        let refusal = check(&head(&[("host", "h"), ("long", &(value + "x"))]), LIMITS);
        let refusal = refusal.unwrap_err();
        assert_eq!(refusal.bound, Some(Bound::HeaderBytes));
        assert_eq!(
            refusal.info,
            "the head of the request has 101 bytes, listen.max_header_bytes is 100"
        );
    }

    #[test]
    fn a_host_should_be_one_host() {
        for good in ["h", "h:80", "127.0.0.1:8080", "[::1]:80", ""] {
            assert_eq!(check(&head(&[("host", good)]), LIMITS), Ok(()), "{good}");
        }
        for bad in ["user@h", "user:word@h", "h/path", "h h", "h, h", "h?x"] {
            assert!(check(&head(&[("host", bad)]), LIMITS).is_err(), "{bad}");
        }
        assert!(check(&head(&[("host", "h"), ("host", "h")]), LIMITS).is_err());
        assert!(check(&head(&[]), LIMITS).is_err());
        let mut old = head(&[]);
        old.version = Version::HTTP_10;
        assert_eq!(check(&old, LIMITS), Ok(()));
    }
}
