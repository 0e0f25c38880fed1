//! Key-value extensions of one group message: the setter (200 calls a minute for each message) and
//! the getter. Pages 1047/52170 and 1047/52169 of the vendor. The setter's page names the getter's
//! path in its table of parameters; its title and sample show the right one.

use super::{
    Action, Command, Repeat,
    rules::{Field, INVALID_PARAMETER, Max, Otherwise, Presence, Shape},
};

/// The most pairs that a call, and a merged call, may carry.
pub const MAX_PAIRS: usize = 20;
/// `OperateType` of a call that sets pairs.
pub const OPERATE_SET: i128 = 1;
/// `OperateType` of a call that deletes pairs.
pub const OPERATE_DELETE: i128 = 2;
/// `OperateType` of a call that clears all pairs.
pub const OPERATE_CLEAR: i128 = 3;

const fn at_most(limit: usize) -> Max {
    Max {
        limit,
        code: INVALID_PARAMETER,
    }
}

const GROUP: Field = Field {
    name: "GroupId",
    presence: Presence::Required,
    shape: Shape::Id,
};

const MESSAGE: Field = Field {
    name: "MsgSeq",
    presence: Presence::Required,
    shape: Shape::Integer(&[]),
};

/// A pair. The value may be left out of a deletion, which has no use for it.
static PAIR: [Field; 3] = [
    Field {
        name: "Key",
        presence: Presence::Required,
        shape: Shape::Text(at_most(100)),
    },
    Field {
        name: "Value",
        presence: Presence::RequiredIf {
            field: "OperateType",
            values: &[OPERATE_SET],
            otherwise: Otherwise::Checked,
        },
        shape: Shape::Text(at_most(1_000)),
    },
    Field {
        name: "Seq",
        presence: Presence::Optional,
        shape: Shape::Integer(&[]),
    },
];

static SET_BODY: [Field; 4] = [
    GROUP,
    MESSAGE,
    Field {
        name: "OperateType",
        presence: Presence::Required,
        shape: Shape::Integer(&[OPERATE_SET, OPERATE_DELETE, OPERATE_CLEAR]),
    },
    Field {
        name: "ExtensionList",
        presence: Presence::RequiredIf {
            field: "OperateType",
            values: &[OPERATE_SET, OPERATE_DELETE],
            otherwise: Otherwise::Ignored,
        },
        shape: Shape::List {
            items: &PAIR,
            count: Some(("pairs", at_most(MAX_PAIRS))),
            distinct: "Key",
            total: None,
        },
    },
];

static GET_BODY: [Field; 3] = [
    GROUP,
    MESSAGE,
    Field {
        name: "StartSeq",
        presence: Presence::Optional,
        shape: Shape::Integer(&[]),
    },
];

/// Sets, deletes or clears the extensions of a message.
pub static SET: Command = Command {
    name: "group_set_key_values",
    path: "/v4/openim_msg_ext_http_svc/group_set_key_values",
    action: Action::WriteExtensions,
    body: &SET_BODY,
    repeat: Repeat::LeavesSameState,
};

/// Reads the extensions of a message.
pub static GET: Command = Command {
    name: "group_get_key_values",
    path: "/v4/openim_msg_ext_http_svc/group_get_key_values",
    action: Action::Read,
    body: &GET_BODY,
    repeat: Repeat::LeavesSameState,
};

#[cfg(test)]
mod tests {
    use super::{super::rules::check_text, *};

    fn body(operate: u32, pairs: &[(usize, usize)]) -> String {
        let pairs: Vec<_> = pairs
            .iter()
            .enumerate()
            .map(|(n, &(key, value))| {
                format!(
                    r#"{{"Key":"{n:0>key$}","Value":"{}","Seq":0}}"#,
                    "v".repeat(value)
                )
            })
            .collect();
        let pairs = pairs.join(",");
        format!(
            r#"{{"GroupId":"g","MsgSeq":158,"OperateType":{operate},"ExtensionList":[{pairs}]}}"#
        )
    }

    #[track_caller]
    fn check(command: &Command, body: &str, expected: Result<(bool, usize), &str>) {
        let found = check_text(body, command.body).map(|u| (u.wholly, u.items));
        assert_eq!(
            found,
            expected.map_err(|message| (10004, message.to_owned())),
            "{body}"
        );
    }

    #[test]
    fn the_vendors_examples_should_pass() {
        for (body, understood) in [
            (
                r#"{"GroupId":"@TGS#1YMVAB3IZ","MsgSeq":158,"OperateType":1,"ExtensionList":[
                {"Key":"key1","Value":"value1","Seq":0},{"Key":"key2","Value":"value2","Seq":0}]}"#,
                (true, 2),
            ),
            (
                r#"{"GroupId":"@TGS#1YMVAB3IZ","MsgSeq":158,"OperateType":2,
                "ExtensionList":[{"Key":"key1","Value":"","Seq":1}]}"#,
                (true, 1),
            ),
            (
                r#"{"GroupId":"@TGS#1YMVAB3IZ","MsgSeq":158,"OperateType":3}"#,
                (true, 0),
            ),
        ] {
            check(&SET, body, Ok(understood));
        }
        check(
            &GET,
            r#"{"GroupId":"g","MsgSeq":158,"StartSeq":2}"#,
            Ok((true, 0)),
        );
    }

    #[test]
    fn each_limit_should_hold_on_both_sides() {
        for operate in [1, 2] {
            check(&SET, &body(operate, &[(100, 1_000); 20]), Ok((true, 20)));
            check(
                &SET,
                &body(operate, &[(2, 1); 21]),
                Err("/ExtensionList has 21 pairs, the limit is 20"),
            );
            check(
                &SET,
                &body(operate, &[(1, 1), (101, 1)]),
                Err("/ExtensionList/1/Key is 101 bytes, the limit is 100"),
            );
            check(
                &SET,
                &body(operate, &[(1, 1_001)]),
                Err("/ExtensionList/0/Value is 1001 bytes, the limit is 1000"),
            );
        }
    }

    #[test]
    fn missing_and_mistyped_fields_should_be_named() {
        for (body, message) in [
            ("{}", "/GroupId is missing"),
            (r#"{"GroupId":"g"}"#, "/MsgSeq is missing"),
            (
                r#"{"GroupId":"g","MsgSeq":"1"}"#,
                "/MsgSeq is a string, it must be an integer",
            ),
            (
                r#"{"GroupId":"g","MsgSeq":1.5}"#,
                "/MsgSeq is a fraction, it must be an integer",
            ),
            (r#"{"GroupId":"g","MsgSeq":1}"#, "/OperateType is missing"),
            (
                r#"{"GroupId":"g","MsgSeq":1,"OperateType":4}"#,
                "/OperateType is 4, it must be one of 1, 2, 3",
            ),
            (
                r#"{"GroupId":"g","MsgSeq":1,"OperateType":2}"#,
                "/ExtensionList is missing",
            ),
            (
                r#"{"GroupId":"g","MsgSeq":1,"OperateType":1,"ExtensionList":[{"Key":"k"}]}"#,
                "/ExtensionList/0/Value is missing",
            ),
            (
                r#"{"GroupId":"g","MsgSeq":1,"OperateType":1,"ExtensionList":[{"Key":"k","Value":"","Seq":"0"}]}"#,
                "/ExtensionList/0/Seq is a string, it must be an integer",
            ),
        ] {
            check(&SET, body, Err(message));
        }
        check(&GET, r#"{"GroupId":"g"}"#, Err("/MsgSeq is missing"));
    }

    #[test]
    fn a_deletion_needs_no_value_and_a_clear_no_list() {
        let delete = r#"{"GroupId":"g","MsgSeq":1,"OperateType":2,"ExtensionList":[{"Key":"k"}]}"#;
        check(&SET, delete, Ok((true, 1)));
        let clear = r#"{"GroupId":"g","MsgSeq":1,"OperateType":3,"ExtensionList":null}"#;
        check(&SET, clear, Ok((false, 0)));
    }

    #[test]
    fn a_key_named_twice_should_not_be_wholly_understood() {
        let twice = r#"{"GroupId":"g","MsgSeq":1,"OperateType":1,"ExtensionList":[{"Key":"k","Value":"a"},{"Key":"k","Value":"b"}]}"#;
        check(&SET, twice, Ok((false, 2)));
    }
}
