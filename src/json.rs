//! A JSON document as it was written: strings borrowed where they have no escapes, members in
//! their order, a key that is named twice still there twice.
//!
//! `serde_json::Value` keeps the last of two equal keys and forgets that there were two; a gateway
//! that merges must know.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Node<'a> {
    /// `null`, `true` or `false`: no documented field takes one.
    Literal(&'static str),
    /// A number without fraction or exponent.
    Integer(i128),
    /// Any other number.
    Fraction,
    /// A string, decoded.
    Text(Cow<'a, str>),
    /// An array.
    List(Vec<Node<'a>>),
    /// An object.
    Object(Object<'a>),
}

/// The members of an object in their order, doubles included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object<'a>(pub Vec<(Cow<'a, str>, Node<'a>)>);

impl<'a> Node<'a> {
    /// Parses a whole document. Nesting is limited to 128 by the parser.
    pub fn parse(bytes: &'a [u8]) -> Result<Node<'a>, serde_json::Error> {
        match simdutf8::basic::from_utf8(bytes) {
            Ok(text) => serde_json::from_str(text),
            // It knows where it is wrong.
            Err(_) => serde_json::from_slice(bytes),
        }
    }

    /// The kind of value, for messages: "a string", "an integer".
    pub fn kind(&self) -> &'static str {
        match self {
            Node::Literal(literal) => literal,
            Node::Integer(_) => "an integer",
            Node::Fraction => "a fraction",
            Node::Text(_) => "a string",
            Node::List(_) => "an array",
            Node::Object(_) => "an object",
        }
    }
}

impl<'a> Object<'a> {
    /// The member of that name; of two, the later, which is what most parsers take.
    pub fn get(&self, name: &str) -> Option<&Node<'a>> {
        self.0
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, node)| node)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Node<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Node::Literal("null"))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Node::Literal(if value { "true" } else { "false" }))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Node::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Node::Integer(value.into()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Node::Fraction)
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Node::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Node::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = seq.next_element()? {
            list.push(node);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(Name(key)) = map.next_key()? {
            members.push((key, map.next_value()?));
        }
        Ok(Node::Object(Object(members)))
    }
}

/// `Cow` by itself always deserializes as owned.
#[derive(Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_and_order_should_survive() {
        let Node::Object(object) = Node::parse(br#"{"b":1,"a":"x","b":2.5}"#).unwrap() else {
            panic!("an object")
        };
        let names: Vec<_> = object.0.iter().map(|(name, _)| name.as_ref()).collect();
        assert_eq!(names, ["b", "a", "b"]);
        assert_eq!(object.get("b"), Some(&Node::Fraction), "the later of two");
    }

    #[test]
    fn strings_should_be_decoded_and_borrowed_where_they_can_be() {
        let parsed = Node::parse(br#"["plain","\u00e9\n"]"#).unwrap();
        let Node::List(list) = parsed else {
            panic!("a list")
        };
        assert!(matches!(&list[0], Node::Text(Cow::Borrowed("plain"))));
        assert!(matches!(&list[1], Node::Text(Cow::Owned(text)) if text == "\u{e9}\n"));
    }

    #[test]
    fn integers_should_be_told_from_fractions() {
        let Node::List(list) = Node::parse(b"[18446744073709551615,-1,1.0,1e3]").unwrap() else {
            panic!("a list")
        };
        assert_eq!(
            list,
            [
                Node::Integer(u64::MAX.into()),
                Node::Integer(-1),
                Node::Fraction,
                Node::Fraction
            ]
        );
    }

    #[test]
    fn what_is_not_json_should_be_an_error_and_not_a_panic() {
        let deep = "[".repeat(100_000);
        for bytes in [
            &b""[..],
            b"{",
            b"\xff",
            b"{}{}",
            b"\"\xc3\"",
            deep.as_bytes(),
        ] {
            assert!(Node::parse(bytes).is_err());
        }
    }
}
