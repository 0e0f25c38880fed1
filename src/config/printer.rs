//! The effective settings as TOML.

use std::collections::BTreeMap;

use super::kind::{Kind, quoted};
use super::schema::{self, Visitor};
use super::settings::Config;

/// Every setting of `config`, in the order of the schema.
pub(super) fn print(config: &Config) -> String {
    let mut printer = Printer::default();
    schema::visit(&mut config.clone(), &mut printer);
    printer.text
}

#[derive(Default)]
struct Printer {
    text: String,
    path: Vec<&'static str>,
    /// Whether the section's header is written; a section of nothing but sections needs none.
    headed: bool,
}

impl Printer {
    fn line(&mut self, line: &str) {
        if !self.headed {
            let gap = if self.text.is_empty() { "" } else { "\n" };
            self.text.extend([
                gap,
                "[",
                &self.path.join("."),
                "]
",
            ]);
            self.headed = true;
        }
        self.text.push_str(line);
        self.text.push('\n');
    }
}

impl Visitor for Printer {
    fn section(&mut self, name: &'static str, body: impl FnOnce(&mut Self)) {
        self.path.push(name);
        self.headed = false;
        body(self);
        self.path.pop();
        self.headed = false;
    }

    fn setting<K: Kind>(&mut self, name: &'static str, value: &mut K::Value, kind: &K) {
        self.line(&format!("{name} = {}", kind.write(value)));
    }

    fn optional<K: Kind>(&mut self, name: &'static str, value: &mut Option<K::Value>, kind: &K) {
        match value {
            Some(value) => self.setting(name, value, kind),
            None => self.line(&format!("# {name} is not set")),
        }
    }

    fn commands<K: Kind>(
        &mut self,
        name: &'static str,
        entries: &mut BTreeMap<String, K::Value>,
        kind: &K,
    ) {
        self.section(name, |printer| {
            for (command, value) in entries {
                let key = if command.contains('/') {
                    quoted(command)
                } else {
                    command.clone()
                };
                printer.line(&format!("{key} = {}", kind.write(value)));
            }
        });
    }

    fn later(&mut self, _name: &'static str, _until_then: &'static str) {}

    fn other_sections_later(&mut self, _until_then: &'static str) {}
}
