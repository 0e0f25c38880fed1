//! Who is served when, against lists that are walked naively.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::{
    catalogue::group_attributes,
    lane::merge::tests::sample::{GROUP, attributes, clear, extensions, modify, replayed, set},
};

fn caller(number: u8) -> Caller {
    Caller::Address([10, 0, 0, number].into())
}

fn of(number: u8, call: Call) -> Call {
    Call {
        caller: caller(number),
        ..call
    }
}

fn delete() -> Call {
    attributes(&group_attributes::DELETE, GROUP, &[("a", "")])
}

/// Slots and upstream calls ahead of the next call of a caller.
fn ahead(turns: &mut Turns<()>, number: u8) -> (u32, u32) {
    let Ahead { slots, batches } = turns.ahead(&caller(number));
    (slots, batches)
}

fn take(turns: &mut Turns<()>, max_slots: u32) -> Option<Batch<()>> {
    let plan = turns.plan(max_slots, |_| true)?;
    Some(turns.take(plan))
}

fn drained(turns: &mut Turns<()>) -> Vec<Vec<u64>> {
    let mut batches = Vec::new();
    while let Some(batch) = take(turns, u32::MAX) {
        batches.push(batch.jobs.iter().map(|(number, _)| *number).collect());
    }
    check_empty(turns);
    batches
}

#[track_caller]
fn check_empty(turns: &Turns<()>) {
    assert_eq!((turns.calls(), turns.batches(), turns.bytes()), (0, 0, 0));
    assert!(turns.front().is_none());
    assert!(turns.ring.is_empty() && turns.places.is_empty() && turns.again.is_empty());
}

/// In which batches calls leave that are numbered as they come.
#[track_caller]
fn check(calls: Vec<(u8, Call)>, expected: &[&[u64]]) {
    let mut turns = Turns::new(Counting::Calls);
    for (number, call) in calls {
        turns.push(of(number, call), 1, ());
    }
    let stranger = turns.ahead(&caller(99)).batches as usize;
    assert!(stranger <= expected.len());
    assert_eq!(drained(&mut turns), expected);
}

#[test]
fn callers_should_take_turns_and_ride_along_where_they_may() {
    let modify = |key| modify(&[(key, "1")]);
    // One alone leaves as in a strict queue.
    check(
        vec![(1, delete()), (1, clear()), (1, clear())],
        &[&[0], &[1, 2]],
    );
    check(
        vec![(1, delete()), (1, delete()), (1, delete()), (2, delete())],
        &[&[0], &[3], &[1], &[2]],
    );
    // The example of the documentation.
    check(
        vec![
            (1, clear()),
            (1, clear()),
            (1, delete()),
            (2, modify("a")),
            (3, delete()),
            (4, clear()),
        ],
        &[&[0, 1, 3], &[4], &[5], &[2]],
    );
    // A turn is a run, however long.
    check(
        vec![(1, delete()), (2, clear()), (1, delete()), (2, clear())],
        &[&[0], &[1, 3], &[2]],
    );
}

#[test]
fn one_whose_turn_was_cut_should_be_first() {
    let mut turns = Turns::new(Counting::Pairs);
    for (number, key) in [(1, "a"), (2, "b"), (2, "c"), (3, "d")] {
        turns.push(of(number, extensions(1, 1, &[(key, "")])), 1, ());
    }
    assert_eq!(ahead(&mut turns, 4), (4, 1));
    let numbers = |batch: Batch<()>| batch.jobs.iter().map(|job| job.0).collect::<Vec<_>>();
    assert_eq!(take(&mut turns, 2).map(numbers), Some(vec![0, 1]));
    turns.push(of(1, extensions(1, 1, &[("e", "")])), 1, ());
    assert_eq!(take(&mut turns, 2).map(numbers), Some(vec![2, 3]));
    assert_eq!(take(&mut turns, 2).map(numbers), Some(vec![4]));
    check_empty(&turns);
}

#[test]
fn a_new_caller_should_count_only_the_turns_before_him() {
    let mut turns = Turns::new(Counting::Calls);
    for _ in 0..995 {
        turns.push(of(1, delete()), 1, ());
    }
    for (number, ahead) in [(1, 995), (2, 1)] {
        assert_eq!(turns.ahead(&caller(number)).batches, ahead);
    }
    // Those who may ride along count once.
    for number in 2..60 {
        turns.push(of(number, set(&[("a", "1")])), 1, ());
        assert_eq!(ahead(&mut turns, 99), (2, 2));
    }
    // His second call is behind one more turn of the one before him.
    assert_eq!(turns.ahead(&caller(2)).batches, 3);
    assert_eq!(turns.ahead(&caller(1)).batches, 995 + 1);
}

#[test]
fn a_first_turn_that_grows_should_be_counted_again() {
    let keys = |from: usize, count: usize| {
        let keys: Vec<_> = (from..from + count)
            .map(|n| (format!("k{n}"), ""))
            .collect();
        attributes(&group_attributes::MODIFY, GROUP, &keys)
    };
    let mut turns = Turns::new(Counting::Calls);
    turns.push(of(1, keys(0, 8)), 1, ());
    turns.push(of(2, keys(8, 8)), 1, ());
    assert_eq!(ahead(&mut turns, 3), (1, 1), "16 keys travel together");
    turns.push(of(1, keys(16, 1)), 1, ());
    assert_eq!(ahead(&mut turns, 3), (2, 2), "17 do not");
    assert_eq!(drained(&mut turns), [vec![0, 2], vec![1]]);
}

#[test]
fn only_so_many_calls_of_a_round_should_be_looked_into() {
    let batches = |calls_of_each: &[usize]| {
        let mut turns = Turns::new(Counting::Calls);
        for (number, calls) in (1..).zip(calls_of_each) {
            for _ in 0..*calls {
                turns.push(of(number, clear()), 1, ());
            }
        }
        ahead(&mut turns, 99).1
    };
    assert_eq!(batches(&[FOLDED_OF_ONE, 1]), 1);
    assert_eq!(batches(&[FOLDED_OF_ONE + 1, 1]), 2);
    assert_eq!(batches(&[FOLDED_OF_ONE + 1, 1, 1]), 2);
    let most = [FOLDED_OF_ONE; FOLDED / FOLDED_OF_ONE];
    assert_eq!(batches(&most), 1);
    assert_eq!(batches(&[&most[..], &[1]].concat()), 2);
    let less = FOLDED_OF_ONE - 1;
    assert_eq!(batches(&[&most[1..], &[less, 1]].concat()), 1);
    assert_eq!(batches(&[&most[1..], &[less, 2]].concat()), 2);
}

#[test]
fn what_a_slot_stands_for_should_change_for_everybody_who_waits() {
    let pair = |number, key| of(number, extensions(1, 1, &[(key, "")]));
    let mut turns = Turns::new(Counting::Calls);
    for (number, key) in [(1, "a"), (1, "b"), (2, "c")] {
        turns.push(pair(number, key), 5, ());
    }
    let again = turns.leave(&caller(2), 2).unwrap();
    turns.put_back(2, again.call, ());
    assert_eq!(ahead(&mut turns, 3), (2, 2));
    turns.count(Counting::Pairs);
    assert_eq!(ahead(&mut turns, 3), (15, 2));
    turns.push(pair(4, "d"), 5, ());
    assert_eq!(ahead(&mut turns, 3), (20, 2), "of one who came since, too");
    assert_eq!((turns.calls(), turns.batches()), (4, 3));
    assert_eq!(turns.bytes(), 4 * pair(1, "a").body.len());
    turns.count(Counting::Pairs);
    assert!(take(&mut turns, 4).is_none());
    assert_eq!(take(&mut turns, 5).unwrap().jobs.len(), 1);
    assert_eq!(take(&mut turns, 10).unwrap().jobs.len(), 2);
    turns.count(Counting::Calls);
    assert_eq!(ahead(&mut turns, 3), (1, 1));
}

#[test]
fn those_put_back_should_leave_first_and_keep_their_order() {
    let mut turns = Turns::new(Counting::Calls);
    for number in [1, 2, 1] {
        turns.push(of(number, clear()), 1, ());
    }
    let batch = take(&mut turns, 1).unwrap();
    check_empty(&turns);
    turns.push(of(3, clear()), 1, ());
    turns.push(of(1, clear()), 1, ());
    for (number, job) in batch.jobs {
        turns.put_back(number, job.call, ());
    }
    assert_eq!((turns.calls(), turns.front().unwrap().0), (5, 0));
    assert_eq!(turns.ahead(&caller(4)).batches, 4);
    assert!(turns.leave(&caller(2), 1).is_some());
    assert!(turns.leave(&caller(2), 1).is_none());
    assert_eq!(drained(&mut turns), [vec![0], vec![2], vec![3, 4]]);
}

#[test]
fn a_caller_should_have_as_many_places_as_he_leaves_free() {
    let mut turns = Turns::new(Counting::Calls);
    let mut fill = |number| {
        let mut own = 0;
        while !turns.has_his_share(&caller(number), 100) {
            turns.push(of(number, delete()), 1, ());
            own += 1;
        }
        own
    };
    assert_eq!([fill(1), fill(2), fill(3), fill(1)], [50, 25, 13, 0]);
    for number in 4..16 {
        assert_eq!(fill(number) > 0, number < 8);
    }
}

/// What happens to a lane.
#[derive(Clone, Debug)]
enum Step {
    /// A call of this caller; of this kind.
    Push(u8, u8),
    /// One of those who wait.
    Leave(Index),
    Take,
    /// The upstream wants everybody of the batch alone.
    TakeAndPutBack,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..5_u8, 0..6_u8).prop_map(|(caller, kind)| Step::Push(caller, kind)),
        1 => any::<Index>().prop_map(Step::Leave),
        4 => Just(Step::Take),
        1 => Just(Step::TakeAndPutBack),
    ];
    prop::collection::vec(step, 0..120)
}

fn call(number: u8, kind: u8) -> Call {
    let keys = |from: usize| -> Vec<_> {
        (from..from + 6)
            .map(|key| (format!("k{key}"), "v"))
            .collect()
    };
    let call = match kind {
        0..2 => delete(),
        2 => clear(),
        _ => attributes(
            &group_attributes::MODIFY,
            GROUP,
            &keys(usize::from(kind) * 5),
        ),
    };
    of(number, call)
}

/// Lists of what waits, and who began an upstream call while another waited.
#[derive(Default)]
struct Judge {
    waiting: BTreeMap<u8, BTreeSet<u64>>,
    began: BTreeMap<(u8, u8), u32>,
}

impl Judge {
    fn numbers(&self) -> Vec<(u8, u64)> {
        let of = |(caller, calls): (&u8, &BTreeSet<u64>)| {
            let caller = *caller;
            calls.clone().into_iter().map(move |call| (caller, call))
        };
        self.waiting.iter().flat_map(of).collect()
    }

    fn leave(&mut self, caller: u8, number: u64) {
        let calls = self.waiting.get_mut(&caller).unwrap();
        assert!(calls.remove(&number));
        if calls.is_empty() {
            self.waiting.remove(&caller);
            self.began.retain(|(patient, _), _| *patient != caller);
        }
    }

    /// A batch with the calls of these callers is sent, in a turn of the first.
    fn send(&mut self, calls: &[(u8, u64)], is_turn: bool) {
        for (caller, number) in calls {
            let first = self.waiting[caller].first().copied();
            assert_eq!(first, Some(*number), "the order of each caller");
            self.leave(*caller, *number);
            self.began.retain(|(patient, _), _| patient != caller);
        }
        if !is_turn {
            return;
        }
        let (beginner, _) = calls[0];
        for patient in self.waiting.keys().filter(|other| **other != beginner) {
            if calls.iter().any(|(caller, _)| caller == patient) {
                continue;
            }
            let turns = self.began.entry((*patient, beginner)).or_default();
            *turns += 1;
            assert_eq!(*turns, 1, "{patient} waits, {beginner} has begun before");
        }
    }
}

fn callers(batch: &Batch<()>) -> Vec<(u8, u64)> {
    let number = |call: &Call| {
        (0..5)
            .find(|number| call.caller == caller(*number))
            .unwrap()
    };
    let jobs = batch.jobs.iter();
    jobs.map(|(place, job)| (number(&job.call), *place))
        .collect()
}

proptest! {
    #![proptest_config(replayed(256))]

    #[test]
    fn turns_should_be_fair_and_lose_nobody(steps in steps(), last in 0..5_u8) {
        let mut turns = Turns::new(Counting::Calls);
        let mut judge = Judge::default();
        for step in steps {
            match step {
                Step::Push(number, kind) => {
                    let place = turns.push(call(number, kind), 1, ());
                    judge.waiting.entry(number).or_default().insert(place);
                }
                Step::Leave(index) => {
                    let waiting = judge.numbers();
                    if !waiting.is_empty() {
                        let (number, place) = waiting[index.index(waiting.len())];
                        prop_assert!(turns.leave(&caller(number), place).is_some());
                        prop_assert!(turns.leave(&caller(number), place).is_none());
                        judge.leave(number, place);
                    }
                }
                Step::Take | Step::TakeAndPutBack => {
                    let is_turn = turns.again.is_empty();
                    let Some(batch) = take(&mut turns, 1) else {
                        prop_assert!(judge.waiting.is_empty());
                        continue;
                    };
                    let calls = callers(&batch);
                    judge.send(&calls, is_turn);
                    if matches!(step, Step::TakeAndPutBack) && batch.jobs.len() > 1 {
                        for ((number, _), (place, job)) in calls.into_iter().zip(batch.jobs) {
                            turns.put_back(place, job.call, ());
                            judge.waiting.entry(number).or_default().insert(place);
                        }
                    }
                }
            }
            prop_assert_eq!(turns.calls(), judge.numbers().len());
            prop_assert_eq!(turns.front().is_none(), judge.waiting.is_empty());
            prop_assert_eq!(turns.ring.len(), turns.places.len());
            for (place, (caller, queue)) in &turns.ring {
                prop_assert_eq!(turns.places.get(caller), Some(place));
                prop_assert!(!queue.is_empty());
            }
            // Counted now and brought up to date, or counted when it is needed.
            if turns.calls() % 2 == 0 {
                turns.ahead(&caller(last));
            }
        }
        // The next call of anybody is sent after no more batches than it was told.
        let promised = turns.ahead(&caller(last));
        prop_assert_eq!(promised.slots, promised.batches);
        let place = turns.push(call(last, 0), 1, ());
        let batches = drained(&mut turns);
        let before = batches.iter().position(|batch| batch.contains(&place)).unwrap();
        prop_assert!(before <= promised.batches as usize, "{} after {}", before, promised.batches);
    }

    #[test]
    fn calls_that_travel_alone_should_leave_as_from_lists_in_a_ring(
        pushes in prop::collection::vec((0..5_u8, 0..3_u8), 0..80),
    ) {
        let mut turns = Turns::new(Counting::Calls);
        let mut ring: Vec<(u8, Vec<u64>)> = Vec::new();
        for (number, takes) in pushes {
            let place = turns.push(of(number, delete()), 1, ());
            match ring.iter_mut().find(|(caller, _)| *caller == number) {
                Some((_, calls)) => calls.push(place),
                None => ring.push((number, vec![place])),
            }
            for _ in 1..takes {
                let sent = take(&mut turns, 1).map(|batch| callers(&batch));
                let expected = (!ring.is_empty()).then(|| {
                    let (caller, mut calls) = ring.remove(0);
                    let first = calls.remove(0);
                    if !calls.is_empty() {
                        ring.push((caller, calls));
                    }
                    vec![(caller, first)]
                });
                prop_assert_eq!(sent, expected);
            }
        }
    }
}
