//! The kinds of values that say who calls and in whose name.

use super::command;
use super::kind::{Kind, quoted, shown, text};
use super::tree::Value;

/// The longest `identifier` of the API (1047/34385).
const IDENTIFIER_MAX: usize = 32;

/// The longest name of a caller.
const NAME_MAX: usize = 64;

/// Whether `name` can be the name of a caller; else what to write.
///
/// # Errors
///
/// What is wrong with it, to be put behind the name's place.
pub fn caller_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(plain) {
        return Ok(());
    }
    Err(format!(
        "is not the name of a caller; write up to {NAME_MAX} letters, digits, dots, dashes and \
         underscores"
    ))
}

/// The name of a caller in `access.tokens_file`.
pub(super) struct CallerName;

impl Kind for CallerName {
    type Value = String;

    fn read(&self, value: &Value<'_>) -> Result<String, String> {
        let text = text(value, "write a name from access.tokens_file")?;
        caller_name(text).map_err(|problem| format!("is {}, which {problem}", shown(text)))?;
        Ok(text.to_owned())
    }

    fn write(&self, value: &String) -> String {
        quoted(value)
    }
}

/// The name of an administrator of an app.
pub(super) struct Identifier;

impl Kind for Identifier {
    type Value = String;

    fn read(&self, value: &Value<'_>) -> Result<String, String> {
        let advice = "write the name of an administrator of the app";
        let text = text(value, advice)?;
        if text.len() > IDENTIFIER_MAX {
            return Err(format!(
                "is {} bytes long, the API allows {IDENTIFIER_MAX}; {advice}",
                text.len()
            ));
        }
        if text.contains(char::is_control) {
            return Err(format!("is {}; {advice}", shown(text)));
        }
        Ok(text.to_owned())
    }

    fn write(&self, value: &String) -> String {
        quoted(value)
    }
}

/// A list of commands.
pub(super) struct CommandNames;

impl Kind for CommandNames {
    type Value = Vec<String>;

    fn read(&self, value: &Value<'_>) -> Result<Vec<String>, String> {
        let advice = "write a list such as [\"set_group_attr\", \"open_msg_svc/get_history\"]";
        let Value::List(items) = value else {
            return Err(format!("is {}; {advice}", value.described()));
        };
        if items.is_empty() {
            return Err(
                "is empty, so that nothing could be called; write commands, or leave it \
                        out for all of them"
                    .to_owned(),
            );
        }
        let name = |value: &Value<'_>| match value {
            Value::Text(name) => command::check(name)
                .map(|()| name.to_string())
                .map_err(|problem| format!("has a wrong name: {problem}")),
            other => Err(format!("has {} in it; {advice}", other.described())),
        };
        items.iter().map(|item| name(&item.value)).collect()
    }

    fn write(&self, value: &Vec<String>) -> String {
        let names: Vec<_> = value.iter().map(|name| quoted(name)).collect();
        format!("[{}]", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_should_be_one_plain_word() {
        for name in ["a", "batch-job.2", "A_b", &"x".repeat(64)] {
            assert_eq!(caller_name(name), Ok(()), "{name}");
        }
        for name in ["", "a b", "ä", "a:b", "\u{1b}", &"x".repeat(65)] {
            assert!(caller_name(name).is_err(), "{name}");
        }
    }
}
