use http::{HeaderMap, StatusCode, header};
use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};

use super::{super::*, sample::*};
use crate::clock;

fn reply(code: Option<i64>, body: &[u8]) -> Reply {
    let mut headers = HeaderMap::new();
    headers.insert("x-from-upstream", "yes".parse().unwrap());
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    Reply {
        status: StatusCode::OK,
        headers,
        body: Bytes::copy_from_slice(body),
        code,
        at: clock::now(),
    }
}

fn divided(sent: &'static Command, members: &[Call], reply: &Reply) -> Vec<Option<Bytes>> {
    let members: Vec<&Call> = members.iter().collect();
    divide(sent, &members, reply)
        .into_iter()
        .map(|fate| match fate {
            Fate::Again => None,
            Fate::Reply(mut own) => {
                let length = own.headers.remove(header::CONTENT_LENGTH);
                assert!(length.is_none_or(|length| length == own.body.len().to_string()));
                let mut headers = reply.headers.clone();
                headers.remove(header::CONTENT_LENGTH);
                assert_eq!(
                    (own.status, own.headers, own.code, own.at),
                    (reply.status, headers, reply.code, reply.at)
                );
                Some(own.body)
            }
        })
        .collect()
}

/// Who of `members` gets the reply with this code as it came; the others are sent again.
#[track_caller]
fn check_code(sent: &'static Command, members: &[Call], code: Option<i64>, answered: &[bool]) {
    let body = Bytes::from(format!(
        r#"{{ "ErrorCode":{}, "ActionStatus":"FAIL"}}"#,
        code.unwrap_or(-1)
    ));
    let expected: Vec<_> = answered
        .iter()
        .map(|answered| answered.then(|| body.clone()))
        .collect();
    let found = divided(sent, members, &reply(code, &body));
    assert_eq!(found, expected, "{} answered {code:?}", sent.name);
}

#[test]
fn a_code_should_go_to_all_whom_it_may_concern() {
    let set_and_modify = [set(&[("a", "1")]), modify(&[("b", "2")])];
    let (all, none) = ([true, true], [false, false]);
    let sent = &group_attributes::SET;
    for code in [
        0, 10002, 10010, 10015, 10049, 60000, 60002, 60007, 60008, 60099, 70000, 70001, 70013,
        70050, 70099,
    ] {
        check_code(sent, &set_and_modify, Some(code), &all);
    }
    for code in [
        10004,
        10045,
        10046,
        10047,
        10048,
        10050,
        10001,
        1,
        -1,
        59999,
        60100,
        69999,
        70100,
        80000,
        23003,
        i64::MAX,
        i64::MIN,
    ] {
        check_code(sent, &set_and_modify, Some(code), &none);
    }
}

#[test]
fn what_is_not_of_the_api_should_go_to_all() {
    let attributes = [set(&[("a", "1")]), modify(&[("b", "2")])];
    check_code(&group_attributes::SET, &attributes, None, &[true, true]);
    let pairs = [
        extensions(1, 1, &[("a", "")]),
        extensions(1, 1, &[("b", "")]),
    ];
    check_code(&message_extension::SET, &pairs, None, &[true, true]);
}

#[test]
fn a_lack_of_permission_should_go_to_those_who_sent_that_command() {
    let members = [clear(), set(&[("a", "1")]), modify(&[("b", "2")])];
    for (sent, answered) in [
        (&group_attributes::SET, [false, true, false]),
        (&group_attributes::MODIFY, [false, false, true]),
        (&group_attributes::CLEAR, [true, false, false]),
    ] {
        check_code(sent, &members, Some(10007), &answered);
    }
    let folded_to_set = [clear(), modify(&[("b", "2")])];
    check_code(
        &group_attributes::SET,
        &folded_to_set,
        Some(10007),
        &[false, false],
    );
}

#[test]
fn codes_about_a_message_should_go_to_all() {
    let members = [
        extensions(1, 1, &[("a", "")]),
        extensions(1, 1, &[("b", "")]),
    ];
    let sent = &message_extension::SET;
    for code in [10002, 10008, 23002, 23003, 23004, 60007, 70001] {
        check_code(sent, &members, Some(code), &[true, true]);
    }
    for code in [10004, 10007, 10049, 23001, 23005, 1] {
        check_code(sent, &members, Some(code), &[false, false]);
    }
    // Of a deletion it may also say that one of the pairs does not exist.
    let members = [
        extensions(1, 2, &[("a", "")]),
        extensions(1, 2, &[("b", "")]),
    ];
    check_code(sent, &members, Some(23004), &[false, false]);
    check_code(sent, &members, Some(23002), &[true, true]);
}

/// Divides a reply among members who sent these keys.
#[track_caller]
fn check_pairs(members: &[&[&str]], reply_body: &str, expected: &[Option<&str>]) {
    let members: Vec<Call> = members
        .iter()
        .map(|keys| {
            let pairs: Vec<_> = keys.iter().map(|key| (*key, "v")).collect();
            extensions(1, 1, &pairs)
        })
        .collect();
    let reply = reply(Some(0), reply_body.as_bytes());
    let found = divided(&message_extension::SET, &members, &reply);
    let found: Vec<_> = found
        .iter()
        .map(|body| body.as_ref().map(|body| std::str::from_utf8(body).unwrap()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn each_member_should_get_his_pairs_in_his_order_and_the_rest_as_it_came() {
    check_pairs(
        &[&["b", "a"], &["d"], &["c"]],
        r#"{"ActionStatus":"OK", "RequestId" : "x\/\u00e9", "ErrorCode":0,
            "ExtensionList":[
            {"ErrorCode":0,"Extension":{"Key":"a","Value":"1","Seq":1}},
            {"ErrorCode":23001, "Extension":{"Seq":123456789012345678901234567890,"Key":"c","Value":"theirs"}},
            {"Extension":{"Key":"\u0062"},"ErrorCode":0},
            {"ErrorCode":0,"Extension":{"Key":"d","Value":"","Seq":1.50}}],
            "Big":123456789012345678901234567890,"Float":1.50,"Nested":{"b":1,"a":[ ]}}"#,
        &[
            Some(
                r#"{"ActionStatus":"OK","RequestId":"x\/\u00e9","ErrorCode":0,"ExtensionList":[{"Extension":{"Key":"\u0062"},"ErrorCode":0},{"ErrorCode":0,"Extension":{"Key":"a","Value":"1","Seq":1}}],"Big":123456789012345678901234567890,"Float":1.50,"Nested":{"b":1,"a":[ ]}}"#,
            ),
            Some(
                r#"{"ActionStatus":"OK","RequestId":"x\/\u00e9","ErrorCode":0,"ExtensionList":[{"ErrorCode":0,"Extension":{"Key":"d","Value":"","Seq":1.50}}],"Big":123456789012345678901234567890,"Float":1.50,"Nested":{"b":1,"a":[ ]}}"#,
            ),
            Some(
                r#"{"ActionStatus":"OK","RequestId":"x\/\u00e9","ErrorCode":0,"ExtensionList":[{"ErrorCode":23001, "Extension":{"Seq":123456789012345678901234567890,"Key":"c","Value":"theirs"}}],"Big":123456789012345678901234567890,"Float":1.50,"Nested":{"b":1,"a":[ ]}}"#,
            ),
        ],
    );
}

#[test]
fn a_member_without_exactly_one_result_for_each_pair_should_be_sent_again() {
    let result = |key: &str| format!(r#"{{"ErrorCode":0,"Extension":{{"Key":"{key}"}}}}"#);
    let [a, b, c, other] = ["a", "b", "c", "other"].map(result);
    let body = |list: &[&str]| {
        let list = list.join(",");
        format!(r#"{{"ErrorCode":0,"ExtensionList":[{list}]}}"#)
    };
    let members: [&[&str]; 2] = [&["a", "b"], &["c"]];
    let (first, second) = (body(&[&a, &b]), body(&[&c]));
    let (first, second) = (Some(first.as_str()), Some(second.as_str()));
    for (list, expected) in [
        (vec![&a, &b, &c], [first, second]),
        (vec![&a, &b, &c, &other], [first, second]),
        (vec![&c, &b, &a], [first, second]),
        (vec![&a, &c], [None, second]),
        (vec![&a, &b], [first, None]),
        (vec![&a, &b, &a, &c], [None, second]),
        (vec![&a, &b, &c, &c], [first, None]),
        (vec![], [None, None]),
    ] {
        let list: Vec<&str> = list.into_iter().map(String::as_str).collect();
        check_pairs(&members, &body(&list), &expected);
    }
}

#[test]
fn an_answer_that_is_not_understood_should_send_all_again() {
    for body in [
        "",
        "{}",
        "[]",
        "null",
        r#"{"ErrorCode":0}"#,
        r#"{"ErrorCode":0,"ExtensionList":null}"#,
        r#"{"ErrorCode":0,"ExtensionList":{}}"#,
        r#"{"ErrorCode":0,"ExtensionList":[1]}"#,
        r#"{"ErrorCode":0,"ExtensionList":[{}]}"#,
        r#"{"ErrorCode":0,"ExtensionList":[{"Extension":{"Key":1}}]}"#,
        r#"{"ErrorCode":0,"ExtensionList":[{"Extension":{"Key":"a"}},{"Extension":{"Key":"b"}}]"#,
    ] {
        check_pairs(&[&["a"], &["b"]], body, &[None, None]);
    }
}

fn any_command() -> impl Strategy<Value = &'static Command> {
    prop::sample::select(vec![
        &group_attributes::SET,
        &group_attributes::MODIFY,
        &group_attributes::DELETE,
        &group_attributes::CLEAR,
        &message_extension::SET,
    ])
}

/// A valid call, in any state of being understood.
fn any_call() -> impl Strategy<Value = Call> {
    let pairs = prop::collection::vec(("\\PC{0,3}|[\"\\\\a-c]{0,2}", ".{0,8}"), 0..12);
    (any_command(), pairs, 1..=3u8, any::<bool>()).prop_map(
        |(command, pairs, operate, has_more)| {
            let mut body = match command.name {
                "group_set_key_values" => extensions_body(1, operate, &pairs),
                _ => attributes_body(command, GROUP, &pairs),
            };
            if has_more {
                body["More"] = json!([{"deep": [null]}]);
            }
            call(command, &body.to_string())
        },
    )
}

/// Bytes of any kind; a reply that answers some of the calls' pairs; such a reply, damaged.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let keys = prop::collection::vec("[\"\\\\a-c]{0,2}", 0..12);
    let answer = keys.prop_map(|keys| {
        let list: Vec<Value> = keys
            .iter()
            .map(|key| json!({"ErrorCode": 0, "Extension": {"Key": key}}))
            .collect();
        let answer = json!({"ErrorCode": 0, "ExtensionList": list, "RequestId": "r"});
        answer.to_string().into_bytes()
    });
    let damaged = (answer.clone(), any::<Index>(), any::<u8>()).prop_map(|(mut body, at, byte)| {
        let at = at.index(body.len());
        body[at] = byte;
        body
    });
    prop_oneof![any::<Vec<u8>>(), answer, damaged]
}

proptest! {
    #![proptest_config(replayed(512))]

    #[test]
    fn any_calls_and_any_reply_should_be_taken_without_a_panic(
        calls in prop::collection::vec(any_call(), 1..6),
        sent in any_command(),
        body in any_body(),
        code in prop_oneof![Just(None), Just(Some(0)), any::<i64>().prop_map(Some)],
    ) {
        let mut fold = Fold::start(&calls[0]);
        let joined = calls[1..].iter().filter(|call| fold.add(call)).count();
        let sent_body = fold.body();
        prop_assert!(joined == 0 || serde_json::from_slice::<Value>(&sent_body).is_ok());
        let fates = divided(sent, &calls, &reply(code, &body));
        prop_assert_eq!(fates.len(), calls.len());
        if sent.action == Action::WriteExtensions && code == Some(0) {
            for own in fates.into_iter().flatten() {
                prop_assert!(serde_json::from_slice::<Value>(&own).is_ok());
            }
        }
    }
}
