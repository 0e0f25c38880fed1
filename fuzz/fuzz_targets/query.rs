#![no_main]

#[path = "../../src/tests/fuzz/query.rs"]
mod query;

libfuzzer_sys::fuzz_target!(|input: &[u8]| query::check(input));
