//! A tiny stand-in for the API: one group and one message, and what each call does to them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    catalogue::{Action, Command},
    lane::merge::tests::sample::COMMUNITY,
};

/// Attributes that the model's group can hold: fewer than a merged call may carry, so that some
/// merged calls are refused.
const CAPACITY: usize = 14;
/// The pair that someone else has always changed.
pub(super) const CONTESTED: &str = "k3";
/// The pair whose result is lost if it is not the only one.
pub(super) const LOST: &str = "k4";

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    attributes: BTreeMap<String, String>,
    extensions: BTreeMap<String, String>,
}

impl Model {
    /// Does what the call says and answers it.
    pub(super) fn apply(&mut self, command: &Command, body: &[u8]) -> (i64, Value) {
        let body: Value = serde_json::from_slice(body).unwrap();
        if command.action == Action::WriteExtensions {
            return (0, self.write_extensions(&body));
        }
        let code = self.write_attributes(command.action, &body);
        (code, json!({ "ErrorCode": code }))
    }

    fn write_attributes(&mut self, action: Action, body: &Value) -> i64 {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let pairs = body["GroupAttr"].as_array().cloned().unwrap_or_default();
        let mut after = self.attributes.clone();
        match action {
            Action::ClearAttributes if text(&body["GroupId"]).starts_with(COMMUNITY) => {
                return 10007;
            }
            Action::ClearAttributes => after.clear(),
            Action::DeleteAttributes => {
                for pair in &pairs {
                    if after.remove(&text(&pair["key"])).is_none() {
                        return 10050;
                    }
                }
            }
            _ => {
                if action == Action::SetAttributes {
                    after.clear();
                }
                after.extend(
                    pairs
                        .iter()
                        .map(|pair| (text(&pair["key"]), text(&pair["value"]))),
                );
            }
        }
        if after.len() > CAPACITY {
            return 10047;
        }
        self.attributes = after;
        0
    }

    /// Results come in the reverse order.
    fn write_extensions(&mut self, body: &Value) -> Value {
        let pairs = body["ExtensionList"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        if body["OperateType"] == 3 {
            self.extensions.clear();
        }
        let mut results = Vec::new();
        for pair in &pairs {
            let key = pair["Key"].as_str().unwrap();
            let mut code = 0;
            if key == CONTESTED {
                code = 23001;
            } else if body["OperateType"] == 1 {
                let value = pair["Value"].as_str().unwrap();
                self.extensions.insert(key.to_owned(), value.to_owned());
            } else {
                self.extensions.remove(key);
            }
            if key != LOST || pairs.len() == 1 {
                results.insert(0, json!({"ErrorCode": code, "Extension": pair}));
            }
        }
        json!({"ErrorCode": 0, "RequestId": "r", "ExtensionList": results})
    }
}
