//! What a connection begins with says whether it is HTTP/1.1. Where it is known, hyper needs not find
//! out: it would read the first bytes into a buffer of their own, and then want one of 16 KiB for the
//! rest instead of 8.

use tokio::net::TcpStream;

/// What every connection of HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// HTTP/1.1, or what is no HTTP.
    Http1,
    /// HTTP/1.1 or HTTP/2: it is for hyper to find out.
    Either,
}

impl Opening {
    /// As the first bytes of `stream` say, which stay where they are. Waits for one of them.
    pub(super) async fn of(stream: &TcpStream) -> Opening {
        let mut first = [0; PREFACE.len()];
        match stream.peek(&mut first).await {
            Ok(length) => Opening::with(&first[..length]),
            // Whoever reads hears so, too.
            Err(_) => Opening::Either,
        }
    }

    /// As was agreed on while a TLS connection was made (ALPN, RFC 7301).
    pub(super) fn agreed(protocol: Option<&[u8]>) -> Opening {
        match protocol {
            Some(b"http/1.1") => Opening::Http1,
            _ => Opening::Either,
        }
    }

    fn with(first: &[u8]) -> Opening {
        if PREFACE.starts_with(first) {
            Opening::Either
        } else {
            Opening::Http1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_become_http_2_should_be_left_open() {
        for (first, opening) in [
            (&b""[..], Opening::Either),
            (b"P", Opening::Either),
            (b"PRI * HTTP/2.0\r\n", Opening::Either),
            (PREFACE, Opening::Either),
            (b"PO", Opening::Http1),
            (b"PRI * HTTP/1.1\r\n", Opening::Http1),
            (b"G", Opening::Http1),
            (b"\x16\x03\x01", Opening::Http1),
        ] {
            assert_eq!(Opening::with(first), opening, "{first:?}");
        }
    }

    #[test]
    fn what_was_agreed_on_should_be_believed_of_http_1_only() {
        for (protocol, opening) in [
            (None, Opening::Either),
            (Some(&b"h2"[..]), Opening::Either),
            (Some(b"http/1.1"), Opening::Http1),
        ] {
            assert_eq!(Opening::agreed(protocol), opening, "{protocol:?}");
        }
    }
}
