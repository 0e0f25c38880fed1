//! Replies of the upstream: one fate for each member of the batch, and nobody sees the pairs of
//! another.
//!
//! The first line of an input says who travelled, the rest is the reply. Senders stand between
//! `|`; the first word is `set` or `delete`, and each sender writes his keys: `set a b|c`. The
//! word `attributes` is followed by commands instead: `attributes set|modify|clear`.

use bytes::Bytes;
use chat_gateway::{
    call::{Call, Head, Reply, Travels},
    catalogue::{Command, group_attributes, message_extension},
    clock,
    json::{Node, Object},
    lane::merge::{Fate, Fold, divide},
    validate::{Terms, validate},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

pub(crate) fn check(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n');
    let (who, body) = end.map_or((input, &[][..]), |at| (&input[..at], &input[at + 1..]));
    let who = String::from_utf8_lossy(who);
    let (how, senders) = who.split_once(' ').unwrap_or((&who, ""));
    let senders: Vec<Sender> = senders
        .split('|')
        .filter_map(|sender| Sender::new(how, sender))
        .collect();
    let Some(batch) = batch(senders) else { return };
    let (command, senders) = batch;
    // The reply's own code, and whatever else the API might have said of it.
    for code in [code(body), Some(0), Some(10007), Some(23004), None] {
        let mut headers = HeaderMap::new();
        headers.insert("x-from-upstream", HeaderValue::from_static("yes"));
        let reply = Reply {
            status: StatusCode::OK,
            headers,
            body: Bytes::copy_from_slice(body),
            code,
            at: clock::now(),
        };
        check_reply(command, &senders, &reply);
    }
}

struct Sender {
    call: Call,
    keys: Vec<String>,
}

impl Sender {
    fn new(how: &str, what: &str) -> Option<Sender> {
        let operate = match how {
            "set" => 1,
            "delete" => 2,
            "attributes" => 0,
            _ => return None,
        };
        let words: Vec<String> = what.split(' ').map(str::to_owned).collect();
        let attributes = json!([{"key": "k", "value": "v"}]);
        let (command, body) = match (operate, what) {
            (0, "set") => (
                &group_attributes::SET,
                json!({"GroupId": "g", "GroupAttr": attributes}),
            ),
            (0, "clear") => (&group_attributes::CLEAR, json!({"GroupId": "g"})),
            (0, _) => (
                &group_attributes::MODIFY,
                json!({"GroupId": "g", "GroupAttr": attributes}),
            ),
            _ => {
                let pairs: Vec<_> = words
                    .iter()
                    .map(|key| json!({"Key": key, "Value": "v"}))
                    .collect();
                (
                    &message_extension::SET,
                    json!({"GroupId": "g", "MsgSeq": 1, "OperateType": operate, "ExtensionList": pairs}),
                )
            }
        };
        let target = format!("{}?sdkappid=1&identifier=a&usersig=s", command.path);
        let head = Head::new(
            Method::POST,
            target.parse().expect("a legal target"),
            HeaderMap::new(),
        );
        let now = clock::now();
        let terms = Terms {
            caller: chat_gateway::call::Caller::Local,
            received: now,
            deadline: now,
            travels: Travels::Together,
            signed_by: chat_gateway::call::SignedBy::Caller,
            random: 7,
        };
        let call = validate(command, head, Bytes::from(body.to_string()), terms).ok()?;
        Some(Sender { call, keys: words })
    }
}

/// Those of the senders who travel together, if they are several, and as what they are sent.
fn batch(senders: Vec<Sender>) -> Option<(&'static Command, Vec<Sender>)> {
    let mut senders = senders.into_iter();
    let first = senders.next()?;
    let mut fold = Fold::start(&first.call);
    let mut together = vec![first];
    for sender in senders {
        if fold.add(&sender.call) {
            together.push(sender);
        }
    }
    (together.len() > 1).then(|| (fold.command(), together))
}

fn code(body: &[u8]) -> Option<i64> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "ErrorCode")]
        code: i64,
    }
    let envelope: Envelope = serde_json::from_slice(body).ok()?;
    Some(envelope.code)
}

fn check_reply(sent: &'static Command, senders: &[Sender], reply: &Reply) {
    let members: Vec<&Call> = senders.iter().map(|sender| &sender.call).collect();
    let fates = divide(sent, &members, reply);
    assert_eq!(fates.len(), members.len(), "a fate for each");
    for (sender, fate) in senders.iter().zip(fates) {
        let Fate::Reply(own) = fate else {
            assert!(
                reply.code.is_some(),
                "what is not the API's goes to all as it came"
            );
            continue;
        };
        assert_eq!(
            (own.status, own.code, own.at),
            (reply.status, reply.code, reply.at)
        );
        assert_eq!(own.headers, reply.headers);
        if reply.code == Some(0) && std::ptr::eq(sent, &raw const message_extension::SET) {
            check_own(&sender.keys, &own.body, &reply.body);
        } else {
            assert_eq!(own.body, reply.body, "as it came");
        }
    }
}

/// The envelope as it came, with exactly the sender's keys in his order.
fn check_own(keys: &[String], own: &[u8], all: &[u8]) {
    let valid = serde_json::from_slice::<serde::de::IgnoredAny>(own);
    assert!(valid.is_ok(), "no JSON: {}", String::from_utf8_lossy(own));
    // What a strict reader does not take, such as half a surrogate, is handed on as it came.
    let (Ok(Node::Object(own)), Ok(Node::Object(all))) = (Node::parse(own), Node::parse(all))
    else {
        return;
    };
    assert_eq!(own.0.len(), all.0.len(), "members");
    for ((name, value), (name_there, value_there)) in own.0.iter().zip(&all.0) {
        assert_eq!(name, name_there, "in their order");
        if name == "ExtensionList" {
            let Node::List(pairs) = value else {
                panic!("no list")
            };
            let found: Vec<_> = pairs.iter().map(key).collect();
            let expected: Vec<_> = keys.iter().map(|key| Some(key.as_str())).collect();
            assert_eq!(found, expected, "exactly the sender's keys");
        } else {
            assert_eq!(value, value_there, "{name}");
        }
    }
}

fn key<'a>(pair: &'a Node<'_>) -> Option<&'a str> {
    let member = |node: &'a Node<'_>, name| match node {
        Node::Object(Object(members)) => members
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, node)| node),
        _ => None,
    };
    match member(member(pair, "Extension")?, "Key")? {
        Node::Text(key) => Some(key),
        _ => None,
    }
}
