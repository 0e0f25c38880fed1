//! What was written, as a tree in which every value knows its place.

use std::borrow::Cow;

use toml::de::DeValue;

/// Where something was written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// A byte of the settings file.
    File(usize),
    /// The variable with this name.
    Environment(&'a str),
    /// The `--set` with this key.
    Override(&'a str),
}

impl Place<'_> {
    /// Higher ranks override lower ones.
    pub(super) fn rank(self) -> u8 {
        match self {
            Place::File(_) => 0,
            Place::Environment(_) => 1,
            Place::Override(_) => 2,
        }
    }
}

/// A mistake whose place has not been turned into line and column yet.
#[derive(Debug)]
pub(super) struct Finding<'a> {
    pub(super) place: Place<'a>,
    pub(super) message: String,
}

/// A key with its value.
#[derive(Debug)]
pub(super) struct Item<'a> {
    pub(super) key: Cow<'a, str>,
    /// Where the key is; for a section, where its header begins.
    pub(super) place: Place<'a>,
    pub(super) value: Value<'a>,
    pub(super) value_place: Place<'a>,
}

/// What a key was given.
#[derive(Debug)]
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    Integer(i128),
    /// The float as it was written, so that it is rounded once, to the width that it is kept in.
    Float(Cow<'a, str>),
    Boolean(bool),
    Section(Vec<Item<'a>>),
    /// Its items have no keys.
    List(Vec<Item<'a>>),
    Date,
    /// More digits than any setting can hold.
    HugeInteger,
}

impl Value<'_> {
    /// What it is, for "queue.deadline is ...".
    pub(super) fn described(&self) -> &'static str {
        match self {
            Value::Text(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Boolean(_) => "a boolean",
            Value::Section(_) => "a section",
            Value::List(_) => "a list",
            Value::Date => "a date",
            Value::HugeInteger => "too large a number",
        }
    }
}

/// Takes a parsed value over; `place` turns byte offsets into places.
pub(super) fn value<'a>(parsed: DeValue<'a>, place: &impl Fn(usize) -> Place<'a>) -> Value<'a> {
    match parsed {
        DeValue::String(text) => Value::Text(text),
        DeValue::Integer(digits) => i128::from_str_radix(digits.as_str(), digits.radix())
            .map_or(Value::HugeInteger, Value::Integer),
        DeValue::Float(digits) => Value::Float(Cow::Owned(digits.as_str().to_owned())),
        DeValue::Boolean(flag) => Value::Boolean(flag),
        DeValue::Datetime(_) => Value::Date,
        DeValue::Array(array) => Value::List(list(array, place)),
        DeValue::Table(table) => Value::Section(items(table, place)),
    }
}

fn list<'a>(array: toml::de::DeArray<'a>, place: &impl Fn(usize) -> Place<'a>) -> Vec<Item<'a>> {
    let item = |parsed: toml::Spanned<DeValue<'a>>| {
        let at = place(parsed.span().start);
        Item {
            key: Cow::Borrowed(""),
            place: at,
            value: value(parsed.into_inner(), place),
            value_place: at,
        }
    };
    array.into_iter().map(item).collect()
}

/// Takes the entries of a parsed table over.
pub(super) fn items<'a>(
    table: toml::de::DeTable<'a>,
    place: &impl Fn(usize) -> Place<'a>,
) -> Vec<Item<'a>> {
    let item = |(key, parsed): (toml::Spanned<Cow<'a, str>>, toml::Spanned<DeValue<'a>>)| {
        let (key_at, value_at) = (key.span().start, parsed.span().start);
        Item {
            key: key.into_inner(),
            // The value of a section begins with its header, before the key.
            place: place(key_at.min(value_at)),
            value: value(parsed.into_inner(), place),
            value_place: place(value_at),
        }
    };
    table.into_iter().map(item).collect()
}

impl Item<'_> {
    /// The same item of a settings file, cut loose from the text that it was read from.
    pub(super) fn detached<'b>(self) -> Item<'b> {
        let offset = |place| {
            if let Place::File(offset) = place {
                offset
            } else {
                0
            }
        };
        Item {
            key: Cow::Owned(self.key.into_owned()),
            place: Place::File(offset(self.place)),
            value: self.value.detached(),
            value_place: Place::File(offset(self.value_place)),
        }
    }
}

impl Value<'_> {
    fn detached<'b>(self) -> Value<'b> {
        match self {
            Value::Text(text) => Value::Text(Cow::Owned(text.into_owned())),
            Value::Integer(number) => Value::Integer(number),
            Value::Float(digits) => Value::Float(Cow::Owned(digits.into_owned())),
            Value::Boolean(flag) => Value::Boolean(flag),
            Value::Section(items) => {
                Value::Section(items.into_iter().map(Item::detached).collect())
            }
            Value::List(items) => Value::List(items.into_iter().map(Item::detached).collect()),
            Value::Date => Value::Date,
            Value::HugeInteger => Value::HugeInteger,
        }
    }
}
