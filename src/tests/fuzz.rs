//! The targets of the fuzzers, replayed without one: every input of the corpus, and a few thousand
//! changes of them that are the same on each run. `make fuzz` looks further.
//!
//! - [`body`]: bodies of calls, alone and merged
//! - [`config`]: settings of all sources
//! - [`query`]: the query string of a URL
//! - [`reply`]: replies of the upstream to a batch
//! - [`state`]: the state file

mod body;
mod config;
mod query;
mod reply;
mod state;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// Changes of each target's corpus.
const CHANGES: usize = 1_500;

/// What stands at the borders of the formats: put anywhere, it often makes another meaning.
const SPLINTERS: [&str; 24] = [
    "\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\\",
    "\\ud800",
    "\\u0000",
    "\u{feff}",
    "\u{1f600}",
    "&",
    "=",
    "usersig=",
    "+",
    "%00",
    "-0",
    "1e999",
    "18446744073709551616",
    "null",
    "\n",
    "\r\n",
    " |",
];

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let entries = fs::read_dir(&folder).expect("a corpus");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    assert!(
        paths.len() >= 8,
        "{} has only {} inputs",
        folder.display(),
        paths.len()
    );
    let inputs = paths.iter().map(|path| fs::read(path).expect("readable"));
    inputs.collect()
}

/// One of `corpus`, changed in a few places.
fn changed(corpus: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut input = corpus.choose(rng).expect("not empty").clone();
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..=input.len());
        let end = rng.random_range(at..=input.len().min(at + 40));
        match rng.random_range(0..6) {
            0 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
            1 if at < input.len() => input[at] = rng.random(),
            2 => input.truncate(at),
            3 => {
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            4 => {
                let other = corpus.choose(rng).expect("not empty");
                let from = rng.random_range(0..=other.len());
                input.splice(at..end, other[from..].iter().copied());
            }
            _ => {
                let splinter = SPLINTERS.choose(rng).expect("not empty");
                input.splice(at..at, splinter.bytes());
            }
        }
    }
    // What has grown by splicing would only take time.
    input.truncate(8 << 10);
    input
}

#[track_caller]
fn replay(target: &str, check: fn(&[u8])) {
    let corpus = corpus(target);
    let rng = &mut StdRng::seed_from_u64(0x5eed_f022);
    let changes: Vec<_> = (0..CHANGES).map(|_| changed(&corpus, rng)).collect();
    for input in corpus.iter().chain(&changes) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(input))) {
            eprintln!("the input for {target} was: b\"{}\"", input.escape_ascii());
            resume_unwind(panic);
        }
    }
}

#[test]
fn bodies_should_be_calls_or_refused_and_merge_within_the_limits() {
    replay("body", body::check);
}

#[test]
fn settings_should_read_back_or_be_mistakes_with_a_place() {
    replay("config", config::check);
}

#[test]
fn queries_should_say_who_asks_and_never_show_a_signature() {
    replay("query", query::check);
}

#[test]
fn replies_should_be_divided_into_what_each_has_asked() {
    replay("reply", reply::check);
}

#[test]
fn state_files_should_be_read_as_far_as_they_go_and_never_hold_a_slot_for_too_long() {
    replay("state", state::check);
}
