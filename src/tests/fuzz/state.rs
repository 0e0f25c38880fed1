//! The state file: whatever is in it, the process starts, holds no slot for longer than it could
//! have to, and leaves a file that says the same again.

use std::{collections::HashMap, fs, time::Duration};

use chat_gateway::quota::{
    journal::{
        Journal,
        ledger::{Damage, Ledger, Paces, micros},
        record::{HEADER, LENGTH, Record},
    },
    window::Pace,
};

const CALL_TIMEOUT: Duration = Duration::from_secs(5);

fn paces() -> Paces {
    let pace = |limit, seconds| Pace {
        limit,
        window: Duration::from_secs(seconds),
        call_timeout: CALL_TIMEOUT,
    };
    Paces {
        group_attributes: pace(5, 1),
        message_extension: pace(200, 60),
        api: pace(200, 1),
        ruled: HashMap::new(),
    }
}

pub(crate) fn check(input: &[u8]) {
    let mut mended = input.to_vec();
    mend(&mut mended);
    for input in [input, &mended] {
        check_records(input);
        check_ledger(input);
    }
    check_file(&mended);
}

/// Makes every record whole: no fuzzer finds a checksum.
fn mend(input: &mut [u8]) {
    let (records, _) = input.as_chunks_mut::<LENGTH>();
    for record in records {
        let (checked, checksum) = record.split_at_mut(LENGTH - 4);
        checksum.copy_from_slice(&crc32fast::hash(checked).to_le_bytes());
    }
}

/// What is read is written as it was.
fn check_records(input: &[u8]) {
    let (records, _) = input.as_chunks::<LENGTH>();
    for bytes in records {
        if let Some(record) = Record::decode(bytes) {
            assert_eq!(Record::decode(&record.encode()), Some(record));
        }
    }
}

fn check_ledger(input: &[u8]) {
    let paces = &paces();
    let (records, torn) = input.as_chunks::<LENGTH>();
    let damaged = records
        .iter()
        .filter(|bytes| Record::decode(bytes).is_none());
    let damage = Damage {
        records: damaged.count(),
        torn_bytes: torn.len(),
    };
    let now = micros(Duration::from_secs(1_000_000));
    let mut ledger = Ledger::read(input);
    assert_eq!(ledger.damage, damage);
    // While its process runs, and after it has ended.
    check_again(&ledger, paces, now);
    ledger.bury(paces, now);
    for busy in ledger.busy(paces, now) {
        let pace = paces.of(busy.window.class);
        assert!(busy.left <= CALL_TIMEOUT + pace.period(), "{busy:?}");
        assert!(!busy.left.is_zero(), "{busy:?}");
    }
    for missing in ledger.missing(paces, now) {
        let pace = paces.of(missing.class);
        assert!(missing.left <= CALL_TIMEOUT + pace.period(), "{missing:?}");
        assert!(!missing.left.is_zero(), "{missing:?}");
    }
    check_again(&ledger, paces, now);
}

/// What a compaction writes says the same.
fn check_again(ledger: &Ledger, paces: &Paces, now: i64) {
    let said = |ledger: &Ledger| {
        let busy = ledger.busy(paces, now);
        let busy = busy.map(|busy| format!("{busy:?}"));
        let of_classes = ledger.beginning(paces, now);
        let of_classes = of_classes.map(|record| format!("{record:?}"));
        let mut said: Vec<_> = busy.chain(of_classes).collect();
        said.sort_unstable();
        said
    };
    let busy = ledger.busy(paces, now).map(|busy| busy.record());
    let records = ledger.beginning(paces, now).chain(busy);
    let compacted: Vec<u8> = records.flat_map(|record| record.encode()).collect();
    let again = Ledger::read(&compacted);
    assert_eq!(again.damage, Damage::default());
    assert_eq!(said(&again), said(ledger));
}

/// The file is opened, compacted and opened again; nothing that was there before is lost without a
/// trace.
fn check_file(input: &[u8]) {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("windows");
    let open = || {
        let journal = Journal::open(&path, paces()).expect("nobody else uses it");
        journal.expect("it can be used")
    };
    // Half of them as records of ours, half as they are.
    let headed = input.len().is_multiple_of(2);
    let mut content = if headed { HEADER.to_vec() } else { Vec::new() };
    content.extend_from_slice(input);
    fs::write(&path, &content).expect("written");
    let journal = open();
    let held = journal.summary;
    journal.compact();
    drop(journal);
    let written = fs::read(&path).expect("a file");
    let records = written.strip_prefix(HEADER).expect("ours");
    assert_eq!(Ledger::read(records).damage, Damage::default());
    // Time passes, so that what is held can only become less.
    let again = open().summary;
    assert!(again.windows <= held.windows && again.slots <= held.slots);
    assert!(again.missing <= held.missing);
    if !headed && !content.starts_with(HEADER) && !HEADER.starts_with(&content) {
        let mut entries = fs::read_dir(folder.path()).expect("a folder");
        let aside = entries.any(|entry| {
            let name = entry.expect("an entry").file_name();
            name.to_string_lossy().contains(".foreign-")
        });
        assert!(aside, "a foreign file is kept");
    }
}
