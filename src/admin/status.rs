//! `/status.json`: what waits, where, and until when.

use std::time::Duration;

use serde::Serialize;

use super::Admin;
use crate::{
    call::LaneKey,
    clock::{self, Instant},
    lane::View,
    metrics::{Metrics, quota_name},
    shutdown::Phase,
};

/// The keys that are shown: those whose first call has waited longest.
const SHOWN: usize = 50;

/// The slots of a key whose times are shown: a window may have a million.
const SHOWN_SLOTS: usize = 50;

#[derive(Serialize)]
struct Status<'a> {
    version: &'a str,
    phase: &'a str,
    uptime_seconds: f64,
    upstream: &'a str,
    upstream_milliseconds: f64,
    quota_refusals: u64,
    /// Since the start; readers take differences.
    totals: Totals,
    waiting: Vec<Waiting<'a>>,
    live_keys: usize,
    keys: Vec<Key>,
}

#[derive(Serialize)]
struct Totals {
    calls: u64,
    upstream_calls: u64,
    writes: u64,
    merged_writes: u64,
    repeats: u64,
}

#[derive(Serialize)]
struct Waiting<'a> {
    quota: &'a str,
    calls: usize,
    bytes: usize,
}

/// One key as the status and its explanation show it.
#[derive(Serialize)]
pub(super) struct Key {
    quota: &'static str,
    sdkappid: u64,
    group: String,
    msg_seq: Option<i128>,
    wait_ms: f64,
    queue_calls: usize,
    queue_bytes: usize,
    batches: u32,
    in_flight_calls: u32,
    attempts: u32,
    limit: u32,
    /// What a slot stands for: `calls` or `pairs`.
    counts: &'static str,
    free_slots: u32,
    in_flight_slots: u32,
    cooling_slots: usize,
    next_slot_ms: Option<f64>,
    /// The first of the cooling slots; `cooling_slots` says how many there are.
    slots_free_in_ms: Vec<f64>,
    rests_ms: f64,
}

/// The status now, as JSON.
pub(super) fn render(admin: &Admin) -> Vec<u8> {
    let now = clock::now();
    let mut lanes: Vec<_> = admin
        .lanes
        .live()
        .into_iter()
        .map(|lane| (lane.key().clone(), lane.view()))
        .collect();
    lanes.sort_by(|(a, one), (b, other)| {
        other
            .oldest_wait
            .cmp(&one.oldest_wait)
            .then_with(|| a.cmp(b))
    });
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        phase: match admin.lifecycle.phase() {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Draining | Phase::Expired => "draining",
        },
        uptime_seconds: (now - admin.started).as_secs_f64(),
        upstream: match admin.lanes.upstream.breaker.next_probe(now) {
            None => "reachable",
            Some(_) => "unreachable",
        },
        upstream_milliseconds: millis(admin.lanes.upstream.service_time.get()),
        quota_refusals: admin.metrics.quota_refusals(),
        totals: Totals::of(&admin.metrics),
        waiting: (admin.lanes.quota.classes())
            .map(|class| {
                let (calls, bytes) = admin.lanes.room.waiting(class);
                Waiting {
                    quota: quota_name(class),
                    calls,
                    bytes,
                }
            })
            .collect(),
        live_keys: lanes.len(),
        keys: lanes
            .into_iter()
            .take(SHOWN)
            .map(|(key, view)| Key::of(&key, &view, now))
            .collect(),
    };
    serde_json::to_vec_pretty(&status).expect("strings and numbers serialize")
}

impl Totals {
    fn of(metrics: &Metrics) -> Totals {
        Totals {
            calls: metrics.calls(),
            upstream_calls: metrics.upstream_calls(),
            writes: metrics.writes(),
            merged_writes: metrics.merged_calls(),
            repeats: metrics.repeats(),
        }
    }
}

impl Key {
    /// What `view` shows of `key`.
    pub(super) fn of(key: &LaneKey, view: &View, now: Instant) -> Key {
        let until = |at: Instant| millis(at.saturating_duration_since(now));
        let rests_ms = view.slots.rests_until.map_or(0.0, until);
        let spaced_ms = view.slots.spaced_until.map_or(0.0, until);
        let next = match (view.slots.free, view.slots.cooling.first()) {
            (0, Some(&at)) => Some(until(at)),
            // Every slot is at the upstream: the next one is not known yet.
            (0, None) => None,
            _ => Some(0.0),
        };
        Key {
            quota: key.class.name(),
            sdkappid: key.target.app,
            group: key.target.group.to_string(),
            msg_seq: key.target.message,
            wait_ms: millis(view.oldest_wait),
            queue_calls: view.calls,
            queue_bytes: view.bytes,
            batches: view.batches,
            in_flight_calls: view.under_way.map_or(0, |facts| facts.batch),
            attempts: view.under_way.map_or(0, |facts| facts.attempts),
            limit: view.limit,
            counts: view.counting.name(),
            free_slots: view.slots.free,
            in_flight_slots: view.slots.in_flight,
            cooling_slots: view.slots.cooling.len(),
            next_slot_ms: next.map(|next| next.max(rests_ms).max(spaced_ms)),
            slots_free_in_ms: (view.slots.cooling.iter().take(SHOWN_SLOTS))
                .copied()
                .map(until)
                .collect(),
            rests_ms,
        }
    }
}

pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{QuotaClass, Target},
        quota::{counting::Counting, slots},
    };

    #[test]
    fn a_key_should_show_few_of_many_slots_and_count_them_all() {
        let now = clock::now();
        let window = slots::View {
            free: 0,
            in_flight: 1,
            cooling: vec![now + Duration::from_millis(250); 999],
            ..slots::View::default()
        };
        let view = View {
            calls: 3,
            bytes: 300,
            batches: 2,
            oldest_wait: Duration::from_millis(5),
            under_way: None,
            slots: window,
            limit: 1_000,
            counting: Counting::Calls,
        };
        let target = Target {
            app: 1,
            group: "g".into(),
            message: None,
        };
        let key = LaneKey {
            class: QuotaClass::GroupAttributes,
            target,
        };
        let key = Key::of(&key, &view, now);
        assert_eq!(key.slots_free_in_ms, vec![250.0; SHOWN_SLOTS]);
        assert_eq!((key.in_flight_slots, key.cooling_slots), (1, 999));
        assert_eq!(key.next_slot_ms, Some(250.0));
    }
}
