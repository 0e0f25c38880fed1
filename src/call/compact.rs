//! What waits keeps what it needs, in memory of its own.
//!
//! The parts of a request lie where its connection read them: of that hyper has 8 KiB or more for each
//! message, which as little as one header would keep for as long as its call waits, and which
//! `queue.max_bytes` knows nothing of.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, uri::PathAndQuery};

use super::{Call, Head};

/// A longer body has most of what it lies in to itself.
const LONG: usize = 64 << 10;

impl Call {
    /// Keeps nothing but itself from now on.
    pub fn compact(&mut self) {
        // Nobody else has it before it waits.
        if let Some(head) = Arc::get_mut(&mut self.head) {
            compact(head, &mut self.body);
        }
    }
}

/// Puts all of a request into one piece of memory.
pub fn compact(head: &mut Head, body: &mut Bytes) {
    let headers = head.headers.0.get_mut();
    let target = head.target.as_str().len();
    let moved = if body.len() < LONG { body.len() } else { 0 };
    let mut memory = BytesMut::with_capacity(target + headers.length() + moved);
    let mut own = |bytes: &[u8]| {
        memory.extend_from_slice(bytes);
        memory.split().freeze()
    };
    // Of what was legal a copy is, too.
    if let Ok(target) = PathAndQuery::from_maybe_shared(own(head.target.as_str().as_bytes())) {
        head.target = target;
    }
    headers.compact(&mut own);
    if moved > 0 {
        *body = own(body);
    }
}

/// The headers of a request: as hyper reads and writes them, or as small as can be.
#[derive(Clone)]
pub(super) enum Kept {
    /// To be sent.
    Map(HeaderMap),
    /// While it waits. In the order in which the map has them, which has room for more and an index.
    List(Box<[(HeaderName, HeaderValue)]>),
}

impl Default for Kept {
    fn default() -> Kept {
        Kept::Map(HeaderMap::new())
    }
}

impl Kept {
    /// As they are sent.
    pub(super) fn into_map(self) -> HeaderMap {
        match self {
            Kept::Map(map) => map,
            Kept::List(list) => {
                let mut map = HeaderMap::with_capacity(list.len());
                for (name, value) in list {
                    map.append(name, value);
                }
                map
            }
        }
    }

    /// Bytes of the values that are still to be copied.
    fn length(&self) -> usize {
        match self {
            Kept::Map(map) => map.values().map(HeaderValue::len).sum(),
            Kept::List(_) => 0,
        }
    }

    fn compact(&mut self, own: &mut impl FnMut(&[u8]) -> Bytes) {
        let Kept::Map(map) = self else { return };
        let copy = |(name, value): (&HeaderName, &HeaderValue)| {
            let copied = HeaderValue::from_maybe_shared(own(value.as_bytes()));
            let mut copied = copied.unwrap_or_else(|_| value.clone());
            copied.set_sensitive(value.is_sensitive());
            (name.clone(), copied)
        };
        *self = Kept::List(map.iter().map(copy).collect());
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    /// A request whose parts lie in `memory`, as hyper reads them.
    fn read_into(memory: &Bytes, body: usize) -> (Head, Bytes) {
        let path = PathAndQuery::from_maybe_shared(memory.slice(..4)).unwrap();
        let mut headers = HeaderMap::new();
        let value = |at: usize| HeaderValue::from_maybe_shared(memory.slice(at..at + 2)).unwrap();
        headers.append("x-b", value(4));
        headers.append("content-type", value(6));
        headers.append("x-b", value(8));
        let mut secret = value(10);
        secret.set_sensitive(true);
        headers.append("x-a", secret);
        let head = Head::new(Method::POST, path, headers);
        (head, memory.slice(12..12 + body))
    }

    fn memory(length: usize) -> Bytes {
        let mut bytes = b"/p?qvaluetwins".to_vec();
        bytes.resize(length, b'x');
        Bytes::from(bytes)
    }

    #[test]
    fn what_waits_should_keep_nothing_of_what_it_was_read_into_and_lose_nothing() {
        let memory = memory(16_384);
        let (mut head, mut body) = read_into(&memory, 300);
        let (before, text) = (head.headers.to_send(), body.clone());
        compact(&mut head, &mut body);
        assert_eq!(body, text);
        assert_eq!(head.target, "/p?q");
        for _ in 0..2 {
            let sent = head.headers.to_send();
            assert!(sent.iter().eq(before.iter()), "the same in the same order");
            assert!(sent["x-a"].is_sensitive());
        }
        compact(&mut head, &mut body);
        assert!(head.headers.take().iter().eq(before.iter()), "also twice");
        drop((before, text));
        assert!(memory.is_unique(), "hyper can read into it again");
    }

    #[test]
    fn a_long_body_should_stay_where_it_is() {
        let memory = memory(LONG + 12);
        let (mut head, mut body) = read_into(&memory, LONG);
        compact(&mut head, &mut body);
        assert_eq!(body.as_ptr(), memory[12..].as_ptr());
    }
}
