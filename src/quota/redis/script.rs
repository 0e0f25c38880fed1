//! What is said to the store, and what it answers. Pure: text in, text out.

use std::{sync::Arc, time::Duration};

use redis::{Script, Value};

use super::share::Seat;
use crate::quota::journal::record::{WindowClass, WindowId};

/// Microseconds on the store's clock.
pub type StoreTime = i64;

/// The first part of every key's name behind the prefix. A version that keeps its books otherwise
/// takes another, so that two may run side by side; they do not know of each other's slots.
const VERSION: u32 = 2;

/// How the store names a gateway that joined it: a number that no other has, and its seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The number.
    pub id: u64,
    /// The seat.
    pub seat: Seat,
}

/// A change in the slots of one window that was taken earlier, or here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The window.
    pub window: WindowId,
    /// The attempt that holds the slots, as `id:sequence`.
    pub name: Name,
    /// Slots that it holds; 0 frees them all.
    pub slots: u32,
    /// Slots that the store may think it holds.
    pub had: u32,
    /// Until they are free.
    pub left: Duration,
    /// How long they cool in all, by the settings that say so.
    pub cools: Duration,
}

/// The name of an attempt in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// Who made it.
    pub id: u64,
    /// His how-manieth it is.
    pub sequence: u64,
}

/// Slots of one window that an attempt wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// The window.
    pub window: WindowId,
    /// At least so many slots.
    pub min: u32,
    /// As many as are free now, up to this.
    pub max: u32,
    /// Slots of the window.
    pub limit: u32,
    /// The time between two calls, for upstreams that forbid bursts.
    pub gap: Duration,
    /// How long ahead a slot may be reserved: as long as slots cool.
    pub horizon: Duration,
    /// How long a slot is held if nothing is heard of it, from the time at which it may be used.
    pub hold: Duration,
    /// Who decides.
    pub mode: Mode,
}

/// Who decides whether slots are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The store.
    Ask,
    /// They were taken already, from our share: what was spent before the store came to be may hold
    /// slots that it does not know of.
    Tell,
    /// The same, and our share is free whatever happens, as the store said before it forgot it.
    TellCovered,
    /// They were taken already, from our share: what was spent before the store came to be is free, but
    /// it may not know yet who shares it.
    TellLate,
}

/// One call of the script.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Who asks.
    pub owner: Owner,
    /// When the store came to be, as it said itself.
    pub born: Arc<str>,
    /// Another one after its clock was set; `0` if it never was.
    pub era: Arc<str>,
    /// The store refuses to do this any later.
    pub deadline: StoreTime,
    /// For how long he counts as present; zero for one who is no member yet.
    pub lease: Duration,
    /// How many share the store.
    pub replicas: u32,
    /// Whether the members are to be listed.
    pub list: bool,
    /// What became of slots.
    pub notes: Vec<Note>,
    /// Windows that are no longer claimed.
    pub releases: Vec<WindowId>,
    /// What is to be taken.
    pub wants: Vec<Want>,
    /// The sequence of the attempt that wants it.
    pub sequence: u64,
}

/// What the script answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The deadline had passed.
    Late,
    /// The caller is no member, or the store has lost its memory.
    Unknown,
    /// It was done.
    Done(Done),
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Whether what was wanted was taken; if not, nothing was.
    pub taken: bool,
    /// The store's clock.
    pub now: StoreTime,
    /// When it may be sent, or asked for again, from `now`.
    pub wait: Duration,
    /// Members that the store has not heard of for too long.
    pub missing: u32,
    /// For each want.
    pub got: Vec<Got>,
    /// The members, if they were to be listed.
    pub members: Vec<Owner>,
}

/// What was got of one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Got {
    /// Slots.
    pub slots: u32,
    /// Whether the claim is covered: the share is free for whoever asked, whatever happens.
    pub covered: bool,
    /// Slots that others hold.
    pub others: u32,
}

/// The names of the keys.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Keys with the same text in braces are on the same node of a cluster.
    tag: String,
}

/// Takes slots and writes down what became of others.
pub fn take() -> Script {
    Script::new(include_str!("../take.lua"))
}

/// Makes a gateway known.
pub fn join() -> Script {
    Script::new(include_str!("join.lua"))
}

impl Keys {
    /// Keys that begin with `prefix`.
    pub fn new(prefix: &str) -> Keys {
        Keys {
            tag: format!("{{{prefix}}}:{VERSION}:"),
        }
    }

    /// Who shares the store.
    pub fn members(&self) -> String {
        format!("{}members", self.tag)
    }

    /// What is known of the store itself.
    pub fn state(&self) -> String {
        format!("{}state", self.tag)
    }

    /// The slots and the claims of a window. What was written before the clock was set is true no
    /// more, so it is under other keys.
    pub fn window(&self, window: &WindowId, era: &str) -> [String; 2] {
        let class = match window.class {
            WindowClass::GroupAttributes => "group_attributes",
            WindowClass::MessageExtension => "message_extension",
            WindowClass::Ruled(_) => "rule",
            WindowClass::Command => "api",
        };
        let digest = u128::from_be_bytes(window.digest);
        ["slots", "claims"].map(|what| format!("{}{class}:{digest:032x}:{era}:{what}", self.tag))
    }
}

impl Owner {
    /// As the store writes it.
    pub fn text(&self) -> String {
        format!("{}.{}", self.id, self.seat)
    }

    /// From what the store wrote.
    pub fn parse(text: &str) -> Option<Owner> {
        let (id, seat) = text.split_once('.')?;
        Some(Owner {
            id: id.parse().ok()?,
            seat: seat.parse().ok()?,
        })
    }
}

impl Ask {
    /// Its keys and arguments.
    pub fn encode(&self, keys: &Keys) -> (Vec<String>, Vec<String>) {
        let mut windows: Vec<WindowId> = Vec::new();
        let mut place = |window: &WindowId| {
            let found = windows.iter().position(|known| known == window);
            let place = found.unwrap_or_else(|| {
                windows.push(*window);
                windows.len() - 1
            });
            (place + 1).to_string()
        };
        let mut arguments = vec![
            self.owner.text(),
            self.born.to_string(),
            self.deadline.to_string(),
            micros(self.lease),
            self.replicas.to_string(),
            u8::from(self.list).to_string(),
            (self.notes.len() + self.releases.len()).to_string(),
            self.wants.len().to_string(),
        ];
        for note in &self.notes {
            arguments.extend([
                place(&note.window),
                note.name.text(),
                note.slots.to_string(),
                note.had.to_string(),
                micros(note.left),
                micros(note.cools),
            ]);
        }
        for window in &self.releases {
            let nothing = || "0".to_owned();
            arguments.extend([
                place(window),
                String::new(),
                nothing(),
                nothing(),
                nothing(),
                nothing(),
            ]);
        }
        let name = Name {
            id: self.owner.id,
            sequence: self.sequence,
        };
        for want in &self.wants {
            arguments.extend([
                place(&want.window),
                name.text(),
                want.min.to_string(),
                want.max.to_string(),
                want.limit.to_string(),
                micros(want.gap),
                micros(want.horizon),
                micros(want.hold),
                match want.mode {
                    Mode::Ask => "0",
                    Mode::Tell => "1",
                    Mode::TellCovered => "2",
                    Mode::TellLate => "3",
                }
                .to_owned(),
            ]);
        }
        let mut names = vec![keys.members(), keys.state()];
        names.extend(
            windows
                .iter()
                .flat_map(|window| keys.window(window, &self.era)),
        );
        (names, arguments)
    }
}

impl Name {
    fn text(self) -> String {
        format!("{}:{}", self.id, self.sequence)
    }
}

impl Answer {
    /// The answer to an [`Ask`] with so many wants; `None` if it is none.
    pub fn parse(values: &[Value], wants: usize) -> Option<Answer> {
        let taken = match text(values.first()?)?.as_str() {
            "late" => return Some(Answer::Late),
            "unknown" => return Some(Answer::Unknown),
            "taken" => true,
            "later" => false,
            _ => return None,
        };
        let number = |index: usize| integer(values.get(index)?);
        let got = |want: usize| {
            Some(Got {
                slots: u32::try_from(number(4 + 3 * want)?).ok()?,
                covered: number(5 + 3 * want)? == 1,
                others: u32::try_from(number(6 + 3 * want)?).ok()?,
            })
        };
        let members = values.get(4 + 3 * wants..)?.iter();
        Some(Answer::Done(Done {
            taken,
            now: number(1)?,
            wait: Duration::from_micros(u64::try_from(number(2)?).ok()?),
            missing: u32::try_from(number(3)?).ok()?,
            got: (0..wants).map(got).collect::<Option<_>>()?,
            members: members
                .map(|member| Owner::parse(&text(member)?))
                .collect::<Option<_>>()?,
        }))
    }
}

/// A text of the answer.
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

/// A number of the answer.
pub fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

fn micros(duration: Duration) -> String {
    duration.as_micros().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_prefix_should_be_on_one_node_and_tell_the_version() {
        let keys = Keys::new("app");
        assert_eq!(keys.members(), "{app}:2:members");
        let window = WindowId::of_command("/v4/x/y", Some(1));
        let [slots, claims] = keys.window(&window, "0");
        assert!(slots.starts_with("{app}:2:api:") && slots.ends_with(":slots"));
        assert!(claims.ends_with(":claims"));
    }

    #[test]
    fn an_answer_should_be_read_whole_or_not_at_all() {
        let bulk = |text: &str| Value::BulkString(text.into());
        let mut values = vec![
            bulk("taken"),
            Value::Int(7_000_000),
            Value::Int(250),
            Value::Int(1),
        ];
        values.extend([Value::Int(2), Value::Int(1), Value::Int(3), bulk("12.2")]);
        let done = Done {
            taken: true,
            now: 7_000_000,
            wait: Duration::from_micros(250),
            missing: 1,
            got: vec![Got {
                slots: 2,
                covered: true,
                others: 3,
            }],
            members: vec![Owner { id: 12, seat: 2 }],
        };
        assert_eq!(Answer::parse(&values, 1), Some(Answer::Done(done)));
        assert_eq!(Answer::parse(&values[..6], 1), None);
        assert_eq!(Answer::parse(&values, 2), None);
        assert_eq!(Answer::parse(&[bulk("unknown")], 1), Some(Answer::Unknown));
        assert_eq!(
            Answer::parse(&[bulk("late"), Value::Int(1)], 1),
            Some(Answer::Late)
        );
        assert_eq!(Answer::parse(&[], 0), None);
    }
}
