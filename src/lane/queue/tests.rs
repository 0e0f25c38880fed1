//! The bookkeeping of a queue, and that merging does not show in the state left behind.

mod equivalence;
mod model;

use super::*;
use crate::{
    catalogue::group_attributes,
    lane::merge::tests::sample::{
        COMMUNITY, GROUP, attributes, call_with, clear, extensions, modify, set,
    },
};

fn pushed(counting: Counting, calls: &[Call]) -> Queue<()> {
    let mut queue = Queue::new(counting);
    for (index, call) in calls.iter().enumerate() {
        let slots = match counting {
            Counting::Calls => 1,
            Counting::Pairs => call.pairs,
        };
        assert_eq!(queue.push(call.clone(), slots, ()), index as u64);
    }
    queue
}

/// The numbers of each batch, when everything is allowed.
fn drained(mut queue: Queue<()>, max_slots: u32) -> Vec<Vec<u64>> {
    let mut batches = Vec::new();
    while let Some(plan) = queue.plan(max_slots, |_| true) {
        let batch = queue.take(plan);
        assert_eq!(batch.fold.is_some(), batch.jobs.len() > 1);
        batches.push(batch.jobs.iter().map(|(number, _)| *number).collect());
    }
    check_empty(&queue);
    batches
}

#[track_caller]
fn check_empty<T>(queue: &Queue<T>) {
    assert!(queue.is_empty() && queue.front().is_none() && queue.iter().next().is_none());
    assert_eq!((queue.calls(), queue.batches(), queue.slots()), (0, 0, 0));
    assert!(queue.plan(u32::MAX, |_| true).is_none());
}

/// The batches that calls make, which the queue knows before they are taken.
#[track_caller]
fn check_batches(calls: &[Call], expected: &[&[u64]]) {
    let queue = pushed(Counting::Calls, calls);
    assert_eq!(queue.batches() as usize, expected.len());
    assert_eq!(queue.slots() as usize, expected.len());
    assert_eq!(queue.calls(), calls.len());
    assert_eq!(drained(queue, 1), expected);
}

/// What the queue says of its batches when some have left, and what they really are.
#[track_caller]
fn check_batches_after(calls: &[Call], leavers: &[u64], expected: &[&[u64]]) {
    let mut queue = pushed(Counting::Calls, calls);
    for number in leavers {
        assert!(queue.leave(*number).is_some());
        assert!(queue.leave(*number).is_none(), "nobody leaves twice");
    }
    let promised = queue.batches() as usize;
    assert_eq!(drained(queue, 1), expected);
    assert_eq!(promised, expected.len(), "after {leavers:?} had left");
}

fn many(command: &'static Command, keys: std::ops::Range<usize>, value_bytes: usize) -> Call {
    let pairs: Vec<_> = keys
        .map(|n| (format!("k{n:02}"), "v".repeat(value_bytes)))
        .collect();
    attributes(command, GROUP, &pairs)
}

#[test]
fn an_empty_queue_should_have_none_of_anything() {
    check_empty(&Queue::<()>::new(Counting::Calls));
    check_empty(&Queue::<()>::new(Counting::Pairs));
}

#[test]
fn calls_should_travel_with_their_neighbours_and_never_overtake() {
    let delete = || attributes(&group_attributes::DELETE, GROUP, &[("a", "")]);
    let one = || set(&[("a", "1")]);
    let other_admin = || {
        call_with(
            &group_attributes::SET,
            "sdkappid=88888888&identifier=other&usersig=s",
            r#"{"GroupId":"@TGS#a","GroupAttr":[{"key":"a","value":"2"}]}"#,
            Travels::Together,
        )
    };
    let alone = || Call {
        travels: Travels::Alone,
        ..one()
    };
    let community = |command| attributes(command, COMMUNITY, &[("a", "1")]);
    check_batches(&[one(), modify(&[("b", "2")]), clear()], &[&[0, 1, 2]]);
    check_batches(&[one(), delete(), one(), one()], &[&[0], &[1], &[2, 3]]);
    check_batches(&[delete(), delete()], &[&[0], &[1]]);
    check_batches(&[one(), other_admin(), one()], &[&[0], &[1], &[2]]);
    check_batches(
        &[one(), one(), alone(), one(), one()],
        &[&[0, 1], &[2], &[3, 4]],
    );
    check_batches(&[alone(), alone()], &[&[0], &[1]]);
    check_batches(
        &[
            community(&group_attributes::SET),
            community(&group_attributes::CLEAR),
            community(&group_attributes::SET),
        ],
        &[&[0], &[1], &[2]],
    );
    let command = &group_attributes::MODIFY;
    check_batches(
        &[
            many(command, 0..16, 1),
            many(command, 10..20, 1),
            many(command, 10..22, 1),
        ],
        &[&[0], &[1, 2]],
    );
}

#[test]
fn one_who_leaves_from_either_end_should_not_make_more_batches() {
    let calls = [
        modify(&[("a", "1")]),
        set(&[("b", "1")]),
        modify(&[("c", "1")]),
    ];
    check_batches_after(&calls, &[0], &[&[1, 2]]);
    check_batches_after(&calls, &[2], &[&[0, 1]]);
    check_batches_after(&calls, &[1], &[&[0, 2]]);
    check_batches_after(&calls, &[0, 2], &[&[1]]);
    check_batches_after(&calls, &[2, 1, 0], &[]);
}

#[test]
fn one_who_leaves_should_be_missed_where_he_made_the_others_fit() {
    let command = &group_attributes::MODIFY;
    // He replaced all keys.
    for between in [set(&[("a", "1")]), clear()] {
        let calls = [many(command, 0..16, 1), between, many(command, 16..31, 1)];
        check_batches(&calls, &[&[0, 1, 2]]);
        check_batches_after(&calls, &[1], &[&[0], &[2]]);
    }
    // He made a value shorter.
    let calls = [
        many(command, 0..4, 4_000),
        modify(&[("k00", "")]),
        many(command, 4..5, 4_000),
    ];
    check_batches(&calls, &[&[0, 1, 2]]);
    check_batches_after(&calls, &[1], &[&[0], &[2]]);
}

#[test]
fn a_call_should_not_count_on_one_who_has_left_before_it_came() {
    let command = &group_attributes::MODIFY;
    for last in [set(&[("a", "1")]), clear(), modify(&[("k00", "")])] {
        let mut queue = pushed(Counting::Calls, &[many(command, 0..4, 4_000), last]);
        assert_eq!(queue.batches(), 1);
        queue.leave(1);
        queue.push(many(command, 4..5, 4_000), 1, ());
        assert_eq!(queue.batches(), 2);
        assert_eq!(drained(queue, 1), [[0], [2]]);
    }
}

#[test]
fn a_long_run_should_never_be_promised_in_too_few_batches() {
    // More than are looked at again: the promise may be too high, but not too low.
    let command = &group_attributes::MODIFY;
    let mut calls = vec![many(command, 0..16, 1); 100];
    calls.push(clear());
    calls.extend(vec![many(command, 16..32, 1); 100]);
    let mut queue = pushed(Counting::Calls, &calls);
    assert_eq!(queue.batches(), 1);
    queue.leave(100);
    assert_eq!(queue.batches(), 2);
    for number in (1..200).step_by(7) {
        queue.leave(number);
        assert!((2..=40).contains(&queue.batches()), "{}", queue.batches());
    }
    assert_eq!(drained(queue, 1).len(), 2);
}

#[test]
fn pairs_should_fill_the_slots_that_are_free() {
    let calls: Vec<Call> = (0..6)
        .map(|n| extensions(1, 1, &[(format!("{n}a"), ""), (format!("{n}b"), "")]))
        .collect();
    for (max_slots, expected) in [
        (12, vec![vec![0, 1, 2, 3, 4, 5]]),
        (11, vec![vec![0, 1, 2, 3, 4], vec![5]]),
        (4, vec![vec![0, 1], vec![2, 3], vec![4, 5]]),
        (
            3,
            vec![vec![0], vec![1], vec![2], vec![3], vec![4], vec![5]],
        ),
    ] {
        let queue = pushed(Counting::Pairs, &calls);
        assert_eq!((queue.slots(), queue.batches()), (12, 1));
        assert_eq!(drained(queue, max_slots), expected);
    }
    assert!(pushed(Counting::Pairs, &calls).plan(1, |_| true).is_none());
    let clear = extensions::<&str, &str>(1, 3, &[]);
    let queue = pushed(Counting::Pairs, &[clear, calls[0].clone()]);
    assert_eq!((queue.slots(), queue.batches()), (3, 2));
}

#[test]
fn a_plan_should_be_the_longest_whose_command_is_allowed() {
    let calls = [
        modify(&[("a", "1")]),
        modify(&[("b", "1")]),
        set(&[("a", "2")]),
        clear(),
        modify(&[("c", "1")]),
    ];
    let queue = pushed(Counting::Calls, &calls);
    for (allowed, expected) in [
        (vec!["set_group_attr"], Some(("set_group_attr", 5))),
        (vec!["clear_group_attr"], Some(("clear_group_attr", 4))),
        (vec!["modify_group_attr"], Some(("modify_group_attr", 2))),
        (
            vec!["modify_group_attr", "clear_group_attr"],
            Some(("clear_group_attr", 4)),
        ),
        (vec!["delete_group_attr"], None),
        (vec![], None),
    ] {
        let plan = queue.plan(1, |command| allowed.contains(&command.name));
        let found = plan.map(|plan| (plan.command.name, plan.length));
        assert_eq!(found, expected, "{allowed:?}");
        let Some((command, length)) = expected else {
            continue;
        };
        let mut alone = Fold::start(&calls[0]);
        assert!(calls[1..length].iter().all(|call| alone.add(call)));
        let mut queue = pushed(Counting::Calls, &calls);
        let plan = queue.plan(1, |command| allowed.contains(&command.name));
        let taken = queue.take(plan.unwrap()).fold.unwrap();
        assert_eq!(
            (taken.command().name, taken.body()),
            (command, alone.body())
        );
    }
    assert!(queue.plan(0, |_| true).is_none());
}

#[test]
fn one_put_back_should_have_his_old_place_and_travel_alone() {
    let one = |value| set(&[("a", value)]);
    let mut queue = pushed(Counting::Calls, &[one("1"), one("2"), one("3")]);
    let plan = queue.plan(1, |_| true).unwrap();
    let batch = queue.take(plan);
    check_empty(&queue);
    assert_eq!(queue.push(one("4"), 1, ()), 3);
    assert_eq!(queue.push(one("5"), 1, ()), 4);
    for (number, job) in batch.jobs {
        queue.put_back(number, job.call, ());
    }
    assert_eq!((queue.calls(), queue.batches(), queue.slots()), (5, 4, 4));
    assert_eq!(queue.front().map(|(number, _)| number), Some(0));
    assert_eq!(queue.push(one("6"), 1, ()), 5);
    assert_eq!(queue.batches(), 4);
    assert_eq!(
        drained(queue, 1),
        [vec![0], vec![1], vec![2], vec![3, 4, 5]]
    );
}

#[test]
fn a_call_should_not_join_one_who_was_put_back_into_an_empty_queue() {
    let mut queue = pushed(Counting::Calls, &[clear(), set(&[("a", "1")])]);
    let plan = queue.plan(1, |_| true).unwrap();
    for (number, job) in queue.take(plan).jobs {
        queue.put_back(number, job.call, ());
    }
    queue.push(clear(), 1, ());
    assert_eq!(queue.batches(), 3);
    assert_eq!(drained(queue, 1), [[0], [1], [2]]);
}
