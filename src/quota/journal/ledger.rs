//! What the records of a file say about the windows: which slots are busy, and until when.
//!
//! Every doubt is decided for "busy": a slot that comes back is one of those that were taken
//! first, so that what stays taken is the later; what comes back without having been taken (its
//! record was damaged) cools all the same.
//!
//! Nothing here reads a clock or a file: times and bytes come in as arguments.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::record::{Event, LENGTH, Micros, Record, WindowClass, WindowId};
use crate::{call::QuotaClass, quota::window::Pace, sharded::Map};

/// Of how many slots one may be taken before it is written down.
const ONE_UNWRITTEN_OF: u32 = 50;

/// No more of a window are. What a file says beyond that is damage.
const MOST_UNWRITTEN: u32 = 200;

/// How many slots of each class there are, and how long they cool.
#[derive(Clone, Debug)]
pub struct Paces {
    /// Of the attributes of groups.
    pub group_attributes: Pace,
    /// Of the extensions of messages.
    pub message_extension: Pace,
    /// Of quotas that rules name.
    pub ruled: HashMap<WindowClass, Pace>,
    /// Of commands.
    pub api: Pace,
}

/// Every window that a file speaks of.
#[derive(Debug, Default)]
pub struct Ledger {
    windows: Map<WindowId, Held>,
    /// What is to be added to the times as they are kept here. So a moved clock costs nothing.
    shift: Micros,
    /// The latest time, as kept here.
    last: Option<Micros>,
    /// How many slots of each window of a class may be taken and not be here.
    unwritten: Map<WindowClass, u32>,
    /// How many may have been when a process was killed, as kept here.
    missing: Vec<(WindowClass, u32, Micros)>,
    /// The upstream was seen to count the pairs of message extensions.
    pub counts_pairs: bool,
    /// What could not be read.
    pub damage: Damage,
}

/// What of a file could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Records with a wrong checksum or unknown contents.
    pub records: usize,
    /// Bytes of a last record that was not written to its end.
    pub torn_bytes: usize,
}

/// The slots of one window that are not free.
#[derive(Debug, Default)]
struct Held {
    taken: VecDeque<(Micros, u32)>,
    cooling: Vec<(Cooling, Micros, u32)>,
}

/// Slots that are taken to be busy in each window of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which windows.
    pub class: WindowClass,
    /// How many.
    pub slots: u32,
    /// When they were lost.
    pub at: Micros,
    /// For how much longer.
    pub left: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cooling {
    Replied,
    Lost,
}

/// Slots that are busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Of which window.
    pub window: WindowId,
    /// What became of them last.
    pub event: Event,
    /// How many.
    pub slots: u32,
    /// When.
    pub at: Micros,
    /// For how much longer.
    pub left: Duration,
}

impl Paces {
    /// The part for quotas that rules name. Where two have the same code, the longer window and the
    /// lower limit hold.
    pub fn of_ruled(
        quotas: impl Iterator<Item = (&'static str, Pace)>,
    ) -> HashMap<WindowClass, Pace> {
        let mut paces: HashMap<WindowClass, Pace> = HashMap::new();
        for (quota, pace) in quotas {
            let own = paces
                .entry(WindowClass::of_keys(QuotaClass::Ruled(quota)))
                .or_insert(pace);
            own.window = own.window.max(pace.window);
            own.limit = own.limit.min(pace.limit);
        }
        paces
    }

    /// That of a class; of a quota that no rule names any more, that of commands.
    pub fn of(&self, class: WindowClass) -> &Pace {
        match class {
            WindowClass::GroupAttributes => &self.group_attributes,
            WindowClass::MessageExtension => &self.message_extension,
            WindowClass::Ruled(_) => self.ruled.get(&class).unwrap_or(&self.api),
            WindowClass::Command => &self.api,
        }
    }

    /// How many slots of each window of a class may be taken before they are written down. That many
    /// are left unused for a window after a process was killed, so they are few; where there are few
    /// slots, none.
    pub fn unwritten(&self, class: WindowClass) -> u32 {
        match class {
            // Each has a limit of its own.
            WindowClass::Command => 0,
            _ => MOST_UNWRITTEN.min(self.of(class).limit / ONE_UNWRITTEN_OF),
        }
    }

    fn until(&self, class: WindowClass, event: Event, at: Micros) -> Micros {
        let pace = self.of(class);
        let cools = match event {
            Event::Replied => pace.period(),
            Event::Lost => pace.call_timeout + pace.period(),
            // An attempt ends within `call_timeout`, at worst as one that was lost.
            Event::Taken => pace.call_timeout * 2 + pace.period(),
            Event::Refunded => Duration::ZERO,
        };
        at.saturating_add(micros(cools))
    }
}

impl Ledger {
    /// Reads records, without the header. What is damaged is counted and left out.
    pub fn read(bytes: &[u8]) -> Ledger {
        let mut ledger = Ledger::default();
        let (records, torn) = bytes.as_chunks::<LENGTH>();
        for record in records {
            match Record::decode(record) {
                Some(record) => ledger.apply(&record),
                None => ledger.damage.records += 1,
            }
        }
        ledger.damage.torn_bytes = torn.len();
        ledger
    }

    /// Takes in what happened next.
    pub fn apply(&mut self, record: &Record) {
        let (event, window, slots, at) = match *record {
            Record::Clock { by } => {
                self.shift = self.shift.saturating_add(by);
                return;
            }
            Record::CountsPairs => {
                self.counts_pairs = true;
                return;
            }
            Record::Unwritten { class, slots } => {
                match slots.min(MOST_UNWRITTEN) {
                    0 => self.unwritten.remove(&class),
                    slots => self.unwritten.insert(class, slots),
                };
                return;
            }
            Record::Missing { class, slots, at } => {
                let at = at.saturating_sub(self.shift);
                self.last = self.last.max(Some(at));
                self.missing.push((class, slots.min(MOST_UNWRITTEN), at));
                return;
            }
            Record::Slots {
                event,
                window,
                slots,
                at,
            } => (event, window, slots, at.saturating_sub(self.shift)),
        };
        self.last = self.last.max(Some(at));
        let held = self.windows.entry(window).or_default();
        match event {
            Event::Taken => held.taken.push_back((at, slots)),
            Event::Replied => {
                held.give_back(slots);
                held.cooling.push((Cooling::Replied, at, slots));
            }
            Event::Lost => {
                held.give_back(slots);
                held.cooling.push((Cooling::Lost, at, slots));
            }
            Event::Refunded => held.give_back(slots),
        }
    }

    /// By how much the clock stood later than `now` when the last record was written.
    pub fn ahead_of(&self, now: Micros) -> Duration {
        let last = self
            .last
            .map_or(now, |last| last.saturating_add(self.shift));
        duration(last.saturating_sub(now))
    }

    /// The process that wrote the records has ended, before `now`.
    ///
    /// What it held is lost: its connections were closed when it ended, by `now` and not later than
    /// its attempts would have been given up. If the last record is later than `now`, the clock was
    /// set back and nobody knows how much later it is: all is taken to have just happened.
    ///
    /// What it had not written down yet is lost in the same way, in whichever windows that was.
    pub fn bury(&mut self, paces: &Paces, now: Micros) {
        self.shift = self.shift.saturating_sub(micros(self.ahead_of(now)));
        let now = now.saturating_sub(self.shift);
        for (window, held) in &mut self.windows {
            let longest = micros(paces.of(window.class).call_timeout);
            for (at, slots) in held.taken.drain(..) {
                let closed_at = at.saturating_add(longest).min(now);
                held.cooling.push((Cooling::Lost, closed_at, slots));
            }
        }
        let unwritten = self.unwritten.drain();
        let missing = unwritten.map(|(class, slots)| (class, slots, now));
        self.missing.extend(missing);
    }

    /// The records of what holds for all windows at `now`.
    pub fn beginning<'a>(
        &'a self,
        paces: &'a Paces,
        now: Micros,
    ) -> impl Iterator<Item = Record> + 'a {
        let counts_pairs = self.counts_pairs.then_some(Record::CountsPairs);
        let unwritten = self.unwritten.iter();
        let unwritten = unwritten.map(|(&class, &slots)| Record::Unwritten { class, slots });
        let missing = self.missing(paces, now);
        let missing = missing.map(|missing| missing.record());
        counts_pairs.into_iter().chain(unwritten).chain(missing)
    }

    /// The slots of each window that may have been lost and would be busy at `now`.
    pub fn missing<'a>(
        &'a self,
        paces: &'a Paces,
        now: Micros,
    ) -> impl Iterator<Item = Missing> + 'a {
        self.missing.iter().filter_map(move |&(class, slots, at)| {
            let at = at.saturating_add(self.shift);
            let left = paces.until(class, Event::Lost, at).saturating_sub(now);
            (left > 0).then(|| Missing {
                class,
                slots,
                at,
                left: duration(left),
            })
        })
    }

    /// The slots that are busy at `now`, in an order that [`apply`](Self::apply) takes.
    pub fn busy<'a>(&'a self, paces: &'a Paces, now: Micros) -> impl Iterator<Item = Busy> + 'a {
        self.windows.iter().flat_map(move |(&window, held)| {
            let cooling = held.cooling.iter().map(|&(cooling, at, slots)| {
                let event = match cooling {
                    Cooling::Replied => Event::Replied,
                    Cooling::Lost => Event::Lost,
                };
                (event, at, slots)
            });
            let taken = held.taken.iter();
            let taken = taken.map(|&(at, slots)| (Event::Taken, at, slots));
            // What comes back takes away what was taken before it, so that comes last.
            cooling.chain(taken).filter_map(move |(event, at, slots)| {
                let at = at.saturating_add(self.shift);
                let left = paces.until(window.class, event, at).saturating_sub(now);
                (left > 0).then(|| Busy {
                    window,
                    event,
                    slots,
                    at,
                    left: duration(left),
                })
            })
        })
    }
}

impl Held {
    fn give_back(&mut self, mut slots: u32) {
        while slots > 0
            && let Some((_, taken)) = self.taken.front_mut()
        {
            let some = slots.min(*taken);
            slots -= some;
            *taken -= some;
            if *taken == 0 {
                self.taken.pop_front();
            }
        }
    }
}

impl Busy {
    /// The record that says so.
    pub fn record(&self) -> Record {
        Record::Slots {
            event: self.event,
            window: self.window,
            slots: self.slots,
            at: self.at,
        }
    }
}

impl Missing {
    /// The record that says so.
    pub fn record(&self) -> Record {
        Record::Missing {
            class: self.class,
            slots: self.slots,
            at: self.at,
        }
    }
}

/// A length of time as the file counts it.
pub fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

/// A length of time that the file counted; none if it is negative.
pub fn duration(micros: Micros) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

#[cfg(test)]
mod tests;
