#![no_main]

#[path = "../../src/tests/fuzz/state.rs"]
mod state;

libfuzzer_sys::fuzz_target!(|input: &[u8]| state::check(input));
