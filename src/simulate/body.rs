//! A JSON object whose fields are asked for by name and type.

use serde_json::{Map, Value};

use super::answer::Refusal;

/// A request's body, or an object inside one.
#[derive(Debug)]
pub(super) struct Body(Map<String, Value>);

impl Body {
    /// Reads bytes as a JSON object; what is not one is 60003.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(bytes)
            .map(Self)
            .map_err(|error| Refusal::new(60003, format!("the body is no JSON object: {error}")))
    }

    /// A string that must be there and not be empty.
    pub(super) fn text(&self, name: &str) -> Result<&str, Refusal> {
        match self.any_text(name)? {
            "" => Err(Refusal::parameter(format!("{name} is empty"))),
            text => Ok(text),
        }
    }

    /// A string that must be there.
    pub(super) fn any_text(&self, name: &str) -> Result<&str, Refusal> {
        self.optional_text(name)?
            .ok_or_else(|| Refusal::parameter(format!("{name} is missing")))
    }

    /// A string that may be absent.
    pub(super) fn optional_text(&self, name: &str) -> Result<Option<&str>, Refusal> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Refusal::parameter(format!("{name} is not a string"))),
        }
    }

    /// A whole number from 0 on that must be there.
    pub(super) fn number(&self, name: &str) -> Result<u64, Refusal> {
        self.optional_number(name)?
            .ok_or_else(|| Refusal::parameter(format!("{name} is missing")))
    }

    /// A whole number from 0 on that may be absent.
    pub(super) fn optional_number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        match self.0.get(name) {
            None => Ok(None),
            Some(value) => value
                .as_u64()
                .map(Some)
                .ok_or_else(|| Refusal::parameter(format!("{name} is not a whole number"))),
        }
    }

    /// A list of objects that must be there and not be empty.
    pub(super) fn list(&self, name: &str) -> Result<Vec<Self>, Refusal> {
        let items = match self.0.get(name) {
            None => return Err(Refusal::parameter(format!("{name} is missing"))),
            Some(Value::Array(items)) if items.is_empty() => {
                return Err(Refusal::parameter(format!("{name} is empty")));
            }
            Some(Value::Array(items)) => items,
            Some(_) => return Err(Refusal::parameter(format!("{name} is not a list"))),
        };
        let object = |item: &Value| match item {
            Value::Object(object) => Ok(Self(object.clone())),
            _ => Err(Refusal::parameter(format!(
                "{name} has an item that is no object"
            ))),
        };
        items.iter().map(object).collect()
    }
}
