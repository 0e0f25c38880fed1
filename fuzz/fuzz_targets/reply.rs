#![no_main]

#[path = "../../src/tests/fuzz/reply.rs"]
mod reply;

libfuzzer_sys::fuzz_target!(|input: &[u8]| reply::check(input));
