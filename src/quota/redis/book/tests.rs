use super::*;
use crate::{clock, quota::journal::record::WindowClass};

const SECOND: Duration = Duration::from_secs(1);

fn window(n: u8) -> WindowId {
    WindowId {
        class: WindowClass::Command,
        digest: [n; 16],
    }
}

fn name(id: u64, sequence: u64) -> Name {
    Name { id, sequence }
}

/// A note on window 1.
fn note(name: Name, slots: u32, had: u32, seconds: u32) -> Note {
    Note {
        window: window(1),
        name,
        slots,
        had,
        left: seconds * SECOND,
        cools: SECOND,
    }
}

fn want(mode: Mode) -> Want {
    Want {
        window: window(1),
        min: 1,
        max: 4,
        limit: 5,
        gap: Duration::ZERO,
        horizon: SECOND,
        hold: SECOND,
        mode,
    }
}

fn got(slots: u32, covered: bool, others: u32) -> Got {
    Got {
        slots,
        covered,
        others,
    }
}

/// A book in which attempt 3 of gateway 7 holds two slots of window 1 for 5 s.
fn book(now: Instant) -> Book {
    let mut book = Book::default();
    book.want(window(1), SECOND);
    book.take(window(1), name(7, 3), 2, now + 5 * SECOND);
    book
}

/// What the store hears.
fn told(book: &mut Book, now: Instant) -> Vec<Note> {
    let (pending, notes, _) = book.tell(now, usize::MAX, &[]);
    assert_eq!(notes_at(&pending, now), notes);
    notes
}

/// What the store hears when it has forgotten everything.
fn told_again(book: &mut Book, id: u64, now: Instant) -> Vec<Note> {
    notes_at(&book.rename(id), now)
}

#[test]
fn no_two_attempts_should_have_the_same_number() {
    let mut book = Book::default();
    assert_eq!([book.number(), book.number(), book.number()], [1, 2, 3]);
}

#[test]
fn what_is_held_should_be_told_again_under_the_new_name() {
    let now = clock::now();
    let mut book = book(now);
    let held = note(name(7, 3), 2, 2, 5);
    assert_eq!(told_again(&mut book, 7, now), [held], "it is his own name");
    let forgotten = note(name(7, 3), 0, 2, 5);
    let renamed = note(name(9, 3), 2, 2, 5);
    assert_eq!(
        told_again(&mut book, 9, now),
        [forgotten, renamed.clone()],
        "the store may know the old name"
    );
    assert_eq!(told_again(&mut book, 9, now), [renamed]);
    assert!(!book.has_news());
}

#[test]
fn slots_taken_before_there_was_a_name_should_leave_none_behind() {
    let now = clock::now();
    let mut book = Book::default();
    book.want(window(1), SECOND);
    book.take(window(1), name(0, 3), 2, now + SECOND);
    assert_eq!(
        told_again(&mut book, 9, now),
        [note(name(9, 3), 2, 2, 1)],
        "the store never heard of gateway 0"
    );
}

#[test]
fn what_became_of_slots_should_be_told() {
    let now = clock::now();
    let mut book = book(now);
    book.settle(window(1), 3, 1, now + 2 * SECOND, true);
    assert!(book.has_news());
    assert_eq!(told(&mut book, now), [note(name(7, 3), 1, 2, 2)]);
    assert!(!book.has_news(), "told once");
    // The store may have three names for it from now on.
    book.settle(window(1), 3, 3, now + 2 * SECOND, true);
    assert_eq!(told(&mut book, now), [note(name(7, 3), 3, 3, 2)]);
    // All of them back: forgotten for as long as the store may remember them.
    book.settle(window(1), 3, 0, now, true);
    assert_eq!(told(&mut book, now), [note(name(7, 3), 0, 3, 5)]);
    assert_eq!(told_again(&mut book, 7, now), [], "nothing is held");
}

#[test]
fn what_is_not_told_should_come_with_the_next_names() {
    let now = clock::now();
    let mut book = book(now);
    book.settle(window(1), 3, 1, now + 2 * SECOND, false);
    assert!(!book.has_news());
    let both = [note(name(7, 3), 0, 2, 2), note(name(8, 3), 1, 1, 2)];
    assert_eq!(told_again(&mut book, 8, now), both);

    book.settle(window(1), 3, 0, now, false);
    assert!(!book.has_news());
    assert_eq!(told_again(&mut book, 8, now), [note(name(8, 3), 0, 1, 5)]);
    assert_eq!(told_again(&mut book, 8, now), [], "said once");
}

#[test]
fn what_nobody_holds_should_not_be_told() {
    let now = clock::now();
    let mut book = book(now);
    for (window, sequence) in [(window(1), 4), (window(2), 3)] {
        book.settle(window, sequence, 1, now + SECOND, true);
        book.trim(window, sequence, 1, true);
        book.announce(window, sequence);
    }
    assert!(!book.has_news());
    book.not_taken(window(2), 3);
    book.not_taken(window(1), 3);
    assert_eq!(told_again(&mut book, 9, now), []);
}

#[test]
fn trimmed_slots_should_be_held_for_as_long_as_before() {
    let now = clock::now();
    let mut book = book(now);
    book.trim(window(1), 3, 1, true);
    assert_eq!(told(&mut book, now), [note(name(7, 3), 1, 2, 5)]);
    book.announce(window(1), 3);
    assert!(book.has_news());
    assert_eq!(
        told(&mut book, now + 2 * SECOND),
        [note(name(7, 3), 1, 2, 3)]
    );
}

#[test]
fn what_the_store_gave_should_count_from_then_on() {
    let now = clock::now();
    let mut book = book(now);
    book.got(&want(Mode::Ask), 3, &got(4, true, 1), now, now + 3 * SECOND);
    book.announce(window(1), 3);
    assert_eq!(told(&mut book, now), [note(name(7, 3), 4, 4, 3)]);
    book.settle(window(1), 3, 0, now, true);
    assert_eq!(told(&mut book, now), [note(name(7, 3), 0, 4, 3)]);
}

#[test]
fn a_store_that_gave_nothing_should_leave_what_is_held() {
    let now = clock::now();
    let mut book = book(now);
    book.got(
        &want(Mode::Ask),
        3,
        &got(0, false, 5),
        now,
        now + 3 * SECOND,
    );
    book.announce(window(1), 3);
    assert_eq!(told(&mut book, now), [note(name(7, 3), 2, 2, 5)]);
}

#[test]
fn the_slots_of_others_should_be_known_for_one_period() {
    let now = clock::now();
    let mut book = book(now);
    assert_eq!(book.others(&window(1), now), 0, "nobody has asked");
    book.got(&want(Mode::Ask), 3, &got(1, false, 3), now, now + SECOND);
    let just_before = now + SECOND - Duration::from_nanos(1);
    assert_eq!(book.others(&window(1), just_before), 3);
    assert_eq!(book.others(&window(1), now + SECOND), 0);
    assert_eq!(book.others(&window(2), now), 0);
}

#[test]
fn a_share_should_be_covered_only_if_the_store_said_so() {
    let now = clock::now();
    let mut book = book(now);
    assert!(!book.is_covered(&window(1)) && !book.is_covered(&window(2)));
    // Before, who decides, what the store says, after.
    let cases = [
        (false, Mode::Ask, false, false),
        (false, Mode::Ask, true, true),
        (true, Mode::Ask, false, false),
        (true, Mode::TellCovered, false, true),
        (false, Mode::Tell, false, false),
        (false, Mode::Tell, true, false),
        (false, Mode::TellLate, true, true),
        (true, Mode::TellLate, false, false),
    ];
    for (before, mode, says, after) in cases {
        book.got(&want(Mode::Ask), 3, &got(1, before, 0), now, now + SECOND);
        book.got(&want(mode), 3, &got(1, says, 0), now, now + SECOND);
        assert_eq!(
            book.is_covered(&window(1)),
            after,
            "{before} {mode:?} {says}"
        );
    }
}

#[test]
fn claims_that_the_store_forgot_should_be_kept_only_where_it_is_safe() {
    let now = clock::now();
    let mut book = book(now);
    book.want(window(2), 2 * SECOND);
    book.got(&want(Mode::Ask), 3, &got(1, true, 0), now, now + SECOND);
    book.claims_forgotten(|period, covered| covered == (period == SECOND));
    assert!(book.is_covered(&window(1)) && book.is_covered(&window(2)));
    book.claims_forgotten(|period, _| period == SECOND);
    assert!(book.is_covered(&window(1)) && !book.is_covered(&window(2)));
}

#[test]
fn a_claim_that_the_store_was_not_told_again_should_end_when_it_is_away() {
    let now = clock::now();
    for told in [false, true] {
        let mut book = book(now);
        book.got(&want(Mode::Ask), 3, &got(1, true, 0), now, now + SECOND);
        book.claims_forgotten(|_, covered| covered);
        if told {
            book.got(
                &want(Mode::TellCovered),
                4,
                &got(1, true, 0),
                now,
                now + SECOND,
            );
        }
        book.away();
        assert_eq!(book.is_covered(&window(1)), told);
    }
}

#[test]
fn a_claim_should_be_given_up_when_the_last_has_left() {
    let now = clock::now();
    let mut book = book(now);
    book.want(window(1), SECOND);
    book.got(&want(Mode::Ask), 3, &got(1, true, 0), now, now + SECOND);
    book.leave(window(1));
    assert!(!book.has_news(), "somebody still wants slots");
    book.leave(window(1));
    book.leave(window(2));
    assert!(book.has_news());
    let (_, _, releases) = book.tell(now, usize::MAX, &[]);
    assert_eq!(releases, [window(1)]);
    assert!(!book.is_covered(&window(1)) && !book.has_news());
}

#[test]
fn a_claim_that_is_wanted_again_should_be_kept() {
    let now = clock::now();
    let covered = || {
        let mut book = book(now);
        book.got(&want(Mode::Ask), 3, &got(1, true, 0), now, now + SECOND);
        book.leave(window(1));
        book
    };
    let mut wanted_now = covered();
    let (_, _, releases) = wanted_now.tell(now, usize::MAX, &[window(1)]);
    assert_eq!(
        (releases, wanted_now.is_covered(&window(1))),
        (vec![], true)
    );

    let mut wanted_since = covered();
    wanted_since.want(window(1), SECOND);
    let (_, _, releases) = wanted_since.tell(now, usize::MAX, &[]);
    assert_eq!(
        (releases, wanted_since.is_covered(&window(1))),
        (vec![], true)
    );

    let mut left_twice = covered();
    left_twice.want(window(1), SECOND);
    left_twice.leave(window(1));
    let (_, _, releases) = left_twice.tell(now, usize::MAX, &[]);
    assert_eq!(releases, [window(1)], "said once");
}

#[test]
fn notes_should_be_told_in_their_order_as_many_as_there_is_room_for() {
    let now = clock::now();
    let mut book = book(now);
    for slots in [1, 2, 1] {
        book.settle(window(1), 3, slots, now + SECOND, true);
    }
    let told: Vec<_> = std::iter::from_fn(|| {
        let (pending, notes, _) = book.tell(now, 2, &[]);
        assert_eq!(notes_at(&pending, now), notes);
        let slots: Vec<_> = notes.iter().map(|note| note.slots).collect();
        (!slots.is_empty()).then_some(slots)
    })
    .collect();
    assert_eq!(told, [vec![1, 2], vec![1]]);
}

#[test]
fn what_the_store_may_have_missed_should_be_told_when_it_is_back() {
    let now = clock::now();
    let mut book = book(now);
    book.take(window(1), name(7, 4), 1, now + 5 * SECOND);
    book.settle(window(1), 3, 1, now + SECOND, true);
    let (sent, _, _) = book.tell(now, usize::MAX, &[]);
    // One more that was not even sent: attempt 4 is over.
    book.settle(window(1), 4, 0, now, true);
    book.lost(sent);
    assert!(!book.has_news(), "there is nobody to tell");

    // The store may hold both slots until then, so that they are not forgotten here.
    book.leave(window(1));
    book.tell(now, usize::MAX, &[]);
    book.sweep(now + 4 * SECOND);
    let left = [note(name(7, 4), 0, 1, 1), note(name(7, 3), 1, 1, 0)];
    assert_eq!(told_again(&mut book, 7, now + 4 * SECOND), left);
    book.sweep(now + 4 * SECOND);
    assert!(book.is_empty(), "it was told, and its slots are free");
}

#[test]
fn a_note_on_what_is_over_should_name_all_slots_that_the_store_may_have_given() {
    let now = clock::now();
    let mut book = book(now);
    book.announce(window(1), 3);
    let (sent, _, _) = book.tell(now, usize::MAX, &[]);
    book.not_taken(window(1), 3);
    book.lost(sent);
    let forgotten = [note(name(7, 3), 0, 2, 5)];
    assert_eq!(told_again(&mut book, 7, now), forgotten);
}

#[test]
fn slots_that_are_free_should_be_forgotten() {
    let now = clock::now();
    let mut book = book(now);
    book.leave(window(1));
    book.tell(now, usize::MAX, &[]);
    book.sweep(now + 5 * SECOND - Duration::from_nanos(1));
    assert_eq!((book.len(), book.is_empty()), (1, false));
    book.sweep(now + 5 * SECOND);
    assert_eq!((book.len(), book.is_empty()), (0, true));
}

#[test]
fn slots_of_which_the_store_has_not_heard_should_be_kept_for_as_long_as_it_remembers() {
    let now = clock::now();
    let mut book = book(now);
    book.settle(window(1), 3, 1, now + SECOND, false);
    book.leave(window(1));
    book.tell(now, usize::MAX, &[]);
    book.sweep(now + 5 * SECOND - Duration::from_nanos(1));
    assert_eq!(book.len(), 1);
    book.sweep(now + 5 * SECOND);
    assert_eq!(book.len(), 0);
}

#[test]
fn a_window_should_be_kept_while_it_is_wanted_claimed_or_to_be_released() {
    let now = clock::now();
    let mut book = Book::default();
    book.want(window(1), SECOND);
    book.sweep(now);
    assert_eq!(book.len(), 1, "wanted");
    book.got(&want(Mode::Ask), 3, &got(0, true, 0), now, now);
    book.leave(window(1));
    book.sweep(now);
    assert_eq!(book.len(), 1, "claimed, and to be released");
    book.claims_forgotten(|_, _| false);
    book.sweep(now);
    assert_eq!(book.len(), 1, "to be released");
    book.tell(now, usize::MAX, &[]);
    book.got(&want(Mode::Ask), 3, &got(0, true, 0), now, now);
    book.sweep(now);
    assert_eq!(book.len(), 1, "claimed");
    book.claims_forgotten(|_, _| false);
    book.sweep(now);
    assert_eq!(book.len(), 0);
}

#[test]
fn what_the_store_must_forget_should_be_kept_until_it_has_by_itself() {
    let now = clock::now();
    for (after, notes) in [(Duration::from_nanos(1), 1), (Duration::ZERO, 0)] {
        let mut book = book(now);
        book.settle(window(1), 3, 0, now, false);
        book.sweep(now + 5 * SECOND - after);
        assert_eq!(book.rename(8).len(), notes);
    }
}
