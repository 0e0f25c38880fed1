//! The kinds of values that settings hold: each knows how to read one, what to say instead of a
//! wrong one, and how to print it again.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::tree::Value;

/// One kind of value. Messages continue the name of the setting: "is 0; write ...".
pub(super) trait Kind {
    /// What the gateway works with.
    type Value: Clone + PartialEq + 'static;

    /// The value, or what is wrong with it and what to write instead.
    fn read(&self, value: &Value<'_>) -> Result<Self::Value, String>;

    /// The value as TOML.
    fn write(&self, value: &Self::Value) -> String;
}

/// A whole number within bounds.
pub(super) struct CountIn<T> {
    pub(super) min: T,
    pub(super) max: T,
}

impl<T> Kind for CountIn<T>
where
    T: Copy + Display + PartialOrd + TryFrom<i128> + 'static,
{
    type Value = T;

    fn read(&self, value: &Value<'_>) -> Result<T, String> {
        let advice = format!("write a whole number from {} to {}", self.min, self.max);
        let Value::Integer(number) = value else {
            return Err(format!("is {}; {advice}", value.described()));
        };
        T::try_from(*number)
            .ok()
            .filter(|count| *count >= self.min && *count <= self.max)
            .ok_or_else(|| format!("is {number}; {advice}"))
    }

    fn write(&self, value: &T) -> String {
        value.to_string()
    }
}

/// A number with a fraction, within bounds.
pub(super) struct NumberIn {
    pub(super) min: f32,
    pub(super) max: f32,
}

impl Kind for NumberIn {
    type Value = f32;

    fn read(&self, value: &Value<'_>) -> Result<f32, String> {
        let advice = format!("write a number from {} to {}", self.min, self.max);
        let digits = match value {
            Value::Integer(number) => number.to_string(),
            Value::Float(digits) => digits.to_string(),
            _ => return Err(format!("is {}; {advice}", value.described())),
        };
        let number: Option<f32> = digits.parse().ok();
        number
            .filter(|number| *number >= self.min && *number <= self.max)
            // Of the two zeros only one is shown.
            .map(|number| number + 0.0)
            .ok_or_else(|| format!("is {digits}; {advice}"))
    }

    fn write(&self, value: &f32) -> String {
        format!("{value:?}")
    }
}

/// True or false.
pub(super) struct Switch;

impl Kind for Switch {
    type Value = bool;

    fn read(&self, value: &Value<'_>) -> Result<bool, String> {
        match value {
            Value::Boolean(flag) => Ok(*flag),
            _ => Err(format!("is {}; write true or false", value.described())),
        }
    }

    fn write(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// One of a few words.
pub(super) struct Choice<T: 'static> {
    pub(super) words: &'static [(&'static str, T)],
    /// Words that a later version will know.
    pub(super) later: &'static [&'static str],
}

impl<T: Copy + PartialEq> Kind for Choice<T> {
    type Value = T;

    fn read(&self, value: &Value<'_>) -> Result<T, String> {
        let words: Vec<_> = self
            .words
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        let advice = format!("write {}", words.join(" or "));
        let Value::Text(text) = value else {
            return Err(format!("is {}; {advice}", value.described()));
        };
        if let Some((_, chosen)) = self.words.iter().find(|(word, _)| *word == text.as_ref()) {
            return Ok(*chosen);
        }
        if self.later.contains(&text.as_ref()) {
            return Err(format!(
                "is {}, which is not in this version; {advice}",
                shown(text)
            ));
        }
        Err(format!("is {}; {advice}", shown(text)))
    }

    fn write(&self, value: &T) -> String {
        let word = self.words.iter().find(|(_, known)| known == value);
        quoted(word.map_or("", |(word, _)| word))
    }
}

/// An address to listen on.
pub(super) struct ListenAddress;

impl Kind for ListenAddress {
    type Value = SocketAddr;

    fn read(&self, value: &Value<'_>) -> Result<SocketAddr, String> {
        let advice = "write IP:PORT such as \"127.0.0.1:8080\", \"0.0.0.0:8080\" or \"[::1]:8080\"";
        let text = text(value, advice)?;
        text.parse().map_err(|_| {
            let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
            if text.parse::<std::net::IpAddr>().is_ok() {
                format!("is {}, which has no port; {advice}", shown(text))
            } else if host.contains(char::is_alphabetic) && !host.contains([':', '/']) {
                format!(
                    "is {}, a host name, which may stand for several addresses; {advice}",
                    shown(text)
                )
            } else {
                format!("is {}, not an address; {advice}", shown(text))
            }
        })
    }

    fn write(&self, value: &SocketAddr) -> String {
        quoted(&value.to_string())
    }
}

/// The path of a file; whether it is there is found out by whoever opens it.
pub(super) struct FilePath;

impl Kind for FilePath {
    type Value = PathBuf;

    fn read(&self, value: &Value<'_>) -> Result<PathBuf, String> {
        let advice = "write the path of a file or leave the setting out";
        let text = text(value, advice)?;
        if text.contains('\0') {
            return Err(format!("has a zero byte, which no path can have; {advice}"));
        }
        Ok(PathBuf::from(text))
    }

    fn write(&self, value: &PathBuf) -> String {
        quoted(&value.to_string_lossy())
    }
}

/// The text of a value that has to be a string with something in it.
pub(super) fn text<'v>(value: &'v Value<'_>, advice: &str) -> Result<&'v str, String> {
    match value {
        Value::Text(text) if text.is_empty() => Err(format!("is empty; {advice}")),
        Value::Text(text) => Ok(text),
        _ => Err(format!("is {}; {advice}", value.described())),
    }
}

/// A string as TOML.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// What somebody wrote, safe to print: in quotes, on one line and not endless.
pub(super) fn shown(text: &str) -> String {
    const LENGTH_MAX: usize = 60;
    match text.char_indices().nth(LENGTH_MAX) {
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}
