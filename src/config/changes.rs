//! What a reload changes: the new settings against those in force, setting by setting.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};

use super::kind::Kind;
use super::schema::{self, Effect, Section, Visitor};
use super::settings::Config;

/// The settings that differ, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In force from now on.
    pub live: Vec<String>,
    /// In force after a restart.
    pub at_restart: Vec<String>,
}

/// `new` with what takes a restart as it is in `old`, and what differs.
pub(super) fn take_over(old: &Config, mut new: Config) -> (Config, Changes) {
    let mut values = Values::default();
    schema::visit(&mut old.clone(), &mut values);
    let mut comparison = Comparison {
        old: values.0,
        ..Comparison::default()
    };
    schema::visit(&mut new, &mut comparison);
    (new, comparison.changes)
}

/// The value of every setting, in the order of the schema.
#[derive(Default)]
struct Values(VecDeque<Box<dyn Any>>);

#[derive(Default)]
struct Comparison {
    old: VecDeque<Box<dyn Any>>,
    path: Vec<&'static str>,
    changes: Changes,
}

impl Comparison {
    fn compare<T: Clone + PartialEq + 'static>(
        &mut self,
        name: &'static str,
        value: &mut T,
        effect: Effect,
    ) {
        let old = self
            .old
            .pop_front()
            .and_then(|old| old.downcast::<T>().ok());
        // The same schema leads past both, so that it is there and of this type.
        let Some(old) = old.filter(|old| **old != *value) else {
            return;
        };
        self.path.push(name);
        let path = self.path.join(".");
        self.path.pop();
        match effect {
            Effect::Live => self.changes.live.push(path),
            Effect::Restart => {
                *value = *old;
                self.changes.at_restart.push(path);
            }
        }
    }
}

impl Visitor for Values {
    fn section(&mut self, _: &'static str, body: impl FnOnce(&mut Self)) {
        body(self);
    }

    fn optional_section<T: Section>(
        &mut self,
        _: &'static str,
        value: &mut Option<T>,
        _: Effect,
        _: impl FnOnce(&mut T, &mut Self),
    ) {
        self.0.push_back(Box::new(value.clone()));
    }

    fn list<T: Section>(
        &mut self,
        _: &'static str,
        entries: &mut Vec<T>,
        _: Effect,
        _: impl Fn(&mut T, &mut Self),
    ) {
        self.0.push_back(Box::new(entries.clone()));
    }

    fn setting<K: Kind>(&mut self, _: &'static str, value: &mut K::Value, _: &K, _: Effect) {
        self.0.push_back(Box::new(value.clone()));
    }

    fn optional<K: Kind>(
        &mut self,
        _: &'static str,
        value: &mut Option<K::Value>,
        _: &K,
        _: Effect,
    ) {
        self.0.push_back(Box::new(value.clone()));
    }

    fn commands<K: Kind>(
        &mut self,
        _: &'static str,
        entries: &mut BTreeMap<String, K::Value>,
        _: &K,
        _: Effect,
    ) {
        self.0.push_back(Box::new(entries.clone()));
    }

    fn named<T: Section>(
        &mut self,
        entries: &mut BTreeMap<String, T>,
        _: impl Fn(&mut T, &mut Self),
    ) {
        self.0.push_back(Box::new(entries.clone()));
    }
}

impl Visitor for Comparison {
    fn section(&mut self, name: &'static str, body: impl FnOnce(&mut Self)) {
        self.path.push(name);
        body(self);
        self.path.pop();
    }

    fn optional_section<T: Section>(
        &mut self,
        name: &'static str,
        value: &mut Option<T>,
        effect: Effect,
        _: impl FnOnce(&mut T, &mut Self),
    ) {
        self.compare(name, value, effect);
    }

    fn list<T: Section>(
        &mut self,
        name: &'static str,
        entries: &mut Vec<T>,
        effect: Effect,
        _: impl Fn(&mut T, &mut Self),
    ) {
        self.compare(name, entries, effect);
    }

    fn setting<K: Kind>(
        &mut self,
        name: &'static str,
        value: &mut K::Value,
        _: &K,
        effect: Effect,
    ) {
        self.compare(name, value, effect);
    }

    fn optional<K: Kind>(
        &mut self,
        name: &'static str,
        value: &mut Option<K::Value>,
        _: &K,
        effect: Effect,
    ) {
        self.compare(name, value, effect);
    }

    fn commands<K: Kind>(
        &mut self,
        name: &'static str,
        entries: &mut BTreeMap<String, K::Value>,
        _: &K,
        effect: Effect,
    ) {
        self.compare(name, entries, effect);
    }

    fn named<T: Section>(
        &mut self,
        entries: &mut BTreeMap<String, T>,
        _: impl Fn(&mut T, &mut Self),
    ) {
        let old = self.old.front().and_then(|old| old.downcast_ref());
        let are_the_same =
            old.is_some_and(|old: &BTreeMap<String, T>| old.keys().eq(entries.keys()));
        let effect = if are_the_same {
            Effect::Live
        } else {
            Effect::Restart
        };
        self.compare("*", entries, effect);
    }
}
