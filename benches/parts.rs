//! The time that the deciding parts take.

use std::{hint::black_box, sync::Arc, time::Duration};

use chat_gateway::{
    call::{LaneKey, QuotaClass, Target},
    config::Config,
    quota::{local::Quota, scopes::Scopes},
};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use futures_util::FutureExt as _;
use work::Raw;

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

/// A look-up of the key's window, a slot taken there and in the command's, and both settled: what
/// every attempt costs.
fn windows(c: &mut Criterion) {
    for keys in [1_usize, 10_000, 1_000_000] {
        let mut config = Config::default();
        config.quota.group_attributes.limit = 5;
        config.quota.api.limit = 1_000_000;
        // Short, so that every slot is free again when its key is next asked for.
        config.quota.group_attributes.window = Duration::from_nanos(1);
        config.quota.api.window = Duration::from_nanos(1);
        config.state.hold = Duration::ZERO;
        let quota = Quota::new(&config);
        let command = quota.command("/v4/group_open_http_svc/set_group_attr", Some(1));
        let names: Vec<LaneKey> = (0..keys).map(key).collect();
        // Cooled by the guard alone, 1 ms: one slot a key is in use at a time.
        let held: Vec<_> = names.iter().map(|name| quota.key(name)).collect();
        let mut next = 0;
        c.bench_function(&format!("decide, window of 1 of {keys} keys"), |b| {
            b.iter(|| {
                // A step that is prime to the number of keys, so that the next is not in the cache.
                next = (next + 7_919) % keys;
                let scopes = Scopes {
                    key: Some((quota.key(&names[next]), 1)),
                    command: command.clone(),
                };
                let permit = scopes.acquire().now_or_never().expect("a free slot");
                permit.refund();
            });
        });
        drop(held);
    }
}

fn key(number: usize) -> LaneKey {
    LaneKey {
        class: QuotaClass::GroupAttributes,
        target: Target {
            app: 88_888_888,
            group: Arc::from(format!("@TGS#group{number}")),
            message: None,
        },
    }
}

criterion_group!(parts, bodies, batches, windows);
criterion_main!(parts);
