//! One setting from outside the file: `CHAT_GATEWAY__QUEUE__DEADLINE=5s` or
//! `--set queue.deadline=5s`.

use std::borrow::Cow;

use toml::de::DeValue;

use super::ENVIRONMENT_PREFIX;
use super::mistake::printable;
use super::tree::{self, Finding, Item, Place, Value};

/// More names than the deepest setting has; what is longer cannot be one.
const NAMES_MAX: usize = 8;

/// The setting that a variable of the environment holds; `None` if it is not ours.
pub(super) fn from_variable<'a>(
    name: &'a str,
    value: &'a str,
) -> Option<Result<Item<'a>, Finding<'a>>> {
    let path = name.strip_prefix(ENVIRONMENT_PREFIX)?;
    let place = Place::Environment(name);
    if path.contains(char::is_lowercase) {
        let right = name.to_uppercase();
        let message = format!("is not in capitals; write {}", printable(&right));
        return Some(Err(Finding { place, message }));
    }
    let names = path
        .split("__")
        .map(|name| Cow::Owned(name.to_lowercase()))
        .collect();
    let example = "CHAT_GATEWAY__QUEUE__DEADLINE";
    Some(item(names, value, place).ok_or_else(|| misnamed(place, example)))
}

/// The setting that a `--set` holds.
pub(super) fn from_override(text: &str) -> Result<Item<'_>, Finding<'_>> {
    let Some((key, value)) = text.split_once('=') else {
        let message = "has no value; write KEY=VALUE, such as queue.deadline=5s".to_owned();
        return Err(Finding {
            place: Place::Override(text),
            message,
        });
    };
    let place = Place::Override(key);
    let names = key
        .split('.')
        .map(|name| Cow::Borrowed(unquoted(name.trim())))
        .collect();
    item(names, value, place).ok_or_else(|| misnamed(place, "queue.deadline"))
}

fn misnamed<'a>(place: Place<'a>, example: &str) -> Finding<'a> {
    Finding {
        place,
        message: format!("names no setting; write a name such as {example}"),
    }
}

/// A command name may be quoted, as in the file: `quota.api.commands."open_msg_svc/get_history"`.
fn unquoted(name: &str) -> &str {
    let inner = |quote| {
        name.strip_prefix(quote)
            .and_then(|rest: &str| rest.strip_suffix(quote))
    };
    inner('"').or_else(|| inner('\'')).unwrap_or(name)
}

/// The value within its sections, outermost first.
fn item<'a>(names: Vec<Cow<'a, str>>, text: &'a str, place: Place<'a>) -> Option<Item<'a>> {
    if names.len() > NAMES_MAX || names.iter().any(|name| name.is_empty()) {
        return None;
    }
    let wrap = |value, key| Item {
        key,
        place,
        value,
        value_place: place,
    };
    let mut names = names.into_iter().rev();
    let innermost = wrap(value(text.trim(), place), names.next()?);
    Some(names.fold(innermost, |inner, key| {
        wrap(Value::Section(vec![inner]), key)
    }))
}

/// A TOML value if it is one, else the text itself: a shell takes quotes away.
fn value<'a>(text: &'a str, place: Place<'a>) -> Value<'a> {
    match DeValue::parse(text) {
        Ok(parsed) => tree::value(parsed.into_inner(), &|_| place),
        Err(_) => Value::Text(Cow::Borrowed(text)),
    }
}
