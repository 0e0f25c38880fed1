//! Calls as validation makes them.

use bytes::Bytes;
use http::{HeaderMap, Method};
use proptest::test_runner::{Config, RngSeed};
use serde_json::{Value, json};

use crate::{
    call::{Call, Caller, Head, Travels},
    catalogue::{Command, group_attributes, message_extension},
    clock,
    validate::{Terms, validate},
};

pub(in crate::lane) const QUERY: &str =
    "sdkappid=88888888&identifier=admin&usersig=eJw*-&random=1&contenttype=json";
pub(in crate::lane) const GROUP: &str = "@TGS#a";
pub(in crate::lane) const COMMUNITY: &str = "@TGS#_a";

/// The same cases in every run; a failing one is printed, and stays until it is mended.
pub(in crate::lane) fn replayed(cases: u32) -> Config {
    Config {
        cases,
        rng_seed: RngSeed::Fixed(0x5eed_1a9e),
        failure_persistence: None,
        ..Config::default()
    }
}

#[track_caller]
pub(in crate::lane) fn call_with(
    command: &'static Command,
    query: &str,
    body: &str,
    travels: Travels,
) -> Call {
    let head = Head::new(
        Method::POST,
        format!("{}?{query}", command.path).parse().unwrap(),
        HeaderMap::new(),
    );
    let now = clock::now();
    let terms = Terms {
        caller: Caller::Local,
        received: now,
        deadline: now,
        travels,
        signed_by: crate::call::SignedBy::Caller,
        random: 7,
    };
    validate(
        command,
        head,
        Bytes::copy_from_slice(body.as_bytes()),
        terms,
    )
    .unwrap_or_else(|refusal| panic!("{refusal:?}: {body}"))
}

#[track_caller]
pub(in crate::lane) fn call(command: &'static Command, body: &str) -> Call {
    call_with(command, QUERY, body, Travels::Together)
}

/// A call for the attributes of a group.
#[track_caller]
pub(in crate::lane) fn attributes<K: AsRef<str>, V: AsRef<str>>(
    command: &'static Command,
    group: &str,
    pairs: &[(K, V)],
) -> Call {
    call(command, &attributes_body(command, group, pairs).to_string())
}

pub(in crate::lane) fn attributes_body<K: AsRef<str>, V: AsRef<str>>(
    command: &'static Command,
    group: &str,
    pairs: &[(K, V)],
) -> Value {
    let list: Vec<Value> = pairs
        .iter()
        .map(|(key, value)| match command.name {
            "delete_group_attr" => json!({"key": key.as_ref()}),
            _ => json!({"key": key.as_ref(), "value": value.as_ref()}),
        })
        .collect();
    match command.name {
        "clear_group_attr" => json!({ "GroupId": group }),
        _ => json!({ "GroupId": group, "GroupAttr": list }),
    }
}

#[track_caller]
pub(in crate::lane) fn set(pairs: &[(&str, &str)]) -> Call {
    attributes(&group_attributes::SET, GROUP, pairs)
}

#[track_caller]
pub(in crate::lane) fn modify(pairs: &[(&str, &str)]) -> Call {
    attributes(&group_attributes::MODIFY, GROUP, pairs)
}

#[track_caller]
pub(in crate::lane) fn clear() -> Call {
    attributes::<&str, &str>(&group_attributes::CLEAR, GROUP, &[])
}

pub(in crate::lane) fn extensions_body<K: AsRef<str>, V: AsRef<str>>(
    message: u64,
    operate: u8,
    pairs: &[(K, V)],
) -> Value {
    let list: Vec<Value> = pairs
        .iter()
        .map(|(key, value)| json!({"Key": key.as_ref(), "Value": value.as_ref(), "Seq": 0}))
        .collect();
    match operate {
        3 => json!({"GroupId": GROUP, "MsgSeq": message, "OperateType": operate}),
        _ => json!({
            "GroupId": GROUP, "MsgSeq": message, "OperateType": operate, "ExtensionList": list
        }),
    }
}

/// A call for the extensions of a message.
#[track_caller]
pub(in crate::lane) fn extensions<K: AsRef<str>, V: AsRef<str>>(
    message: u64,
    operate: u8,
    pairs: &[(K, V)],
) -> Call {
    let body = extensions_body(message, operate, pairs);
    call(&message_extension::SET, &body.to_string())
}
