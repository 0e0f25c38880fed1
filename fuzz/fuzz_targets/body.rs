#![no_main]

#[path = "../../src/tests/fuzz/body.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::check(input));
