//! What was written, against the schema.
//!
//! Each source is applied on top of the ones before it, so a wrong value is reported even where
//! another source overrides it.

use std::collections::{BTreeMap, BTreeSet};

use super::command;
use super::kind::Kind;
use super::relations;
use super::rule;
use super::schema::{self, Effect, Section, Visitor};
use super::settings::Config;
use super::suggest::{self, Known, Shape};
use super::tree::{Finding, Item, Place, Value};

/// Applies sources one after another and collects what is wrong.
#[derive(Default)]
pub(super) struct Reader<'a> {
    findings: Vec<Finding<'a>>,
    known: Known,
    unknown: Vec<Unknown<'a>>,
    /// Where each setting got the value that holds.
    places: BTreeMap<String, Place<'a>>,
    /// Settings whose value is wrong; what depends on them is not judged.
    wrong: BTreeSet<String>,
    frames: Vec<Frame<'a>>,
    /// The section of a list that the schema is in.
    row: Option<usize>,
    /// The quotas that are written, each for a rule.
    named: Vec<(String, Place<'a>)>,
}

/// The section that the schema is in.
struct Frame<'a> {
    path: String,
    /// What was written in it and has not been asked for yet.
    items: Vec<Item<'a>>,
}

/// Something that no part of the schema asked for.
struct Unknown<'a> {
    path: String,
    shape: Shape,
    place: Place<'a>,
    /// It would be a quota if a rule named it.
    is_quota: bool,
}

impl<'a> Reader<'a> {
    /// Adds findings from elsewhere.
    pub(super) fn report(&mut self, findings: Vec<Finding<'a>>) {
        self.findings.extend(findings);
    }

    /// Overwrites in `config` what `items` set.
    pub(super) fn apply(&mut self, items: Vec<Item<'a>>, config: &mut Config) {
        self.enter(String::new(), items);
        schema::visit(config, self);
        self.leave();
    }

    /// Judges what can only be seen when all sources are applied, and gives everything back.
    pub(super) fn finish(mut self, config: &Config) -> Vec<Finding<'a>> {
        for (name, place) in std::mem::take(&mut self.named) {
            if !rule::is_used(config, &name) {
                self.unknown.push(Unknown {
                    path: joined("quota", &name),
                    shape: Shape::Section,
                    place,
                    is_quota: rule::is_name(&name),
                });
            }
        }
        let is_written =
            |place: &str| self.places.contains_key(place) || self.wrong.contains(place);
        for wrong in rule::conflicts(config, is_written) {
            let mut places = wrong
                .places
                .iter()
                .filter_map(|place| self.places.get(place));
            if let Some(place) = places.next() {
                self.findings.push(Finding {
                    place: *place,
                    message: wrong.message,
                });
            }
        }
        for unknown in &self.unknown {
            let message = unknown.message(&self.known);
            self.findings.push(Finding {
                place: unknown.place,
                message,
            });
        }
        for missing in relations::incomplete(config) {
            let judged = |setting| !self.wrong.contains(setting);
            if let Some(place) = self.places.get(&missing.entry)
                && judged(missing.setting)
            {
                self.findings.push(Finding {
                    place: *place,
                    message: missing.message,
                });
            }
        }
        for conflict in relations::conflicts(config) {
            if conflict
                .settings
                .iter()
                .any(|setting| self.wrong.contains(*setting))
            {
                continue;
            }
            let written = |setting: &&str| self.places.contains_key(*setting);
            if conflict.only_if_both_written && !conflict.settings.iter().all(written) {
                continue;
            }
            let places = conflict
                .settings
                .iter()
                .filter_map(|setting| self.places.get(*setting));
            // The source that overrides the other one made the conflict; of two in one source,
            // the one that the message begins with.
            if let Some(place) = places.rev().max_by_key(|place| place.rank()) {
                self.findings.push(Finding {
                    place: *place,
                    message: conflict.message,
                });
            }
        }
        self.findings
    }

    fn enter(&mut self, path: String, items: Vec<Item<'a>>) {
        self.frames.push(Frame { path, items });
    }

    fn leave(&mut self) {
        let Some(frame) = self.frames.pop() else {
            return;
        };
        for item in frame.items {
            let is_section = |element: &Item<'_>| matches!(element.value, Value::Section(_));
            let shape = match &item.value {
                Value::Section(_) => Shape::Section,
                // What is written as [[x]].
                Value::List(items) if items.first().is_some_and(is_section) => Shape::Section,
                _ => Shape::Setting,
            };
            self.unknown.push(Unknown {
                path: joined(&frame.path, &item.key),
                shape,
                place: item.place,
                is_quota: false,
            });
        }
    }

    /// The whole path of a name in the section, and what was written for it.
    fn take(&mut self, name: &str) -> (String, Option<Item<'a>>) {
        let Some(frame) = self.frames.last_mut() else {
            return (name.to_owned(), None);
        };
        let index = frame.items.iter().position(|item| item.key == name);
        (
            joined(&frame.path, name),
            index.map(|index| frame.items.swap_remove(index)),
        )
    }

    /// Like [`Reader::take`] for something that this version knows.
    fn take_known(&mut self, name: &str, shape: Shape) -> (String, Option<Item<'a>>) {
        let (path, item) = self.take(name);
        self.known.insert(path.clone(), shape);
        (path, item)
    }

    /// The value of a setting, if one was written and is right.
    fn value<K: Kind>(&mut self, path: &str, item: &Item<'a>, kind: &K) -> Option<K::Value> {
        let row = self.row.map(|index| rule::place(index, path));
        match kind.read(&item.value) {
            Ok(value) => {
                self.places.extend(row.map(|row| (row, item.value_place)));
                self.places.insert(path.to_owned(), item.value_place);
                Some(value)
            }
            Err(problem) => {
                let message = format!("{path} {problem}");
                self.findings.push(Finding {
                    place: item.value_place,
                    message,
                });
                self.wrong.extend(row);
                self.wrong.insert(path.to_owned());
                None
            }
        }
    }

    /// What each of the sections `[[path]]` holds, and where it begins; a single `[path]` is one.
    fn list_sections(
        &mut self,
        path: &str,
        item: Option<Item<'a>>,
    ) -> Vec<(Place<'a>, Vec<Item<'a>>)> {
        let Some(item) = item else { return Vec::new() };
        let items = match item.value {
            Value::List(items) => items,
            _ => vec![item],
        };
        let mut sections = Vec::new();
        for Item { place, value, .. } in items {
            if let Value::Section(items) = value {
                sections.push((place, items));
                continue;
            }
            let message = format!(
                "{path} is {}, but it is a section: write [[{path}]] and its settings below",
                value.described()
            );
            self.findings.push(Finding { place, message });
        }
        sections
    }

    /// What a section holds; a value in its stead is a mistake.
    fn section_items(&mut self, path: &str, item: Option<Item<'a>>) -> Vec<Item<'a>> {
        let Some(item) = item else { return Vec::new() };
        if let Value::Section(items) = item.value {
            return items;
        }
        let advice = match item.place {
            Place::File(_) => format!("write [{path}] once and its settings below"),
            _ => "name one of its settings".to_owned(),
        };
        let message = format!(
            "{path} is {}, but it is a section: {advice}",
            item.value.described()
        );
        self.findings.push(Finding {
            place: item.place,
            message,
        });
        Vec::new()
    }
}

impl Visitor for Reader<'_> {
    fn section(&mut self, name: &'static str, body: impl FnOnce(&mut Self)) {
        let (path, item) = self.take_known(name, Shape::Section);
        let items = self.section_items(&path, item);
        self.enter(path, items);
        body(self);
        self.leave();
    }

    fn optional_section<T: Section>(
        &mut self,
        name: &'static str,
        value: &mut Option<T>,
        _: Effect,
        body: impl FnOnce(&mut T, &mut Self),
    ) {
        let (path, item) = self.take_known(name, Shape::Section);
        let place = item.as_ref().map(|item| item.place);
        let items = self.section_items(&path, item);
        // One that is absent has names too, which are to be known.
        let mut absent = T::default();
        let section = match place {
            Some(place) => {
                self.places.entry(path.clone()).or_insert(place);
                value.get_or_insert_default()
            }
            None => value.as_mut().unwrap_or(&mut absent),
        };
        self.enter(path, items);
        body(section, self);
        self.leave();
    }

    fn list<T: Section>(
        &mut self,
        name: &'static str,
        entries: &mut Vec<T>,
        _: Effect,
        body: impl Fn(&mut T, &mut Self),
    ) {
        let (path, item) = self.take_known(name, Shape::Section);
        // A whole list takes the place of the one before; a single section changes the only one.
        let is_whole = item.as_ref().is_some_and(|item| {
            matches!(item.value, Value::List(_)) || matches!(item.place, Place::File(_))
        });
        if is_whole {
            entries.clear();
            let rows = format!("{path}.");
            let is_row = |place: &str| place.starts_with(&rows) && place.contains('#');
            self.places.retain(|place, _| !is_row(place));
            self.wrong.retain(|place| !is_row(place));
        }
        let written = self.list_sections(&path, item);
        if written.is_empty() {
            self.enter(path, Vec::new());
            body(&mut T::default(), self);
            self.leave();
            return;
        }
        for (place, items) in written {
            if !is_whole && entries.len() > 1 {
                let message = format!(
                    "there are {} sections [[{path}]], so this names none of them; write it in the \
                     file",
                    entries.len()
                );
                self.findings.push(Finding { place, message });
                continue;
            }
            if is_whole || entries.is_empty() {
                entries.push(T::default());
            }
            let Some(last) = entries.len().checked_sub(1) else {
                continue;
            };
            let known = self.places.entry(relations::entry(&path, last));
            let known = known.or_insert(place);
            if is_whole {
                *known = place;
            }
            self.row = Some(last);
            self.enter(path.clone(), items);
            body(&mut entries[last], self);
            self.leave();
            self.row = None;
        }
    }

    fn setting<K: Kind>(&mut self, name: &'static str, value: &mut K::Value, kind: &K, _: Effect) {
        let (path, item) = self.take_known(name, Shape::Setting);
        if let Some(read) = item.and_then(|item| self.value(&path, &item, kind)) {
            *value = read;
        }
    }

    fn optional<K: Kind>(
        &mut self,
        name: &'static str,
        value: &mut Option<K::Value>,
        kind: &K,
        _: Effect,
    ) {
        let (path, item) = self.take_known(name, Shape::Setting);
        if let Some(read) = item.and_then(|item| self.value(&path, &item, kind)) {
            *value = Some(read);
        }
    }

    fn commands<K: Kind>(
        &mut self,
        name: &'static str,
        entries: &mut BTreeMap<String, K::Value>,
        kind: &K,
        _: Effect,
    ) {
        let (path, item) = self.take_known(name, Shape::Section);
        for item in self.section_items(&path, item) {
            if let Err(problem) = command::check(&item.key) {
                let message = format!("{path}: {problem}");
                self.findings.push(Finding {
                    place: item.place,
                    message,
                });
            } else if let Some(read) = self.value(&joined(&path, &item.key), &item, kind) {
                entries.insert(item.key.into_owned(), read);
            }
        }
    }

    fn named<T: Section>(
        &mut self,
        entries: &mut BTreeMap<String, T>,
        body: impl Fn(&mut T, &mut Self),
    ) {
        let Some(frame) = self.frames.last_mut() else {
            return;
        };
        let is_section = |item: &mut Item<'_>| matches!(item.value, Value::Section(_));
        let items: Vec<_> = frame.items.extract_if(.., is_section).collect();
        let section = frame.path.clone();
        for item in items {
            let Value::Section(settings) = item.value else {
                continue;
            };
            let path = joined(&section, &item.key);
            self.places.entry(path.clone()).or_insert(item.place);
            self.named.push((item.key.to_string(), item.place));
            let entry = entries.entry(item.key.into_owned()).or_default();
            self.enter(path, settings);
            body(entry, self);
            self.leave();
        }
    }
}

impl Unknown<'_> {
    fn message(&self, known: &Known) -> String {
        let what = match self.shape {
            Shape::Section => format!("unknown section [{}]", self.path),
            Shape::Setting => format!("unknown setting {}", self.path),
        };
        let nearest = if self.is_quota {
            suggest::sibling(&self.path, self.shape, known)
        } else {
            suggest::anywhere(&self.path, self.shape, known)
        };
        if let Some(nearest) = nearest {
            return format!("{what}; did you mean {}?", self.spelt(nearest));
        }
        if self.is_quota {
            return format!(
                "no [[rule]] uses [{}]; write one that names it, or remove the section",
                self.path
            );
        }
        let (section, _) = suggest::split(&self.path);
        let names = suggest::names_in(section, known).join(", ");
        match section {
            "" => format!("{what}; the sections are {names}"),
            _ => format!("{what}; [{section}] has {names}"),
        }
    }

    /// A name as it is written where the mistake is.
    fn spelt(&self, path: &str) -> String {
        match (self.place, self.shape) {
            (Place::Environment(_), _) => {
                format!(
                    "{}{}",
                    super::ENVIRONMENT_PREFIX,
                    path.replace('.', "__").to_uppercase()
                )
            }
            (Place::File(_), Shape::Section) if path == "rule" => format!("[[{path}]]"),
            (Place::File(_), Shape::Section) => format!("[{path}]"),
            _ => path.to_owned(),
        }
    }
}

/// The path of a name in a section; names that need quotes get them, so that no control character
/// reaches a terminal.
fn joined(section: &str, name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-/".contains(c);
    let name = if !name.is_empty() && name.chars().all(plain) {
        name.to_owned()
    } else {
        super::kind::shown(name)
    };
    if section.is_empty() {
        name
    } else {
        format!("{section}.{name}")
    }
}
