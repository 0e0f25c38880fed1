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
use crate::{call::QuotaClass, quota::window::Pace};

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
    windows: HashMap<WindowId, Held>,
    /// What is to be added to the times as they are kept here. So a moved clock costs nothing.
    shift: Micros,
    /// The latest time, as kept here.
    last: Option<Micros>,
    /// How many slots of each window of a class may be taken and not be here.
    unwritten: HashMap<WindowClass, u32>,
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
    /// The part for quotas that rules name. Where two have the same code, the longer window holds.
    pub fn of_ruled(
        quotas: impl Iterator<Item = (&'static str, Pace)>,
    ) -> HashMap<WindowClass, Pace> {
        let mut paces: HashMap<WindowClass, Pace> = HashMap::new();
        for (quota, pace) in quotas {
            let own = paces
                .entry(WindowClass::of_keys(QuotaClass::Ruled(quota)))
                .or_insert(pace);
            if own.window < pace.window {
                *own = pace;
            }
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
                self.unwritten.insert(class, slots.min(MOST_UNWRITTEN));
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
        let unwritten = self.unwritten.drain().filter(|(_, slots)| *slots > 0);
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
        let unwritten = unwritten.filter(|(_, slots)| **slots > 0);
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A window of 60 s (guard 13 ms) and a call timeout of 5 s, whatever the class.
    fn paces() -> Paces {
        let pace = Pace {
            limit: 20,
            window: Duration::from_secs(60),
            call_timeout: Duration::from_secs(5),
        };
        Paces {
            group_attributes: pace,
            ruled: HashMap::new(),
            message_extension: pace,
            api: pace,
        }
    }

    const SECOND: Micros = 1_000_000;
    const GUARD: Micros = 13_000;

    fn window(n: u8) -> WindowId {
        WindowId {
            class: WindowClass::Command,
            digest: [n; 16],
        }
    }

    fn slots(event: Event, slots: u32, seconds: i64) -> Record {
        Record::Slots {
            event,
            window: window(0),
            slots,
            at: seconds * SECOND,
        }
    }

    /// What is left, in seconds without the guard, of each slot after a restart at `now`.
    #[track_caller]
    fn check(records: &[Record], now: i64, expected: &[i64]) {
        let mut ledger = Ledger::default();
        for record in records {
            ledger.apply(record);
        }
        ledger.bury(&paces(), now * SECOND);
        let busy: Vec<_> = ledger.busy(&paces(), now * SECOND).collect();
        let mut left: Vec<_> = busy
            .iter()
            .flat_map(|busy| std::iter::repeat_n(micros(busy.left) - GUARD, busy.slots as usize))
            .collect();
        left.sort_unstable();
        let expected: Vec<_> = expected.iter().map(|left| left * SECOND).collect();
        assert_eq!(left, expected, "{records:?} at {now}");
    }

    #[test]
    fn slots_should_be_remembered_for_as_long_as_the_process_before_would_have_held_them() {
        use Event::{Lost, Refunded, Replied, Taken};
        check(&[], 1_000, &[]);
        // A reply: one window from then.
        check(
            &[slots(Taken, 2, 100), slots(Replied, 2, 101)],
            110,
            &[51, 51],
        );
        check(&[slots(Taken, 2, 100), slots(Replied, 2, 101)], 162, &[]);
        // A loss: the call timeout besides.
        check(&[slots(Taken, 1, 100), slots(Lost, 1, 105)], 110, &[60]);
        // In flight at the end, which was before now, and at most the call timeout after the start.
        check(&[slots(Taken, 1, 100)], 102, &[65]);
        check(&[slots(Taken, 1, 100)], 110, &[60]);
        check(&[slots(Taken, 1, 100)], 171, &[]);
        // Never sent.
        check(&[slots(Taken, 3, 100), slots(Refunded, 3, 100)], 101, &[]);
        // Some are back: those that stay are the later ones.
        check(
            &[
                slots(Taken, 2, 100),
                slots(Taken, 1, 104),
                slots(Replied, 2, 105),
            ],
            105,
            &[60, 60, 65],
        );
        // Back without having been taken.
        check(&[slots(Replied, 1, 100)], 101, &[59]);
        check(&[slots(Refunded, 1, 100), slots(Taken, 1, 100)], 100, &[65]);
    }

    #[test]
    fn a_clock_that_was_set_back_should_not_shorten_a_window() {
        use Event::{Replied, Taken};
        let records = [
            slots(Taken, 1, 1_000),
            slots(Replied, 1, 1_000),
            slots(Taken, 1, 1_030),
        ];
        // Half an hour back, before the restart: all happened just now, with the same distances.
        check(&records, 100, &[30, 65]);
        // At most the call timeout and a window, however far.
        check(&records, -1_000_000_000, &[30, 65]);
        // While the process ran, and it said so.
        let mut moved = vec![slots(Taken, 1, 1_000), slots(Replied, 1, 1_000)];
        moved.push(Record::Clock { by: -900 * SECOND });
        moved.push(slots(Taken, 1, 130));
        check(&moved, 130, &[30, 65]);
    }

    #[test]
    fn a_clock_that_was_set_forward_while_the_process_ran_should_not_shorten_a_window() {
        let records = [
            slots(Event::Taken, 1, 100),
            slots(Event::Replied, 1, 100),
            Record::Clock { by: 3_600 * SECOND },
        ];
        check(&records, 3_710, &[50]);
    }

    #[test]
    fn times_that_cannot_be_should_not_be_a_panic() {
        for at in [Micros::MIN, 0, Micros::MAX] {
            for by in [Micros::MIN, Micros::MAX] {
                for now in [Micros::MIN, 0, Micros::MAX] {
                    let mut ledger = Ledger::default();
                    for event in [Event::Taken, Event::Lost] {
                        ledger.apply(&Record::Slots {
                            event,
                            window: window(1),
                            slots: u32::MAX,
                            at,
                        });
                        ledger.apply(&Record::Clock { by });
                    }
                    ledger.bury(&paces(), now);
                    let _ = ledger.busy(&paces(), now).count();
                }
            }
        }
    }

    /// A file of 40 records of three windows.
    fn file() -> Vec<Record> {
        let events = [Event::Taken, Event::Taken, Event::Replied, Event::Lost];
        (0..40_u8)
            .map(|n| Record::Slots {
                event: events[usize::from(n) % 4],
                window: window(n % 3),
                slots: 1,
                at: i64::from(n) * SECOND,
            })
            .collect()
    }

    fn bytes(records: &[Record]) -> Vec<u8> {
        records.iter().flat_map(Record::encode).collect()
    }

    /// Everything that is held, however it is ordered.
    fn contents(ledger: &Ledger) -> Vec<String> {
        let paces = paces();
        let busy = ledger.busy(&paces, 0);
        let mut all: Vec<_> = busy.map(|busy| format!("{busy:?}")).collect();
        all.sort_unstable();
        all
    }

    fn applied<'a>(records: impl IntoIterator<Item = &'a Record>) -> Ledger {
        let mut ledger = Ledger::default();
        records.into_iter().for_each(|record| ledger.apply(record));
        ledger
    }

    #[test]
    fn of_a_torn_file_every_whole_record_should_be_read() {
        let (records, whole) = (file(), bytes(&file()));
        for length in 0..=whole.len() {
            let ledger = Ledger::read(&whole[..length]);
            let expected = applied(&records[..length / LENGTH]);
            assert_eq!(contents(&ledger), contents(&expected), "{length}");
            let damage = Damage {
                records: 0,
                torn_bytes: length % LENGTH,
            };
            assert_eq!(ledger.damage, damage);
        }
    }

    #[test]
    fn of_a_file_with_a_flipped_byte_every_other_record_should_be_read() {
        let (records, whole) = (file(), bytes(&file()));
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            let ledger = Ledger::read(&bytes);
            let others = records.iter().enumerate();
            let others = others.filter_map(|(n, record)| (n != at / LENGTH).then_some(record));
            assert_eq!(contents(&ledger), contents(&applied(others)), "{at}");
            let damage = Damage {
                records: 1,
                torn_bytes: 0,
            };
            assert_eq!(ledger.damage, damage);
        }
    }

    /// What happens to one of four windows, and how much later than what was before.
    fn story() -> impl Strategy<Value = Vec<(u8, u8, u32, i64)>> {
        prop::collection::vec((0..4_u8, 0..9_u8, 1..4_u32, 0..6 * SECOND), 0..200)
    }

    proptest! {
        /// The model is a list per window, in which every slot is an entry of its own, and which
        /// never forgets anything.
        #[test]
        fn compacting_should_keep_what_is_busy(
            story in story(),
            cut in any::<prop::sample::Index>(),
            rest in 0..70 * SECOND,
        ) {
            let mut records = Vec::new();
            let mut model: [(Vec<Micros>, Vec<Micros>); 4] = Default::default();
            let mut now = 1_000 * SECOND;
            for (n, what, count, later) in story {
                now += later;
                let mut happen = |n: u8, event, count: usize| {
                    let (taken, until) = &mut model[usize::from(n)];
                    let count = if event == Event::Taken { count } else { count.min(taken.len()) };
                    let mut add = |seconds| {
                        let at = now + seconds * SECOND + GUARD;
                        until.extend(std::iter::repeat_n(at, count));
                    };
                    match event {
                        Event::Replied => add(60),
                        Event::Lost => add(65),
                        Event::Taken | Event::Refunded => {}
                    }
                    if event == Event::Taken {
                        taken.extend(std::iter::repeat_n(now, count));
                    } else {
                        taken.drain(..count);
                    }
                    let slots = u32::try_from(count).unwrap();
                    records.push(Record::Slots { event, window: window(n), slots, at: now });
                    taken.iter().filter(|at| **at < now - 5 * SECOND).count()
                };
                let event = match what {
                    0..4 => Event::Taken,
                    4..7 => Event::Replied,
                    7 => Event::Lost,
                    _ => Event::Refunded,
                };
                happen(n, event, count as usize);
                // No attempt takes longer than its timeout.
                for n in 0..4 {
                    let late = happen(n, Event::Refunded, 0);
                    happen(n, Event::Lost, late);
                }
            }
            let end = now + rest;

            // Compacted somewhere, and what came later written behind that.
            let (before, after) = records.split_at(cut.index(records.len() + 1));
            let compacted_at = match before.last() {
                Some(Record::Slots { at, .. }) => *at,
                _ => 0,
            };
            let compact = applied(before);
            let paces = paces();
            let compact = compact.busy(&paces, compacted_at).map(|busy| busy.record());
            let compact: Vec<_> = compact.chain(after.iter().copied()).collect();
            let mut ledger = Ledger::read(&bytes(&compact));
            ledger.bury(&paces, end);

            for (n, (taken, mut until)) in (0..).zip(model) {
                let closed_at = taken.iter().map(|at| (at + 5 * SECOND).min(end));
                until.extend(closed_at.map(|at| at + 65 * SECOND + GUARD));
                until.retain(|until| *until > end);
                until.sort_unstable();
                let busy = ledger.busy(&paces, end).filter(|busy| busy.window == window(n));
                let mut remembered: Vec<_> = busy
                    .flat_map(|busy| {
                        std::iter::repeat_n(end + micros(busy.left), busy.slots as usize)
                    })
                    .collect();
                remembered.sort_unstable();
                prop_assert_eq!(remembered, until);
            }
        }
    }
}
