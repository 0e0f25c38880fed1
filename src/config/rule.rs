//! `[[rule]]`: the kinds of values in it, and rules that are wrong beside the other settings.

use std::collections::BTreeSet;

use super::command;
use super::kind::{Kind, quoted, shown, text};
use super::relations;
use super::settings::Config;
use super::suggest;
use super::tree::Value;
use crate::catalogue;

/// The longest name of a quota, which is a label of the metrics.
const NAME_MAX: usize = 60;
/// The names that are taken.
const OWN_QUOTAS: [&str; 3] = ["group_attributes", "message_extension", "api"];

/// `service/command`.
pub(super) struct CommandName;

impl Kind for CommandName {
    type Value = String;

    fn read(&self, value: &Value<'_>) -> Result<String, String> {
        let advice =
            "write its service and its name, such as \"group_open_http_svc/send_group_msg\"";
        let name = text(value, advice)?;
        if command::check(name).is_err() {
            return Err(format!("is {}, no command; {advice}", shown(name)));
        }
        if !name.contains('/') {
            return Err(format!(
                "is {}, which names no service; {advice}",
                shown(name)
            ));
        }
        Ok(name.to_owned())
    }

    fn write(&self, value: &String) -> String {
        quoted(value)
    }
}

/// The name of a `[quota.NAME]`.
pub(super) struct QuotaName;

impl Kind for QuotaName {
    type Value = String;

    fn read(&self, value: &Value<'_>) -> Result<String, String> {
        let advice =
            "write a name of your own, such as \"group_messages\", and [quota.group_messages]";
        let name = text(value, advice)?;
        if !is_name(name) {
            return Err(format!(
                "is {}; letters from a to z, digits and _ make a name, at most {NAME_MAX}; {advice}",
                shown(name)
            ));
        }
        if OWN_QUOTAS.contains(&name) {
            return Err(format!(
                "is {}, which the gateway uses itself; {advice}",
                shown(name)
            ));
        }
        Ok(name.to_owned())
    }

    fn write(&self, value: &String) -> String {
        quoted(value)
    }
}

/// Whether it can be the name of a quota.
pub(super) fn is_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(is_plain)
}

/// JSON pointers.
pub(super) struct Pointers;

impl Kind for Pointers {
    type Value = Vec<String>;

    fn read(&self, value: &Value<'_>) -> Result<Vec<String>, String> {
        let advice = "write a list of JSON pointers into the body, such as [\"/GroupId\"]";
        let Value::List(items) = value else {
            return Err(format!("is {}; {advice}", value.described()));
        };
        let mut pointers: Vec<String> = Vec::new();
        for item in items {
            let Value::Text(pointer) = &item.value else {
                return Err(format!("holds {}; {advice}", item.value.described()));
            };
            if let Some(wrong) = wrong_pointer(pointer) {
                return Err(format!("holds {}, which {wrong}; {advice}", shown(pointer)));
            }
            if pointers.iter().any(|other| other == pointer) {
                return Err(format!(
                    "holds {} twice; keep one of the two",
                    shown(pointer)
                ));
            }
            pointers.push(pointer.as_ref().to_owned());
        }
        Ok(pointers)
    }

    fn write(&self, value: &Vec<String>) -> String {
        let pointers: Vec<_> = value.iter().map(|pointer| quoted(pointer)).collect();
        format!("[{}]", pointers.join(", "))
    }
}

fn wrong_pointer(pointer: &str) -> Option<&'static str> {
    let mut escapes = pointer.split('~').skip(1);
    if pointer.is_empty() {
        Some("is the whole body")
    } else if !pointer.starts_with('/') {
        Some("does not begin with /")
    } else if escapes.any(|rest| !rest.starts_with(['0', '1'])) {
        Some("has a ~ that is neither ~0 nor ~1")
    } else {
        None
    }
}

/// Something that is wrong with a rule or its quota, and the names of the places where it may have
/// been written, the best first.
pub(super) struct Wrong {
    pub(super) places: [String; 2],
    pub(super) message: String,
}

/// The name of the place of one setting in the section of a list with this index.
pub(super) fn place(index: usize, path: &str) -> String {
    format!("{path}#{index}")
}

/// Everything that is wrong with rules and their quotas. `is_written` says of a place whether
/// something stands there, right or wrong.
pub(super) fn conflicts(config: &Config, is_written: impl Fn(&str) -> bool) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    let quotas = &config.quota.named;
    for (index, rule) in config.rules.iter().enumerate() {
        let mut report = |name: &str, message: String| {
            wrong.push(Wrong {
                places: [
                    place(index, &format!("rule.{name}")),
                    relations::entry("rule", index),
                ],
                message,
            });
        };
        for name in ["command", "quota"] {
            if !is_written(&place(index, &format!("rule.{name}"))) {
                report(
                    name,
                    format!("the rule has no {name}; every rule has a command and a quota"),
                );
            }
        }
        if let Some(known) = catalogue::find(&format!("/v4/{}", rule.command)) {
            let message = match known.action.quota() {
                Some(quota) => format!(
                    "rule.command is {}, which the gateway knows: its quota is [quota.{}]; remove the \
                     rule",
                    shown(&rule.command),
                    quota.name()
                ),
                None => format!(
                    "rule.command is {}, a read that the gateway knows: its limit is [quota.api]; \
                     remove the rule",
                    shown(&rule.command)
                ),
            };
            report("command", message);
        } else if !rule.command.is_empty() && !seen.insert(&rule.command) {
            let message = format!(
                "rule.command is {}, which has a rule already; keep one of the two",
                shown(&rule.command)
            );
            report("command", message);
        }
        if !rule.quota.is_empty() && !quotas.contains_key(&rule.quota) {
            let nearest = suggest::nearest(&rule.quota, quotas.keys().map(String::as_str));
            let advice = match nearest {
                Some(nearest) => format!("did you mean {}?", shown(nearest)),
                None => format!("write [quota.{}] with limit and window", rule.quota),
            };
            let message = format!(
                "rule.quota is {}, but there is no such quota; {advice}",
                shown(&rule.quota)
            );
            report("quota", message);
        }
    }
    for name in quotas.keys().filter(|name| is_used(config, name)) {
        for setting in ["limit", "window"] {
            let path = format!("quota.{name}.{setting}");
            if !is_written(&path) {
                wrong.push(Wrong {
                    message: format!(
                        "[quota.{name}] has no {setting}; write both limit and window"
                    ),
                    places: [path, format!("quota.{name}")],
                });
            }
        }
    }
    wrong
}

/// Whether a rule names the quota.
pub(super) fn is_used(config: &Config, quota: &str) -> bool {
    config.rules.iter().any(|rule| rule.quota == quota)
}
