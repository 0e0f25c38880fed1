use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{super::*, sample::*};

/// What a fold would send: command, members beside the list, pairs by key, each key once.
fn decoded(fold: &Fold) -> (&'static str, Value, BTreeMap<String, Value>) {
    let mut body: Value = serde_json::from_slice(&fold.body()).unwrap();
    let members = body.as_object_mut().unwrap();
    let mut pairs = BTreeMap::new();
    for (list, key) in [("GroupAttr", "key"), ("ExtensionList", "Key")] {
        let Some(Value::Array(list)) = members.remove(list) else {
            continue;
        };
        for pair in list {
            let name = pair[key].as_str().unwrap().to_owned();
            assert_eq!(pairs.insert(name, pair), None, "a key is sent twice");
        }
    }
    (fold.command().name, body, pairs)
}

fn fold(calls: &[Call]) -> Fold {
    let mut fold = Fold::start(&calls[0]);
    for call in &calls[1..] {
        assert!(fold.add(call), "{calls:?}");
    }
    fold
}

/// The last of the calls joins the others: as which command, with which keys and values?
#[track_caller]
fn check_folds(calls: &[Call], command: &str, expected: &[(&str, &str)]) {
    let (name, _, pairs) = decoded(&fold(calls));
    let found: Vec<(&str, &str)> = pairs
        .iter()
        .map(|(key, pair)| {
            let value = pair.get("value").or(pair.get("Value"));
            (key.as_str(), value.unwrap().as_str().unwrap())
        })
        .collect();
    assert_eq!((name, &found[..]), (command, expected));
}

/// The last of the calls does not join the others and leaves their fold as it was.
#[track_caller]
fn check_apart(calls: &[Call]) {
    let (last, others) = calls.split_last().unwrap();
    let mut fold = fold(others);
    let before = (format!("{fold:?}"), fold.command().name, fold.body());
    assert!(!fold.add(last), "{calls:?}");
    let after = (format!("{fold:?}"), fold.command().name, fold.body());
    assert_eq!(before, after, "a refused call changed the fold");
}

const KINDS: [&str; 10] = [
    "set",
    "modify",
    "delete",
    "clear",
    "extensions set",
    "extensions delete",
    "extensions clear",
    "another message",
    "another group",
    "read",
];

/// Earlier calls name a and b, later ones a and c; extensions name different keys.
fn sample(kind: &str, group: &str, is_later: bool) -> Call {
    let (attribute_pairs, extension_pairs) = if is_later {
        ([("a", "2"), ("c", "2")], [("c", "2"), ("d", "2")])
    } else {
        ([("a", "1"), ("b", "1")], [("a", "1"), ("b", "1")])
    };
    let extensions = |message, operate| {
        let mut body = extensions_body(message, operate, &extension_pairs);
        body["GroupId"] = group.into();
        call(&message_extension::SET, &body.to_string())
    };
    let attributes = |command| attributes(command, group, &attribute_pairs);
    match kind {
        "set" => attributes(&group_attributes::SET),
        "modify" => attributes(&group_attributes::MODIFY),
        "delete" => attributes(&group_attributes::DELETE),
        "clear" => attributes(&group_attributes::CLEAR),
        "extensions set" => extensions(1, 1),
        "extensions delete" => extensions(1, 2),
        "extensions clear" => extensions(1, 3),
        "another message" => extensions(if is_later { 2 } else { 3 }, 1),
        "another group" => {
            let group = format!("{group}{is_later}");
            super::sample::attributes(&group_attributes::SET, &group, &attribute_pairs)
        }
        "read" => call(
            &group_attributes::GET,
            &json!({ "GroupId": group }).to_string(),
        ),
        _ => unreachable!("{kind}"),
    }
}

type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

const LATER: &[(&str, &str)] = &[("a", "2"), ("c", "2")];
const UNION: &[(&str, &str)] = &[("a", "2"), ("b", "1"), ("c", "2")];
const BESIDE: &[(&str, &str)] = &[("a", "1"), ("b", "1"), ("c", "2"), ("d", "2")];

/// Earlier, later, as one call. What is not here never folds.
const TABLE: [Row; 11] = [
    ("set", "set", "set_group_attr", LATER),
    ("set", "modify", "set_group_attr", UNION),
    ("modify", "modify", "modify_group_attr", UNION),
    ("modify", "set", "set_group_attr", LATER),
    ("clear", "clear", "clear_group_attr", &[]),
    ("clear", "set", "set_group_attr", LATER),
    ("clear", "modify", "set_group_attr", LATER),
    ("set", "clear", "clear_group_attr", &[]),
    ("modify", "clear", "clear_group_attr", &[]),
    (
        "extensions set",
        "extensions set",
        "group_set_key_values",
        BESIDE,
    ),
    (
        "extensions delete",
        "extensions delete",
        "group_set_key_values",
        BESIDE,
    ),
];

#[test]
fn each_pair_of_calls_should_fold_as_the_table_says() {
    for group in [GROUP, COMMUNITY] {
        for earlier in KINDS {
            for later in KINDS {
                let calls = [sample(earlier, group, false), sample(later, group, true)];
                let row = TABLE
                    .iter()
                    .filter(|_| group != COMMUNITY || (earlier != "clear" && later != "clear"))
                    .find(|row| (row.0, row.1) == (earlier, later));
                match row {
                    Some((_, _, command, pairs)) => check_folds(&calls, command, pairs),
                    None => check_apart(&calls),
                }
            }
        }
    }
}

#[test]
fn three_calls_should_fold_as_two_by_two() {
    let (a, b, c) = ([("k", "a")], [("l", "b")], [("k", "c")]);
    for (calls, command, pairs) in [
        (
            vec![clear(), modify(&a), modify(&b)],
            "set_group_attr",
            &[("k", "a"), ("l", "b")][..],
        ),
        (
            vec![set(&a), clear(), modify(&b)],
            "set_group_attr",
            &[("l", "b")],
        ),
        (
            vec![modify(&a), modify(&b), modify(&c)],
            "modify_group_attr",
            &[("k", "c"), ("l", "b")],
        ),
        (
            vec![modify(&a), set(&b), modify(&c)],
            "set_group_attr",
            &[("k", "c"), ("l", "b")],
        ),
        (vec![modify(&a), set(&b), clear()], "clear_group_attr", &[]),
    ] {
        check_folds(&calls, command, pairs);
    }
}

#[test]
fn the_body_should_have_the_members_of_its_command_and_no_others() {
    for (calls, expected) in [
        (vec![set(&[("a", "1")]); 2], json!({ "GroupId": GROUP })),
        (vec![clear(); 2], json!({ "GroupId": GROUP })),
        (
            vec![
                extensions(5, 2, &[("a", "")]),
                extensions(5, 2, &[("b", "")]),
            ],
            json!({"GroupId": GROUP, "MsgSeq": 5, "OperateType": 2}),
        ),
    ] {
        assert_eq!(decoded(&fold(&calls)).1, expected);
    }
    assert_eq!(fold(&[clear(), clear()]).body(), r#"{"GroupId":"@TGS#a"}"#);
}

fn keys(range: std::ops::Range<usize>, value_bytes: usize) -> Vec<(String, String)> {
    range
        .map(|n| (format!("k{n:02}"), "v".repeat(value_bytes)))
        .collect()
}

#[test]
fn the_union_should_hold_each_limit_on_both_sides() {
    // Keys of the first and of the second, bytes of each value, whether they fold.
    for (first, second, bytes, folds) in [
        (0..15, 15..16, 1, true),
        (0..16, 16..17, 1, false),
        (0..16, 0..16, 1, true),
        (0..16, 15..16, 1, true),
        (0..1, 0..16, 1, true),
        (0..1, 1..17, 1, false),
        (0..2, 2..4, 4_000, true),
        (0..2, 2..5, 4_000, false),
        (0..4, 0..4, 4_000, true),
        (0..8, 8..16, 1_000, true),
    ] {
        for command in [&group_attributes::SET, &group_attributes::MODIFY] {
            let calls = [
                attributes(command, GROUP, &keys(first.clone(), bytes)),
                attributes(
                    &group_attributes::MODIFY,
                    GROUP,
                    &keys(second.clone(), bytes),
                ),
            ];
            if folds {
                assert_eq!(fold(&calls).command().name, command.name);
            } else {
                check_apart(&calls);
            }
        }
    }
}

#[test]
fn values_should_be_measured_in_decoded_bytes() {
    let full = attributes(&group_attributes::SET, GROUP, &keys(0..3, 4_000));
    let raw = |value: &str| {
        let body =
            format!(r#"{{"GroupId":"@TGS#a","GroupAttr":[{{"key":"z","value":"{value}"}}]}}"#);
        call(&group_attributes::MODIFY, &body)
    };
    let most = raw(&"\\u00e9".repeat(1_999));
    fold(&[full.clone(), most.clone(), modify(&[("y", "12")])]);
    fold(&[full.clone(), most.clone(), modify(&[("y", "\u{e9}")])]);
    check_apart(&[full.clone(), most.clone(), modify(&[("y", "123")])]);
    check_apart(&[full.clone(), most, modify(&[("y", "\u{e9}1")])]);
    check_apart(&[full, raw(&"v".repeat(4_000)), modify(&[("y", "1")])]);
}

#[test]
fn a_shorter_value_should_make_room() {
    let full = attributes(&group_attributes::MODIFY, GROUP, &keys(0..4, 4_000));
    let more = modify(&[("y", "123")]);
    check_apart(&[full.clone(), more.clone()]);
    fold(&[full.clone(), modify(&[("k03", "1")]), more.clone()]);
    fold(&[full.clone(), set(&[("k", "v")]), more.clone()]);
    fold(&[full, clear(), more]);
}

#[test]
fn pairs_should_fit_beside_each_other_only_up_to_twenty() {
    for operate in [1, 2] {
        for (first, second, folds) in [
            (0..19, 19..20, true),
            (0..20, 20..21, false),
            (0..10, 10..20, true),
            (0..10, 10..21, false),
            (0..1, 0..1, false),
            (0..3, 2..5, false),
        ] {
            let calls = [
                extensions(1, operate, &keys(first, 1)),
                extensions(1, operate, &keys(second, 1)),
            ];
            if folds {
                assert_eq!(decoded(&fold(&calls)).2.len(), 20);
            } else {
                check_apart(&calls);
            }
        }
    }
}

#[test]
fn keys_should_be_compared_decoded() {
    let pair = |key: &str| {
        let body = format!(
            r#"{{"GroupId":"@TGS#a","MsgSeq":1,"OperateType":1,"ExtensionList":[{{"Key":"{key}","Value":""}}]}}"#
        );
        call(&message_extension::SET, &body)
    };
    check_apart(&[pair("\\u0061\\/"), pair("a/")]);
    fold(&[pair("a"), pair("A")]);
    let attribute = |key: &str, value: &str| {
        let body =
            format!(r#"{{"GroupId":"@TGS#a","GroupAttr":[{{"key":"{key}","value":"{value}"}}]}}"#);
        call(&group_attributes::MODIFY, &body)
    };
    check_folds(
        &[attribute("\\u0061", "1"), attribute("a", "2")],
        "modify_group_attr",
        &[("a", "2")],
    );
}

#[test]
fn credentials_that_differ_in_a_byte_should_never_fold() {
    let body = attributes_body(&group_attributes::SET, GROUP, &[("a", "1")]).to_string();
    let with = |query: &str| call_with(&group_attributes::SET, query, &body, Travels::Together);
    let query = |app: &str, who: &str, sig: &str, random: &str| {
        format!("sdkappid={app}&identifier={who}&usersig={sig}&random={random}&contenttype=json")
    };
    let first = with(&query("88", "admin", "ab*-", "1"));
    for (app, who, sig) in [
        ("89", "admin", "ab*-"),
        ("088", "admin", "ab*-"),
        ("88", "Admin", "ab*-"),
        ("88", "admi", "ab*-"),
        ("88", "%61dmin", "ab*-"),
        ("88", "admin", "ab%2A-"),
        ("88", "admin", "ab%2a-"),
        ("88", "admin", "ab*_"),
        ("88", "admin", "ab*-="),
    ] {
        let other = with(&query(app, who, sig, "1"));
        check_apart(&[first.clone(), other.clone()]);
        check_apart(&[other, first.clone()]);
    }
    for same in [
        query("88", "admin", "ab*-", "2"),
        "usersig=ab*-&sdkappid=88&identifier=admin".to_owned(),
    ] {
        fold(&[first.clone(), with(&same)]);
    }
}

#[test]
fn what_is_not_wholly_understood_should_travel_alone() {
    let plain = attributes_body(&group_attributes::SET, GROUP, &[("a", "1")]).to_string();
    let query = |more: &str| format!("{QUERY}{more}");
    for (query, body, travels) in [
        (query("&x=1"), plain.as_str(), Travels::Together),
        (query("&random=1"), &plain, Travels::Together),
        (query("&sdkappid=88888888"), &plain, Travels::Together),
        (query(""), &plain, Travels::Alone),
        (
            query(""),
            r#"{"GroupId":"@TGS#a","GroupAttr":[{"key":"a","value":"1"}],"New":1}"#,
            Travels::Together,
        ),
        (
            query(""),
            r#"{"GroupId":"@TGS#a","GroupAttr":[{"key":"a","value":"1","New":1}]}"#,
            Travels::Together,
        ),
        (
            query(""),
            r#"{"GroupId":"@TGS#a","GroupAttr":[{"key":"a","value":"1"},{"key":"\u0061","value":"2"}]}"#,
            Travels::Together,
        ),
        (
            query(""),
            r#"{"GroupId":"x","GroupId":"@TGS#a","GroupAttr":[{"key":"a","value":"1"}]}"#,
            Travels::Together,
        ),
        (
            query(""),
            r#"{"GroupId":"@TGS#a","GroupAttr":[]}"#,
            Travels::Together,
        ),
    ] {
        let alone = call_with(&group_attributes::SET, &query, body, travels);
        let other = modify(&[("a", "1")]);
        check_apart(&[other.clone(), alone.clone()]);
        check_apart(&[alone, other]);
    }
    for body in [
        r#"{"GroupId":"@TGS#a","MsgSeq":1,"OperateType":1,"ExtensionList":[{"Key":"k","Value":"","x":1}]}"#,
        r#"{"GroupId":"@TGS#a","MsgSeq":1,"OperateType":1,"ExtensionList":[{"Key":"k","Value":""},{"Key":"k","Value":""}]}"#,
        r#"{"GroupId":"@TGS#a","MsgSeq":1,"OperateType":1,"ExtensionList":[{"Key":"k","Key":"k","Value":""}]}"#,
        r#"{"GroupId":"@TGS#a","MsgSeq":1,"OperateType":1,"OperateType":1,"ExtensionList":[{"Key":"k","Value":""}]}"#,
    ] {
        let alone = call(&message_extension::SET, body);
        let other = extensions(1, 1, &[("other", "")]);
        check_apart(&[other.clone(), alone.clone()]);
        check_apart(&[alone, other]);
    }
}

#[test]
fn pairs_should_keep_the_bytes_in_which_they_were_written() {
    let attribute_pairs = [
        "{\"key\":\"\\u0061\",\"value\":\"\\/ \\ud83d\\ude00 \u{1f600}\"}",
        "{ \"value\" :\t\"\u{e9}\\n\" ,\r\n \"key\" : \"b\" }",
        r#"{"key":"c\\","value":"\"}],\"x\":[{"}"#,
    ];
    let calls = attribute_pairs.map(|pair| {
        let body = format!(r#"{{"GroupAttr" : [ {pair} ] , "GroupId":"\u0040TGS#a"}}"#);
        call(&group_attributes::MODIFY, &body)
    });
    let expected = format!(
        r#"{{"GroupId":"@TGS#a","GroupAttr":[{}]}}"#,
        attribute_pairs.join(",")
    );
    assert_eq!(fold(&calls).body(), expected);

    let extension_pairs = [
        r#"{"Key":"\u0061","Value":"","Seq":18446744073709551615}"#,
        r#"{ "Seq":-1, "Value" : "\u00e9", "Key":"b" }"#,
    ];
    let calls = extension_pairs.map(|pair| {
        let body = format!(
            r#"{{"OperateType":1,"ExtensionList":[{pair}],"MsgSeq":18446744073709551615,"GroupId":"g"}}"#
        );
        call(&message_extension::SET, &body)
    });
    let expected = format!(
        r#"{{"GroupId":"g","MsgSeq":18446744073709551615,"OperateType":1,"ExtensionList":[{}]}}"#,
        extension_pairs.join(",")
    );
    assert_eq!(fold(&calls).body(), expected);
}

#[test]
fn group_ids_should_be_encoded_again_whatever_they_hold() {
    for group in [
        "\"quoted\"",
        "back\\slash",
        "\u{0}\u{1f}\u{7f}",
        "\u{4e2d}\u{6587} \u{1f600} \u{2028}",
        "\",\"GroupAttr\":[]}",
        " @TGS#_a",
    ] {
        let one = attributes(&group_attributes::SET, group, &[("a", "1")]);
        let clear = attributes::<&str, &str>(&group_attributes::CLEAR, group, &[]);
        let (_, members, _) = decoded(&fold(&[clear, one]));
        assert_eq!(members, json!({ "GroupId": group }));
    }
}

#[test]
fn a_community_should_be_known_however_its_id_is_written() {
    let clear = call(
        &group_attributes::CLEAR,
        r#"{"GroupId":"\u0040TGS#\u005fa"}"#,
    );
    let set = attributes(&group_attributes::SET, COMMUNITY, &[("a", "1")]);
    check_apart(&[clear.clone(), set.clone()]);
    check_apart(&[set, clear.clone()]);
    check_apart(&[clear.clone(), clear]);
}
