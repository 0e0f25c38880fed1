//! The effective settings as TOML.

use std::collections::BTreeMap;

use super::kind::{Kind, quoted};
use super::schema::{self, Effect, Section, Visitor};
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
    path: Vec<String>,
    /// Whether the section's header is written; a section of nothing but sections needs none.
    headed: bool,
}

impl Printer {
    fn line(&mut self, line: &str) {
        if !self.headed {
            self.header(&format!("[{}]", self.path.join(".")));
            self.headed = true;
        }
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn header(&mut self, header: &str) {
        let gap = if self.text.is_empty() { "" } else { "\n" };
        self.text.extend([gap, header, "\n"]);
    }

    fn absent(&mut self, header: &str) {
        self.header(&format!("# {header} is not set"));
    }
}

impl Visitor for Printer {
    fn section(&mut self, name: &'static str, body: impl FnOnce(&mut Self)) {
        self.path.push(name.to_owned());
        self.headed = false;
        body(self);
        self.path.pop();
        self.headed = false;
    }

    fn optional_section<T: Section>(
        &mut self,
        name: &'static str,
        value: &mut Option<T>,
        _: Effect,
        body: impl FnOnce(&mut T, &mut Self),
    ) {
        match value {
            Some(value) => self.section(name, |printer| body(value, printer)),
            None => self.absent(&format!("[{name}]")),
        }
    }

    fn list<T: Section>(
        &mut self,
        name: &'static str,
        entries: &mut Vec<T>,
        _: Effect,
        body: impl Fn(&mut T, &mut Self),
    ) {
        self.path.push(name.to_owned());
        let header = format!("[[{}]]", self.path.join("."));
        for entry in &mut *entries {
            self.header(&header);
            self.headed = true;
            body(entry, self);
        }
        self.path.pop();
        self.headed = false;
        if entries.is_empty() {
            self.absent(&header);
        }
    }

    fn setting<K: Kind>(&mut self, name: &'static str, value: &mut K::Value, kind: &K, _: Effect) {
        self.line(&format!("{name} = {}", kind.write(value)));
    }

    fn optional<K: Kind>(
        &mut self,
        name: &'static str,
        value: &mut Option<K::Value>,
        kind: &K,
        effect: Effect,
    ) {
        match value {
            Some(value) => self.setting(name, value, kind, effect),
            None => self.line(&format!("# {name} is not set")),
        }
    }

    fn commands<K: Kind>(
        &mut self,
        name: &'static str,
        entries: &mut BTreeMap<String, K::Value>,
        kind: &K,
        _: Effect,
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

    fn named<T: Section>(
        &mut self,
        entries: &mut BTreeMap<String, T>,
        body: impl Fn(&mut T, &mut Self),
    ) {
        for (name, entry) in entries {
            self.path.push(name.clone());
            self.headed = false;
            body(entry, self);
            self.path.pop();
            self.headed = false;
        }
    }
}
