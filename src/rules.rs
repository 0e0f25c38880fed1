//! Commands that are not in the catalogue but have a quota of their own: the `[[rule]]`s of the
//! settings.
//!
//! A call of such a command is not judged. It is sent as it came, one at a time for each key, in the
//! order in which the calls of that key were read. The key is what the body holds at the rule's
//! pointers. What cannot be found there (an absent field, a body that is not JSON) counts as `null`,
//! which is a key as well: nothing passes by the quota, and the API says itself what it thinks of the
//! body.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    call::{Call, Head, QuotaClass, Target, Travels},
    catalogue::{self, Action, Command, Repeat},
    config::{self, Config},
    json::{Node, Object},
    sharded::Map,
    trace::Span,
    validate::{self, Terms},
};

/// Longer values are named by their hash, so that a key stays small.
const VALUE_MAX: usize = 128;

/// One rule.
#[derive(Debug)]
pub struct Rule {
    /// Its command, as an entry of the catalogue would be.
    pub command: Command,
    /// The quota that counts it.
    pub class: QuotaClass,
    pointers: Vec<String>,
}

/// Every rule, by the path of its command.
#[derive(Clone, Debug, Default)]
pub struct Rules(Map<&'static str, &'static Rule>);

impl Rules {
    /// The rules of the settings. They stay in memory for as long as the process runs.
    pub fn new(config: &Config) -> Rules {
        let mut names: HashSet<&str> = catalogue::COMMANDS.iter().map(|known| known.name).collect();
        names.insert(catalogue::OTHER);
        let mut rules = Map::default();
        for rule in &config.rules {
            let last = rule.command.rsplit('/').next().unwrap_or(&rule.command);
            // A label for each command: where the last part is taken, the whole.
            let name = if names.insert(last) {
                last
            } else {
                &rule.command
            };
            let rule: &'static Rule = Box::leak(Box::new(Rule::new(rule, name)));
            rules.insert(rule.command.path, rule);
        }
        Rules(rules)
    }

    /// The rule for exactly this path.
    pub fn find(&self, path: &str) -> Option<&'static Rule> {
        self.0.get(path).copied()
    }

    /// The commands that have one.
    pub fn commands(&self) -> impl Iterator<Item = &'static Command> {
        self.0.values().map(|rule| &rule.command)
    }
}

impl Rule {
    fn new(rule: &config::Rule, name: &str) -> Rule {
        let quota = interned(&rule.quota);
        Rule {
            command: Command {
                name: interned(name),
                path: interned(&format!("/v4/{}", rule.command)),
                action: Action::Ruled(quota),
                body: &[],
                repeat: if rule.repeat {
                    Repeat::LeavesSameState
                } else {
                    Repeat::OnlyUnsent
                },
            },
            class: QuotaClass::Ruled(quota),
            pointers: rule.key.clone(),
        }
    }

    /// A request for the rule's command as a call in the lane of its key.
    pub fn call(&'static self, head: Head, body: Bytes, terms: Terms) -> Call {
        let app = head.target.query().and_then(validate::app);
        let app = app.unwrap_or_default();
        Call {
            command: &self.command,
            head: Arc::new(head),
            caller: terms.caller,
            target: Target {
                app,
                group: self.key(&body),
                message: None,
            },
            body,
            travels: Travels::Alone,
            pairs: 1,
            received: terms.received,
            deadline: terms.deadline,
            span: Span::default(),
        }
    }

    fn key(&self, body: &[u8]) -> Arc<str> {
        if self.pointers.is_empty() {
            return key(&[]);
        }
        let body = Node::parse(body).unwrap_or(Node::Literal("null"));
        let values: Vec<_> = self
            .pointers
            .iter()
            .map(|at| value(find(&body, at)))
            .collect();
        key(&values)
    }
}

/// The name of a key with these values, as JSON: `["@TGS#room",5]`.
pub fn key(values: &[Value]) -> Arc<str> {
    let short = |value: &Value| match value {
        Value::String(text) if text.len() > VALUE_MAX => {
            let hash = Sha256::digest(text);
            Value::String(format!("sha256:{hash:x}"))
        }
        other => other.clone(),
    };
    Value::Array(values.iter().map(short).collect())
        .to_string()
        .into()
}

/// What a pointer (RFC 6901) leads to.
fn find<'a, 'n>(body: &'n Node<'a>, pointer: &str) -> Option<&'n Node<'a>> {
    let names = pointer.split('/').skip(1);
    names
        .map(unescaped)
        .try_fold(body, |node, name| match node {
            Node::Object(object) => Object::get(object, &name),
            Node::List(list) => list.get(name.parse::<usize>().ok()?),
            _ => None,
        })
}

fn unescaped(name: &str) -> String {
    name.replace("~1", "/").replace("~0", "~")
}

/// Strings, whole numbers, true and false tell keys apart; anything else does not.
fn value(node: Option<&Node<'_>>) -> Value {
    match node {
        Some(Node::Text(text)) => Value::String(text.as_ref().to_owned()),
        Some(Node::Literal("true")) => Value::Bool(true),
        Some(Node::Literal("false")) => Value::Bool(false),
        Some(Node::Integer(number)) => i64::try_from(*number)
            .map(Value::from)
            .or_else(|_| u64::try_from(*number).map(Value::from))
            .unwrap_or(Value::Null),
        _ => Value::Null,
    }
}

/// The same text for as long as the process runs. Only for what the settings name.
pub fn interned(text: &str) -> &'static str {
    static TEXTS: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut texts = TEXTS.lock();
    let texts = texts.get_or_insert_default();
    if let Some(known) = texts.get(text) {
        return known;
    }
    let text: &'static str = Box::leak(text.into());
    texts.insert(text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(pointers: &[&str]) -> Rule {
        let key = pointers.iter().map(|&pointer| pointer.to_owned()).collect();
        let rule = config::Rule {
            command: "s/c".to_owned(),
            quota: "q".to_owned(),
            key,
            repeat: false,
        };
        Rule::new(&rule, "c")
    }

    #[track_caller]
    fn check(pointers: &[&str], body: &str, expected: &str) {
        assert_eq!(&*rule(pointers).key(body.as_bytes()), expected, "{body}");
    }

    #[test]
    fn a_key_should_be_what_the_pointers_lead_to() {
        check(&[], r#"{"a":1}"#, "[]");
        check(&["/a"], r#"{"a":"\u00e9"}"#, r#"["é"]"#);
        check(
            &["/a", "/b/1/c"],
            r#"{"a":7,"b":[{},{"c":true}]}"#,
            "[7,true]",
        );
        check(&["/a~1b~0"], r#"{"a/b~":false}"#, "[false]");
        check(&["/"], r#"{"":"x"}"#, r#"["x"]"#);
        check(&["/a"], r#"{"a":1,"a":2}"#, "[2]");
        check(
            &["/a"],
            r#"{"a":18446744073709551615}"#,
            "[18446744073709551615]",
        );
    }

    #[test]
    fn what_cannot_be_told_apart_should_share_a_key() {
        for body in [
            "",
            "no JSON",
            "[]",
            "{}",
            r#"{"a":null}"#,
            r#"{"a":1.5}"#,
            r#"{"a":[1]}"#,
        ] {
            check(&["/a"], body, "[null]");
        }
    }

    #[test]
    fn a_long_value_should_be_named_by_its_hash() {
        let of_length =
            |n: usize| rule(&["/a"]).key(format!(r#"{{"a":"{}"}}"#, "x".repeat(n)).as_bytes());
        assert_eq!(of_length(128).len(), 132);
        assert!(of_length(129).starts_with(r#"["sha256:"#));
        assert_eq!(of_length(100_000).len(), of_length(129).len());
        assert_ne!(of_length(100_000), of_length(100_001));
    }

    #[test]
    fn each_command_should_have_a_label_of_its_own() {
        let mut config = Config::default();
        for command in ["one/get", "two/get", "three/set_group_attr", "four/other"] {
            config.rules.push(config::Rule {
                command: command.to_owned(),
                ..config::Rule::default()
            });
        }
        let rules = Rules::new(&config);
        for (command, name) in [
            ("one/get", "get"),
            ("two/get", "two/get"),
            ("three/set_group_attr", "three/set_group_attr"),
            ("four/other", "four/other"),
        ] {
            let rule = rules.find(&format!("/v4/{command}")).unwrap();
            assert_eq!(rule.command.name, name);
        }
        assert!(rules.find("/v4/one/get/").is_none());
        assert_eq!(rules.commands().count(), 4);
    }
}
