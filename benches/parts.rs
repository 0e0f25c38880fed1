//! The time that the deciding parts take.

use std::{hint::black_box, time::Duration};

use chat_gateway::clock;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use work::{Raw, Windows};

fn bodies(c: &mut Criterion) {
    for (name, bytes) in [("300 B", 300), ("8 KB", 8 << 10)] {
        let raw = Raw::set_group_attr(bytes);
        c.bench_function(&format!("parse and validate {name}"), |b| {
            b.iter_batched(|| raw.clone(), Raw::validate, BatchSize::SmallInput);
        });
    }
}

fn batches(c: &mut Criterion) {
    let calls = work::twenty();
    c.bench_function("merge 20 calls", |b| {
        b.iter(|| work::merge(black_box(&calls)))
    });
    let reply = work::reply();
    c.bench_function("split a reply for 20", |b| {
        b.iter(|| work::split(black_box(&calls), &reply));
    });
}

fn windows(c: &mut Criterion) {
    for keys in [1, 10_000, 1_000_000] {
        let windows = Windows::of(keys);
        // Long after what was given back has cooled.
        let now = clock::now() + Duration::from_secs(60);
        // So few at a time that they stay in the cache.
        let few = BatchSize::NumIterations(32);
        c.bench_function(&format!("look up 1 of {keys} windows and decide"), |b| {
            b.iter_batched_ref(|| windows.next_key(), |key| windows.decide(key, now), few);
        });
        c.bench_function(
            &format!("take and give back slots, 1 of {keys} keys"),
            |b| {
                b.iter_batched_ref(|| windows.next_key(), |key| windows.take(key), few);
            },
        );
    }
}

criterion_group!(parts, bodies, batches, windows);
criterion_main!(parts);
