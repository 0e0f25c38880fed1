//! Custom attributes of a group: four writes that share 5 calls a second for each group, and the
//! read. Pages 1047/44190 (set), 44188 (modify), 59499 (delete), 44189 (clear), 44187 (get) of the
//! vendor.

use super::{
    Action, Command, Repeat,
    rules::{Field, Max, Presence, Shape},
};

/// The most keys that a call, and a merged call, may carry.
pub const MAX_KEYS: usize = 16;
/// The most bytes of all values of a call, and of a merged call.
pub const MAX_VALUES_BYTES: usize = 16_000;
/// Groups whose id starts like this are Communities, where `clear_group_attr` is refused.
pub const COMMUNITY_PREFIX: &str = "@TGS#_";

const GROUP: Field = Field {
    name: "GroupId",
    presence: Presence::Required,
    shape: Shape::Id,
};

const KEY: Field = Field {
    name: "key",
    presence: Presence::Required,
    shape: Shape::Text(Max {
        limit: 32,
        code: 10045,
    }),
};

const VALUE: Field = Field {
    name: "value",
    presence: Presence::Required,
    shape: Shape::Text(Max {
        limit: 4_000,
        code: 10046,
    }),
};

/// The body of `set_group_attr` and `modify_group_attr`.
static KEYS_AND_VALUES: [Field; 2] = [
    GROUP,
    Field {
        name: "GroupAttr",
        presence: Presence::Required,
        shape: Shape::List {
            items: &[KEY, VALUE],
            count: Some((
                "keys",
                Max {
                    limit: MAX_KEYS,
                    code: 10047,
                },
            )),
            distinct: "key",
            total: Some((
                "value",
                Max {
                    limit: MAX_VALUES_BYTES,
                    code: 10048,
                },
            )),
        },
    },
];

/// The body of `delete_group_attr`: its page documents no limit to the number of keys.
static KEYS: [Field; 2] = [
    GROUP,
    Field {
        name: "GroupAttr",
        presence: Presence::Required,
        shape: Shape::List {
            items: &[KEY],
            count: None,
            distinct: "key",
            total: None,
        },
    },
];

/// The body of `clear_group_attr` and `get_group_attr`.
static GROUP_ONLY: [Field; 1] = [GROUP];

/// Replaces all attributes.
pub static SET: Command = Command {
    name: "set_group_attr",
    path: "/v4/group_open_http_svc/set_group_attr",
    action: Action::SetAttributes,
    body: &KEYS_AND_VALUES,
    repeat: Repeat::LeavesSameState,
};

/// Adds and updates attributes.
pub static MODIFY: Command = Command {
    name: "modify_group_attr",
    path: "/v4/group_open_http_svc/modify_group_attr",
    action: Action::ModifyAttributes,
    body: &KEYS_AND_VALUES,
    repeat: Repeat::LeavesSameState,
};

/// Removes attributes. Repeating one that took effect answers 10050: the state is the same, the
/// code is not.
pub static DELETE: Command = Command {
    name: "delete_group_attr",
    path: "/v4/group_open_http_svc/delete_group_attr",
    action: Action::DeleteAttributes,
    body: &KEYS,
    repeat: Repeat::LeavesSameState,
};

/// Removes all attributes.
pub static CLEAR: Command = Command {
    name: "clear_group_attr",
    path: "/v4/group_open_http_svc/clear_group_attr",
    action: Action::ClearAttributes,
    body: &GROUP_ONLY,
    repeat: Repeat::LeavesSameState,
};

/// Reads all attributes. Its service is not that of the writes.
pub static GET: Command = Command {
    name: "get_group_attr",
    path: "/v4/group_open_attr_http_svc/get_group_attr",
    action: Action::Read,
    body: &GROUP_ONLY,
    repeat: Repeat::LeavesSameState,
};

#[cfg(test)]
mod tests {
    use super::{super::rules::check_text, *};

    fn pairs(count: usize, key_bytes: usize, value_bytes: usize) -> String {
        let pairs: Vec<_> = (0..count)
            .map(|n| {
                let (key, value) = (format!("{n:0>key_bytes$}"), "v".repeat(value_bytes));
                format!(r#"{{"key":"{key}","value":"{value}"}}"#)
            })
            .collect();
        format!(
            r#"{{"GroupId":"@TGS#a","GroupAttr":[{}]}}"#,
            pairs.join(",")
        )
    }

    #[track_caller]
    fn refused(command: &Command, body: &str, code: i32, message: &str) {
        assert_eq!(
            check_text(body, command.body),
            Err((code, message.to_owned()))
        );
    }

    #[track_caller]
    fn understood(command: &Command, body: &str, wholly: bool) {
        assert_eq!(
            check_text(body, command.body).map(|u| u.wholly),
            Ok(wholly),
            "{body}"
        );
    }

    #[test]
    fn the_vendors_example_should_pass() {
        let body = r#"{"GroupId":"@TGS#aC5SZEAEF","GroupAttr":[
            {"key":"attr_key","value":"attr_val"},{"key":"attr_key1","value":"attr_val1"}]}"#;
        understood(&SET, body, true);
        understood(&MODIFY, body, true);
    }

    #[test]
    fn each_limit_should_hold_on_both_sides() {
        for command in [&SET, &MODIFY] {
            understood(command, &pairs(16, 32, 1_000), true);
            understood(command, &pairs(4, 1, 4_000), true);
            refused(
                command,
                &pairs(17, 2, 1),
                10047,
                "/GroupAttr has 17 keys, the limit is 16",
            );
            refused(
                command,
                &pairs(1, 33, 1),
                10045,
                "/GroupAttr/0/key is 33 bytes, the limit is 32",
            );
            refused(
                command,
                &pairs(1, 1, 4_001),
                10046,
                "/GroupAttr/0/value is 4001 bytes, the limit is 4000",
            );
            refused(
                command,
                &pairs(16, 2, 1_001),
                10048,
                "/GroupAttr has values of 16016 bytes together, the limit is 16000",
            );
        }
        refused(
            &DELETE,
            &format!(
                r#"{{"GroupId":"g","GroupAttr":[{{"key":"a"}},{{"key":"{}"}}]}}"#,
                "k".repeat(33)
            ),
            10045,
            "/GroupAttr/1/key is 33 bytes, the limit is 32",
        );
    }

    #[test]
    fn bytes_should_be_utf8_bytes_after_decoding() {
        let body =
            |key: &str| format!(r#"{{"GroupId":"g","GroupAttr":[{{"key":"{key}","value":""}}]}}"#);
        understood(&SET, &body(&"\\u00e9".repeat(16)), true);
        refused(
            &SET,
            &body(&"\\u00e9".repeat(17)),
            10045,
            "/GroupAttr/0/key is 34 bytes, the limit is 32",
        );
        understood(&SET, &body(&"\u{1f600}".repeat(8)), true);
        refused(
            &SET,
            &body(&"\\ud83d\\ude00".repeat(9)),
            10045,
            "/GroupAttr/0/key is 36 bytes, the limit is 32",
        );
    }

    #[test]
    fn missing_and_mistyped_fields_should_be_named() {
        for (command, body, message) in [
            (&SET, "{}", "/GroupId is missing"),
            (&SET, r#"{"GroupId":""}"#, "/GroupId is empty"),
            (
                &SET,
                r#"{"GroupId":7}"#,
                "/GroupId is an integer, it must be a string",
            ),
            (&SET, r#"{"GroupId":"g"}"#, "/GroupAttr is missing"),
            (
                &SET,
                r#"{"GroupId":"g","GroupAttr":{}}"#,
                "/GroupAttr is an object, it must be an array",
            ),
            (
                &SET,
                r#"{"GroupId":"g","GroupAttr":[1]}"#,
                "/GroupAttr/0 is an integer, it must be an object",
            ),
            (
                &SET,
                r#"{"GroupId":"g","GroupAttr":[{"value":"v"}]}"#,
                "/GroupAttr/0/key is missing",
            ),
            (
                &MODIFY,
                r#"{"GroupId":"g","GroupAttr":[{"key":"k"}]}"#,
                "/GroupAttr/0/value is missing",
            ),
            (
                &SET,
                r#"{"GroupId":"g","GroupAttr":[{"key":"k","value":null}]}"#,
                "/GroupAttr/0/value is null, it must be a string",
            ),
            (
                &DELETE,
                r#"{"GroupId":"g","GroupAttr":[{}]}"#,
                "/GroupAttr/0/key is missing",
            ),
            (&CLEAR, "{}", "/GroupId is missing"),
            (&GET, "{}", "/GroupId is missing"),
        ] {
            refused(command, body, 10004, message);
        }
    }

    #[test]
    fn what_is_not_wholly_understood_should_pass_and_travel_alone() {
        for (command, body) in [
            (&SET, r#"{"GroupId":"g","GroupAttr":[],"New":1}"#),
            (&SET, r#"{"GroupId":"g","GroupAttr":[]}"#),
            (
                &SET,
                r#"{"GroupId":"g","GroupId":"h","GroupAttr":[{"key":"k","value":"v"}]}"#,
            ),
            (
                &SET,
                r#"{"GroupId":"g","GroupAttr":[{"key":"k","value":"v","x":1}]}"#,
            ),
            (
                &SET,
                r#"{"GroupId":"g","GroupAttr":[{"key":"k","value":"v"},{"key":"k","value":"w"}]}"#,
            ),
            (&CLEAR, r#"{"GroupId":"g","GroupAttr":[]}"#),
            (
                &DELETE,
                r#"{"GroupId":"g","GroupAttr":[{"key":"k","value":"v"}]}"#,
            ),
        ] {
            understood(command, body, false);
        }
    }
}
