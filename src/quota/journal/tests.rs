use std::{collections::HashMap, fs};

use tempfile::TempDir;

use super::*;
use crate::quota::{journal::record::WindowClass, window::Pace};

const PERIOD: Duration = Duration::from_millis(60_013);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

fn paces() -> Paces {
    let pace = Pace {
        limit: 20,
        window: Duration::from_secs(60),
        call_timeout: CALL_TIMEOUT,
    };
    Paces {
        group_attributes: pace,
        message_extension: Pace { limit: 200, ..pace },
        ruled: HashMap::new(),
        api: pace,
    }
}

fn folder() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("windows");
    (folder, file)
}

fn open(file: &Path) -> Arc<Journal> {
    Arc::new(Journal::open(file, paces()).unwrap().unwrap())
}

fn page(journal: &Arc<Journal>, n: u32) -> Page {
    page_of(WindowClass::Command, journal, n)
}

/// Of a window of 200 slots, of which four may be taken before they are written down.
fn large(journal: &Arc<Journal>, n: u32) -> Page {
    page_of(WindowClass::MessageExtension, journal, n)
}

fn page_of(class: WindowClass, journal: &Arc<Journal>, n: u32) -> Page {
    let mut digest = [0; 16];
    digest[..4].copy_from_slice(&n.to_le_bytes());
    Page::new(journal.clone(), WindowId { class, digest })
}

fn put(page: &Page, event: Event, slots: u32) {
    write(event, clock::now(), [Some((page, slots)), None]);
}

fn names(folder: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

/// Slots that are remembered for a window, each for about so long.
#[track_caller]
fn check_recalled(journal: &Arc<Journal>, n: u32, expected: &[Duration]) {
    check_page_recalled(&page(journal, n), expected);
}

#[track_caller]
fn check_page_recalled(page: &Page, expected: &[Duration]) {
    let now = clock::now();
    let left: Vec<_> = page
        .recall()
        .flat_map(|(until, slots)| std::iter::repeat_n(until - now, slots as usize))
        .collect();
    assert_eq!(left.len(), expected.len(), "{left:?}");
    for (left, expected) in left.iter().zip(expected) {
        let expected = *expected + CLOCK_SLACK;
        assert!(
            *left <= expected && *left + Duration::from_secs(2) > expected,
            "{left:?}"
        );
    }
}

#[test]
fn what_one_journal_wrote_the_next_should_recall_once() {
    let (folder, file) = folder();
    let journal = open(&file);
    assert_eq!(journal.summary, Summary::default());
    put(&page(&journal, 1), Event::Taken, 3);
    put(&page(&journal, 1), Event::Replied, 2);
    put(&page(&journal, 2), Event::Taken, 1);
    put(&page(&journal, 2), Event::Refunded, 1);
    write(
        Event::Taken,
        clock::now(),
        [Some((&page(&journal, 3), 1)), Some((&page(&journal, 4), 1))],
    );
    drop(journal);
    assert_eq!(names(&folder), ["windows", "windows.lock"]);

    for _ in 0..2 {
        let journal = open(&file);
        let summary = Summary {
            windows: 3,
            slots: 5,
            missing: 0,
            counts_pairs: false,
        };
        assert_eq!(journal.summary, summary);
        let lost = CALL_TIMEOUT + PERIOD;
        check_recalled(&journal, 1, &[lost, PERIOD, PERIOD]);
        check_recalled(&journal, 1, &[]);
        check_recalled(&journal, 2, &[]);
        check_recalled(&journal, 3, &[lost]);
        check_recalled(&journal, 4, &[lost]);
        // Before the next one starts, as a process would end.
        drop(journal);
    }
}

#[test]
fn what_is_taken_should_be_in_the_file_at_once() {
    let (folder, file) = folder();
    let journal = open(&file);
    let before = fs::metadata(&file).unwrap().len();
    put(&page(&journal, 1), Event::Taken, 1);
    assert_eq!(fs::metadata(&file).unwrap().len(), before + LENGTH as u64);
    put(&page(&journal, 1), Event::Replied, 1);
    journal.sweep();
    assert_eq!(
        fs::metadata(&file).unwrap().len(),
        before + 2 * LENGTH as u64
    );
    // A copy of the file is what a process that was killed leaves.
    let copy = folder.path().join("copy");
    fs::copy(&file, &copy).unwrap();
    check_recalled(&open(&copy), 1, &[PERIOD]);
}

/// What a process that is killed now leaves to the next.
fn killed(folder: &TempDir, file: &Path) -> Arc<Journal> {
    let copies = fs::read_dir(folder.path()).unwrap().count();
    let copy = folder.path().join(format!("killed-{copies}"));
    fs::copy(file, &copy).unwrap();
    open(&copy)
}

#[test]
fn what_may_be_missing_should_be_held_in_every_window_of_its_class() {
    let (folder, file) = folder();
    let journal = open(&file);
    let (busy, other) = (large(&journal, 1), large(&journal, 2));
    let length = || (fs::read(&file).unwrap().len() - HEADER.len()) / LENGTH;
    put(&busy, Event::Taken, 1);
    assert_eq!(length(), 2, "what may be missing, and what was taken");
    for _ in 0..4 {
        put(&busy, Event::Taken, 1);
        put(&other, Event::Taken, 1);
        assert_eq!(length(), 2);
    }
    let lost = CALL_TIMEOUT + PERIOD;
    let next = killed(&folder, &file);
    assert_eq!((next.summary.slots, next.summary.missing), (1, 4));
    check_page_recalled(&large(&next, 1), &[lost; 5]);
    for n in [2, 9, 9] {
        check_page_recalled(&large(&next, n), &[lost; 4]);
    }
    check_recalled(&next, 1, &[]);

    // One more would be too many.
    put(&other, Event::Taken, 1);
    assert_eq!(length(), 11);
    put(&busy, Event::Taken, 4);
    assert_eq!(length(), 11);
    put(&busy, Event::Taken, 1);
    assert_eq!(length(), 13);
    put(&busy, Event::Taken, 5);
    assert_eq!(length(), 14);
    let next = killed(&folder, &file);
    assert_eq!((next.summary.slots, next.summary.missing), (20, 4));
}

#[test]
fn what_may_be_missing_should_add_up_over_those_who_took_something() {
    let (folder, file) = folder();
    let first = open(&file);
    put(&large(&first, 1), Event::Taken, 1);
    let second = killed(&folder, &file);
    put(&large(&second, 1), Event::Taken, 1);
    second.compact();
    let third = killed(&folder, &second.path);
    let fourth = killed(&folder, &third.path);
    for last in [third, fourth] {
        assert_eq!((last.summary.slots, last.summary.missing), (2, 8));
        check_page_recalled(&large(&last, 2), &[CALL_TIMEOUT + PERIOD; 8]);
    }
}

#[test]
fn nothing_should_be_missing_after_a_quiet_second_or_an_orderly_end() {
    let (folder, file) = folder();
    let journal = open(&file);
    let page = large(&journal, 1);
    for _ in 0..2 {
        put(&page, Event::Taken, 1);
        journal.sweep();
        assert_eq!(killed(&folder, &file).summary.missing, 4);
        journal.sweep();
        assert_eq!(killed(&folder, &file).summary.missing, 0);
    }
    put(&page, Event::Taken, 1);
    drop((page, journal));
    let summary = open(&file).summary;
    assert_eq!((summary.slots, summary.missing), (3, 0));
}

#[test]
fn what_may_be_missing_should_follow_the_limit() {
    let (folder, file) = folder();
    let journal = open(&file);
    let page = large(&journal, 1);
    let mut paces = paces();
    for (limit, expected) in [(200, 4), (49, 4), (500, 10), (1_000_000, 200)] {
        paces.message_extension.limit = limit;
        journal.set_paces(paces.clone());
        put(&page, Event::Taken, 1);
        assert_eq!(killed(&folder, &file).summary.missing, expected, "{limit}");
    }
}

#[test]
fn a_torn_or_damaged_file_should_be_used_as_far_as_it_can_be_read() {
    let (folder, file) = folder();
    let journal = open(&file);
    for n in 0..4 {
        put(&page(&journal, n), Event::Taken, 1);
    }
    drop(journal);
    let whole = fs::read(&file).unwrap();
    for length in 0..=whole.len() {
        let copy = folder.path().join(format!("torn-{length}"));
        fs::write(&copy, &whole[..length]).unwrap();
        let records = length.saturating_sub(HEADER.len()) / LENGTH;
        assert_eq!(open(&copy).summary.windows, records, "{length}");
        // And it is whole again.
        put(&page(&open(&copy), 9), Event::Taken, 1);
        assert_eq!(open(&copy).summary.windows, records + 1, "{length}");
    }
    for at in 0..whole.len() {
        let copy = folder.path().join(format!("damaged-{at}"));
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(&copy, &bytes).unwrap();
        let expected = if at < HEADER.len() { 0 } else { 3 };
        assert_eq!(open(&copy).summary.windows, expected, "{at}");
    }
}

#[test]
fn a_foreign_file_should_be_set_aside() {
    let (folder, file) = folder();
    fs::write(&file, "chat-gateway windows 2\nfrom the future").unwrap();
    let journal = open(&file);
    assert_eq!(journal.summary, Summary::default());
    let names = names(&folder);
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names[1].starts_with("windows.foreign-"), "{names:?}");
    let kept = fs::read_to_string(folder.path().join(&names[1])).unwrap();
    assert!(kept.ends_with("from the future"));
}

#[test]
fn a_file_that_cannot_be_used_should_not_be_fatal() {
    let (folder, file) = folder();
    let unusable = |file: &Path| Journal::open(file, paces()).unwrap().is_none();
    assert!(unusable(&folder.path().join("no/such/folder")));
    fs::create_dir(&file).unwrap();
    assert!(unusable(&file), "a folder");
    // Nobody, not even root, can make files in here.
    assert!(unusable(Path::new("/proc/self/windows")));
    let blocked = folder.path().join("blocked");
    fs::create_dir(beside(&blocked, ".new")).unwrap();
    assert!(unusable(&blocked), "no room for FILE.new");
}

#[test]
fn a_file_should_be_used_by_one_process() {
    let (_folder, file) = folder();
    let journal = open(&file);
    let error = Journal::open(&file, paces()).unwrap_err().to_string();
    let start = format!("state.file: {} is used by another process", file.display());
    assert!(error.starts_with(&start), "{error}");
    // A compaction puts another file in its place.
    journal.compact();
    assert!(Journal::open(&file, paces()).is_err());
    drop(journal);
    assert!(Journal::open(&file, paces()).unwrap().is_some());
}

#[test]
fn a_compaction_should_keep_what_is_busy_and_what_comes_meanwhile() {
    let (folder, file) = folder();
    let journal = open(&file);
    let busy = page(&journal, 1);
    put(&busy, Event::Taken, 2);
    let mut writers = Vec::new();
    for n in 2..4 {
        let page = page(&journal, n);
        writers.push(std::thread::spawn(move || {
            for _ in 0..40_000 {
                put(&page, Event::Taken, 1);
                put(&page, Event::Refunded, 1);
            }
            put(&page, Event::Taken, n);
        }));
    }
    let mut compactions = 0;
    while writers.iter().any(|writer| !writer.is_finished()) {
        journal.sweep();
        if journal.has_grown() {
            journal.compact();
            compactions += 1;
        }
    }
    for writer in writers {
        writer.join().unwrap();
    }
    assert!(compactions > 0);
    journal.compact();
    let length = fs::metadata(&file).unwrap().len();
    assert!(length < 2_000, "{length} bytes are left");
    assert!(!journal.has_grown());
    put(&busy, Event::Replied, 1);
    assert_eq!(names(&folder), ["windows", "windows.lock"]);
    drop((busy, journal));

    let journal = open(&file);
    let lost = CALL_TIMEOUT + PERIOD;
    check_recalled(&journal, 1, &[lost, PERIOD]);
    check_recalled(&journal, 2, &[lost; 2]);
    check_recalled(&journal, 3, &[lost; 3]);
}

#[test]
fn a_compaction_that_was_cut_short_should_leave_no_trace() {
    let (folder, file) = folder();
    let journal = open(&file);
    put(&page(&journal, 1), Event::Taken, 1);
    drop(journal);
    fs::write(beside(&file, ".new"), "half of").unwrap();
    assert_eq!(open(&file).summary.slots, 1);
    assert_eq!(names(&folder), ["windows", "windows.lock"]);
}

#[test]
fn a_compaction_that_fails_should_leave_the_file_as_it_is() {
    let (folder, file) = folder();
    let journal = open(&file);
    put(&page(&journal, 1), Event::Taken, 1);
    fs::create_dir(beside(&file, ".new")).unwrap();
    journal.compact();
    put(&page(&journal, 1), Event::Taken, 1);
    fs::remove_dir(beside(&file, ".new")).unwrap();
    drop(journal);
    assert_eq!(open(&file).summary.slots, 2);
    drop(folder);
}

#[test]
fn a_failed_write_should_be_made_up_for() {
    let (_folder, file) = folder();
    let journal = open(&file);
    put(&page(&journal, 1), Event::Taken, 1);
    let full = File::options().append(true).open("/dev/full").unwrap();
    let good = std::mem::replace(&mut journal.inner.lock().file, full);
    put(&page(&journal, 2), Event::Taken, 1);
    put(&page(&journal, 3), Event::Taken, 1);
    assert!(journal.inner.lock().broken);
    journal.sweep();
    assert!(journal.inner.lock().broken, "there is still no room");
    // Part of the write that failed may have reached the file.
    (&good).write_all(b"torn").unwrap();
    journal.inner.lock().file = good;
    journal.sweep();
    assert!(!journal.inner.lock().broken);
    put(&page(&journal, 4), Event::Taken, 1);
    drop(journal);
    assert_eq!(open(&file).summary.windows, 4);
}

#[test]
fn an_outage_should_not_fill_the_memory() {
    let (_folder, file) = folder();
    let journal = open(&file);
    let full = File::options().append(true).open("/dev/full").unwrap();
    let good = std::mem::replace(&mut journal.inner.lock().file, full);
    let (page, room) = (page(&journal, 1), PENDING_MAX / LENGTH);
    for _ in 0..room + 10 {
        put(&page, Event::Taken, 1);
    }
    assert!(journal.inner.lock().pending.len() <= PENDING_MAX);
    assert_eq!(journal.inner.lock().forgotten, 10);
    journal.inner.lock().file = good;
    journal.sweep();
    assert_eq!(journal.inner.lock().forgotten, 0);
    drop((page, journal));
    assert_eq!(open(&file).summary.slots, room as u64);
}

#[test]
fn a_moved_clock_should_be_written_down() {
    let (_folder, file) = folder();
    let journal = open(&file);
    let (base, there) = journal.inner.lock().base;
    assert_eq!(
        journal.inner.lock().time(base + PERIOD) - there,
        micros(PERIOD)
    );
    assert_eq!(
        there - journal.inner.lock().time(base - PERIOD),
        micros(PERIOD)
    );
    // As if the wall clock had been an hour later when this was written.
    journal.inner.lock().base.1 += micros(Duration::from_hours(1));
    put(&page(&journal, 1), Event::Taken, 1);
    put(&page(&journal, 1), Event::Replied, 1);
    journal.sweep();
    put(&page(&journal, 2), Event::Taken, 1);
    drop(journal);
    let journal = open(&file);
    check_recalled(&journal, 1, &[PERIOD]);
    check_recalled(&journal, 2, &[CALL_TIMEOUT + PERIOD]);

    // The same, but nobody noticed.
    journal.inner.lock().base.1 += micros(Duration::from_hours(1));
    put(&page(&journal, 3), Event::Taken, 1);
    drop(journal);
    let journal = open(&file);
    check_recalled(&journal, 3, &[CALL_TIMEOUT + PERIOD]);
    let (base, there) = journal.inner.lock().base;
    let ahead = there - micros(clock::unix_now()) + micros(clock::now() - base);
    assert!(ahead.abs() < 1_000_000, "the next file has the right time");
}

#[test]
fn a_process_being_started_should_not_keep_the_file_locked() {
    let (_folder, file) = folder();
    let journal = open(&file);
    // What a fork has until it runs its program.
    let inherited = journal.lock.try_clone().unwrap();
    drop(journal);
    open(&file);
    drop(inherited);
}
