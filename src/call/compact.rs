//! What waits keeps what it needs, in memory of its own.
//!
//! The parts of a request lie where its connection read them: of that hyper has 8 KiB or more for each
//! message, which as little as one header would keep for as long as its call waits, and which
//! `queue.max_bytes` knows nothing of.

use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
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

/// Puts target and body into one piece of memory and the headers into another.
pub fn compact(head: &mut Head, body: &mut Bytes) {
    head.headers.0.get_mut().compact();
    let target = head.target.as_str().len();
    let moved = if body.len() < LONG { body.len() } else { 0 };
    let mut memory = BytesMut::with_capacity(target + moved);
    let mut own = |bytes: &[u8]| {
        memory.extend_from_slice(bytes);
        memory.split().freeze()
    };
    // Of what was legal a copy is, too.
    if let Ok(target) = PathAndQuery::from_maybe_shared(own(head.target.as_str().as_bytes())) {
        head.target = target;
    }
    if moved > 0 {
        *body = own(body);
    }
}

/// The headers of a request: as hyper reads and writes them, or as small as can be.
#[derive(Clone)]
pub(super) enum Kept {
    /// To be sent. In a box: what waits has no room for it.
    Map(Box<HeaderMap>),
    /// While it waits. A map has room for more and an index, and 72 bytes for the shortest header.
    Packed(Packed),
}

impl Default for Kept {
    fn default() -> Kept {
        Kept::Packed(Packed::default())
    }
}

impl Kept {
    /// As they are sent.
    pub(super) fn into_map(self) -> HeaderMap {
        match self {
            Kept::Map(map) => *map,
            Kept::Packed(packed) => packed.into_map(),
        }
    }

    fn compact(&mut self) {
        if let Kept::Map(map) = self {
            *self = Kept::Packed(Packed::of(map));
        }
    }
}

/// Headers in the order in which a map has them, one behind the other: whether it is a secret, how long name
/// and value are, and both.
#[derive(Clone, Default)]
pub(super) struct Packed(Box<[u8]>);

/// Of a secret, of the length of a name, which http bounds to that, and of the length of a value.
const FIXED: usize = 1 + 2 + 4;

impl Packed {
    fn of(map: &HeaderMap) -> Packed {
        let lengths = map
            .iter()
            .map(|(name, value)| FIXED + name.as_str().len() + value.len());
        let mut bytes = Vec::with_capacity(lengths.sum());
        for (name, value) in map {
            let (name, is_secret) = (name.as_str().as_bytes(), value.is_sensitive());
            bytes.put_u8(is_secret.into());
            bytes.put_u16(u16::try_from(name.len()).expect("http refuses longer names"));
            bytes.put_u32(u32::try_from(value.len()).expect("a head has a bound"));
            bytes.put_slice(name);
            bytes.put_slice(value.as_bytes());
        }
        Packed(bytes.into_boxed_slice())
    }

    fn into_map(self) -> HeaderMap {
        let mut rest = Bytes::from(self.0);
        let mut map = HeaderMap::new();
        while rest.has_remaining() {
            let is_secret = rest.get_u8() != 0;
            let (name, value) = (rest.get_u16().into(), rest.get_u32() as usize);
            let name = HeaderName::from_bytes(&rest.split_to(name));
            let value = HeaderValue::from_maybe_shared(rest.split_to(value));
            let mut value = value.expect("it was legal before");
            value.set_sensitive(is_secret);
            map.append(name.expect("it was legal before"), value);
        }
        map
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
        headers.append("x-empty", HeaderValue::from_static(""));
        let odd = HeaderValue::from_bytes(b" \xe4\xbd\xa0\t:\xff").unwrap();
        headers.append("x-odd", odd);
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
