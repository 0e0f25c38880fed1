//! Query strings: what is accepted says who asks in the bytes that came, and what is refused never
//! shows a signature.

use bytes::Bytes;
use chat_gateway::{
    call::{Call, Head, Travels},
    catalogue::group_attributes::CLEAR,
    clock,
    error::Refusal,
    validate::{Terms, validate},
};
use http::{HeaderMap, Method, uri::PathAndQuery};

/// The longest target that the HTTP library takes.
const LONGEST: usize = 65_534;

pub(crate) fn check(input: &[u8]) {
    let query = String::from_utf8_lossy(input);
    let Some(target) = target(&query) else { return };
    // The query as HTTP sees it: without a fragment.
    let query = target.query().unwrap_or_default().to_owned();
    match attempt(target) {
        Ok(call) => {
            check_call(&query, &call);
            check_at_full_length(&query);
        }
        Err(refusal) => check_refusal(&query, &refusal),
    }
}

fn target(query: &str) -> Option<PathAndQuery> {
    format!("{}?{query}", CLEAR.path).parse().ok()
}

fn attempt(target: PathAndQuery) -> Result<Call, Refusal> {
    let head = Head::new(Method::POST, target, HeaderMap::new());
    let now = clock::now();
    let terms = Terms {
        caller: chat_gateway::call::Caller::Local,
        received: now,
        deadline: now,
        travels: Travels::Together,
        signed_by: chat_gateway::call::SignedBy::Caller,
        random: u32::MAX,
    };
    let body = Bytes::from_static(br#"{"GroupId":"g"}"#);
    validate(&CLEAR, head, body, terms)
}

/// The first parameter of that name, found without the gateway's own reader.
fn first<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .find(|part| *part == name || part.starts_with(&format!("{name}=")))
        .map(|part| part.get(name.len() + 1..).unwrap_or_default())
}

fn check_call(query: &str, call: &Call) {
    let filled = call.head.target.as_str();
    assert!(filled.parse::<http::Uri>().is_ok(), "{filled:?}");
    assert_eq!(call.head.target.path(), CLEAR.path);
    let filled = call.head.target.query().expect("a query");
    let more = filled.strip_prefix(query).expect("what came, and more");
    let mut expected = String::new();
    if first(query, "random").is_none() {
        expected.push_str("&random=4294967295");
    }
    if first(query, "contenttype").is_none() {
        expected.push_str("&contenttype=json");
    }
    assert_eq!(more, expected, "filled in");

    let [app, admin, signature] = call.head.credentials().expect("it was validated").parts();
    for (name, part) in [
        ("sdkappid", app),
        ("identifier", admin),
        ("usersig", signature),
    ] {
        assert_eq!(first(query, name), Some(part), "{name}");
    }
    assert_eq!(app.parse(), Ok(call.target.app));
    let hidden = format!("{:?} {:?}", call.head.credentials(), call.head);
    assert!(signature.len() < 20 || !hidden.contains(signature));

    let again = attempt(call.head.target.clone()).expect("what was filled in is accepted");
    assert_eq!(
        again.head.target, call.head.target,
        "nothing is missing now"
    );
    assert!(again.head.credentials() == call.head.credentials() && again.travels == call.travels);
}

/// A target that leaves no room for what is filled in is refused or accepted, and no crash.
fn check_at_full_length(query: &str) {
    for short_of in [0, 17, 18, 35] {
        let Some(room) = (LONGEST - short_of).checked_sub(CLEAR.path.len() + query.len() + 4)
        else {
            continue;
        };
        let long = format!("{query}&x={}", "y".repeat(room));
        match attempt(target(&long).expect("at most the longest target")) {
            Ok(call) => assert!(call.head.target.as_str().len() <= LONGEST),
            Err(refusal) => assert_eq!(refusal.code, 60002, "{refusal:?}"),
        }
    }
}

/// Another signature would have been refused in the same words: they say nothing about it.
fn check_refusal(query: &str, refusal: &Refusal) {
    let codes = [60002, 60004, 60006, 60012, 70002];
    assert!(codes.contains(&refusal.code), "{refusal:?}");
    let others: Vec<_> = query
        .split('&')
        .map(|part| match part.split_once('=') {
            Some(("usersig", signature)) if !signature.is_empty() => "usersig=another",
            _ => part,
        })
        .collect();
    let others = target(&others.join("&")).expect("plain letters are legal");
    assert_eq!(attempt(others).as_ref().err(), Some(refusal));
}
