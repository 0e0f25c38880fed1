//! Folding calls into one, and dividing its reply among those who sent them. Pure.
//!
//! Group attributes fold by last-write-wins on a map; message extensions by putting pairs with
//! different keys side by side:
//!
//! | earlier | later | as one call |
//! |---|---|---|
//! | set | set | the later set |
//! | set | modify | set of the union, the later value of a key wins |
//! | modify | modify | modify of the union |
//! | modify | set | the later set |
//! | clear | clear, set, modify | clear, set, set |
//! | set, modify | clear | clear |
//! | extensions, `OperateType` 1 or 2 | the same, all keys different | the pairs of both |
//!
//! Nothing else folds: a delete's answer (10050 for a missing key) depends on what is stored.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    call::{Call, Head, Reply, Target, Travels},
    catalogue::{Action, Command, group_attributes, message_extension},
    upstream::retry::TRY_AGAIN,
};

/// Calls that travel as one.
#[derive(Debug)]
pub struct Fold {
    /// Of the first call: with whose credentials it is asked.
    head: Arc<Head>,
    target: Target,
    what: What,
}

#[derive(Debug)]
enum What {
    /// The first call takes no company.
    Closed(&'static Command),
    Attributes {
        write: Write,
        entries: Entries,
    },
    Extensions {
        operate: i128,
        entries: Entries,
    },
}

/// What a folded attribute call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Set,
    Modify,
    Clear,
}

impl Fold {
    /// A fold of one call.
    pub fn start(call: &Call) -> Fold {
        let what = match Part::of(call) {
            None => What::Closed(call.command),
            Some(Part::Attributes { write, entries }) => What::Attributes { write, entries },
            Some(Part::Extensions { operate, entries }) => What::Extensions { operate, entries },
        };
        Fold {
            head: call.head.clone(),
            target: call.target.clone(),
            what,
        }
    }

    /// Takes in the next call of the lane if the two may travel as one; otherwise says no and is
    /// unchanged.
    pub fn add(&mut self, call: &Call) -> bool {
        if self.head.credentials() != call.head.credentials() || self.target != call.target {
            return false;
        }
        match (&mut self.what, Part::of(call)) {
            (
                What::Attributes { write, entries },
                Some(Part::Attributes {
                    write: later,
                    entries: newer,
                }),
            ) => match (*write, later) {
                (_, Write::Set | Write::Clear) | (Write::Clear, Write::Modify) => {
                    *write = if later == Write::Clear {
                        Write::Clear
                    } else {
                        Write::Set
                    };
                    *entries = newer;
                    true
                }
                (Write::Set | Write::Modify, Write::Modify) => entries.unite(newer),
            },
            (
                What::Extensions { operate, entries },
                Some(Part::Extensions {
                    operate: later,
                    entries: newer,
                }),
            ) if *operate == later => entries.put_beside(newer),
            _ => false,
        }
    }

    /// The command as which it would be sent now.
    pub fn command(&self) -> &'static Command {
        match &self.what {
            What::Closed(command) => command,
            What::Attributes {
                write: Write::Set, ..
            } => &group_attributes::SET,
            What::Attributes {
                write: Write::Modify,
                ..
            } => &group_attributes::MODIFY,
            What::Attributes {
                write: Write::Clear,
                ..
            } => &group_attributes::CLEAR,
            What::Extensions { .. } => &message_extension::SET,
        }
    }

    /// The body of the folded call. Keys and values keep the bytes in which their callers wrote
    /// them. Only for a fold of two calls or more: one alone is sent as it came.
    pub fn body(&self) -> Bytes {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body<'a> {
            group_id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            msg_seq: Option<i128>,
            #[serde(skip_serializing_if = "Option::is_none")]
            operate_type: Option<i128>,
            #[serde(skip_serializing_if = "Option::is_none")]
            group_attr: Option<Vec<&'a RawValue>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            extension_list: Option<Vec<&'a RawValue>>,
        }
        let (mut operate_type, mut group_attr, mut extension_list) = (None, None, None);
        match &self.what {
            What::Attributes {
                write: Write::Clear,
                ..
            }
            | What::Closed(_) => {}
            What::Attributes { entries, .. } => group_attr = Some(entries.raw()),
            What::Extensions { operate, entries } => {
                operate_type = Some(*operate);
                extension_list = Some(entries.raw());
            }
        }
        let body = Body {
            group_id: &self.target.group,
            msg_seq: self.target.message,
            operate_type,
            group_attr,
            extension_list,
        };
        Bytes::from(serde_json::to_vec(&body).expect("strings and numbers serialize"))
    }
}

/// A call as a part of a fold; `None` if it travels alone.
enum Part {
    Attributes { write: Write, entries: Entries },
    Extensions { operate: i128, entries: Entries },
}

impl Part {
    fn of(call: &Call) -> Option<Part> {
        if call.travels == Travels::Alone {
            return None;
        }
        let attributes = |write| {
            let entries = Entries::of_attributes(&call.body)?;
            Some(Part::Attributes { write, entries })
        };
        match call.command.action {
            Action::SetAttributes => attributes(Write::Set),
            Action::ModifyAttributes => attributes(Write::Modify),
            // The API refuses it there, which its caller should hear.
            Action::ClearAttributes
                if call
                    .target
                    .group
                    .starts_with(group_attributes::COMMUNITY_PREFIX) =>
            {
                None
            }
            Action::ClearAttributes => Some(Part::Attributes {
                write: Write::Clear,
                entries: Entries::default(),
            }),
            Action::WriteExtensions => {
                let (operate, entries) = Entries::of_extensions(&call.body)?;
                (operate != message_extension::OPERATE_CLEAR)
                    .then_some(Part::Extensions { operate, entries })
            }
            Action::DeleteAttributes | Action::Read | Action::Ruled(_) => None,
        }
    }
}

/// Keys in their order, each with the bytes in which its caller wrote it. At most 20, so looking
/// through them beats hashing.
#[derive(Clone, Debug, Default)]
struct Entries(Vec<Entry>);

#[derive(Clone, Debug)]
struct Entry {
    key: String,
    value_bytes: usize,
    raw: Box<RawValue>,
}

impl Entries {
    fn of_attributes(body: &[u8]) -> Option<Entries> {
        #[derive(Deserialize)]
        struct Body<'a> {
            #[serde(borrow, rename = "GroupAttr")]
            list: Vec<&'a RawValue>,
        }
        #[derive(Deserialize)]
        struct Pair<'a> {
            #[serde(borrow)]
            key: Cow<'a, str>,
            #[serde(borrow)]
            value: Cow<'a, str>,
        }
        let body: Body<'_> = serde_json::from_slice(body).ok()?;
        let entry = |raw: &RawValue| {
            let pair: Pair<'_> = serde_json::from_str(raw.get()).ok()?;
            let (key, value_bytes) = (pair.key.into_owned(), pair.value.len());
            Some(Entry {
                key,
                value_bytes,
                raw: raw.to_owned(),
            })
        };
        body.list
            .into_iter()
            .map(entry)
            .collect::<Option<Vec<_>>>()
            .map(Entries)
    }

    fn of_extensions(body: &[u8]) -> Option<(i128, Entries)> {
        #[derive(Deserialize)]
        struct Body<'a> {
            #[serde(rename = "OperateType")]
            operate: i64,
            #[serde(borrow, default, rename = "ExtensionList")]
            list: Vec<&'a RawValue>,
        }
        let body: Body<'_> = serde_json::from_slice(body).ok()?;
        let entry = |raw: &RawValue| {
            let key = key_of(raw)?.into_owned();
            Some(Entry {
                key,
                value_bytes: 0,
                raw: raw.to_owned(),
            })
        };
        let entries = body
            .list
            .into_iter()
            .map(entry)
            .collect::<Option<Vec<_>>>()?;
        Some((body.operate.into(), Entries(entries)))
    }

    /// Takes in newer attributes, a newer value in the older one's place. Beyond the limits of one
    /// call it says no and is unchanged.
    fn unite(&mut self, newer: Entries) -> bool {
        let place = |entry: &Entry| self.0.iter().position(|old| old.key == entry.key);
        let places: Vec<_> = newer.0.iter().map(place).collect();
        let bytes =
            |entries: &[Entry]| entries.iter().map(|entry| entry.value_bytes).sum::<usize>();
        let replaced: usize = places
            .iter()
            .flatten()
            .map(|&old| self.0[old].value_bytes)
            .sum();
        let keys = self.0.len() + places.iter().filter(|place| place.is_none()).count();
        if keys > group_attributes::MAX_KEYS
            || bytes(&self.0) - replaced + bytes(&newer.0) > group_attributes::MAX_VALUES_BYTES
        {
            return false;
        }
        for (place, entry) in places.into_iter().zip(newer.0) {
            match place {
                Some(old) => self.0[old] = entry,
                None => self.0.push(entry),
            }
        }
        true
    }

    /// Takes in more pairs if their keys are all new. Beyond the limit of one call it says no and
    /// is unchanged.
    fn put_beside(&mut self, newer: Entries) -> bool {
        let fits = self.0.len() + newer.0.len() <= message_extension::MAX_PAIRS;
        let apart = newer
            .0
            .iter()
            .all(|entry| self.0.iter().all(|old| old.key != entry.key));
        if fits && apart {
            self.0.extend(newer.0);
        }
        fits && apart
    }

    fn raw(&self) -> Vec<&RawValue> {
        self.0.iter().map(|entry| &*entry.raw).collect()
    }
}

fn key_of(pair: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Pair<'a> {
        #[serde(borrow, rename = "Key")]
        key: Cow<'a, str>,
    }
    serde_json::from_str::<Pair<'_>>(pair.get())
        .ok()
        .map(|pair| pair.key)
}

/// What one member of a batch gets.
#[derive(Debug)]
pub enum Fate {
    /// This reply.
    Reply(Reply),
    /// It may be one member's fault: he is sent again alone and gets his own.
    Again,
}

/// Divides the reply to a batch of several, sent as `sent`, among those members who still wait for
/// it, in their order.
pub fn divide(sent: &'static Command, members: &[&Call], reply: &Reply) -> Vec<Fate> {
    let same = || Fate::Reply(reply.clone());
    let all = |fate: fn(&Reply) -> Fate| members.iter().map(|_| fate(reply)).collect();
    let Some(code) = reply.code else {
        return all(|reply| Fate::Reply(reply.clone()));
    };
    match (sent.action, code) {
        (Action::WriteExtensions, 0) => divide_pairs(members, reply),
        (_, 0) => all(|reply| Fate::Reply(reply.clone())),
        // Of a deletion it may speak of one pair.
        (Action::WriteExtensions, 23004) if deletes(members) => all(|_| Fate::Again),
        (_, code) if speaks_of_all(sent.action, code) => all(|reply| Fate::Reply(reply.clone())),
        // No permission for this command: those who sent another one may have it.
        (action, 10007) if action != Action::WriteExtensions => members
            .iter()
            .map(|call| {
                if std::ptr::eq(call.command, sent) {
                    same()
                } else {
                    Fate::Again
                }
            })
            .collect(),
        _ => all(|_| Fate::Again),
    }
}

fn deletes(members: &[&Call]) -> bool {
    let operate = members
        .first()
        .and_then(|call| Entries::of_extensions(&call.body));
    operate.is_some_and(|(operate, _)| operate == message_extension::OPERATE_DELETE)
}

/// Codes that speak of the group, the message, the credentials or the service, and not of what one
/// member wrote.
fn speaks_of_all(action: Action, code: i64) -> bool {
    let of_target = match action {
        Action::WriteExtensions => matches!(code, 10008 | 23002 | 23003 | 23004),
        _ => matches!(code, 10010 | 10015 | 10049),
    };
    of_target || matches!(code, 60000..=60099 | 70000..=70099) || TRY_AGAIN.contains(&code)
}

/// The pairs of a reply, each to the member who sent its key.
fn divide_pairs(members: &[&Call], reply: &Reply) -> Vec<Fate> {
    let answered = PairReply::parse(&reply.body);
    members
        .iter()
        .map(|call| {
            let own = answered.as_ref().and_then(|answered| {
                let (_, sent) = Entries::of_extensions(&call.body)?;
                answered.only(&sent)
            });
            // A pair without a result of its own: its caller is answered by a call of his own.
            own.map_or(Fate::Again, |body| Fate::Reply(reply.with_body(body)))
        })
        .collect()
}

/// The reply to a setter: the envelope's members in their order, and a result per pair.
struct PairReply<'a> {
    envelope: Vec<(String, &'a RawValue)>,
    pairs: Vec<(Cow<'a, str>, &'a RawValue)>,
}

const PAIRS: &str = "ExtensionList";

impl<'a> PairReply<'a> {
    fn parse(body: &'a [u8]) -> Option<PairReply<'a>> {
        #[derive(Deserialize)]
        struct Outcome<'a> {
            #[serde(borrow, rename = "Extension")]
            extension: &'a RawValue,
        }
        let Members(envelope) = serde_json::from_slice(body).ok()?;
        let (_, list) = envelope.iter().find(|(name, _)| name == PAIRS)?;
        let list: Vec<&'a RawValue> = serde_json::from_str(list.get()).ok()?;
        let pairs = list
            .into_iter()
            .map(|raw| {
                let outcome: Outcome<'a> = serde_json::from_str(raw.get()).ok()?;
                Some((key_of(outcome.extension)?, raw))
            })
            .collect::<Option<Vec<_>>>()?;
        Some(PairReply { envelope, pairs })
    }

    /// The reply with only the pairs of `sent`, in their order. `None` unless each has exactly one
    /// result.
    fn only(&self, sent: &Entries) -> Option<Bytes> {
        let own = sent
            .0
            .iter()
            .map(|entry| {
                let mut results = self.pairs.iter().filter(|(key, _)| *key == entry.key);
                match (results.next(), results.next()) {
                    (Some((_, raw)), None) => Some(*raw),
                    _ => None,
                }
            })
            .collect::<Option<Vec<&RawValue>>>()?;
        let own = serde_json::value::to_raw_value(&own).expect("raw values serialize");
        let mut body = Vec::with_capacity(own.get().len() + 64);
        for (index, (name, value)) in self.envelope.iter().enumerate() {
            body.push(if index == 0 { b'{' } else { b',' });
            serde_json::to_writer(&mut body, name).expect("a string serializes");
            body.push(b':');
            let value = if name == PAIRS { &own } else { *value };
            body.extend_from_slice(value.get().as_bytes());
        }
        body.push(b'}');
        Some(Bytes::from(body))
    }
}

/// The members of an object in their order, values as they were written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Visitor).map(Members)
    }
}

#[cfg(test)]
pub(super) mod tests;
