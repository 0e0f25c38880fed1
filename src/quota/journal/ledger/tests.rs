use proptest::prelude::*;

use super::{super::record::tests::of_one_code, *};

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
fn of_quotas_with_the_same_code_the_longest_window_and_the_lowest_limit_should_hold() {
    let names = of_one_code();
    let class = WindowClass::of_keys(QuotaClass::Ruled(names[0]));
    let pace = |limit: u32, seconds: u32| Pace {
        limit,
        window: Duration::from_secs(seconds.into()),
        ..paces().api
    };
    for [one, other] in [[7, 8], [8, 7], [7, 7]] {
        let quotas = [(names[0], pace(one, one)), (names[1], pace(other, other))];
        let ruled = Paces::of_ruled(quotas.into_iter());
        let paces = Paces { ruled, ..paces() };
        let expected = pace(one.min(other), one.max(other));
        assert_eq!(*paces.of(class), expected, "{one} and {other}");
    }
}

#[test]
fn few_of_many_slots_may_be_unwritten_and_none_of_a_command() {
    let mut paces = paces();
    for (limit, expected) in [(5, 0), (49, 0), (50, 1), (200, 4), (1_000_000, 200)] {
        paces.group_attributes.limit = limit;
        paces.api.limit = limit;
        assert_eq!(paces.unwritten(WindowClass::GroupAttributes), expected);
        assert_eq!(paces.unwritten(WindowClass::Command), 0);
    }
}

#[test]
fn an_attempt_that_is_under_way_should_be_kept_for_as_long_as_it_may_count() {
    let ledger = applied(&[slots(Event::Taken, 1, 100)]);
    let left = |at| {
        let busy: Vec<_> = ledger.busy(&paces(), at).collect();
        busy.first().map(|busy| micros(busy.left))
    };
    // It may be given up after the call timeout, and arrive as long after that.
    let until = 170 * SECOND + GUARD;
    assert_eq!(left(100 * SECOND), Some(until - 100 * SECOND));
    assert_eq!(left(until - 1), Some(1));
    assert_eq!(left(until), None);
}

#[test]
fn what_may_be_missing_should_be_held_for_as_long_as_it_may_count() {
    let class = WindowClass::MessageExtension;
    let unwritten = |slots| Record::Unwritten { class, slots };
    let buried = |records: &[Record]| {
        let mut ledger = applied(records);
        ledger.bury(&paces(), 100 * SECOND);
        ledger
    };
    let ledger = buried(&[unwritten(4)]);
    let left = |at| {
        let missing: Vec<_> = ledger.missing(&paces(), at).collect();
        missing
            .first()
            .map(|missing| (missing.slots, micros(missing.left)))
    };
    let until = 165 * SECOND + GUARD;
    assert_eq!(left(100 * SECOND), Some((4, until - 100 * SECOND)));
    assert_eq!(left(until - 1), Some((4, 1)));
    assert_eq!(left(until), None);
    for written in [&[][..], &[unwritten(4), unwritten(0)]] {
        assert_eq!(buried(written).missing(&paces(), 0).count(), 0);
    }
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
