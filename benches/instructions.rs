//! Instructions of the deciding parts, as callgrind counts them: the same on every run, so that a few
//! per cent more is a change and not noise. The limits are the accepted figures and 2 % for another
//! compiler, 15 % where maps are seeded by chance: whoever raises one says why in the commit, whoever
//! lowers the count lowers the limit.

use std::hint::black_box;

use bytes::Bytes;
use chat_gateway::{
    call::{Call, LaneKey, Reply},
    lane::merge::Fate,
};
use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use work::{Raw, Windows};

/// At most so many instructions.
fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(Callgrind::default().hard_limits([(EventKind::Ir, instructions)]));
    config
}

#[library_benchmark]
#[bench::small(args = (300), setup = Raw::set_group_attr, config = at_most(6_480))]
#[bench::large(args = (8 << 10), setup = Raw::set_group_attr, config = at_most(29_940))]
fn parse_and_validate(raw: Raw) -> Call {
    black_box(raw.validate())
}

#[library_benchmark]
#[bench::twenty(args = (), setup = work::twenty, config = at_most(135_250))]
fn merge(calls: Vec<Call>) -> Bytes {
    black_box(work::merge(&calls))
}

fn twenty_and_reply() -> (Vec<Call>, Reply) {
    (work::twenty(), work::reply())
}

#[library_benchmark]
#[bench::twenty(args = (), setup = twenty_and_reply, config = at_most(290_480))]
fn split((calls, reply): (Vec<Call>, Reply)) -> Vec<Fate> {
    black_box(work::split(&calls, &reply))
}

fn windows_and_key(keys: usize) -> (Windows, LaneKey) {
    let windows = Windows::of(keys);
    let key = windows.next_key();
    (windows, key)
}

#[library_benchmark]
#[bench::of_10_000(args = (10_000), setup = windows_and_key, config = at_most(2_530))]
fn take((windows, key): (Windows, LaneKey)) {
    windows.take(&key);
    // Not part of it.
    std::mem::forget((windows, key));
}

library_benchmark_group!(
    name = parts,
    benchmarks = [parse_and_validate, merge, split, take]
);
main!(library_benchmark_groups = parts);
