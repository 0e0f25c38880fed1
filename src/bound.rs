//! The bounds that callers can meet, by the names of the settings that set them.

/// A bound; its name is the `limit` label of `chat_gateway_limit_reached_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Connections at a time: further ones wait in the backlog.
    Connections,
    /// Headers of a request.
    Headers,
    /// Bytes of a request's head.
    HeaderBytes,
    /// Time for a head: the connection is closed.
    HeaderTime,
    /// Bytes of a body.
    Body,
    /// Time for a body.
    BodyTime,
    /// Time without a request: the connection is closed.
    IdleTime,
    /// Time to read an answer: the connection is closed.
    WriteTime,
    /// Calls that wait, in all.
    Calls,
    /// Bytes of bodies that wait, or that are being read, in all.
    Bytes,
    /// Calls that wait for one key.
    CallsPerKey,
    /// Calls of HTTP/2 that were taken back: the connection is closed.
    Resets,
    /// What is HTTP: anything else is refused and the connection closed.
    Protocol,
}

impl Bound {
    /// Every bound.
    pub const ALL: [Bound; 13] = [
        Bound::Connections,
        Bound::Headers,
        Bound::HeaderBytes,
        Bound::HeaderTime,
        Bound::Body,
        Bound::BodyTime,
        Bound::IdleTime,
        Bound::WriteTime,
        Bound::Calls,
        Bound::Bytes,
        Bound::CallsPerKey,
        Bound::Resets,
        Bound::Protocol,
    ];

    /// The setting, or `resets` or `protocol`, which have none.
    pub fn name(self) -> &'static str {
        match self {
            Bound::Connections => "listen.max_connections",
            Bound::Headers => "listen.max_headers",
            Bound::HeaderBytes => "listen.max_header_bytes",
            Bound::HeaderTime => "listen.header_timeout",
            Bound::Body => "listen.max_body",
            Bound::BodyTime => "listen.body_timeout",
            Bound::IdleTime => "listen.idle_timeout",
            Bound::WriteTime => "listen.write_timeout",
            Bound::Calls => "queue.max_calls",
            Bound::Bytes => "queue.max_bytes",
            Bound::CallsPerKey => "queue.max_calls_per_key",
            Bound::Resets => "resets",
            Bound::Protocol => "protocol",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_should_be_indexed_by_their_enum() {
        for (index, bound) in Bound::ALL.into_iter().enumerate() {
            assert_eq!(bound as usize, index);
        }
    }
}
