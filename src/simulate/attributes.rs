//! Group attributes: what the five commands accept and what they do.
//!
//! The limits are those of the vendor's pages for `set_group_attr` and its siblings. Where the
//! pages are silent, the stricter reading is taken: the limits on the number of keys (10047) and on
//! their bytes (10048) hold for what is stored after a `modify`, not only for what it carries, and
//! an empty list is refused (10004).

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::{
    answer::{Fields, Refusal},
    body::Body,
    command::Command,
};

const KEYS_MAX: usize = 16;
const KEY_BYTES_MAX: usize = 32;
const VALUE_BYTES_MAX: usize = 4_000;
const VALUES_BYTES_MAX: usize = 16_000;

/// A call on the attributes of a group, checked as far as that is possible without the group.
#[derive(Debug)]
pub(super) struct AttributeCall {
    pub(super) group: String,
    action: Action,
}

#[derive(Debug)]
enum Action {
    Set(Vec<(String, String)>),
    Modify(Vec<(String, String)>),
    Delete(Vec<String>),
    Clear,
    Get,
}

impl AttributeCall {
    /// Reads the body of one of the five attribute commands.
    pub(super) fn read(command: Command, body: &Body) -> Result<Self, Refusal> {
        let group = body.text("GroupId")?.to_owned();
        let action = match command {
            Command::SetAttributes => Action::Set(pairs(body)?),
            Command::ModifyAttributes => Action::Modify(pairs(body)?),
            Command::DeleteAttributes => {
                let mut keys = Vec::new();
                for item in body.list("GroupAttr")? {
                    keys.push(key(&item)?);
                }
                Action::Delete(keys)
            }
            Command::ClearAttributes => Action::Clear,
            _ => Action::Get,
        };
        Ok(Self { group, action })
    }

    /// How many attributes the call carries.
    pub(super) fn pairs(&self) -> usize {
        match &self.action {
            Action::Set(pairs) | Action::Modify(pairs) => pairs.len(),
            Action::Delete(keys) => keys.len(),
            Action::Clear | Action::Get => 0,
        }
    }
}

fn pairs(body: &Body) -> Result<Vec<(String, String)>, Refusal> {
    let mut pairs = Vec::new();
    for item in body.list("GroupAttr")? {
        let value = item.any_text("value")?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(Refusal::new(10046, "an attribute value exceeds 4000 bytes"));
        }
        pairs.push((key(&item)?, value.to_owned()));
    }
    if pairs.len() > KEYS_MAX {
        return Err(too_many_keys());
    }
    check_bytes(pairs.iter().map(|(_, value)| value))?;
    Ok(pairs)
}

fn key(item: &Body) -> Result<String, Refusal> {
    let key = item.text("key")?;
    if key.len() > KEY_BYTES_MAX {
        return Err(Refusal::new(10045, "an attribute key exceeds 32 bytes"));
    }
    Ok(key.to_owned())
}

fn too_many_keys() -> Refusal {
    Refusal::new(10047, "more than 16 attribute keys")
}

fn check_bytes<'a>(values: impl Iterator<Item = &'a String>) -> Result<(), Refusal> {
    if values.map(String::len).sum::<usize>() > VALUES_BYTES_MAX {
        return Err(Refusal::new(
            10048,
            "the values exceed 16000 bytes together",
        ));
    }
    Ok(())
}

/// The attributes of all groups, by app and group.
#[derive(Default)]
pub(super) struct Attributes {
    groups: HashMap<(String, String), BTreeMap<String, String>>,
}

impl Attributes {
    pub(super) fn execute(
        &mut self,
        sdkappid: &str,
        call: &AttributeCall,
    ) -> Result<Fields, Refusal> {
        let group = self
            .groups
            .entry((sdkappid.to_owned(), call.group.clone()))
            .or_default();
        match &call.action {
            Action::Set(pairs) => *group = pairs.iter().cloned().collect(),
            Action::Modify(pairs) => {
                let mut merged = group.clone();
                merged.extend(pairs.iter().cloned());
                if merged.len() > KEYS_MAX {
                    return Err(too_many_keys());
                }
                check_bytes(merged.values())?;
                *group = merged;
            }
            Action::Delete(keys) => {
                if let Some(missing) = keys.iter().find(|key| !group.contains_key(*key)) {
                    let info = format!("the attribute key {missing:?} does not exist");
                    return Err(Refusal::new(10050, info));
                }
                group.retain(|key, _| !keys.contains(key));
            }
            Action::Clear if call.group.starts_with(COMMUNITY) => {
                let info = "attributes of a Community cannot be cleared";
                return Err(Refusal::new(10007, info));
            }
            Action::Clear => group.clear(),
            Action::Get => {
                let all: Value = group
                    .iter()
                    .map(|(key, value)| json!({"key": key, "value": value}))
                    .collect();
                return Ok(Fields::from_iter([("GroupAttrAry".to_owned(), all)]));
            }
        }
        Ok(Fields::new())
    }

    pub(super) fn snapshot(&self, sdkappid: &str, group: &str) -> BTreeMap<String, String> {
        self.groups
            .get(&(sdkappid.to_owned(), group.to_owned()))
            .cloned()
            .unwrap_or_default()
    }
}

/// How the id of a Community group begins.
const COMMUNITY: &str = "@TGS#_";

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs commands on one group; each line is a command, its body without `GroupId`, and the
    /// code that is expected.
    #[track_caller]
    fn check(group: &str, lines: &[(Command, Value, i64)], expected: &[(&str, &str)]) {
        let mut store = Attributes::default();
        for (command, body, code) in lines {
            let mut body = body.clone();
            body["GroupId"] = group.into();
            let body = Body::parse(body.to_string().as_bytes()).unwrap();
            let result =
                AttributeCall::read(*command, &body).and_then(|call| store.execute("1", &call));
            assert_eq!(
                result.map_or_else(|refusal| refusal.code, |_| 0),
                *code,
                "{command:?}"
            );
        }
        let stored = store.snapshot("1", group);
        let stored: Vec<_> = stored
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(stored, expected);
    }

    fn attributes(pairs: &[(&str, &str)]) -> Value {
        let list: Value = pairs
            .iter()
            .map(|(key, value)| json!({"key": key, "value": value}))
            .collect();
        json!({"GroupAttr": list})
    }

    fn keys(keys: &[&str]) -> Value {
        json!({"GroupAttr": keys.iter().map(|key| json!({"key": key})).collect::<Value>()})
    }

    /// `count` attributes from `k<from>` on, each with a value of `bytes`.
    fn many(from: usize, count: usize, bytes: usize) -> Value {
        let value = "v".repeat(bytes);
        let list: Value = (from..from + count)
            .map(|n| json!({"key": format!("k{n}"), "value": value}))
            .collect();
        json!({"GroupAttr": list})
    }

    use Command::{ClearAttributes, DeleteAttributes, ModifyAttributes, SetAttributes};

    #[test]
    fn set_should_replace_and_modify_should_merge() {
        check(
            "g",
            &[
                (SetAttributes, attributes(&[("a", "1"), ("b", "2")]), 0),
                (ModifyAttributes, attributes(&[("b", "3"), ("c", "4")]), 0),
            ],
            &[("a", "1"), ("b", "3"), ("c", "4")],
        );
        check(
            "g",
            &[
                (SetAttributes, attributes(&[("a", "1")]), 0),
                (SetAttributes, attributes(&[("b", "")]), 0),
            ],
            &[("b", "")],
        );
    }

    #[test]
    fn delete_should_remove_all_listed_keys_or_none() {
        check(
            "g",
            &[
                (SetAttributes, attributes(&[("a", "1"), ("b", "2")]), 0),
                (DeleteAttributes, keys(&["a", "x"]), 10050),
                (DeleteAttributes, keys(&["a"]), 0),
                (DeleteAttributes, keys(&["a"]), 10050),
            ],
            &[("b", "2")],
        );
    }

    #[test]
    fn clear_should_remove_all_but_not_in_a_community() {
        let set = (SetAttributes, attributes(&[("a", "1")]), 0);
        check(
            "@TGS#1",
            &[set.clone(), (ClearAttributes, json!({}), 0)],
            &[],
        );
        check(
            "@TGS#_1",
            &[set, (ClearAttributes, json!({}), 10007)],
            &[("a", "1")],
        );
    }

    #[test]
    fn limits_should_hold_on_both_sides() {
        let long = "k".repeat(33);
        for (command, body, code) in [
            (SetAttributes, many(0, 16, 1000), 0),
            (SetAttributes, many(0, 17, 1), 10047),
            (SetAttributes, many(0, 4, 4000), 0),
            (SetAttributes, many(0, 5, 3201), 10048),
            (SetAttributes, many(0, 1, 4001), 10046),
            (ModifyAttributes, many(0, 17, 1), 10047),
            (SetAttributes, attributes(&[(&long[1..], "")]), 0),
            (SetAttributes, attributes(&[(&long, "")]), 10045),
            (
                SetAttributes,
                attributes(&[("é".repeat(17).as_str(), "")]),
                10045,
            ),
            (DeleteAttributes, keys(&[&long]), 10045),
            (SetAttributes, attributes(&[]), 10004),
            (SetAttributes, attributes(&[("", "x")]), 10004),
            (SetAttributes, json!({}), 10004),
            (SetAttributes, json!({"GroupAttr": {}}), 10004),
            (SetAttributes, json!({"GroupAttr": [1]}), 10004),
            (SetAttributes, json!({"GroupAttr": [{"key": "a"}]}), 10004),
            (
                SetAttributes,
                json!({"GroupAttr": [{"key": "a", "value": 1}]}),
                10004,
            ),
            (DeleteAttributes, json!({"GroupAttr": []}), 10004),
        ] {
            let mut store = Attributes::default();
            let mut body = body;
            body["GroupId"] = "g".into();
            let body = Body::parse(body.to_string().as_bytes()).unwrap();
            let result =
                AttributeCall::read(command, &body).and_then(|call| store.execute("1", &call));
            assert_eq!(result.map_or_else(|refusal| refusal.code, |_| 0), code);
        }
    }

    #[test]
    fn modify_should_be_judged_by_what_would_be_stored() {
        let mut lines = vec![
            (SetAttributes, many(0, 16, 1), 0),
            (ModifyAttributes, many(15, 2, 1), 10047),
            (ModifyAttributes, many(15, 1, 1), 0),
            (SetAttributes, many(0, 4, 4000), 0),
            (ModifyAttributes, many(4, 1, 1), 10048),
            (ModifyAttributes, many(3, 1, 0), 0),
            (ModifyAttributes, many(4, 1, 4000), 0),
        ];
        lines.push((ClearAttributes, json!({}), 0));
        check("g", &lines, &[]);
    }

    #[test]
    fn groups_should_be_apart_by_app() {
        let mut store = Attributes::default();
        let mut body = attributes(&[("a", "1")]);
        body["GroupId"] = "g".into();
        let body = Body::parse(body.to_string().as_bytes()).unwrap();
        let call = AttributeCall::read(SetAttributes, &body).unwrap();
        store.execute("1", &call).unwrap();
        assert!(store.snapshot("2", "g").is_empty());
        let read = AttributeCall::read(Command::GetAttributes, &body).unwrap();
        assert_eq!(
            Value::Object(store.execute("1", &read).unwrap()),
            json!({"GroupAttrAry": [{"key": "a", "value": "1"}]})
        );
    }
}
